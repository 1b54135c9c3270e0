"""GGUFs of native families are split without torch and transformers, and as transformers' tables would have it."""

import subprocess
import sys

import pytest
import torch

from edgellm.check.reference import Reference
from edgellm.checkpoint.gguf import gemma4_config, generic_configs, recurrent_configs
from edgellm.checkpoint.gguf.config import ARCHITECTURES
from edgellm.checkpoint.gguf.source import GGUFSource
from edgellm.checkpoint.split import split
from edgellm.errors import CheckpointError
from tests.checkpoint.gguf_files import Q, arch_name, reference, write_gguf
from tests.checkpoint.helpers import encodings, read_split
from tests.checkpoint.test_split_gguf import _CONFIGS, _model
from tests.model import native_sections

# Those that transformers' tables know too, and others.
TABLED = ["llama", "llama-tied", "llama-biased", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "gemma2", "gemma3",
          "starcoder2"]  # fmt: skip
EXPERTS = ["qwen3-moe", "gpt-oss", "olmoe", "granite-moe", "granite-moe-shared", "glm4-moe", "deepseek-v2",
           "deepseek-v3"]  # fmt: skip
NATIVE = [*TABLED, *EXPERTS, "gemma", "glm4", "granite", "ministral", "olmo2", "olmo3", "smollm3"]
_KINDS = {
    "ffn_gate_inp": Q.F32, "ffn_gate_exps": Q.Q4_K, "ffn_up_exps": Q.MXFP4, "ffn_down_exps": Q.Q6_K,
    "attn_q": Q.Q4_1, "attn_k": Q.Q4_0, "attn_v": Q.Q6_K, "attn_qkv": Q.Q4_1, "attn_output": Q.BF16, "ffn_up": Q.Q8_0,
    "ffn_gate": Q.F16, "ffn_down": Q.Q4_0, "token_embd": Q.Q8_0, "output.weight": Q.Q5_0, "position_embd": Q.F16,
}  # fmt: skip


def _kind(name: str):
    return next((kind for part, kind in _KINDS.items() if part in name), Q.F32)


def test_every_native_architecture_is_here():
    # test_gguf_recurrent.py and test_gguf_gemma4.py have the latter
    others = generic_configs.__name__, recurrent_configs.__name__, gemma4_config.__name__
    native = {name for name, make in ARCHITECTURES.items() if make.__module__ not in others}
    assert {arch_name(_CONFIGS[family]().model_type) for family in NATIVE} == native


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize("family", TABLED)
def test_shards_are_those_of_transformers_tables(tmp_path, monkeypatch, family, quantize):
    path = write_gguf(tmp_path / "m.gguf", _model(family), _kind)
    source = GGUFSource(path)
    assert source.spec
    manifest = split(source, tmp_path / "native", quantize)
    monkeypatch.setattr("edgellm.checkpoint.gguf.source.find_spec", lambda config: (None, ""))
    source = GGUFSource(path)
    assert source.spec is None
    expected = split(source, tmp_path / "generic", quantize)
    assert manifest.shards == expected.shards
    for name in ("architecture", "model_type", "hidden_size", "vocab_size", "max_seq_len", "kv_elements_per_token",
                 "activation_elements_per_token", "rope_switch_len", "eos_token_ids"):  # fmt: skip
        assert getattr(manifest, name) == getattr(expected, name), name


_WITHOUT = """
import sys
sys.modules.update(torch=None, transformers=None)  # importing either fails
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
for path in sys.argv[1:]:
    for quantize in ("none", "int4"):
        split(open_source(path), f"{path}.{quantize}", quantize)
"""


