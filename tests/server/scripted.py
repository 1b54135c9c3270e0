"""Answers by script, in place of a model's: what a dialect makes of each event."""

from contextlib import asynccontextmanager

from edgellm.server.asking import (
    Accepted,
    Ended,
    Reasoning,
    Text,
    Timings,
    ToolArguments,
    ToolBegin,
    ToolEnd,
    Usage,
)

CALLS = (
    Accepted(9, "fake"), Reasoning("Let me "), Reasoning("see."), Text("I look."), ToolBegin(0, "call_1", "weather"),
    ToolArguments(0, '{"city": '), ToolArguments(0, '"Ulm"}'), ToolEnd(0), ToolBegin(1, "call_2", "clock"),
    ToolArguments(1, "{}"), ToolEnd(1), Ended("tool_calls", Usage(9, 4, 12, 3), Timings()),
)  # fmt: skip


def answer_by(script):
    """What stands in for `asking.answer`; an exception in the script is raised."""

    async def answer(models, ask):
        for event in script:
            if isinstance(event, Exception):
                raise event
            yield event

    return answer


class Embedder:
    """Stands in for a client that embeds: the vector (length, 2) of each text."""

    async def embed(self, texts):
        return [((float(len(t)), 2.0), len(t)) for t in texts]


def use_embedder(models):
    """What stands in for `models.use`."""

    @asynccontextmanager
    async def use(name, keep_alive_s=None):
        yield "fake", Embedder()

    return use
