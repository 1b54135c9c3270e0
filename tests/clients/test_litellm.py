"""LiteLLM, by way of each of the three APIs."""

import inspect
import json

import litellm
import pytest

from tests.clients.asked import LENGTH, MODEL, PERSON, QUESTION, WEATHER, check_person, check_weather, user

# pydantic warns of a class of LiteLLM's own.
pytestmark = pytest.mark.filterwarnings("ignore:Items? .* on TypedDict class:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def closed():
    """Close the connections that LiteLLM keeps for all who ask."""
    yield
    for kept in (*litellm.in_memory_llm_clients_cache.cache_dict.values(), litellm.module_level_client):
        if not inspect.iscoroutinefunction(close := getattr(kept, "close", None)) and close is not None:
            close()


@pytest.fixture(params=["openai", "ollama_chat", "anthropic"])
def where(request, served):
    base = f"{served.url}/v1" if request.param == "openai" else served.url
    return {"model": f"{request.param}/{MODEL}", "api_base": base, "api_key": served.key, "timeout": 60,
            "num_retries": 0}  # fmt: skip


def test_a_chat_and_a_stream(where, served):
    asked = {**where, "messages": user(QUESTION), "max_tokens": LENGTH, "temperature": 0}
    reply = litellm.completion(**asked)
    assert reply.choices[0].message.content == served.answer
    assert reply.usage.completion_tokens == LENGTH
    chunks = list(litellm.completion(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == served.answer
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_a_required_tool(served, api):
    base = f"{served.url}/v1" if api == "openai" else served.url
    reply = litellm.completion(
        model=f"{api}/{MODEL}", api_base=base, api_key=served.key, messages=user("Weather in Paris?"), tools=[WEATHER],
        tool_choice="required", parallel_tool_calls=False, max_tokens=100, timeout=60,
    )  # fmt: skip
    (call,) = reply.choices[0].message.tool_calls
    check_weather(json.loads(call.function.arguments))


def test_a_json_schema(served):
    schema = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    reply = litellm.completion(
        model=f"openai/{MODEL}", api_base=f"{served.url}/v1", api_key=served.key, messages=user("Invent a person."),
        response_format=schema, max_tokens=200, timeout=60,
    )  # fmt: skip
    check_person(json.loads(reply.choices[0].message.content))
