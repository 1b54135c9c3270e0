"""A trace: what each layer gives for a piece of a sequence, for `edgellm verify`."""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from edgellm.agent.sequence import Sequence
from edgellm.agent.steps import Step
from edgellm.errors import UsageError
from edgellm.model.protocols import Array
from edgellm.wire import messages as m

if TYPE_CHECKING:
    from edgellm.agent.stage import Stage


class Traces:
    """Sends what was traced. A piece is as large as a step's memory may be, so its layers go out one by one, each when
    the manager has read those before: a pong never stands behind a whole piece."""

    def __init__(self, stage: "Stage"):
        self._stage = stage
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, sequence: Sequence, message: m.Trace, x: Array) -> None:
        """Queue a piece of a trace of a sequence. Raises UsageError while there is another one."""
        if sequence.traced is not None:
            raise UsageError(f"two pieces of a trace of sequence {message.seq_id:x} at once")
        sequence.traced, sequence.used = replace(message, data=b""), True
        long = self._stage.is_long(message.pass_len)
        self._stage.submit(Step(message.seq_id, x, message.position, message.pass_len, 0, (), long, trace=True))

    def send(self, sequence: Sequence, layers: Array) -> None:
        """Send one `traced` for each of `layers`, float32 [layers, tokens, hidden_size]."""
        piece = sequence.traced
        assert piece is not None

        async def send() -> None:
            for number, output in enumerate(layers, piece.layer):
                await sequence.owner.drain()
                if not self._stage.holds(sequence):
                    return
                if number == piece.layer + len(layers) - 1:
                    sequence.traced = None  # the manager may send the next one
                data = output.astype("<f4", copy=False).tobytes()
                answer = m.Traced(self._stage.epoch, number, piece.count, data, piece.position, piece.request)
                sequence.owner.send(answer)

        task = asyncio.create_task(send())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
