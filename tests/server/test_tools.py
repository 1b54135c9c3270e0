"""Calls of tools and reasoning, from the text of an answer to what clients get, over boards of the fake model."""

import json

import pytest

from edgellm.server import asking
from edgellm.text.prepared import Prepared
from edgellm.text.tool_formats import Context, Parser, find

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
QWEN = '{{ tools }}<think></think><tool_call>\n{"name": …, "arguments": …}\n</tool_call>'
CALL = 'Hm.</think>\n\n<tool_call>\n{"name": "look", "arguments": {"at": "it"}}\n</tool_call>'


class Scripted(Parser):
    """Reads a text of its own, some characters for each token that comes."""

    def __init__(self, text, step=9):
        super().__init__(find(QWEN), Context(True, tuple(TOOLS)))
        self._pieces = [text[i : i + step] for i in range(0, len(text), step)]

    def feed(self, text):
        return super().feed(self._pieces.pop(0)) if text and self._pieces else []


@pytest.fixture
def says(monkeypatch):
    """Have the model say a text, as far as the parser knows."""

    def says(text):
        monkeypatch.setattr(
            asking, "prepare", lambda tokenizer, messages, **given: Prepared(tuple(messages), parser=Scripted(text))
        )

    return says


def test_a_reply_has_the_call_and_the_reasoning_apart(served, says):
    says(CALL)
    reply = served.chat(tools=TOOLS, max_tokens=30, stop=["never to be found"]).json()
    (choice,) = reply["choices"]
    message = choice["message"]
    assert message["content"] is None and message["reasoning_content"] == "Hm."
    (call,) = message["tool_calls"]
    assert call["type"] == "function" and call["id"]
    assert call["function"] == {"name": "look", "arguments": '{"at": "it"}'}
    assert 0 < reply["usage"]["completion_tokens_details"]["reasoning_tokens"] < 30


def test_a_stream_has_them_in_pieces(served, says):
    says(CALL)
    body = {"messages": [{"role": "user", "content": "Why?"}], "tools": TOOLS, "max_tokens": 30, "stream": True}
    events = served.events("/v1/chat/completions", body)
    deltas = [e["choices"][0]["delta"] for e in events if e != "[DONE]" and e["choices"]]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "Hm."
    assert "".join(d.get("content") or "" for d in deltas) == ""
    calls = [d["tool_calls"][0] for d in deltas if "tool_calls" in d]
    assert calls[0]["function"] == {"name": "look", "arguments": ""} and calls[0]["id"]
    assert all(c["index"] == 0 for c in calls) and len(calls) > 2
    assert "".join(c["function"]["arguments"] for c in calls) == '{"at": "it"}'


def test_text_has_the_logprobs_of_the_tokens_that_it_waited_for(served, says):
    says("</think>Hi <to there")
    body = {"messages": [{"role": "user", "content": "Why?"}], "tools": TOOLS, "max_tokens": 20, "logprobs": True}
    choice = served.post("/v1/chat/completions", body).json()["choices"][0]
    assert choice["message"]["content"] == "Hi <to there"
    assert len(choice["logprobs"]["content"]) >= 1


def test_a_template_without_tools_is_told_of_them_in_a_system_message(served):
    without = served.chat(max_tokens=5).json()["usage"]["prompt_tokens"]
    with_tools = served.chat(max_tokens=5, tools=TOOLS).json()["usage"]["prompt_tokens"]
    assert with_tools > without + 200  # a token a character
    assert served.chat(max_tokens=5, tools=TOOLS, tool_choice="none").json()["usage"]["prompt_tokens"] == without


def test_results_of_tools_reach_a_template_that_knows_none(served):
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": json.dumps({"at": "it"})}}
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "nothing"}]  # fmt: skip
    reply = served.post("/v1/chat/completions", {"messages": messages, "max_tokens": 5})
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["prompt_tokens"] > 80


def test_broken_parameters_are_refused_before_a_board_works(served):
    broken = [{"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}]
    reply = served.chat(tools=broken, tool_choice="required")
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith("tools[0].function.parameters: ")
