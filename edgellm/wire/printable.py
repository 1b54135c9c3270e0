"""Text from elsewhere, made harmless for a terminal and a log: nothing that moves a cursor, changes a colour or ends a
line."""

_SPACES = {ord(c): " " for c in "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"}
# What a terminal obeys: C0 and C1 without tab and newline, and DEL. It leaves right-to-left text and emojis alone.
_CONTROLS = dict.fromkeys([*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)])


def printable(text: str, limit: int | None = None) -> str:
    """Return `text` as one line of printable characters, cut at `limit` characters with "…" at the cut.

    Tabs and ends of lines become spaces. Other control characters, surrogates and what turns the direction of text
    around are left out.
    """
    cut = text if limit is None or len(text) <= limit else text[:limit] + "…"
    if cut.isprintable():
        return cut
    return "".join(c for c in cut.translate(_SPACES) if c.isprintable())


def without_controls(text: str) -> str:
    """Return `text` of any number of lines without the control characters that a terminal would obey."""
    return text if text.isprintable() else text.translate(_CONTROLS)
