"""No key of a GGUF's metadata is ignored in silence: it is used, known to have no effect, or refused by name."""

import re

import numpy as np
import pytest
from gguf import constants

from edgellm.checkpoint.gguf.config import ARCHITECTURES, make_config
from edgellm.checkpoint.gguf.header import Header
from edgellm.checkpoint.gguf.metadata import VOCABULARY, WITHOUT_EFFECT, Metadata
from edgellm.checkpoint.gguf_tokenizer import write_tokenizer
from edgellm.errors import CheckpointError

_LAYERS = 4


def _base(architecture: str) -> dict[str, object]:
    """What a file of this architecture states at least."""
    own = {
        "block_count": _LAYERS, "context_length": 128, "embedding_length": 64, "feed_forward_length": 256,
        "attention.head_count": 4, "attention.layer_norm_epsilon": 1e-5, "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    if "moe" in architecture or architecture in ("minimax-m2", "gpt-oss"):
        own |= {"expert_count": 4, "expert_used_count": 2}
    if architecture.startswith(("qwen35", "granitehybrid", "nemotron_h")):
        own |= {"ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.inner_size": 64, "ssm.time_step_rank": 4}
        own |= {"ssm.group_count": 2, "attention.head_count_kv": 4}
    if architecture.startswith("lfm2"):
        own |= {"shortconv.l_cache": 3, "attention.head_count_kv": 4}
    if architecture == "qwen35moe":
        own |= {"expert_feed_forward_length": 32}
    if architecture == "gemma4":
        own |= {"attention.sliding_window_pattern": [True, False] * (_LAYERS // 2), "attention.sliding_window": 16}
        sizes = ("key_length", "value_length", "key_length_swa", "value_length_swa")
        own |= {f"attention.{size}": 16 for size in sizes}
        own |= {"rope.dimension_count": 16, "rope.dimension_count_swa": 16}
        own |= {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
    if architecture == "deepseek2":
        own |= {"expert_count": 4, "expert_used_count": 2, "expert_shared_count": 1, "expert_feed_forward_length": 32}
        own |= {"attention.kv_lora_rank": 32, "rope.dimension_count": 16, "attention.key_length": 48}
        own |= {"attention.value_length": 32, "attention.key_length_mla": 48, "attention.value_length_mla": 48}
    return {"general.architecture": architecture} | {f"{architecture}.{name}": value for name, value in own.items()}


def _make(architecture: str, more: dict[str, object] | None = None, tensors=()) -> tuple[dict, Metadata]:
    """(config, metadata) of a file with `more` metadata."""
    metadata = Metadata(_base(architecture) | (more or {}), "m.gguf")
    shapes = {"token_embd.weight": (96, 64), "output.weight": (96, 64), "blk.0.ffn_norm.weight": (64,)}
    shapes |= {name: (64,) for name in tensors}
    if architecture == "gemma4":  # whose layers may lack values
        shapes |= {f"blk.{i}.attn_v.weight": (64, 64) for i in range(_LAYERS)}
    return make_config(Header(metadata, shapes, lambda name: None)), metadata


def _every_key() -> list[str]:
    """Every key that the gguf package knows."""
    found, todo = [], [constants.Keys]
    while todo:
        for name, value in vars(todo.pop()).items():
            if isinstance(value, type):
                todo.append(value)
            elif isinstance(value, str) and not name.startswith("__"):
                found.append(value)
    return found


_VALUES: tuple[object, ...] = (7, 0.37, True, "no such thing", [1, 2, 3])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_key_is_used_or_without_effect_or_refused_by_name(architecture):
    keys = [key for key in _every_key() if key != "general.architecture"]
    assert len(keys) > 250
    refused = set()
    for pattern in keys:
        key = pattern.format(arch=architecture, id=0, name="x", dense="dense_2")
        for value in _VALUES:
            try:
                _, metadata = _make(architecture, {key: value})
            except CheckpointError as e:
                # A size may be refused by the name of one that it contradicts.
                sizes = {*_base(architecture), f"{architecture}.attention.key_length"}
                assert key in str(e) or key in sizes and f"{architecture}." in str(e), key
                assert "\n" not in str(e)
                refused.add(key)
                continue
            effect = metadata.effect_of(key)
            reasons = [*WITHOUT_EFFECT.values(), "used", "a note of the tool that wrote the file"]
            assert effect in reasons, (key, value, effect)
    own = {key for key in refused if key.startswith(f"{architecture}.")}
    assert {f"{architecture}.attention.causal", f"{architecture}.ssm.conv_kernel"} <= own
    assert not {key for key in refused if key.startswith("general.")}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_unknown_key_of_the_architecture_is_refused_by_name(architecture):
    said = re.escape(f"m.gguf: edgellm doesn't know metadata {architecture}.mystery, which is 3")
    with pytest.raises(CheckpointError, match=said):
        _make(architecture, {f"{architecture}.mystery": 3})
    with pytest.raises(CheckpointError, match=r"mystery \(and 1 more such keys\)"):
        _make(architecture, {f"{architecture}.mystery": 3, f"{architecture}.enigma": 3})


@pytest.mark.parametrize(
    ("key", "taken"),
    [
        ("general.nobody_thought_of_it", True),
        ("general.sampling.mirostat_tau", True),
        ("mradermacher.quantized_by", True),
        ("quantize.imatrix.entries_count", True),
        ("qwen2.rope.freq_base", True),  # of another architecture than the file's: nobody reads it
        ("tokenizer.ggml.think_token_id", True),
        ("tokenizer.chat_template.tool_use", True),
        ("tokenizer.ggml.mystery", False),
        ("adapter.lora.alpha", False),
        ("clip.has_vision_encoder", False),
    ],
)
def test_keys_outside_the_architecture(key, taken):
    if taken:
        _make("llama", {key: 3})
    else:
        with pytest.raises(CheckpointError, match=f"doesn't know metadata {key}"):
            _make("llama", {key: 3})


class _Noting(dict):
    """Metadata that notes what it is asked for."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked: set[str] = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)


def test_the_vocabularys_keys_are_those_that_its_code_reads(tmp_path):
    common = {
        "general.architecture": "llama", "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1],
    }  # fmt: skip
    merged = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "ab"],
    }  # fmt: skip
    scored = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -2.0, -3.0, -1.0],
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "b", "▁b"],
    }  # fmt: skip
    asked = set()
    for own in (merged, scored):
        metadata = _Noting(common | own)
        write_tokenizer(tmp_path / "m.gguf", metadata, tmp_path)
        asked |= metadata.asked
    asked = {key for key in asked if key.startswith("tokenizer.")}
    assert asked >= VOCABULARY
    assert all(key.endswith("_token_id") for key in asked - VOCABULARY)  # of which any is taken


@pytest.mark.parametrize(
    ("name", "harmless", "harmful"),
    [
        ("attention.causal", True, False),
        ("attention.clamp_kqv", 0.0, 8.0),
        ("attention.max_alibi_bias", 0.0, 8.0),
        ("attention.scale", 0.25, 0.125),
        ("attention.value_length", 16, 32),
        ("embedding_scale", 1.0, 12.0),
        ("expert_count", 0, 8),
        ("final_logit_softcapping", 0.0, 30.0),
        ("logit_scale", 1.0, 0.0625),
        ("nextn_predict_layers", 0, 1),
        ("pooling_type", 3, 4),
        ("residual_scale", 1.0, 0.22),
        ("rope.dimension_count", 16, 8),
        ("rope.scaling.attn_factor", 1.0, 1.19),
        ("rope.scaling.yarn_ext_factor", 1.0, 0.5),
        ("tensor_data_layout", "Meta AI original pth", "other"),
        ("use_parallel_residual", False, True),
    ],
)
def test_what_llama_doesnt_compute_is_taken_at_its_neutral_value_only(name, harmless, harmful):
    plain, _ = _make("llama")
    assert _make("llama", {f"llama.{name}": harmless})[0] == plain
    with pytest.raises(CheckpointError, match=re.escape(f"llama.{name} is {harmful!r}")):
        _make("llama", {f"llama.{name}": harmful})


@pytest.mark.parametrize("name", ["attention.head_count", "attention.head_count_kv", "feed_forward_length"])
def test_a_list_with_an_entry_a_layer_is_taken_if_all_are_equal(name):
    value = _base("llama").get(f"llama.{name}", 4)
    assert _make("llama", {f"llama.{name}": [value] * _LAYERS})[0] == _make("llama")[0]
    with pytest.raises(CheckpointError, match=re.escape(f"llama.{name} is [{value}, 2, ") + ".*the layers differ"):
        _make("llama", {f"llama.{name}": [value, 2, value, value]})


def test_general_name_changes_nothing():
    plain = _make("llama")[0]
    for name in ("mistral", "Mistral", "phi3", "model"):
        assert _make("llama", {"general.name": name})[0] == plain


def test_a_window_of_the_llama_architecture_is_mistrals():
    config, _ = _make("llama", {"llama.attention.sliding_window": 32})
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 32)
    assert _make("llama", {"llama.attention.sliding_window": 128})[0] == _make("llama")[0]


@pytest.mark.parametrize("architecture", ["llama", "starcoder2", "stablelm", "falcon", "nemotron", "qwen2", "phi3"])
def test_rotary_base_is_the_files(architecture):
    config, _ = _make(architecture, {f"{architecture}.rope.freq_base": 999999.4375})
    assert config["rope_parameters"]["rope_theta"] == 999999.4375
    assert _make(architecture)[0]["rope_parameters"]["rope_theta"] == 10000.0


@pytest.mark.parametrize("architecture", ["stablelm", "nemotron", "phi3", "minimax-m2"])
def test_a_part_of_each_head_is_rotated(architecture):
    config, _ = _make(architecture, {f"{architecture}.rope.dimension_count": 4})
    assert config["rope_parameters"]["partial_rotary_factor"] == 0.25


def test_yarn_with_all_its_keys():
    scaling = {
        "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32,
        "rope.scaling.finetuned": True,
    }  # fmt: skip
    rope = _make("qwen2", {f"qwen2.{k}": v for k, v in scaling.items()})[0]["rope_parameters"]
    expected = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    assert rope == expected
    scaling |= {
        "rope.scaling.attn_factor": 1.5, "rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 2.0,
    }  # fmt: skip
    rope = _make("qwen2", {f"qwen2.{k}": v for k, v in scaling.items()})[0]["rope_parameters"]
    assert rope.pop("attention_factor") == pytest.approx(1.5 * (0.1 * np.log(4.0) + 1.0))
    assert rope == expected | {"beta_fast": 16.0, "beta_slow": 2.0}
    scaling["rope.scaling.yarn_attn_factor"] = float(np.float32(1.1))  # the config's own attention_factor
    rope = _make("qwen2", {f"qwen2.{k}": v for k, v in scaling.items()})[0]["rope_parameters"]
    assert rope["attention_factor"] == 1.1


def _yarn(architecture: str, **more) -> dict:
    scaling = {"type": "yarn", "factor": 8.0, "original_context_length": 16}
    return {f"{architecture}.rope.scaling.{k}": v for k, v in (scaling | more).items()}


@pytest.mark.parametrize("key", ["attn_factor", "yarn_attn_factor"])
def test_olmo3s_converters_write_the_whole_attention_factor(key):
    """The first ones as attn_factor, today's as yarn_attn_factor."""
    more = _yarn("olmo2", **{key: 1.25}) | {"olmo2.attention.sliding_window": 16, "olmo2.rope.freq_base": 5e5}
    config, _ = _make("olmo2", more)
    full, sliding = config["rope_parameters"]["full_attention"], config["rope_parameters"]["sliding_attention"]
    assert (config["model_type"], full["attention_factor"]) == ("olmo3", 1.25)
    assert sliding == {"rope_type": "default", "rope_theta": 5e5}
    config, _ = _make("olmo2", more | {"olmo2.rope.freq_base_swa": 7e3})
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 7e3


def test_mistral3_is_ministral_if_queries_grow_with_their_position():
    config, _ = _make("mistral3", _yarn("mistral3"))
    assert config["model_type"] == "mistral" and config["rope_parameters"]["rope_type"] == "yarn"
    more = _yarn("mistral3", yarn_log_multiplier=1.0) | {"mistral3.attention.temperature_scale": float(np.float32(0.1))}
    config, _ = _make("mistral3", more)
    rope = config["rope_parameters"]
    assert (config["model_type"], rope["llama_4_scaling_beta"], rope["mscale"], rope["mscale_all_dim"]) == (
        "ministral3", 0.1, 1.0, 1.0
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="mistral3.attention.temperature_length is 32, which edgellm can't run"):
        _make("mistral3", more | {"mistral3.attention.temperature_length": 32})


def test_granites_multipliers_are_llama_cpps_where_a_file_has_none():
    config, _ = _make("granite", {"granite.logit_scale": 8.0, "granite.embedding_scale": 0.0})
    names = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
    assert [config[name] for name in names] == [16**-0.5, 1.0, 1.0, 8.0]
    with pytest.raises(CheckpointError, match="granite.rope.scaling.finetuned is False, which edgellm can't run"):
        _make("granite", {"granite.rope.scaling.finetuned": False})


def test_gemma3_has_two_rotary_bases_and_a_pattern_of_windows():
    more = {
        "gemma3.rope.freq_base": 1000000.0, "gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0,
        "gemma3.attention.sliding_window": 32, "gemma3.block_count": 7,
    }  # fmt: skip
    config, _ = _make("gemma3", more)
    assert config["rope_parameters"] == {
        "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    config, _ = _make(
        "gemma3", more | {"gemma3.rope.freq_base_swa": 5000.0, "gemma3.attention.sliding_window_pattern": 2}
    )
    assert config["rope_parameters"]["sliding_attention"]["rope_theta"] == 5000.0
    assert config["layer_types"] == ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]
    stated = [True, False, False, True, True, True, False]
    config, _ = _make("gemma3", more | {"gemma3.attention.sliding_window_pattern": stated})
    assert [t == "sliding_attention" for t in config["layer_types"]] == stated
    del more["gemma3.attention.sliding_window"]
    assert set(_make("gemma3", more)[0]["layer_types"]) == {"full_attention"}


@pytest.mark.parametrize(
    ("architecture", "more", "scalar"),
    [
        ("gemma2", {}, 16),
        ("gemma2", {"block_count": 46, "attention.key_length": 32}, 16),  # 27B: the hidden size over the heads
        ("gemma3", {"block_count": 62, "attention.key_length": 32}, 16),
        ("gemma3", {"attention.key_length": 32}, 32),
        ("gemma3", {"attention.scale": 0.1}, 100),
    ],
)
def test_gemmas_scores_are_scaled_as_llama_cpp_scales_them(architecture, more, scalar):
    config, _ = _make(architecture, {f"{architecture}.{name}": value for name, value in more.items()})
    assert config["query_pre_attn_scalar"] == scalar


def test_softcaps_are_the_files():
    config, _ = _make("gemma2", {"gemma2.final_logit_softcapping": 20.0})
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (50.0, 20.0)
    config, _ = _make("gemma3")
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (None, None)


def test_experts_widths_are_the_files_or_llama_cpps_defaults():
    config, _ = _make("qwen2moe")
    assert (config["moe_intermediate_size"], config["shared_expert_intermediate_size"]) == (128, 256)
    more = {"qwen2moe.expert_feed_forward_length": 48, "qwen2moe.expert_shared_feed_forward_length": 80}
    config, _ = _make("qwen2moe", more)
    assert (config["moe_intermediate_size"], config["shared_expert_intermediate_size"]) == (48, 80)
    assert _make("qwen3moe")[0]["norm_topk_prob"] and not config["norm_topk_prob"]


@pytest.mark.parametrize(
    ("tensors", "attention", "mlp"),
    [((), False, False), (("attn_q.bias",), True, False), (("ffn_down.bias",), False, True)],
)
def test_biases_are_inferred_from_the_tensors(tensors, attention, mlp):
    config, _ = _make("llama", tensors=[f"blk.0.{name}" for name in tensors])
    assert (config["attention_bias"], config["mlp_bias"]) == (attention, mlp)


@pytest.mark.parametrize("stated", [True, False, None])
@pytest.mark.parametrize("parallel", [True, False])
def test_stablelms_parallel_residual_is_told_by_its_norms(parallel, stated):
    """llama.cpp's converter states true for models whose config doesn't say."""
    more = {} if stated is None else {"stablelm.use_parallel_residual": stated}
    shapes = {"token_embd.weight": (96, 64)} | ({} if parallel else {"blk.0.ffn_norm.weight": (64,)})
    header = Header(Metadata(_base("stablelm") | more, "m.gguf"), shapes, lambda name: None)
    assert make_config(header)["use_parallel_residual"] is parallel


def test_a_scale_that_no_config_can_say_is_refused():
    with pytest.raises(CheckpointError, match="gemma3.attention.scale is 0.3, which"):
        _make("gemma3", {"gemma3.attention.scale": 0.3})
