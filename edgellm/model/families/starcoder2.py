"""StarCoder2: LayerNorms, biases, a plain MLP, a sliding window. Pure."""

from edgellm.model.families.config import Config
from edgellm.model.families.feed_forwards import PlainMlp
from edgellm.model.families.llama_like import Norms, make_spec, same_window
from edgellm.model.families.parts import whole
from edgellm.model.families.spec import Spec


def starcoder2(config: Config) -> Spec:
    """Return the Spec of a config of model_type starcoder2; raises UnsupportedError."""
    config.expect("hidden_act", "gelu_pytorch_tanh", "gelu_pytorch_tanh", "gelu_new")
    hidden = config.count("hidden_size", default=3072)
    inner = config.count("intermediate_size", default=12288)
    bias = config.flag("use_bias", True)
    mlp = PlainMlp(whole("mlp.c_fc", inner, hidden, bias), whole("mlp.c_proj", hidden, inner, bias))
    return make_spec(
        config, "Starcoder2ForCausalLM", kv_heads=2, eps=1e-5, max_seq_len=4096, windows=same_window(config, None),
        qkv_bias=bias, o_bias=bias, activation="gelu_tanh", norms=Norms(biased=True, eps="norm_epsilon"),
        feed_forwards=lambda layer: mlp, tied=True,
        defaults={"hidden_size": 3072, "num_attention_heads": 24, "num_hidden_layers": 30, "vocab_size": 49152},
    )  # fmt: skip
