"""JSON schemas of the kinds that JSONSchemaBench has, made up by rules: small and large, flat and nested, of functions,
events, resources and settings. The same seed gives the same schemas."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
_NAMES = (
    "name", "title", "city", "country", "email", "phone", "date", "price", "count", "status", "id", "code", "color",
    "size", "weight", "owner", "notes", "tags", "items", "address", "street", "language", "rating", "author", "year",
    "pages", "temperature", "humidity", "speed", "mode", "level", "enabled", "visible", "port", "host", "path", "user",
    "group", "image", "version", "region", "zone", "replicas", "memory", "cpu", "timeout", "retries", "unit", "label",
)  # fmt: skip
_WORDS = (
    "active", "inactive", "pending", "red", "green", "blue", "small", "medium", "large", "auto", "manual", "low",
    "high", "north", "south", "daily", "weekly", "open", "closed", "public", "private", "on", "off", "new", "used",
)  # fmt: skip
_PATTERNS = (
    "^[A-Z]{2}[0-9]{4}$", "^[a-z][a-z0-9-]{1,14}[a-z0-9]$", "^#[0-9a-f]{6}$", "^v[0-9]{1,2}\\.[0-9]{1,2}$",
    "^(mon|tue|wed|thu|fri)$", "^\\+?[0-9]{6,12}$", "^[0-9]{1,4}(Mi|Gi)$",
)  # fmt: skip
_FORMATS = ("date", "uuid", "ipv4")


@dataclass(frozen=True)
class Example:
    """A schema, its kind, and a question whose answer it describes."""

    kind: str
    schema: Schema
    question: str


class _Maker:
    def __init__(self, rng: random.Random):
        self.rng = rng

    def names(self, count: int) -> list[str]:
        return self.rng.sample(_NAMES, count)

    def text(self) -> Schema:
        rng = self.rng
        return rng.choice((
            {"type": "string", "maxLength": rng.randint(5, 24)},
            {"type": "string", "minLength": rng.randint(1, 4), "maxLength": rng.randint(6, 16)},
            {"enum": rng.sample(_WORDS, rng.randint(2, 6))},
            {"type": "string", "pattern": rng.choice(_PATTERNS)},
            {"type": "string", "format": rng.choice(_FORMATS)},
        ))  # fmt: skip

    def number(self) -> Schema:
        rng, low = self.rng, self.rng.choice((0, 1, -40, 1900))
        return rng.choice((
            {"type": "integer", "minimum": low, "maximum": low + rng.choice((9, 120, 1000, 65535))},
            {"type": "integer", "exclusiveMinimum": low, "maximum": low + 500},
            {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": rng.choice((2, 5, 10))},
        ))  # fmt: skip

    def scalar(self) -> Schema:
        rng = self.rng
        return rng.choice((
            self.text, self.text, self.number, lambda: {"type": "boolean"}, lambda: {"const": rng.choice(_WORDS)}
        ))()  # fmt: skip

    def maybe_null(self, schema: Schema) -> Schema:
        if self.rng.random() < 0.7:
            return schema
        return {"anyOf": [schema, {"type": "null"}]}

    def array(self, items: Schema) -> Schema:
        least = self.rng.randint(0, 2)
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + self.rng.randint(1, 3)}

    def object(self, properties: Schema, needed: float = 0.7) -> Schema:
        required = [name for name in properties if self.rng.random() < needed] or list(properties)[:1]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def nested(self, depth: int, width: int) -> Schema:
        properties: Schema = {}
        for name in self.names(self.rng.randint(1, width)):
            kind = self.rng.random()
            if depth and kind < 0.3:
                properties[name] = self.nested(depth - 1, width)
            elif depth and kind < 0.45:
                properties[name] = self.array(self.nested(depth - 1, max(1, width - 2)))
            elif kind < 0.6:
                properties[name] = self.array(self.scalar())
            else:
                properties[name] = self.maybe_null(self.scalar())
        return self.object(properties)


def _trivial(m: _Maker) -> Schema:
    return m.object({m.names(1)[0]: m.scalar()}, 1.0)


def _function(m: _Maker) -> Schema:
    arguments = m.object({name: {**m.scalar(), "description": f"The {name} to use."} for name in m.names(4)})
    name = f"{m.rng.choice(('get', 'set', 'find', 'make'))}_{m.names(1)[0]}"
    return m.object({"name": {"const": name}, "arguments": arguments}, 1.0)


def _easy(m: _Maker) -> Schema:
    return m.nested(1, 4)


def _medium(m: _Maker) -> Schema:
    return m.nested(2, 5)


def _references(m: _Maker) -> Schema:
    one, other = m.names(2)
    schema = m.object({one: {"$ref": "#/$defs/thing"}, other: m.array({"$ref": "#/$defs/thing"})}, 1.0)
    thing = m.object({name: m.scalar() for name in m.names(3)}, 1.0)
    thing["properties"]["next"] = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]}
    return {**schema, "$defs": {"thing": thing, "leaf": m.object({"value": m.number()}, 1.0)}}


def _union(m: _Maker) -> Schema:
    kinds = m.rng.sample(_WORDS, 3)
    parts = [m.object({"type": {"const": kind}, m.names(1)[0]: m.scalar()}, 1.0) for kind in kinds]
    return m.object({"content": m.array({"anyOf": parts}), "kind": {"enum": kinds}}, 1.0)


def _resource(m: _Maker) -> Schema:
    container = m.object({
        "name": {"type": "string", "pattern": "^[a-z][a-z0-9-]{1,14}[a-z0-9]$"},
        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
        "memory": {"type": "string", "pattern": "^[0-9]{1,4}(Mi|Gi)$"},
    })  # fmt: skip
    spec = m.object({"replicas": {"type": "integer", "minimum": 0, "maximum": 9}, "containers": m.array(container)}, 1)
    metadata = m.object({"name": m.text(), "labels": m.object({name: m.text() for name in m.names(2)})}, 1.0)
    return m.object({"apiVersion": {"const": "v1"}, "kind": {"enum": ["Pod", "Job"]}, "metadata": metadata,
                     "spec": spec}, 1.0)  # fmt: skip


def _event(m: _Maker) -> Schema:
    properties = {name: m.maybe_null(m.scalar()) for name in m.names(5)}
    properties["time"] = {"type": "string", "format": "date-time", "maxLength": 25}
    properties["uuid"] = {"type": "string", "format": "uuid"}
    return m.object(properties, 0.6)


def _settings(m: _Maker) -> Schema:
    groups = {name: m.object({inner: m.scalar() for inner in m.names(3)}, 0.4) for name in m.names(3)}
    return m.object({"$schema": {"const": "settings"}, **groups}, 0.5)


def _tuple(m: _Maker) -> Schema:
    parts = [m.scalar() for _ in range(m.rng.randint(2, 4))]
    row = {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts), "maxItems": len(parts)}
    return m.object({"rows": m.array(row), m.names(1)[0]: m.number()}, 1.0)


KINDS: dict[str, Callable[[_Maker], Schema]] = {
    "trivial": _trivial, "function": _function, "easy": _easy, "medium": _medium, "references": _references,
    "union": _union, "resource": _resource, "event": _event, "settings": _settings, "tuple": _tuple,
}  # fmt: skip


def examples(count: int = 200, seed: int = 0) -> Iterator[Example]:
    """Yield so many examples, of all kinds in turn."""
    maker, kinds = _Maker(random.Random(seed)), list(KINDS)
    for i in range(count):
        kind = kinds[i % len(kinds)]
        schema = KINDS[kind](maker)
        names = ", ".join(list(schema["properties"])[:4])
        yield Example(kind, schema, f"Make up one {kind} example as JSON, with {names}.")
