"""How an answer ends: of itself, with the counts right however often it was replayed; or in an error, and when."""

import asyncio
import re

import pytest

from edgellm.errors import AnswerError, BoardError, BusyError, PlanError
from edgellm.manager.answer import Answer, Asker, Question
from edgellm.manager.session import Session
from tests.fakes import GREEDY, VOCAB, Boards, claim, generate, make_manifest, make_plan, run, unclaim, until
from tests.manager.asking import PROMPT, Asked, asked, cut, form, restart, stop
from tests.manager.managers import sections
from tests.tiny import write_tokenizer

pytestmark = pytest.mark.usefixtures("quick")

MANY = {3: cut(1), 8: restart(2), 14: form((0, 1, 6), 30)}  # an answer is replayed three times
LARGE = make_manifest(ram_bytes=300_000_000)  # three layers fit on a board


async def answered(boards: Boards, at: dict, count: int, **kwargs) -> Asked:
    return await asked(boards, await boards.form((0, 3, 5, 6), context=256), at, count, **kwargs)


# Counts


@pytest.mark.parametrize("count", [1, 2, 8, 9, 14, 15, 30])
def test_max_tokens_are_those_of_the_whole_answer(tmp_path, count):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            return await answered(boards, MANY, count)

    got = run(go())
    assert (got.tokens, got.finish) == (generate(PROMPT, count), "length")


def test_eos_ends_a_replayed_answer(tmp_path):
    expected = generate(PROMPT, 60)
    eos = next(t for t in expected[16:] if t not in expected[:16])

    async def go():
        async with Boards(tmp_path, 3) as boards:
            return await answered(boards, MANY, 60, eos=(eos,))

    got = run(go())
    assert (got.tokens, got.finish) == (expected[: expected.index(eos) + 1], "eos")


@pytest.mark.parametrize("context", [20, 27, 40])
def test_the_context_ends_a_replayed_answer_where_it_ends_any(tmp_path, context):
    count = context - len(PROMPT) + 1

    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 3, 5, 6), context=context)
            at = {count - 3: cut(1), count - 2: restart(0), count - 1: cut(2)}
            return await asked(boards, plan, at, 100)

    got = run(go())
    assert (got.tokens, got.finish) == (generate(PROMPT, count), "context")


def test_a_stop_text_ends_a_replayed_answer_and_its_stages_are_those_that_served_last(tmp_path):
    vocab = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ", "ĉ"]
    assert len(vocab) == VOCAB

    def text(tokens):
        return "".join(vocab[t] for t in tokens).replace("Ġ", " ").replace("Ċ", "\n").replace("ĉ", "\t")

    async def go():
        async with Boards(tmp_path, 3) as boards:
            write_tokenizer(tmp_path, vocab)
            asker, shown = Asker(tmp_path), []
            plan = await boards.form((0, 3, 5, 6), context=256)
            prompt = "Why is the sky blue?"
            ids = asker.encode(Question(prompt), 256)
            whole = text(generate(ids, 80))
            question = Question(prompt, max_tokens=200, stop=(whole[60:64],))
            answer = Answer(len(ids), GREEDY)

            def show(piece):
                shown.append(piece)
                if len(shown) in (5, 25):
                    boards.cut(1)
                if len(shown) == 15:
                    tasks.append(asyncio.create_task(boards.form((0, 2, 6), epoch=7, context=256)))

            tasks = []
            async with Session(boards.manifest, plan, boards.addresses, patience_s=10) as session:
                async for delta in asker.stream(question, ids, session, answer):
                    show(delta.text)
                last = session.plan  # the other manager's, or this one's own if that came first
            await asyncio.gather(*tasks)
            await until(lambda: not any(a.stage and a.stage.running for a in boards.agents))
            return whole, question.stop[0], answer, "".join(shown), last

    whole, stopped_by, answer, shown, last = run(go())
    assert answer.text == shown == whole[: whole.index(stopped_by)] and answer.finish == "stop"
    assert [(s["board"], s["start"], s["end"]) for s in answer.stages] == sections(last) and last.epoch > 1
    assert all(s["decode_ms_per_token"] > 0 for s in answer.stages) and answer.reused_tokens == 0


def test_an_answer_that_must_outgrow_a_smaller_context_says_so(tmp_path):
    async def go():
        async with Boards(tmp_path, 3) as boards:

            async def another_context(boards):
                await boards.form((0, 3, 5, 6), epoch=2, context=20)

            longer = "board b[012] .*: a prompt of (2[1-9]|[3-9][0-9]) tokens; a slot takes 1 to 20"
            with pytest.raises(AnswerError, match=longer):
                await answered(boards, {9: another_context}, 100)

    run(go())


