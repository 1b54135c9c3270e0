"""/v1/completions, /v1/embeddings, /v1/responses, and calls of tools as OpenAI tells them."""

import base64
import math
import struct

import pytest

from edgellm.errors import BoardError
from edgellm.server import responses, several
from edgellm.server.asking import Accepted, Text
from tests.cli.commands import answer_to
from tests.server.scripted import CALLS, answer_by, use_embedder
from tests.server.serving import user

CHAT, COMPLETE, RESPOND = "/v1/chat/completions", "/v1/completions", "/v1/responses"


# Completions


def test_texts_are_continued(served):
    told = served.post(COMPLETE, {"prompt": ["Why?", "How?"], "max_tokens": 7, "n": 2, "echo": True}).json()
    assert told["object"] == "text_completion" and told["id"].startswith("cmpl-")
    whole = ["Why?" + answer_to("Why?", 7)] * 2 + ["How?" + answer_to("How?", 7)] * 2
    assert [(c["index"], c["text"], c["finish_reason"]) for c in told["choices"]] == [
        (i, text, "length") for i, text in enumerate(whole)
    ]
    assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (8, 28)
    assert len(served.post(COMPLETE, {"prompt": "Why?"}).json()["choices"][0]["text"]) == 16


def test_a_completion_streams_with_logprobs_in_their_old_shape(served):
    body = {"prompt": "Why?", "max_tokens": 5, "logprobs": 2, "echo": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = served.events(COMPLETE, body)
    assert done == "[DONE]" and usage["choices"] == [] and usage["usage"]["completion_tokens"] == 5
    assert "".join(c["choices"][0]["text"] for c in chunks) == "Why?" + answer_to("Why?", 5)
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 6 + ["length"]
    logprobs = [c["choices"][0]["logprobs"] for c in chunks[1:-1]]
    assert [o for t in logprobs for o in t["text_offset"]] == [4, 5, 6, 7, 8]
    assert all(t["tokens"][0] in t["top_logprobs"][0] for t in logprobs)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"prompt": ""}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [1, 2]}, "prompt[0]"),
     ({"prompt": ["a"] * 17}, "prompt"), ({"prompt": "a", "suffix": "b"}, "suffix"),
     ({"prompt": "a", "best_of": 3}, "best_of"), ({"prompt": "a", "logprobs": 99}, "logprobs"), ({}, "prompt")],
    ids=str,
)  # fmt: skip
def test_completions_that_make_no_sense_are_refused(served, fields, param):
    response = served.post(COMPLETE, fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


# Tools and reasoning


def test_calls_and_reasoning_have_their_own_places(served, monkeypatch):
    monkeypatch.setattr(several, "answer", answer_by(CALLS))
    (choice,) = served.chat("Why?").json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant", "content": "I look.", "reasoning_content": "Let me see.", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "clock", "arguments": "{}"}}],
    }  # fmt: skip
    *chunks, _ = served.events(CHAT, {"messages": user("Why?")})
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert deltas[1:4] == [{"reasoning_content": "Let me "}, {"reasoning_content": "see."}, {"content": "I look."}]
    calls = [call for d in deltas for call in d.get("tool_calls", ())]
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    assert calls[:3] == [first, {"index": 0, "function": {"arguments": '{"city": '}},
                         {"index": 0, "function": {"arguments": '"Ulm"}'}}]  # fmt: skip
    assert [c["index"] for c in calls] == [0, 0, 0, 1, 1] and deltas[-1] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_an_answer_that_only_calls_has_no_content(served, monkeypatch):
    monkeypatch.setattr(several, "answer", answer_by([CALLS[0], *CALLS[4:]]))
    assert served.chat("Why?").json()["choices"][0]["message"]["content"] is None


# Embeddings


