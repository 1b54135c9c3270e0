"""How much of a board's RAM sections need, and whether another one fits beside those that compute. Pure, but for the
question how much is free."""

from collections.abc import Callable, Iterable, Sequence

from edgellm.agent import measure
from edgellm.errors import PlanError
from edgellm.plan import Needs, Plan, SectionNeed, Swapping, section_need, swapping, usable_bytes
from edgellm.shards.manifest import Manifest, Shard


class Room:
    """The RAM of `board` for sections of the models that it has, at most `ram_bytes` if the owner says so.

    `manifest_of(plan)` is the manifest of a plan's model. `held` are the plans whose sections, with their slots, are in
    memory now. `yielding()` are the bytes that go as soon as a section needs them: they count as free.
    """

    def __init__(
        self, board: str, manifest_of: Callable[[Plan], Manifest], ram_bytes: int | None,
        yielding: Callable[[], int] = lambda: 0,
    ):  # fmt: skip
        self._board, self._manifest_of, self.ram_bytes, self._yielding = board, manifest_of, ram_bytes, yielding

    def offer_bytes(self, held: Iterable[Plan]) -> int:
        """Return the RAM for a section, as if there were none: slots count as free, as mapped shards already do."""
        free = self._without(held)
        return min(free, self.ram_bytes) if self.ram_bytes else free

    def spare_bytes(self, held: Sequence[Plan], coming: Sequence[Plan] = (), *, capped: bool = True) -> int:
        """Return the RAM that neither the sections that are held need nor those that are `coming`, each shard counted
        once, of what the board offers; unless it is `capped`, of all. The headroom of every plan isn't among it."""
        plans = [*held, *coming]
        needs = sum(need.slots + need.activations for need in map(self.need, plans))
        weights = sum(s.ram_bytes for s in self._shards(plans).values())
        offer = self.offer_bytes(held) if capped else self._without(held)
        return max(0, usable_bytes(offer) - needs - weights)

    def swapping(self, plan: Plan, held: Iterable[Plan], disk_bytes_per_s: float | None) -> Swapping | None:
        """Return how the section of `plan` swaps its experts, with what the board offers now; None if it fits."""
        if not plan.swap_experts:
            return None
        own, needs = plan.section_of(self._board), Needs(self._manifest_of(plan), plan.settings)
        return swapping(needs, self.offer_bytes(held), disk_bytes_per_s, own.start, own.end)

    def need(self, plan: Plan) -> SectionNeed:
        """Return what this board's section of `plan` needs."""
        own = plan.section_of(self._board)
        return section_need(self._manifest_of(plan), plan.settings, own.start, own.end)

    def bytes_to_load(self, plan: Plan, held: Iterable[Plan]) -> int:
        """Return the bytes of shards that no section has mapped yet."""
        return sum(s.bytes for s in self._new_shards(plan, held))

    def check(self, plan: Plan, offer_bytes: int, kept: Sequence[Plan] = ()) -> None:
        """Raise PlanError, with the numbers, if the section of `plan` needs more than is offered, less what the plans
        that are `kept` beside it take."""
        own, need = plan.section_of(self._board), self.need(plan).least(plan.swap_experts)
        taken = sum(self.need(p).least(p.swap_experts) for p in kept)
        if need + taken > offer_bytes:
            models = f", of which {' and '.join(p.model for p in kept)} takes {taken / 1e9:.2f} GB" if kept else ""
            raise PlanError(
                f"board {self._board} offers {offer_bytes / 1e9:.2f} GB now{models}; layers {own.start}-{own.end} need "
                f"{need / 1e9:.2f} GB. Plan again."
            )

    def is_beside(self, plan: Plan, held: Sequence[Plan], kept: Sequence[Plan] = ()) -> bool:
        """Return whether slots and new shards fit beside what is held, until that is given up; shards are mapped once.
        Of what is `kept`, the weights have to stay in memory, though mapped files count as free."""
        need, new = self.need(plan), self._new_shards(plan, held)
        weights = sum(s.ram_bytes for s in new) + sum(self.need(p).weights for p in kept)
        return not held or need.slots + need.activations + weights < self._free_bytes()

    def is_to_drain(self, plan: Plan, held: Sequence[Plan]) -> bool:
        """Return whether the section can compute beside what is held: the weights of all of them have to stay in
        memory, though mapped files count as free."""
        need = self.need(plan)
        weights = sum(s.ram_bytes for s in self._shards([*held, plan]).values())
        return need.slots + need.activations + weights < usable_bytes(self._free_bytes())

    def _without(self, held: Iterable[Plan]) -> int:
        return self._free_bytes() + sum(self.need(plan).slots for plan in held)

    def _free_bytes(self) -> int:
        return measure.free_ram_bytes() + self._yielding()

    def _shards(self, plans: Iterable[Plan]) -> dict[tuple[str, str], Shard]:
        """Return the shards of this board's sections in these plans, by model and name; a draft model counts as one."""
        sections = [(plan, plan.section_of(self._board)) for plan in plans]
        found = {
            (plan.manifest_sha256, s.name): s
            for plan, own in sections for s in self._manifest_of(plan).section_shards(own.start, own.end)
        }  # fmt: skip
        for plan in (plan for plan, _ in sections):
            if (draft := plan.drafts_on(self._board)) is not None:
                size = draft.weights_bytes
                found[draft.manifest_sha256, "draft"] = Shard(
                    draft.model, "draft", None, size, size, draft.manifest_sha256
                )
        return found

    def _new_shards(self, plan: Plan, held: Iterable[Plan]) -> list[Shard]:
        there = self._shards(held)
        return [s for key, s in self._shards([plan]).items() if key not in there]
