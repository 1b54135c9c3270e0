"""Every family: greedy decoding through sections equals transformers' generate(), token for token."""

import pytest
import torch
from families import CONFIGS, generate, random_model
from make_split import make_split, round_weights
from ring import Ring, load

from edgellm.model.generic.structure import trace

PROMPT_LEN, NEW_TOKENS = 20, 24
CUTS = ((0, 2, 5), (0, 1, 4, 5))


def prompt(length: int = PROMPT_LEN, seed: int = 3) -> list[int]:
    return torch.randint(3, 500, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("family", CONFIGS)
def test_sections_generate_what_transformers_generates(family, tmp_path):
    model = random_model(CONFIGS[family]())
    manifest = make_split(model, tmp_path)
    expected = generate(model, prompt(), NEW_TOKENS)
    assert len(set(expected)) > 5, "the reference's output is too dull to prove anything"
    for cuts in CUTS:
        assert Ring(load(manifest, tmp_path, cuts)).generate(prompt(), NEW_TOKENS) == expected, cuts


@pytest.mark.parametrize("encoding", ["int8", "int4", "bf16", "f16"])
@pytest.mark.parametrize("family", ["gpt2", "smollm", "phi3", "gemma3", "falcon"])
def test_packed_sections_generate_what_the_unpacked_model_generates(family, encoding, tmp_path):
    model = random_model(CONFIGS[family]())
    head = "int8" if encoding == "int4" else None
    round_weights(model, trace(model.config), encoding, head)
    manifest = make_split(model, tmp_path, encoding, head)
    expected = generate(model, prompt(), NEW_TOKENS)
    assert len(set(expected)) > 5
    assert Ring(load(manifest, tmp_path, (0, 2, 5))).generate(prompt(), NEW_TOKENS) == expected


@pytest.mark.parametrize("prompt_len", [28, 32, 33, 40])
def test_longrope_switches_where_generate_does(prompt_len, tmp_path):
    model = random_model(CONFIGS["phi3_longrope"]())
    manifest = make_split(model, tmp_path)
    assert manifest.rope_switch_len == 32
    expected = generate(model, prompt(prompt_len), 16)
    assert Ring(load(manifest, tmp_path, (0, 2, 5))).generate(prompt(prompt_len), 16) == expected


@pytest.mark.parametrize("prompt_len", [20, 30, 60])
def test_dynamic_rope_of_a_chunked_prompt_is_that_of_the_whole_prompt(prompt_len, tmp_path):
    model = random_model(CONFIGS["llama_dynamic"]())
    manifest = make_split(model, tmp_path)
    sections = load(manifest, tmp_path, (0, 2, 5))
    expected = generate(random_model(CONFIGS["llama_dynamic"]()), prompt(prompt_len), 16)
    Ring(sections).generate(prompt(70), 4)  # a longer sequence before leaves nothing behind
    assert Ring(sections).generate(prompt(prompt_len), 16) == expected
