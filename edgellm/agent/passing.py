"""Hidden states on their way through this board: in from the board before, and out to the next one."""

from typing import TYPE_CHECKING

import numpy as np

from edgellm.agent.link import Link
from edgellm.agent.sequence import Sequence
from edgellm.agent.steps import Step
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer

if TYPE_CHECKING:
    from edgellm.agent.stage import Stage

_MAX_WAITING_BYTES = 64 << 20  # hidden states that may wait here before a board is made to send no more

Computed = tuple[Sequence, Step, np.ndarray]  # and the hidden states that came of the step


class Passing:
    """Takes hidden states for `stage`, and sends what it makes of them over `link`; None on the last board."""

    def __init__(self, stage: "Stage", link: Link | None):
        self._stage, self._link = stage, link
        self.paused: set[Peer] = set()  # boards from which nothing is read, because too much waits

    @property
    def congested(self) -> bool:
        """Whether the next board reads more slowly than we write."""
        return self._link is not None and self._link.congested

    def hidden(self, peer: Peer, message: m.Hidden) -> None:
        """Queue a step. One of a sequence that isn't open here, because it was cancelled, is dropped."""
        stage = self._stage
        # Not copied: NumPy would let go of the GIL, and the engine begin without the steps that came along.
        x = np.frombuffer(message.data, "<f4").reshape(len(message.ids), -1).astype(np.float32, copy=False)
        stage.submit(Step(
            message.seq_id, x, message.position, message.pass_len, message.logits, message.ids,
            stage.is_long(message.pass_len), pool=stage.pools(message.seq_id), drafts=message.drafts,
        ))  # fmt: skip
        if stage.engine.waiting_bytes > _MAX_WAITING_BYTES and peer not in self.paused:
            self.paused.add(peer)
            peer.pause_reading()

    def relieve(self, all_of_them: bool = False) -> None:
        """Read again from paused boards, if enough of the waiting states are gone."""
        if self.paused and (all_of_them or self._stage.engine.waiting_bytes <= _MAX_WAITING_BYTES // 2):
            for peer in self.paused:
                peer.resume_reading()
            self.paused.clear()

    def push(self, computed: list[Computed]) -> None:
        """Send steps that ran together in one piece, so that they run together on the next board too."""
        link = self._link
        if link is None or not computed:
            return
        before = link.sent_bytes
        link.send(*(
            m.Hidden(
                self._stage.epoch, step.seq_id, step.position, step.pass_len, step.logits, tuple(step.ids),
                result.astype("<f4", copy=False).tobytes(), drafts=step.drafts,
            )
            for _, step, result in computed
        ))  # fmt: skip
        sent, tokens = link.sent_bytes - before, sum(len(step.x) for _, step, _ in computed)
        for sequence, step, _ in computed:
            if step.is_decode:
                sequence.sent_bytes += sent * len(step.x) // tokens
