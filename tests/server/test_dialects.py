"""Ollama's and Anthropic's APIs over boards of the fake model, which answer with a text that is known."""

import json
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from edgellm.client import AsyncClient
from edgellm.errors import BoardError
from edgellm.manager.cluster_file import ClusterFile
from edgellm.server.app import Settings, make_app
from edgellm.server.change_over import SeveralModels
from edgellm.shards.manifest import Manifest
from tests.cli.commands import CONTEXT, VOCAB, Cluster, answer_to
from tests.fakes import make_manifest, make_plan, run
from tests.tiny import write_tokenizer

CHAT = {"model": "fake:latest", "messages": [{"role": "user", "content": "Why?"}]}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@asynccontextmanager
async def served(cluster, tmp_path, models=None):
    """A client of the server."""
    async with models or SeveralModels(cluster.file, lambda text: None) as open_models:
        transport = httpx.ASGITransport(make_app(open_models, Settings(tmp_path / "api-keys.json")))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=20) as client:
            yield client


def ask(cluster, tmp_path, *requests, models=None):
    """The responses to (path, body) each; without a body it is a GET."""

    async def go():
        async with served(cluster, tmp_path, models) as client:
            return [
                await (client.get(path) if body is None else client.post(path, json=body)) for path, body in requests
            ]

    return run(go())


def contents(response) -> list[dict]:
    """The objects of a stream of lines, or of events."""
    if response.headers["content-type"].startswith("application/x-ndjson"):
        return [json.loads(line) for line in response.text.splitlines()]
    frames = [frame.split("\n") for frame in response.text.split("\n\n") if frame]
    told = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert [name for name, _ in frames] == [f"event: {content['type']}" for content in told]
    return told


class Broken:
    """A client whose boards are lost after the first token."""

    def __init__(self, client):
        self._client = client
        self.asker, self.plan = client.asker, client.plan

    def chat(self, messages, **options):
        return _Broken(self._client.chat(messages, **options))


class _Broken:
    def __init__(self, stream):
        self._stream, self.answer = stream, stream.answer

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        await self._stream.aclose()

    async def __aiter__(self):
        async for delta in self._stream:
            yield delta
            raise BoardError("board b1 is gone", "b1")


class BrokenModels(SeveralModels):
    async def __aenter__(self):
        await super().__aenter__()
        self._whole = dict(self.clients)
        self.clients = {name: Broken(client) for name, client in self.clients.items()}
        return self

    async def __aexit__(self, *exc):
        self.clients = self._whole
        await super().__aexit__(*exc)


def test_ollama_answers_line_by_line_or_at_once(cluster, tmp_path):
    body = {**CHAT, "options": {"num_predict": 9, "num_ctx": 100_000}}
    streamed, whole = ask(cluster, tmp_path, ("/api/chat", body), ("/api/chat", {**body, "stream": False}))
    told = contents(streamed)
    assert "".join(t["message"]["content"] for t in told) == answer_to("Why?", 9)
    assert [t["done"] for t in told] == [False] * (len(told) - 1) + [True]
    assert (told[-1]["done_reason"], told[-1]["prompt_eval_count"], told[-1]["eval_count"]) == ("length", 4, 9)
    content = whole.json()
    assert content["message"] == {"role": "assistant", "content": answer_to("Why?", 9)}
    assert content["total_duration"] >= content["eval_duration"] > 0


def test_ollama_generates_from_a_prompt_as_it_is(cluster, tmp_path):
    body = {"model": "fake", "prompt": "Why?", "raw": True, "stream": False, "options": {"num_predict": 5}}
    (whole,) = ask(cluster, tmp_path, ("/api/generate", body))
    assert whole.json()["response"] == answer_to("Why?", 5)


def test_ollama_loads_and_unloads_without_asking_a_board(cluster, tmp_path):
    bodies = ({"model": "fake"}, {"model": "fake", "messages": [], "keep_alive": "0s"}, {"model": "fake", "prompt": ""})
    paths = ("/api/chat", "/api/chat", "/api/generate")
    told = [r.json() for r in ask(cluster, tmp_path, *zip(paths, bodies, strict=True))]
    assert [t["done_reason"] for t in told] == ["load", "unload", "load"]
    assert all(t["done"] for t in told) and told[2]["response"] == ""


def test_ollama_knows_its_models_and_pulls_what_is_there(cluster, tmp_path):
    version, tags, ps, show, pulled, unknown = ask(
        cluster, tmp_path, ("/api/version", None), ("/api/tags", None), ("/api/ps", None),
        ("/api/show", {"name": "fake"}), ("/api/pull", {"model": "fake:latest"}), ("/api/pull", {"model": "gone"}),
    )  # fmt: skip
    assert tuple(map(int, version.json()["version"].split("."))) >= (0, 6, 4)  # what VS Code needs
    assert [m["model"] for m in tags.json()["models"]] == [m["model"] for m in ps.json()["models"]] == ["fake:latest"]
    assert show.json()["model_info"]["fake.block_count"] == 6 and show.json()["capabilities"] == ["completion"]
    assert contents(pulled)[-1] == {"status": "success"}
    assert unknown.status_code == 400 and "'gone'" in unknown.json()["error"]


