"""Text and chats to token ids, by the files in a split model's folder; imports neither torch nor numpy."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from edgellm.errors import ClusterError, ManifestError, UsageError
from edgellm.text.chat_template import ChatTemplate, find_template, named_tokens
from edgellm.text.control_tokens import Markers, Marking, rename_tokens, texts_of
from edgellm.text.json_file import read_json
from edgellm.text.text_stream import TextStream, make_joiner, make_speller

ROLES = ("system", "developer", "user", "assistant", "tool")
# An added token that isn't special controls something if the template writes it, and it looks like that: not "user".
_BRACKETED = re.compile(r"[<\[{(|｜].+[>\]})|｜]\Z", re.DOTALL)
# One that looks like this controls something whatever its file says; converters to GGUF call it a control token.
_CONTROL = re.compile(r"<[|｜].+[|｜]>\Z", re.DOTALL)
_OURS = ("messages", "tools", "documents", "add_generation_prompt")  # variables of a template that no caller sets
_MOST_ENDS = 64  # of prompts that are remembered, one for each choice of variables
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names that clients use; templates read the first


class Tokenizer:
    """The tokenizer of a split model, from `tokenizer.json` and `tokenizer_config.json` in its folder."""

    def __init__(self, folder: Path, *, for_chats: bool = False):
        """`for_chats` starts the chat template's process now, while the tokenizer is read.

        Raises ClusterError if the folder has no tokenizer, ManifestError for one that can't be read.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ClusterError(f"{path} is missing: the model was split without one. Split a source that has one.")
        self._named = named_tokens(read_json(folder / "tokenizer_config.json"))
        source = find_template(folder)
        self._template = ChatTemplate(source, str(folder)) if source is not None else None
        if for_chats and self._template is not None:
            self._template.start()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as e:  # the library raises plain Exception for anything it can't parse
            raise ManifestError(f"{path}: {e}") from None
        self._tokenizer.no_truncation()  # what training left there; old splits may still have it
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special: dict[int, str] = {i: t.content for i, t in added.items() if t.special and t.content}
        controls = [t.content for t in added.values() if t.special or _CONTROL.match(t.content)]
        self._control = frozenset(filter(None, controls))
        self._words = frozenset(t.content for t in added.values() if not t.special and _BRACKETED.match(t.content))
        self._renamed: tuple[Any, tokenizers.Tokenizer] | None = None
        self._ends: dict[str, str] = {}
        self._joiner = make_joiner(self._tokenizer)
        self._spell = make_speller(self._tokenizer)

    @property
    def has_template(self) -> bool:
        """True if the model says how a chat is to be written."""
        return self._template is not None

    @property
    def template(self) -> str:
        """The source of the chat template, "" if there is none."""
        return self._template.source if self._template is not None else ""

    def control_id(self, text: str) -> int | None:
        """Return the id of the control token with this text; None if there is none."""
        return next((i for i, content in self._special.items() if content == text), None)

    def special_token(self, token: int) -> str | None:
        """Return the text of a control token, which decoding leaves out; None for any other token."""
        return self._special.get(token)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token's text, which may be part of a character; of a control token, its name."""
        if (special := self._special.get(token)) is not None:
            return special.encode()
        return self._spell(token)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a plain text, control tokens included, with what the model puts around every text."""
        ids: list[int] = self._tokenizer.encode(_whole(text)).ids
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Return the same, but control tokens in the text are text."""
        text = _whole(text)
        marking = Marking(self._control, markers := Markers.absent_from([text]))
        if not marking.is_marked(marking.mark(text)):
            return self.encode(text)
        ids: list[int] = self._renaming(self._control, markers).encode(text).ids
        return ids

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids of a chat, and of the beginning of the assistant's next message.

        Each message has a `role` of ROLES and a `content`, of what JSON has; `variables` are further ones of the
        template, such as enable_thinking. The ids are those of transformers'
        apply_chat_template, except that control tokens in messages, tools and documents are text. Raises UsageError for
        a chat that the template refuses, ManifestError if the template fails.
        """
        assert self._template is not None, "has_template says whether there is one"
        messages = [_plain_message(m) for m in messages]
        given = {k: v for k, v in (variables or {}).items() if k not in _OURS and k not in self._named}
        users = [messages, tools, documents, given]
        markers = Markers.absent_from([self._template.source, *texts_of(users), *self._named.values()])
        words = frozenset(w for w in self._words if w in self._template.source)
        marking, spoken = Marking(self._control | words, markers), Marking(self._control, markers)
        rendered = _whole(self._template.render(
            {
                **{name: marking.mark(value) for name, value in given.items()},
                "messages": [_marked_message(m, spoken if m["role"] == "assistant" else marking) for m in messages],
                "tools": marking.mark(tools),
                "documents": marking.mark(documents),
                "add_generation_prompt": True,
                **self._named,
            }
        ))  # fmt: skip
        if not marking.is_marked(rendered):
            plain: list[int] = self._tokenizer.encode(rendered, add_special_tokens=False).ids
            return plain
        library = self._renaming(self._control | words, markers)
        ids: list[int] = library.encode(marking.swap(rendered), add_special_tokens=False).ids
        return ids

    def prompt_end(self, variables: Mapping[str, Any] | None = None) -> str:
        """Return what the template writes behind the last user's message. Raises as encode_chat does."""
        assert self._template is not None, "has_template says whether there is one"
        given = {k: v for k, v in (variables or {}).items() if k not in _OURS and k not in self._named}
        key = json.dumps(given, sort_keys=True)
        if key not in self._ends:
            said = "Why is the sky blue?"
            asked, system = {"role": "user", "content": said}, {"role": "system", "content": "Be brief."}
            values = {**given, "tools": None, "documents": None, "add_generation_prompt": True, **self._named}
            try:
                rendered = self._template.render({**values, "messages": [asked]})
            except UsageError:  # some want a system prompt
                rendered = self._template.render({**values, "messages": [system, asked]})
            if len(self._ends) >= _MOST_ENDS:
                self._ends.clear()
            self._ends[key] = rendered.rpartition(said)[2]
        return self._ends[key]

    def stream(self) -> TextStream:
        """Return a new stream from token ids to text."""
        return TextStream(self._joiner())

    def _renaming(self, tokens: frozenset[str], markers: Markers) -> tokenizers.Tokenizer:
        """Return the tokenizer that knows `tokens` by their other names; kept, since making it takes a while."""
        if self._renamed is None or self._renamed[0] != (tokens, markers):
            self._renamed = ((tokens, markers), rename_tokens(self._tokenizer.to_str(), tokens, markers))
        return self._renamed[1]


def _plain_message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as templates expect it: no null, and the reasoning under the names that they know."""
    role = message.get("role")
    if role not in ROLES:  # a template may write it between <| and |>
        raise UsageError(f"a message has the role {str(role)[:40]!r}, expected one of {', '.join(ROLES)}")
    message = {k: v for k, v in message.items() if v is not None}
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _marked_message(message: dict[str, Any], marking: Marking) -> dict[str, Any]:
    return {k: v if k == "role" else marking.mark(v) for k, v in message.items()}


def _whole(text: str) -> str:
    """Return a text in which half a surrogate pair, which no encoder takes, is U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
