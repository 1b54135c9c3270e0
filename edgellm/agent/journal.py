"""An agent's log: lines that no peer can forge, and only so many of each peer, because a flood of them would wear out
an SD card."""

import contextvars
import logging
import sys
import threading
import time
from collections.abc import Callable

from edgellm.wire.printable import printable

_LINES, _EVERY_S = 20, 10.0
_TRACEBACK_LINES = 10  # that a traceback counts as
_MAX_SPEAKERS = 64  # who are counted apart
_speaker: contextvars.ContextVar[str | None] = contextvars.ContextVar("speaker", default=None)


def speaking(peer: str | None) -> contextvars.Token[str | None]:
    """Attribute what is logged from now on in this context, and in tasks and callbacks that begin in it, to `peer`;
    `done_speaking` ends that."""
    return _speaker.set(peer)


def done_speaking(token: contextvars.Token[str | None]) -> None:
    """Attribute what is logged to whom it was attributed before."""
    _speaker.reset(token)


class Sparing(logging.Filter):
    """Lets through at most 20 lines of each peer within 10 seconds, then a line that says how many were left out. Lines
    that no peer caused are limited by what they say."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._since_s = clock()
        self._said: dict[str, int] = {}
        self._unsaid: dict[str, int] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a line."""
        if getattr(record, "summing", False):
            return True
        self.sum_up()
        who = _speaker.get() or f"“{record.msg}”"
        with self._lock:
            if who not in self._said and len(self._said) >= _MAX_SPEAKERS:
                who = "others"
            said = self._said.get(who, 0)
            self._said[who] = said + (_TRACEBACK_LINES if record.exc_info else 1)
            if said < _LINES:
                return True
            self._unsaid[who] = self._unsaid.get(who, 0) + 1
            return False

    def sum_up(self) -> None:
        """Once the 10 seconds are over, say what was left out, and begin again. Call it now and then."""
        with self._lock:
            now_s = self._clock()
            if now_s - self._since_s < _EVERY_S:
                return
            self._since_s, self._said = now_s, {}
            unsaid, self._unsaid = self._unsaid, {}
        log = logging.getLogger(__name__)
        for who, count in unsaid.items():
            log.warning("%d more lines of %s were left out", count, who, extra={"summing": True})


class Formatter(logging.Formatter):
    """One line a record, whatever it says; a traceback follows it, without control characters."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        return printable(super().formatMessage(record))

    def formatException(self, ei) -> str:
        """Return a traceback's lines."""
        return "\n".join(printable(line) for line in super().formatException(ei).splitlines())


sparing = Sparing()


def begin(level: int) -> None:
    """Log to stderr from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    handler.addFilter(sparing)
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)