def test_a_model_that_is_not_loaded_is_shown_as_it_will_be(cluster, tmp_path):
    manifest = replace(make_manifest(4), model="other", pooling="last")
    folder = tmp_path / "other"
    folder.mkdir()
    manifest.write(folder)
    write_tokenizer(folder, VOCAB)
    template = "{% if tools %}{{ tools }}{% endif %}{{ messages }}{{ enable_thinking }}"
    (folder / "chat_template.jinja").write_text(template)
    plan = make_plan(Manifest.read(folder), (0, 2, 4), context=77)
    file = cluster.file.with_name("two.json")
    ClusterFile.read(cluster.file).adding(folder, plan).write(file)
    models = SeveralModels(file, lambda text: None)
    tags, ps, show = ask(
        cluster, tmp_path, ("/api/tags", None), ("/api/ps", None), ("/api/show", {"model": "other"}), models=models
    )
    assert [m["model"] for m in tags.json()["models"]] == ["fake:latest", "other:latest"]
    assert [m["model"] for m in ps.json()["models"]] == ["fake:latest"]
    assert show.json()["template"] == template
    assert show.json()["capabilities"] == ["completion", "embedding", "tools", "thinking"]
    info = show.json()["model_info"]
    assert (info["fake.context_length"], info["fake.block_count"], info["general.name"]) == (77, 4, "other")


def test_anthropic_answers_with_events_or_at_once(cluster, tmp_path):
    body = {**CHAT, "max_tokens": 9}
    streamed, whole, count = ask(
        cluster, tmp_path, ("/v1/messages", {**body, "stream": True}), ("/v1/messages", body),
        ("/v1/messages/count_tokens", CHAT),
    )  # fmt: skip
    told = contents(streamed)
    assert (told[0]["type"], told[-1]["type"]) == ("message_start", "message_stop")
    assert told[0]["message"]["usage"]["input_tokens"] == 4 == count.json()["input_tokens"]
    texts = [t["delta"]["text"] for t in told if t["type"] == "content_block_delta"]
    assert "".join(texts) == answer_to("Why?", 9)
    message = whole.json()
    assert message["content"] == [{"type": "text", "text": answer_to("Why?", 9)}]
    assert message["stop_reason"] == "max_tokens" and message["usage"]["output_tokens"] == 9


def test_anthropic_tells_which_stop_sequence_ended_an_answer(cluster, tmp_path):
    answer = answer_to("Why?", 60)
    body = {**CHAT, "max_tokens": 60, "stop_sequences": ["never", answer[20:22]]}
    streamed, whole = ask(cluster, tmp_path, ("/v1/messages", {**body, "stream": True}), ("/v1/messages", body))
    told = {"stop_reason": "stop_sequence", "stop_sequence": answer[20:22]}
    assert contents(streamed)[-2]["delta"] == told and whole.json().items() >= told.items()
    assert whole.json()["content"] == [{"type": "text", "text": answer[: answer.index(answer[20:22])]}]


def test_what_the_boards_held_of_a_prompt_is_told(cluster, tmp_path):
    body = {"model": "fake", "messages": [{"role": "user", "content": "Once more?"}], "max_tokens": 2}
    first, second = ask(cluster, tmp_path, ("/v1/messages", body), ("/v1/messages", body))
    usages = [response.json()["usage"] for response in (first, second)]
    assert [(u["input_tokens"], u["cache_read_input_tokens"]) for u in usages] == [(10, 0), (1, 9)]


def test_a_chat_is_counted_without_a_board_even_if_it_fits_in_no_slot(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(AsyncClient, "answer", lambda *_: pytest.fail("a board was asked"))
    long = {"model": "fake", "messages": [{"role": "user", "content": "x" * (CONTEXT + 7)}]}
    (count,) = ask(cluster, tmp_path, ("/v1/messages/count_tokens", long))
    assert count.json() == {"input_tokens": CONTEXT + 7}


@pytest.mark.parametrize(("path", "body", "field"), [
    ("/api/chat", {**CHAT, "messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    ("/api/chat", {**CHAT, "messages": CHAT["messages"] * 2001}, "messages"),
    ("/api/embed", {"model": "fake", "input": 3}, "input"),
    ("/v1/messages", {**CHAT, "max_tokens": "many"}, "max_tokens"),
    ("/v1/messages", {**CHAT, "max_tokens": 1, "tools": [{"name": "f"}] * 129}, "tools"),
    ("/v1/messages", {**CHAT, "max_tokens": 1, "messages": []}, "messages"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_in_the_shape_of_its_api(cluster, tmp_path, path, body, field):
    (response,) = ask(cluster, tmp_path, (path, body))
    assert response.status_code == 400
    told = response.json()["error"]
    if path.startswith("/v1"):
        assert (response.json()["type"], told["type"]) == ("error", "invalid_request_error")
        told = told["message"]
    assert told.startswith(f"{field}: ")


def test_a_stream_whose_boards_are_lost_ends_with_an_error(cluster, tmp_path):
    models = BrokenModels(cluster.file, lambda text: None)
    chat = ask(cluster, tmp_path, ("/api/chat", CHAT), models=models)[0]
    assert contents(chat)[-1] == {"error": "board b1 is gone"}
    assert not any(told.get("done") for told in contents(chat))
    models = BrokenModels(cluster.file, lambda text: None)
    body = {**CHAT, "max_tokens": 9, "stream": True}
    told = contents(ask(cluster, tmp_path, ("/v1/messages", body), models=models)[0])
    assert told[-1]["type"] == "error" and told[-1]["error"]["message"] == "board b1 is gone"
    assert not any(t["type"] == "message_stop" for t in told)

