"""With real models, too, an answer that was replayed has the tokens of one that wasn't, and those of transformers."""

import pytest

from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.sampling import Sampling
from tests.fakes import GREEDY, Boards, run
from tests.manager.asking import PROMPT, asked, cut, restart, stop
from tests.model.families import CONFIGS, generate, random_model

pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.native]

COUNT = 28  # of 12 + 28 tokens; a longrope sequence crosses its switch at 32


@pytest.mark.parametrize(
    "family, quantize",
    [("smollm", "none"), ("smollm", "int4"), ("gpt2", "int8"), ("phi3_longrope", "none"), ("gemma3", "none")],
)
def test_a_replayed_answer_is_that_of_transformers(tmp_path, family, quantize):
    model = random_model(CONFIGS[family]())
    model.save_pretrained(tmp_path / "checkpoint")
    split(open_source(str(tmp_path / "checkpoint")), tmp_path / "split", quantize)
    seeded = Sampling(temperature=0.8, repeat_penalty=1.1, seed=3)
    at = {3: cut(1), 9: restart(1), 15: stop(2), 21: cut(0)}

    async def go():
        async with Boards(tmp_path / "split", 3, real=True) as boards:
            plan = await boards.form((0, 2, 4, 5), chunk=5, context=64)
            calm = [await asked(boards, plan, {}, COUNT, sampling) for sampling in (GREEDY, seeded)]
            stormy = await asked(boards, plan, at, COUNT)
            await boards.start(2)
            return calm, [stormy, await asked(boards, stormy.adopted[-1], at, COUNT, seeded)]

    calm, stormy = run(go(), 100)
    assert [a.tokens for a in stormy] == [a.tokens for a in calm]
    assert all(len(a.adopted) >= 2 for a in stormy), "nothing happened"
    if quantize == "none":
        assert calm[0].tokens == generate(model, PROMPT, COUNT)
