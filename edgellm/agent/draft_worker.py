"""The thread in which a board's drafters compute, in turn with its engines."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from edgellm.agent.drafters import Ask, Drafter

log = logging.getLogger(__name__)
_LOOK_AGAIN_S = 0.005  # whether the board is idle
NEAR_TOKENS = 32  # that a drafter may compute before its first draft; more of them it computes while nobody waits
Made = Callable[[tuple[int, ...] | None, float], None]


@dataclass(frozen=True)
class _Job:
    seq_id: int
    drafter: Drafter
    ask: Ask
    made: Made


class DraftWorker:
    """Makes the drafts that are asked for, several sequences' together; else has drafters compute what they lack of a
    text, in chunks, as long as the board isn't `busy`. It holds `turn()` while it computes. All methods are the
    event loop's, but for the thread's.

    A drafter that fails is among the `broken`, and drafts no more.
    """

    def __init__(self, turn: Callable[[], AbstractContextManager[None]], busy: Callable[[], bool]):
        self.broken: set[Drafter] = set()
        self._turn, self._busy = turn, busy
        self._jobs: list[_Job] = []
        self._lacking: dict[tuple[int, Drafter], Ask] = {}
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="drafting", daemon=True)
        self._thread.start()

    def ask(self, seq_id: int, drafter: Drafter, ask: Ask, made: Made) -> None:
        """Have `made` called in the thread, with the drafts and the seconds that each took; with None if there are no
        drafts, because the drafter still lacks too much of the text, or can't draft any more."""
        with self._changed:
            self._jobs.append(_Job(seq_id, drafter, ask, made))
            self._changed.notify()

    def lacks(self, seq_id: int, drafter: Drafter) -> bool:
        """Return whether a drafter still computes the text of a sequence."""
        with self._changed:
            return (seq_id, drafter) in self._lacking

    def prepare(self, seq_id: int, drafter: Drafter, ask: Ask) -> None:
        """Have a drafter compute the text of a sequence, in place of what that was before; unless it is broken."""
        if drafter in self.broken:
            return
        with self._changed:
            self._lacking[seq_id, drafter] = ask
            self._changed.notify()

    def forget(self, seq_id: int) -> None:
        """Don't go on with the text of a sequence."""
        with self._changed:
            for key in [key for key in self._lacking if key[0] == seq_id]:
                del self._lacking[key]

    def stop(self) -> None:
        """Have the thread end after what it computes now."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended. Takes as long as a step: not for an event loop."""
        self._thread.join()

    # The thread.

    def _run(self) -> None:
        while (jobs := self._next()) is not None:
            if jobs:
                self._draft(jobs)
            else:
                self._catch_up()

    def _next(self) -> list[_Job] | None:
        """Wait for work. Return what is asked of one drafter; nothing, if there is time to catch up; None to end."""
        with self._changed:
            while not self._stopping:
                if self._jobs:
                    drafter = self._jobs[0].drafter
                    taken = [job for job in self._jobs if job.drafter is drafter]
                    self._jobs = [job for job in self._jobs if job.drafter is not drafter]
                    return taken
                if self._lacking and not self._busy():
                    return []
                self._changed.wait(_LOOK_AGAIN_S if self._lacking else None)
            return None

    def _draft(self, jobs: list[_Job]) -> None:
        drafter, made = jobs[0].drafter, dict[int, tuple[int, ...]]()
        each_s = 0.0
        try:
            with self._turn():
                near = [job for job in jobs if drafter.behind(job.ask) <= NEAR_TOKENS]
                began_s = time.perf_counter()
                found = drafter.drafts([job.ask for job in near])
                each_s = (time.perf_counter() - began_s) / max(1, sum(map(len, found)))
            made = {id(job): drafts for job, drafts in zip(near, found, strict=True)}
        except Exception as e:  # a model's code may raise anything, and answers go on without drafts
            self._break(drafter, e)
        for job in jobs:
            if id(job) not in made:
                self.prepare(job.seq_id, drafter, job.ask)
            job.made(made.get(id(job)), each_s)

    def _catch_up(self) -> None:
        with self._changed:
            key, ask = next(iter(self._lacking.items()), (None, None))
        if key is None or ask is None:
            return
        _, drafter = key
        left = False
        try:
            with self._turn():
                left = drafter.catch_up(ask)
        except Exception as e:
            self._break(drafter, e)
        with self._changed:
            if self._lacking.get(key) is ask and not left:
                del self._lacking[key]

    def _break(self, drafter: Drafter, error: Exception) -> None:
        log.error("the %s drafts no more; answers go on without", drafter.name, exc_info=error)
        self.broken.add(drafter)
