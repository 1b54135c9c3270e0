"""The real built-in model (downloads 93 MB once): same weights as transformers reads, and little memory to split it."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer

from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from tests.checkpoint.gguf_files import reference
from tests.checkpoint.helpers import assert_same_weights, encodings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Split in a process of its own, without torch and transformers, which reports its peak memory."""
    out = tmp_path_factory.mktemp("smollm2")
    code = rf"""
import re, sys
sys.modules.update(torch=None, transformers=None)  # importing either fails
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.shards.manifest import Manifest
split(open_source("smollm2-135m"), {str(out)!r})
# Of this process alone; getrusage begins with the memory of the one that started it.
print(int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, check=True)
    (out / "peak").write_text(done.stdout)
    return out


def test_peak_memory_is_bounded_by_the_largest_tensor(folder):
    largest = 49152 * 576  # elements of the embedding, in int8
    assert int((folder / "peak").read_text()) < 3 * largest + 350_000_000


def test_shards_have_the_bytes_that_they_always_had(folder):
    sums = "\n".join(shard.sha256 for shard in Manifest.read(folder).shards)
    assert hashlib.sha256(sums.encode()).hexdigest() == (
        "f0eb059a257faa9c440bc003677f952ab542d253e1b6bd2db561d026738f15d4"
    )


def test_weights_are_the_files_own(folder):
    from transformers import AutoModelForCausalLM

    assert set(encodings(folder, "layer-0000.safetensors").values()) == {"int4", "f32"}
    source = open_source("smollm2-135m")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(source.config)
    state = reference(source.path, model)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    assert_same_weights(folder, state)


def test_tokenizer_cuts_digits_and_keeps_chat_tokens(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n").ids == [1, 4093, 198, 6004, 2, 198]
    assert tokenizer.encode("in 1984").tokens == ["in", "Ġ", "1", "9", "8", "4"]
    assert "<|im_start|>" in json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]


def test_ids_are_those_of_llama_cpp(folder):
    """What llama-cpp-python 0.3.36 gives for the same file."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("  Naïve\tcafé — 你好, 🙂\n\n\n    x += 1984;  # it's\r\n").ids == [
        216, 11677, 46494, 197, 83, 1939, 2756, 1841, 216, 18645, 250, 48392, 138, 28, 47526, 13272, 1792, 4519, 216,
        33, 41, 40, 36, 43, 216, 907, 357, 506, 2738,
    ]  # fmt: skip
    assert tokenizer.encode("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n").ids == [
        1, 4093, 198, 4898, 47, 2, 198, 1, 520, 9531, 198,
    ]  # fmt: skip


def test_second_split_is_a_no_op(folder):
    before = (folder / "manifest.json").stat().st_mtime_ns
    (folder / "peak").rename(folder.with_name("peak"))
    manifest = split(open_source("smollm2-135m"), folder)
    (folder.with_name("peak")).rename(folder / "peak")
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    assert manifest.eos_token_ids == (2, 0, 4) and manifest.max_seq_len == 8192


def test_the_model_cards_sampling_is_what_ask_uses(folder):
    sampling = Sampling.from_generation_config(json.loads((folder / "generation_config.json").read_text()))
    assert (sampling.temperature, sampling.top_p) == (0.2, 0.9)
