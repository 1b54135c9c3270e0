"""A constraint on the last board: the answer matches it, and no split, draft or replay changes a token."""

import asyncio
import json
import re
import time

import pytest

from edgellm.agent.constraint import Grammars
from edgellm.errors import AnswerError, BusyError
from edgellm.manager.client import ClusterClient
from edgellm.sampling import Sampling
from edgellm.structure import Constraint
from tests.constrained import EOS, SCHEMA, Oracle, be_wild, constrained_manifest
from tests.fakes import GREEDY, VOCAB, Boards, run, until

PROMPT = [5, 17, 3, 42, 8, 1, 90, 33, 2, 11, 64, 7]
SAMPLED = Sampling(temperature=0.8, top_p=0.9, seed=7)
CONSTRAINTS = {
    "schema": SCHEMA,
    "json": Constraint("json"),
    "regex": Constraint("regex", r"[0-9]{3}-[a-f]{2,5}(age|name)"),
    "lark": Constraint("lark", 'start: ("name" " "){2} word\nword: /[a-z]{1,6}/'),
}
BOMBS = {
    "an endless list": Constraint("json_schema", '{"type": "array", "minItems": 1000000000000, "items": {}}'),
    "a large list": Constraint("json_schema", '{"type": "array", "minItems": 100000, "maxItems": 200000, "items": {}}'),
}


async def answer(cluster, constraint=SCHEMA, count=80, sampling=GREEDY, prompt=PROMPT, **kwargs):
    stream = cluster.generate(
        list(prompt), sampling=sampling, max_tokens=count, constraint=constraint, **{"eos": (EOS,), **kwargs}
    )
    return [c async for c in stream]


def on_boards(folder, cuts, go, **settings):
    """Run `go(cluster, boards)` on boards of the wild model."""

    async def between():
        async with Boards(folder, len(cuts) - 1, constrained_manifest(folder)) as boards:
            plan = await boards.form(cuts, **{"context": 256, "chunk": 8, **settings})
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                return await go(cluster, boards)

    return run(between(), 60)


@pytest.fixture(autouse=True)
def wild(monkeypatch):
    be_wild(monkeypatch)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, Sampling(repeat_penalty=1.3)], ids=["greedy", "seed", "penalty"])
@pytest.mark.parametrize("cuts", [(0, 6), (0, 3, 6), (0, 2, 4, 6)])
def test_the_answer_is_the_one_that_the_constraint_leaves(tmp_path, cuts, sampling):
    async def go(cluster, boards):
        found = {}
        for name, constraint in CONSTRAINTS.items():
            for speculate in (True, False):
                said = await answer(cluster, constraint, sampling=sampling, speculate=speculate)
                assert [c.position for c in said] == list(range(len(PROMPT), len(PROMPT) + len(said)))
                found[name, speculate] = [c.token for c in said], said[-1].finish
        return found

    found = on_boards(tmp_path, cuts, go)
    oracle = Oracle(tmp_path)
    for (name, speculate), (tokens, finish) in found.items():
        if sampling.repeat_penalty == 1.0:
            assert tokens == oracle.answer(PROMPT, CONSTRAINTS[name], 80, sampling), (name, speculate)
        assert tokens == found[name, True][0]
        assert finish == ("eos" if tokens[-1] == EOS else "length")
    text = oracle.text(found["schema", True][0])
    content = json.loads(text)
    assert list(content) == ["name", "ages", "true"] and len(content["name"]) <= 6
    assert re.fullmatch(CONSTRAINTS["regex"].source, oracle.text(found["regex", True][0]))
    assert re.fullmatch("(name ){2}[a-z]{1,6}", oracle.text(found["lark", True][0]))


def test_forced_tokens_take_no_pass_each_and_drafts_come_true(tmp_path):
    passes = {}

    async def go(cluster, boards):
        for speculate in (False, True):
            stats = {}
            before = len(boards.sections["b1"].calls)
            said = await answer(cluster, speculate=speculate, stats=stats)
            calls = boards.sections["b1"].calls[before:]
            passes[speculate] = len(said), len([c for c in calls if c[0] >= len(PROMPT)]), stats["b1"].accepted_tokens
        return calls

    calls = on_boards(tmp_path, (0, 3, 6), go)
    count, steps, accepted = passes[False]
    assert steps <= count - 15 and accepted == 0  # {"name": " and the other keys are forced
    assert any(tokens > 1 and position >= len(PROMPT) for position, tokens, _ in calls)
    assert passes[True][0] == count and passes[True][1] <= steps


