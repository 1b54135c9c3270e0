"""Ollama's requests as questions, and answers as Ollama's lines, byte for byte."""

import json
import math

import pytest

from edgellm.server import ollama_ask, ollama_models
from edgellm.server.asking import (
    Accepted,
    Ended,
    Progress,
    Queued,
    Reasoning,
    Text,
    Timings,
    TokenLogprob,
    ToolArguments,
    ToolBegin,
    ToolEnd,
    Usage,
    Waiting,
)  # fmt: skip
from edgellm.server.errors import ApiError
from edgellm.server.fields import parse
from edgellm.server.models import Model
from edgellm.server.ollama_answer import Answering, loaded
from edgellm.server.ollama_fields import ChatRequest, EmbedRequest, GenerateRequest, NameRequest
from edgellm.server.sse import line
from edgellm.structure import Constraint

NOW_S = 1_700_000_000.25
AT = "2023-11-14T22:13:20.250000Z"
ENDED = Ended("stop", Usage(26, 20, 7), Timings(0.5, 0.25, 1.25, 3.25))


def chat(**request):
    return ollama_ask.chat(parse(json.dumps({"model": "m", **request}).encode(), ChatRequest))


def generate(**request):
    return ollama_ask.generate(parse(json.dumps({"model": "m", **request}).encode(), GenerateRequest))


def lines(events, **how):
    answering = Answering("m:latest", **{"chat": True, **how})
    told = [answering.feed(event, NOW_S) for event in events]
    return b"".join(line(content) for content in told if content is not None)


def test_home_assistants_request_is_a_question():
    """What its integration sends, with the numbers of its forms, which are floats."""
    ask = chat(
        model="llama:latest", stream=True, keep_alive=-1, think=False, format=None,
        options={"num_ctx": 8192.0, "num_gpu": 1}, tools=[{"type": "function", "function": {
            "name": "HassTurnOn", "parameters": {"type": "object", "properties": {"name": {"type": "string"}}}}}],
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Lights!"},
                  {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [
                      {"function": {"name": "HassTurnOn", "arguments": {"name": "Küche"}}}]},
                  {"role": "tool", "content": "{\"data\": 1}"}],
    )  # fmt: skip
    assert ask.model == "llama" and ask.keep_alive_s == math.inf and ask.think is False and ask.format is None
    assert ask.options == {}
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    assert ask.tools == ({"type": "function", "function": {"name": "HassTurnOn", "parameters": schema}},)
    assert ask.messages[2:] == (
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [{
            "id": "call_0", "type": "function",
            "function": {"name": "HassTurnOn", "arguments": '{"name": "Küche"}'}}]},
        {"role": "tool", "content": '{"data": 1}', "tool_call_id": "call_0", "name": "HassTurnOn"},
    )  # fmt: skip


def test_results_of_tools_find_their_calls_by_id_by_name_and_by_order():
    calls = [{"id": i, "function": {"name": n, "arguments": {}}} for i, n in (("a", "f"), ("b", "g"), ("c", "g"))]
    results = [{"tool_call_id": "c"}, {"tool_name": "g"}, {}, {"tool_name": "gone"}]
    ask = chat(messages=[{"role": "assistant", "tool_calls": calls}, *({"role": "tool", **r} for r in results)])
    assert [(m["tool_call_id"], m["name"]) for m in ask.messages[1:]] == [
        ("c", "g"), ("b", "g"), ("a", "f"), ("", "gone"),
    ]  # fmt: skip


def test_options_are_those_of_the_client():
    given = {"num_predict": 5, "temperature": 0.5, "top_k": -1, "top_p": 0.9, "min_p": 0.1, "repeat_penalty": 1.1,
             "presence_penalty": 0.1, "frequency_penalty": 0.2, "seed": 3.0, "stop": "###"}  # fmt: skip
    assert chat(options=given, logprobs=True, top_logprobs=2).options == {
        "max_tokens": 5, "temperature": 0.5, "top_k": 0, "top_p": 0.9, "min_p": 0.1, "repeat_penalty": 1.1,
        "presence_penalty": 0.1, "frequency_penalty": 0.2, "seed": 3, "stop": ["###"], "logprobs": 2,
    }  # fmt: skip
    assert chat(options={"num_predict": -1, "seed": -1, "stop": []}).options == {}
    assert chat(format="json").format == Constraint("json")
    assert chat(format={"type": "object"}).format == Constraint("json_schema", '{"type":"object"}')
    assert chat(format="").format is None
    assert chat(think="high").think == "high"


