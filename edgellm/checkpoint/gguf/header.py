"""Header values that architectures share: sizes, norms, rotary parameters, windows, and which biases there are."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

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


def read_sizes(header: Header, *, gated: bool = True) -> Sizes:
    """Read the sizes; raises CheckpointError for heads that edgellm can't run."""
    metadata = header.metadata
    hidden = metadata.count("embedding_length")
    heads = metadata.count("attention.head_count")
    head_dim = metadata.count("attention.key_length", max(1, hidden // heads))
    if metadata.get("attention.key_length") is None and hidden % heads:
        raise CheckpointError(
            f"{metadata.where}: {metadata.key('embedding_length')} is {hidden}, not a multiple of the {heads} heads "
            f"({metadata.key('attention.head_count')})"
        )
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


def decoder_layers(header: Header) -> int:
    """Return how many of the file's layers are the decoder's: those behind them predict further tokens. Raises
    CheckpointError if there are no others."""
    metadata = header.metadata
    count, extra = metadata.count("block_count"), metadata.count("nextn_predict_layers", 0, least=0)
    if extra >= count:
        raise CheckpointError(f"{metadata.where}: {metadata.key('nextn_predict_layers')} is {extra}, of {count} layers")
    return count - extra


def without_extra_layers(header: Header, sizes: Sizes) -> tuple[Sizes, int]:
    """Return the sizes of the decoder alone, and how many layers predict further tokens. Raises CheckpointError."""
    layers = decoder_layers(header)
    return replace(sizes, num_hidden_layers=layers), sizes.num_hidden_layers - layers


def expect_plain_scale(header: Header, sizes: Sizes) -> None:
    """Refuse attention scores that aren't divided by the root of the head's size."""
    header.metadata.expect("attention.scale", 0, sizes.head_dim**-0.5)


def expect_default_head_dim(header: Header, sizes: Sizes) -> None:
    """Refuse a head's size that the family's config can't state."""
    if sizes.head_dim * sizes.num_attention_heads != sizes.hidden_size:
        key = header.metadata.key
        raise CheckpointError(
            f"{header.metadata.where}: {key('attention.head_count')} is {sizes.num_attention_heads} and a head has "
            f"{sizes.head_dim} elements, but {key('embedding_length')} is {sizes.hidden_size}; it must be their product"
        )


def read_rope(header: Header, sizes: Sizes, *, partial: bool = False) -> dict:
    found = rope_parameters(header.metadata, header.read, sizes.head_dim, sizes.max_position_embeddings)
    if not partial and "partial_rotary_factor" in found:
        raise CheckpointError(
            f"{header.metadata.where}: {header.metadata.key('rope.dimension_count')} is "
            f"{header.metadata.get('rope.dimension_count')} of a head's {sizes.head_dim} elements; "
            f"{header.metadata.architecture} rotates all of them"
        )
    return found


def read_window(header: Header, sizes: Sizes) -> int | None:
    """Return the sliding window, None where it is no smaller than the context."""
    window = header.metadata.count("attention.sliding_window", 0, least=0)
    return window if 0 < window < sizes.max_position_embeddings else None


def read_rms_eps(header: Header) -> dict:
    eps = header.metadata.number("attention.layer_norm_rms_epsilon")
    header.metadata.expect("attention.layer_norm_epsilon", eps)
    return {"rms_norm_eps": eps}


def read_layer_norm_eps(header: Header, name: str) -> dict:
    eps = header.metadata.number("attention.layer_norm_epsilon")
    header.metadata.expect("attention.layer_norm_rms_epsilon", eps)
    return {name: eps}


def read_scale(header: Header, name: str, default: float) -> float:
    """Return a multiplier as the decimal number that was rounded to float32; `default` for 0 too."""
    value = header.metadata.number(name, 0.0)
    return float(f"{value:.7g}") if value else default


QKV_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias")


def qwen_window(header: Header, sizes: Sizes) -> dict:
    window = read_window(header, sizes)
    if not window:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}


def layer_types(header: Header, sizes: Sizes, period: int, window: int | None) -> dict:
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
