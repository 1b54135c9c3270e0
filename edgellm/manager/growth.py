"""When to weigh a better plan than the one that stands, and with which boards. Pure: seconds are passed in."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgellm.manager.beside import shared
from edgellm.manager.failures import Failures
from edgellm.manager.rebalance import Avoid
from edgellm.manager.survey import Report, other_models
from edgellm.plan import Plan

_WEIGH_EVERY_S = 60.0  # the same boards: a search for a better plan takes this process a while
_RECENT_S = 600.0  # for which a load that failed keeps a board from being given a section that it needn't have


@dataclass
class Growth:
    """What a keeper knows of better plans. With `always`, a plan is weighed even if nothing has changed."""

    always: bool
    wants_idle: bool = False  # a better plan is known, and boards have no room to load it beside the old one
    _what: object = None
    _weighed: tuple[object, float] | None = None  # what was weighed last, and when

    def begin(
        self, reports: Mapping[str, Report], plan: Plan, avoid: Avoid, failures: Failures, now_s: float
    ) -> Avoid | None:
        """Return what a better plan than `plan` is to do without, or None if it isn't time to look for one. Other
        models' plans go on, and boards that have only these aren't taken."""
        recently = {
            b: f"board {b}: {e.reason}" for b, r in reports.items()
            if (e := r.load_error) is not None and (e.age_s or 0.0) < _RECENT_S and not failures.has_seen(b)
        }  # fmt: skip
        avoid = replace(avoid, loads={**recently, **avoid.loads})  # also those that failed under another manager
        spare = {b for b, r in reports.items() if b not in plan.boards and b not in avoid.loads and not r.others}
        unsteady = {b for b in spare if failures.steady_in_s(b, reports[b].up_s, now_s) > 0}
        off = {b for b in plan.boards if b in reports and reports[b].is_off}
        if not spare - unsteady and not off and not self.always:
            return None
        self._what = plan.digest, frozenset(spare - unsteady), frozenset(off)
        if self._weighed is not None and self._weighed[0] == self._what and not self.wants_idle:
            if now_s - self._weighed[1] < _WEIGH_EVERY_S:
                return None
        left_out = {b: f"board {b} has just come" for b in unsteady}
        left_out |= {b: f"board {b} has another model" for b, r in reports.items() if r.others and b not in plan.boards}
        return shared(reports, replace(avoid, boards={**avoid.boards, **left_out}), other_models(reports))

    def weighed(self, now_s: float) -> None:
        """Record that the plan was weighed."""
        self._weighed, self.wants_idle = (self._what, now_s), False
