"""Several models behind one server: a question waits for its model, or is told when to come back."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from edgellm.errors import ClaimError, OtherModelError, PlanError
from edgellm.manager.progress import Progress
from edgellm.server import change_over, ollama_models
from edgellm.server.change_over import SeveralModels
from edgellm.server.errors import to_api_error
from edgellm.server.models import Loading, UnknownModel
from edgellm.wire.section_status import SectionLoading
from tests.fakes import make_manifest, make_plan, run, until

MANIFEST = replace(make_manifest(), sha256="0" * 64)


class FakeClient:
    """A client whose boards load its model once `may_load` is set: in place of the other one, or if there is `room`
    beside it."""

    made: dict[str, "FakeClient"] = {}
    room = False

    def __init__(self, path, *, tell, model, patience_s):
        if model == "gone":
            raise PlanError("it is damaged")
        self.asker = SimpleNamespace(manifest=MANIFEST, model_dir=path)
        self.plan = make_plan(MANIFEST, (0, 3, 6))
        self.may_load, self.error, self.prepared, self.unloaded = asyncio.Event(), None, 0, 0
        self.may_load.set()
        self.loading = None
        FakeClient.made[model] = self

    async def prepare(self, *, beside=False):
        if beside and not self.room:
            raise PlanError("b has no room beside a: b needs 3 GB and the boards offer 1 GB.")
        self.prepared += 1
        if self.error is not None:
            raise self.error
        await self.may_load.wait()
        return self.plan

    async def stands(self):
        return self.room

    async def unload(self):
        if self.error is not None:
            raise self.error
        self.unloaded += 1
        return True

    async def aclose(self):
        pass


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    """Models a (the default), b, and one that can't be read, on fake boards; everything that waits is quick."""
    for name, value in (("_LOOK_S", 0.005), ("_RETRY_S", 0.005), ("AsyncClient", FakeClient)):
        monkeypatch.setattr(change_over, name, value)
    monkeypatch.setattr(change_over.ClusterFile, "read", lambda path: SimpleNamespace(models=["a", "b", "gone"]))
    monkeypatch.setattr("edgellm.server.turns.LULL_S", 0.01)
    monkeypatch.setattr(FakeClient, "room", False)
    monkeypatch.setattr(FakeClient, "made", {})


def models(tmp_path, told=None):
    return SeveralModels(tmp_path, (told if told is not None else []).append)


def test_a_question_waits_while_its_model_is_loaded_behind_the_answers_that_run(tmp_path):
    told = []

    async def go():
        async with models(tmp_path, told) as served:
            assert served.names() == ["a", "b"]
            with pytest.raises(UnknownModel):
                async with served.use("c"):
                    pass
            async with served.use("") as (name, _):
                assert name == "a"
                second = asyncio.create_task(hold(served, "b"))
                await asyncio.sleep(0)
                await until(lambda: served._turns._asking["b"])
                assert FakeClient.made["b"].prepared == 0  # a is in use
            async with asyncio.timeout(5):
                assert await second == "b"
            return served.describe("a").loaded, served.describe("b"), FakeClient.made["b"].prepared

    loaded, b, prepared = run(go())
    assert not loaded and b.loaded and b.expires_s is not None and prepared == 1
    assert told == ["model gone is left out: it is damaged"]


async def hold(served, name: str, keep_alive_s=None) -> str:
    async with served.use(name, keep_alive_s) as (found, _):
        return found


def test_who_asks_during_a_change_is_told_when_to_ask_again(tmp_path, monkeypatch):
    monkeypatch.setattr(change_over, "_LOAD_PATIENCE_S", 0.05)

    async def go():
        async with models(tmp_path) as served:
            FakeClient.made["b"].may_load.clear()
            errors = []
            for name in ("b", "a", "b"):
                with pytest.raises(Loading) as e:
                    await hold(served, name)
                errors.append(e.value)
            FakeClient.made["b"].may_load.set()
            await until(lambda: "b" in served._turns.stands)
            return errors, await hold(served, "b")

    (first, other, again), name = run(go())
    assert name == "b"
    assert "the boards are loading b; a comes after it. Ask again in 1 s." == str(other)
    assert str(again) == "the boards are loading b. Ask again in 1 s." and 0.0 <= again.progress <= 0.99
    error = to_api_error(again)
    assert (error.status, error.code, error.retry_s) == (503, "model_loading", again.eta_s)
    assert error.more["loading"]["state"] == "loading" and isinstance(first, Loading)


