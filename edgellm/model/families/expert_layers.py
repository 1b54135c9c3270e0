"""Feed-forwards with experts as the families have them: where their tensors are, and how their routers choose. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.feed_forwards import Experts, FeedForward, GatedMlp, Router
from edgellm.model.families.parts import Matrix, Projection, Vector, whole
from edgellm.model.families.pieces import Piece

_NAMES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Packed:
    """Experts' projections, and which parts of transformers' tensors these are."""

    gate: Projection
    up: Projection
    down: Projection
    pieces: tuple[Piece, ...]


def packed_experts(
    prefix: str, count: int, hidden: int, inner: int, biased: bool = False, interleaved: bool = False
) -> Packed:
    """Return the projections of `count` experts under `prefix`, such as "mlp.experts.".

    transformers has gate and up in one tensor, gate first. `interleaved`, as gpt-oss has them: their rows take turns,
    and all tensors are transposed.
    """

    def projection(name: str, rows: int, columns: int) -> Projection:
        bias = Vector(f"{prefix}{name}_proj.bias", count * rows, (count, rows)) if biased else None
        return Projection(Matrix(f"{prefix}{name}_proj.weight", rows, columns, count), 0, rows, bias)

    gate, up = projection("gate", inner, hidden), projection("up", inner, hidden)
    down = projection("down", hidden, inner)
    step, first_up = (2, 1) if interleaved else (1, inner)
    pieces = []
    for part, name, first, every, rows in (
        (gate, "gate_up_proj", 0, step, 2 * inner),
        (up, "gate_up_proj", first_up, step, 2 * inner),
        (down, "down_proj", 0, 1, hidden),
    ):
        tensor = f"{prefix}{name}"
        pieces.append(Piece(part.weight.name, tensor, first, every, rows, transposed=interleaved))
        if part.bias:
            pieces.append(Piece(part.bias.name, f"{tensor}_bias", first, every, rows, is_bias=True))
    return Packed(gate, up, down, tuple(pieces))


def experts_of(packed: Packed, router: Router, **options) -> Experts:
    """Return experts with these projections; `options` are the other fields of Experts."""
    options = {"pieces": packed.pieces, **options}
    return Experts(router, packed.gate, packed.up, packed.down, **options)


def gated_mlp(prefix: str, hidden: int, inner: int, names: tuple[str, str, str] = _NAMES) -> GatedMlp:
    """Return an MLP with a gate, of three matrices under `prefix`: gate, up and down by `names`."""
    gate, up, down = names
    return GatedMlp(
        whole(f"{prefix}{gate}", inner, hidden), whole(f"{prefix}{up}", inner, hidden),
        whole(f"{prefix}{down}", hidden, inner),
    )  # fmt: skip


def qwen_experts(
    config: Config, *, top_k: int, count: int, inner: int, normalises: bool | None, shared_inner: int = 0
) -> Experts:
    """Return the experts of Qwen3-MoE, or those of Qwen3-Next and Qwen3.5-MoE, which have a shared one with a gate. The
    other arguments are the family's defaults, `shared_inner` the size of the shared one.

    `normalises`: whether the weights of the experts chosen are divided by their sum where the config doesn't say; None
    where they are whatever it says. Raises UnsupportedError.
    """
    hidden = config.count("hidden_size")
    count = config.count("num_experts", "num_local_experts", default=count)
    top_k = config.count("num_experts_per_tok", default=top_k, most=count)
    normalise = True if normalises is None else config.flag("norm_topk_prob", normalises)
    router = Router(whole("mlp.gate", count, hidden), count, top_k, normalise=normalise)
    packed = packed_experts("mlp.experts.", count, hidden, config.count("moe_intermediate_size", default=inner))
    if not shared_inner:
        return experts_of(packed, router)
    shared = config.count("shared_expert_intermediate_size", default=shared_inner)
    return experts_of(
        packed, router, shared=gated_mlp("mlp.shared_expert.", hidden, shared),
        shared_gate=whole("mlp.shared_expert_gate", 1, hidden),
    )  # fmt: skip


def is_sparse(config: Config, layer: int) -> bool:
    """Return whether a layer of Qwen's has experts, by `decoder_sparse_step` and `mlp_only_layers`. Raises
    UnsupportedError."""
    only = config.get("mlp_only_layers") or []
    if not isinstance(only, list) or not all(type(i) is int for i in only):
        raise UnsupportedError("mlp_only_layers is no list of layers' numbers")
    return layer not in only and (layer + 1) % config.count("decoder_sparse_step", default=1) == 0


def lfm2_feed_forward(config: Config, layer: int) -> FeedForward:
    """Return the feed-forward of a layer of LFM2-MoE: dense in the first `num_dense_layers`, then experts with sigmoids
    and, unless `use_expert_bias` is false, a correction. Raises UnsupportedError."""
    hidden = config.count("hidden_size", default=2048)
    if layer < config.count("num_dense_layers", default=2, least=0):
        return gated_mlp("feed_forward.", hidden, config.count("intermediate_size", default=7168), ("w1", "w3", "w2"))
    count = config.count("num_experts", default=32)
    top_k = config.count("num_experts_per_tok", default=4, most=count)
    corrected = config.flag("use_expert_bias", True)
    router = Router(
        whole("feed_forward.gate", count, hidden), count, top_k, "sigmoid", config.flag("norm_topk_prob", True),
        config.number("routed_scaling_factor", 1.0), Vector("feed_forward.expert_bias", count) if corrected else None,
    )  # fmt: skip
    inner = config.count("moe_intermediate_size", default=1792)
    return experts_of(packed_experts("feed_forward.experts.", count, hidden, inner), router)


def sigmoid_groups(
    config: Config, layer: int, *, count: int, inner: int, moe_inner: int, first_dense: int, groups: int = 1,
    top_groups: int = 1, scale: float = 1.0, top_k: int = 8, dense: Callable[[int], bool] | None = None,
) -> FeedForward:  # fmt: skip
    """Return the feed-forward of a layer of GLM-4-MoE, GLM-4.7-Flash or DeepSeek-V3: dense in the first
    `first_k_dense_replace`, or where `dense` says so, then experts in groups, with sigmoids and a correction, beside a
    shared one. The other arguments are the family's defaults. Raises UnsupportedError."""
    hidden = config.count("hidden_size")
    if dense is None:
        count_dense = config.count("first_k_dense_replace", default=first_dense, least=0)
        is_dense = layer < count_dense
    else:
        is_dense = dense(layer)
    if is_dense:
        return gated_mlp("mlp.", hidden, config.count("intermediate_size", default=inner))
    count = config.count("n_routed_experts", "num_local_experts", "num_experts", default=count)
    groups = config.count("n_group", default=groups)
    top_k = config.count("num_experts_per_tok", default=top_k, most=count)
    router = Router(
        whole("mlp.gate", count, hidden), count, top_k, "sigmoid",
        config.flag("norm_topk_prob", True), config.number("routed_scaling_factor", scale),
        Vector("mlp.gate.e_score_correction_bias", count), groups, config.count("topk_group", default=top_groups),
    )  # fmt: skip
    check_groups(router)
    moe_inner = config.count("moe_intermediate_size", default=moe_inner)
    shared = moe_inner * config.count("n_shared_experts", default=1)
    return experts_of(
        packed_experts("mlp.experts.", count, hidden, moe_inner), router,
        shared=gated_mlp("mlp.shared_experts.", hidden, shared),
    )  # fmt: skip


