"""The last board's drafts: which ones to send with the tokens that a step chose."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from edgellm.agent.draft_worker import NEAR_TOKENS, DraftWorker
from edgellm.agent.drafters import Ask, Drafter
from edgellm.agent.lookup import Lookup
from edgellm.agent.payoff import Acceptance, DraftTime, Offer, Passes, choose
from edgellm.agent.slots import Ids

LOOKUP = "lookup"


@dataclass
class Tally:
    """How many drafts of one kind the boards verified, and how many of these were accepted."""

    drafted: int = 0
    accepted: int = 0


@dataclass
class Speculation:
    """What is known of one sequence: its text, and how often each drafter's drafts, and those from the text, come true
    in it. `by` is the drafter of the last ones; None: they were looked up. `sent_s` is when they were sent."""

    lookup: Lookup
    acceptances: list[Acceptance]
    looked_up: Acceptance = field(default_factory=Acceptance)
    by: int | None = None
    sent_s: float | None = None


class Drafting:
    """Drafts for the sequences of one stage, the last of its plan: from the text so far, or by one of `drafters`,
    whichever gives more tokens per second.

    A drafter computes while it holds `turn()`, and only if the board would be idle: if no step waits here, as `busy()`
    says. `soon(f, …)` has the event loop call a function. All methods are the event loop's.
    """

    def __init__(
        self, drafters: Sequence[Drafter], turn: Callable[[], AbstractContextManager[None]],
        busy: Callable[[], bool], soon: Callable[..., None],
    ):  # fmt: skip
        self.tallies = {name: Tally() for name in (LOOKUP, *(drafter.name for drafter in drafters))}
        self._drafters, self._busy, self._soon = list(drafters), busy, soon
        self._passes = Passes()
        self._times = [DraftTime() for _ in drafters]
        self._hopes = [Acceptance() for _ in drafters]  # in all sequences
        self._worker = DraftWorker(turn, busy) if drafters else None

    def begin(self, prompt: Sequence[int], ask: Callable[[Ids], Ask], seq_id: int) -> Speculation:
        """Return what is known of a sequence that has no answer yet. Meanwhile drafters compute its prompt, whenever
        the board is idle. `ask(ids)` asks for its drafts behind a text."""
        said = Speculation(Lookup(prompt), [Acceptance(hope.rate) for hope in self._hopes])
        if self._worker is not None and len(prompt) > NEAR_TOKENS:
            for drafter in self._drafters:
                self._worker.prepare(seq_id, drafter, ask(said.lookup.ids))
        return said

    def learn(
        self, said: Speculation, fresh: Sequence[int], tokens: int, proposed: int, accepted: int, now_s: float
    ) -> None:
        """Record what a pass of so many `tokens` chose that are `fresh`; of its `proposed` drafts so many were
        `accepted`. A pass that isn't one token with drafts has 0 tokens here."""
        if said.sent_s is not None and tokens:
            self._passes.add(tokens, max(0.0, now_s - said.sent_s))
        said.sent_s = None
        said.lookup.extend(fresh)
        if not proposed:
            return
        tally = self.tallies[LOOKUP if said.by is None else self._drafters[said.by].name]
        tally.drafted += proposed
        tally.accepted += accepted
        if said.by is None:
            said.lookup.learn(proposed, accepted)
            said.looked_up.learn(proposed, accepted)
        else:
            said.acceptances[said.by].learn(proposed, accepted)
            self._hopes[said.by].learn(proposed, accepted)

    def draft(
        self, said: Speculation, most: int, ask: Callable[[Ids], Ask], seq_id: int,
        send: Callable[[tuple[int, ...]], None],
    ) -> None:  # fmt: skip
        """Call `send` once, with at most `most` drafts of what follows: now, or once they are made."""
        found = said.lookup.propose(most)
        said.by = None
        chosen = self._choose(said, found, most)
        if chosen is None or self._worker is None or self._busy():
            send(found)
            return
        number, count = chosen
        drafter, wanted = self._drafters[number], replace(ask(said.lookup.ids), most=count)
        if self._worker.lacks(seq_id, drafter):  # so far
            self._worker.prepare(seq_id, drafter, wanted)
            send(found)
            return

        def made(drafts: tuple[int, ...] | None, each_s: float) -> None:
            if drafts is None:
                send(found)
                return
            said.by = number
            self._times[number].add(len(drafts), each_s * len(drafts))
            send(drafts)

        self._worker.ask(seq_id, drafter, wanted, lambda drafts, each_s: self._soon(made, drafts, each_s))

    def forget(self, seq_id: int) -> None:
        """Do nothing more for a sequence that has ended."""
        if self._worker is not None:
            self._worker.forget(seq_id)

    def stop(self) -> None:
        """Have the drafters end."""
        if self._worker is not None:
            self._worker.stop()

    def join(self) -> None:
        """Wait until they have. Not for an event loop."""
        if self._worker is not None:
            self._worker.join()

    def _choose(self, said: Speculation, found: tuple[int, ...], most: int) -> tuple[int, int] | None:
        """Return whose drafts are worth the time that they take, and how many; None for those that were `found`."""
        took = self._passes.now()
        if self._worker is None or took is None or most < 1:
            return None
        offers: list[Offer] = []
        for drafter, acceptance, time in zip(self._drafters, said.acceptances, self._times, strict=True):
            offer = Offer(0, 0.0)
            if drafter not in self._worker.broken and not acceptance.is_resting():
                offer = Offer(most, acceptance.rate, time.seconds)
                if choose([offer], None, took) is None:
                    acceptance.switch_off()
                    offer = Offer(0, 0.0)
            offers.append(offer)
        return choose(offers, Offer(len(found), said.looked_up.rate) if found else None, took)
