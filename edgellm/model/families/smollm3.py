"""SmolLM3: Llama with layers that know no positions. Pure."""

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.layer_types import read_layer_types, read_window, windows_of
from edgellm.model.families.llama_like import Positions, default_kv_heads, make_spec
from edgellm.model.families.rotary import rotary_of
from edgellm.model.families.spec import Spec

_SIZES = {
    "hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_hidden_layers": 36,
    "vocab_size": 128256,
}  # fmt: skip


def smollm3(config: Config) -> Spec:
    """Return the Spec of a config of model_type smollm3; raises UnsupportedError."""
    num_layers = config.layers("num_hidden_layers", default=36)
    turns = _which_turn(config, num_layers)
    window = read_window(config, None)
    slide = window > 0 and config.flag("use_sliding_window", False)
    types = read_layer_types(config, num_layers, lambda layer: slide and not turns[layer])
    heads = config.count("num_attention_heads", default=16)
    dim = config.count("head_dim", default=config.count("hidden_size", default=2048) // heads)
    max_seq_len = config.count("max_position_embeddings", default=32768)
    rotary = rotary_of(config.content, dim, max_seq_len, partial=False, theta=2e6)
    bias = config.flag("attention_bias", False)
    return make_spec(
        config, "SmolLM3ForCausalLM", kv_heads=default_kv_heads(config, 4), eps=1e-6, max_seq_len=32768,
        windows=windows_of(types, window), qkv_bias=bias, o_bias=bias, mlp_bias=config.flag("mlp_bias", False),
        positions=Positions((rotary,), lambda layer: 0 if turns[layer] else None), defaults=_SIZES, tied=True,
    )  # fmt: skip


def _which_turn(config: Config, num_layers: int) -> list[bool]:
    """Return of each layer whether it knows positions: `no_rope_layers` has 1 for those that do."""
    stated = config.get("no_rope_layers")
    if stated is None:
        interval = config.count("no_rope_layer_interval", default=4)
        return [(i + 1) % interval != 0 for i in range(num_layers)]
    if not isinstance(stated, list) or len(stated) < num_layers or any(v not in (0, 1) for v in stated):
        raise UnsupportedError(f"no_rope_layers is not a list of 0 or 1 for each of the {num_layers} layers")
    return [bool(value) for value in stated[:num_layers]]
