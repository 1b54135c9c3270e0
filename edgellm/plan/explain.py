"""Explains a plan and a move: who gets what, how fast it is, which boards aren't used and why, what would not fit."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from edgellm.errors import PlanError
from edgellm.plan.costs import group_size
from edgellm.plan.fleet import Kind
from edgellm.plan.make import check_request
from edgellm.plan.needs import Needs, offer_for, usable_bytes
from edgellm.plan.rebalance import Move
from edgellm.plan.search import ALIKE, allowed_kinds, is_exact, token_ns_using_all
from edgellm.plan.short import largest_context, largest_slots
from edgellm.plan.swap import Swapping, swapping
from edgellm.plan.types import Capacity, Plan, Section, Settings
from edgellm.plan.words import ms, size
from edgellm.shards.manifest import Manifest
from edgellm.shards.slot_memory import kept_positions

_MOST_SLOTS = 1024


def explain_dict(plan: Plan, manifest: Manifest, capacities: Sequence[Capacity]) -> dict[str, Any]:
    """Return the plan in numbers, for --json: bytes in `_bytes`, seconds in `_s`. Raises PlanError if a capacity is
    missing."""
    check_request(manifest, capacities, plan.settings)
    by_name = _by_name(manifest, capacities, plan.settings)
    if missing := [b for b in plan.boards if b not in by_name]:
        raise PlanError(f"the plan uses board {missing[0]}, whose capacity isn't given. Add it.")
    needs = Needs(manifest, plan.settings)
    sections: list[dict[str, Any]] = []
    for stage, section in enumerate(plan.sections):
        capacity, kind = by_name[section.board]
        need = needs.of(section.start, section.end)
        usable = usable_bytes(capacity.ram_bytes)
        alone = len(plan.sections) == 1
        waits = _swapping(needs, capacity, section)
        sections.append(
            {
                "board": section.board,
                "stage": stage,
                "start": section.start,
                "end": section.end,
                "offer_bytes": capacity.ram_bytes,
                "headroom_bytes": capacity.ram_bytes - usable,
                "weights_bytes": need.weights,
                "touched_bytes": _touched(manifest, section),
                "kv_bytes": need.kv,
                "state_bytes": need.state,
                "activations_bytes": need.activations,
                "free_bytes": max(0, usable - need.total) if plan.swap_experts else usable - need.total,
                "degraded": None if waits is None else asdict(waits),
                "stage_s": kind.token.of(section.start, section.end, alone) / 1e9,
                "turn_s": kind.turn.of(section.start, section.end, alone) / 1e9,
            }
        )
    token_s = sum(s["stage_s"] for s in sections)
    slowest = max(sections, key=lambda s: s["turn_s"])
    group = group_size(plan.slots, len(capacities), plan.num_layers)
    unused = [c for c in capacities if c.board not in plan.boards]
    return {
        "model": plan.model,
        "quantization": manifest.quantization,
        "epoch": plan.epoch,
        "num_layers": plan.num_layers,
        **plan.settings.to_dict(),
        "kept_tokens": _kept_tokens(manifest, plan.context),
        "sections": sections,
        "token_s": token_s,
        "tokens_per_s": _rate(token_s),
        "slowest_board": slowest["board"],
        "group": group,
        "slowest_stage_s": slowest["turn_s"],
        "pipelined_tokens_per_s": group * _rate(slowest["turn_s"]),
        "unused": [{"board": c.board, "why": _why_unused(plan, needs, by_name, c, slowest["turn_s"])} for c in unused],
        "would_not_fit": _would_not_fit(plan, manifest, capacities, needs),
    }


def explain_text(plan: Plan, manifest: Manifest, capacities: Sequence[Capacity]) -> str:
    """Return the plan in words, one line per board."""
    facts = explain_dict(plan, manifest, capacities)
    slots = f"{plan.slots} slot{'s' * (plan.slots > 1)}"
    state = {"state": "state_bytes"} if any(manifest.state_bytes) else {}
    chosen = {"of which a token reads": "touched_bytes"} if _has_experts(manifest) else {}
    columns = {
        "weights": "weights_bytes", **chosen, "KV": "kv_bytes", **state, "activations": "activations_bytes",
        "headroom": "headroom_bytes", "free": "free_bytes",
    }  # fmt: skip
    rows: list[tuple[str, ...]] = [("board", "layers", *columns, "time a token")]
    for s in facts["sections"]:
        sizes = columns.values()
        rows.append((s["board"], _layers(s), *(size(s[name]) for name in sizes), ms(s["stage_s"])))
    lines = [
        f"{plan.model} ({plan.num_layers} layers, quantization {manifest.quantization}) for {plan.objective}: "
        f"{slots} of {plan.context} tokens, KV {plan.kv_dtype}, prefill in chunks of {plan.chunk}",
        "",
        *_table(rows),
        "",
        *_windows(facts["kept_tokens"], plan.context),
        *degraded_lines(plan, manifest, capacities),
        f"one answer:   {facts['tokens_per_s']:.1f} tokens/s, {ms(facts['token_s'])} a token (predicted)",
        f"many at once: {facts['pipelined_tokens_per_s']:.1f} tokens/s together, with as many of prompts; the slowest "
        f"stage is {facts['slowest_board']}: {ms(facts['slowest_stage_s'])} for a token of {_answers(facts['group'])}",
        *(f"not used:     {u['board']}: {u['why']}" for u in facts["unused"]),
        *(f"wouldn't fit: {text}" for text in facts["would_not_fit"]),
    ]
    return "\n".join(lines)


def degraded_lines(plan: Plan, manifest: Manifest, capacities: Sequence[Capacity]) -> list[str]:
    """Return a line for each board whose experts don't fit into its RAM: how many do, and how long a token waits."""
    needs, by_name = Needs(manifest, plan.settings), _by_name(manifest, capacities, plan.settings)
    alone, lines = len(plan.sections) == 1, []
    for s in plan.sections:
        capacity, kind = by_name[s.board]
        if (waits := _swapping(needs, capacity, s)) is not None:
            lines.append(f"degraded:     {s.board}: {waits.words(kind.token.of(s.start, s.end, alone) / 1e9)}")
    return lines


