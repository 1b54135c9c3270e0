"""What boards remember of failures, as sentences: shards that were damaged, loads that failed, links that broke."""

from collections.abc import Collection
from typing import NamedTuple

from edgellm.wire.status import BoardStatus

_PUSHED = "Run 'edgellm deploy', which pushes what is damaged. If that happens again, replace its card."


class Failure(NamedTuple):
    """What failed on a board, with the board as "it": `about` in a word, `what` and what `todo` in a sentence each."""

    about: str
    what: str
    todo: str


def failures(status: BoardStatus, tried: Collection[str] = ()) -> list[Failure]:
    """Return what a board says has failed. Its links to the boards that it has just `tried` to reach are left out,
    because more is known of those."""
    found = []
    if status.shards.damaged:
        found.append(Failure("shards", f"it doesn't use what is damaged: {', '.join(status.shards.damaged)}", _PUSHED))
    failed = status.load_error
    if failed is not None and not any(name in failed.reason for name in status.shards.damaged):
        what = f"it could not load layers {failed.start}-{failed.end}{_ago(failed.age_s)}: {failed.reason.rstrip('.')}"
        by_files = "SHA-256" in failed.reason or "push it again" in failed.reason
        todo = _PUSHED if by_files else f"'edgellm logs {status.name}' says more; other boards take these layers."
        found.append(Failure("load", what, todo))
    for board, link in status.links.items():
        if link.broken and board not in tried:
            found.append(Failure(
                "links", f"it could not reach {board}{_ago(link.age_s)}: {link.reason or link.code}",
                f"Check the cable, the switch and the firewall between {status.name} and {board}.",
            ))  # fmt: skip
    return found


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f", {seconds / 60:.0f} minutes ago" if seconds >= 120 else f", {seconds:.0f} s ago"
