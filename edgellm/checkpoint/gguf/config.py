"""A GGUF's metadata as the content of a config.json: one function an architecture, in llama.cpp's names and ours.

Every size is stated, also where it is a config class's default: those defaults are one model's.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from edgellm.checkpoint.gguf.metadata import Metadata
from edgellm.checkpoint.gguf.rope import ReadTensor, rope_parameters
from edgellm.errors import CheckpointError


@dataclass(frozen=True)
class Header:
    """What a config is made of: the metadata, each tensor's shape (slowest dimension first), and a reader of small
    tensors."""

    metadata: Metadata
    shapes: Mapping[str, tuple[int, ...]]
    read: ReadTensor

    def has(self, *parts: str) -> bool:
        """Return whether a tensor of the first layer ends in one of `parts`."""
        return any(f"blk.0.{part}" in self.shapes for part in parts)


@dataclass(frozen=True)
class Sizes:
    """What nearly every architecture states, by its names in transformers' configs."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int

    def settings(self, *without: str) -> dict:
        """Return them as a config's settings."""
        return {name: value for name, value in vars(self).items() if name not in without}


def make_config(header: Header) -> dict:
    """Return the content of a config.json; raises CheckpointError for what can't be said in one, unknown keys among
    them."""
    metadata = header.metadata
    vocab_size = _vocab_size(header)
    config = ARCHITECTURES[metadata.architecture](header)
    metadata.check_rest()
    ends = {name: metadata.token_id(name, vocab_size) for name in ("bos", "eos")}
    return {
        **config,
        "vocab_size": vocab_size,
        "bos_token_id": ends["bos"],
        "eos_token_id": ends["eos"],
        "pad_token_id": None,
        "tie_word_embeddings": "output.weight" not in header.shapes,
    }


def _vocab_size(header: Header) -> int:
    """Return the embedding's rows; the metadata may count the vocabulary without what pads the embedding."""
    header.metadata.count("vocab_size", 1)
    shape = header.shapes.get("token_embd.weight")
    if not shape or len(shape) != 2:
        raise CheckpointError(f"{header.metadata.where}: tensor token_embd.weight is missing or no matrix")
    return shape[0]


