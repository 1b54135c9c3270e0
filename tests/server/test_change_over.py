"""Several models behind one server: a question waits for its model, or is told when to come back."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from edgellm.errors import OtherModelError, PlanError
from edgellm.server import change_over
from edgellm.server.change_over import SeveralModels
from edgellm.server.errors import to_api_error
from edgellm.server.models import Loading, UnknownModel
from tests.fakes import make_manifest, make_plan, run, until

MANIFEST = replace(make_manifest(), sha256="0" * 64)


class FakeClient:
    """A client whose boards load its model once `may_load` is set. Two boards hold each model, or one of their own."""

    made: dict[str, "FakeClient"] = {}
    apart = False

    def __init__(self, path, *, tell, model, patience_s):
        if model == "gone":
            raise PlanError("it is damaged")
        self.asker = SimpleNamespace(manifest=MANIFEST, model_dir=path)
        self.plan = make_plan(MANIFEST, (0, 6) if self.apart else (0, 3, 6))
        if self.apart and model == "b":
            self.plan = SimpleNamespace(boards=("b1",), sections=self.plan.sections, context=64, slots=2)
        self.may_load, self.error, self.prepared = asyncio.Event(), None, 0
        self.may_load.set()
        FakeClient.made[model] = self

    async def prepare(self):
        self.prepared += 1
        if self.error is not None:
            raise self.error
        await self.may_load.wait()
        return self.plan

    async def aclose(self):
        pass


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    """Models a (the default), b, and one that can't be read, on fake boards; everything that waits is quick."""
    for name, value in (("_LOOK_S", 0.005), ("_RETRY_S", 0.005), ("AsyncClient", FakeClient)):
        monkeypatch.setattr(change_over, name, value)
    monkeypatch.setattr(change_over.ClusterFile, "read", lambda path: SimpleNamespace(models=["a", "b", "gone"]))
    monkeypatch.setattr("edgellm.server.turns.LULL_S", 0.01)
    monkeypatch.setattr(FakeClient, "apart", False)
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


def test_models_on_boards_of_their_own_answer_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeClient, "apart", True)

    async def go():
        async with models(tmp_path) as served:
            await hold(served, "b")
            async with served.use("b"), served.use("a"):
                return FakeClient.made["a"].prepared, served.describe("a").loaded, served.describe("b").loaded

    assert run(go()) == (0, True, True)
