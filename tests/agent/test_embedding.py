"""An embedding: the mean over all tokens of what the head would take, from the last board."""

import asyncio

import numpy as np
import pytest

from edgellm.errors import AnswerError
from edgellm.manager.client import ClusterClient
from edgellm.manager.session import Session
from edgellm.sampling import Sampling
from tests.fakes import HIDDEN, LAYERS, Boards, FakeSection, generate, run, until

PROMPT = [5, 17, 3, 42, 8, 1, 90, 33, 2, 11, 64, 7]


def expected(ids: list[int]) -> list[float]:
    mean = [np.mean(ids), sum(range(LAYERS)), *[0.0] * (HIDDEN - 2)]
    return np.array(mean, np.float32).tolist()


async def embed(cluster, ids, **kwargs):
    stream = cluster.generate(list(ids), sampling=Sampling(), max_tokens=1, eos=(), pool="mean", **kwargs)
    (chosen,) = [c async for c in stream]
    return np.frombuffer(chosen.vector, np.float32).tolist()


@pytest.mark.parametrize("cuts", [(0, 6), (0, 3, 6), (0, 2, 4, 6)])
def test_it_is_the_same_on_any_boards_beside_answers_and_again(tmp_path, cuts):
    async def go():
        async with Boards(tmp_path, len(cuts) - 1) as boards:
            plan = await boards.form(cuts, context=64, chunk=5, slots=3)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                stream = cluster.generate(list(PROMPT), sampling=Sampling(), max_tokens=30, eos=())
                asked = asyncio.create_task(anext(stream))
                texts = [PROMPT, PROMPT[:1], PROMPT * 5, PROMPT]
                found = [await embed(cluster, ids) for ids in texts]
                said = [(await asked).token] + [c.token async for c in stream]
                free = [lambda a=a: a.stage.engine.free_slots == 3 for a in boards.agents]
                await until(lambda: all(f() for f in free))
                return texts, found, said

    texts, found, said = run(go())
    assert found == [expected(ids) for ids in texts]
    assert said == generate(PROMPT, 30)


def test_progress_is_told_and_nothing_is_reused(tmp_path):
    told: list[int] = []

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=256, chunk=5)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                boards.agents[1].stage._chooser.prefilled = lambda sequence, position, now_s: told.append(position)
                stats = {}
                await embed(cluster, PROMPT, stats=stats)
                await embed(cluster, PROMPT, stats=stats)
                return {s.reused_tokens for s in stats.values()}

    assert run(go()) == {0} and told == [5, 10, 5, 10]


def test_a_session_embeds_again_when_a_board_is_lost(tmp_path, monkeypatch):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=64)
            async with Session(boards.manifest, plan, boards.addresses, patience_s=10) as session:
                first = await session.embed(PROMPT)
                boards.cut(1)
                return first, await session.embed(PROMPT)

    first, second = run(go())
    assert np.frombuffer(first, np.float32).tolist() == expected(PROMPT) and second == first


def test_a_model_that_can_not_refuses_with_a_sentence(tmp_path, monkeypatch):
    from edgellm.errors import ModelError

    def embed_not(*args):
        raise ModelError("rwkv has no hidden states behind its last layer for embeddings")

    monkeypatch.setattr(FakeSection, "embed", embed_not)

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=64)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                with pytest.raises(AnswerError, match="rwkv has no hidden states behind its last layer"):
                    await embed(cluster, PROMPT)

    run(go())
