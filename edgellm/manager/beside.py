"""Where the plan of one model may stand while boards serve others: on boards of its own, beside them on the same
boards, or in their place. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgellm.manager.rebalance import Avoid
from edgellm.manager.survey import Report, other_models
from edgellm.plan import Plan

YIELD_S = 120.0  # for which answers of another model may keep this one's from beginning


def ways(reports: Mapping[str, Report], avoid: Avoid, flapping: Mapping[str, str], *, beside: bool) -> list[Avoid]:
    """Return what to plan with, the best first: without the boards of other models' plans that stand; beside these
    plans; and unless it is to stand `beside` them, in their place. As long as possible, `flapping` boards are left out.
    """
    standing = other_models(reports)
    steady = replace(avoid, boards={**avoid.boards, **flapping})
    found = [apart(reports, steady, standing), shared(reports, steady, standing)] if standing else []
    if beside and standing:
        return found
    return [*found, *([steady] if flapping else []), avoid]


def apart(reports: Mapping[str, Report], avoid: Avoid, standing: Mapping[str, Plan]) -> Avoid:
    """Return what to plan with on boards without another model."""
    taken = {b: f"board {b} answers with {plan.model}" for plan in standing.values() for b in plan.boards}
    return replace(avoid, boards={**avoid.boards, **taken})


def shared(reports: Mapping[str, Report], avoid: Avoid, standing: Mapping[str, Plan]) -> Avoid:
    """Return what to plan with in the RAM that other models leave on their boards."""
    keep = frozenset(standing)
    busy = {b: f"board {b} serves one model at a time" for b, r in reports.items() if not r.can_keep(keep)}
    return replace(avoid, boards={**avoid.boards, **busy}, keep=keep)


@dataclass
class Waiting:
    """A model that waits for the answers of others, which must end before it takes their place."""

    since_s: float | None = None
    no_room: bool = False  # boards can't load it beside the others until then

    def begin(self, now_s: float) -> bool:
        """Wait since now, or before; return whether the others may still go on."""
        if self.since_s is None:
            self.since_s = now_s
        return now_s - self.since_s < YIELD_S

    def end(self) -> None:
        """Wait no more."""
        self.since_s, self.no_room = None, False
