"""What an answer's text consists of: text, reasoning, and calls of tools."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    """A piece of what is meant for the reader."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class ToolBegin:
    """The model begins to call a tool; calls are numbered from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolArguments:
    """A piece of a call's arguments, which are JSON."""

    index: int
    text: str


@dataclass(frozen=True)
class ToolEnd:
    """A call is complete."""

    index: int


Piece = Said | Reasoning | ToolBegin | ToolArguments | ToolEnd
