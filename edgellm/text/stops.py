"""Stop strings: where an answer ends because of its own text."""

from collections.abc import Iterable


class StopStrings:
    """Ends a text before the first of some strings, and holds back what may be the beginning of one.

    `found` is the string that has ended the text, "" before that. Of those that begin at once it is the shortest.
    A control token isn't shown as text, but a stop string may contain its name; `feed` takes it with `hidden`.
    """

    def __init__(self, strings: Iterable[str] = ()):
        self._strings = tuple(s for s in strings if s)
        self._held: list[tuple[str, bool]] = []  # characters, and whether they are hidden
        self.found = ""

    def mentions(self, token: str) -> bool:
        """Return True if a stop string contains the name of a control token."""
        return any(token in s for s in self._strings)

    def feed(self, text: str, *, hidden: bool = False) -> str:
        """Return what may be shown now."""
        if self.found:
            return ""
        if not self._strings:
            return "" if hidden else text
        self._held += [(c, hidden) for c in text]
        held = "".join(c for c, _ in self._held)
        if found := [(i, len(s), s) for s in self._strings if (i := held.find(s)) >= 0]:
            start, _, self.found = min(found)
            return self._take(start, forget=True)
        return self._take(len(held) - max(_overlap(held, s) for s in self._strings))

    def flush(self) -> str:
        """Return what was held back: the text has ended, so it was not a stop string."""
        return self._take(len(self._held))

    def _take(self, count: int, *, forget: bool = False) -> str:
        shown = "".join(c for c, hidden in self._held[:count] if not hidden)
        self._held = [] if forget else self._held[count:]
        return shown


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that begins `string`."""
    longest = min(len(string) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
