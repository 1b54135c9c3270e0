"""Making a plan and checking one."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from edgellm.errors import PlanError
from edgellm.limits import MAX_STEP_BYTES
from edgellm.plan.needs import Needs, section_need, usable_bytes
from edgellm.plan.search import Cut, search, usable_kinds
from edgellm.plan.short import too_large
from edgellm.plan.types import Capacity, Draft, Plan, Section, Settings
from edgellm.plan.words import describe, size
from edgellm.shards.manifest import Manifest


def make_plan(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings, epoch: int) -> Plan:
    """Return the best sections for these boards. Raises PlanError, with what would fit, if none do.

    `settings.objective` says what is best: the fastest single token, or the smallest slowest stage.
    """
    check_request(manifest, capacities, settings)
    needs = Needs(manifest, settings)
    cuts = search(needs, usable_kinds(capacities, needs), settings.objective)
    if cuts is None:
        raise too_large(manifest, capacities, settings)
    return plan_of(cuts, manifest, capacities, settings, epoch)


def plan_of(
    cuts: Sequence[Cut], manifest: Manifest, capacities: Sequence[Capacity], settings: Settings, epoch: int
) -> Plan:
    """Return the plan that a search's cuts are."""
    return Plan(
        epoch=epoch,
        model=manifest.model,
        manifest_sha256=manifest_sha256(manifest),
        num_layers=manifest.num_layers,
        objective=settings.objective,
        context=settings.context,
        slots=settings.slots,
        chunk=settings.chunk,
        kv_dtype=settings.kv_dtype,
        sections=tuple(Section(capacities[c.board].board, c.start, c.end) for c in cuts),
        swap_experts=settings.swap_experts,
        draft=settings.draft,
    )


def check_plan(plan: Plan, manifest: Manifest, capacities: Sequence[Capacity]) -> None:
    """Raise PlanError if the plan is another model's, or if a section doesn't fit on its board.

    `capacities` may be those of some boards only (an agent checks its own); sections of others aren't looked at.
    """
    if plan.manifest_sha256 != manifest_sha256(manifest) or plan.num_layers != manifest.num_layers:
        raise PlanError(
            f"the plan of epoch {plan.epoch} is for manifest {plan.manifest_sha256[:12]} of {plan.model}, "
            f"found {manifest_sha256(manifest)[:12]} of {manifest.model}. Plan again, or provide its shards."
        )
    check_request(manifest, capacities, plan.settings)
    offers = {c.board: c for c in capacities}
    for section in plan.sections:
        if (offer := offers.get(section.board)) is None:
            continue
        need = section_need(manifest, plan.settings, section.start, section.end)
        if need.least(plan.swap_experts) > usable_bytes(offer.ram_bytes):
            raise PlanError(
                f"board {section.board} offers {size(offer.ram_bytes)}, {size(usable_bytes(offer.ram_bytes))} of it "
                f"usable; {section} need {describe(need)}. Free some RAM there, or plan again."
            )


def manifest_sha256(manifest: Manifest) -> str:
    """Return the manifest's digest; for one that wasn't read from a file, of what `write` would write."""
    return manifest.sha256 or hashlib.sha256(manifest.to_json().encode()).hexdigest()


def check_request(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings) -> None:
    """Raise PlanError unless there are boards, each once, and the model and the wire allow the lengths."""
    if not capacities:
        raise PlanError(f"no boards to plan {manifest.model} on. Add one.")
    names = [c.board for c in capacities]
    for name in names:
        if names.count(name) > 1:
            raise PlanError(f"board {name} is given {names.count(name)} times, expected once")
    check_lengths(manifest, settings)


def check_lengths(manifest: Manifest, settings: Settings) -> None:
    """Raise PlanError if the context is longer than the model's, or a chunk than a frame may be."""
    if settings.context > manifest.max_seq_len:
        raise PlanError(
            f"a context of {settings.context} tokens is over the {manifest.max_seq_len} of {manifest.model}. "
            "Ask for less."
        )
    most = MAX_STEP_BYTES // (4 * (manifest.widest_row + 1))  # a token's id goes along
    if settings.chunk > most:
        raise PlanError(
            f"a chunk of {settings.chunk} tokens of {manifest.model} is over the {most} that a frame can carry. "
            "Ask for less."
        )


def draft_of(manifest: Manifest, settings: Settings) -> Draft:
    """Return a model as one that drafts under `settings`, with what it needs in RAM. Its slots hold fewer tokens if it
    is made for fewer."""
    context = min(settings.context, manifest.max_seq_len)
    need = Needs(manifest, replace(settings, context=context, slots=1, draft=None)).of(0, manifest.num_layers)
    return Draft(manifest.model, manifest_sha256(manifest), need.weights, need.slots, need.activations)