def test_native_families_are_split_without_torch_and_transformers(tmp_path):
    paths = [write_gguf(tmp_path / f"{family}.gguf", _model(family), _kind) for family in NATIVE]
    command = [sys.executable, "-c", _WITHOUT, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    for path in paths:
        manifest = split(GGUFSource(path), tmp_path / "here")
        assert read_split(tmp_path / f"{path.name}.none").keys() == read_split(tmp_path / "here").keys()
        assert manifest == split(GGUFSource(path), tmp_path / f"{path.name}.none")  # nothing to do
        for file in (tmp_path / "here").iterdir():
            file.unlink()


def test_biases_that_are_missing_are_zeros(tmp_path, monkeypatch):
    """llama.cpp takes each of a layer's biases where it is; transformers has them all or none."""
    from tests.checkpoint import gguf_files

    model = _model("llama-biased")
    whole = gguf_files._gguf_tensors

    def some(model, names):
        return ((n, t) for n, t in whole(model, names) if not n.endswith(("attn_output.bias", "ffn_gate.bias")))

    monkeypatch.setattr(gguf_files, "_gguf_tensors", some)
    split(GGUFSource(write_gguf(tmp_path / "m.gguf", model)), tmp_path / "out")
    found = read_split(tmp_path / "out")
    for name, value in found.items():
        missing = name.endswith(("o_proj.bias", "gate_proj.bias"))
        assert bool((value == 0).all()) == missing, name


@pytest.mark.parametrize(
    ("family", "drop", "named"),
    [("llama", "blk.1.attn_v.weight", "blk.1.attn_v.weight"), ("qwen2", "blk.0.attn_q.bias", "blk.0.attn_q.bias"),
     ("gpt2", "position_embd.weight", "position_embd.weight")],
)  # fmt: skip
def test_a_missing_tensor_is_named(tmp_path, monkeypatch, family, drop, named):
    from tests.checkpoint import gguf_files

    whole = gguf_files._gguf_tensors
    monkeypatch.setattr(
        gguf_files, "_gguf_tensors", lambda model, names: ((n, t) for n, t in whole(model, names) if n != drop)
    )
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", _model(family)))
    with pytest.raises(CheckpointError, match=rf"tensor {named} is missing; \w+ needs it with shape \["):
        split(source, tmp_path / "out")


def test_experts_stay_quantized_and_answer_as_their_dequantized_weights_do(tmp_path, monkeypatch):
    """gpt-oss as its files are: experts in MXFP4, all else in other types, the router in float32."""
    model = _model("gpt-oss").eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape) * (1 if "sinks" in name else 0.05) + name.endswith("norm.weight"))
    kinds = {"_exps": Q.MXFP4, "ffn_gate_inp": Q.F32, "sinks": Q.F32}
    path = write_gguf(tmp_path / "m.gguf", model, lambda n: next((k for p, k in kinds.items() if p in n), Q.Q8_0))
    manifest = split(GGUFSource(path), tmp_path / "out")
    layer = encodings(tmp_path / "out", "layer-0001.safetensors")
    assert {e for n, e in layer.items() if ".experts." in n and n.endswith("weight")} == {"mxfp4"}
    assert layer["mlp.router.weight"] == "f32" and layer["self_attn.q_proj.weight"] == "int8"
    assert sum(s.bytes for s in manifest.shards) <= 1.03 * path.stat().st_size
    ids = list(range(3, 43))
    expected, _ = Reference(manifest, tmp_path / "out").run(ids, 40)
    native_sections.check_near(manifest, tmp_path / "out", (0, 2, 4), ids, expected.numpy())


def test_experts_in_the_types_of_q4_k_m_are_lossless(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", _model("qwen3-moe"), _kind)
    manifest = split(GGUFSource(path), tmp_path / "out")
    layer = encodings(tmp_path / "out", "layer-0001.safetensors")
    found = {n.split(".")[2]: e for n, e in layer.items() if ".experts." in n}
    assert found == {"gate_proj": "q4_k", "up_proj": "mxfp4", "down_proj": "q6_k"}
    state, split_state = reference(path, _model("qwen3-moe")), read_split(tmp_path / "out")
    for name in ("gate_up_proj", "down_proj"):
        key = f"layers.1.mlp.experts.{name}"
        torch.testing.assert_close(split_state[f"layer:{key}"], state[f"model.{key}"], rtol=0, atol=0)
    touched = manifest.touched_bytes_per_token[0]
    held = manifest.layer(0).ram_bytes
    experts = 4 * 3 * 256 * 256
    assert held - touched == pytest.approx(experts / 2 * (4.5 + 4.25 + 6.5625) / 8 / 3, rel=1e-3)
