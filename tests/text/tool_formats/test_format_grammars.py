"""Each family's grammar, by llguidance: it takes what the family's models write, and nothing that is no such call."""

import json
import random

import pytest
import tokenizers
from llguidance import LLMatcher, LLTokenizer
from tokenizers import decoders, models, pre_tokenizers

from edgellm.errors import UsageError
from edgellm.structure import Constraint
from edgellm.text.tool_formats import make_constraint, thinking_variables
from tests.text.tool_formats.samples import SAMPLES, THINKING, TOOLS, family, read

END = "<|the end|>"


class Vocabulary:
    """A byte for each token, and control tokens."""

    def __init__(self, controls=()):
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([END, *controls])
        self._tokenizer = tokenizer
        self._controls = {c: tokenizer.token_to_id(c) for c in controls}
        self.eos = tokenizer.token_to_id(END)
        self.library = LLTokenizer(tokenizer.to_str(), eos_token=self.eos)

    def token_id(self, text):
        return self._controls.get(text)

    def encode(self, text):
        return self._tokenizer.encode(text).ids

    def decode(self, ids):
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def matcher(self, constraint):
        assert constraint.kind == "lark"
        matcher = LLMatcher(self.library, LLMatcher.grammar_from_lark(constraint.source), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def matches(self, constraint, text):
        """Return True if the whole text matches."""
        matcher, ids = self.matcher(constraint), self.encode(text)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def constrained(name, *, special=True, thinking=None, tools=TOOLS, parallel=True, wanted=None, free=False):
    vocabulary = Vocabulary(SAMPLES[name].controls if special else ())
    made = make_constraint(
        family(name), vocabulary.token_id, thinking=thinking, tools=tools, parallel=parallel, wanted=wanted,
        free=free,
    )
    return vocabulary, made


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_call_matches(name, special):
    vocabulary, constraint = constrained(name, special=special)
    assert vocabulary.matches(constraint, SAMPLES[name].one)


@pytest.mark.parametrize("name", sorted(SAMPLES.keys() - {"llama3", "harmony", "generic"}))  # these write one an answer
def test_several_calls_match_where_they_are_wanted(name):
    vocabulary, several = constrained(name)
    _, one = constrained(name, parallel=False)
    assert vocabulary.matches(several, SAMPLES[name].two)
    assert not vocabulary.matches(one, SAMPLES[name].two)


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_no_call_of_these_tools_does_not_match(name):
    vocabulary, constraint = constrained(name, tools=TOOLS[:1], thinking=False)
    answer = SAMPLES[name].one
    assert vocabulary.matches(constraint, answer)
    for wrong in ("Hello.", answer[:-1], answer + "x", answer.replace("weather", "whether"), answer.replace("3", "'x'"),
                  answer.replace("city", "town"), "Hm. " + answer):  # fmt: skip
        assert not vocabulary.matches(constraint, wrong), wrong


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", THINKING)
def test_reasoning_may_come_first(name, special):
    before, after = THINKING[name]
    vocabulary, constraint = constrained(name, special=special)
    assert vocabulary.matches(constraint, f"{before}Hm <b>,\nhm.{after}{SAMPLES[name].one}")
    assert vocabulary.matches(constraint, SAMPLES[name].one)


@pytest.mark.parametrize("name", sorted(THINKING.keys() - {"harmony"}))
def test_reasoning_that_the_prompt_began_is_ended_first(name):
    _, after = THINKING[name]
    vocabulary, constraint = constrained(name, thinking=True)
    assert vocabulary.matches(constraint, f"Hm.{after}{SAMPLES[name].one}")
    assert not vocabulary.matches(constraint, SAMPLES[name].one)


@pytest.mark.parametrize(
    "wanted",
    [Constraint("json"), Constraint("json_schema", '{"type": "object"}'), Constraint("regex", r'\{"a/b": 1\}')],
)
@pytest.mark.parametrize("name", THINKING)
def test_an_answers_text_matches_behind_its_reasoning(name, wanted):
    before, after = THINKING[name]
    vocabulary, constraint = constrained(name, tools=(), wanted=wanted)
    final = "<|channel|>final<|message|>" if name == "harmony" else ""
    assert vocabulary.matches(constraint, f'{before}{{ hm{after}{final}{{"a/b": 1}}')
    assert not vocabulary.matches(constraint, f"{before}{{ hm{after}{final}a/b")


def test_without_reasoning_a_constraint_stays_what_it_is():
    wanted = Constraint("regex", "a+")
    assert constrained("generic", tools=(), wanted=wanted)[1] == wanted


def test_a_call_may_come_in_place_of_the_text_that_is_wanted():
    vocabulary, constraint = constrained("hermes", wanted=Constraint("json"), thinking=False)
    assert vocabulary.matches(constraint, SAMPLES["hermes"].one)
    assert vocabulary.matches(constraint, '{"a": 1}')
    assert not vocabulary.matches(constraint, "a")


@pytest.mark.parametrize("name", sorted(SAMPLES.keys() - {"llama3", "harmony", "qwen-xml", "generic"}))
def test_any_text_may_come_before_a_call_that_must_match(name):
    vocabulary, constraint = constrained(name, free=True, thinking=False)
    assert family(name).can_begin_anywhere(vocabulary.token_id)
    answer = SAMPLES[name].one
    for good in ("", "Hi.", answer, f"Let me look.\n\n{answer}"):
        assert vocabulary.matches(constraint, good), good
    for wrong in (answer.replace("weather", "whether"), answer[:-1] + "x", f"{answer} Done."):
        assert not vocabulary.matches(constraint, wrong), wrong


def test_a_call_that_text_may_begin_cannot_be_told_from_it():
    assert not family("generic").can_begin_anywhere(lambda text: None)
    assert not family("harmony").can_begin_anywhere(lambda text: 1)


def test_a_grammar_stands_alone():
    with pytest.raises(UsageError, match="turned off"):
        constrained("hermes", wanted=Constraint("lark", 'start: "a"'))


SCHEMA = {
    "type": "object",
    "$defs": {"unit": {"enum": ["C", "F"]}},
    "properties": {
        "unit": {"$ref": "#/$defs/unit"}, "kind": {"type": "string", "enum": ["rain", "sun"]},
        "sure": {"type": "boolean"}, "list": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        "inner": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"],
                  "additionalProperties": False},
    },
    "required": ["kind", "sure", "list", "inner"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_whatever_a_grammar_allows_is_read_as_a_call_of_the_schema(name):
    tools = ({"type": "function", "function": {"name": "f", "parameters": SCHEMA}},)
    vocabulary, constraint = constrained(name, tools=tools, parallel=False, thinking=False)
    for seed in range(4):
        answer = vocabulary.decode(_random_answer(vocabulary, vocabulary.matcher(constraint), random.Random(seed)))
        _, _, calls = read(family(name), answer, tools=tools)
        assert [(n, whole) for n, _, whole in calls] == [("f", True)], answer
        arguments = json.loads(calls[0][1])
        assert arguments["kind"] in ("rain", "sun") and isinstance(arguments["sure"], bool), answer
        assert all(isinstance(i, int) for i in arguments["list"]) and isinstance(arguments["inner"]["x"], (int, float))
        assert arguments.keys() <= SCHEMA["properties"].keys(), answer


def _random_answer(vocabulary, matcher, random):
    """Return tokens that the matcher allows, chosen at random, the rarer the longer what is open gets."""
    ids = []
    while not matcher.is_stopped():
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [i for i in range(vocabulary.library.vocab_size) if mask >> i & 1]
        assert allowed, matcher.get_error() or vocabulary.decode(ids)
        closing = [i for i in allowed if vocabulary.decode([i]) in ("<|end|>", *'"}])>,\n<|')]
        closing = [i for i in closing if vocabulary.decode([i]) == "<|end|>"] or closing
        chosen = vocabulary.eos if vocabulary.eos in allowed else random.choice(closing or allowed)
        assert matcher.consume_token(chosen)
        if chosen == vocabulary.eos:
            break
        ids.append(chosen)
        assert len(ids) < 2000, vocabulary.decode(ids)
    return ids


def test_the_templates_variables_for_thinking():
    qwen = "{%- if enable_thinking is defined and enable_thinking is false %}"
    gpt = "{{- 'Reasoning: ' + reasoning_effort }}{% if message.thinking %}"
    granite = "{%- if thinking %}"
    assert thinking_variables(qwen, None) == {}
    assert thinking_variables(qwen, False) == {"enable_thinking": False}
    assert thinking_variables(qwen, "none") == {"enable_thinking": False}
    assert thinking_variables(qwen, "high") == {"enable_thinking": True}
    assert thinking_variables(gpt, "high") == {"reasoning_effort": "high"}
    assert thinking_variables(gpt, "xhigh") == {"reasoning_effort": "high"}
    assert thinking_variables(gpt, False) == {"reasoning_effort": "low"}
    assert thinking_variables(granite, True) == {"thinking": True}
    assert thinking_variables("{{ m.thinking }}", True) == {}
