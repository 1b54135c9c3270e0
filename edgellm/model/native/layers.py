"""From a layer's description to the native library's: the fields of a LayerSpec of kernels/abi.h."""

from typing import TYPE_CHECKING

import numpy as np

from edgellm.kernels.abi import constants
from edgellm.model.families.feed_forwards import ACTIVATIONS, SCORINGS, Apart, Experts, FeedForward, GatedMlp, PlainMlp
from edgellm.model.families.mixers import Attention, DeltaRule, LatentAttention, Mamba2, Mixer, Recurrent, ShortConv
from edgellm.model.families.parts import Vector
from edgellm.model.families.per_layer import PerLayer
from edgellm.model.families.spec import Layer, Spec
from edgellm.model.native import abi

if TYPE_CHECKING:
    from edgellm.model.native.load import Tensors


def layer_fields(spec: Spec, layer: Layer, tensors: "Tensors") -> abi.Fields:
    """Return the fields of a LayerSpec; `tensors` keeps what they point to."""
    scale = float(tensors.vectors[layer.output_scale.name].reshape(())) if layer.output_scale else 1.0
    return dict(
        before_mixer=tensors.norm(layer.before_mixer), after_mixer=tensors.norm(layer.after_mixer),
        before_feed_forward=tensors.norm(layer.before_feed_forward),
        after_feed_forward=tensors.norm(layer.after_feed_forward),
        residual_scale=layer.residual_scale, output_scale=scale,
        **_mixer(spec, layer.mixer, tensors), **_feed_forward(layer.feed_forward, tensors),
        per_layer=_per_layer(layer.per_layer, tensors),
    )  # fmt: skip


def _mixer(spec: Spec, mixer: Mixer | None, tensors: "Tensors") -> abi.Fields:
    if mixer is None:
        return {"mixer": constants.NO_MIXER}
    if isinstance(mixer, Attention):
        return {"mixer": constants.ATTENTION, "attention": _attention(spec, mixer, tensors)}
    if isinstance(mixer, LatentAttention):
        return {"mixer": constants.LATENT_ATTENTION, "latent": _latent(mixer, tensors)}
    kind, fields = _recurrent(mixer, tensors)
    return {"mixer": kind, "recurrent": _shared(mixer, tensors) | fields}


def _recurrent(part: DeltaRule | ShortConv | Mamba2, tensors: "Tensors") -> tuple[int, abi.Fields]:
    """Return the kind of Mixer, and the fields of a RecurrentSpec that this kind alone has."""
    if isinstance(part, ShortConv):
        return constants.SHORT_CONV, {"in": tensors.projection(part.inner), "conv_bias": tensors.floats(part.conv_bias)}
    gates = dict(rate=_rate(part.a_log, tensors), dt_bias=tensors.floats(part.dt_bias),
                 norm=abi.floats(tensors.norm_weight(part.norm)))  # fmt: skip
    if isinstance(part, DeltaRule):
        return constants.DELTA_RULE, gates | {
            "in": tensors.projection(part.qkv), "z": tensors.projection(part.z), "a": tensors.projection(part.a),
            "b": tensors.projection(part.b), "interleaved": part.interleaved, "tiled": part.tiled,
            "key_heads": part.key_heads, "value_heads": part.value_heads, "key_dim": part.key_dim,
            "value_dim": part.value_dim,
        }  # fmt: skip
    least, most = part.dt_limits
    return constants.MAMBA2, gates | {
        "in": tensors.projection(part.inner), "conv_bias": tensors.floats(part.conv_bias), "d": tensors.floats(part.d),
        "key_heads": part.groups, "value_heads": part.heads, "key_dim": part.state_dim, "value_dim": part.head_dim,
        "norm_groups": part.norm_groups, "gate_first": part.gate_first, "least_dt": least, "most_dt": most,
    }  # fmt: skip


def _shared(part: Recurrent, tensors: "Tensors") -> abi.Fields:
    assert isinstance(part, DeltaRule | ShortConv | Mamba2)
    conv = tensors.vectors[part.conv.name].reshape(part.channels, part.kernel)
    return dict(channels=part.channels, kernel=part.kernel, out=tensors.projection(part.out),
                conv=abi.floats(tensors.keep(np.ascontiguousarray(conv.T))))  # fmt: skip


def _rate(a_log: Vector, tensors: "Tensors") -> abi.Fields:
    # In float64, because NumPy's powers in float32 differ from processor to processor.
    return abi.floats(tensors.keep(np.exp(tensors.vectors[a_log.name].astype(np.float64)).astype(np.float32)))


