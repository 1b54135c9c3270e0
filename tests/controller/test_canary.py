"""The canary question: is the cluster's answer right?"""

import asyncio
import json
from pathlib import Path

import pytest

from edgellm.controller import forming
from edgellm.errors import BoardError
from edgellm.manager.cluster_file import ClusterFile
from tests.fakes import Boards, run
from tests.tiny import split_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return split_tiny(tmp_path_factory.mktemp("tiny"))


def canary(tiny: Path, tmp_path: Path, harm=lambda boards: None, context=64, times=1):
    """(tokens of each time, what was told) of a cluster with two boards."""
    path, told = tmp_path / "cluster.json", []

    async def go():
        async with Boards(tiny, 2, real=True) as boards:
            plan = await boards.form((0, 2, 5), chunk=8, context=context)
            file = ClusterFile.make(tiny, boards.addresses, plan)
            harm(boards)
            ask = lambda: forming.canary(file, path, tmp_path / "cache", told.append)  # noqa: E731
            return [await asyncio.to_thread(ask) for _ in range(times)]

    return run(go(), 100), told


@pytest.mark.native
def test_a_right_answer_is_compared_with_the_reference_once(tiny, tmp_path):
    (first, second), told = canary(tiny, tmp_path, times=2)
    assert first == second and len(first) == forming.CANARY_TOKENS
    assert told == ["computing the reference answer, once for this model …"]
    (file,) = (tmp_path / "cache").iterdir()
    assert json.loads(file.read_text()) == first


@pytest.mark.native
@pytest.mark.parametrize("remembered", [None, "right", "[1, 2, 3, 4, 5, 6, 7, true]", "[" * 100_000],
                         ids=["nothing", "right", "odd", "deep"])
def test_a_wrong_answer_is_told_whatever_is_remembered(tiny, tmp_path, remembered):
    right = canary(tiny, tmp_path)[0][0]
    (file,) = (tmp_path / "cache").iterdir()
    if remembered is None:
        file.unlink()
    elif remembered != "right":
        file.write_text(remembered)

    def harm(boards):
        section = boards.agents[1].stage.section
        really = section.forward_many
        section.forward_many = lambda steps: [None if logits is None else -logits for logits in really(steps)]

    with pytest.raises(BoardError) as e:
        canary(tiny, tmp_path, harm)
    assert "the cluster's answer to the canary question is wrong: token " in str(e.value)
    assert "'edgellm verify' names the layer and the board." in str(e.value)
    assert canary(tiny, tmp_path)[0][0] == right  # the wrong one wasn't remembered


@pytest.mark.native
def test_what_another_version_remembered_counts_no_more(tiny, tmp_path):
    right = canary(tiny, tmp_path)[0][0]
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(json.dumps([(t + 1) % 100 for t in right]))
    (tokens,), told = canary(tiny, tmp_path)
    assert tokens == right and told and json.loads(file.read_text()) == right


@pytest.mark.native
def test_a_short_context_has_a_short_canary(tiny, tmp_path):
    (tokens,), _ = canary(tiny, tmp_path, context=10)
    assert 1 <= len(tokens) < forming.CANARY_TOKENS
