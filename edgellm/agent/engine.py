"""Runs a section: owns its KV slots, keeps the steps that wait, and computes them in a thread, several at once.

Nothing here knows of sockets or torch. A section is anything with `forward_many(works) -> list of arrays or None`, one
for each `Work`, arrays being NumPy's: x is int64 [tokens] for the first section and float32 [tokens, hidden_size] for
others; the result is float32 [tokens, hidden_size], or from the last section float32 [logits, vocab_size], None where
`logits` is 0. Its `batches` tells that works give the same bits together as alone, and that together is faster. A
section whose `reuses` is False needs K and V computed for just the sequence at hand.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgellm.agent.slots import Slot, Slots
from edgellm.agent.steps import Outcome, Stats, Step, Work
from edgellm.errors import BusyError

log = logging.getLogger(__name__)
_BATCH_STEPS = 16
_BATCH_TOKENS = 64  # with drafts; one step alone may have more
_Batch = list[tuple[Step, "_Held"]]


@dataclass(frozen=True)
class _Job:
    """Something else to run with the section, for `owner`, in a slot of its own."""

    run: Callable[[object, object], None]
    dropped: Callable[[], None]
    owner: object
    slot: Slot


@dataclass
class _Held:
    """A sequence's slot here, and how far it has come: positions [0, filled) hold K and V."""

    slot: Slot
    filled: int = 0
    queued: int = 0  # steps waiting or running
    begun: bool = False
    closed: bool = False
    stats: Stats = field(default_factory=Stats)


