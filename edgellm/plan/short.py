"""What is missing if a model doesn't fit, and the nearest things that would fit, all computed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from edgellm.errors import PlanError
from edgellm.plan.fleet import Kind
from edgellm.plan.needs import Needs, offer_for, section_need, usable_bytes
from edgellm.plan.search import allowed_kinds, fastest, fits
from edgellm.plan.types import Capacity, Settings
from edgellm.plan.words import describe, ms, size
from edgellm.shards.manifest import Manifest

CONTEXT_STEP = 64  # suggested contexts are multiples of it
# RAM of packed weights per element, as 32 elements a block: Q4_1 has 20 bytes, Q8_0 has 34.
_INT4, _INT8, _16_BIT, _32_BIT = 20 / 32, 34 / 32, 2.0, 4.0


def largest_slots(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings, most: int) -> int:
    """Return the most slots, up to `most`, with which the model fits at this context; 0 if none do."""
    boards = allowed_kinds(capacities, Needs(manifest, settings))
    return _largest(0, most, lambda slots: fits(Needs(manifest, replace(settings, slots=slots)), boards))


def largest_context(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings, most: int) -> int:
    """Return the longest context, a multiple of CONTEXT_STEP up to `most`, that fits with these slots; 0 if none does.
    """
    boards = allowed_kinds(capacities, Needs(manifest, settings))

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


def shortage(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings) -> str:
    """Return what the model needs, what the boards offer and what is missing at least, without a full stop."""
    whole = section_need(manifest, settings, 0, manifest.num_layers)
    usable = sum(usable_bytes(c.ram_bytes) for c in capacities)
    offers = ", ".join(f"{c.board} {size(usable_bytes(c.ram_bytes))} of {size(c.ram_bytes)}" for c in capacities)
    text = (
        f"{manifest.model} needs {describe(whole)} in all at context {settings.context} and "
        f"{settings.slots} slot{'s' * (settings.slots > 1)}; the boards offer, less headroom: {offers}"
    )
    if usable >= whole.total:
        return f"{text}, which is enough together, yet no cut between layers makes every section fit"
    return f"{text}; {size(whole.total - usable)} are missing"


def too_large(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings) -> PlanError:
    """Return the error for a model that doesn't fit: need, offers, and what would fit."""
    text = shortage(manifest, capacities, settings)
    bits = lower_bits(manifest, capacities, settings)
    ways = [
        *less_kv(manifest, capacities, settings),
        *([f"split with --quantize {bits[0]} ({bits[1]})"] if bits else []),
        *swapped(manifest, capacities, settings),
        *more_boards(manifest, capacities, settings),
    ]
    whole = section_need(manifest, settings, 0, manifest.num_layers).total
    usable = sum(usable_bytes(c.ram_bytes) for c in capacities)
    brief = f"{manifest.model} needs {size(whole)} and the boards offer {size(usable)}"
    if ways:
        return PlanError(f"{text}. It would fit {', or '.join(ways)}.", brief)
    return PlanError(f"{text}. {larger_boards(manifest, settings)}", brief)


def larger_boards(manifest: Manifest, settings: Settings) -> str:
    """Return the sentence that says what a board must offer at least, for the largest layer."""
    needs = Needs(manifest, settings)
    layer = max(range(manifest.num_layers), key=lambda i: needs.total(i, i + 1))
    offer = size(offer_for(needs.total(layer, layer + 1)))
    return f"Layer {layer} alone needs a board that offers {offer}: add such boards."


def less_kv(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings) -> list[str]:
    """Return the fewer slots and the shorter context with which the model would fit: "with 2 slots instead of 4"."""
    ways = []
    if slots := largest_slots(manifest, capacities, settings, settings.slots - 1):
        ways.append(f"with {slots} slot{'s' * (slots > 1)} instead of {settings.slots}")
    if context := largest_context(manifest, capacities, settings, settings.context - 1):
        ways.append(f"with context {context} instead of {settings.context}")
    if not ways and settings.slots > 1:
        if context := largest_context(manifest, capacities, replace(settings, slots=1), settings.context - 1):
            ways.append(f"with 1 slot and context {context}")
    return ways


def swapped(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings) -> list[str]:
    """Return that the model would fit if experts were swapped, and how slow it would be."""
    needs = Needs(manifest, replace(settings, swap_experts=True))
    if settings.swap_experts or not any(manifest.expert_bytes):
        return []
    boards = allowed_kinds(capacities, needs)
    if (cuts := fastest(needs, boards, "latency")) is None:
        return []
    token_ns = sum(boards[c.board].token.of(c.start, c.end, len(cuts) == 1) for c in cuts)
    return [
        f"with --swap-experts (edgellm_swap_experts), degraded: experts that don't fit into RAM come from the disks, "
        f"and a token takes {ms(token_ns / 1e9)}"
    ]


def lower_bits(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings) -> tuple[str, str] | None:
    """Return the first quantization with which the model would fit, and how much smaller it is; None if there is none.
    """
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
        needs = Needs(replace(manifest, shards=smaller), settings)
        if fits(needs, allowed_kinds(capacities, needs)):
            now, then = (size(sum(s.ram_bytes for s in shards)) for shards in (manifest.shards, smaller))
            return quantization, f"about {then} of weights instead of {now}"
    return None


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


def more_boards(manifest: Manifest, capacities: Sequence[Capacity], settings: Settings) -> list[str]:
    """Return how many more boards like one of these it would take: "with 1 more board like pi2 (0.32 GB)"."""
    needs = Needs(manifest, settings)
    boards = allowed_kinds(capacities, needs)
    most = manifest.num_layers  # a board holds a layer at least
    by_size = sorted(capacities, key=lambda c: c.ram_bytes)
    for like in (by_size[(len(by_size) - 1) // 2], by_size[-1]):  # the median; if that is too small, the largest
        extra = allowed_kinds([like], needs)
        few = _largest(-1, most, partial(_too_few, needs, boards, extra))
        if few < most:
            more = few + 1
            return [f"with {more} more board{'s' * (more > 1)} like {like.board} ({size(like.ram_bytes)})"]
    return []
