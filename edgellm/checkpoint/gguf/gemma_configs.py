"""From a GGUF's header to a config.json, for the Gemmas: one function per architecture."""

from edgellm.checkpoint.gguf.header import (
    Header,
    Sizes,
    expect_plain_scale,
    layer_types,
    read_rms_eps,
    read_rope,
    read_sizes,
)


def gemma(header: Header) -> dict:
    """Return the config of Gemma."""
    sizes = read_sizes(header)
    expect_plain_scale(header, sizes)
    return {
        "model_type": "gemma",
        **sizes.settings(),
        **read_rms_eps(header),
        "hidden_act": "gelu_pytorch_tanh",
        "rope_parameters": read_rope(header, sizes),
    }


def _capped(header: Header, layers_of_largest: int) -> tuple[Sizes, dict]:
    """Read what Gemma 2 and 3 share. `layers_of_largest` tells the model whose scores are scaled by another size than
    the head's: no file says it, and llama.cpp goes by the layers too."""
    sizes, metadata = read_sizes(header), header.metadata
    largest = sizes.num_hidden_layers == layers_of_largest
    scalar = sizes.hidden_size // sizes.num_attention_heads if largest else sizes.head_dim
    if stated := metadata.number("attention.scale", 0.0):
        scalar = round(stated**-2)
        metadata.expect("attention.scale", max(scalar, 1) ** -0.5)  # a config has whole numbers
    caps = {name: metadata.number(name, 0.0) or None for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    return sizes, {
        **sizes.settings(),
        **read_rms_eps(header),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        **caps,
    }


def gemma2(header: Header) -> dict:
    """Return the config of Gemma 2."""
    sizes, config = _capped(header, layers_of_largest=46)
    for name, default in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
        if header.metadata.get(name) is None:  # llama.cpp's and the model's own
            config[name] = default
    window = header.metadata.count("attention.sliding_window", 4096, least=0) or None
    rope = read_rope(header, sizes)
    header.metadata.expect("rope.freq_base_swa", rope["rope_theta"])
    return {"model_type": "gemma2", **config, **layer_types(header, sizes, 2, window), "rope_parameters": rope}


def gemma3(header: Header) -> dict:
    """Return the config of Gemma 3 (text)."""
    sizes, config = _capped(header, layers_of_largest=62)
    window = header.metadata.count("attention.sliding_window", 0, least=0) or None
    # Layers with a window have a rotary base of their own and no scaling; without windows there is one for all.
    local = header.metadata.number("rope.freq_base_swa", 10000.0)
    return {
        "model_type": "gemma3_text",
        **config,
        **layer_types(header, sizes, 6, window),
        "rope_parameters": {
            "full_attention": read_rope(header, sizes),
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }
