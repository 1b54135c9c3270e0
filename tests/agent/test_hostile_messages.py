"""Messages of the right form and with odd content, sent while an answer is being made: each is answered with a sentence
or dropped, takes no slot, and leaves the other sequences alone."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.plan import Plan
from edgellm.shards.manifest import Manifest
from edgellm.wire import messages as m
from tests.agent.hostile import BEFORE, DEADLINE_S, MANAGER, Stranger, mid_answer, until
from tests.fakes import HIDDEN, Boards, connect_all, make_manifest, make_plan, run

pytestmark = pytest.mark.usefixtures("logged")


def test_an_order_that_follows_a_refused_one_reserves_nothing(tmp_path):
    async def go():
        async with mid_answer(tmp_path) as at:
            orders = [m.Trace(7, 3, 1, bytes(16))]  # of another epoch: refused
            orders += [m.Open(1, 100 + i, {**GOOD, "plan": at.plan.digest}, (1, 2)) for i in range(5)]
            stranger = await Stranger.dial(at.last, b"".join(m.encode(x) for x in (MANAGER, *orders)))
            assert "not epoch 7" in await stranger.refused()
            assert at.last.stage.engine.free_slots == 2

    run(go())


def test_hidden_states_of_an_unknown_sequence_are_dropped(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            await boards.form((0, 3, 6))
            stranger = await Stranger.dial(boards.agents[1], BEFORE)
            for i in range(300):
                stranger.send(m.Hidden(1, i, 0, 64, 1, (1,) * 64, bytes(64 * HIDDEN * 4)))
            stranger.send(m.Ping(42))
            assert (await stranger.next()).number == 42
            stage = boards.agents[1].stage
            assert (stage.engine.waiting, stage.engine.waiting_bytes, stage.engine.free_slots) == (0, 0, 2)
            await Stranger.hang_up()

    run(go())


def test_steps_and_tokens_of_another_epoch_are_dropped_and_the_link_stays(tmp_path):
    """The board before may not have moved on yet, or have done so already; its manager knows, and others need the
    link."""

    async def go():
        async with mid_answer(tmp_path) as at:
            for agent in at.boards.agents:
                stranger = await Stranger.dial(agent, m.Hello("board", "mallory"))
                stranger.send(m.Hidden(7, at.seq_id, 0, 1, 1, (1,), bytes(16)), m.Tokens(0, at.seq_id, 13, 0, (1,)))
                stranger.send(m.Ping(42))
                assert (await stranger.next()).number == 42

    run(go())


def test_close_and_token_for_another_manager_s_sequence_change_nothing(tmp_path):
    async def go():
        async with mid_answer(tmp_path) as at:
            stranger = await Stranger.dial(at.last, MANAGER, m.Close(1, at.seq_id), m.Close(1, 5), m.Ping(1))
            answers = [await stranger.next(), await stranger.next()]
            assert answers[0] == m.Closed(1, 5, {}) and isinstance(answers[1], m.Pong)
            stranger.send(m.Open(1, at.seq_id, {**GOOD, "plan": at.plan.digest}, (1,)))
            assert "open here already" in (await stranger.next()).reason

    run(go())


GOOD = {"sampling": {}, "max_tokens": 3, "eos": [], "slot": 1}
OPENS = {
    "eos is a number": ({**GOOD, "eos": 5}, (1,), "eos"),
    "eos is null": ({**GOOD, "eos": None}, (1,), "eos"),
    "eos is nested": ({**GOOD, "eos": [[1]]}, (1,), "eos"),
    "eos is text": ({**GOOD, "eos": "abc"}, (1,), "eos"),
    "max_tokens is true": ({**GOOD, "max_tokens": True}, (1,), "max_tokens is True"),
    "max_tokens is 0": ({**GOOD, "max_tokens": 0}, (1,), "max_tokens is 0"),
    "max_tokens is negative": ({**GOOD, "max_tokens": -1}, (1,), "max_tokens is -1"),
    "max_tokens is 1e9": ({**GOOD, "max_tokens": 1e9}, (1,), "max_tokens is 1000000000.0"),
    "max_tokens is a list": ({**GOOD, "max_tokens": ["é" * 3000]}, (1,), "max_tokens is"),
    "max_tokens is missing": ({}, (1,), "max_tokens"),
    "reuse is true": ({**GOOD, "reuse": True}, (1,), "reuse is True"),
    "reuse is negative": ({**GOOD, "reuse": -5}, (1,), "reuse is -5"),
    "reuse is text": ({**GOOD, "reuse": "é" * 3000}, (1,), "reuse is"),
    "reuse is null": ({**GOOD, "reuse": None}, (1,), "reuse is None"),
    "sampling is null": ({**GOOD, "sampling": None}, (1,), "sampling"),
    "sampling has more": ({**GOOD, "sampling": {"temprature": 1}}, (1,), "unknown fields"),
    "temperature is huge": ({**GOOD, "sampling": {"temperature": 10**4000}}, (1,), "temperature"),
    "temperature is text": ({**GOOD, "sampling": {"temperature": "é" * 5000}}, (1,), "temperature is"),
    "temperature is a surrogate": ({**GOOD, "sampling": {"temperature": "\ud800"}}, (1,), "temperature is"),
    "seed is huge": ({**GOOD, "sampling": {"seed": 10**4000}}, (1,), "seed is"),
    "seed is true": ({**GOOD, "sampling": {"seed": True}}, (1,), "seed is True"),
    "an id outside of the vocabulary": (GOOD, (1, 97), "token id 97; the vocabulary has 97"),
    "the highest id there is": (GOOD, ((1 << 32) - 1,), "token id 4294967295"),
    "no prompt": (GOOD, (), "a prompt of 0 tokens"),
    "a prompt longer than the context": (GOOD, (1,) * 65, "a prompt of 65 tokens; a slot"),
}  # fmt: skip


def test_an_open_with_odd_options_fails_with_a_sentence_and_takes_no_slot(tmp_path):
    async def go():
        async with mid_answer(tmp_path) as at:
            for agent in at.boards.agents:
                stranger = await Stranger.dial(agent, MANAGER)
                for name, (options, ids, reason) in OPENS.items():
                    stranger.send(m.Open(1, 9, {**options, "plan": at.plan.digest}, ids))
                    answer = await stranger.next()
                    assert isinstance(answer, m.Failed) and reason in answer.reason, (name, answer)
                    assert len(answer.reason) < 1000 and m.FAILURES[answer.code] == "error", (name, answer)
                    assert agent.stage.engine.free_slots == 2, name
                stranger.send(m.Open(7, 9, {**GOOD, "plan": at.plan.digest}, (1,)))
                answer = await stranger.next()
                assert m.FAILURES[answer.code] == "epoch" and "holds epoch 1, not epoch 7" in answer.reason

    run(go())


@pytest.mark.parametrize("digest", [None, "", "0" * 16, 5, ["0"], {}, "\ud800", "no digest"])
def test_an_open_without_the_plan_s_digest_fails_with_code_epoch_and_takes_no_slot(tmp_path, digest):
    async def go():
        async with mid_answer(tmp_path) as at:
            stranger = await Stranger.dial(at.last, MANAGER)
            stranger.send(m.Open(1, 9, {**GOOD, **({} if digest == "no digest" else {"plan": digest})}, (1,)))
            answer = await stranger.next()
            assert m.FAILURES[answer.code] == "epoch" and "holds another plan of epoch 1" in answer.reason
            assert at.last.stage.engine.free_slots == 2

    run(go())


# JSON of any kind, and, more often than chance has it, with the fields that a change of the plan has.
_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates, too
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
_JSON = st.recursive(
    _SCALARS | st.sampled_from(["b1", "b0", 10**4000, -1, 1 << 64, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def _odd_plan(manifest) -> st.SearchStrategy:
    good = make_plan(manifest, (0, 3, 6), epoch=2).to_dict()
    field = st.sampled_from([*good, "more"]).flatmap(lambda k: st.tuples(st.just(k), _JSON))
    return _JSON | field.map(lambda pair: {**good, pair[0]: pair[1]})


def test_assign_with_any_json_is_answered_with_a_sentence(tmp_path):
    """All examples go to agents that are in the middle of an answer, so they are drawn first and sent together."""
    make_manifest().write(tmp_path)
    manifest = Manifest.read(tmp_path)
    good = {"plan": make_plan(manifest, (0, 3, 6), epoch=2).to_dict(), "board": "b1",
            "addresses": {"b0": ["127.0.0.1", 1], "b1": ["127.0.0.1", 2]}}  # fmt: skip
    contents = []

    @settings(max_examples=250, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        st.fixed_dictionaries(
            {}, optional={"plan": _odd_plan(manifest), "board": _JSON, "addresses": _JSON, "more": _JSON}
        ),
        st.dictionaries(st.sampled_from(["b0", "b1"]), _JSON | st.lists(_JSON, min_size=2, max_size=2)),
        st.booleans(),
    )
    def draw(content, addresses, keep):
        contents.append({**good, **content} if keep else content)
        contents.append({**good, "plan": {**good["plan"], "chunk": 7}, "addresses": addresses})

    draw()

    async def go():
        async with mid_answer(tmp_path) as at:
            stage = at.last.stage
            stranger = await Stranger.dial(at.last, MANAGER, m.Claim({"replaces": 1, "epoch": 2}))
            assert (await stranger.next()).content == {"error": None, "epoch": 1}
            prepared = 0
            for content in contents:
                stranger.send(m.Assign(content))
                answer = await stranger.next()
                assert isinstance(answer, m.Assigned) and answer.content["epoch"] == 1, (content, answer)
                if answer.content["error"] is None:  # it was one, after all
                    assert Plan.from_dict(content["plan"]).epoch == 2 and content["board"] == "b1", (content, answer)
                    prepared += 1
                assert len(answer.content["error"] or "") < 2000, answer
            assert 0 < prepared < len(contents) / 2 and at.last.stage is stage

    run(go())


def test_claim_and_commit_with_any_json_are_answered_with_a_sentence(tmp_path):
    contents = []

    @settings(max_examples=200, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        st.fixed_dictionaries({}, optional={"replaces": _JSON, "epoch": _JSON, "more": _JSON}),
        st.sampled_from([{}, {"replaces": 1}, {"epoch": 2}]),
    )
    def draw(content, good):
        contents.append({**content, **good})

    draw()

    async def go():
        async with mid_answer(tmp_path) as at:
            holding = at.last.holding
            stage = holding.stage
            stranger = await Stranger.dial(at.last, MANAGER)
            for content in contents:
                for message, answer in ((m.Claim, m.Claimed), (m.Commit, m.Committed)):
                    stranger.send(message(content))
                    got = await stranger.next()
                    assert isinstance(got, answer) and got.content["epoch"] == 1, (content, got)
                    assert len(got.content["error"] or "") < 2000, got
                    assert got.content["error"] or message is m.Claim, (content, got)
                    assert not holding.claimed or type(holding._change._epoch) is int
            assert holding.stage is stage
            await Stranger.hang_up()
            await until(lambda: not holding.claimed)

    run(go())


def test_a_plan_with_an_address_that_can_not_be_one_fails_its_sequences_and_nothing_else(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            await boards.form((0, 3, 6))
            hosts = ("x.invalid", "x" * 64, "a\0b", "\ud800", "..", "no such name.invalid", "", "x" * 254)
            for epoch, host in enumerate(hosts, 2):
                plan = make_plan(boards.manifest, (0, 3, 6), epoch=epoch)
                (client,) = await connect_all({"b1": boards.addresses["b1"]})
                held = boards.agents[1].holding.epoch
                await client.ask(m.Claim({"replaces": held, "epoch": epoch}), m.Claimed)
                addresses = {"b0": (host, 1), "b1": boards.addresses["b1"]}
                content = {"plan": plan.to_dict(), "addresses": addresses, "board": "b1"}
                if error := (await client.ask(m.Assign(content), m.Assigned)).content["error"]:
                    assert host != "x.invalid" and "came with address" in error
                    client.close()
                    await until(lambda: not boards.agents[1].holding.claimed)
                    continue
                await client.ask(m.Commit({"epoch": epoch}), m.Committed)
                queue = asyncio.Queue()
                client.subscribe(epoch, queue)
                client.send(m.Open(epoch, epoch, {**GOOD, "plan": plan.digest}, (1,)))
                assert isinstance((await queue.get())[1], m.Opened)
                failed = (await client.receive(queue, DEADLINE_S, "nothing"))[1]
                assert m.FAILURES[failed.code] == "link" and "board b0" in failed.reason
                assert boards.agents[1].stage.engine.free_slots == 2
                client.close()

    run(go())
