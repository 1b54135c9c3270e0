import json

import pytest

from edgellm.text.tool_formats import Context, Parser, Reasoning, Said, ToolArguments, ToolBegin, find
from tests.text.tool_formats.samples import SAMPLES, THINKING, TOOLS, family, read

OSLO = {"city": 'Oslo "x"', "days": 3}
STEPS = (1, 2, 3, 7, 1000)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_family_is_recognized_by_its_template(name):
    assert family(name).name == name.removesuffix("-list")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", SAMPLES)
def test_a_call_is_read_however_it_is_cut(name, step):
    text, reasoning, calls = read(family(name), SAMPLES[name].one, step=step)
    assert (text, reasoning) == ("", "")
    assert [(n, json.loads(a), whole) for n, a, whole in calls] == [("get_weather", OSLO, True)]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", SAMPLES)
def test_several_calls_are_read(name, step):
    _, _, calls = read(family(name), SAMPLES[name].two, step=step)
    assert [(n, json.loads(a), whole) for n, a, whole in calls] == [("get_weather", OSLO, True), ("now", {}, True)]


@pytest.mark.parametrize("name", SAMPLES)
def test_only_the_first_call_is_told_where_one_is_wanted(name):
    _, _, calls = read(family(name), SAMPLES[name].two, parallel=False)
    assert [n for n, _, _ in calls] == ["get_weather"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", THINKING)
def test_reasoning_is_apart_from_the_call_behind_it(name, step):
    before, after = THINKING[name]
    text, reasoning, calls = read(family(name), f"{before}Hm,\nhm.{after}{SAMPLES[name].one}", step=step)
    assert (text, reasoning, [n for n, _, _ in calls]) == ("", "Hm,\nhm.", ["get_weather"])


@pytest.mark.parametrize("name", sorted(THINKING.keys() - {"harmony"}))
def test_the_prompt_may_have_begun_the_reasoning(name):
    before, after = THINKING[name]
    format = family(name)
    assert format.is_thinking(f"<|im_start|>assistant\n{before}") is True
    assert format.is_thinking(f"<|im_start|>assistant\n{before}{after}") is False
    assert format.is_thinking("<|im_start|>assistant\n") is None
    assert read(format, f"Hm.{after}It is cold.", thinking=True) == ("It is cold.", "Hm.", [])


@pytest.mark.parametrize("name", SAMPLES)
def test_plain_text_is_told_unchanged(name):
    answer = "  1 < 2, [a](b) {c: 'd'} <b>and</b>\n\n```json\n{\"name\": 3}\n```\n  "
    final = f"<|channel|>final<|message|>{answer}" if name == "harmony" else answer
    for step in STEPS:
        assert read(family(name), final, step=step) == (answer, "", [])
        assert read(family(name), final, step=step, tools=()) == (answer, "", [])


@pytest.mark.parametrize("name", sorted(SAMPLES.keys() - {"llama3", "harmony"}))
def test_text_before_a_call_is_kept(name):
    text, _, calls = read(family(name), f"Let me look.\n\n{SAMPLES[name].one}")
    assert (text, len(calls)) == ("Let me look.", 1)


def test_words_before_a_call_of_harmony_are_text():
    said = f"<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant{SAMPLES['harmony'].one}"
    text, _, calls = read(family("harmony"), said)
    assert (text, len(calls)) == ("Let me look.", 1)


def test_the_recipient_may_stand_before_the_channel():
    answer = ' to=functions.now<|channel|>commentary json<|message|>{"a": 1}<|call|>'
    assert read(family("harmony"), answer)[2] == [("now", '{"a": 1}', True)]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("hermes", '<tool_call>\n{"name": "get_weather" "arguments": {}}\n</tool_call> Sorry.'),
        ("hermes", '<tool_call>\n{"arguments": {}}\n</tool_call>'),
        ("hermes", "<tool_call>get_weather(Oslo)</tool_call>"),
        ("hermes", '<tool_call>{"name": "a", "arguments": 3}</tool_call>'),
        ("hermes", '<tool_call>{"na'),
        ("hermes", '<tool_call>{"name": "a", "arguments": "{\\"x\\": "}</tool_call>'),
        ("qwen-xml", "<tool_call>\nnothing of the kind\n</tool_call>"),
        ("mistral", "[TOOL_CALLS]what? no"),
        ("gemma", "<|tool_call>call it a day<tool_call|>"),
        ("lfm2", "<|tool_call_start|>[get_weather(1, *x)]<|tool_call_end|>"),
        ("lfm2", "<|tool_call_start|>[__import__('os').system('x')(a=b)]<|tool_call_end|>"),
        ("granite", "<|tool_call|>[nothing]"),
        ("phi4", "<|tool_call|>{}<|/tool_call|>"),
        ("llama3", '{"name": "no such tool", "parameters": {}}'),
        ("llama3", '{"answer": 42}'),
        ("generic", '{"name": "Anna", "arguments": ["for", "against"]}'),
    ],
)
def test_what_is_no_call_is_text(name, answer):
    for step in STEPS:
        assert read(family(name), answer, step=step) == (answer, "", [])


