"""Two agents whose last one drafts with the model's own head: the same answers, in fewer passes if it's good."""

import pytest
import torch

from edgellm.agent import payoff
from edgellm.agent.drafting import LOOKUP, Tally
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.manager.client import ClusterClient
from edgellm.sampling import Sampling
from tests.fakes import Boards, run
from tests.model.mtp_models import mtp_model, save

PROMPT = [(7 * i) % 251 + 1 for i in range(50)]


@pytest.fixture(autouse=True)
def costs(monkeypatch):
    """As on slow boards: a pass takes long, a further token in it, or a draft, hardly anything."""
    monkeypatch.setattr(payoff.Passes, "now", lambda passes: payoff.Pass(0.1, 0.001) if passes._weight else None)
    monkeypatch.setattr(payoff.DraftTime, "add", lambda time, drafts, seconds: None)


def knowing(model, head) -> None:
    """Make each token depend on the one before it alone, so that the head, which sees it, is always right."""
    with torch.no_grad():
        for layer in (*model.model.layers, head.layers[0].mtp_block):
            mixer = layer.self_attn.o_proj if hasattr(layer, "self_attn") else layer.linear_attn.out_proj
            mixer.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        rows = torch.nn.functional.normalize(torch.randn(model.config.vocab_size, 64), dim=1)
        model.model.embed_tokens.weight.copy_(rows)
        model.lm_head.weight.copy_(rows[torch.randperm(len(rows))])
        own = head.layers[0]
        for norm in (model.model.norm, own.enorm, own.hnorm, own.post_norm):
            norm.weight.zero_()  # how far from 1 it is
        own.eh_proj.weight.copy_(torch.cat([torch.eye(64), torch.zeros(64, 64)], dim=1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Splits of one model whose head is always right, and of one whose head is random."""
    found = {}
    for kind in ("right", "random"):
        at = tmp_path_factory.mktemp(kind)
        model, head = mtp_model("qwen3_5")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            if kind == "right":
                knowing(model, head)
        save(model, head, at / "checkpoint")
        split(open_source(str(at / "checkpoint")), at / "split")
        found[kind] = at / "split"
    return found


async def answers(folder, cuts, sampling, prompts, count=48):
    """What is said with drafts and without; the last board's stats with drafts, and its tallies."""
    said, stats = [], {}
    async with Boards(folder, len(cuts) - 1, real=True) as boards:
        plan = await boards.form(cuts, context=200, slots=2, chunk=16)
        async with ClusterClient.dial(plan, boards.addresses) as cluster:
            for speculate in (True, False):
                for prompt in prompts:
                    stream = cluster.generate(
                        prompt, sampling=sampling, max_tokens=count, eos=(), logits=True, speculate=speculate,
                        stats=stats.setdefault(speculate, {}),
                    )  # fmt: skip
                    said.append([(c.token, c.logits) async for c in stream])
        stage = boards.agents[len(cuts) - 2].stage
        assert all(slot.kv.mtp.begin == 0 for slot in stage.engine._slots.free())  # it has seen whole prompts
        return said[: len(prompts)], said[len(prompts) :], stats[True], stage.drafting.tallies


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=5)], ids=["greedy", "drawn"])
def test_a_head_that_is_right_saves_passes_and_changes_nothing(folders, sampling):
    drafted, plain, stats, tallies = run(answers(folders["right"], (0, 2, 4), sampling, [PROMPT]), 120)
    assert drafted == plain
    last = stats["b1"]
    assert last.decode_steps + last.accepted_tokens == 47
    own = tallies["mtp"]
    assert own.accepted > 20 and own.accepted > 0.9 * own.drafted
    assert last.decode_steps < 25


def test_a_head_that_is_wrong_costs_no_answer_and_is_switched_off(folders):
    other = PROMPT[::-1]
    prompts = [PROMPT, other, PROMPT + other]
    drafted, plain, _, tallies = run(answers(folders["random"], (0, 1, 4), Sampling(), prompts), 120)
    assert drafted == plain
    own = tallies["mtp"]
    assert 0 < own.drafted < 400 and own.accepted < own.drafted / 10  # of 2115 that there was room for
    assert tallies[LOOKUP] != Tally()