def test_many_forced_tokens_come_in_pieces(tmp_path):
    letters = "abcdefghijklmnopqrstuvwxyz" * 4
    constraint = Constraint("regex", letters)

    async def go(cluster, boards):
        return [c.token for c in await answer(cluster, constraint, 150)], boards.sections["b1"].calls

    tokens, calls = on_boards(tmp_path, (0, 3, 6), go)
    assert Oracle(tmp_path).text(tokens) == letters and tokens[-1] == EOS
    assert len([c for c in calls if c[0] >= len(PROMPT) - 1 and c[1]]) <= 1 + 2 * (len(tokens) // 16 + 1)


def test_an_answer_at_the_limit_is_cut_there(tmp_path):
    async def go(cluster, boards):
        return [[(c.token, c.finish) for c in await answer(cluster, count=count)] for count in (1, 2, 5, 9, 80)]

    *cut, whole = on_boards(tmp_path, (0, 3, 6), go)
    for said in cut:
        assert [t for t, _ in said] == [t for t, _ in whole[: len(said)]] and said[-1][1] == "length"


def test_with_logprobs_every_token_has_its_row(tmp_path):
    async def go(cluster, boards):
        return await answer(cluster, logprobs=2), await answer(cluster)

    asked, plain = on_boards(tmp_path, (0, 3, 6), go)
    assert [c.token for c in asked] == [c.token for c in plain]
    assert all(c.logprobs[0][0] == c.token and len(c.logprobs) == 3 for c in asked)


@pytest.mark.parametrize("began", [1, 2, 3, 4, 5, 9, 14])
def test_a_replay_goes_on_in_the_middle(tmp_path, began):
    async def go(cluster, boards):
        whole = [c.token for c in await answer(cluster)]
        rest = await answer(cluster, prompt=PROMPT + whole[:began], began=len(PROMPT))
        return whole, [c.token for c in rest]

    whole, rest = on_boards(tmp_path, (0, 3, 6), go)
    assert rest == whole[began:]


# What can't be


REFUSED = {
    "no schema": (Constraint("json_schema", '{"type": "objec"}'), "the JSON schema can't be compiled: Invalid type: o"),
    "no object": (Constraint("json_schema", "[1]"), "the JSON schema can't be compiled: it must be an object."),
    "no JSON": (Constraint("json_schema", "{"), "the JSON schema can't be compiled: Expecting property name"),
    "no regex": (Constraint("regex", "("), "the regular expression can't be compiled: unclosed group. Simplify it."),
    "no grammar": (Constraint("lark", "start: b"), 'the grammar can\'t be compiled: at 1(8): unknown name: "b"'),
    **{name: (bomb, "can't be compiled") for name, bomb in BOMBS.items()},
}


@pytest.mark.parametrize("constraint, reason", REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_compiled_is_refused_and_other_answers_do_not_notice(tmp_path, constraint, reason):
    async def go(cluster, boards):
        other = asyncio.create_task(answer(cluster, None, 60, eos=()))
        constrained = asyncio.create_task(answer(cluster))
        with pytest.raises(AnswerError) as e:
            await answer(cluster, constraint)
        found = [c.token for c in await other], [c.token for c in await constrained]
        await until(lambda: boards.agents[1].stage.engine.free_slots == 3)
        return str(e.value), found

    said, (plain, constrained) = on_boards(tmp_path, (0, 3, 6), go, slots=3)
    assert reason in said and said.count("\n") == 0 and len(said) < 320
    assert constrained == Oracle(tmp_path).answer(PROMPT, SCHEMA, 80) and len(plain) == 60


def test_an_answer_goes_on_when_the_process_is_lost(tmp_path):
    async def go(cluster, boards):
        found, grammars = [], boards.agents[1].holding.model.grammars
        async for chosen in cluster.generate(list(PROMPT), sampling=GREEDY, max_tokens=80, eos=(EOS,),
                                             constraint=SCHEMA):  # fmt: skip
            found.append(chosen.token)
            if len(found) in (9, 13):
                grammars.restart()
        return found

    assert on_boards(tmp_path, (0, 3, 6), go) == Oracle(tmp_path).answer(PROMPT, SCHEMA, 80)


def test_a_board_without_the_tokenizer_says_to_deploy_again(tmp_path):
    async def go(cluster, boards):
        (tmp_path / "tokenizer.json").unlink()
        with pytest.raises(AnswerError) as missing:
            await answer(cluster)
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(AnswerError) as changed:
            await answer(cluster)
        return str(missing.value), str(changed.value)

    missing, changed = on_boards(tmp_path, (0, 3, 6), go)
    assert missing.endswith("tokenizer.json is missing, which a constraint needs. Deploy again.")
    assert "tokenizer.json" in changed and "ManifestError" in changed


def test_a_tokenizer_that_takes_long_to_read_is_read_for_the_next_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.constraint.WAIT_S", 0.0)

    async def go(cluster, boards):
        with pytest.raises(BusyError, match="board b1 is busy: it still reads the model's tokenizer, for constraints"):
            await answer(cluster)
        grammars = boards.agents[1].stage._chooser._grammars
        await until(lambda: grammars._reading.done())
        process = grammars.running
        monkeypatch.setattr("edgellm.agent.constraint.WAIT_S", 15.0)
        return [c.token for c in await answer(cluster)], grammars.running is process

    tokens, same = on_boards(tmp_path, (0, 3, 6), go)
    assert tokens == Oracle(tmp_path).answer(PROMPT, SCHEMA, 80) and same


def test_a_board_without_ram_for_the_process_says_so_and_takes_other_questions(tmp_path):
    async def go(cluster, boards):
        grammars = boards.agents[1].stage._chooser._grammars
        board_free = grammars.spare_bytes()
        grammars.spare_bytes = lambda: 41 << 20
        with pytest.raises(BusyError) as refused:
            await answer(cluster)
        assert grammars.running is None
        free = [c.token for c in await answer(cluster, None, 5)]
        estimate = grammars.need_bytes
        grammars.spare_bytes = lambda: estimate + (40 << 20)
        tokens = [c.token for c in await answer(cluster)]
        return str(refused.value), len(free), tokens, board_free, estimate, grammars

    said, free, tokens, board_free, estimate, grammars = on_boards(tmp_path, (0, 3, 6), go)
    assert said == (
        "board b1 is busy: 41 MB of RAM are left beside the plan, and constraints of fake take 52 MB. Plan with a "
        "smaller context or fewer slots."
    )
    assert free == 5 and tokens == Oracle(tmp_path).answer(PROMPT, SCHEMA, 80) and board_free > 100 << 20
    assert grammars.memory_bytes == 40 << 20  # what is left beside the tokenizer
    assert 5 << 20 < grammars.need_bytes < estimate  # as measured: a vocabulary of 97 tokens


def test_a_constraint_needs_a_token_that_ends_the_answer(tmp_path):
    async def go(cluster, boards):
        with pytest.raises(AnswerError, match="a constraint without eos, the tokens that end the answer"):
            await answer(cluster, eos=())
        return [c.token for c in await answer(cluster, None, 5, eos=())]

    assert len(on_boards(tmp_path, (0, 3, 6), go)) == 5


def test_the_process_ends_when_nothing_has_needed_it_for_minutes(tmp_path):
    grammars = Grammars(constrained_manifest(tmp_path), tmp_path)
    matching = grammars.match(SCHEMA, (EOS,), VOCAB)
    matching.follow([], 0, 0)
    grammars.sweep(time.monotonic() + 9000.0)
    assert grammars.running is not None, "an answer is under way"
    before_s = time.monotonic()
    matching.close()
    grammars.sweep(before_s + 299.0)
    assert grammars.running is not None
    grammars.sweep(time.monotonic() + 301.0)
    assert grammars.running is None
    again = grammars.match(SCHEMA, (EOS,), VOCAB)
    again.follow([], 0, 0)
    assert again.forced() is not None and grammars.running is not None
    grammars.close()


def test_many_answers_share_the_process_and_do_not_mix(tmp_path):
    async def go(cluster, boards):
        prompts = [[i + 1, 2 * i + 1, 7] * (i + 1) for i in range(4)]
        tasks = [asyncio.create_task(answer(cluster, list(CONSTRAINTS.values())[i], prompt=p, sampling=SAMPLED))
                 for i, p in enumerate(prompts)]  # fmt: skip
        return prompts, [[c.token for c in await task] for task in tasks]

    prompts, answers = on_boards(tmp_path, (0, 3, 6), go, slots=4)
    oracle = Oracle(tmp_path)
    for prompt, tokens, constraint in zip(prompts, answers, CONSTRAINTS.values(), strict=True):
        assert tokens == oracle.answer(prompt, constraint, 80, SAMPLED)