def test_a_call_that_breaks_off_is_not_complete():
    text, _, calls = read(family("hermes"), '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Os')
    assert (text, calls) == ("", [("get_weather", '{"city": "Os', False)])


def test_what_follows_a_break_is_text():
    text, _, calls = read(family("hermes"), '<tool_call>{"name": "now", "arguments": {"a": 1 oops}}</tool_call>')
    assert calls == [("now", '{"a": 1 ', False)]
    assert text == "oops}}</tool_call>"


def test_arguments_come_as_they_are_written():
    parser = Parser(family("hermes"), Context(False, TOOLS))
    begun = parser.feed('<tool_call>\n{"name": "get_weather", "arguments": {"ci')
    assert isinstance(begun[0], ToolBegin) and begun[1] == ToolArguments(0, '{"ci')
    assert parser.feed('ty": "Os') == [ToolArguments(0, 'ty": "Os')]
    assert parser.feed('lo"}') == [ToolArguments(0, 'lo"}')]


def test_arguments_before_the_name_wait_for_it():
    answer = '<tool_call>{"arguments": {"city": "Oslo"}, "name": "get_weather"}</tool_call>'
    assert read(family("hermes"), answer)[2] == [("get_weather", '{"city": "Oslo"}', True)]


def test_arguments_in_a_text_are_taken_out_of_it():
    answer = r'<tool_call>{"name": "get_weather", "arguments": "{\"city\": \"Oslo\"}"}</tool_call>'
    assert read(family("hermes"), answer)[2] == [("get_weather", '{"city": "Oslo"}', True)]


def test_line_ends_in_a_text_become_json():
    answer = '<tool_call>{"name": "now", "arguments": {"a": "x\ny"}}</tool_call>'
    assert json.loads(read(family("hermes"), answer)[2][0][1]) == {"a": "x\ny"}


def test_values_without_quotes_have_their_types():
    properties = {"text": {"type": "string"}, "list": {"type": "array"}, "any": {}, "both": {"type": ["string"]}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}
    values = {"text": "[1]", "list": "[1]", "any": "a < b", "both": "12"}
    body = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    answer = f"<tool_call>\n<function=f>\n{body}</function>\n</tool_call>"
    expected = {"text": "[1]", "list": [1], "any": "a < b", "both": "12"}
    for step in STEPS:
        assert json.loads(read(family("qwen-xml"), answer, step=step, tools=(tool,))[2][0][1]) == expected


def test_nested_values_of_gemma_become_json():
    answer = '<|tool_call>call:f{a:[1,<|"|>b, c<|"|>,{d:true}],e:{f:null,g:-1.5}}<tool_call|>'
    arguments = read(family("gemma"), answer)[2][0][1]
    assert json.loads(arguments) == {"a": [1, "b, c", {"d": True}], "e": {"f": None, "g": -1.5}}


@pytest.mark.parametrize("name", SAMPLES)
def test_half_a_marker_is_never_told(name):
    answer = SAMPLES[name].two
    parser = Parser(family(name), Context(False, TOOLS))
    told = [p for c in answer for p in parser.feed(c)] + parser.end()
    assert not [p for p in told if isinstance(p, (Said, Reasoning))]


def test_deep_json_is_text_and_ends():
    answer = '<tool_call>{"name": "now", "arguments": {"a": ' + "[" * 100_000
    text, _, calls = read(family("hermes"), answer, step=1000)
    assert calls[0][2] is False and len(text) > 99_000


def test_a_long_answer_costs_the_same_for_each_piece():
    answer = "word " * 20_000
    assert read(find(SAMPLES["hermes"].template), answer, step=5)[0] == answer


def test_ids_differ():
    parser = Parser(family("hermes"), Context(False, TOOLS))
    begun = [p.id for p in parser.feed(SAMPLES["hermes"].two) if isinstance(p, ToolBegin)]
    assert len(set(begun)) == 2 and all(len(i) == 9 for i in begun)