def _sizes(header: Header, *, gated: bool = True) -> Sizes:
    """Read the sizes; raises CheckpointError for heads that edgellm can't run."""
    metadata = header.metadata
    hidden = metadata.count("embedding_length")
    heads = metadata.count("attention.head_count")
    head_dim = metadata.count("attention.key_length", max(1, hidden // heads))
    metadata.expect("attention.value_length", head_dim)
    metadata.expect("embedding_length_out", hidden)
    return Sizes(
        hidden_size=hidden,
        intermediate_size=metadata.count("feed_forward_length", None if gated else 4 * hidden),
        num_hidden_layers=metadata.count("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=metadata.count("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=metadata.count("context_length"),
    )


def _plain_scale(header: Header, sizes: Sizes) -> None:
    """Refuse attention scores that aren't divided by the root of the head's size."""
    header.metadata.expect("attention.scale", 0, sizes.head_dim**-0.5)


def _head_dim_is_default(header: Header, sizes: Sizes) -> None:
    """Refuse a head's size that the family's config can't state."""
    if sizes.head_dim * sizes.num_attention_heads != sizes.hidden_size:
        raise CheckpointError(
            f"{header.metadata.where}: {sizes.num_attention_heads} heads of {sizes.head_dim} elements for a hidden "
            f"size of {sizes.hidden_size}, which {header.metadata.architecture} doesn't have"
        )


def _rope(header: Header, sizes: Sizes, *, partial: bool = False) -> dict:
    found = rope_parameters(header.metadata, header.read, sizes.head_dim, sizes.max_position_embeddings)
    if not partial and "partial_rotary_factor" in found:
        raise CheckpointError(
            f"{header.metadata.where}: {header.metadata.key('rope.dimension_count')} is "
            f"{header.metadata.get('rope.dimension_count')} of a head's {sizes.head_dim} elements; "
            f"{header.metadata.architecture} rotates all of them"
        )
    return found


def _window(header: Header, sizes: Sizes) -> int | None:
    """Return the sliding window, None where it is no smaller than the context."""
    window = header.metadata.count("attention.sliding_window", 0, least=0)
    return window if 0 < window < sizes.max_position_embeddings else None


def _rms(header: Header) -> dict:
    eps = header.metadata.number("attention.layer_norm_rms_epsilon")
    header.metadata.expect("attention.layer_norm_epsilon", eps)
    return {"rms_norm_eps": eps}


def _layer_norm(header: Header, name: str) -> dict:
    eps = header.metadata.number("attention.layer_norm_epsilon")
    header.metadata.expect("attention.layer_norm_rms_epsilon", eps)
    return {name: eps}


_QKV_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias")


def _llama(header: Header) -> dict:
    header.metadata.expect("tensor_data_layout", "Meta AI original pth")
    sizes = _sizes(header)
    _plain_scale(header, sizes)
    config = {
        **sizes.settings(),
        **_rms(header),
        "hidden_act": "silu",
        "rope_parameters": _rope(header, sizes),
    }
    if window := _window(header, sizes):  # Mistral has no architecture of its own, and general.name may say anything
        return {"model_type": "mistral", **config, "sliding_window": window}
    return {
        "model_type": "llama",
        **config,
        # llama.cpp takes any of these biases where a tensor has it; a config has them all or none, and those that are
        # missing are zeros.
        "attention_bias": header.has(*_QKV_BIASES, "attn_output.bias"),
        "mlp_bias": header.has("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
    }


def _qwen2(header: Header) -> dict:
    sizes = _sizes(header)
    _plain_scale(header, sizes)
    _head_dim_is_default(header, sizes)
    return {
        "model_type": "qwen2",
        **sizes.settings("head_dim"),
        **_rms(header),
        **_qwen_window(header, sizes),
        "hidden_act": "silu",
        "rope_parameters": _rope(header, sizes),
    }


def _qwen_window(header: Header, sizes: Sizes) -> dict:
    window = _window(header, sizes)
    if not window:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}


def _qwen3(header: Header) -> dict:
    sizes = _sizes(header)
    _plain_scale(header, sizes)
    return {
        "model_type": "qwen3",
        **sizes.settings(),
        **_rms(header),
        **_qwen_window(header, sizes),
        "hidden_act": "silu",
        "attention_bias": header.has(*_QKV_BIASES, "attn_output.bias"),
        "rope_parameters": _rope(header, sizes),
    }


def _experts(header: Header) -> dict:
    """Read what Qwen's mixtures of experts share."""
    metadata = header.metadata
    used = metadata.count("expert_used_count")
    metadata.expect("expert_gating_func", 0, 1)  # softmax
    return {
        "num_experts": metadata.count("expert_count"),
        "num_experts_per_tok": used,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _normalizes_weights(header: Header, default: bool) -> bool:
    value = header.metadata.get("expert_weights_norm")
    header.metadata.expect("expert_weights_norm", False, True)
    return default if value is None else bool(value)


def _qwen2moe(header: Header) -> dict:
    sizes, experts = _sizes(header), _experts(header)
    _plain_scale(header, sizes)
    _head_dim_is_default(header, sizes)
    inner = sizes.intermediate_size
    return {
        "model_type": "qwen2_moe",
        **sizes.settings("head_dim"),
        **experts,
        **_rms(header),
        **_qwen_window(header, sizes),
        "hidden_act": "silu",
        # llama.cpp's defaults.
        "moe_intermediate_size": header.metadata.count(
            "expert_feed_forward_length", max(1, inner // experts["num_experts_per_tok"])
        ),
        "shared_expert_intermediate_size": header.metadata.count("expert_shared_feed_forward_length", inner),
        "norm_topk_prob": _normalizes_weights(header, False),
        "rope_parameters": _rope(header, sizes),
    }


def _qwen3moe(header: Header) -> dict:
    sizes, experts = _sizes(header), _experts(header)
    _plain_scale(header, sizes)
    return {
        "model_type": "qwen3_moe",
        **sizes.settings(),
        **experts,
        **_rms(header),
        **_qwen_window(header, sizes),
        "hidden_act": "silu",
        "attention_bias": header.has(*_QKV_BIASES, "attn_output.bias"),
        "moe_intermediate_size": header.metadata.count(
            "expert_feed_forward_length", max(1, sizes.intermediate_size // experts["num_experts_per_tok"])
        ),
        "norm_topk_prob": _normalizes_weights(header, True),
        "rope_parameters": _rope(header, sizes),
    }


def _phi3(header: Header) -> dict:
    sizes = _sizes(header)
    _plain_scale(header, sizes)
    _head_dim_is_default(header, sizes)
    rope = _rope(header, sizes, partial=True)
    config = {
        "model_type": "phi3",
        **sizes.settings("head_dim"),
        **_rms(header),
        "hidden_act": "silu",
        "sliding_window": _window(header, sizes),
        "rope_parameters": rope,
    }
    if rope["rope_type"] == "longrope":  # as in Phi-3's own config.json
        config["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    return config


def _gpt2(header: Header) -> dict:
    sizes = _sizes(header, gated=False)
    _plain_scale(header, sizes)
    _head_dim_is_default(header, sizes)
    header.metadata.expect("attention.head_count_kv", sizes.num_attention_heads)
    return {
        "model_type": "gpt2",
        "n_embd": sizes.hidden_size,
        "n_layer": sizes.num_hidden_layers,
        "n_head": sizes.num_attention_heads,
        "n_positions": sizes.max_position_embeddings,
        "n_inner": sizes.intermediate_size,
        "activation_function": "gelu_new",
        **_layer_norm(header, "layer_norm_epsilon"),
    }


def _gemma(header: Header, layers_of_largest: int) -> tuple[Sizes, dict]:
    """Read what Gemma 2 and 3 share. `layers_of_largest` tells the model whose scores are scaled by another size than
    the head's: no file says it, and llama.cpp goes by the layers too."""
    sizes, metadata = _sizes(header), header.metadata
    largest = sizes.num_hidden_layers == layers_of_largest
    scalar: float = sizes.hidden_size // sizes.num_attention_heads if largest else sizes.head_dim
    if stated := metadata.number("attention.scale", 0.0):
        scalar = round(stated**-2, 2)
    caps = {name: metadata.number(name, 0.0) or None for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    return sizes, {
        **sizes.settings(),
        **_rms(header),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        **caps,
    }


def _layer_types(header: Header, sizes: Sizes, period: int, window: int | None) -> dict:
    """Return which layers have a window: all but the last of every `period`, unless the file says otherwise."""
    metadata, layers = header.metadata, sizes.num_hidden_layers
    stated = metadata.raw("attention.sliding_window_pattern")
    if isinstance(stated, list):
        if len(stated) < layers or any(type(v) not in (bool, int) for v in stated):
            raise CheckpointError(
                f"{metadata.where}: {metadata.key('attention.sliding_window_pattern')} has {len(stated)} entries, "
                f"expected true or false for each of {layers} layers"
            )
        slides = [bool(v) for v in stated[:layers]]
    else:
        period = metadata.count("attention.sliding_window_pattern", period)
        slides = [(i + 1) % period != 0 for i in range(layers)]
    if window is None:
        return {"layer_types": ["full_attention"] * layers, "sliding_window": sizes.max_position_embeddings}
    return {
        "layer_types": ["sliding_attention" if s else "full_attention" for s in slides],
        "sliding_window": window,
    }


def _gemma2(header: Header) -> dict:
    sizes, config = _gemma(header, layers_of_largest=46)
    for name, default in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
        if header.metadata.get(name) is None:  # llama.cpp's and the model's own
            config[name] = default
    window = header.metadata.count("attention.sliding_window", 4096, least=0) or None
    return {
        "model_type": "gemma2",
        **config,
        **_layer_types(header, sizes, 2, window),
        "rope_parameters": _rope(header, sizes),
    }


def _gemma3(header: Header) -> dict:
    sizes, config = _gemma(header, layers_of_largest=62)
    window = header.metadata.count("attention.sliding_window", 0, least=0) or None
    # Layers with a window have a rotary base of their own and no scaling; without windows there is one for all.
    local = header.metadata.number("rope.freq_base_swa", 10000.0)
    return {
        "model_type": "gemma3_text",
        **config,
        **_layer_types(header, sizes, 6, window),
        "rope_parameters": {
            "full_attention": _rope(header, sizes),
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }


def _falcon(header: Header) -> dict:
    metadata, sizes = header.metadata, _sizes(header, gated=False)
    _plain_scale(header, sizes)
    _head_dim_is_default(header, sizes)
    metadata.expect("tensor_data_layout", "jploski")
    metadata.expect("use_parallel_residual", True)
    kv_heads = metadata.count("attention.head_count_kv", 1)
    grouped = kv_heads > 1  # Falcon 40B and later, with two norms or with one
    return {
        "model_type": "falcon",
        **sizes.settings("head_dim", "intermediate_size", "num_key_value_heads"),
        "ffn_hidden_size": sizes.intermediate_size,
        "num_kv_heads": kv_heads,
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": 2 if header.has("attn_norm_2.weight") else 1,
        "multi_query": not grouped,
        "parallel_attn": True,
        "alibi": False,
        "bias": header.has("attn_qkv.bias"),
        "activation": "gelu",
        **_layer_norm(header, "layer_norm_epsilon"),
        "rope_parameters": _rope(header, sizes),
    }


def _bloom(header: Header) -> dict:
    sizes = _sizes(header, gated=False)
    _plain_scale(header, sizes)
    _head_dim_is_default(header, sizes)
    header.metadata.expect("attention.head_count_kv", sizes.num_attention_heads)
    header.metadata.expect("feed_forward_length", 4 * sizes.hidden_size)
    header.metadata.expect("attention.max_alibi_bias", 0, 8)
    return {
        "model_type": "bloom",
        "hidden_size": sizes.hidden_size,
        "n_layer": sizes.num_hidden_layers,
        "n_head": sizes.num_attention_heads,
        "max_position_embeddings": sizes.max_position_embeddings,
        **_layer_norm(header, "layer_norm_epsilon"),
    }


def _stablelm(header: Header) -> dict:
    metadata, sizes = header.metadata, _sizes(header)
    _plain_scale(header, sizes)
    _head_dim_is_default(header, sizes)
    parallel = not header.has("ffn_norm.weight")  # one norm for both, so both read the same
    metadata.expect("use_parallel_residual", parallel)
    return {
        "model_type": "stablelm",
        **sizes.settings("head_dim"),
        **_layer_norm(header, "layer_norm_eps"),
        "hidden_act": "silu",
        "use_parallel_residual": parallel,
        "use_qkv_bias": header.has(*_QKV_BIASES),
        "qk_layernorm": header.has("attn_q_norm.weight"),
        "rope_parameters": {"partial_rotary_factor": 1.0} | _rope(header, sizes, partial=True),
    }


def _starcoder2(header: Header) -> dict:
    sizes = _sizes(header)
    _plain_scale(header, sizes)
    _head_dim_is_default(header, sizes)
    return {
        "model_type": "starcoder2",
        **sizes.settings("head_dim"),
        **_layer_norm(header, "norm_epsilon"),
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": header.has(*_QKV_BIASES, "ffn_up.bias"),
        "sliding_window": _window(header, sizes),
        "rope_parameters": _rope(header, sizes),
    }


def _nemotron(header: Header) -> dict:
    sizes = _sizes(header)
    _plain_scale(header, sizes)
    return {
        "model_type": "nemotron",
        **sizes.settings(),
        **_layer_norm(header, "norm_eps"),
        "hidden_act": "relu2",
        "attention_bias": header.has(*_QKV_BIASES, "attn_output.bias"),
        "mlp_bias": header.has("ffn_up.bias", "ffn_down.bias"),
        "rope_parameters": {"partial_rotary_factor": 1.0} | _rope(header, sizes, partial=True),
    }


ARCHITECTURES: dict[str, Callable[[Header], dict]] = {
    "bloom": _bloom, "falcon": _falcon, "gemma2": _gemma2, "gemma3": _gemma3, "gpt2": _gpt2, "llama": _llama,
    "nemotron": _nemotron, "phi3": _phi3, "qwen2": _qwen2, "qwen2moe": _qwen2moe, "qwen3": _qwen3,
    "qwen3moe": _qwen3moe, "stablelm": _stablelm, "starcoder2": _starcoder2,
}  # fmt: skip