def test_a_prompt_is_a_chat_unless_it_is_raw():
    assert generate(prompt="Hi", system="Be brief.").messages == (
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
    )  # fmt: skip
    raw = generate(prompt="Hi", raw=True)
    assert raw.messages == () and raw.prompt == "Hi"


@pytest.mark.parametrize(("value", "seconds"), [
    (None, None), (0, 0), ("0", 0), ("300", 300), (-1, math.inf), ("-1", math.inf), ("-5m", math.inf), ("5m", 300),
    ("1h30m", 5400), ("1.5s", 1.5), ("100ms", 0.1), (12.5, 12.5),
])  # fmt: skip
def test_keep_alive_is_a_number_of_seconds_or_a_duration(value, seconds):
    assert ollama_ask.keep_alive_s(value) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(("request_of", "field"), [
    (lambda: chat(keep_alive="soon"), "keep_alive"),
    (lambda: chat(keep_alive="5m 3"), "keep_alive"),
    (lambda: chat(keep_alive="9" * 400), "keep_alive"),
    (lambda: chat(options={"num_ctx": 0}), "options.num_ctx"),
    (lambda: chat(options={"num_ctx": 0.5}), "options.num_ctx"),
    (lambda: chat(options={"temperature": "hot"}), "options.temperature"),
    (lambda: chat(format="xml"), "format"),
    (lambda: chat(think="a lot"), "think"),
    (lambda: chat(tools=[{"function": {"name": ""}}]), "tools[0].function.name"),
    (lambda: chat(tools=[{"function": {}}]), "tools[0].function.name"),
    (lambda: chat(messages=[{"role": "user", "content": 3}]), "messages[0].content"),
    (lambda: chat(messages=[{"role": "user", "images": ["aGk="]}]), "messages[0].images"),
    (lambda: generate(suffix="x"), "suffix"),
    (lambda: generate(template="x"), "template"),
    (lambda: generate(context=[1]), "context"),
    (lambda: ollama_ask.named(NameRequest()), "model"),
    (lambda: ollama_ask.texts(EmbedRequest(model="m", input=["a", ""])), "input[1]"),
    (lambda: ollama_ask.texts(EmbedRequest(model="m", input="a", dimensions=0)), "dimensions"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_by_its_field(request_of, field):
    with pytest.raises(ApiError) as refused:
        request_of()
    assert (refused.value.status, refused.value.param) == (400, field)
    assert str(refused.value).startswith(f"{field}: ")


def test_a_stream_of_a_chat():
    events = [Accepted(26, "m"), Queued(1), Progress(20, 26), Reasoning("Hm."), Text("Hel"), Text("lo"), ENDED]
    assert lines(events) == (
        b'{"model":"m:latest","created_at":"%(at)s","message":{"role":"assistant","content":"","thinking":"Hm."},'
        b'"done":false}\n'
        b'{"model":"m:latest","created_at":"%(at)s","message":{"role":"assistant","content":"Hel"},"done":false}\n'
        b'{"model":"m:latest","created_at":"%(at)s","message":{"role":"assistant","content":"lo"},"done":false}\n'
        b'{"model":"m:latest","created_at":"%(at)s","message":{"role":"assistant","content":""},"done":true,'
        b'"done_reason":"stop","total_duration":3750000000,"load_duration":500000000,"prompt_eval_count":26,'
        b'"prompt_eval_duration":1000000000,"eval_count":7,"eval_duration":2000000000}\n' % {b"at": AT.encode()}
    )


def test_a_call_of_a_tool_is_told_when_it_is_complete_with_an_object():
    events = [
        ToolBegin(0, "call_x", "f"), ToolArguments(0, '{"a":'), ToolArguments(0, "1}"), ToolEnd(0),
        ToolBegin(1, "call_y", "g"), ToolEnd(1), Ended("tool_calls", Usage(), Timings()),
    ]  # fmt: skip
    told = [json.loads(text) for text in lines(events).splitlines()]
    assert [t["message"].get("tool_calls") for t in told] == [
        [{"id": "call_x", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}],
        [{"id": "call_y", "function": {"index": 1, "name": "g", "arguments": {}}}],
        None,
    ]
    assert told[-1]["done_reason"] == "stop"


def test_a_call_that_breaks_off_is_shown_and_not_called():
    events = [ToolBegin(0, "x", "f"), ToolArguments(0, '{"a":'), ToolEnd(0), Ended("length", Usage(), Timings())]
    told = [json.loads(text) for text in lines(events).splitlines()]
    assert told[0]["message"] == {"role": "assistant", "content": 'f{"a":'}
    assert told[-1]["done_reason"] == "length"


def test_the_whole_answer_holds_what_the_stream_told():
    answering = Answering("m", chat=True)
    hi = TokenLogprob("Hi", b"Hi", -0.5, (TokenLogprob("Hi", b"Hi", -0.5), TokenLogprob("Ho", b"Ho", -1.5)))
    for event in (Reasoning("H"), Reasoning("m."), Text("Hi", (hi,)), Text("!"), ToolBegin(0, "c", "f"), ToolEnd(0)):
        answering.feed(event, NOW_S)
    whole = answering.whole(answering.feed(ENDED, NOW_S))
    assert whole["message"] == {
        "role": "assistant", "content": "Hi!", "thinking": "Hm.",
        "tool_calls": [{"id": "c", "function": {"index": 0, "name": "f", "arguments": {}}}],
    }  # fmt: skip
    spelled = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}
    other = {"token": "Ho", "logprob": -1.5, "bytes": [72, 111]}
    assert whole["logprobs"] == [{**spelled, "top_logprobs": [spelled, other]}]
    assert whole["done"] is True and whole["eval_count"] == 7


def test_generate_answers_with_a_response():
    assert lines([Reasoning("Hm."), Text("Hi"), Waiting()], chat=False) == (
        b'{"model":"m:latest","created_at":"%(at)s","response":"","thinking":"Hm.","done":false}\n'
        b'{"model":"m:latest","created_at":"%(at)s","response":"Hi","done":false}\n'
        b'{"model":"m:latest","created_at":"%(at)s","response":"","done":false}\n' % {b"at": AT.encode()}
    )


def test_loading_and_unloading_are_told():
    assert line(loaded("m", chat=True, unload=False, now_s=NOW_S)) == (
        b'{"model":"m","created_at":"%s","message":{"role":"assistant","content":""},"done":true,'
        b'"done_reason":"load"}\n' % AT.encode()
    )
    assert loaded("m", chat=False, unload=True, now_s=NOW_S)["done_reason"] == "unload"


MODEL = Model(
    name="SmolLM2", created_s=1_700_000_000, digest="ab" * 32, architecture="LlamaForCausalLM", family="llama",
    quantization="int8", num_layers=30, hidden_size=576, vocab_size=49152, size=150_000_000, max_context=8192,
    context=2048, slots=4, loaded=True,
)  # fmt: skip


def test_models_have_a_tag_and_the_facts_that_clients_read():
    details = {"parent_model": "", "format": "edgellm", "family": "llama", "families": ["llama"],
               "parameter_size": "", "quantization_level": "int8"}  # fmt: skip
    assert ollama_models.listed(MODEL) == {
        "name": "SmolLM2:latest", "model": "SmolLM2:latest", "modified_at": "2023-11-14T22:13:20.000000Z",
        "size": 150_000_000, "digest": "ab" * 32, "details": details,
    }  # fmt: skip
    running = ollama_models.running(MODEL, NOW_S)
    assert (running["expires_at"], running["context_length"], running["name"]) == (AT, 2048, "SmolLM2:latest")
    assert ollama_models.running(MODEL)["expires_at"] == ollama_models.NEVER


def test_show_names_the_capabilities_that_the_template_has():
    shown = ollama_models.shown(MODEL, "{% if tools %}{{ tools }}{% endif %}{{ message.reasoning_content }}")
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["llama.context_length"] == 2048
    assert ollama_models.shown(MODEL, "{{ messages }}")["capabilities"] == ["completion"]
