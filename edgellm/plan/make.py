"""Making a plan and checking one; if nothing fits, the error computes the nearest thing that would."""

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial

from edgellm.errors import PlanError
from edgellm.limits import MAX_STEP_BYTES
from edgellm.plan.fleet import Kind
from edgellm.plan.needs import Needs, SectionNeed, offer_for, section_need, usable_bytes
from edgellm.plan.search import Cut, fits, search
from edgellm.plan.types import Capacity, Plan, Section, Settings
from edgellm.shards.manifest import Manifest

CONTEXT_STEP = 64  # suggested contexts are multiples of it
# RAM of packed weights per element, as 32 elements a block: Q4_1 has 20 bytes, Q8_0 has 34.
_INT4, _INT8, _16_BIT, _32_BIT = 20 / 32, 34 / 32, 2.0, 4.0


def make_plan(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings, epoch: int) -> Plan:
    """Return the best sections for these boards. Raises PlanError, with what would fit, if none do.

    `settings.objective` says what is best: the fastest single token, or the smallest slowest stage.
    """
    check_request(manifest, capacities, settings)
    cuts = search(Needs(manifest, settings), kinds(capacities), settings.objective)
    if cuts is None:
        raise PlanError(too_large(manifest, capacities, settings))
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
        **settings.to_dict(),
        sections=tuple(Section(capacities[c.board].board, c.start, c.end) for c in cuts),
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
        if need.total > usable_bytes(offer.ram_bytes):
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
    most = MAX_STEP_BYTES // (4 * (manifest.hidden_size + 1))  # a token's id goes along
    if settings.chunk > most:
        raise PlanError(
            f"a chunk of {settings.chunk} tokens of {manifest.model} is over the {most} that a frame can carry. "
            "Ask for less."
        )


def kinds(
    capacities: Sequence[Capacity], manifest: Manifest | None = None, shards: Mapping[str, Set[str]] | None = None
) -> list[Kind]:
    """Return the capacities as the search counts them. With the `manifest` and `shards`, the names of the shard files
    on each board's disk, a board gets only sections whose shards it has."""
    return [
        Kind(
            usable_bytes(c.ram_bytes), round(c.layer_s * 1e9), round(c.head_s * 1e9), round(c.hop_s * 1e9),
            stored=None if manifest is None or shards is None else stored(manifest, shards.get(c.board, frozenset())),
        )  # fmt: skip
        for c in capacities
    ]


def stored(manifest: Manifest, names: Set[str]) -> tuple[int, ...]:
    """Return for every start the furthest end of a section whose shards are all among `names`; the start itself if
    none."""
    n = manifest.num_layers
    ends = []
    end = n
    for start in range(n - 1, -1, -1):
        if manifest.shards[1 + start].name not in names:
            end = start
        elif start == n - 1 and manifest.head.name not in names:
            end = n - 1
        ends.append(end)
    if manifest.embedding.name not in names:
        ends[-1] = 0
    return tuple(reversed(ends))


