"""The `anthropic` client."""

import anthropic
import pytest

from tests.clients.asked import LENGTH, MODEL, QUESTION, WEATHER, check_weather, user

TOOL = {"name": "get_weather", "description": "Tell the weather.",
        "input_schema": WEATHER["function"]["parameters"]}  # fmt: skip

GREEDY = {"temperature": 0}  # the client's own models take it no more


@pytest.fixture(scope="module")
def client(served):
    with anthropic.Anthropic(base_url=served.url, api_key=served.key, timeout=60, max_retries=0) as client:
        yield client


def test_a_message(client, served):
    reply = client.messages.create(model=MODEL, max_tokens=LENGTH, messages=user(QUESTION), extra_body=GREEDY)
    assert [block.text for block in reply.content] == [served.answer]
    assert (reply.stop_reason, reply.usage.output_tokens, reply.role) == ("max_tokens", LENGTH, "assistant")


def test_a_stream(client, served):
    with client.messages.stream(
        model=MODEL, max_tokens=LENGTH, messages=user(QUESTION), extra_body=GREEDY
    ) as stream:
        assert "".join(stream.text_stream) == served.answer
        message = stream.get_final_message()
    assert message.content[0].text == served.answer and message.usage.output_tokens == LENGTH


def test_system_prompts_and_counts(client):
    asked = {"model": MODEL, "messages": user("Hi")}
    plain = client.messages.count_tokens(**asked).input_tokens
    with_text = client.messages.count_tokens(**asked, system="Be brief. " * 20).input_tokens
    as_blocks = client.messages.count_tokens(**asked, system=[{"type": "text", "text": "Be brief. " * 20}]).input_tokens
    assert 0 < plain < with_text == as_blocks
    reply = client.messages.create(**asked, max_tokens=1)
    assert reply.usage.input_tokens + reply.usage.cache_read_input_tokens == plain


def test_tools(client):
    """A call that is asked for matches its schema, whole and streamed; its result is taken."""
    asked = {"model": MODEL, "max_tokens": 100, "messages": user("How is the weather in Paris?"), "tools": [TOOL],
             "tool_choice": {"type": "tool", "name": "get_weather"}}  # fmt: skip
    reply = client.messages.create(**asked)
    (use,) = [block for block in reply.content if block.type == "tool_use"]
    assert (reply.stop_reason, use.name) == ("tool_use", "get_weather")
    check_weather(use.input)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    check_weather([block for block in streamed.content if block.type == "tool_use"][0].input)
    history = [
        *asked["messages"], {"role": "assistant", "content": [block.model_dump() for block in reply.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Rain."}]},
    ]  # fmt: skip
    last = client.messages.create(
        model=MODEL, max_tokens=8, messages=history, tools=[TOOL], tool_choice={"type": "none"}
    )
    assert last.content[0].type == "text" and last.content[0].text


def test_stop_sequences(client, served):
    word = served.answer.split()[3]
    reply = client.messages.create(model=MODEL, max_tokens=LENGTH, messages=user(QUESTION), stop_sequences=[word],
                                   extra_body=GREEDY)  # fmt: skip
    assert reply.content[0].text == served.answer[: served.answer.index(word)]
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", word)
    with client.messages.stream(model=MODEL, max_tokens=LENGTH, messages=user(QUESTION), extra_body=GREEDY,
                                stop_sequences=["never", word]) as stream:  # fmt: skip
        streamed = stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence) == ("stop_sequence", word)
    assert [block.text for block in streamed.content] == [reply.content[0].text]


@pytest.mark.parametrize(("change", "said"), [
    ({"model": "gone"}, "gone"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(client, change, said):
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**{"model": MODEL, "max_tokens": 5, "messages": user("Hi"), **change})
    assert refused.value.body["type"] == "error" and said in refused.value.body["error"]["message"]


def test_a_wrong_key_is_refused(served):
    with anthropic.Anthropic(base_url=served.url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError):
            client.messages.create(model=MODEL, max_tokens=5, messages=user("Hi"))
