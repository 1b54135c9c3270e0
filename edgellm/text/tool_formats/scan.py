"""Reads an answer's text as it arrives: the means that all formats' parsers share.

A parser is a generator. It takes what it needs from a `Scan`, and yields when it needs more text than has come.
"""

import secrets
import string
from collections.abc import Generator, Iterable

from edgellm.text.tool_formats.pieces import Piece, Reasoning, Said, ToolArguments, ToolBegin, ToolEnd

Reading = Generator[None, None, None]
_MOST_HELD = 1 << 20  # characters of a call that nothing has told yet
_LETTERS = string.ascii_letters + string.digits


class Malformed(Exception):
    """What was read is no call."""


class Scan:
    """The text that has come and was not read yet, and the pieces that were made of it."""

    def __init__(self, most_calls: int | None = None) -> None:
        """Calls beyond `most_calls` are read and not told."""
        self._most_calls = most_calls
        self.text = ""
        self.ended = False
        self.calls = 0
        self._pieces: list[Piece] = []
        self._space = ""  # white space at the end of what was said, which a call that follows makes disappear
        self._trimming = False  # white space before what is said next disappears
        self._thought = False  # whether any reasoning was told, before which white space disappears
        self._thought_space = ""
        self._untold = ""  # read since the last piece, to be given back as text if it turns out to be no call

    def take_pieces(self) -> list[Piece]:
        """Return the new pieces, with neighbours of the same kind joined."""
        joined: list[Piece] = []
        for piece in self._pieces:
            if self._most_calls is not None and getattr(piece, "index", 0) >= self._most_calls:
                continue
            last = joined[-1] if joined else None
            if isinstance(piece, (Said, Reasoning)) and type(last) is type(piece):
                joined[-1] = type(piece)(last.text + piece.text)
            elif isinstance(piece, ToolArguments) and isinstance(last, ToolArguments) and last.index == piece.index:
                joined[-1] = ToolArguments(piece.index, last.text + piece.text)
            else:
                joined.append(piece)
        self._pieces = []
        return joined

    # Reading

    def peek(self) -> Generator[None, None, str]:
        """Return the next character, "" at the end."""
        while not self.text and not self.ended:
            yield
        return self.text[:1]

    def next(self) -> Generator[None, None, str]:
        """Take the next character. Raises Malformed at the end."""
        while not self.text:
            if self.ended:
                raise Malformed
            yield
        c, self.text = self.text[0], self.text[1:]
        self._read(c)
        return c

    def spaces(self) -> Reading:
        """Skip white space."""
        while (yield from self.peek()).isspace():
            yield from self.next()

    def literal(self, expected: str) -> Reading:
        """Take a text. Raises Malformed if another one comes."""
        for c in expected:
            if (yield from self.next()) != c:
                raise Malformed

    def comes(self, expected: str) -> Generator[None, None, bool]:
        """Take a text if it comes next, and return whether it does."""
        while len(self.text) < len(expected) and expected.startswith(self.text) and not self.ended:
            yield
        if not self.text.startswith(expected):
            return False
        self.text = self.text[len(expected) :]
        self._read(expected)
        return True

    def until(self, ends: Iterable[str]) -> Generator[None, None, tuple[str, str]]:
        """Take a text and the first of `ends`, which are found by then; return both. Raises Malformed at the end."""
        text = ""
        while True:
            piece, end = yield from self.piece(ends)
            text += piece
            self._read(piece + end)
            if end:
                return text, end
            if self.ended:
                raise Malformed

    def piece(self, ends: Iterable[str]) -> Generator[None, None, tuple[str, str]]:
        """Take what is surely before any of `ends`, and the end that follows it, "" for none so far.

        At the end of the answer, that is all. What may be the beginning of an end waits.
        """
        ends = tuple(ends)
        while True:
            found = min(((i, -len(e), e) for e in ends if (i := self.text.find(e)) >= 0), default=None)
            if found is not None and (self.ended or not self._may_be_longer(found, ends)):
                i, _, end = found
                before, self.text = self.text[:i], self.text[i + len(end) :]
                return before, end
            most = found[0] if found is not None else len(self.text)
            sure = most if self.ended else min(most, len(self.text) - max(overlap(self.text, e) for e in ends))
            if sure or self.ended:
                before, self.text = self.text[:sure], self.text[sure:]
                return before, ""
            yield

    def _may_be_longer(self, found: tuple[int, int, str], ends: tuple[str, ...]) -> bool:
        rest = self.text[found[0] :]
        return any(len(e) > len(rest) and e.startswith(rest) for e in ends)

    # Telling

    def say(self, text: str) -> None:
        """Tell a piece of text for the reader."""
        if self._trimming:
            text = text.lstrip()
            if not text:
                return
            self._trimming = False
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        if kept:
            self._pieces.append(Said(kept))

    def think(self, text: str) -> None:
        """Tell a piece of reasoning, without white space around all of it."""
        text = self._thought_space + text
        if not self._thought:
            text = text.lstrip()
        kept = text.rstrip()
        self._thought_space = text[len(kept) :]
        if kept:
            self._thought = True
            self._pieces.append(Reasoning(kept))

    def end_thought(self) -> None:
        """Reasoning has ended: white space at its end, and before what follows, disappears."""
        self._thought = False
        self._thought_space = ""
        self._trimming = True

    def begin(self, marker: str) -> None:
        """What is read from now on is a call, which `marker` announced."""
        self._untold = marker

    def call(self, name: str, id: str = "") -> int:
        """Tell that a call begins; return its number. Raises Malformed for a call of nothing."""
        if not name or name != name.strip():
            raise Malformed
        index, self.calls = self.calls, self.calls + 1
        self._untold = self._space = ""
        self._pieces.append(ToolBegin(index, id or "".join(secrets.choice(_LETTERS) for _ in range(9)), name))
        return index

    def arguments(self, index: int, text: str) -> None:
        """Tell a piece of a call's arguments."""
        self._untold = ""
        if text:
            self._pieces.append(ToolArguments(index, text))

    def end_call(self, index: int) -> None:
        """Tell that a call is complete."""
        self._untold = ""
        self._trimming = True
        self._pieces.append(ToolEnd(index))

    def give_back(self) -> None:
        """What was read is no call: say it."""
        untold, self._untold = self._untold, ""
        if untold:
            self._trimming = False
            self.say(untold)

    def leave(self) -> None:
        """The call that was read needs nothing more told."""
        self._untold = ""

    def finish(self) -> None:
        """The answer has ended: tell the white space at its end, unless it followed a call."""
        space, self._space = self._space, ""
        if space:
            self._pieces.append(Said(space))

    def _read(self, text: str) -> None:
        self._untold += text
        if len(self._untold) > _MOST_HELD:
            raise Malformed


def overlap(text: str, string: str) -> int:
    """Return the length of the longest end of `text` that begins `string`, without being all of it."""
    longest = min(len(string) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