def softmax_groups(config: Config, layer: int) -> FeedForward:
    """Return the feed-forward of a layer of DeepSeek-V2: dense in the first `first_k_dense_replace`, then experts
    beside shared ones, chosen by a softmax, of the best groups alone if `topk_method` says so. Raises
    UnsupportedError."""
    hidden = config.count("hidden_size", default=4096)
    if layer < config.count("first_k_dense_replace", default=0, least=0):
        return gated_mlp("mlp.", hidden, config.count("intermediate_size", default=11008))
    count = config.count("n_routed_experts", "num_experts", default=64)
    config.expect("topk_method", "greedy", "greedy", "group_limited_greedy")
    grouped = config.content.get("topk_method") == "group_limited_greedy"
    router = Router(
        whole("mlp.gate", count, hidden), count, config.count("num_experts_per_tok", most=count),
        scale=config.number("routed_scaling_factor", 1.0), groups=config.count("n_group") if grouped else 1,
        top_groups=config.count("topk_group") if grouped else 1, group_by_best=True,
    )  # fmt: skip
    check_groups(router)
    inner = config.count("moe_intermediate_size", default=1407)
    return experts_of(
        packed_experts("mlp.experts.", count, hidden, inner), router,
        shared=gated_mlp("mlp.shared_experts.", hidden, inner * config.count("n_shared_experts", default=2)),
    )  # fmt: skip


def check_groups(router: Router) -> None:
    """Raise UnsupportedError for groups that can't be chosen from."""
    size, rest = divmod(router.experts, router.groups)
    if rest or (router.groups > 1 and size < 2 and not router.group_by_best) or router.top_groups > router.groups:
        raise UnsupportedError(f"{router.experts} experts in {router.groups} groups, {router.top_groups} chosen")
    if router.top_k > size * router.top_groups:
        raise UnsupportedError(f"{router.top_k} experts of {router.top_groups} groups of {size}")
