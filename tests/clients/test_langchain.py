"""LangChain's ChatOpenAI and ChatOllama."""

import httpx
import pydantic
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.clients.asked import LENGTH, MODEL, QUESTION


class Person(pydantic.BaseModel, extra="forbid"):
    """A person."""

    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=150)


@tool
def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"rain in {city}"


@pytest.fixture(scope="module")
def openai_chat(served):
    with httpx.Client() as http:
        yield ChatOpenAI(model=MODEL, base_url=f"{served.url}/v1", api_key=served.key, temperature=0, timeout=60,
                         max_retries=0, max_tokens=LENGTH, stream_usage=True, http_client=http)  # fmt: skip


@pytest.fixture(scope="module")
def ollama_chat(served):
    headers = {"headers": {"Authorization": f"Bearer {served.key}"}}
    chat = ChatOllama(model=MODEL, base_url=served.url, temperature=0, num_predict=LENGTH, client_kwargs=headers,
                      validate_model_on_init=True)  # fmt: skip
    yield chat
    chat._client._client.close()


@pytest.fixture(params=["openai_chat", "ollama_chat"])
def chat(request):
    return request.getfixturevalue(request.param)


def test_a_chat(chat, served):
    reply = chat.invoke(QUESTION)
    assert reply.content == served.answer
    assert reply.usage_metadata["output_tokens"] == LENGTH


def test_a_stream(chat, served):
    chunks = list(chat.stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == served.answer
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.usage_metadata["output_tokens"] == LENGTH


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_openais_structured_output(openai_chat, method):
    chat = openai_chat.model_copy(update={"max_tokens": 200})
    assert isinstance(chat.with_structured_output(Person, method=method).invoke("Invent a person."), Person)


def test_ollamas_structured_output(ollama_chat):
    chat = ollama_chat.model_copy(update={"num_predict": 200})
    person = chat.with_structured_output(Person, method="json_schema").invoke("Invent a person.")
    assert isinstance(person, Person)


def test_a_required_tool(openai_chat):
    chat = openai_chat.model_copy(update={"max_tokens": 200})
    chat = chat.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    (call,) = chat.invoke("How is the weather in Paris?").tool_calls
    assert call["name"] == "get_weather" and isinstance(call["args"]["city"], str)


def test_a_tools_result(chat):
    history = [
        HumanMessage("How is the weather in Paris?"),
        AIMessage("", tool_calls=[{"name": "get_weather", "args": {"city": "Paris"}, "id": "call_1"}]),
        ToolMessage("rain in Paris", tool_call_id="call_1", name="get_weather"),
    ]
    reply = chat.bind_tools([get_weather]).invoke(history)
    assert reply.content or reply.tool_calls


def test_embeddings(served):
    with httpx.Client() as http:
        embeddings = OpenAIEmbeddings(model=MODEL, base_url=f"{served.url}/v1", api_key=served.key, http_client=http,
                                      check_embedding_ctx_length=False)  # fmt: skip
        made = embeddings.embed_documents(["A cat.", "A dog."])
    assert [len(vector) for vector in made] == [576, 576]