def _swapping(needs: Needs, capacity: Capacity, section: Section) -> Swapping | None:
    return swapping(needs, capacity.ram_bytes, capacity.disk_bytes_per_s, section.start, section.end)


def _touched(manifest: Manifest, section: Section) -> int:
    """Return the bytes of a section's weights that one token is multiplied with; of the embedding it reads one row."""
    head = manifest.head_touched_bytes if section.end == manifest.num_layers else 0
    return sum(manifest.touched_bytes_per_token[section.start : section.end]) + head


def _has_experts(manifest: Manifest) -> bool:
    """Return whether a token reads only some of the layers' weights."""
    held = tuple(shard.ram_bytes for shard in manifest.shards[1:-1])
    return manifest.touched_bytes_per_token != held


def explain_move_dict(
    move: Move, manifest: Manifest, capacities: Sequence[Capacity], current: Plan | None
) -> dict[str, Any]:
    """Return a move in numbers, for --json; what isn't known of the current plan is None. The arguments are
    next_plan's."""
    by_name = _by_name(manifest, capacities, move.plan.settings)
    group = group_size(move.plan.slots, len(capacities), move.plan.num_layers)
    file_bytes = {s.name: s.bytes for s in manifest.shards}
    old = {s.board: s for s in current.sections} if current else {}
    new = {s.board: s for s in move.plan.sections}
    boards = []
    for board in dict.fromkeys([*new, *old, *by_name]):
        loads = move.moved.get(board, ())
        boards.append(
            {
                "board": board,
                "before": _start_end(old.get(board)),
                "after": _start_end(new.get(board)),
                "load": list(loads),
                "load_bytes": sum(file_bytes[name] for name in loads),
            }
        )
    slowest = max(_turns(move.plan, by_name)) / 1e9
    slowest_before = None
    if current and move.token_s_before is not None:
        slowest_before = max(_turns(current, by_name)) / 1e9
    return {
        "changed": move.changed,
        "reason": move.reason,
        "gain": move.gain,
        "model": move.plan.model,
        "epoch_before": current.epoch if current else None,
        "epoch": move.plan.epoch,
        **move.plan.settings.to_dict(),
        "boards": boards,
        "moved_bytes": move.moved_bytes,
        "token_s_before": move.token_s_before,
        "token_s": move.token_s,
        "tokens_per_s_before": None if move.token_s_before is None else _rate(move.token_s_before),
        "tokens_per_s": _rate(move.token_s),
        "group": group,
        "slowest_stage_s_before": slowest_before,
        "slowest_stage_s": slowest,
        "pipelined_tokens_per_s_before": None if slowest_before is None else group * _rate(slowest_before),
        "pipelined_tokens_per_s": group * _rate(slowest),
    }


