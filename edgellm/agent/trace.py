"""A trace: each layer's output for a whole sequence, for `edgellm verify`."""

import logging
from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import BusyError
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer

if TYPE_CHECKING:
    from edgellm.agent.stage import Stage

log = logging.getLogger(__name__)


def answer_trace(stage: "Stage", peer: Peer, message: m.Trace, x: np.ndarray) -> None:
    """Run the section of `stage` over `x` in a slot of its own; send `peer` one `traced` per layer, or a refusal.

    `x`, what `message` holds, is int64 [tokens] or float32 [tokens, hidden_size].
    """

    def job(section, slot) -> None:
        try:
            outputs = section.trace(x, slot)
        except Exception as e:  # a model's code may raise anything
            log.exception("trace failed")
            stage.loop.call_soon_threadsafe(peer.refuse, f"trace failed: {e}")
            return
        for number, output in enumerate(outputs, message.layer):
            data = output.astype("<f4").tobytes()
            answer = m.Traced(stage.epoch, number, len(x), data, message.position, message.request)
            stage.loop.call_soon_threadsafe(peer.send, answer)

    def dropped() -> None:
        stage.loop.call_soon_threadsafe(peer.refuse, f"board {stage.board} has moved on to another plan")

    try:
        stage.engine.run_with_slot(job, dropped, owner=peer)
    except BusyError as e:
        peer.refuse(str(e))