# Patience


async def given_up(boards, plan, happens, hours, got: Asked) -> str:
    """What is said at the end of an answer that isn't possible any more, once it has been said on the way."""
    answer = asyncio.create_task(asked(boards, plan, happens, 100, patience_s=60, got=got))
    await until(lambda: any("Without" in text for text in got.told))
    hours.pass_by(60)
    with pytest.raises(PlanError) as e:
        await answer
    return str(e.value)


def test_what_is_missing_is_named_with_numbers_when_the_others_are_too_small(tmp_path, hours):
    async def go():
        async with Boards(tmp_path, 2, LARGE) as boards:
            plan, got = await boards.form((0, 3, 6), context=256), Asked()
            return await given_up(boards, plan, {5: stop(1)}, hours, got), got

    error, got = run(go())
    assert re.match(
        r"board b1 \(127\.0\.0\.1:\d+\): connection refused, is its agent running\?\. Without: .*b0 .*1\.07 GB", error
    )
    assert got.tokens == generate(PROMPT, 100)[: len(got.tokens)] and len(got.tokens) >= 5
    assert got.told[-1].startswith(error[: error.index("Without")]) and len(got.told[-1]) < 220 < len(error)
    brief = r"Without: fake needs 1\.80 GB and the boards offer 1\.01 GB; trying to continue for up to \d+ s …$"
    assert re.search(brief, got.told[-1])
    assert not any("Without" in text for text in got.told[:-1])  # once a trouble, not at each try


def test_what_is_missing_is_named_when_the_others_lack_the_shards(tmp_path, hours):
    async def go():
        stored = {"b0": (0, 3), "b1": (3, 6), "b2": (0, 4)}
        async with Boards(tmp_path, 3, stored=stored) as boards:
            plan = await boards.form((0, 3, 6), context=256)
            return await given_up(boards, plan, {5: stop(1)}, hours, Asked())

    error = run(go())
    assert error.startswith("board b1 (127.0.0.1:") and "no board has layers 4-6, the head" in error, error


def test_an_answer_goes_on_when_the_board_that_it_needs_is_back(tmp_path, surveys):
    async def go():
        async with Boards(tmp_path, 2, LARGE) as boards:
            got, tasks = Asked(), []

            async def away_for_a_while(boards):
                async def back():
                    await until(lambda: any("Without" in text for text in got.told))
                    tried = len(surveys)
                    await until(lambda: len(surveys) > tried + 1)
                    await boards.start(1)

                await boards.stop(1)
                tasks.append(asyncio.create_task(back()))

            plan = await boards.form((0, 3, 6), context=256)
            await asked(boards, plan, {5: away_for_a_while}, 100, got=got)
            await asyncio.gather(*tasks)
            return got

    got = run(go())
    assert got.tokens == generate(PROMPT, 100) and [p.epoch for p in got.adopted] == [2]
    assert len([text for text in got.told if "Without" in text]) == 1  # once a trouble, not at each try


@pytest.mark.parametrize("patience_s", [0.0, 60.0])
def test_the_answer_is_given_up_after_the_patience_and_not_before(tmp_path, surveys, hours, patience_s):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan, got = await boards.form((0, 3, 6), context=256), Asked()
            answer = asyncio.create_task(asked(boards, plan, {5: stop(0, 1)}, 100, patience_s=patience_s, got=got))
            if patience_s:
                await until(lambda: got.told)
                tried = len(surveys)
                await until(lambda: len(surveys) > tried + 1)
                assert not answer.done()
                hours.pass_by(patience_s)
            with pytest.raises(BoardError, match="board b"):
                await answer
            return got.told

    told = run(go())
    assert told[0].endswith("trying to continue for up to 60 s …") if patience_s else told == []


def test_patience_begins_with_the_trouble_not_with_the_question(tmp_path, hours):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=256)

            async def slow_then_cut(boards):
                hours.pass_by(3600)
                boards.cut(1)

            return await asked(boards, plan, {5: slow_then_cut, 6: slow_then_cut}, 200, patience_s=60)

    assert run(go()).tokens == generate(PROMPT, 200)


