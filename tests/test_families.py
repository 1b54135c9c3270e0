"""Every family: a checkpoint on disk, split, served by agents over TCP, gives the tokens that transformers generates.

Prompts are longer than a chunk, four sequences run at once, and sections are reassigned between two questions.
"""

import asyncio

import pytest

from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.manager.client import ClusterClient
from tests.fakes import Boards, ask, run
from tests.model.expert_models import expert_model
from tests.model.families import CONFIGS, generate, random_model

# Those that boards run, and a few of the many that go the generic path with them.
FAMILIES = [
    "gpt2", "smollm", "llama3_rope", "phi3", "phi3_longrope", "qwen2", "qwen2_window", "qwen3", "mistral_window",
    "gemma2", "gemma3", "olmo2", "granite", "glm4", "smollm3", "starcoder2", "ministral3", "gptneox", "mixtral",
    "qwen3_moe", "gpt_oss", "granitemoeshared",
]  # fmt: skip
NEW_TOKENS = 24
PROMPTS = [[(7 * i + 3 * k) % 500 for k in range(length)] for i, length in enumerate((20, 13, 9, 25), 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_agents_answer_as_transformers_does(family, tmp_path):
    model = random_model(CONFIGS[family]()) if family in CONFIGS else expert_model(family)
    expected = [generate(model, prompt, NEW_TOKENS) for prompt in PROMPTS]
    assert len({t for answer in expected for t in answer}) > 10, "too little variety to prove anything"
    model.save_pretrained(tmp_path / "checkpoint")
    split(open_source(str(tmp_path / "checkpoint")), tmp_path / "split")

    async def go():
        async with Boards(tmp_path / "split", 3, real=True) as boards:
            plan = await boards.form((0, 1, 3, 5), slots=4, chunk=8, context=64)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                together = await asyncio.gather(*(ask(cluster, p, NEW_TOKENS) for p in PROMPTS))
            plan = await boards.form((0, 3, 5), slots=1, chunk=5, context=64, epoch=2)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                reassigned = await ask(cluster, PROMPTS[0], NEW_TOKENS)
            return together, reassigned

    together, reassigned = run(go(), 100)
    assert [[c.token for c in answer] for answer in together] == expected
    assert [c.token for c in reassigned] == expected[0]
