"""The `ollama` client."""

import json

import ollama
import pytest

from tests.clients.asked import LENGTH, MODEL, PERSON, QUESTION, WEATHER, check_person, user

GREEDY = {"num_predict": LENGTH, "temperature": 0}


@pytest.fixture(scope="module")
def client(served):
    client = ollama.Client(host=served.url, headers={"Authorization": f"Bearer {served.key}"}, timeout=60)
    yield client
    client._client.close()


def test_chat(client, served):
    reply = client.chat(MODEL, user(QUESTION), options=GREEDY)
    assert reply.message.content == served.answer
    assert (reply.done, reply.done_reason, reply.eval_count) == (True, "length", LENGTH)
    assert reply.total_duration >= reply.eval_duration > 0 and reply.prompt_eval_count > 0


def test_a_stream(client, served):
    chunks = list(client.chat(f"{MODEL}:latest", user(QUESTION), options=GREEDY, stream=True))
    assert "".join(chunk.message.content for chunk in chunks) == served.answer
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[0].created_at <= chunks[-1].created_at


def test_generate(client, served):
    assert client.generate(MODEL, QUESTION, options=GREEDY).response == served.answer
    chunks = client.generate(MODEL, "One, two, three,", raw=True, options={**GREEDY, "num_predict": 6}, stream=True)
    assert "four" in "".join(chunk.response for chunk in chunks)


def test_loading_and_unloading(client):
    assert client.generate(MODEL).done_reason == "load"
    assert client.chat(MODEL, [], keep_alive=0).done_reason == "unload"
    assert client.chat(MODEL, []).done_reason == "load"


def test_models(client):
    (listed,) = client.list().models
    (running,) = client.ps().models
    assert listed.model == running.model == f"{MODEL}:latest" and listed.size > 10**8
    assert running.expires_at is not None and running.context_length == 2048
    shown = client.show(MODEL)
    assert shown.modelinfo["llama.context_length"] == 2048 and "completion" in shown.capabilities
    assert client.pull(MODEL).status == "success"
    assert [progress.status for progress in client.pull(MODEL, stream=True)][-1] == "success"


def test_a_format(client):
    reply = client.chat(MODEL, user("Invent a person."), format=PERSON, options={"num_predict": 200})
    check_person(json.loads(reply.message.content))


def test_tools_and_their_results(client):
    """It has no way to demand a call; what an earlier one gave is taken."""
    history = [
        *user("How is the weather in Paris?"),
        {"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]},
        {"role": "tool", "tool_name": "get_weather", "content": '{"sky": "rain"}'},
    ]  # fmt: skip
    reply = client.chat(MODEL, history, tools=[WEATHER], options={"num_predict": 8})
    assert reply.message.content or reply.message.tool_calls


def test_embed(client):
    reply = client.embed(MODEL, ["A cat.", "A dog."])
    assert [len(vector) for vector in reply.embeddings] == [576, 576] and reply.prompt_eval_count > 2
    assert sum(x * x for x in reply.embeddings[0]) == pytest.approx(1, abs=1e-6)
    assert len(client.embed(MODEL, "A cat.", dimensions=64).embeddings[0]) == 64
    assert len(client.embeddings(MODEL, "A cat.").embedding) == 576


def test_logprobs(client):
    reply = client.chat(MODEL, user(QUESTION), options={**GREEDY, "num_predict": 3}, logprobs=True, top_logprobs=2)
    assert "".join(token.token for token in reply.logprobs) == reply.message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in reply.logprobs)


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_refused(client, stream):
    with pytest.raises(ollama.ResponseError) as refused:
        list(client.chat("gone", user("Hi"), stream=stream))
    assert "gone" in refused.value.error and refused.value.status_code == 400


def test_a_wrong_key_is_refused(served):
    client = ollama.Client(host=served.url, headers={"Authorization": "Bearer wrong"})
    with pytest.raises(ollama.ResponseError) as refused:
        client.list()
    assert refused.value.status_code == 401
    client._client.close()