def explain_move(move: Move, manifest: Manifest, capacities: Sequence[Capacity], current: Plan | None) -> str:
    """Return a move in words: each board's section now and next side by side, what it loads, how fast both are, and
    why."""
    facts = explain_move_dict(move, manifest, capacities, current)
    rows = [("board", "layers now", "next", "to load")]
    for board in facts["boards"]:
        load = size(board["load_bytes"]) if board["load"] else "-"
        rows.append((board["board"], _layers(board["before"]), _layers(board["after"]), load))
    if not move.changed:
        what = f"epoch {move.plan.epoch} stays"
    else:
        what = f"epoch {move.plan.epoch}" + (f" instead of {current.epoch}" if current else "")
    one, many = (
        _speeds(facts[f"{name}_before"], facts[name], move.changed)
        for name in ("tokens_per_s", "pipelined_tokens_per_s")
    )
    return "\n".join(
        [
            f"{move.plan.model} ({move.plan.num_layers} layers) for {move.plan.objective}: {what}",
            "",
            *_table(rows),
            "",
            f"to load:      {size(move.moved_bytes)}",
            f"one answer:   {one} (predicted)",
            f"many at once: {many} together",
            f"{'moved' if move.changed else 'kept'}:".ljust(14) + move.reason,
        ]
    )


def _kept_tokens(manifest: Manifest, context: int) -> list[int]:
    """Return for each layer how many tokens' keys and values a slot keeps; 0 for one that has none."""
    layers = zip(manifest.kv_elements_per_token, manifest.kv_window_tokens, strict=True)
    return [min(context, kept_positions(window, context)) if elements else 0 for elements, window in layers]


def _windows(kept_tokens: Sequence[int], context: int) -> list[str]:
    fewer = sorted({kept for kept in kept_tokens if 0 < kept < context})
    parts = [f"{kept_tokens.count(kept)} of {len(kept_tokens)} layers keep {kept} tokens" for kept in fewer]
    return [f"windows:      {', '.join(parts)} of {context}"] if parts else []


def _start_end(section: Section | None) -> dict[str, int] | None:
    return None if section is None else {"start": section.start, "end": section.end}


def _layers(section: dict[str, int] | None) -> str:
    return "-" if section is None else f"{section['start']}-{section['end']} ({section['end'] - section['start']})"


def _speeds(before: float | None, after: float, changed: bool) -> str:
    now = f"{after:.1f} tokens/s"
    return now if before is None or not changed else f"{before:.1f} tokens/s now, {now} next"


def _answers(count: int) -> str:
    return "one answer" if count == 1 else f"{count} answers"


def _by_name(
    manifest: Manifest, capacities: Sequence[Capacity], settings: Settings
) -> dict[str, tuple[Capacity, Kind]]:
    """Return each board's capacity, and its times: turns too, whatever the plan's objective is."""
    needs = Needs(manifest, replace(settings, objective="throughput"))
    return {c.board: (c, kind) for c, kind in zip(capacities, allowed_kinds(capacities, needs), strict=True)}


