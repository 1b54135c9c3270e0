"""An embedding is pooled as the model's authors do it: compared with transformers, on boards and in pieces."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from edgellm.agent.pooling import Pooling
from edgellm.manager.session import Session
from edgellm.model.families.find import find_spec
from edgellm.structure import POOLS
from tests.fakes import Boards, run
from tests.model.families import CONFIGS, random_model
from tests.model.make_split import make_split

HIDDEN = np.random.default_rng(5).normal(size=(12, 8)).astype(np.float32)
IDS = [(7 * i) % 89 + 1 for i in range(40)]


def pooled(states: np.ndarray) -> dict[str, np.ndarray]:
    """What each pool makes of hidden states, as sentence-transformers defines it."""
    weights = np.arange(1, len(states) + 1)[:, None]
    return {
        "mean": states.mean(axis=0), "last": states[-1], "cls": states[0],
        "weighted_mean": (weights * states).sum(axis=0) / weights.sum(),
    }  # fmt: skip


@pytest.mark.parametrize("cuts", [(0, 12), (0, 1, 12), (0, 5, 6, 12)])
@pytest.mark.parametrize("kind", POOLS)
def test_it_is_the_same_in_any_pieces(kind, cuts):
    pooling = Pooling(kind)
    for a, b in pairwise(cuts):
        pooling.add(HIDDEN[a:b], a)
    assert pooling.vector().dtype == np.float32
    np.testing.assert_allclose(pooling.vector(), pooled(HIDDEN.astype(np.float64))[kind], rtol=1e-6)


@pytest.mark.parametrize(("family", "natively"), [("qwen3", True), ("phi", False)])
def test_boards_pool_what_transformers_gives(family, natively, tmp_path):
    model = random_model(CONFIGS[family]())
    assert (find_spec(model.config.to_dict())[0] is not None) == natively
    make_split(model, tmp_path / "split")
    with torch.inference_mode():
        states = model.base_model(torch.tensor([IDS])).last_hidden_state[0].double().numpy()

    async def go():
        async with Boards(tmp_path / "split", 2, real=True) as boards:
            plan = await boards.form((0, 1, boards.manifest.num_layers), context=64, chunk=16)
            async with Session(boards.manifest, plan, boards.addresses) as session:
                return {kind: np.frombuffer(await session.embed(IDS, kind), "<f4") for kind in POOLS}

    found, expected = run(go(), 60), pooled(states)
    for kind in POOLS:
        assert np.abs(found[kind] - expected[kind]).max() < 1e-2 * np.abs(expected[kind]).max(), kind
    others = [found[kind] for kind in POOLS]
    assert all(np.abs(a - b).max() > 0.05 for i, a in enumerate(others) for b in others[:i]), "nothing is proved"
