"""Gemma 4 and FunctionGemma: call:name{key:value}, with texts between tokens of their own instead of quotes."""

import json
from collections.abc import Mapping
from typing import Any

from edgellm.text.tool_formats.base import Context, Format, Tool
from edgellm.text.tool_formats.rules import Rules, either, name_of, parameters_of, quoted
from edgellm.text.tool_formats.scan import Malformed, Reading, Scan

_DEEPEST = 32
_NEW = ("<|tool_call>", "<tool_call|>", '<|"|>')
_OLD = ("<start_function_call>", "<end_function_call>", "<escape>")
_THINK = ("<|channel>thought\n", "<channel|>")


class Gemma(Format):
    """<|tool_call>call:name{key:<|"|>text<|"|>,other:3}<tool_call|>, once for each call."""

    name = "gemma"

    def __init__(self, template: str, think: tuple[str, str] | None = None):
        super().__init__(template, _THINK if "<|channel>" in template else None)
        self.open, self.close, self.quote = _NEW if _NEW[0] in template else _OLD
        self.openers = (self.open,)
        self.closers = (self.close, self.quote, "<|channel>", "<channel|>")

    @classmethod
    def recognizes(cls, template: str) -> bool:
        return _NEW[0] in template or _OLD[0] in template

    def read_call(self, scan: Scan, marker: str, context: Context) -> Reading:
        yield from scan.spaces()
        yield from scan.literal("call:")
        name, _ = yield from scan.until(("{",))
        index = scan.call(name.strip())
        yield from self._object(scan, index, 0)
        scan.end_call(index)
        yield from scan.spaces()
        if (yield from scan.comes(self.close)):
            scan.leave()

    def _object(self, scan: Scan, index: int, depth: int) -> Reading:
        scan.arguments(index, "{")
        yield from scan.spaces()
        first = True
        while not (yield from scan.comes("}")):
            if not first:
                yield from scan.literal(",")
                yield from scan.spaces()
            key, _ = yield from scan.until((":",))
            key = key.strip().removeprefix(self.quote).removesuffix(self.quote).strip('"')
            scan.arguments(index, f"{'' if first else ', '}{json.dumps(key, ensure_ascii=False)}: ")
            first = False
            yield from self._value(scan, index, depth + 1)
            yield from scan.spaces()
        scan.arguments(index, "}")

    def _value(self, scan: Scan, index: int, depth: int) -> Reading:
        if depth > _DEEPEST:
            raise Malformed
        yield from scan.spaces()
        if (yield from scan.comes(self.quote)):
            scan.arguments(index, '"')
            while True:
                text, end = yield from scan.piece((self.quote,))
                scan.arguments(index, json.dumps(text, ensure_ascii=False)[1:-1])
                if end:
                    break
                if scan.ended:
                    raise Malformed
            scan.arguments(index, '"')
        elif (yield from scan.comes("{")):
            yield from self._object(scan, index, depth)
        elif (yield from scan.comes("[")):
            yield from self._list(scan, index, depth)
        else:
            literal = ""
            while (c := (yield from scan.peek())) and c not in ",}]":
                literal += yield from scan.next()
            try:
                scan.arguments(index, json.dumps(json.loads(literal), ensure_ascii=False))
            except (ValueError, RecursionError):  # a text without its quotes
                scan.arguments(index, json.dumps(literal.strip(), ensure_ascii=False))

    def _list(self, scan: Scan, index: int, depth: int) -> Reading:
        scan.arguments(index, "[")
        yield from scan.spaces()
        first = True
        while not (yield from scan.comes("]")):
            if not first:
                yield from scan.literal(",")
                scan.arguments(index, ", ")
            first = False
            yield from self._value(scan, index, depth + 1)
            yield from scan.spaces()
        scan.arguments(index, "]")

    def grammar(self, rules: Rules, tools: list[Tool], parallel: bool) -> str:
        values = _Values(rules, self.quote)
        called = [f"{quoted('call:' + name_of(t))} {values.object(parameters_of(t), 0)}" for t in tools]
        call = rules.add(f"{rules.marker(self.open)} {either(called)} {rules.marker(self.close)}")
        return f"{call}+" if parallel else call


class _Values:
    """Rules for values of JSON schemas, as Gemma writes them: by types and enums, and any value beyond that."""

    def __init__(self, rules: Rules, quote: str):
        self._rules, self._quote = rules, rules.marker(quote)
        self._text = rules.add(f"{self._quote} {rules.until(quote)}")
        self._number = rules.regex(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?")
        flat = self._any = rules.add(either([self._text, self._number, '"true"', '"false"', '"null"']))
        for _ in range(3):  # deep enough for what has no schema
            pair = rules.add(f'/[A-Za-z0-9_-]{{1,64}}/ ":" {self._any}')
            nested = [f'"{{" ({pair} ("," {pair})*)? "}}"', f'"[" ({self._any} ("," {self._any})*)? "]"']
            self._any = rules.add(either([flat, *nested]))

    def object(self, schema: Mapping[str, Any], depth: int) -> str:
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or depth > 8:
            return self._any if depth else '"{}"'
        required = schema.get("required") or []
        needed = [self._pair(k, properties[k], depth) for k in sorted(properties) if k in required]
        further = [self._pair(k, properties[k], depth) for k in sorted(properties) if k not in required]
        if needed:
            body = ' "," '.join(needed) + "".join(f' ("," {pair})?' for pair in further)
        else:
            chains = [p + "".join(f' ("," {q})?' for q in further[i + 1 :]) for i, p in enumerate(further)]
            body = f"({' | '.join(chains)})?" if chains else ""
        return self._rules.add(f'"{{" {body} "}}"')

    def _pair(self, key: str, schema: Any, depth: int) -> str:
        return self._rules.add(f"{quoted(key + ':')} {self._value(schema, depth + 1)}")

    def _value(self, schema: Any, depth: int) -> str:
        if not isinstance(schema, Mapping):
            return self._any
        if isinstance(schema.get("enum"), list) and all(isinstance(e, str) for e in schema["enum"]):
            texts = [quoted(e) for e in schema["enum"]]
            return self._rules.add(f"{self._quote} {either(texts)} {self._quote}") if texts else self._text
        kind = schema.get("type")
        if kind == "string":
            return self._text
        if kind == "integer":
            return self._rules.regex("-?(0|[1-9][0-9]{0,17})")
        if kind == "number":
            return self._number
        if kind == "boolean":
            return '("true" | "false")'
        if kind == "object":
            return self.object(schema, depth)
        if kind == "array" and depth <= 8:
            item = self._value(schema.get("items"), depth + 1)
            return self._rules.add(f'"[" ({item} ("," {item})*)? "]"')
        return self._any
