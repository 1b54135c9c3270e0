"""What Home Assistant's two integrations send, one after the other, and what they read of the replies.

`llama_cpp` is its integration for any server that speaks OpenAI's API, `ollama` the one for Ollama's.
"""

import asyncio
import json

import ollama
import openai
import pytest

from tests.clients.asked import MODEL, PERSON, check_person

CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
EMPTY_TOOL = {
    "type": "function",
    "function": {
        "name": "test_function",
        "description": "Test function.",
        "parameters": {"type": "object", "properties": {}},
    },
}
LIGHT = {
    "type": "function",
    "function": {
        "name": "HassTurnOn",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "domain": {"type": "array", "items": {"type": "string"}}},
            "required": [],
        },
        "description": "Turns on a device",
    },
}
RESULT = '{"data":{"success":true},"error":null}'


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def joined(chunks) -> tuple[str, list[dict]]:
    """The text and the calls of a stream, read as llama_cpp does: by index, and only until a finish reason."""
    text, calls, current = "", [], None
    for chunk in chunks:
        if not chunk.choices:
            continue
        choice = chunk.choices[0]
        if choice.finish_reason:
            break
        if current is None and not choice.delta.tool_calls:
            text += choice.delta.content or ""
            continue
        if not choice.delta.tool_calls or not choice.delta.tool_calls[0].function:
            continue
        part = choice.delta.tool_calls[0]
        if current and part.index == current["index"]:
            current["arguments"] += part.function.arguments or ""
            continue
        current = {"index": part.index, "id": part.id, "name": part.function.name,
                   "arguments": part.function.arguments or ""}  # fmt: skip
        calls.append(current)
    return text, calls


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/v1"])
def test_llama_cpp(served, path):
    async def go():
        async with openai.AsyncOpenAI(base_url=served.url + path, api_key=served.key, max_retries=0) as client:
            listed = [model.id async for model in await client.with_options(timeout=10.0).models.list()]
            assert listed == [MODEL]
            checked = {"model": MODEL, "messages": CHAT, "tools": [EMPTY_TOOL], "max_tokens": 3}
            assert (await client.chat.completions.create(**checked, stream=False)).choices
            streamed = [chunk async for chunk in await client.chat.completions.create(**checked, stream=True)]
            assert streamed[-1].choices[0].finish_reason is not None

            history = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [
                {"type": "function", "id": "call_1", "function": {"name": "HassTurnOn", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "call_1", "content": RESULT}]  # fmt: skip
            asked = {"model": MODEL, "max_tokens": 20, "top_p": 1.0, "temperature": 0.7, "user": "01JABC"}
            for messages in (CHAT, history):
                stream = await client.chat.completions.create(**asked, messages=messages, tools=[LIGHT], stream=True)
                text, calls = joined([chunk async for chunk in stream])
                assert text or calls
                for call in calls:
                    assert call["id"] and call["name"] == "HassTurnOn"

    run(go())


def test_llama_cpps_structured_task(served):
    async def go():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as client:
            reply = await client.chat.completions.create(
                model=MODEL, messages=CHAT, max_tokens=200, top_p=1.0, temperature=0.7, user="01JABC", stream=False,
                response_format={
                    "type": "json_schema", "json_schema": {"name": "task", "strict": True, "schema": PERSON},
                },
            )  # fmt: skip
            check_person(json.loads(reply.choices[0].message.content))

    run(go())


def test_llama_cpp_shows_what_is_wrong(served):
    async def go():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as client:
            with pytest.raises(openai.APIStatusError) as refused:
                await client.chat.completions.create(model="gone", messages=CHAT)
            assert "gone" in refused.value.response.json()["error"]["message"]

    run(go())


def test_ollama(served):
    async def go():
        headers = {"Authorization": f"Bearer {served.key}"}
        async with ollama.AsyncClient(host=served.url, headers=headers) as client:
            async with asyncio.timeout(5):
                installed, loaded = await asyncio.gather(client.list(), client.ps())
            models = {model["model"] for model in installed.get("models", [])}
            assert models == {f"{MODEL}:latest"} and [m.model for m in loaded.models] == list(models)
            await client.pull(f"{MODEL}:latest")

            history = [*CHAT, ollama.Message(role="assistant", content="", thinking=None, tool_calls=[
                ollama.Message.ToolCall(function=ollama.Message.ToolCall.Function(name="HassTurnOn", arguments={}))]),
                ollama.Message(role="tool", content=RESULT)]  # fmt: skip
            for messages, keep_alive, think in ((CHAT, -1, None), (history, "300s", False)):
                stream = await client.chat(
                    model=f"{MODEL}:latest", messages=messages, tools=[LIGHT], stream=True, keep_alive=keep_alive,
                    options={"num_ctx": 8192.0, "num_predict": 20}, think=think, format=None,
                )  # fmt: skip
                told = [response async for response in stream]
                text = "".join(response["message"].get("content") or "" for response in told)
                calls = [c for response in told for c in response["message"].get("tool_calls") or ()]
                assert (text or calls) and told[-1]["done"]
                for call in calls:
                    assert call["function"]["name"] == "HassTurnOn" and isinstance(call["function"]["arguments"], dict)

    run(go())


def test_ollamas_structured_task(served):
    async def go():
        async with ollama.AsyncClient(host=served.url, headers={"Authorization": f"Bearer {served.key}"}) as client:
            stream = await client.chat(model=f"{MODEL}:latest", messages=CHAT, tools=None, stream=True, keep_alive=-1,
                                       options={"num_ctx": 8192.0}, think=False, format=PERSON)  # fmt: skip
            check_person(json.loads("".join([r["message"].get("content") or "" async for r in stream])))

    run(go())


def test_a_wrong_key_is_known_as_one(served):
    async def go():
        async with ollama.AsyncClient(host=served.url, headers={"Authorization": "Bearer wrong"}) as client:
            with pytest.raises(ollama.ResponseError) as refused:
                await client.list()
            assert refused.value.status_code in (401, 403)

    run(go())
