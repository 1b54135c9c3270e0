"""One answer a family, as its models write it, with the least of a template that the family is recognized by."""

from dataclasses import dataclass
from typing import Any

from edgellm.text.tool_formats import Context, Format, Parser, Reasoning, Said, ToolArguments, ToolBegin, ToolEnd, find

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS: tuple[dict[str, Any], ...] = (
    {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
)


@dataclass(frozen=True)
class Sample:
    """`one` calls get_weather with city Oslo "x" and days 3; `two` calls now as well."""

    template: str
    one: str
    two: str
    controls: tuple[str, ...] = ()


_OSLO = r'{"name": "get_weather", "arguments": {"city": "Oslo \"x\"", "days": 3}}'
_NOW = '{"name": "now", "arguments": {}}'
_XML = (
    '<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo "x"\n</parameter>\n<parameter=days>\n3\n</parameter>\n'
    "</function>\n</tool_call>"
)
_COMMENTARY = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}"
_HERMES = '{% if tools %}{{ tools }} <tool_call>\n{"name": …, "arguments": …}\n</tool_call>{% endif %}'
SAMPLES = {
    "hermes": Sample(
        _HERMES + "<think></think>", f"<tool_call>\n{_OSLO}\n</tool_call>",
        f"<tool_call>\n{_OSLO}\n</tool_call>\n<tool_call>\n{_NOW}\n</tool_call>",
        ("<tool_call>", "</tool_call>", "<think>", "</think>"),
    ),
    "qwen-xml": Sample(
        "{{ tools }}<tool_call><function=f><parameter=k></parameter></function></tool_call><think></think>", _XML,
        _XML + "\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
    ),
    "llama3": Sample(
        '{{ tools }}Environment: ipython {"name": function name, "parameters": dictionary} "parameters": ',
        r'{"name": "get_weather", "parameters": {"city": "Oslo \"x\"", "days": 3}}',
        r'{"name": "get_weather", "parameters": {"city": "Oslo \"x\"", "days": 3}}; {"name": "now", "parameters": {}}',
        ("<|python_tag|>",),
    ),
    "mistral": Sample(
        "[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS][ARGS][THINK][/THINK]",
        r'[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo \"x\"", "days": 3}',
        r'[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo \"x\"", "days": 3}[TOOL_CALLS]now[ARGS]{}',
        ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
    ),
    "mistral-list": Sample(
        "[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]", f"[TOOL_CALLS][{_OSLO}]", f"[TOOL_CALLS][{_OSLO}, {_NOW}]",
        ("[TOOL_CALLS]",),
    ),
    "phi4": Sample(
        "<|tool|>{{ message['tools'] }}<|/tool|>", f"<|tool_call|>[{_OSLO}]<|/tool_call|>",
        f"<|tool_call|>[{_OSLO}, {_NOW}]<|/tool_call|>", ("<|tool_call|>", "<|/tool_call|>"),
    ),
    "gemma": Sample(
        "{{ tools }}<|channel>thought<channel|><|tool_call>call:",
        '<|tool_call>call:get_weather{city:<|"|>Oslo "x"<|"|>,days:3}<tool_call|>',
        '<|tool_call>call:get_weather{city:<|"|>Oslo "x"<|"|>,days:3}<tool_call|>'
        "<|tool_call>call:now{}<tool_call|>", ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"),
    ),
    "harmony": Sample(
        "<|start|><|channel|>analysis<|message|>{{ tools }}<|end|>",
        _COMMENTARY.format("get_weather", r'{"city": "Oslo \"x\"", "days": 3}'),
        _COMMENTARY.format("get_weather", r'{"city": "Oslo \"x\"", "days": 3}') + "<|call|><|start|>assistant"
        + _COMMENTARY.format("now", "{}"),
        ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>"),
    ),
    "lfm2": Sample(
        "<|im_start|>List of tools: {{ tools }}<|tool_call_start|><think></think>",
        "<|tool_call_start|>[get_weather(city='Oslo \"x\"', days=3)]<|tool_call_end|>",
        "<|tool_call_start|>[get_weather(city='Oslo \"x\"', days=3), now()]<|tool_call_end|>",
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "granite": Sample(
        "<|start_of_role|>available_tools<|end_of_role|>{{ tools }}", f"<|tool_call|>[{_OSLO}]",
        f"<|tool_call|>[{_OSLO}, {_NOW}]", ("<|tool_call|>",),
    ),
    "generic": Sample(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        f"<tool_call>\n{_OSLO}\n</tool_call>", f"<tool_call>\n{_OSLO}\n</tool_call>\n<tool_call>\n{_NOW}\n</tool_call>",
    ),
}  # fmt: skip
THINKING = {
    "hermes": ("<think>\n", "\n</think>\n\n"), "qwen-xml": ("<think>\n", "\n</think>\n\n"),
    "mistral": ("[THINK]", "[/THINK]"), "gemma": ("<|channel>thought\n", "\n<channel|>"),
    "harmony": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"), "lfm2": ("<think>", "</think>"),
}  # fmt: skip


def family(name: str) -> Format:
    """Return the format of a sample's template."""
    return find(SAMPLES[name].template)


def read(format: Format, answer: str, *, step: int = 1, thinking: bool = False, tools=TOOLS, parallel=True):
    """Return what a parser makes of an answer that comes in pieces of `step` characters: the text, the reasoning, and
    calls as (name, arguments, whether complete)."""
    parser = Parser(format, Context(thinking, tuple(tools), parallel))
    pieces = []
    for i in range(0, len(answer), step):
        pieces += parser.feed(answer[i : i + step])
    pieces += parser.end()
    text = "".join(p.text for p in pieces if isinstance(p, Said))
    reasoning = "".join(p.text for p in pieces if isinstance(p, Reasoning))
    calls = [
        (b.name, "".join(p.text for p in pieces if isinstance(p, ToolArguments) and p.index == b.index),
         ToolEnd(b.index) in pieces)
        for b in pieces if isinstance(b, ToolBegin)
    ]  # fmt: skip
    return text, reasoning, calls