def test_if_no_board_answers_at_the_start_it_fails_at_once_and_names_them(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=256)
            with pytest.raises(BoardError, match="board b0 .*refused.*; board b1 .*refused"):
                await asked(boards, plan, {0: stop(0, 1)}, 10)

    run(go(), 3)


def test_boards_that_are_all_lost_before_the_first_token_are_waited_for(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan, got = await boards.form((0, 3, 6), context=256), Asked()
            stage = boards.agents[0].stage
            stage.feeder.feed = lambda sequence, start: None  # no first token
            answer = asyncio.create_task(asked(boards, plan, {}, 50, got=got))
            await until(lambda: stage.running)
            await stop(0, 1)(boards)
            await until(lambda: got.told)
            await boards.start(0)
            await boards.start(1)
            return await answer

    assert run(go()).tokens == generate(PROMPT, 50)


# Busy boards, and what can't be computed


def test_a_question_that_finds_no_slot_stands_in_line_and_is_an_error_only_if_it_won_t_wait(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=256, slots=1)
            places, waiting = [], []

            async def ask_too(boards):
                async with Session(boards.manifest, plan, boards.addresses) as session:
                    stream = session.generate(PROMPT, sampling=GREEDY, max_tokens=9, eos=(), wait_s=0)
                    with pytest.raises(BusyError, match="board b0 is busy: "):
                        await anext(stream)
                waiting.append(asyncio.create_task(wait()))
                await until(lambda: places)

            async def wait():
                async with Session(boards.manifest, plan, boards.addresses) as session:
                    stream = session.generate(PROMPT, sampling=GREEDY, max_tokens=9, eos=(), queued=places.append)
                    return [chosen.token async for chosen in stream]

            first = await asked(boards, plan, {3: ask_too}, 200)
            return first.tokens, await waiting[0], places

    assert run(go()) == (generate(PROMPT, 200), generate(PROMPT, 9), [1])


def test_a_slot_is_waited_for_in_a_replay(tmp_path):
    """While an answer is replayed, another one takes the only slot; the first one stands in line."""

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=256, slots=1)
            others = []

            async def another_comes_first(boards):
                others.append(asyncio.create_task(asked(boards, plan, {}, 50)))
                await until(lambda: boards.agents[0].stage._door._waiting)
                boards.cut(1)

            first = await asked(boards, plan, {3: another_comes_first}, 100)
            return first, (await others[0]).tokens

    first, other = run(go())
    assert first.tokens == generate(PROMPT, 100) and other == generate(PROMPT, 50)
    assert not any("busy" in text for text in first.told)


def test_a_step_that_can_not_be_computed_is_not_tried_again(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:

            async def break_the_model(boards):
                def forward(*args):
                    raise ArithmeticError("a weight is not finite")

                boards.sections["b1"].forward = forward

            got = Asked()
            plan = await boards.form((0, 3, 6), context=256)
            with pytest.raises(AnswerError, match="board b1 .*ArithmeticError: a weight is not finite"):
                await asked(boards, plan, {3: break_the_model}, 200, got=got)
            return got

    assert run(go()).told == []


# Which plan is used


def test_a_plan_that_another_manager_is_committing_is_waited_for_even_beyond_the_patience(tmp_path, surveys, hours):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=256)
            await boards.stop(1)
            await boards.start(1)  # nothing stands now
            claim(boards.agents[0].holding)
            answer = asyncio.create_task(asked(boards, plan, {}, 50, patience_s=60))
            await until(lambda: len(surveys) > 1)
            hours.pass_by(61)
            tried = len(surveys)
            await until(lambda: len(surveys) > tried + 1)
            assert not answer.done()
            unclaim(boards.agents[0].holding)
            return await answer

    got = run(go())
    assert got.tokens == generate(PROMPT, 50) and not any("giving" in text for text in got.told)


def test_boards_that_the_cluster_file_does_not_know_are_found(tmp_path):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            old = make_plan(boards.manifest, (0, 6), context=256)  # b0 alone
            new = await boards.form((0, 3, 5, 6), epoch=4, context=256)
            adopted = []
            async with Session(
                boards.manifest, old, {"b0": boards.addresses["b0"]}, adopted=lambda *args: adopted.append(args)
            ) as session:
                stream = session.generate(PROMPT, sampling=GREEDY, max_tokens=20, eos=())
                assert [c.token async for c in stream] == generate(PROMPT, 20)
            return adopted, [(new, boards.addresses, None)]

    adopted, expected = run(go())
    assert adopted == expected