def _attention(spec: Spec, part: Attention, tensors: "Tensors") -> abi.Fields:
    q_norm, k_norm = (abi.floats(tensors.norm_weight(n)) if n else {} for n in (part.q_norm, part.k_norm))
    v_norm = abi.floats(tensors.keep(np.ones(part.head_dim, np.float32))) if part.v_norm and part.k else {}
    scales = abi.floats(tensors.keep(np.array(part.query_scales, np.float32))) if part.query_scales else {}
    return dict(
        heads=part.heads, kv_heads=part.kv_heads, head_dim=part.head_dim,
        rotary_dim=0 if part.rope is None else spec.rotaries[part.rope].rotary_dim,
        rope=constants.NO_ROPE if part.rope is None else part.rope, window=part.window,
        source=0 if part.source is None else part.source + 1, shared=part.shared,
        interleaved=part.interleaved, gated=part.gated, scale=part.scale, soft_cap=part.soft_cap,
        q=tensors.projection(part.q), k=tensors.projection(part.k), v=tensors.projection(part.v),
        o=tensors.projection(part.o), q_norm=q_norm, k_norm=k_norm, v_norm=v_norm, sinks=tensors.floats(part.sinks),
        query_scales=scales, scale_every=part.scale_every,
    )  # fmt: skip


def _latent(part: LatentAttention, tensors: "Tensors") -> abi.Fields:
    return dict(
        heads=part.heads, nope_dim=part.nope_dim, rope_dim=part.rope_dim, value_dim=part.value_dim, rank=part.rank,
        rope=part.rope, interleaved=part.interleaved, scale=part.scale, eps=part.eps,
        q_a=tensors.projection(part.q_a), q=tensors.projection(part.q), kv_a=tensors.projection(part.kv_a),
        k_b=tensors.projection(part.k_b), v_b=tensors.projection(part.v_b), o=tensors.projection(part.o),
        q_norm=abi.floats(tensors.norm_weight(part.q_norm)) if part.q_norm else {},
        kv_norm=abi.floats(tensors.norm_weight(part.kv_norm)),
    )  # fmt: skip


def _feed_forward(part: FeedForward | None, tensors: "Tensors") -> abi.Fields:
    if part is None:
        return {}
    if isinstance(part, GatedMlp | PlainMlp):
        return {"mlp": _mlp(part, tensors)}
    shared = {"mlp": _mlp(part.shared, tensors)} if part.shared else {}
    return {"experts": _experts(part, tensors), **shared}


def _experts(part: Experts, tensors: "Tensors") -> abi.Fields:
    router = part.router
    return dict(
        count=router.experts, top_k=router.top_k, groups=router.groups, top_groups=router.top_groups,
        group_by_best=router.group_by_best, normalise=router.normalise, scoring=SCORINGS.index(router.scoring),
        scale=router.scale,
        router=tensors.projection(router.weight), correction=tensors.floats(router.correction),
        experts=_mlp(part, tensors), shared_gate=tensors.projection(part.shared_gate),
        expert_scales=tensors.floats(router.expert_scales), **(_apart(part.apart, tensors) if part.apart else {}),
    )  # fmt: skip


def _apart(part: Apart, tensors: "Tensors") -> abi.Fields:
    scale = tensors.vectors[part.router_scale.name] * np.float32(part.router_factor)
    return dict(
        router_norm=abi.floats(tensors.keep(scale)), before=tensors.norm(part.before),
        after_shared=tensors.norm(part.after_shared), after=tensors.norm(part.after),
    )  # fmt: skip


def _per_layer(part: PerLayer | None, tensors: "Tensors") -> abi.Fields:
    if part is None:
        return {}
    return dict(
        table=abi.projection(tensors.weights[part.table.name]), model=tensors.projection(part.model),
        gate=tensors.projection(part.gate), projection=tensors.projection(part.projection),
        norm=abi.floats(tensors.norm_weight(part.norm)), after=tensors.norm(part.after),
        activation=ACTIVATIONS.index(part.activation), table_scale=part.table_scale, model_scale=part.model_scale,
        scale=part.scale,
    )  # fmt: skip


def _mlp(part: GatedMlp | PlainMlp | Experts, tensors: "Tensors") -> abi.Fields:
    gate, limit = (None, 0.0) if isinstance(part, PlainMlp) else (part.gate, part.limit)
    return dict(
        activation=ACTIVATIONS.index(part.activation), limit=limit, gate=tensors.projection(gate),
        up=tensors.projection(part.up), down=tensors.projection(part.down),
    )  # fmt: skip
