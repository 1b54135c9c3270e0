"""Real Gemma-3-270M in Q4_K_M, through three agents: one process's tokens, and those of llama.cpp and of transformers.

Theirs were recorded once, greedily: llama-cpp-python 0.3.36 over the same file, and transformers 5.23 in float32 over
the weights that it reads from it. Where two tokens are about equally likely, rounding decides; so at the first
difference, ours must have been nearly as likely to us, and what follows isn't compared.
"""

import asyncio
from pathlib import Path

import pytest

from edgellm.check.one_process import run_whole
from edgellm.checkpoint.builtin import BUILTIN
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.manager.client import ClusterClient
from edgellm.manager.local import LocalAgents
from edgellm.shards.manifest import Manifest
from edgellm.text.tokenizer import Tokenizer
from tests.fakes import ask, run
from tests.recorded_gemma3 import LLAMA_CPP, LONG_TEXT, PROMPTS, TRANSFORMERS
from tests.test_smollm2 import form

MODEL = "gemma3-270m"
NEW_TOKENS = 24
NEAR = 0.4  # of logits: activations in 8 bits and keys in 16 move them by as much
LONG_TOKENS = 700  # more than the 512 that a layer with a window sees


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    out, said = tmp_path_factory.mktemp("gemma3"), []
    split(open_source(MODEL, note=said.append), out)
    assert said == [BUILTIN[MODEL].terms]
    return out


@pytest.fixture(scope="module")
def prompts(model_dir) -> list[list[int]]:
    """The ids of PROMPTS, and of a text that is longer than the windows."""
    tokenizer = Tokenizer(model_dir)
    return [*map(tokenizer.encode, PROMPTS), tokenizer.encode(LONG_TEXT.read_text())[:LONG_TOKENS]]


@pytest.fixture(scope="module")
def answers(model_dir, prompts, tmp_path_factory) -> list[list[int]]:
    with LocalAgents(model_dir, 3, tmp_path_factory.mktemp("logs")) as agents:
        addresses = agents.start()
        plan = form(model_dir, addresses, (0, 5, 11, 18), 1, "float16", context=1024)

        async def go():
            async with ClusterClient.dial(plan, addresses) as cluster:
                return await asyncio.gather(*(ask(cluster, ids, NEW_TOKENS) for ids in prompts))

        return [[choice.token for choice in answer] for answer in run(go(), 200)]


@pytest.fixture(scope="module")
def logits(model_dir, prompts, answers):
    """One process's, after each token of the answers."""
    manifest = Manifest.read(model_dir)
    return [
        run_whole(manifest, model_dir, ids + tokens[:-1], NEW_TOKENS, "float16")
        for ids, tokens in zip(prompts, answers, strict=True)
    ]


def test_three_agents_give_the_tokens_of_one_process(answers, logits):
    assert [len(tokens) for tokens in answers] == [NEW_TOKENS] * len(answers)
    assert answers == [found.argmax(axis=1).tolist() for found in logits]


@pytest.mark.parametrize("theirs", [LLAMA_CPP, TRANSFORMERS], ids=["llama.cpp", "transformers"])
def test_the_tokens_are_theirs_where_no_near_tie_decides(answers, logits, theirs):
    compared = 0
    for tokens, expected, found in zip(answers, theirs, logits, strict=True):
        assert len(expected) == NEW_TOKENS
        same = next((i for i in range(NEW_TOKENS) if tokens[i] != expected[i]), NEW_TOKENS)
        if same < NEW_TOKENS:
            assert found[same, tokens[same]] - found[same, expected[same]] < NEAR, (same, tokens, expected)
        compared += same
    assert compared > NEW_TOKENS * len(answers) // 2
