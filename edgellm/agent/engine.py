"""Runs a section in a thread: owns its KV slots, and computes the steps that its scheduler chooses.

It knows neither sockets nor the inside of a section: see model/protocols.py.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgellm.agent.scheduler import Scheduler
from edgellm.agent.slots import HeldSlot, Slots
from edgellm.agent.steps import Outcome, Stats, Step
from edgellm.config import DEFAULT_CHUNK
from edgellm.errors import BusyError
from edgellm.model.protocols import Section, Slot

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """Another task to run with the section, for `owner`, in a slot of its own."""

    run: Callable[[Section[Any], Any], None]
    dropped: Callable[[], None]
    owner: object
    slot: HeldSlot


@dataclass
class _Held:
    """A sequence's slot here, and how far it has come: positions [0, filled) hold keys and values, or will soon."""

    slot: HeldSlot
    filled: int = 0
    begun: bool = False
    running: bool = False
    closed: bool = False
    stats: Stats = field(default_factory=Stats)


class Engine:
    """The slots, the queues and the thread of one section.

    The thread calls `deliver(outcomes)` with the outcomes of steps that ran together, and asks `congested()` whether
    results can't be sent on just now. `chunk` and `groups` are the scheduler's.
    """

    def __init__(
        self,
        section: Section[Any],
        slots: Sequence[Slot],
        deliver: Callable[[list[Outcome]], None],
        congested: Callable[[], bool] = lambda: False,
        groups: int = 0,
        chunk: int = DEFAULT_CHUNK,
    ):
        self.steps = 0  # computed so far
        self.total = Stats()  # of all sequences
        self.batches = bool(section.batches)
        self.num_slots = len(slots)
        self._deliver, self._congested = deliver, congested
        self._reuses = section.reuses
        self._free = Slots(slots)
        self._held: dict[int, _Held] = {}
        self._scheduler = Scheduler(chunk, batches=self.batches, groups=groups)
        self._jobs: deque[_Job] = deque()
        self._running = 0
        self._step_since_s: float | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, args=(section,), name="engine", daemon=True)
        self._thread.start()

    # Called by the event loop.

    @property
    def step_s(self) -> float:
        """How long the running step has taken so far; 0 between two steps."""
        since_s = self._step_since_s
        return 0.0 if since_s is None else time.perf_counter() - since_s

    @property
    def free_slots(self) -> int:
        return len(self._free)

    @property
    def waiting(self) -> int:
        """How many steps and jobs wait or run. A prompt counts as one."""
        return self._scheduler.waiting + len(self._jobs) + self._running

    @property
    def waiting_bytes(self) -> int:
        """Bytes of token ids and hidden states that wait."""
        return self._scheduler.waiting_bytes

    def open(self, seq_id: int, ids: Sequence[int] = (), reuse: int = 0, long: bool = False) -> int:
        """Reserve a slot, and return how many of the first `ids`, at most `reuse`, it holds already.

        Keys and values count if they were computed in the regime of `long`. The sequence may begin there, or before.
        Raises BusyError when all slots are taken or the sequence is open already.
        """
        with self._changed:
            if seq_id in self._held:
                raise BusyError(f"sequence {seq_id:x} is open here already")
            self._check_free()
            slot, reused = self._free.take(ids, reuse if self._reuses else 0, long)
            self._held[seq_id] = _Held(slot, reused)
            return reused

    def close(self, seq_id: int) -> Stats | None:
        """Drop the sequence's waiting steps and free its slot, at once or when its running step ends. Return its
        stats, or None if it isn't open."""
        with self._changed:
            held = self._held.pop(seq_id, None)
            if held is None:
                return None
            held.closed = True
            self._scheduler.close(seq_id)
            if not held.running:
                self._free.give_back(held.slot)
            self._changed.notify()
            return held.stats

    def submit(self, step: Step) -> bool:
        """Queue a step; return False if its sequence isn't open here. Raises ValueError if it would leave a gap."""
        with self._changed:
            held = self._held.get(step.seq_id)
            if held is None:
                return False
            if step.position > held.filled:
                raise ValueError(f"step at position {step.position}, expected at most {held.filled}")
            if not held.begun:
                held.begun, held.stats.reused_tokens = True, step.position
            held.filled = max(held.filled, step.end)
            step.slot = held.slot.kv
            self._scheduler.add(step, time.perf_counter())
            self._changed.notify()
            return True

    def run_with_slot(
        self, job: Callable[[Section[Any], Any], None], dropped: Callable[[], None], owner: object = None
    ) -> None:
        """Queue `job(section, slot)` with a slot of its own, to run when no step does. If the engine stops before
        that, it calls `dropped()` instead. Raises BusyError when all slots are taken."""
        with self._changed:
            self._check_free()
            self._jobs.append(_Job(job, dropped, owner, self._free.take_any()))
            self._changed.notify()

    def forget_jobs(self, owner: object) -> None:
        """Drop the jobs that `owner` has queued, without calling their `dropped`. A running one continues."""
        with self._changed:
            for job in [j for j in self._jobs if j.owner is owner]:
                self._jobs.remove(job)
                self._free.give_back(job.slot)

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
            for holder in (self._free, self._held, self._jobs):
                holder.clear()

    def _check_free(self) -> None:
        if not self._free:
            raise BusyError(f"all {self.num_slots} slots are taken; ask again when an answer has ended")

    # The engine's thread.

    def _loop(self, section: Section[Any]) -> None:
        while (work := self._next()) is not None:
            if isinstance(work, _Job):
                self._do(section, work)
            else:
                self._compute(section, work)
        for job in self._jobs:
            job.dropped()

    def _next(self) -> list[tuple[Step, _Held]] | _Job | None:
        """Wait for work; return steps to run together with what their sequences hold, or a job, or None to end."""
        with self._changed:
            while not self._stopping:
                choice = self._scheduler.next(time.perf_counter(), self._congested())
                if choice.steps:
                    self._running = len(choice.steps)
                    batch = [(step, self._held[step.seq_id]) for step in choice.steps]
                    for _, held in batch:
                        held.running = True
                    return batch
                if self._jobs:
                    self._running = 1
                    return self._jobs.popleft()
                self._changed.wait(choice.wait_s)
            return None

    def _do(self, section: Section[Any], job: _Job) -> None:
        try:
            job.run(section, job.slot.kv)
        finally:
            with self._changed:
                self._free.give_back(job.slot)
                self._running = 0

    def _compute(self, section: Section[Any], batch: list[tuple[Step, _Held]]) -> None:
        """Run steps together, account for them, and deliver the outcomes of those whose sequences are still open."""
        began_s = self._step_since_s = time.perf_counter()
        outcomes = _forward(section, batch)
        self._step_since_s = None
        ended_s = time.perf_counter()
        took_s = ended_s - began_s
        for step, held in batch:
            held.stats.add(step, took_s / len(batch))
            self.total.add(step, took_s / len(batch))
            self.steps += 1
        with self._changed:
            self._scheduler.done([step for step, _ in batch], ended_s, took_s)
            for _, held in batch:
                held.running = False
                if held.closed:
                    self._free.give_back(held.slot)
            due = [outcome for (_, held), outcome in zip(batch, outcomes, strict=True) if not held.closed]
        if due:
            self._deliver(due)
        with self._changed:
            self._running = 0


def _forward(section: Section[Any], batch: list[tuple[Step, _Held]]) -> list[Outcome]:
    """Run these steps together; if that fails, one by one, so that only sequences whose own step fails end."""
    for step, held in batch:
        held.slot.begin(step.position, step.ids, step.long)
    try:
        results = section.forward_many([step for step, _ in batch])
        if len(results) != len(batch):
            raise RuntimeError(f"the section gave {len(results)} results for {len(batch)} steps")
    except Exception as e:  # a model's code may raise anything, which must end sequences but not the agent
        if len(batch) > 1:
            log.warning("a batch of %d steps failed (%s); they run one by one", len(batch), e)
            return [outcome for one in batch for outcome in _forward(section, [one])]
        ((step, held),) = batch
        log.exception("step at position %d of sequence %x failed", step.position, step.seq_id)
        held.slot.ids.clear()
        return [Outcome(step, error=e)]
    for step, held in batch:
        held.slot.computed(step.position, step.ids)
    return [Outcome(step, result) for (step, _), result in zip(batch, results, strict=True)]
