"""Runs a section in a thread: owns its KV slots, and computes the steps that its scheduler chooses.

It knows neither sockets nor the inside of a section: see model/protocols.py.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgellm.agent.drafters import Drafter
from edgellm.agent.pace import SectionPace
from edgellm.agent.scheduler import Scheduler
from edgellm.agent.slots import HeldSlot, Slots, choose_slot, held_of, ids_of
from edgellm.agent.steps import Outcome, Stats, Step
from edgellm.agent.turns import Turns
from edgellm.config import DEFAULT_CHUNK
from edgellm.errors import BusyError
from edgellm.limits import MAX_CHECKPOINTS
from edgellm.model.protocols import CHECKPOINT_TOKENS, Section, Slot

log = logging.getLogger(__name__)


@dataclass
class _Held:
    """A sequence's slot here, and how far it has come: positions [0, filled) hold keys and values, or will soon."""

    slot: HeldSlot
    filled: int = 0
    begun: bool = False
    running: bool = False
    prompted: bool = False  # its prompt is computed
    lent: bool = False  # to whoever restores what it holds
    closed: bool = False
    stats: Stats = field(default_factory=Stats)


class Engine:
    """The slots, the queues and the thread of one section.

    The thread calls `deliver(outcomes)` with the outcomes of steps that ran together, and asks `congested()` whether
    results can't be sent on just now. `freed()` is called, in any thread, whenever a slot has become free;
    `left(slot)`, in any thread, when a sequence has left one that it wants kept, just before others may have it, and
    where slots forget also by the thread, when a prompt is computed: the end of an answer is too far on to begin there;
    `passes(slot)` where slots forget, by the thread, at each checkpoint of a prompt that is computed (`is_checkpoint`);
    `died(error)` by the thread if it ends by itself. `chunk` and `groups` are the scheduler's;
    `pace` is told what steps took. The thread waits for its turn among the engines that have the same `turns`, and
    tells `drafter`, which takes hidden states, of the steps that may have drafts.
    """

    def __init__(
        self,
        section: Section[Any],
        slots: Sequence[Slot],
        deliver: Callable[[list[Outcome]], None],
        congested: Callable[[], bool] = lambda: False,
        groups: int = 0,
        chunk: int = DEFAULT_CHUNK,
        *,
        freed: Callable[[], None] = lambda: None,
        left: Callable[[HeldSlot], None] = lambda slot: None,
        passes: Callable[[HeldSlot], None] = lambda slot: None,
        died: Callable[[Exception], None] = lambda error: None,
        pace: SectionPace | None = None,
        turns: Turns | None = None,
        cuts: bool = False,
        drafter: Drafter | None = None,
    ):
        self.steps = 0  # computed so far
        self.total = Stats()  # of all sequences
        self.batches = bool(section.batches)
        self.num_slots = len(slots)
        self._deliver, self._congested, self._freed, self._died = deliver, congested, freed, died
        self._left, self._passes = left, passes
        self._pace, self._drafter = pace, drafter
        self._turns = turns or Turns()
        self._reuses, self._forgets = section.reuses, not section.reuses_any
        self._slots = Slots(slots)
        self._held: dict[int, _Held] = {}
        cut = CHECKPOINT_TOKENS if cuts or self._forgets else 0
        self._scheduler = Scheduler(chunk, batches=self.batches, groups=groups, cut=cut)
        self._running = 0
        self._step_since_s: float | None = None
        self._stopping = self._dead = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(section,), name="engine", daemon=True)
        self._thread.start()

    # Called by the event loop.

    @property
    def alive(self) -> bool:
        """Whether the thread runs, or has been told to end. If not, nothing is computed here any more."""
        return self._stopping or (not self._dead and self._thread.is_alive())

    @property
    def step_s(self) -> float:
        """How long the running step has taken so far; 0 between two steps."""
        since_s = self._step_since_s
        return 0.0 if since_s is None else time.perf_counter() - since_s

    @property
    def free_slots(self) -> int:
        return len(self._slots)

    @property
    def waiting(self) -> int:
        """How many steps wait or run. A prompt counts as one."""
        return self._scheduler.waiting + self._running

    @property
    def queued(self) -> bool:
        """Whether a step waits, beside those that run."""
        return self._scheduler.waiting > 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes of token ids and hidden states that wait."""
        return self._scheduler.waiting_bytes

    @property
    def idle(self) -> bool:
        """Whether no sequence is open."""
        return not self._held

    def is_free(self, number: int) -> bool:
        """Return whether the slot of this number is free."""
        with self._changed:
            return any(slot.number == number for slot in self._slots.free())

    def holder_of(self, number: int) -> int | None:
        """Return the open sequence that has the slot of this number."""
        return next((seq_id for seq_id, held in self._held.items() if held.slot.number == number), None)

    def steps_of(self, seq_id: int) -> int:
        """Return how many tokens have been computed for a sequence that is open."""
        stats = self._held[seq_id].stats
        return stats.prefill_tokens + stats.decode_steps

    def has_work(self, seq_id: int) -> bool:
        """Return whether a step of this sequence waits or runs here, or its slot is being restored."""
        with self._changed:
            held = self._held.get(seq_id)
            return held is not None and (held.running or held.lent or self._scheduler.has(seq_id))

    def open(
        self, seq_id: int, ids: Sequence[int] = (), reuse: int = 0, long: bool = False, *, number: int | None = None,
        avoid: Collection[int] = (), cache: str = "", keep: bool = False,
    ) -> tuple[int, int]:  # fmt: skip
        """Reserve a slot; return its number, and how many of the first `ids`, at most `reuse`, it holds already.

        The slot is the one with this `number`, or the one that saves most, if possible none of `avoid`. Keys and values
        count if they were computed in the regime of `long`, and for a sequence of the same `cache`. The sequence may
        begin there, or before. With `keep`, `left` is told when it leaves the slot. Raises BusyError when the slot, or
        all, are taken, or the sequence is open already.
        """
        if seq_id in self._held:
            raise BusyError(f"sequence {seq_id:x} is open here already")
        with self._changed:
            free = self._slots.free()
        if number is not None:
            free = [slot for slot in free if slot.number == number]
            if not free:
                raise BusyError(f"slot {number} is taken")
        if not free:
            raise BusyError(f"all {self.num_slots} slots are taken; ask again when an answer has ended")
        # Outside of the lock: a long prompt takes a while, and only the event loop takes slots.
        reuse = reuse if self._reuses else 0
        wanted = ids_of(ids) if reuse else ids_of(())
        if number is None:
            slot, reused = choose_slot(free, wanted, reuse, long, avoid, cache)
        else:
            slot, reused = free[0], held_of(free[0], wanted, reuse, long, cache)
        with self._changed:
            self._slots.take(slot)
            slot.give_to(cache, keep and self._reuses)
            self._held[seq_id] = _Held(slot, reused)
        return slot.number, reused

    def begins(self, seq_id: int) -> tuple[int, tuple[int, ...]]:
        """Return how many tokens a sequence that has no step yet may reuse; and if it may not begin anywhere before
        them, where it may, besides at 0."""
        held = self._held[seq_id]
        earliest, checkpoint = held.slot.earliest, held.slot.checkpoint
        if not (held.filled and earliest):
            return held.filled, ()
        positions = range(earliest, held.filled + 1)[1 - MAX_CHECKPOINTS :]
        return held.filled, ((checkpoint,) if 0 < checkpoint <= held.filled else ()) + tuple(positions)

    def lend(self, seq_id: int, long: bool) -> tuple[HeldSlot, Callable[[], bool]]:
        """Lend the slot of a sequence that has no step yet, to store keys and values of the regime of `long` behind
        those that it may reuse. Return it, and what to call, in any thread, when that is done: it returns whether the
        sequence is still open. Until then the sequence takes no step, and nobody else gets the slot."""
        held = self._held[seq_id]
        with self._changed:
            held.lent = True
            held.slot.forget(held.filled)
            held.slot.long = long

        def done() -> bool:
            with self._changed:
                held.lent = False
                held.filled = held.slot.begins_at(len(held.slot.ids))
                if held.closed:
                    self._give_back(held)
            if held.closed:
                self._freed()
            return not held.closed

        return held.slot, done

    def close(self, seq_id: int) -> Stats | None:
        """Drop the sequence's waiting steps and free its slot, at once or when its running step ends. Return its
        stats, or None if it isn't open."""
        with self._changed:
            held = self._held.pop(seq_id, None)
            if held is None:
                return None
            held.closed = True
            self._scheduler.close(seq_id)
            freed = not (held.running or held.lent)
            if freed:
                self._give_back(held)
            self._changed.notify()
        if freed:
            self._freed()
        return held.stats

    def submit(self, step: Step) -> bool:
        """Queue a step; return False if its sequence isn't open here. Raises ValueError if it would leave a gap."""
        with self._changed:
            held = self._held.get(step.seq_id)
            if held is None:
                return False
            if held.lent:
                raise ValueError("a step before the sequence was opened")
            if step.position > held.filled:
                raise ValueError(f"step at position {step.position}, expected at most {held.filled}")
            if not held.begun:
                held.begun, held.stats.reused_tokens = True, step.position
            held.filled = max(held.filled, step.end)
            step.slot = held.slot.kv
            self._scheduler.add(step, time.perf_counter())
            self._changed.notify()
            return True

    def stop(self) -> None:
        """Have the thread end after its running step; `join` waits for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended, then release section and slots. Takes as long as a step: not for an event
        loop."""
        self._thread.join()
        with self._changed:
            for seq_id in self._held:
                self._scheduler.close(seq_id)
            for held in self._held.values():
                held.slot.release()
            self._slots.clear()
            self._held.clear()

    def _give_back(self, held: _Held) -> None:
        """Let others have the slot of a sequence that is closed."""
        if held.slot.keeps:
            self._left(held.slot)
        self._slots.give_back(held.slot)

    # The engine's thread.

    def _run(self, section: Section[Any]) -> None:
        try:
            while (work := self._next()) is not None:
                self._compute(section, work)
        except Exception as e:  # a mistake of ours: the watchdog looks at the thread, and all are told
            self._dead = True
            log.exception("the engine's thread has ended")
            self._died(e)

    def _next(self) -> list[tuple[Step, _Held]] | None:
        """Wait for work; return steps to run together with what their sequences hold, or None to end."""
        with self._changed:
            while not self._stopping:
                choice = self._scheduler.next(time.perf_counter(), self._congested())
                if choice.steps:
                    self._running = len(choice.steps)
                    batch = [(step, self._held[step.seq_id]) for step in choice.steps]
                    for _, held in batch:
                        held.running = True
                    return batch
                self._changed.wait(choice.wait_s)
            return None

    def _compute(self, section: Section[Any], batch: list[tuple[Step, _Held]]) -> None:
        """Run steps together, account for them, and deliver the outcomes of those whose sequences are still open."""
        with self._turns.mine():
            began_s = self._step_since_s = time.perf_counter()
            outcomes = _forward(section, batch)
            self._step_since_s = None
            ended_s = time.perf_counter()
            if self._drafter is not None:
                self._tell(self._drafter, section, batch, outcomes)
        took_s = ended_s - began_s
        for step, held in batch:
            held.stats.add(step, took_s / len(batch))
            self.total.add(step, took_s / len(batch))
            self.steps += 1
            if not held.prompted and step.end == step.pass_len and not step.alone:
                held.prompted = True
                if self._forgets and held.slot.keeps:
                    self._left(held.slot)
            elif not held.prompted and self._forgets and held.slot.keeps and is_checkpoint(step.end):
                self._passes(held.slot)
        if self._pace is not None:
            self._pace.computed([step for step, _ in batch], took_s, ended_s)
        freed = False
        with self._changed:
            self._scheduler.done([step for step, _ in batch], ended_s, took_s)
            for _, held in batch:
                held.running = False
                if held.closed:
                    freed = True
                    self._give_back(held)
            due = [outcome for (_, held), outcome in zip(batch, outcomes, strict=True) if not held.closed]
        if freed:
            self._freed()
        if due:
            try:
                self._deliver(due)
            except Exception as e:
                self._deliver_failure(due, e)
        with self._changed:
            self._running = 0

    def _tell(
        self, drafter: Drafter, section: Section[Any], batch: list[tuple[Step, _Held]], outcomes: list[Outcome]
    ) -> None:
        """Give the drafter the hidden states of steps that ran. One that fails hears of no others."""
        try:
            for (step, held), outcome in zip(batch, outcomes, strict=True):
                if step.drafts and not step.alone and outcome.error is None:
                    hidden = section.hidden_of(step.slot)  # type: ignore[attr-defined]  # a native section's
                    if hidden is not None and len(hidden) == len(step.ids):
                        drafter.computed(held.slot.number, step.position, step.ids, hidden)
        except Exception:  # answers go on without its drafts
            log.exception("%s takes in no more steps", drafter.name)
            self._drafter = None

    def _deliver_failure(self, outcomes: list[Outcome], error: Exception) -> None:
        """Deliver that these outcomes could not be delivered, which ends their sequences and nothing else."""
        log.error("results could not be delivered", exc_info=error)
        try:
            self._deliver([Outcome(outcome.step, error=error) for outcome in outcomes])
        except Exception:  # the event loop has ended, or worse: there is nobody to tell
            log.exception("nor could that be")


