"""Runs a section: owns its KV slots, keeps the steps that wait, and computes them one after the other in a thread.

Nothing here knows of sockets or torch. A section is anything with
`forward(x, position, slot, pass_len, want_logits) -> array | None`, arrays being NumPy's:
x is int64 [tokens] for the first section and float32 [tokens, hidden_size] for others; the result is float32
[tokens, hidden_size], or from the last section float32 [vocab_size] (None unless `want_logits`).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgellm.errors import BusyError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """Positions [position, position + len(x)) of a sequence, to be computed here."""

    seq_id: int
    x: np.ndarray
    position: int
    pass_len: int
    want_logits: bool

    @property
    def end(self) -> int:
        return self.position + len(self.x)

    @property
    def is_decode(self) -> bool:
        return len(self.x) == 1 and self.position > 0


@dataclass
class Stats:
    """What this board did for one sequence. Seconds are computing time."""

    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_steps: int = 0
    decode_s: float = 0.0

    def add(self, step: Step, seconds: float) -> None:
        if step.is_decode:
            self.decode_steps += 1
            self.decode_s += seconds
        else:
            self.prefill_tokens += len(step.x)
            self.prefill_s += seconds


@dataclass
class _Held:
    """A sequence's slot here, and how far it has come: positions [0, filled) hold K and V."""

    slot: object
    filled: int = 0
    queued: int = 0  # steps waiting or running
    closed: bool = False
    stats: Stats = field(default_factory=Stats)


class Engine:
    """The slots and the queue of one section.

    `deliver(step, result, error)` is called in the engine's thread after each step: `result` is what the section
    gave, `error` the exception if it raised. `congested()` tells that results can't be sent on just now: then prompt
    chunks wait, and decode steps go on.
    """

    def __init__(
        self,
        section,
        slots: list,
        deliver: Callable[[Step, np.ndarray | None, Exception | None], None],
        congested: Callable[[], bool] = lambda: False,
    ):
        self.steps = 0  # computed so far
        self.total = Stats()  # of all sequences
        self._section, self._deliver, self._congested = section, deliver, congested
        self._free = list(slots)
        self._num_slots = len(slots)
        self._held: dict[int, _Held] = {}
        self._decode: deque[tuple[Step, _Held]] = deque()
        self._prefill: deque[tuple[Step, _Held]] = deque()
        self._jobs: deque[tuple[Callable[[object], None], Callable[[], None]]] = deque()
        self._decoded_since_chunk = 0
        self._running = 0
        self._step_since_s: float | None = None
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
        with self._changed:
            return sum(step.x.nbytes for step, _ in (*self._decode, *self._prefill))

    def open(self, seq_id: int) -> None:
        """Reserve a slot; raises BusyError when all are taken or the sequence is already here."""
        with self._changed:
            if seq_id in self._held:
                raise BusyError(f"sequence {seq_id:x} is open here already")
            if not self._free:
                raise BusyError(f"all {self._num_slots} slots are taken; ask again when an answer has ended")
            self._held[seq_id] = _Held(self._free.pop())

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
                queue.clear()
                queue.extend(kept)
            if held.queued == 0:
                self._free.append(held.slot)
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
            held.filled = max(held.filled, step.end)
            held.queued += 1
            (self._decode if step.is_decode and not behind_chunks else self._prefill).append((step, held))
            self._changed.notify()
            return True

    def run_with_slot(self, job: Callable[[object, object], None], dropped: Callable[[], None]) -> None:
        """Queue `job(section, slot)` with a slot of its own; `dropped()` is called instead if the engine stops first.
        Raises BusyError when there is no slot."""
        with self._changed:
            if not self._free:
                raise BusyError(f"all {self._num_slots} slots are taken; ask again when an answer has ended")
            slot = self._free.pop()

            def run(section):
                try:
                    job(section, slot)
                finally:
                    with self._changed:
                        self._free.append(slot)

            self._jobs.append((run, dropped))
            self._changed.notify()

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
            if isinstance(work, tuple):
                self._compute(*work)
            else:
                work(self._section)
            with self._changed:
                self._running = 0
        for _, dropped in self._jobs:
            dropped()

    def _next(self):
        """Wait for work and choose: every decode step that waits runs once between two prompt chunks, so that a long
        prompt doesn't stop running answers and running answers don't stop a prompt."""
        with self._changed:
            while True:
                if self._stopping:
                    return None
                chunk_ready = bool(self._prefill) and not self._congested()
                decoders = sum(1 for h in self._held.values() if h.stats.decode_steps)
                if self._decode and not (chunk_ready and self._decoded_since_chunk >= max(1, decoders)):
                    self._decoded_since_chunk += 1
                    self._running = 1
                    return self._decode.popleft()
                if chunk_ready:
                    self._decoded_since_chunk = 0
                    self._running = 1
                    return self._prefill.popleft()
                if self._jobs:
                    self._running = 1
                    return self._jobs.popleft()[0]
                self._changed.wait(0.005 if self._prefill else None)  # a congested link is looked at again

    def _compute(self, step: Step, held: _Held) -> None:
        result = error = None
        if not held.closed:
            began = self._step_since_s = time.perf_counter()
            try:
                result = self._section.forward(step.x, step.position, held.slot, step.pass_len, step.want_logits)
            except Exception as e:  # whatever a model's code raises ends this sequence, not the agent
                log.exception("step at position %d of sequence %x failed", step.position, step.seq_id)
                error = e
            self._step_since_s = None
            seconds = time.perf_counter() - began
            held.stats.add(step, seconds)
            self.total.add(step, seconds)
            self.steps += 1
        with self._changed:
            held.queued -= 1
            if held.closed:
                if held.queued == 0:
                    self._free.append(held.slot)
                return
        self._deliver(step, result, error)
