"""Qwen3-Coder, Qwen 3.5 and Nemotron 3: a call in tags, each argument in its own, texts without quotes."""

import json
from collections.abc import Mapping
from typing import Any

from edgellm.text.tool_formats.base import Context, Format, Tool
from edgellm.text.tool_formats.rules import Rules, either, name_of, parameters_of, quoted
from edgellm.text.tool_formats.scan import Malformed, Reading, Scan

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _PARAMETER, _END_FUNCTION, _END_PARAMETER = "<function=", "<parameter=", "</function>", "</parameter>"


class QwenXml(Format):
    """<tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>, with line ends between."""

    name = "qwen-xml"
    openers = (_OPEN, _FUNCTION)  # the outer tag is sometimes forgotten
    closers = (_CLOSE,)

    @classmethod
    def recognizes(cls, template: str) -> bool:
        return _FUNCTION in template and _PARAMETER in template and "tools" in template

    def read_call(self, scan: Scan, marker: str, context: Context) -> Reading:
        if marker == _OPEN:
            yield from scan.spaces()
            yield from scan.literal(_FUNCTION)
        name, _ = yield from scan.until((">",))
        yield from _arguments(scan, name.strip(), context)
        yield from scan.spaces()
        if (yield from scan.comes(_CLOSE)):
            scan.leave()

    def grammar(self, rules: Rules, tools: list[Tool], parallel: bool) -> str:
        functions = either([_function(rules, tool) for tool in tools])
        line = quoted("\n")
        call = rules.add(f"{rules.marker(_OPEN)} {line} {functions} {line} {rules.marker(_CLOSE)}")
        return f"{call} ({line} {call})*" if parallel else call


def _arguments(scan: Scan, name: str, context: Context) -> Reading:
    properties = properties_of(context.tools, name)
    index, first = scan.call(name), True
    scan.arguments(index, "{")
    while True:
        yield from scan.spaces()
        if (yield from scan.comes(_END_FUNCTION)):
            break
        yield from scan.literal(_PARAMETER)
        key, _ = yield from scan.until((">",))
        key = key.strip()
        if (yield from scan.comes("\n")):
            pass
        scan.arguments(index, f"{'' if first else ', '}{json.dumps(key, ensure_ascii=False)}: ")
        first = False
        if takes_text(properties.get(key)):
            yield from _text(scan, index)
        else:
            content, _ = yield from scan.until((_END_PARAMETER,))
            scan.arguments(index, as_json(content.strip("\n"), properties.get(key)))
    scan.arguments(index, "}")
    scan.end_call(index)


def _text(scan: Scan, index: int) -> Reading:
    """Read a text argument, without the line end before its closing tag, and tell it as it arrives."""
    scan.arguments(index, '"')
    while True:
        text, end = yield from scan.piece(("\n" + _END_PARAMETER, _END_PARAMETER))
        scan.arguments(index, json.dumps(text, ensure_ascii=False)[1:-1])
        if end:
            break
        if scan.ended:
            raise Malformed
    scan.arguments(index, '"')


def properties_of(tools: tuple[Tool, ...], name: str) -> Mapping[str, Any]:
    """Return the schemas of a tool's arguments by their names."""
    found = next((parameters_of(t).get("properties") for t in tools if name_of(t) == name), None)
    return found if isinstance(found, Mapping) else {}


def takes_text(schema: Any) -> bool:
    """Return True if an argument can only be a text."""
    if not isinstance(schema, Mapping):
        return False
    enum = schema.get("enum")
    return schema.get("type") == "string" or (isinstance(enum, list) and all(isinstance(e, str) for e in enum))


def as_json(content: str, schema: Any) -> str:
    """Return an argument written without quotes as JSON: as a value if it is one, else as a text."""
    try:
        value = json.loads(content, parse_constant=lambda name: 1 / 0)
    except (ValueError, RecursionError, ZeroDivisionError):
        value = {"True": True, "False": False, "None": None}.get(content, content)
    kinds = schema.get("type") if isinstance(schema, Mapping) else None
    if isinstance(kinds, list) and "string" in kinds and not isinstance(value, (str, type(None))):
        named = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}[type(value)]
        if named not in kinds and not (named == "integer" and "number" in kinds):
            value = content
    return json.dumps(value, ensure_ascii=False)


def _function(rules: Rules, tool: Tool) -> str:
    schema = parameters_of(tool)
    shared = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    parts = []
    for key, kind in properties.items():
        begin = quoted(f"{_PARAMETER}{key}>\n")
        if takes_text(kind) and "enum" in kind:
            value = f"{either([quoted(str(e)) for e in kind['enum']])} {quoted(chr(10) + _END_PARAMETER + chr(10))}"
        elif takes_text(kind):
            value = f"{rules.until(chr(10) + _END_PARAMETER)} {quoted(chr(10))}"
        else:
            kind = {**kind, **shared} if isinstance(kind, Mapping) else dict(shared)
            value = f"{rules.json(kind)} {quoted(chr(10) + _END_PARAMETER + chr(10))}"
        part = rules.add(f"{begin} {value}")
        parts.append(part if key in required else f"{part}?")
    return rules.add(f"{quoted(f'{_FUNCTION}{name_of(tool)}>' + chr(10))} {' '.join(parts)} {quoted(_END_FUNCTION)}")
