"""Structures: names and shapes, sizes that the plan counts on, and models that are refused with a reason."""

import psutil
import pytest
import transformers as hf
from families import CONFIGS

from edgellm.errors import ManifestError, ModelError
from edgellm.model.generic.build import config_from_dict, read_config
from edgellm.model.generic.structure import trace


def test_a_llama_falls_into_embedding_layers_and_head():
    s = trace(CONFIGS["llama"]())
    assert (s.layers_path, s.num_layers, s.hidden_size, s.vocab_size) == ("model.layers", 5, 64, 512)
    assert s.embedding_names == ("model.embed_tokens.weight",)
    assert s.head_names == ("model.norm.weight", "lm_head.weight")
    assert set(s.layer_names) == {
        (
            *(f"self_attn.{p}_proj.weight" for p in "qkvo"),
            *(f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
            "input_layernorm.weight",
            "post_attention_layernorm.weight",
        )
    }
    assert s.shapes[3, "self_attn.k_proj.weight"] == (32, 64)
    assert s.kv_elements_per_token == (2 * 2 * 16,) * 5
    assert len(s.packable) == 5 * 7 + 2 and not s.transposed
    assert (s.tied, s.max_seq_len, s.rope_switch_len) == (None, 256, None)


def test_a_tied_head_is_named_with_its_embedding():
    s = trace(CONFIGS["llama_tied"]())
    assert (s.tied, s.tied_head) == ("model.embed_tokens.weight", "lm_head.weight")
    assert s.shapes["lm_head.weight"] == (512, 64)


def test_gpt2_has_transposed_weights_and_position_embeddings():
    s = trace(CONFIGS["gpt2"]())
    assert s.embedding_names == ("transformer.wte.weight", "transformer.wpe.weight")
    assert (2, "attn.c_attn.weight") in s.transposed and s.shapes[2, "attn.c_attn.weight"] == (64, 192)
    assert (2, "ln_1.weight") not in s.packable


@pytest.mark.parametrize(
    "family, plain",
    [
        ("opt", {"model.decoder.embed_positions.weight"}),  # looked up at shifted positions
        ("mixtral", {(0, "mlp.gate.weight"), (0, "mlp.experts.gate_up_proj"), (0, "mlp.experts.down_proj")}),
        ("falcon", set()),
        ("gemma3", set()),
        ("bloom", set()),
    ],
)
def test_matrices_that_are_not_used_as_a_whole_stay_plain(family, plain):
    s = trace(CONFIGS[family]())
    matrices = {k for k, shape in s.shapes.items() if len(shape) > 1 and (isinstance(k, str) or k[0] == 0)}
    assert matrices - s.packable == plain


def test_longrope_names_the_length_at_which_its_factors_change():
    assert trace(CONFIGS["phi3_longrope"]()).rope_switch_len == 32
    assert trace(CONFIGS["llama3_rope"]()).rope_switch_len is None
    assert trace(CONFIGS["llama_dynamic"]()).max_seq_len == 24 * 4


def test_phi3s_own_config_file_names_its_switch():
    factors = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    for kind in ("longrope", "su"):
        config = config_from_dict(
            {
                "model_type": "phi3",
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": kind, **factors},
                "num_hidden_layers": 2,
            }
        )
        assert (trace(config).rope_switch_len, trace(config).max_seq_len) == (4096, 131072)


def test_a_full_size_model_is_traced_without_its_memory():
    trace(CONFIGS["phi3"]())  # imports the family
    before = psutil.Process().memory_info().rss
    s = trace(hf.Phi3Config())
    assert psutil.Process().memory_info().rss - before < 1 << 30  # it has 15 GB of weights
    assert s.num_layers == 32 and s.kv_elements_per_token[0] == 2 * 3072


_TINY = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=32, num_attention_heads=2)


@pytest.mark.parametrize(
    "config, reason",
    [
        (lambda: hf.MambaConfig(hidden_size=32, num_hidden_layers=2), "mamba: layer 0 is a linear_attention layer"),
        (lambda: hf.RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64), "rwkv: layer 1 gets 'state'"),
        (lambda: hf.T5Config(), "t5: an encoder-decoder"),
        (lambda: hf.BartConfig(), "bart: an encoder-decoder"),
        (lambda: hf.BertConfig(**_TINY), "bert: its tokens also attend to later ones"),
        (lambda: hf.ViTConfig(), "vit: transformers has no causal language model"),
        (lambda: hf.JambaConfig(**_TINY), "jamba: layer 0 is a linear_attention layer"),
        (lambda: hf.Qwen3NextConfig(**_TINY), "qwen3_next: layer 0 is a linear_attention layer"),
        (lambda: hf.Gemma3nTextConfig(), "gemma3n_text: its last 15 layers reuse the keys and values"),
        (
            lambda: hf.Gemma3nTextConfig(num_kv_shared_layers=0, num_hidden_layers=5),
            "gemma3n_text: (layer 0 |layer 1 |the hidden states|its layers|layer)",
        ),
        (lambda: hf.Gemma4TextConfig(num_hidden_layers=6), "gemma4_text: layer 0 gets 'per_layer_input'"),
        (lambda: hf.Gemma3Config(), "gemma3: a multimodal model"),
        (lambda: hf.LlamaConfig(**{**_TINY, "num_hidden_layers": 0}), "num_hidden_layers is 0, expected 1-1024"),
        (lambda: hf.LlamaConfig(**{**_TINY, "num_hidden_layers": 10**9}), "expected 1-1024"),
    ],
)
def test_what_can_not_be_split_is_refused_with_the_reason(config, reason):
    with pytest.raises(ModelError, match=reason) as e:
        trace(config())
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"model_type": "nonesuch"}, "knows no model_type 'nonesuch'"),
        ({}, "names no model_type"),
        ([], "names no model_type"),
        ({"model_type": 7}, "names no model_type"),
        ({"model_type": "llama", "hidden_size": "many"}, "not a valid llama config"),
    ],
)
def test_a_config_that_says_nothing_usable_is_refused(content, reason):
    with pytest.raises(ModelError, match=reason):
        config_from_dict(content)


def test_a_config_can_not_choose_code_to_run():
    config = config_from_dict(
        {
            "model_type": "llama",
            **_TINY,
            "auto_map": {"AutoModelForCausalLM": "someone/repo--modeling.Model"},
            "attn_implementation": "someone/kernels",
            "_attn_implementation": "someone/kernels",
            "_attn_implementation_internal": "someone/kernels",
        }
    )
    assert trace(config).architecture == "LlamaForCausalLM"


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\xff"])
def test_a_config_file_that_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ManifestError, match="config.json is not JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": "64"}, "'hidden_size'.*expected int, got str"),
        ({"text_config": {}}, "it names no vocab_size"),
        ({"text_config": "x"}, "it names no vocab_size"),
        ({"vocab_size": None}, "'vocab_size'.*expected int, got NoneType"),
    ],
)
def test_a_config_that_is_none_is_refused_with_the_reason_in_one_line(change, words):
    with pytest.raises(ModelError, match=f"m/config.json is not a valid llama config: .*{words}") as caught:
        config_from_dict({"model_type": "llama", "vocab_size": 64, **change}, "m/config.json")
    assert "\n" not in str(caught.value)
