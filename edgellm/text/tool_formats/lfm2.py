"""LFM2: a list of calls written as Python, between <|tool_call_start|> and <|tool_call_end|>."""

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.text.tool_formats.base import Context, Format, Message, Messages, Tool, arguments_of, written
from edgellm.text.tool_formats.qwen_xml import takes_text
from edgellm.text.tool_formats.rules import Rules, either, name_of, parameters_of, quoted
from edgellm.text.tool_formats.scan import Malformed, Reading, Scan

_OPEN, _CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
_MOST = 64 << 10
_TEXT = r"'([^'\\\n]|\\['\\nt\"])*'"


class Lfm2(Format):
    """<|tool_call_start|>[name(key='text', other=3), …]<|tool_call_end|>. Sometimes JSON stands between them."""

    name = "lfm2"
    openers = (_OPEN,)
    closers = (_CLOSE,)

    @classmethod
    def recognizes(cls, template: str) -> bool:
        return _OPEN in template or ("List of tools: " in template and "<|im_start|>" in template)

    def prepare(self, messages: Messages, tools: Sequence[Tool]) -> tuple[list[Message], list[Tool]]:
        """Return messages with calls in their contents where the template leaves them out."""
        found, told = super().prepare(messages, tools)
        return (found if "tool_calls" in self.template else written(found, _write)), told

    def read_call(self, scan: Scan, marker: str, context: Context) -> Reading:
        yield from scan.spaces()
        text, end = yield from scan.until((_CLOSE,))
        for name, arguments in parsed(text):
            index = scan.call(name)
            scan.arguments(index, arguments)
            scan.end_call(index)

    def grammar(self, rules: Rules, tools: list[Tool], parallel: bool) -> str:
        call = rules.add(either([_called(rules, tool) for tool in tools]))
        more = f"({quoted(', ')} {call})*" if parallel else ""
        return f"{rules.marker(_OPEN)} {quoted('[')} {call} {more} {quoted(']')} {rules.marker(_CLOSE)}"


def parsed(text: str) -> list[tuple[str, str]]:
    """Return the names and arguments, as JSON, of calls written as Python or as JSON. Raises Malformed."""
    if len(text) > _MOST:
        raise Malformed
    found = []
    try:
        body = ast.parse(text.strip(), mode="eval").body
        for call in body.elts if isinstance(body, (ast.List, ast.Tuple)) else [body]:
            if isinstance(call, ast.Call) and not call.args:
                values = {k.arg: _constant(k.value) for k in call.keywords if k.arg}
                found.append((ast.unparse(call.func), json.dumps(values, ensure_ascii=False, allow_nan=False)))
            elif isinstance(call, ast.Dict):
                said = _constant(call)
                arguments = said.get("arguments", said.get("parameters", {}))
                found.append((str(said["name"]), json.dumps(arguments, ensure_ascii=False, allow_nan=False)))
            else:
                raise Malformed
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError):
        raise Malformed from None
    return found


def _constant(node: ast.expr) -> Any:
    """Return the value of a literal; also of true, false and null."""
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    if isinstance(node, ast.Dict):
        return {_constant(k): _constant(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_constant(v) for v in node.elts]
    return ast.literal_eval(node)


def _write(calls: list[Mapping[str, Any]]) -> str:
    told = []
    for call in calls:
        arguments = arguments_of(call)
        pairs = arguments.items() if isinstance(arguments, dict) else ()
        told.append(f"{call['function']['name']}({', '.join(f'{k}={v!r}' for k, v in pairs)})")
    return f"{_OPEN}[{', '.join(told)}]{_CLOSE}"


def _called(rules: Rules, tool: Tool) -> str:
    schema = parameters_of(tool)
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    shared: dict[str, Any] = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
    pairs = {key: rules.add(f"{quoted(key + '=')} {_value(rules, kind, shared)}") for key, kind in properties.items()}
    needed, further = [k for k in pairs if k in required], [k for k in pairs if k not in required]
    if needed:
        body = f" {quoted(', ')} ".join(pairs[k] for k in needed)
        body += "".join(f" ({quoted(', ')} {pairs[k]})?" for k in further)
    else:
        chains = [
            pairs[k] + "".join(f" ({quoted(', ')} {pairs[other]})?" for other in further[i + 1 :])
            for i, k in enumerate(further)
        ]  # fmt: skip
        body = f"({' | '.join(chains)})?" if chains else ""
    return rules.add(f"{quoted(name_of(tool) + '(')} {body} {quoted(')')}")


def _value(rules: Rules, schema: Any, shared: dict[str, Any]) -> str:
    if takes_text(schema):
        if "enum" in schema:
            return either([quoted(repr(e)) for e in schema["enum"]])
        return rules.regex(_TEXT)
    if isinstance(schema, Mapping) and schema.get("type") == "boolean":
        return '("True" | "False")'
    return rules.json({**(schema if isinstance(schema, Mapping) else {}), **shared})
