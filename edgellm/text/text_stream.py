"""Token ids to text as they arrive: each token's characters once they are complete, at a constant cost.

The tokenizers library decodes a list of ids at once; its own stream raises in the middle of an answer when bytes turn
out not to be UTF-8. Here the decoders that language models use are followed token by token, as bytes. A byte that isn't
UTF-8 becomes U+FFFD, as in the library, and everything around it stays.
"""

import codecs
import json
import re
from collections.abc import Callable
from typing import Any, Protocol

import tokenizers

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_MOST_UNSTABLE = 8  # tokens that the library may take to complete a character


class TextStream:
    """Token ids in, text out, as soon as it is complete: half a UTF-8 character waits for its other half."""

    def __init__(self, joiner: "Joiner"):
        self._joiner = joiner

    def feed(self, token: int) -> str:
        """Return the text that this token completes, often a word, sometimes nothing. Control tokens have none."""
        return self._joiner.add(token)

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for half a character."""
        return self._joiner.end()


class Joiner(Protocol):
    """Joins tokens to text."""

    def add(self, token: int) -> str: ...

    def end(self) -> str: ...


def make_joiner(tokenizer: tokenizers.Tokenizer) -> Callable[[], Joiner]:
    """Return what makes a joiner of this tokenizer's decoder for each text."""
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else None
    special = frozenset(i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special)
    steps = _steps(decoder)
    if steps is None:
        return lambda: _LibraryJoiner(tokenizer, special)
    return lambda: _ByteJoiner(tokenizer, special, steps)


def make_speller(tokenizer: tokenizers.Tokenizer) -> Callable[[int], bytes]:
    """Return what tells the bytes of a single token, as in the middle of a text; none for an unknown id."""
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else None
    steps = _steps(decoder)

    def spell(token: int) -> bytes:
        text = tokenizer.id_to_token(token)
        if text is None:
            return b""
        return text.encode() if steps is None else steps.to_bytes(text, False)

    return spell


class _Steps:
    """What a decoder does with the text of each token."""

    def __init__(self) -> None:
        self.byte_level = False
        self.byte_fallback = False
        self.replacements: list[tuple[str, str]] = []
        self.dropped_first = ""  # a character that the first token loses
        self.stripped = ("", 0)  # a character, and how many of it the text's beginning loses

    def to_bytes(self, token: str, first: bool) -> bytes:
        """Return the bytes of a token's text."""
        if self.byte_level:
            try:
                return bytes(_BYTE_OF[c] for c in token)
            except KeyError:  # an added token, written unchanged
                return token.encode()
        if self.byte_fallback and (byte := _BYTE.match(token)):
            return bytes([int(byte[1], 16)])
        if first and self.dropped_first:
            token = token.replace(self.dropped_first, "")
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token.encode()


def _steps(decoder: dict[str, Any] | None) -> _Steps | None:
    """Return the steps of a decoder, None for one that isn't followed here."""
    steps, fused = _Steps(), False
    if decoder is None:
        return None
    chain = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    if [d["type"] for d in chain] == ["ByteLevel"]:
        steps.byte_level = True
        return steps
    for step in chain:
        kind = step["type"]
        if kind == "Replace" and "String" in step["pattern"] and not fused:
            steps.replacements.append((step["pattern"]["String"], step["content"]))
        elif kind == "ByteFallback" and not fused:
            steps.byte_fallback = True
        elif kind == "Metaspace" and not fused:
            if step.get("prepend_scheme", "always") != "never":
                steps.dropped_first = step["replacement"]
            steps.replacements.append((step["replacement"], " "))
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and step["stop"] == 0 and not steps.stripped[1]:
            steps.stripped = (step["content"], step["start"])
        else:
            return None
    return steps


class _ByteJoiner:
    """Follows a decoder token by token."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, special: frozenset[int], steps: _Steps):
        self._tokenizer = tokenizer
        self._special = special
        self._steps = steps
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True
        self._strip, self._to_strip = steps.stripped

    def add(self, token: int) -> str:
        text = self._tokenizer.id_to_token(token) if token not in self._special else None
        if text is None:
            return ""
        data = self._steps.to_bytes(text, self._first)
        self._first = False
        return self._stripped(self._utf8.decode(data))

    def end(self) -> str:
        return self._stripped(self._utf8.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        while self._to_strip and text:
            if text[0] != self._strip:
                self._to_strip = 0
                break
            text = text[1:]
            self._to_strip -= 1
        return text


class _LibraryJoiner:
    """For other decoders: decodes the last few tokens with the library, before and after each new one."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, special: frozenset[int]):
        self._tokenizer = tokenizer
        self._special = special
        self._ids: list[int] = []
        self._read = 0  # of _ids, those whose text was given out

    def add(self, token: int) -> str:
        if token in self._special or self._tokenizer.id_to_token(token) is None:
            return ""
        self._ids.append(token)
        return self._new(wait=len(self._ids) - self._read < _MOST_UNSTABLE)

    def end(self) -> str:
        return self._new(wait=False) if self._read < len(self._ids) else ""

    def _new(self, wait: bool) -> str:
        before, now = self._decode(self._ids[: self._read]), self._decode(self._ids)
        if wait and now.endswith("\ufffd"):
            return ""
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        try:
            return str(self._tokenizer.decode(ids))
        except BaseException as e:  # the library raises plain Exception, and panics
            if isinstance(e, (KeyboardInterrupt, SystemExit)):
                raise
            return "\ufffd" * len(ids)


def _bytes_by_letter() -> dict[str, int]:
    """Return the byte that each letter of the byte-level alphabet stands for: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _bytes_by_letter()
