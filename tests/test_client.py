"""The Python interface, as a program sees it: over boards of the fake model and a cluster file."""

import asyncio
import contextlib
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import edgellm
from edgellm.blocking import Client
from edgellm.client import AsyncClient, Options
from edgellm.errors import BoardError, ClaimError, DeadlineError, UsageError
from edgellm.manager.cluster_file import ClusterFile
from edgellm.sampling import Sampling
from edgellm.structure import Constraint
from tests.cli.commands import CONTEXT, VOCAB, Cluster, answer_to, ids_of
from tests.fakes import Boards, generate, run, until
from tests.tiny import environment, wait_until, write_tokenizer

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home without a cluster."""
    for name, value in environment(tmp_path).items():
        if name.startswith("XDG_") or name == "HOME":
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("EDGELLM_CLUSTER", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def slow(cluster):
    cluster.pace.delay_s = 0.01
    yield cluster
    cluster.pace.delay_s = 0.0


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def free(cluster) -> bool:
    return cluster.free_slots() == [2, 2]


# An answer


def test_deltas_are_the_answer_piece_by_piece_and_the_last_one_says_why_it_ended(cluster):
    async def go():
        async with AsyncClient(cluster.file) as client:
            stream = client.chat(user("Why?"), max_tokens=20)
            return [delta async for delta in stream], stream.answer

    deltas, answer = run(go())
    assert "".join(d.text for d in deltas) == answer.text == answer_to("Why?", 20)
    assert [d.token for d in deltas[:-1]] == answer.tokens == generate(ids_of("Why?"), 20)
    assert [d.finish_reason for d in deltas] == [None] * 20 + ["length"] and deltas[-1].token is None
    assert (answer.finish, answer.prompt_tokens) == ("length", 4) and 0 < answer.first_token_s <= answer.total_s
    assert [s["board"] for s in answer.stages] == ["b0", "b1"]


def test_progress_is_told_while_a_prompt_is_computed_and_logprobs_come_with_each_token(slow):
    told: list[tuple[int, int]] = []

    async def go():
        async with AsyncClient(slow.file) as client:
            stream = client.chat(
                user("Why? " * 200), max_tokens=2, logprobs=0, cache="mine", on_progress=lambda *at: told.append(at)
            )
            return [delta async for delta in stream], stream.answer

    deltas, answer = run(go())
    assert told and all(0 < count < answer.prompt_tokens == whole for count, whole in told)
    assert told == sorted(told)
    assert [len(d.logprobs) for d in deltas] == [1, 1, 0]
    assert [d.logprobs[0][0] for d in deltas[:2]] == answer.tokens


def test_embeddings_come_in_order_with_their_tokens_and_a_text_without_any_is_refused(cluster):
    async def go():
        async with AsyncClient(cluster.file) as client:
            found = await client.embed([f"Why {i}?" for i in range(5)])
            with pytest.raises(UsageError, match="text 1: a text without tokens has no embedding"):
                await client.embed(["Why?", ""])
            with pytest.raises(UsageError, match=f"text 0: the text has {CONTEXT + 1} tokens, a slot of this cluster"):
                await client.embed(["x" * (CONTEXT + 1)])
            return found

    found = run(go())
    texts = [ids_of(f"Why {i}?") for i in range(5)]
    assert [tokens for _, tokens in found] == [len(ids) for ids in texts]
    assert [vector[0] for vector, _ in found] == [pytest.approx(sum(ids) / len(ids)) for ids in texts]
    with Client(cluster.file) as client:
        assert client.embed(["Why 3?"]) == [found[3]]


def test_an_embedding_is_pooled_as_the_manifest_says(cluster, monkeypatch):
    async def go():
        async with AsyncClient(cluster.file) as client:
            found = {}
            for pooling in ("", "mean", "last", "cls", "other"):
                monkeypatch.setattr(client.asker, "manifest", replace(client.asker.manifest, pooling=pooling))
                try:
                    ((found[pooling], _),) = await client.embed(["Why?"])
                except UsageError as e:
                    found[pooling] = str(e)
            return found

    found, ids = run(go()), ids_of("Why?")
    assert {pooling: vector[0] for pooling, vector in found.items()} == {
        "": sum(ids) / 4, "mean": sum(ids) / 4, "last": ids[-1], "cls": ids[0], "other": "f"
    }  # fmt: skip
    assert found["other"].startswith("fake has its own way of making embeddings, which edgellm doesn't know.")


def test_a_constraint_that_can_not_be_compiled_is_refused_before_a_board_works(cluster):
    steps = [len(section.calls) for section in cluster.boards.sections.values()]
    with Client(cluster.file) as client:
        with pytest.raises(UsageError, match="the regular expression can't be compiled: unclosed group. Simplify it."):
            client.chat(user("Why?"), constraint=Constraint("regex", "(")).read()
    assert [len(section.calls) for section in cluster.boards.sections.values()] == steps


def test_a_thread_gets_the_same_deltas_and_many_threads_may_ask_at_once(cluster):
    answers: dict[int, str] = {}
    with Client(cluster.file) as client:

        def ask(i: int) -> None:
            answers[i] = "".join(d.text for d in client.chat(user(f"Why {i}?"), max_tokens=10))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert answers == {i: answer_to(f"Why {i}?", 10) for i in range(2)}
        assert client.generate("Why?", max_tokens=5).read().text == answer_to("Why?", 5)
    with pytest.raises(UsageError, match="the client is closed"):
        client.generate("Why?").read()
    client.close()


def test_options_are_those_of_ask(cluster):
    async def go():
        async with AsyncClient(cluster.file) as client:
            whole = answer_to("Why?", 60)
            stopped = await client.generate("Why?", max_tokens=60, stop=[whole[20:22]]).read()
            one, other = [await client.generate("Why?", temperature=1.0, seed=7, max_tokens=9).read() for _ in "ab"]
            penalties = {"presence_penalty": 1.5, "frequency_penalty": 0.5, "logit_bias": {5: 1.5}}
            penalized = await client.generate("Why?", max_tokens=30, **penalties).read()
            return whole, stopped, one, other, penalized.tokens, penalties

    whole, stopped, one, other, penalized, penalties = run(go())
    assert penalized == generate(ids_of("Why?"), 30, Sampling(**penalties)) != generate(ids_of("Why?"), 30)
    assert (stopped.text, stopped.finish) == (whole[: whole.index(whole[20:22])], "stop")
    assert (stopped.stop, one.stop) == (whole[20:22], "")
    assert one.tokens == other.tokens and (one.sampling.temperature, one.sampling.seed) == (1.0, 7)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda c: c.chat([]), "the prompt is empty"),
        (lambda c: c.chat(["Why?"]), "a message is 'Why.', expected an object with a role and a content"),
        (lambda c: c.chat([{"content": "Why?"}]), "expected an object with a role and a content"),
        (lambda c: c.chat(user("Why?"), tempreature=1), "there is no option 'tempreature'. There are max_tokens, "),
        (lambda c: c.chat(user("Why?"), temperature=-1), "temperature is -1"),
        (lambda c: c.chat(user("Why?"), max_tokens=0), "max-tokens is 0"),
        (lambda c: c.chat([*user("Why?"), *user("How?")]), "fake has no chat template. Send one user message"),
        (lambda c: c.generate("x" * (CONTEXT + 1)), f"the prompt has {CONTEXT + 1} tokens"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_a_board_is_asked(cluster, ask, message):
    async def go():
        async with AsyncClient(cluster.file) as client:
            with pytest.raises(UsageError, match=message):
                await ask(client).read()

    run(go())
    with pytest.raises(UsageError, match="no cluster file"):
        AsyncClient()
    with pytest.raises(UsageError, match="no cluster file"):
        Client()


# Ends


async def leave(client) -> None:
    async for _ in client.generate("Why?", max_tokens=2500):
        break


async def close(client) -> None:
    stream = client.generate("Why?", max_tokens=2500)
    await anext(stream)
    await stream.aclose()
    assert [d async for d in stream] == [] and stream.answer.finish == "cancelled"


async def leave_the_block(client) -> None:
    async with client.generate("Why?", max_tokens=2500) as stream:
        await anext(stream)


async def cancel(client) -> None:
    stream = client.generate("Why?", max_tokens=2500)
    task = asyncio.create_task(stream.read())
    await until(lambda: stream.answer.tokens)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def pass_the_deadline(client) -> None:
    stream = client.generate("Why?", max_tokens=2500, timeout_s=0.2)
    with pytest.raises(DeadlineError, match=r"the answer took longer than 0.2 s; only \d+ tokens of it came by then"):
        await stream.read()
    assert stream.answer.text and issubclass(DeadlineError, TimeoutError)


async def pass_the_first_deadline(client) -> None:
    with pytest.raises(DeadlineError, match="longer than 1e-06 s; no token came by then"):
        await client.generate("Why?", max_tokens=2500, first_token_timeout_s=1e-6).read()
    assert (await client.generate("Why?", max_tokens=3, first_token_timeout_s=20).read()).finish == "length"


@pytest.mark.parametrize("end", [leave, close, leave_the_block, cancel, pass_the_deadline, pass_the_first_deadline])
def test_an_answer_that_is_left_frees_its_slot_at_once(slow, end):
    async def go():
        async with AsyncClient(slow.file) as client:
            await end(client)
            free_slots = asyncio.get_running_loop().run_in_executor
            async with asyncio.timeout(5):
                while not await free_slots(None, free, slow):
                    pass

    run(go())


def test_a_thread_that_leaves_frees_the_slot_too_and_a_closed_client_ends_all_answers(slow):
    client = Client(slow.file)
    with client.generate("Why?", max_tokens=2500) as stream:
        next(stream)
    assert wait_until(lambda: free(slow))
    other = client.generate("Why?", max_tokens=2500)
    next(other)
    client.close()
    assert wait_until(lambda: free(slow))
    with pytest.raises(UsageError, match="the client is closed"):
        next(other)


# Company


class Company:
    """Boards of the fake model in this loop, and a cluster file for clients."""

    def __init__(self, folder: Path, count: int):
        self.boards, self.file = Boards(folder, count), folder / "cluster.json"
        write_tokenizer(folder, VOCAB)

    async def form(self, cuts, **kwargs):
        plan = await self.boards.form(cuts, **{"context": 256, **kwargs})
        ClusterFile.make(self.boards.folder, self.boards.addresses, plan).write(self.file)
        return plan


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in {"survey._REACH_TIMEOUT_S": 1.0, "survey._LOST_TIMEOUT_S": 0.5}.items():
        monkeypatch.setattr(f"edgellm.manager.{name}", seconds)
    monkeypatch.setattr("edgellm.manager.survey.Fleet._share_ram", lambda fleet: None)
    monkeypatch.setattr("edgellm.agent.measure.free_ram_bytes", lambda: 4 << 30)
    monkeypatch.setattr("edgellm.manager.failures.STEADY_S", 0.0)
    monkeypatch.setattr("edgellm.manager.growth._WEIGH_EVERY_S", 0.0)


def test_200_answers_on_4_slots_are_right_while_a_board_dies_and_another_one_joins(tmp_path, quick):
    async def go():
        company = Company(tmp_path, 3)
        async with company.boards as boards:
            await company.form((0, 2, 4, 6), slots=4)
            async with AsyncClient(company.file, survey_every_s=0.05, patience_s=60) as client:
                ended = 0

                async def ask(i: int):
                    nonlocal ended
                    deltas = [d async for d in client.generate(f"Why {i}?", max_tokens=24)]
                    ended += 1
                    return "".join(d.text for d in deltas), [d.token for d in deltas[:-1]]

                answers = [asyncio.create_task(ask(i)) for i in range(200)]
                await until(lambda: ended >= 30, 60)
                await boards.stop(1)
                await until(lambda: ended >= 90, 60)
                await boards.start(3)
                ClusterFile.read(company.file).with_plan(client.plan, boards.addresses).write(company.file)
                done = await asyncio.gather(*answers)
                await until(lambda: "b3" in client.plan.boards, 60)
                await until(lambda: all(a.stage.engine.free_slots == 4 for a in boards.running if a.stage))
                return done, client.plan

    done, plan = run(go(), 120)
    assert done == [(answer_to(f"Why {i}?", 24), generate(ids_of(f"Why {i}?"), 24)) for i in range(200)]
    assert "b1" not in plan.boards and {"b0", "b2", "b3"} == set(plan.boards)


def test_a_client_writes_the_plan_that_serves_and_reads_what_others_write(tmp_path, quick):
    async def go():
        company = Company(tmp_path, 3)
        async with company.boards as boards:
            first = await company.form((0, 2, 4, 6))
            async with AsyncClient(company.file, survey_every_s=0.02) as client:
                await boards.stop(1)
                assert (await client.generate("Why?", max_tokens=9).read()).text == answer_to("Why?", 9)
                written = ClusterFile.read(company.file).plan
                assert written == client.plan and written.epoch == first.epoch + 1 and "b1" not in written.boards
                await boards.start(1)
                for _ in range(100):  # another manager, which the client's own may be in the way of
                    with contextlib.suppress(ClaimError):
                        await company.form((0, 1, 6), epoch=9)
                        break
                await until(lambda: client.plan.epoch >= 9)
                return (await client.generate("Why?", max_tokens=9).read()).text

    assert run(go()) == answer_to("Why?", 9)


# The package


def test_importing_edgellm_imports_no_client_until_it_is_used():
    code = (
        "import sys, edgellm\n"
        "before = [m for m in sys.modules if m.startswith('edgellm.') or m in ('asyncio', 'tokenizers')]\n"
        "print(before, edgellm.AsyncClient.__module__, edgellm.Client.__name__, hasattr(edgellm, 'Clinet'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[] edgellm.client Client False\n"


def test_the_package_is_typed_and_its_options_are_those_of_the_page():
    folder = Path(edgellm.__file__).parent
    assert (folder / "py.typed").exists()
    page = (folder.parent / "docs" / "python.md").read_text()
    options = re.search(r"\*\*Options\*\* are keyword arguments: ([^.]*)\.", page)[1]
    assert set(re.findall(r"`(\w+)`", options)) == set(Options.__annotations__)


def test_the_page_s_program_runs_as_it_is(cluster, tmp_path):
    page = (Path(edgellm.__file__).parent.parent / "docs" / "python.md").read_text()
    program = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    assert len([line for line in program.splitlines() if line.strip()]) <= 6
    env = {**environment(tmp_path), "EDGELLM_CLUSTER": str(cluster.file)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, answer_to("Why is the sky blue?", 512) + "\n", "")


def test_boards_that_are_all_gone_are_named(tmp_path, quick):
    async def go():
        company = Company(tmp_path, 2)
        async with company.boards as boards:
            await company.form((0, 3, 6))
            await boards.stop(0)
            await boards.stop(1)
            async with AsyncClient(company.file) as client:
                with pytest.raises(BoardError, match="board b0 .*refused.*board b1 .*refused"):
                    await client.generate("Why?").read()

    run(go())