def is_checkpoint(position: int) -> bool:
    """Return whether what a prompt's slot remembers there is kept: at multiples of CHECKPOINT_TOKENS, further apart the
    further on they are, so that another prompt that begins with the same 512 tokens, or more, finds two thirds of them
    at least."""
    count, rest = divmod(position, CHECKPOINT_TOKENS)
    while count > 3 and not count % 2:
        count //= 2
    return not rest and 1 <= count <= 3


def _forward(section: Section[Any], batch: list[tuple[Step, _Held]]) -> list[Outcome]:
    """Run these steps together; if that fails, one by one, so that only sequences whose own step fails end."""
    try:
        for step, held in batch:
            if step.trace:  # of no tokens that anybody will ask about again
                held.slot.forget()
            else:
                held.slot.begin(step.position, step.ids, step.long)
        steps = [step for step, _ in batch]
        results = [_alone(section, steps[0])] if steps[0].alone else section.forward_many(steps)
        if len(results) != len(steps):
            raise RuntimeError(f"the section gave {len(results)} results for {len(steps)} steps")
    except Exception as e:  # a model's code may raise anything, which must end sequences but not the agent
        if len(batch) > 1:
            log.warning("a batch of %d steps failed (%s); they run one by one", len(batch), e)
            return [outcome for one in batch for outcome in _forward(section, [one])]
        ((step, held),) = batch
        log.exception("step at position %d of sequence %x failed", step.position, step.seq_id)
        held.slot.forget()
        return [Outcome(step, error=e)]
    for step, held in batch:
        held.slot.computed(step.position, step.ids)
    return [Outcome(step, result) for (step, _), result in zip(batch, results, strict=True)]


def _alone(section: Section[Any], step: Step) -> np.ndarray:
    """Return what a step gives that is alone in its batch: what each layer makes of it, or what the head would take."""
    compute = section.trace if step.trace else section.embed
    return compute(step.x, step.position, step.slot, step.pass_len)
