"""GPT-2: LayerNorm, learned positions, q, k and v in one matrix, a plain MLP, a bias everywhere. Pure."""

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.feed_forwards import PlainMlp
from edgellm.model.families.mixers import Attention
from edgellm.model.families.parts import Matrix, layer_norm, slices, whole
from edgellm.model.families.spec import Layer, Spec


def gpt2(config: Config) -> Spec:
    """Return the Spec of a config of model_type gpt2; raises UnsupportedError."""
    hidden = config.count("n_embd", "hidden_size", default=768)
    heads = config.count("n_head", "num_attention_heads", default=12)
    num_layers = config.layers("n_layer", "num_hidden_layers", default=12)
    positions = config.count("n_positions", "max_position_embeddings", default=1024)
    inner = config.count("n_inner", default=4 * hidden)
    vocab = config.count("vocab_size", default=50257)
    config.expect("activation_function", "gelu_new", "gelu_new", "gelu_pytorch_tanh")
    if config.flag("add_cross_attention", False):
        raise UnsupportedError("add_cross_attention is true")
    if hidden % heads:
        raise UnsupportedError(f"{hidden} dimensions for {heads} heads")
    dim = hidden // heads
    scale = dim**-0.5 if config.flag("scale_attn_weights", True) else 1.0
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", False)
    q, k, v = slices("attn.c_attn", (hidden, hidden, hidden), hidden, biased=True)
    o = whole("attn.c_proj", hidden, hidden, biased=True)
    up, down = whole("mlp.c_fc", inner, hidden, biased=True), whole("mlp.c_proj", hidden, inner, biased=True)

    def layer(i: int) -> Layer:
        layer_scale = scale / (i + 1 if by_layer else 1)
        return Layer(
            before_mixer=layer_norm("ln_1", hidden),
            mixer=Attention(heads, heads, dim, layer_scale, 0, q, k, v, o, rope=None),
            before_feed_forward=layer_norm("ln_2", hidden),
            feed_forward=PlainMlp(up, down),
        )

    return Spec(
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        hidden_size=hidden,
        vocab_size=vocab,
        max_seq_len=positions,
        eps=config.number("layer_norm_epsilon", 1e-5),
        embedding=Matrix("transformer.wte.weight", vocab, hidden),
        position_embedding=Matrix("transformer.wpe.weight", positions, hidden),
        layers=tuple(layer(i) for i in range(num_layers)),
        final_norm=layer_norm("transformer.ln_f", hidden),
        head=Matrix("lm_head.weight", vocab, hidden),
        tied=bool(config.content.get("tie_word_embeddings", True)),
        rotaries=(),
    )

