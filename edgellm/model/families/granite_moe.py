"""Granite 3's mixtures of experts, without a shared expert and with one. Pure."""

from dataclasses import replace

from edgellm.model.families.config import Config
from edgellm.model.families.expert_layers import experts_of, gated_mlp, packed_experts
from edgellm.model.families.feed_forwards import Experts, GatedMlp, Router
from edgellm.model.families.granite import granite_scales
from edgellm.model.families.llama_like import make_spec
from edgellm.model.families.parts import whole
from edgellm.model.families.pieces import Piece
from edgellm.model.families.spec import Spec


def granite_moe(config: Config) -> Spec:
    """Return the Spec of a config of model_type granitemoe; raises UnsupportedError."""
    return _spec(config, "GraniteMoeForCausalLM", 0)


def granite_moe_shared(config: Config) -> Spec:
    """Return the Spec of a config of model_type granitemoeshared; raises UnsupportedError."""
    shared = config.count("shared_intermediate_size", default=0, least=0)
    return _spec(config, "GraniteMoeSharedForCausalLM", shared)


def granite_experts(config: Config, shared_inner: int) -> Experts:
    """Return the experts of a Granite layer, with a shared one of `shared_inner` unless that is 0: the softmax is over
    the experts chosen. Raises UnsupportedError."""
    hidden, inner = config.count("hidden_size", default=4096), config.count("intermediate_size", default=11008)
    count = config.count("num_local_experts", default=8)
    top_k = config.count("num_experts_per_tok", default=2, most=count)
    router = Router(whole("block_sparse_moe.router", count, hidden), count, top_k, "softmax_of_chosen")
    packed = packed_experts("block_sparse_moe.experts.", count, hidden, inner)
    if not shared_inner:
        return experts_of(packed, router)
    shared = granite_shared_mlp(hidden, shared_inner)
    return experts_of(packed, router, shared=shared, pieces=(*packed.pieces, *shared.pieces))


def granite_shared_mlp(hidden: int, inner: int) -> GatedMlp:
    """Return the MLP that computes every token; transformers has gate and up in one tensor."""
    mlp = gated_mlp("shared_mlp.", hidden, inner, ("gate_linear", "up_linear", "output_linear"))
    fused = "shared_mlp.input_linear.weight"
    return replace(mlp, pieces=(
        Piece(mlp.gate.weight.name, fused, 0, 1, 2 * inner), Piece(mlp.up.weight.name, fused, inner, 1, 2 * inner),
    ))  # fmt: skip


def _spec(config: Config, architecture: str, shared_inner: int) -> Spec:
    bias = config.flag("attention_bias", False)
    experts = granite_experts(config, shared_inner)
    return make_spec(
        config, architecture, kv_heads=None, eps=1e-6, max_seq_len=2048, windows=lambda layer: 0, qkv_bias=bias,
        o_bias=bias, scales=granite_scales(config), feed_forwards=lambda layer: experts,
        defaults={"hidden_size": 4096, "vocab_size": 32000},
    )  # fmt: skip