def test_embeddings_have_length_1_and_come_as_numbers_or_as_bytes(served, monkeypatch):
    monkeypatch.setattr(served.models, "use", use_embedder(served.models))
    told = served.post("/v1/embeddings", {"input": ["abc", "x"], "model": "fake"}).json()
    assert [d["index"] for d in told["data"]] == [0, 1] and told["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    length = math.sqrt(13)
    assert told["data"][0]["embedding"] == pytest.approx([3 / length, 2 / length])
    told = served.post("/v1/embeddings", {"input": "abc", "encoding_format": "base64", "dimensions": 4}).json()
    unpacked = struct.unpack("<2f", base64.b64decode(told["data"][0]["embedding"]))
    assert unpacked == pytest.approx([3 / length, 2 / length])


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"input": ""}, "input"), ({"input": []}, "input"), ({"input": ["a", ""]}, "input[1]"), ({}, "input"),
     ({"input": [[1, 2]]}, "input[0]"), ({"input": "a", "dimensions": 3}, "dimensions"),
     ({"input": "a", "encoding_format": "int8"}, "encoding_format"), ({"input": "a", "model": "b"}, "model")],
    ids=str,
)  # fmt: skip
def test_embeddings_that_make_no_sense_are_refused(served, fields, param):
    response = served.post("/v1/embeddings", fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


# Responses


def test_a_response_is_whole_or_comes_as_typed_events(served):
    told = served.post(RESPOND, {"input": "Why?", "instructions": "W", "max_output_tokens": 9}).json()
    assert (told["object"], told["status"], told["incomplete_details"]) == (
        "response", "incomplete", {"reason": "max_output_tokens"})  # fmt: skip
    (item,) = told["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [
        {"type": "output_text", "text": answer_to("WWhy?", 9), "annotations": [], "logprobs": []}
    ]
    assert (told["usage"]["input_tokens"], told["usage"]["output_tokens"]) == (5, 9)
    events = served.events(RESPOND, {"input": "Why?", "instructions": "W", "max_output_tokens": 9})
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    kinds = [e["type"].removeprefix("response.") for e in events]
    assert kinds == ["created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * 9,
                     "output_text.done", "content_part.done", "output_item.done", "incomplete"]  # fmt: skip
    assert "".join(e["delta"] for e in events if e["type"].endswith("text.delta")) == answer_to("WWhy?", 9)
    last = events[-1]["response"]
    assert last["output"][0]["content"] == item["content"] and last["usage"]["input_tokens"] == 5
    assert events[2]["item"]["content"] == [] and events[0]["response"]["output"] == []


def test_reasoning_and_calls_are_items_of_their_own(served, monkeypatch):
    monkeypatch.setattr(responses, "answer", answer_by(CALLS))
    told = served.post(RESPOND, {"input": "Why?"}).json()
    kinds = [item["type"] for item in told["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"] and told["status"] == "completed"
    assert told["output"][0]["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    call = told["output"][2]
    assert (call["call_id"], call["name"], call["arguments"]) == ("call_1", "weather", '{"city": "Ulm"}')
    assert told["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}
    events = served.events(RESPOND, {"input": "Why?"})
    added = [e["output_index"] for e in events if e["type"] == "response.output_item.added"]
    done = [e["output_index"] for e in events if e["type"] == "response.output_item.done"]
    assert added == done == [0, 1, 2, 3] and events[-1]["type"] == "response.completed"
    arguments = [e["arguments"] for e in events if e["type"] == "response.function_call_arguments.done"]
    assert arguments == ['{"city": "Ulm"}', "{}"]


def test_a_response_that_fails_says_so_as_an_event(served, monkeypatch):
    monkeypatch.setattr(responses, "answer", answer_by([Accepted(1, "fake"), Text("I"), BoardError("board b1 burns")]))
    last = served.events(RESPOND, {"input": "Why?"})[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": "cluster_unavailable", "message": "board b1 burns"}


def test_a_conversation_of_items_is_a_chat(served, monkeypatch):
    asked = []
    monkeypatch.setattr(responses, "answer", lambda models, ask: (asked.append(ask), answer_by(CALLS)(models, ask))[1])
    items = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Noon."}]},
    ]  # fmt: skip
    tools = [{"type": "function", "name": "clock", "parameters": {"type": "object"}, "strict": True}]
    format_ = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    body = {"input": items, "tools": tools, "tool_choice": {"type": "function", "name": "clock"},
            "text": {"format": format_}, "reasoning": {"effort": "low"}, "temperature": 0.5}  # fmt: skip
    told = served.post(RESPOND, body).json()
    assert told["text"]["format"]["schema"] == {"type": "object"} and told["tools"][0]["name"] == "clock"
    (ask,) = asked
    assert [m["role"] for m in ask.messages] == ["developer", "user", "assistant", "tool", "assistant"]
    assert [c["id"] for c in ask.messages[2]["tool_calls"]] == ["c1", "c2"]
    assert ask.messages[2]["reasoning_content"] == "Hm." and ask.messages[3]["tool_call_id"] == "c1"
    assert (ask.tool_choice, ask.think, ask.options["temperature"]) == ("clock", "low", 0.5)
    assert (ask.format.kind, ask.format.source) == ("json_schema", '{"type": "object"}')


@pytest.mark.parametrize(
    ("fields", "param"),
    [({}, "input"), ({"input": []}, "input"), ({"input": [{"role": "user"}]}, "input[0].content"),
     ({"input": [{"content": "a"}]}, "input[0].role"), ({"input": [{"type": "file"}]}, "input[0].type"),
     ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
     ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
     ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
     ({"input": "a", "reasoning": {"effort": "huge"}}, "reasoning.effort"),
     ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format.type"),
     ({"input": "a", "text": {"format": {"type": "json_schema", "schema": {"type": "x"}}}}, "text.format"),
     ({"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type"),
     ({"input": "a", "tools": [{"type": "function"}]}, "tools[0].name"),
     ({"input": "y" * 4000}, "input")],
    ids=lambda v: str(v)[:60],
)  # fmt: skip
def test_responses_that_make_no_sense_are_refused(served, fields, param):
    response = served.post(RESPOND, fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