def test_a_change_goes_on_when_who_asked_for_it_is_gone_and_answers_of_others_are_awaited(tmp_path):
    async def go():
        async with models(tmp_path) as served:
            client = FakeClient.made["b"]
            client.error = OtherModelError("the boards still answer with a")
            waiting = asyncio.create_task(hold(served, "b"))
            await until(lambda: client.prepared > 3)
            waiting.cancel()
            client.error = None
            await until(lambda: "b" in served._turns.stands)

    run(go())


def test_why_a_model_can_not_be_loaded_is_told_and_the_other_one_goes_on(tmp_path):
    async def go():
        async with models(tmp_path) as served:
            FakeClient.made["b"].error = PlanError("b needs 3 GB more")
            with pytest.raises(PlanError, match="needs 3 GB"):
                await hold(served, "b")
            return await hold(served, "a")

    assert run(go()) == "a"


def test_the_default_model_returns_when_the_other_one_s_time_is_over(tmp_path):
    async def go():
        async with models(tmp_path) as served:
            await hold(served, "b", 0.0)
            await until(lambda: served._turns.stands == {"a"})
            return FakeClient.made["a"].prepared

    assert run(go()) == 1


def test_who_waits_for_answers_of_another_model_is_told_why_it_has_no_room_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(change_over, "_LOAD_PATIENCE_S", 0.05)

    async def go():
        async with models(tmp_path) as served, served.use("a"):
            with pytest.raises(Loading) as e:
                await hold(served, "b")
            return str(e.value)

    assert run(go()) == (
        "b has no room beside a: b needs 3 GB and the boards offer 1 GB. It is loaded once the answers of a that run "
        "are done. Ask again then."
    )


def test_how_far_boards_are_with_loading_is_told_while_they_load(tmp_path, monkeypatch):
    monkeypatch.setattr(change_over, "_LOAD_PATIENCE_S", 0.05)

    async def go():
        async with models(tmp_path) as served:
            client = FakeClient.made["b"]
            client.may_load.clear()
            progress = client.loading = Progress("b")
            progress.heard({"b0": SectionLoading(2, "b", 0, 3, 1_000_000_000, 4_000_000_000, 10.0), "b1": None})
            with pytest.raises(Loading) as e:
                await hold(served, "b")
            during = ollama_models.running(served.describe("b")), served.describe("a").loading
            client.loading = None
            client.may_load.set()
            await until(lambda: "b" in served._turns.stands)
            return e.value, during, ollama_models.running(served.describe("b"))

    error, (entry, other), after = run(go())
    assert str(error) == "the boards are loading b, 1.0 of 4.0 GB so far. Ask again in 30 s."
    assert (error.progress, error.eta_s) == (0.25, 30.0) and to_api_error(error).retry_s == 30.0
    assert entry["loading"] == {"completed": 1_000_000_000, "total": 4_000_000_000} and other is None
    assert "loading" not in after


def test_a_model_is_loaded_beside_another_while_that_one_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeClient, "room", True)

    async def go():
        async with models(tmp_path) as served:
            FakeClient.made["b"].may_load.clear()
            async with served.use("a"):
                waiting = asyncio.create_task(hold(served, "b"))
                await until(lambda: FakeClient.made["b"].prepared)
                assert await hold(served, "a") == "a"  # a goes on to be asked
                FakeClient.made["b"].may_load.set()
                return await waiting, served._turns.stands

    assert run(go()) == ("b", {"a", "b"})


def test_a_model_beside_the_default_one_is_unloaded_after_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeClient, "room", True)

    async def go():
        async with models(tmp_path) as served:
            client = FakeClient.made["b"]
            client.error = None
            await hold(served, "b", -1)
            assert client.unloaded == 0 and served._turns.stands == {"a", "b"}
            client.error = ClaimError("board b0 still has 1 running answer of b")
            await hold(served, "b", 0)
            await until(lambda: served._turns.expires_in_s("b", change_over._now_s()))  # it is put off
            client.error = None
            served._turns.stay("b", change_over._now_s())
            await until(lambda: served._turns.stands == {"a"})
            return client.unloaded, await hold(served, "b"), served._turns.stands

    assert run(go()) == (1, "b", {"a", "b"})


def test_models_that_stand_at_once_answer_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeClient, "room", True)

    async def go():
        async with models(tmp_path) as served:
            await hold(served, "b")
            async with served.use("b"), served.use("a"):
                return FakeClient.made["a"].prepared, served.describe("a").loaded, served.describe("b").loaded

    assert run(go()) == (0, True, True)
