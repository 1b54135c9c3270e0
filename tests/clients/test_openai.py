"""The `openai` client."""

import json
from typing import Literal

import openai
import pydantic
import pytest

from tests.clients.asked import ANY, LENGTH, MODEL, PERSON, QUESTION, WEATHER, check_person, check_weather, user


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, timeout=60, max_retries=0) as client:
        yield client


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_chat(client, served):
    reply = client.chat.completions.create(model=MODEL, messages=user(QUESTION), max_tokens=LENGTH, temperature=0)
    assert reply.choices[0].message.content == served.answer
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == LENGTH
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + LENGTH
    assert 0 <= reply.usage.prompt_tokens_details.cached_tokens < reply.usage.prompt_tokens


def test_a_stream_with_usage(client, served):
    chunks = list(client.chat.completions.create(
        model=MODEL, messages=user(QUESTION), max_completion_tokens=LENGTH, temperature=0, stream=True,
        stream_options={"include_usage": True},
    ))  # fmt: skip
    *pieces, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == served.answer
    assert [chunk.choices[0].finish_reason for chunk in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert not pieces[-1].choices[0].delta.content  # a client that stops there loses no text
    assert last.choices == [] and last.usage.completion_tokens == LENGTH
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_choices_stops_and_seeds(client):
    asked = {"model": MODEL, "messages": user(ANY), "max_tokens": 12, "temperature": 1.0, "seed": 7}
    first = client.chat.completions.create(**asked, n=2, stop=["zebra"])
    again = client.chat.completions.create(**asked, n=2, stop=["zebra"])
    texts = [choice.message.content for choice in first.choices]
    assert [choice.message.content for choice in again.choices] == texts and texts[0] != texts[1]
    word = texts[0].split()[2]
    stopped = client.chat.completions.create(**asked, stop=[word])
    assert stopped.choices[0].message.content == texts[0][: texts[0].index(word)]
    assert stopped.choices[0].finish_reason == "stop"


def test_completions(client):
    reply = client.completions.create(model=MODEL, prompt="One, two, three,", max_tokens=6, temperature=0)
    chunks = client.completions.create(model=MODEL, prompt="One, two, three,", max_tokens=6, temperature=0, stream=True)
    assert "four" in reply.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == reply.choices[0].text


def test_logprobs(client):
    reply = client.chat.completions.create(
        model=MODEL, messages=user(QUESTION), max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    tokens = reply.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == reply.choices[0].message.content
    for token in tokens:
        assert token.logprob <= 0 and bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token  # it is greedy
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-4)


def test_tools(client):
    """A call that is asked for matches its schema, whole and streamed; its result is taken."""
    asked = {"model": MODEL, "messages": user("How is the weather in Paris?"), "tools": [WEATHER], "temperature": 0,
             "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100}  # fmt: skip
    reply = client.chat.completions.create(**asked)
    (call,) = reply.choices[0].message.tool_calls
    assert (reply.choices[0].finish_reason, call.function.name) == ("tool_calls", "get_weather")
    check_weather(json.loads(call.function.arguments))
    deltas = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True) if chunk.choices]
    parts = [part for choice in deltas for part in choice.delta.tool_calls or []]
    assert (parts[0].index, parts[0].function.name) == (0, "get_weather") and parts[0].id
    check_weather(json.loads("".join(part.function.arguments or "" for part in parts)))
    assert deltas[-1].finish_reason == "tool_calls"
    history = [*asked["messages"], reply.choices[0].message.model_dump(exclude_none=True),
               {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "rain"}'}]  # fmt: skip
    last = client.chat.completions.create(model=MODEL, messages=history, tools=[WEATHER], tool_choice="none",
                                          max_tokens=8)  # fmt: skip
    assert last.choices[0].message.content and not last.choices[0].message.tool_calls


def test_a_json_schema(client):
    schema = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    asked = {"model": MODEL, "messages": user("Invent a person."), "response_format": schema, "max_tokens": 200}
    check_person(json.loads(client.chat.completions.create(**asked).choices[0].message.content))
    chunks = client.chat.completions.create(**asked, stream=True)
    check_person(json.loads("".join(c.choices[0].delta.content or "" for c in chunks if c.choices)))


def test_a_schema_of_a_class_is_parsed(client):
    class Answer(pydantic.BaseModel):
        yes: bool
        mood: Literal["good", "bad"]

    reply = client.chat.completions.parse(model=MODEL, messages=user("Yes?"), response_format=Answer, max_tokens=200)
    assert isinstance(reply.choices[0].message.parsed, Answer)


def test_json_mode(client):
    reply = client.chat.completions.create(
        model=MODEL, messages=user("A person with a name, as JSON."), response_format={"type": "json_object"},
        max_tokens=200, temperature=0,
    )  # fmt: skip
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content), dict)
    else:
        assert reply.choices[0].message.content.lstrip().startswith("{")


def test_embeddings(client):
    texts = ["A cat sits on the mat.", "A kitten lies on the rug.", "Interest rates were raised by the bank."]
    reply = client.embeddings.create(model=MODEL, input=texts)
    vectors = [item.embedding for item in reply.data]
    assert [item.index for item in reply.data] == [0, 1, 2] and {len(vector) for vector in vectors} == {576}

    def alike(i: int, j: int) -> float:
        return sum(a * b for a, b in zip(vectors[i], vectors[j], strict=True))

    assert alike(0, 0) == pytest.approx(1, abs=1e-3) and alike(0, 1) > alike(0, 2)
    assert reply.usage.prompt_tokens > 10


def test_responses(client, served):
    asked = {"model": MODEL, "input": QUESTION, "max_output_tokens": LENGTH, "temperature": 0}
    reply = client.responses.create(**asked)
    assert reply.output_text == served.answer and reply.usage.output_tokens == LENGTH
    events = list(client.responses.create(**asked, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == served.answer
    assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")  # it is cut off
    assert events[-1].response.output_text == served.answer
    with client.responses.stream(model=MODEL, input="Say hi.", max_output_tokens=300, temperature=0) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(texts) == stream.get_final_response().output_text != ""


@pytest.mark.parametrize(("change", "field"), [
    ({"model": "gone"}, "model"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "long " * 3000}]}, "messages"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(client, change, field):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": MODEL, "messages": user("Hi"), **change})
    assert refused.value.param == field and refused.value.body["message"]


def test_a_wrong_key_is_refused(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