def _why_unused(
    plan: Plan, needs: Needs, by_name: dict[str, tuple[Capacity, Kind]], unused: Capacity, slowest_s: float
) -> str:
    name, kind = unused.board, by_name[unused.board][1]
    smallest = min(needs.least(i, i + 1, kind.swaps) for i in range(needs.num_layers))
    if kind.usable_bytes < smallest:
        return (
            f"holds not even one layer: {size(kind.usable_bytes)} of its {size(unused.ram_bytes)} are usable, "
            f"the smallest layer needs {size(smallest)} (an offer of {size(offer_for(smallest))})"
        )
    boards = [*(by_name[b][1] for b in plan.boards), kind]
    now_ns = sum(_times(plan, by_name))
    exact = is_exact(needs, boards)
    after = token_ns_using_all(needs, boards) if exact else None
    if plan.objective == "throughput":
        one_layer = kind.turn.of(0, 1)
        if one_layer > max(_turns(plan, by_name)):
            return (
                f"one layer and a hop take {ms(one_layer / 1e9)} there, more than the slowest stage's "
                f"{ms(slowest_s)}"
            )
        return f"adding {name} wouldn't make the slowest stage faster than {ms(slowest_s)}" + (
            f" and would slow a token from {ms(now_ns / 1e9)} to {ms(after / 1e9)}"
            if after is not None and after > now_ns
            else ""
        )
    if exact and after is not None and after < now_ns <= after + after // ALIKE:
        return f"adding {name} would make a token only {ms((now_ns - after) / 1e9)} faster than {ms(now_ns / 1e9)}"
    if not exact or (after is not None and after < now_ns):
        return "no better plan with it was found (the search is no longer exact with so many different boards)"
    if after is None:
        return f"no split over {', '.join(plan.boards)} and {name} together fits"
    if after > now_ns:
        return f"adding {name} would slow a token from {ms(now_ns / 1e9)} to {ms(after / 1e9)}"
    return f"adding {name} wouldn't make a token faster than {ms(now_ns / 1e9)}"


def _times(plan: Plan, by_name: dict[str, tuple[Capacity, Kind]]) -> list[int]:
    alone = len(plan.sections) == 1
    return [by_name[s.board][1].token.of(s.start, s.end, alone) for s in plan.sections]


def _turns(plan: Plan, by_name: dict[str, tuple[Capacity, Kind]]) -> list[int]:
    alone = len(plan.sections) == 1
    return [by_name[s.board][1].turn.of(s.start, s.end, alone) for s in plan.sections]


def _would_not_fit(plan: Plan, manifest: Manifest, capacities: Sequence[Capacity], needs: Needs) -> list[str]:
    """Return the limits of these boards, all of them used: more slots, more context, fewer boards."""
    texts = []
    settings = plan.settings
    slots = largest_slots(manifest, capacities, settings, _MOST_SLOTS)
    if slots < _MOST_SLOTS:
        texts.append(f"more than {slots} slot{'s' * (slots > 1)} at context {settings.context}")
    # Rounded down to whole steps, so the plan's own context may be above it.
    context = max(largest_context(manifest, capacities, settings, manifest.max_seq_len), settings.context)
    if context + 64 <= manifest.max_seq_len:
        texts.append(f"a context over {context} with {settings.slots} slot{'s' * (settings.slots > 1)}")
    whole = needs.least(0, plan.num_layers, plan.swap_experts)
    largest = max(capacities, key=lambda c: c.ram_bytes)
    if whole > usable_bytes(largest.ram_bytes):
        texts.append(
            f"the model on one board: it needs {size(whole)} (an offer of {size(offer_for(whole))}), "
            f"the largest, {largest.board}, offers {size(largest.ram_bytes)}"
        )
    return texts


def _rate(seconds: float) -> float:
    return 1 / seconds if seconds else 0.0


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
