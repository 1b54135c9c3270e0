"""What the manifest says of each layer besides its shard: what a slot keeps for it, and which of its weights a token
touches; and the same of the layer that drafts."""

from collections.abc import Sequence
from typing import Any

from edgellm.checkpoint.shard import ShardPlan
from edgellm.model.families.mtp import PREFIX
from edgellm.model.families.spec import Layer, Spec
from edgellm.shards.manifest import Mtp


def layer_facts(spec: Spec | None, plans: Sequence[ShardPlan]) -> dict[str, Any]:
    """Return fields of the manifest that have an entry per layer, for a model with `spec` and these shards.

    Only native sections keep less than all positions, or use some of their experts alone. Without a `spec` nothing is
    left out, and a manifest fills that in by itself.
    """
    if spec is None:
        return {}
    by_number = [plan for plan in plans if plan.kind == "layer"]
    experts = tuple(map(_expert_bytes, spec.layers, by_number))
    return {
        "kv_scales_per_token": tuple(layer.kv_scales_per_token for layer in spec.layers),
        "kv_window_tokens": tuple(layer.kv_window_tokens for layer in spec.layers),
        "state_bytes": tuple(layer.state_bytes for layer in spec.layers),
        "touched_bytes_per_token": tuple(map(_touched_bytes, spec.layers, by_number)),
        "expert_bytes": experts if any(experts) else (),
        "kv_sources": spec.kv_sources,
        "row_elements": spec.row_elements,
    }


def _expert_bytes(layer: Layer, plan: ShardPlan) -> int:
    """Return the bytes of a layer's experts."""
    names = {part.weight.name for part in layer.experts.expert_projections} if layer.experts else set()
    return sum(entry.ram_bytes for entry in plan.entries if entry.name in names)


def mtp_facts(spec: Spec | None, plans: Sequence[ShardPlan]) -> Mtp | None:
    """Return what the manifest says of the head for multi-token prediction, for a model with `spec` and these shards;
    None if it has none."""
    if spec is None or spec.mtp is None:
        return None
    head, layer = plans[-1], spec.mtp.layer
    ram_bytes = sum(entry.ram_bytes for entry in head.entries if entry.name.startswith(PREFIX))
    return Mtp(ram_bytes, layer.kv_elements_per_token, layer.kv_scales_per_token)


def _touched_bytes(layer: Layer, plan: ShardPlan) -> int:
    """Return the bytes of a layer's weights that one token is multiplied with: of experts, those that are chosen, and
    none of a table, of which a token takes one row."""
    experts, held = layer.experts, _expert_bytes(layer, plan)
    table = layer.per_layer.table.name if layer.per_layer else None
    rest = plan.ram_bytes - sum(entry.ram_bytes for entry in plan.entries if entry.name == table)
    top_k, count = (experts.router.top_k, experts.router.experts) if experts else (0, 1)
    return rest - held + -(-held * top_k // count)