def ms(seconds: float) -> str:
    """Return a token's time for people: three digits of milliseconds."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds * 1e3:.0f} ms"


def size(n: int) -> str:
    """Return bytes for people: decimal GB, or MB below a tenth of one."""
    return f"{n / 1e9:.2f} GB" if abs(n) >= 100_000_000 else f"{n / 1e6:.1f} MB"


def describe(need: SectionNeed) -> str:
    parts = f"weights {size(need.weights)}, KV {size(need.kv)}, activations {size(need.activations)}"
    return f"{size(need.total)} ({parts})"


def largest_slots(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings, most: int) -> int:
    """Return the most slots, up to `most`, with which the model fits at this context; 0 if none do."""
    boards = kinds(capacities)
    return _largest(0, most, lambda slots: fits(Needs(manifest, replace(settings, slots=slots)), boards))


def largest_context(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings, most: int) -> int:
    """Return the longest context, a multiple of CONTEXT_STEP up to `most`, that fits with these slots; 0 if none does.
    """
    boards = kinds(capacities)

    def ok(steps: int) -> bool:
        return fits(Needs(manifest, replace(settings, context=steps * CONTEXT_STEP)), boards)

    return _largest(0, most // CONTEXT_STEP, ok) * CONTEXT_STEP


def _largest(none: int, most: int, ok: Callable[[int], bool]) -> int:
    """Return the largest n in (none, most] with ok(n), which holds up to some n and not beyond; `none` if it never
    does."""
    low, high = none, most
    while low < high:
        middle = (low + high + 1) // 2
        if ok(middle):
            low = middle
        else:
            high = middle - 1
    return low


def too_large(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings) -> str:
    """Return the sentence for a model that doesn't fit: need, offers, and what would fit."""
    whole = section_need(manifest, settings, 0, manifest.num_layers)
    offers = ", ".join(f"{c.board} {size(usable_bytes(c.ram_bytes))} of {size(c.ram_bytes)}" for c in capacities)
    text = (
        f"{manifest.model} needs {describe(whole)} in all at context {settings.context} and "
        f"{settings.slots} slot{'s' * (settings.slots > 1)}; the boards offer, less headroom: {offers}"
    )
    if sum(usable_bytes(c.ram_bytes) for c in capacities) >= whole.total:
        text += ", which is enough together, yet no cut between layers makes every section fit"
    ways = [
        *_less_kv(manifest, capacities, settings),
        *_lower_bits(manifest, capacities, settings),
        *_more_boards(manifest, capacities, settings),
    ]
    if ways:
        return f"{text}. It would fit {', or '.join(ways)}."
    needs = Needs(manifest, settings)
    layer = max(range(manifest.num_layers), key=lambda i: needs.total(i, i + 1))
    offer = offer_for(needs.total(layer, layer + 1))
    return f"{text}. Layer {layer} alone needs a board that offers {size(offer)}: add such boards."


def _less_kv(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings) -> list[str]:
    ways = []
    if slots := largest_slots(manifest, capacities, settings, settings.slots - 1):
        ways.append(f"with {slots} slot{'s' * (slots > 1)} instead of {settings.slots}")
    if context := largest_context(manifest, capacities, settings, settings.context - 1):
        ways.append(f"with context {context} instead of {settings.context}")
    if not ways and settings.slots > 1:
        if context := largest_context(manifest, capacities, replace(settings, slots=1), settings.context - 1):
            ways.append(f"with 1 slot and context {context}")
    return ways


def _lower_bits(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings) -> list[str]:
    layers, ends = _bits_now(manifest)
    for quantization, layers_after, ends_after in (("int8", _INT8, _INT8), ("int4", _INT4, _INT8)):
        if not layers or (layers_after >= layers and ends_after >= ends):
            continue
        smaller = tuple(
            replace(s, ram_bytes=round(s.ram_bytes * min(1, layers_after / layers)))
            if s.kind == "layer"
            else replace(s, ram_bytes=round(s.ram_bytes * min(1, ends_after / ends)))
            for s in manifest.shards
        )
        if fits(Needs(replace(manifest, shards=smaller), settings), kinds(capacities)):
            now, then = (size(sum(s.ram_bytes for s in shards)) for shards in (manifest.shards, smaller))
            return [f"split with --quantize {quantization} (about {then} of weights instead of {now})"]
    return []


def _bits_now(manifest: Manifest) -> tuple[float, float]:
    """Return estimated bytes per element, in layers and in embedding and head; 0 where it can't be told."""
    if manifest.quantization == "int4":
        return _INT4, _INT8
    if manifest.quantization == "int8":
        return _INT8, _INT8
    # Unquantized at split time says nothing about the source: its embedding table, of known shape, tells.
    per_element = manifest.embedding.ram_bytes / (manifest.vocab_size * manifest.hidden_size)
    for width in (_32_BIT, _16_BIT):
        if per_element >= 0.95 * width:
            return width, width
    return 0, 0


def _too_few(needs: Needs, boards: list[Kind], extra: list[Kind], more: int) -> bool:
    return not fits(needs, boards + more * extra)


def _more_boards(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings) -> list[str]:
    needs, boards = Needs(manifest, settings), kinds(capacities)
    most = manifest.num_layers  # a board holds a layer at least
    by_size = sorted(capacities, key=lambda c: c.ram_bytes)
    for like in (by_size[(len(by_size) - 1) // 2], by_size[-1]):  # the median; if that is too small, the largest
        extra = kinds([like])
        few = _largest(-1, most, partial(_too_few, needs, boards, extra))
        if few < most:
            more = few + 1
            return [f"with {more} more board{'s' * (more > 1)} like {like.board} ({size(like.ram_bytes)})"]
    return []
