import json

import pytest
from tokenizers import AddedToken

from edgellm.errors import ConstraintError, UsageError
from edgellm.structure import Constraint
from edgellm.text.prepared import parse, prepare
from edgellm.text.tokenizer import Tokenizer
from edgellm.text.tool_formats import Reasoning, Said, ToolBegin
from tests.text.vocabularies import byte_level

TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}
QWEN = (
    "{% if tools %}{{ tools | tojson }} <tool_call>\n{\"name\": …, \"arguments\": …}\n</tool_call>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}"
    "{{ c.function.arguments.at }}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and enable_thinking is false %}\n</think>\n\n{% endif %}"
)  # fmt: skip
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
ASKED = [{"role": "user", "content": "Hi?"}]


@pytest.fixture
def make(tmp_path):
    def make(template):
        library, _ = byte_level()
        library.add_special_tokens([AddedToken(t, special=True) for t in ("<tool_call>", "</tool_call>")])
        library.save(str(tmp_path / "tokenizer.json"))
        if template:
            (tmp_path / "chat_template.jinja").write_text(template)
        return Tokenizer(tmp_path)

    return make


def test_a_template_with_tools_gets_them(make):
    ready = prepare(make(QWEN), ASKED, tools=[TOOL])
    assert (ready.messages, ready.tools, ready.constraint) == (tuple(ASKED), (TOOL,), None)
    assert ready.controls == {"<tool_call>", "</tool_call>"}  # <think> is plain text to this tokenizer
    told = ready.parser.feed('Hm.</think>\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>')
    assert told[0] == Reasoning("Hm.") and isinstance(told[1], ToolBegin)


def test_arguments_of_earlier_calls_are_objects_to_the_template(make):
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
    asked = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "c1", "content": "nothing"}]  # fmt: skip
    tokenizer = make(QWEN)
    ready = prepare(tokenizer, asked, tools=[TOOL])
    assert ready.messages[1]["tool_calls"][0]["function"]["arguments"] == {"at": "it"}
    assert ready.messages[2]["name"] == "look"
    assert tokenizer.encode_chat([dict(m) for m in ready.messages], tools=[TOOL])


def test_a_template_without_tools_has_them_in_the_system_message(make):
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
    asked = [{"role": "system", "content": "Be brief."}, *ASKED, {"role": "assistant", "tool_calls": [call, call]},
             {"role": "tool", "tool_call_id": "c1", "content": "one"},
             {"role": "tool", "tool_call_id": "c1", "content": "two"}]  # fmt: skip
    ready = prepare(make(PLAIN), asked, tools=[TOOL])
    system, _, called, results = ready.messages
    assert ready.tools == ()
    assert system["content"].startswith("Be brief.\n\n") and '"name": "look"' in system["content"]
    assert called["content"].count('<tool_call>\n{"name": "look", "arguments": {"at": "it"}}\n</tool_call>') == 2
    assert results == {
        "role": "user", "content": "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>",
    }  # fmt: skip


def test_without_tools_and_reasoning_a_chat_stays_what_it_is(make):
    ready = prepare(make(PLAIN), ASKED, wanted=Constraint("json"))
    assert (ready.messages, ready.constraint, ready.parser) == (tuple(ASKED), Constraint("json"), None)
    assert not ready.controls and not ready.template


def test_thinking_can_be_turned_off(make):
    tokenizer = make(QWEN)
    ready = prepare(tokenizer, ASKED, think=False)
    assert ready.template == {"enable_thinking": False}
    assert ready.parser.feed("Hi.") == [Said("Hi.")]
    assert prepare(tokenizer, ASKED).parser.feed("Hi.") == [Reasoning("Hi.")]


def test_a_template_that_wants_a_system_prompt_is_asked_with_one(make):
    wants = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}"
    ready = prepare(make(wants + QWEN), [{"role": "system", "content": "Be brief."}, *ASKED])
    assert ready.parser.feed("Hi.") == [Reasoning("Hi.")]


def test_a_variable_that_the_asker_names_comes_first(make):
    assert prepare(make(QWEN), ASKED, think=True, template={"enable_thinking": False}).template == {
        "enable_thinking": False
    }


def test_text_that_must_match_is_not_thought_about_unless_asked(make):
    tokenizer, wanted = make(QWEN), Constraint("json_schema", '{"type": "object"}')
    assert prepare(tokenizer, ASKED, wanted=wanted).constraint == wanted
    thought = prepare(tokenizer, ASKED, wanted=wanted, think=True).constraint
    assert thought.kind == "lark" and "</think>" in thought.source


def test_a_call_can_be_demanded(make):
    other = {"type": "function", "function": {"name": "other"}}
    tokenizer = make(PLAIN)
    any_of = prepare(tokenizer, ASKED, tools=[TOOL, other], tool_choice="required").constraint.source
    named = prepare(tokenizer, ASKED, tools=[TOOL, other], tool_choice="other").constraint.source
    assert "look" in any_of and "other" in any_of
    assert "look" not in named and "other" in named
    assert f"<[{tokenizer.control_id('<tool_call>')}]>" in named


def test_calls_of_strict_tools_match_without_a_demand(make):
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}
    assert "look" in prepare(make(QWEN), ASKED, tools=[strict]).constraint.source
    assert prepare(make(QWEN), ASKED, tools=[TOOL]).constraint is None


def test_no_tool_is_described_if_none_may_be_called(make):
    ready = prepare(make(PLAIN), ASKED, tools=[TOOL], tool_choice="none")
    assert (ready.messages, ready.constraint, ready.parser) == (tuple(ASKED), None, None)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(" * 100}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "(" * 9000 + ")" * 9000}}},
        {"$ref": "#/$defs/nowhere"},
        {"type": "object", "properties": {f"p{i}": {"enum": ["x" * 100]} for i in range(500)}},
    ],
)
def test_parameters_that_cannot_be_compiled_are_refused_by_name(make, schema):
    broken = {"type": "function", "function": {"name": "broken", "parameters": schema}}
    with pytest.raises(UsageError, match=r"^tools\[1\]\.function\.parameters: "):
        prepare(make(PLAIN), ASKED, tools=[TOOL, broken], tool_choice="required")


def test_a_schema_that_cannot_be_compiled_is_refused(make):
    with pytest.raises(ConstraintError):
        prepare(make(PLAIN), ASKED, wanted=Constraint("json_schema", json.dumps({"type": "nonsense"})))


def test_a_model_without_a_template_takes_no_tools(make):
    tokenizer = make("")
    assert prepare(tokenizer, ASKED).messages == tuple(ASKED)
    with pytest.raises(UsageError, match="no chat template"):
        prepare(tokenizer, ASKED, tools=[TOOL])


def test_a_whole_answer_is_parsed(make):
    assert parse(make(QWEN), "Hm.\n</think>\n\nHi.") == [Reasoning("Hm."), Said("Hi.")]
    assert parse(make(PLAIN), "<think>Hi.") == [Said("<think>Hi.")]
