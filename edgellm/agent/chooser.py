"""The last board's part: chooses tokens, and sends them to the manager, and with drafts to the first board."""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgellm.agent.constraint import Grammars
from edgellm.agent.drafters import Ask
from edgellm.agent.drafting import Speculation
from edgellm.agent.link import Link
from edgellm.agent.pooling import Pooling
from edgellm.agent.sequence import Sequence, agreed, choose
from edgellm.agent.slots import Ids
from edgellm.agent.steps import Outcome, Step
from edgellm.model.sampler import Sampler, logprobs
from edgellm.wire import messages as m

_TELL_S = 0.3  # between two reports of a prompt's progress

if TYPE_CHECKING:
    from edgellm.agent.stage import Stage


class Chooser:
    """Chooses for the sequences of `stage`; `first` is the link to the first board, None if this is the first.
    `grammars` compiles constraints."""

    def __init__(self, stage: "Stage", first: Link | None, grammars: Grammars | None):
        self._stage, self._first, self._grammars = stage, first, grammars
        self._tasks: set[asyncio.Task[None]] = set()

    def constrain(self, sequence: Sequence) -> None:
        """Begin to compile a sequence's constraint, if it has one, while the boards compute its prompt."""
        if sequence.constraint is None:
            return
        assert self._grammars is not None, "a plan's stage has it"
        vocab_size = self._stage.section.vocab_size
        matching = sequence.matching = self._grammars.match(sequence.constraint, sequence.eos, vocab_size)
        ids, began = tuple(sequence.ids), sequence.began

        def compile() -> None:
            try:
                with matching.lock:
                    matching.follow(ids, began, len(ids))
            except Exception as e:
                self._stage.fail_soon(sequence, e)

        self._grammars.submit(compile)

    def deliver(self, outcomes: list[Outcome]) -> None:
        """Choose tokens where there are logits, then hand the outcomes to the loop: each sequence's choice at once, so
        that the first board doesn't wait for the others'. Runs in the engine's thread."""
        for outcome in outcomes:
            sequence = self._stage.sequence_of(outcome.step.seq_id)
            if outcome.result is not None and sequence is not None and not outcome.step.alone:
                if sequence.matching is not None:  # the engine goes on meanwhile
                    self.choose_apart(sequence, outcome)
                    continue
                try:
                    self.choose(sequence, outcome)
                except Exception as e:  # NaN, or anything else: it ends this sequence
                    outcome.error = e
            self._stage.computed_soon([outcome])

    def choose_apart(self, sequence: Sequence, outcome: Outcome) -> None:
        """Do the same as `choose` in a thread that may wait for a constraint, and then hand the outcome to the loop."""
        assert self._grammars is not None and sequence.matching is not None
        matching = sequence.matching

        def choose() -> None:
            try:
                with matching.lock:
                    self.choose(sequence, outcome)
            except Exception as e:
                outcome.error = e
            self._stage.computed_soon([outcome])

        self._grammars.submit(choose)

    def choose(self, sequence: Sequence, outcome: Outcome) -> None:
        """Set the tokens that a step chooses. Runs in the engine's thread; raises ModelError for logits that aren't
        finite, UsageError for an answer that its constraint doesn't allow to go on."""
        logits, step = outcome.result, outcome.step
        assert logits is not None
        if sequence.sampler is None:
            sequence.sampler = Sampler(sequence.sampling, self._stage.section.vocab_size, sequence.began)
        forces = not (sequence.logits or sequence.logprobs)  # each token with its row
        outcome.chosen = choose(
            sequence.sampler, sequence.ids, logits, step.ids, step.end, sequence.matching, sequence.began, forces
        )
        if sequence.logprobs:
            rows = zip(logits, outcome.chosen, strict=False)
            outcome.logprobs = [logprobs(row, token, sequence.logprobs) for row, token in rows]

    def chosen(self, sequence: Sequence, outcome: Outcome) -> None:
        """Send what was chosen, at once, or when the manager has read enough: until then its sequence waits, and no
        other."""
        if not sequence.owner.congested:
            self._send(sequence, outcome)
            return

        async def wait() -> None:
            await sequence.owner.drain()
            if self._stage.holds(sequence):
                self._send(sequence, outcome)

        task = asyncio.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def prefilled(self, sequence: Sequence, position: int, now_s: float) -> None:
        """Tell a manager that wants to know, now and then, how much of the prompt is computed."""
        if sequence.tells_progress and now_s - sequence.told_s >= _TELL_S and not sequence.owner.congested:
            sequence.told_s = now_s
            count = min(position, sequence.prompt_len)
            sequence.owner.send(m.Prefilled(self._stage.epoch, sequence.seq_id, count))

    def pooled(self, sequence: Sequence, step: Step, hidden: np.ndarray) -> None:
        """Take in what the head would take for a step's tokens; at the prompt's end, send the embedding."""
        if sequence.pooling is None:
            sequence.pooling = Pooling(sequence.pool)
        sequence.pooling.add(hidden, step.position)
        if step.end < sequence.prompt_len:
            self.prefilled(sequence, step.end, self._stage.loop.time())
            return
        vector = sequence.pooling.vector()
        sequence.owner.send(m.Embedded(self._stage.epoch, sequence.seq_id, vector.tobytes()))

    def _send(self, sequence: Sequence, outcome: Outcome) -> None:
        """Send the chosen tokens to the first board and to the manager, up to the answer's end; to the first board with
        drafts, unless it's the end."""
        logits, step, epoch, seq_id = outcome.result, outcome.step, self._stage.epoch, sequence.seq_id
        assert logits is not None
        position = step.end - len(logits) + 1  # where the first of them goes
        if position < sequence.prompt_len or sequence.ended:
            return
        ids, finish = sequence.end_with(position, outcome.chosen, self._stage.plan.context)
        sequence.ended = bool(finish)
        message = m.Tokens(epoch, seq_id, position, m.FINISH.index(finish), tuple(ids))
        if self._first is not None and position <= len(sequence.ids):
            sequence.ids += ids[len(sequence.ids) - position :]
        self._go_on(sequence, step, message)
        if sequence.logits:
            for at, row in enumerate(logits[: len(ids)], position):
                sequence.owner.send(m.Logits(epoch, seq_id, at, row.astype("<f4").tobytes()))
        for at, (likely, values) in enumerate(outcome.logprobs[: len(ids)], position):
            sequence.owner.send(m.Logprobs(epoch, seq_id, at, likely, values))
        sequence.owner.send(message)

    def _go_on(self, sequence: Sequence, step: Step, message: m.Tokens) -> None:
        """Send the tokens that a step chose to the first board: now, or with drafts as soon as there are any."""
        stage, drafts = self._stage, step.ids[len(step.ids) - step.logits + 1 :]
        accepted = agreed(drafts, message.ids)
        sequence.accepted += accepted
        said, drafting = self.speculation(sequence, step), stage.drafting
        if said is None or drafting is None:
            self._to_first(sequence, message)
            return
        behind = len(said.lookup) - message.position
        fresh, tokens = message.ids[behind:] if behind >= 0 else (), len(step.x) if step.is_decode else 0
        drafting.learn(said, fresh, tokens, len(drafts), accepted, stage.loop.time())
        if message.finish:
            self._to_first(sequence, message)
            return
        length, count = message.position + len(message.ids), len(message.ids) - accepted
        most = sequence.most_drafts(length, stage.plan.context, stage.rope_switch_len, stage.running, count)

        def send(drafts: tuple[int, ...]) -> None:
            self._to_first(sequence, replace(message, drafts=drafts))

        drafting.draft(said, min(step.drafts, most), lambda text: _ask(sequence, text), sequence.seq_id, send)

    def speculation(self, sequence: Sequence, step: Step) -> Speculation | None:
        """Return what is known of a sequence to draft for it; None if its steps shall have no drafts. The first time,
        while its prompt is computed, drafters begin with it, too."""
        drafting = self._stage.drafting
        if sequence.speculation is None and step.drafts and drafting is not None:
            prompt = sequence.ids[: sequence.prompt_len]
            sequence.speculation = drafting.begin(prompt, lambda text: _ask(sequence, text), sequence.seq_id)
        return sequence.speculation

    def _to_first(self, sequence: Sequence, message: m.Tokens) -> None:
        """Send tokens to the first board, if the sequence is still open: drafts take a while to make."""
        if not self._stage.holds(sequence):
            return
        if sequence.speculation is not None:
            sequence.speculation.sent_s = self._stage.loop.time()
        if self._first is None:
            self._stage.loop.call_soon(self._stage.tokens, message)
            return
        before = self._first.sent_bytes
        self._first.send(message)
        sequence.sent_bytes += self._first.sent_bytes - before


def _ask(sequence: Sequence, text: Ids) -> Ask:
    """Return what asks for drafts of a sequence behind its text."""
    return Ask(sequence.slot, text, 0, sequence.sampling, sequence.began)
