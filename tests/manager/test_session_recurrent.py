"""An answer of a model with recurrent layers is the same, to the token, whatever happens to its boards: a lost link, a
restart, a board that is gone for good, and so another plan."""

import pytest

from edgellm.sampling import Sampling
from tests.fakes import GREEDY, Boards, run
from tests.manager.asking import PROMPT, asked, cut, form, restart, stop
from tests.model.families import generate
from tests.model.recurrent_models import recurrent_model, split

pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.native]

COUNT = 40
CUTS = {"qwen3_5": (0, 1, 2, 4), "qwen3_next": (0, 1, 3, 4), "lfm2": (0, 1, 3, 4), "granite4": (0, 2, 3, 4),
        "nemotron_h": (0, 2, 3, 5)}  # fmt: skip


@pytest.mark.parametrize("family", CUTS)
def test_a_replayed_answer_is_that_of_transformers(tmp_path, family):
    model = recurrent_model(family)
    split(model, tmp_path / "split")
    seeded = Sampling(temperature=0.8, repeat_penalty=1.1, seed=3)
    at = {3: cut(1), 9: restart(1), 20: stop(2), 30: cut(0)}

    async def go():
        async with Boards(tmp_path / "split", 3, real=True) as boards:
            plan = await boards.form(CUTS[family], chunk=5, context=96)
            calm = [await asked(boards, plan, {}, COUNT, sampling) for sampling in (GREEDY, seeded)]
            stormy = await asked(boards, plan, at, COUNT)
            await boards.start(2)
            return calm, [stormy, await asked(boards, stormy.adopted[-1], at, COUNT, seeded)]

    calm, stormy = run(go(), 100)
    assert [a.tokens for a in stormy] == [a.tokens for a in calm]
    assert stormy[0].adopted and stormy[1].adopted, "nothing happened"
    assert calm[0].tokens == generate(model, PROMPT, COUNT)


@pytest.mark.parametrize("family", ["qwen3_5", "nemotron_h"])
def test_layers_that_move_in_mid_answer_change_no_token(tmp_path, family):
    split(recurrent_model(family), tmp_path / "split")
    *_, layers = CUTS[family]
    at = {6: form((0, 2, 3, layers), epoch=50), 18: form((0, 1, layers - 1, layers), epoch=90)}

    async def go():
        async with Boards(tmp_path / "split", 3, real=True) as boards:
            plan = await boards.form(CUTS[family], chunk=5, context=256)
            calm = await asked(boards, plan, {}, COUNT)
            return calm, await asked(boards, plan, at, COUNT)

    calm, moved = run(go(), 100)
    assert moved.tokens == calm.tokens
    assert [plan.epoch for plan in moved.adopted][-1] == 90
