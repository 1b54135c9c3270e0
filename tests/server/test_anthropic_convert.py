"""Anthropic's requests as questions, and answers as Anthropic's events, byte for byte."""

import json

import pytest

from edgellm.server.anthropic_answer import Answering
from edgellm.server.anthropic_ask import question
from edgellm.server.anthropic_fields import MessagesRequest
from edgellm.server.asking import (
    Accepted,
    Ended,
    Progress,
    Reasoning,
    Text,
    Timings,
    ToolArguments,
    ToolBegin,
    ToolEnd,
    Usage,
    Waiting,
)  # fmt: skip
from edgellm.server.errors import ApiError
from edgellm.server.fields import parse
from edgellm.server.sse import event
from edgellm.structure import Constraint

HELLO = [{"role": "user", "content": "Hello"}]


def ask(**request):
    request = {"model": "m", "max_tokens": 100, "messages": HELLO, **request}
    return question(parse(json.dumps(request).encode(), MessagesRequest))


def frames(events):
    answering = Answering("msg_1", "m")
    return b"".join(event(told, told["type"]) for happened in events for told in answering.feed(happened)), answering


def test_a_request_is_a_question():
    asked = ask(
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}, {"text": "In French."}],
        stop_sequences=["###", ""], temperature=0.5, top_k=3, top_p=0.9, thinking={"type": "adaptive"},
        output_config={"effort": "xhigh", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        tools=[{"name": "f", "description": "Does it.", "input_schema": {"type": "object"}}, {"name": "g"}],
        tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True}, metadata={"user_id": "u"},
    )  # fmt: skip
    assert asked.messages == ({"role": "system", "content": "Be brief.\n\nIn French."}, HELLO[0])
    assert asked.options == {"max_tokens": 100, "stop": ["###"], "temperature": 0.5, "top_k": 3, "top_p": 0.9}
    assert asked.tools == (
        {"type": "function", "function": {"name": "f", "description": "Does it.", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}}},
    )
    assert (asked.tool_choice, asked.parallel, asked.think) == ("f", False, "high")
    assert asked.format == Constraint("json_schema", '{"type":"object"}')


@pytest.mark.parametrize(("thinking", "think"), [
    (None, False), ({"type": "disabled"}, False), ({"type": "enabled", "budget_tokens": 1024}, True),
    ({"type": "adaptive"}, None),
])  # fmt: skip
def test_the_model_thinks_only_if_asked_to(thinking, think):
    asked = ask(**({} if thinking is None else {"thinking": thinking}))
    assert asked.think is think


def test_tool_choices_are_openais():
    choices = [{"type": kind} for kind in ("auto", "any", "none")]
    assert [ask(tool_choice=choice).tool_choice for choice in choices] == ["auto", "required", "none"]


def test_blocks_become_messages():
    asked = ask(messages=[
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}, {"type": "text", "text": "Now."}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"city": "Köln"}},
            {"type": "tool_use", "id": "t2", "name": "f", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "Rain"}]},
            {"type": "tool_result", "tool_use_id": "t2", "content": "no city", "is_error": True},
            {"type": "text", "text": "And?"}]},
    ])  # fmt: skip
    assert asked.messages == (
        {"role": "user", "content": "Weather?\n\nNow."},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [
            {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Köln"}'}},
            {"id": "t2", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "t1", "content": "Rain"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no city"},
        {"role": "user", "content": "And?"},
    )  # fmt: skip


def block(**content):
    return {"messages": [{"role": "user", "content": [content]}]}


@pytest.mark.parametrize(("request_of", "field"), [
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"tools": [{"name": ""}]}, "tools[0].name"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "none"}}, "output_config.effort"),
    (block(type="image"), "messages[0].content[0].type"),
    (block(type="text"), "messages[0].content[0].text"),
    (block(type="tool_result"), "messages[0].content[0].tool_use_id"),
    (block(type="tool_result", tool_use_id="t", content=[{"type": "image"}]), "messages[0].content[0].content[0].type"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_by_its_field(request_of, field):
    with pytest.raises(ApiError) as refused:
        ask(**request_of)
    assert (refused.value.status, refused.value.param) == (400, field)
    assert str(refused.value).startswith(f"{field}: ")


def test_a_stream_of_a_text():
    told, answering = frames([
        Accepted(26, "m"), Progress(20, 26), Text("Hel"), Text(""), Waiting(), Text("lo"),
        Ended("stop", Usage(26, 20, 7), Timings()),
    ])  # fmt: skip
    assert told == (
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message",'
        b'"role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":'
        b'{"input_tokens":26,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}}\n\n'
        b'event: ping\ndata: {"type":"ping"}\n\n'
        b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":'
        b'{"type":"text","text":""}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
        b'{"type":"text_delta","text":"Hel"}}\n\n'
        b'event: ping\ndata: {"type":"ping"}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":'
        b'{"type":"text_delta","text":"lo"}}\n\n'
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn",'
        b'"stop_sequence":null},"usage":{"input_tokens":6,"cache_creation_input_tokens":0,'
        b'"cache_read_input_tokens":20,"output_tokens":7}}\n\n'
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )
    assert answering.message["content"] == [{"type": "text", "text": "Hello"}]
    assert answering.message["stop_reason"] == "end_turn"


def test_blocks_of_thinking_text_and_tools_follow_each_other():
    told, answering = frames([
        Accepted(1, "m"), Reasoning("Hm"), Reasoning("."), Text("So"), ToolBegin(0, "call_a", "f"),
        ToolArguments(0, '{"a":'), ToolArguments(0, "1}"), ToolEnd(0), ToolBegin(1, "call_b", "g"), ToolEnd(1),
        Ended("tool_calls", Usage(1, 0, 9), Timings()),
    ])  # fmt: skip
    contents = [json.loads(part.split(b"data: ")[1]) for part in told.split(b"\n\n") if part]
    assert [(c["type"], c.get("index")) for c in contents] == [
        ("message_start", None),
        ("content_block_start", 0), ("content_block_delta", 0), ("content_block_delta", 0), ("content_block_stop", 0),
        ("content_block_start", 1), ("content_block_delta", 1), ("content_block_stop", 1),
        ("content_block_start", 2), ("content_block_delta", 2), ("content_block_delta", 2), ("content_block_stop", 2),
        ("content_block_start", 3), ("content_block_stop", 3),
        ("message_delta", None), ("message_stop", None),
    ]  # fmt: skip
    assert contents[1]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert contents[2]["delta"] == {"type": "thinking_delta", "thinking": "Hm"}
    assert contents[8]["content_block"] == {"type": "tool_use", "id": "call_a", "name": "f", "input": {}}
    assert contents[9]["delta"] == {"type": "input_json_delta", "partial_json": '{"a":'}
    assert contents[-2]["delta"]["stop_reason"] == "tool_use"
    assert answering.message["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": "So"},
        {"type": "tool_use", "id": "call_a", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "call_b", "name": "g", "input": {}},
    ]  # fmt: skip


def test_an_answer_that_is_cut_off_says_so():
    _, answering = frames([Accepted(1, "m"), Text("Hi"), Ended("length", Usage(1, 0, 1), Timings())])
    assert answering.message["stop_reason"] == "max_tokens"


def test_a_stop_sequence_that_ended_the_answer_is_told():
    told, answering = frames([Accepted(1, "m"), Text("Hi"), Ended("stop", Usage(1, 0, 2), Timings(), stop="###")])
    assert b'{"stop_reason":"stop_sequence","stop_sequence":"###"}' in told
    assert (answering.message["stop_reason"], answering.message["stop_sequence"]) == ("stop_sequence", "###")
