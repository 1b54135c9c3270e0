"""A trace: what each layer of a section makes of a whole sequence, for `edgellm verify`."""

import logging

import numpy as np

from edgellm.errors import BusyError, UsageError
from edgellm.limits import MAX_STEP_BYTES
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer

log = logging.getLogger(__name__)


def answer_trace(stage, peer: Peer, message: m.Trace) -> None:
    """Run the trace in a slot of its own on the engine of `stage`; `peer` gets one `traced` a layer, or a refusal."""
    try:
        x = _input(stage, message)
    except UsageError as e:
        peer.refuse(str(e))
        return

    def job(section, slot):
        try:
            outputs = section.trace(x, slot)
        except Exception as e:
            log.exception("trace failed")
            stage.loop.call_soon_threadsafe(peer.refuse, f"trace failed: {e}")
            return
        for layer, output in enumerate(outputs, message.layer):
            answer = m.Traced(stage.epoch, layer, message.count, output.astype("<f4").tobytes())
            stage.loop.call_soon_threadsafe(peer.send, answer)

    def dropped():
        stage.loop.call_soon_threadsafe(peer.refuse, f"board {stage.board} went on to another plan")

    try:
        stage.engine.run_with_slot(job, dropped, owner=peer)
    except BusyError as e:
        peer.refuse(str(e))


def _input(stage, message: m.Trace) -> np.ndarray:
    """What the section takes: int64 [tokens] or float32 [tokens, hidden_size]; raises UsageError for anything else."""
    own, section, count = stage.plan.section_of(stage.board), stage.section, message.count
    width = 1 if stage.is_first else section.hidden_size
    if len(message.data) != 4 * width * count:
        raise UsageError(f"trace of {count} tokens with {len(message.data)} bytes; expected {4 * width} a token")
    if count > stage.plan.context or message.layer != own.start:
        raise UsageError(
            f"trace of {count} tokens from layer {message.layer}; "
            f"a slot holds {stage.plan.context}, the section starts at layer {own.start}"
        )
    answer_bytes = 4 * own.num_layers * count * section.hidden_size
    if answer_bytes > MAX_STEP_BYTES:
        raise UsageError(f"trace of {count} tokens: {answer_bytes} bytes to answer, at most {MAX_STEP_BYTES}")
    if not stage.is_first:
        return np.frombuffer(message.data, "<f4").reshape(count, width).astype(np.float32)
    ids = np.frombuffer(message.data, "<u4").astype(np.int64)
    if int(ids.max()) >= section.vocab_size:
        raise UsageError(f"trace of token id {int(ids.max())}; the vocabulary has {section.vocab_size}")
    return ids
