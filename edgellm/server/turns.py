"""Which of several models the boards answer with, and when they change over. Pure: seconds are passed in.

Boards change over once no answer runs, and not to and fro: a model that was loaded stays for a while, if it is asked.
Those who ask for models that aren't loaded get their turns in the order in which they first asked.
"""

import math
from collections import Counter

KEEP_ALIVE_S = 300.0  # that an idle model stays before the default one returns
STAY_S = 30.0  # that a model which is asked again and again stays while another one is wanted
LULL_S = 1.0  # without an answer, after which a model goes sooner
RETURN_S = 15.0  # that those who were told when to ask again have for it, from then on


class Turns:
    """The turns of the models `names`, the first of which is the default. `stands` are those that boards hold."""

    def __init__(self, names: list[str]):
        self.default = names[0]
        self.stands = {self.default}
        self.changing: str | None = None  # to this model
        self.beside = False  # the others go on meanwhile
        self._no_room: set[str] = set()  # models that don't fit beside those that stand
        self.changing_since_s = 0.0
        self._running: Counter[str] = Counter()
        self._asking: Counter[str] = Counter()  # those who wait just now
        self._wanted: dict[str, float] = {}  # until when somebody is expected to ask, in the order of first asking
        self._since_s = -math.inf  # when the last change ended
        self._idle_since_s = -math.inf
        self._stays_until_s: dict[str, float] = {}  # if nobody asks

    def may_begin(self, name: str, now_s: float) -> bool:
        """Return whether an answer of this model may begin: its boards hold it, and it isn't another one's turn."""
        if name not in self.stands:
            return False
        if self.changing is not None:
            return self.beside
        return self._next_wanted(now_s) is None or now_s - self._since_s < STAY_S

    def begin(self, name: str) -> None:
        """Record that an answer begins."""
        self._running[name] += 1
        self._wanted.pop(name, None)

    def end(self, name: str, now_s: float, keep_alive_s: float | None) -> None:
        """Record that an answer has ended; its model stays for `keep_alive_s` if nobody asks, always if negative."""
        self._running[name] -= 1
        if self.is_idle:
            self._idle_since_s = now_s
        stay_s = KEEP_ALIVE_S if keep_alive_s is None else keep_alive_s
        self._stays_until_s[name] = math.inf if stay_s < 0 else now_s + stay_s

    def stay(self, name: str, until_s: float) -> None:
        """Have a model that nobody asks here stay until then."""
        self._stays_until_s[name] = until_s

    @property
    def is_idle(self) -> bool:
        """Whether no answer runs."""
        return not self._running.total()

    def ask(self, name: str, now_s: float) -> None:
        """Record that somebody waits for this model."""
        self._asking[name] += 1
        self._wanted.setdefault(name, now_s)

    def leave(self, name: str, until_s: float | None = None) -> None:
        """Record that somebody waits no more; until `until_s` somebody is expected to ask again."""
        self._asking[name] -= 1
        if until_s is not None and name in self._wanted:
            self._wanted[name] = max(self._wanted[name], until_s + RETURN_S)

    def next_beside(self, now_s: float) -> str | None:
        """Return which model the boards are to load beside those that stand, if any. Answers go on meanwhile."""
        wanted = self._next_wanted(now_s) if self.changing is None else None
        return None if wanted in self._no_room else wanted

    def next_change(self, now_s: float) -> str | None:
        """Return which model the boards are to load now in place of others, if any."""
        if self.changing is not None or not self.is_idle:
            return None
        if (wanted := self._next_wanted(now_s)) is not None:
            standing = [n for n in self._wanted if n in self.stands]
            reserved = any(self._wanted[n] > now_s or self._asking[n] for n in standing)
            lull = now_s - self._idle_since_s >= LULL_S and not reserved
            return wanted if lull or now_s - self._since_s >= STAY_S else None
        if self.default not in self.stands and all(self._is_over(name, now_s) for name in self.stands):
            return self.default
        return None

    def next_unload(self, now_s: float) -> str | None:
        """Return which model the boards are to give up, if any: one beside the default one that nobody has asked for
        as long as it was to stay."""
        if self.changing is not None or self.default not in self.stands:
            return None
        idle = (n for n in self.stands if n != self.default and not self._running[n] and not self._asking[n])
        return next((name for name in sorted(idle) if self._is_over(name, now_s)), None)

    def unloaded(self, name: str) -> None:
        """Record that the boards have given up a model."""
        self.stands = self.stands - {name}
        self._no_room.clear()

    def change(self, name: str, now_s: float, *, beside: bool = False) -> None:
        """Record that the boards begin to load a model, perhaps `beside` those that stand."""
        self.changing, self.changing_since_s, self.beside = name, now_s, beside

    def kept_out(self) -> None:
        """Record that the model that was to be loaded beside those that stand has no room there."""
        if self.changing is not None:
            self._no_room.add(self.changing)
        self.changing, self.beside = None, False

    def changed(self, now_s: float, stands: set[str]) -> None:
        """Record which models the boards hold after a change that has ended, or failed: then those of before."""
        name, self.changing, self.beside = self.changing, None, False
        self._no_room.clear()
        self.stands, self._since_s, self._idle_since_s = stands, now_s, now_s
        if name is not None and name not in stands:
            self._wanted.pop(name, None)
        elif name is not None:
            self._stays_until_s.setdefault(name, now_s + KEEP_ALIVE_S)

    def expires_in_s(self, name: str, now_s: float) -> float | None:
        """Return the seconds after which an idle model goes; None if it stays, or doesn't stand."""
        if name == self.default or name not in self.stands or self._running[name]:
            return None
        left_s = self._stays_until_s.get(name, math.inf) - now_s
        return None if left_s == math.inf else max(0.0, left_s)

    def _is_over(self, name: str, now_s: float) -> bool:
        return self._stays_until_s.get(name, -math.inf) <= now_s

    def _next_wanted(self, now_s: float) -> str | None:
        """Return the model that is wanted for longest of those that don't stand; forget who didn't come back."""
        for name, until_s in list(self._wanted.items()):
            if not self._asking[name] and until_s <= now_s:
                del self._wanted[name]
        return next((name for name in self._wanted if name not in self.stands), None)