class Engine:
    """The slots and the queue of one section.

    `deliver(outcomes)` is called in the engine's thread with the (step, result, error) of steps that ran together:
    `result` is what the section gave, `error` the exception if it raised. `congested()` tells that results can't be
    sent on just now: then prompt chunks wait, and decode steps go on. `groups` is for the first board: into how many
    groups its sequences' decode steps are to come together, as many as there are boards; 0 for no matter.
    """

    def __init__(
        self,
        section,
        slots: list,
        deliver: Callable[[list[Outcome]], None],
        congested: Callable[[], bool] = lambda: False,
        groups: int = 0,
    ):
        self.steps = 0  # computed so far
        self.total = Stats()  # of all sequences
        self.batches = bool(section.batches)
        self._section, self._deliver, self._congested = section, deliver, congested
        self._reuses = getattr(section, "reuses", True)
        self._free = Slots(slots)
        self._num_slots = len(slots)
        self._held: dict[int, _Held] = {}
        self._decode: deque[tuple[Step, _Held]] = deque()
        self._prefill: deque[tuple[Step, _Held]] = deque()
        self._jobs: deque[_Job] = deque()
        self._decoded_since_chunk = 0
        self._groups = groups if self.batches and groups else len(slots)  # a sequence may be a group of its own
        self._batch_s = 0.0  # what the last batch of decode steps took
        self._gathers_until_s: float | None = None
        self._running = 0
        self._step_since_s: float | None = None
        self._waiting_bytes = 0
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    # Called by the event loop.

    @property
    def step_s(self) -> float:
        """For how long the running step has been computed; 0 between two steps."""
        since_s = self._step_since_s
        return 0.0 if since_s is None else time.perf_counter() - since_s

    @property
    def free_slots(self) -> int:
        return len(self._free)

    @property
    def num_slots(self) -> int:
        return self._num_slots

    @property
    def waiting(self) -> int:
        """Steps queued or running."""
        return len(self._decode) + len(self._prefill) + len(self._jobs) + self._running

    @property
    def waiting_bytes(self) -> int:
        """Bytes of hidden states that wait."""
        return self._waiting_bytes

    def open(self, seq_id: int, ids: Sequence[int] = (), reuse: int = 0, long: bool = False) -> int:
        """Reserve a slot; raises BusyError when all are taken or the sequence is already here.

        Returns how many of the first `ids`, at most `reuse`, the slot holds already, in the regime of `long`: the
        sequence may begin there, or before.
        """
        with self._changed:
            if seq_id in self._held:
                raise BusyError(f"sequence {seq_id:x} is open here already")
            if not self._free:
                raise BusyError(f"all {self._num_slots} slots are taken; ask again when an answer has ended")
            slot, reused = self._free.take(ids, reuse if self._reuses else 0, long)
            self._held[seq_id] = _Held(slot, reused)
            return reused

    def close(self, seq_id: int) -> Stats | None:
        """Free the sequence's slot, at once or when its running step ends; its waiting steps are dropped."""
        with self._changed:
            held = self._held.pop(seq_id, None)
            if held is None:
                return None
            held.closed = True
            for queue in (self._decode, self._prefill):
                kept = [(step, owner) for step, owner in queue if owner is not held]
                held.queued -= len(queue) - len(kept)
                self._waiting_bytes -= sum(step.x.nbytes for step, owner in queue if owner is held)
                queue.clear()
                queue.extend(kept)
            if not self._decode:
                self._gathers_until_s = None  # nobody is left who waited
            if held.queued == 0:
                self._free.give_back(held.slot)
            self._changed.notify()
            return held.stats

    def submit(self, step: Step) -> bool:
        """Queue a step; False if its sequence isn't open here. Raises ValueError if it would leave a gap."""
        with self._changed:
            held = self._held.get(step.seq_id)
            if held is None:
                return False
            if step.position > held.filled:
                raise ValueError(f"step at position {step.position}, expected at most {held.filled}")
            # A prompt's last chunk may be one token: it stays behind the chunks before it.
            behind_chunks = any(owner is held for _, owner in self._prefill)
            if not held.begun:
                held.begun, held.stats.reused_tokens = True, step.position
            held.filled = max(held.filled, step.end)
            held.queued += 1
            self._waiting_bytes += step.x.nbytes
            (self._decode if step.is_decode and not behind_chunks else self._prefill).append((step, held))
            self._changed.notify()
            return True

    def run_with_slot(
        self, job: Callable[[object, object], None], dropped: Callable[[], None], owner: object = None
    ) -> None:
        """Queue `job(section, slot)` with a slot of its own; `dropped()` is called instead if the engine stops first.
        Raises BusyError when there is no slot."""
        with self._changed:
            if not self._free:
                raise BusyError(f"all {self._num_slots} slots are taken; ask again when an answer has ended")
            self._jobs.append(_Job(job, dropped, owner, self._free.take_any()))
            self._changed.notify()

    def forget_jobs(self, owner: object) -> None:
        """Drop what `owner` has queued with `run_with_slot` and isn't running; nobody is told."""
        with self._changed:
            for job in [j for j in self._jobs if j.owner is owner]:
                self._jobs.remove(job)
                self._free.give_back(job.slot)

    def stop(self) -> None:
        """End the thread after its running step; `join` waits for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended, for as long as a step takes: not in an event loop. Then section and slots
        are let go of."""
        self._thread.join()
        with self._changed:
            self._section = None
            for holder in (self._free, self._held, self._decode, self._prefill, self._jobs):
                holder.clear()

    # The engine's thread.

    def _loop(self) -> None:
        while (work := self._next()) is not None:
            if isinstance(work, list):
                self._compute(work)
            else:
                self._do(work)
            with self._changed:
                self._running = 0
        for job in self._jobs:
            job.dropped()

    def _do(self, job: _Job) -> None:
        try:
            job.run(self._section, job.slot.kv)
        finally:
            with self._changed:
                self._free.give_back(job.slot)

    def _next(self) -> _Batch | _Job | None:
        """Wait for work and choose: every decode step that waits runs once between two prompt chunks, so that a long
        prompt doesn't stop running answers and running answers don't stop a prompt."""
        with self._changed:
            while True:
                if self._stopping:
                    return None
                chunk_ready = bool(self._prefill) and not self._congested()
                decoding = sum(1 for h in self._held.values() if h.stats.decode_steps)
                wait_s = 0.005 if self._prefill else None  # a congested link is looked at again
                batch: _Batch = []
                if self._decode and not (chunk_ready and self._decoded_since_chunk >= max(1, decoding)):
                    wait_s = 0.0 if chunk_ready else self._gather_s(decoding)
                    if not wait_s:
                        batch = self._batch()
                        self._decoded_since_chunk += len(batch)
                elif chunk_ready:
                    batch = [self._prefill.popleft()]
                    self._decoded_since_chunk = 0
                if batch:
                    self._gathers_until_s = None
                    self._running = len(batch)
                    self._waiting_bytes -= sum(step.x.nbytes for step, _ in batch)
                    return batch
                if self._jobs:
                    self._running = 1
                    return self._jobs.popleft()
                self._changed.wait(wait_s)

    def _gather_s(self, decoding: int) -> float:
        """How long decode steps that wait are to wait for others, of `decoding` sequences; 0 if they are enough.

        In more groups than there are boards, each group reads all weights for fewer tokens, and no board is busier.
        The wait is bounded by what a batch takes here, for some may not come: ended, or held up on their way.
        """
        now_s = time.perf_counter()
        if len(self._decode) * self._groups < decoding:
            if self._gathers_until_s is None:
                self._gathers_until_s = now_s + self._batch_s
            return max(0.0, self._gathers_until_s - now_s)
        return 0.0

    def _batch(self) -> _Batch:
        """Decode steps to run together: those that wait now, one of a sequence, since its next one builds on it."""
        if not self.batches or len(self._decode) == 1:
            return [self._decode.popleft()]
        batch, left, tokens, seen = [], [], 0, set()
        while self._decode and len(batch) < _BATCH_STEPS and len(seen) < len(self._held):
            step, held = self._decode.popleft()
            fits = not batch or tokens + len(step.x) <= _BATCH_TOKENS
            if fits and id(held) not in seen:
                batch.append((step, held))
                tokens += len(step.x)
            else:
                left.append((step, held))
            seen.add(id(held))
        self._decode.extendleft(reversed(left))
        return batch

    def _compute(self, batch: _Batch) -> None:
        running = [(step, held) for step, held in batch if not held.closed]
        outcomes: list[Outcome] = []
        if running:
            began = self._step_since_s = time.perf_counter()
            outcomes = self._forward(running)
            self._step_since_s = None
            took = time.perf_counter() - began
            if running[0][0].is_decode:
                self._batch_s = took
            seconds = took / len(running)
            for step, held in running:
                held.stats.add(step, seconds)
                self.total.add(step, seconds)
                self.steps += 1
        gone = set()
        with self._changed:
            for _, held in batch:
                held.queued -= 1
                if held.closed:
                    gone.add(id(held))
                    if held.queued == 0:
                        self._free.give_back(held.slot)
        due = [outcome for (_, held), outcome in zip(running, outcomes, strict=True) if id(held) not in gone]
        if due:
            self._deliver(due)

    def _forward(self, batch: _Batch) -> list[Outcome]:
        """Run these steps together; if that fails, one by one, so that only those whose own step fails are told."""
        works = []
        for step, held in batch:
            held.slot.begin(step.position, step.ids, step.long)
            works.append(Work(step.x, step.position, held.slot.kv, step.pass_len, step.logits))
        try:
            results = self._section.forward_many(works)
            if len(results) != len(works):
                raise RuntimeError(f"the section gave {len(results)} results for {len(works)} steps")
        except Exception as e:  # whatever a model's code raises ends sequences, not the agent
            if len(batch) > 1:
                log.warning("a batch of %d steps failed (%s); they run one by one", len(batch), e)
                return [outcome for one in batch for outcome in self._forward([one])]
            ((step, held),) = batch
            log.exception("step at position %d of sequence %x failed", step.position, step.seq_id)
            held.slot.ids.clear()
            return [(step, None, e)]
        for step, held in batch:
            held.slot.computed(step.position, step.ids)
        return [(step, result, None) for (step, _), result in zip(batch, results, strict=True)]
