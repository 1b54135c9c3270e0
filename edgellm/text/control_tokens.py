"""Tells a template's control tokens from text that a user typed, which stays text.

A chat is rendered once, with two marker characters around each control token that a user's text contains. What comes
out unmarked is the template's. A tokenizer that knows every control token by another name, its own text between the
markers, then reads the chat: the template's tokens are renamed, the user's are not. So white space around a token,
prefixes and word boundaries are treated exactly as the original tokenizer treats them.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import tokenizers

from edgellm.errors import ManifestError

_PRIVATE_USE = range(0xF8E0, 0xE000, -1)  # from the end: other programs take theirs from the beginning
_MORE_PRIVATE_USE = range(0xF0000, 0x10FFFE)


@dataclass(frozen=True)
class Markers:
    """Two characters that occur in no text of a chat: before and after a control token."""

    start: str
    end: str

    @classmethod
    def absent_from(cls, texts: Iterable[str]) -> "Markers":
        """Return markers that occur in none of the texts."""
        used = set().union(*texts)
        free = (chr(c) for block in (_PRIVATE_USE, _MORE_PRIVATE_USE) for c in block if chr(c) not in used)
        return cls(next(free), next(free))

    def wrap(self, token: str) -> str:
        """Return a control token's other name."""
        return f"{self.start}{token}{self.end}"


class Marking:
    """Puts markers around some tokens in a user's text, and tells them from the template's afterwards."""

    def __init__(self, tokens: Iterable[str], markers: Markers):
        longest_first = sorted(set(tokens), key=len, reverse=True)
        self._markers = markers
        self._beginnings = {t[:n] for t in longest_first for n in range(1, len(t))}
        self._longest = max(map(len, longest_first), default=0)
        any_token = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._token = re.compile(any_token)
        start, end = markers.start, markers.end
        self._rendered = re.compile(f"{start}({any_token}){end}|[{start}{end}]|({any_token})")

    def mark(self, value: Any) -> Any:
        """Return `value`, a text or other JSON, with the tokens in all its texts marked. Keys stay as they are.

        The end of a text that may begin a token is marked too: what follows it must not complete it.
        """
        if isinstance(value, str):
            marked = self._token.sub(lambda found: self._markers.wrap(found[0]), value)
            end = len(marked.rstrip())
            if any(marked[end - n : end] in self._beginnings for n in range(1, min(end, self._longest) + 1)):
                return f"{marked[:end]}{self._markers.end}{marked[end:]}"
            return marked
        if isinstance(value, dict):
            return {k: self.mark(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.mark(v) for v in value]
        return value

    def swap(self, rendered: str) -> str:
        """Return a rendered chat in which the template's tokens have their other names, and the user's their own.

        A lone marker, left by a template that cuts texts, disappears.
        """

        def other(found: re.Match[str]) -> str:
            users, templates = found.groups()
            return users if users is not None else self._markers.wrap(templates) if templates is not None else ""

        return self._rendered.sub(other, rendered)

    def is_marked(self, rendered: str) -> bool:
        """Return True if any marker is left in a rendered chat."""
        return self._markers.start in rendered or self._markers.end in rendered


def texts_of(value: Any) -> Iterator[str]:
    """Yield every text in what JSON has, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for k, v in value.items():
            yield str(k)
            yield from texts_of(v)
    elif isinstance(value, list):
        for v in value:
            yield from texts_of(v)


def rename_tokens(tokenizer_json: str, tokens: frozenset[str], markers: Markers) -> tokenizers.Tokenizer:
    """Return a tokenizer with the same ids whose added `tokens` are known by the name that `markers` give them only.

    The vocabulary itself is renamed too, and loses its merges to them: some models would otherwise find a control
    token in plain text. Raises ManifestError if the tokenizers library refuses the result.
    """
    content = json.loads(tokenizer_json)
    for added in content.get("added_tokens") or []:
        if added["content"] in tokens:
            added["content"] = markers.wrap(added["content"])
    model = content["model"]
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {markers.wrap(t) if t in tokens else t: i for t, i in vocab.items()}
    elif isinstance(vocab, list):  # Unigram: pairs of token and score, in the order of ids
        model["vocab"] = [[markers.wrap(t) if t in tokens else t, score] for t, score in vocab]
    if isinstance(merges := model.get("merges"), list):
        model["merges"] = [m for m in merges if not _mentions(m, tokens)]
    if model.get("unk_token") in tokens:
        model["unk_token"] = markers.wrap(model["unk_token"])
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    except Exception as e:  # the library raises plain Exception
        raise ManifestError(f"the tokenizer can't be made to read control tokens as text: {e}") from None


def _mentions(merge: Any, tokens: frozenset[str]) -> bool:
    left, _, right = merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
    return left in tokens or right in tokens or left + right in tokens
