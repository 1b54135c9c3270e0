"""From a GGUF's header to a config.json, for Gemma 4: sizes differ from layer to layer."""

import numpy as np

from edgellm.checkpoint.gguf.expert_configs import SOFTMAX, read_experts
from edgellm.checkpoint.gguf.header import Header, read_rms_eps
from edgellm.errors import CheckpointError

_FULL, _SLIDING = "full_attention", "sliding_attention"
_STILL = 1e30  # a divisor of what doesn't turn


def gemma4(header: Header) -> dict:
    """Return the config of Gemma 4 (text). Raises CheckpointError."""
    metadata = header.metadata
    layers, heads = metadata.count("block_count"), metadata.count("attention.head_count")
    types = [_SLIDING if slides else _FULL for slides in _flags(header, "attention.sliding_window_pattern", layers)]
    if types[-1] != _FULL:
        raise CheckpointError(f"{metadata.where}: the last layer has a window, which no Gemma 4 has")
    full, window = _head_dim(header, ""), _head_dim(header, "_swa")
    shared = metadata.count("attention.shared_kv_layers", 0, least=0)
    kv_heads = _counts(header, "attention.head_count_kv", layers, heads)
    inner = _counts(header, "feed_forward_length", layers, None)
    own = inner[: max(1, layers - shared)]
    wide = inner[-1] != inner[0]
    if set(own) != {inner[0]} or set(inner[len(own) :]) - {inner[0] * (2 if wide else 1)}:
        key = metadata.key("feed_forward_length")
        raise CheckpointError(f"{metadata.where}: {key} isn't one size, or twice that where layers share keys")
    values = [i for i in range(layers - shared) if f"blk.{i}.attn_v.weight" not in header.shapes]
    if values and values != [i for i in range(layers - shared) if types[i] == _FULL]:
        raise CheckpointError(f"{metadata.where}: tensor blk.{values[0]}.attn_v.weight is missing")
    metadata.expect("attention.scale", 0, 1)
    return {
        "model_type": "gemma4_text",
        "hidden_size": metadata.count("embedding_length"),
        "intermediate_size": inner[0],
        "use_double_wide_mlp": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": next((n for n, of in zip(kv_heads, types, strict=True) if of == _SLIDING), kv_heads[-1]),
        "head_dim": window,
        "per_layer_config": {
            str(i): {"head_dim": full, "num_key_value_heads": kv_heads[i]} for i in range(layers) if types[i] == _FULL
        },
        "max_position_embeddings": metadata.count("context_length"),
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": header.has("attn_q.bias"),
        "attention_k_eq_v": bool(values),
        "num_kv_shared_layers": shared,
        "layer_types": types,
        "sliding_window": metadata.count("attention.sliding_window"),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 0.0) or None,
        "hidden_size_per_layer_input": metadata.count("embedding_length_per_layer_input", 0, least=0),
        "vocab_size_per_layer_input": header.shapes.get("token_embd.weight", (0,))[0],
        "rope_parameters": {
            _FULL: _rope(header, full),
            _SLIDING: {"rope_type": "default", "rope_theta": metadata.number("rope.freq_base_swa", 10000.0)},
        },
        **read_rms_eps(header),
        **_experts(header),
    }


def _experts(header: Header) -> dict:
    if not header.metadata.count("expert_count", 0, least=0):
        return {"enable_moe_block": False}
    found = read_experts(header, SOFTMAX)
    return {
        "enable_moe_block": True,
        "num_experts": found["num_experts"],
        "top_k_experts": found["num_experts_per_tok"],
        "moe_intermediate_size": header.metadata.count("expert_feed_forward_length"),
    }


def _head_dim(header: Header, suffix: str) -> int:
    """Return the size of heads, and check that all of their dimensions count as turned."""
    metadata = header.metadata
    found = metadata.count(f"attention.key_length{suffix}")
    metadata.expect(f"attention.value_length{suffix}", found)
    metadata.expect(f"rope.dimension_count{suffix}", found)
    return found


def _rope(header: Header, head_dim: int) -> dict:
    """Return the rotary parameters of layers that see every token: of the divisors, the first ones are 1, and those of
    dimensions that don't turn are huge."""
    divisors = header.read("rope_freqs.weight")
    turning = head_dim // 2
    if divisors is not None:
        divisors = divisors.reshape(-1)
        turning = int(np.count_nonzero(divisors == 1))
        first, rest = divisors[:turning], divisors[turning:]
        if len(divisors) != head_dim // 2 or (first != 1).any() or (rest < 0.9 * _STILL).any():
            raise CheckpointError(
                f"{header.metadata.where}: rope_freqs.weight isn't {head_dim // 2} divisors, of which the first ones "
                "are 1 and the others 1e30. Use the model's safetensors folder."
            )
    theta = header.metadata.number("rope.freq_base", 1e6)
    return {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": 2 * turning / head_dim}


def _counts(header: Header, name: str, layers: int, default: int | None) -> list[int]:
    """Return a whole number for each layer; a file may state one for all."""
    metadata = header.metadata
    stated = metadata.raw(name)
    if not isinstance(stated, list):
        return [metadata.count(name, default)] * layers
    if len(stated) != layers or any(type(n) is not int or not 0 < n < 1 << 24 for n in stated):
        key = metadata.key(name)
        raise CheckpointError(f"{metadata.where}: {key} isn't a number over 0 for each of {layers} layers")
    return stated


def _flags(header: Header, name: str, layers: int) -> list[bool]:
    stated = header.metadata.raw(name)
    if not isinstance(stated, list) or len(stated) != layers or any(type(v) not in (bool, int) for v in stated):
        key = header.metadata.key(name)
        raise CheckpointError(f"{header.metadata.where}: {key} isn't true or false for each of {layers} layers")
    return [bool(v) for v in stated]
