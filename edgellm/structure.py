"""What an answer must match: JSON, a JSON schema, a regular expression or a grammar; and what may come in its place."""

import reprlib
from dataclasses import dataclass
from typing import Any

from edgellm.errors import UsageError

# How the hidden states of all tokens become one embedding: their mean, that of the last or of the first one, or their
# mean with the weights 1, 2, 3, …
POOLS = ("mean", "last", "cls", "weighted_mean")
OTHER_POOL = "other"  # some other way
KINDS = ("json", "json_schema", "regex", "lark")
MAX_SOURCE_BYTES = 48 << 10  # an Open's options hold it


@dataclass(frozen=True)
class Constraint:
    """`source` is a JSON schema as text, a regular expression (Rust's regex syntax), or a grammar in llguidance's Lark;
    for kind "json", any JSON object, it is empty. Raises UsageError for another kind, or too long a source."""

    kind: str
    source: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"constraint: kind is {reprlib.repr(self.kind)}, expected one of {', '.join(KINDS)}")
        if not isinstance(self.source, str) or (self.kind == "json") != (not self.source):
            expected = "none" if self.kind == "json" else "a text"
            raise UsageError(f"constraint: {self.kind} has the source {reprlib.repr(self.source)}, expected {expected}")
        size = len(self.source.encode("utf-8", "surrogatepass"))
        if size > MAX_SOURCE_BYTES:
            raise UsageError(f"constraint: {self.kind} of {size} bytes, at most {MAX_SOURCE_BYTES}. Simplify it.")

    def to_wire(self) -> dict[str, str]:
        """Return the JSON object that Open carries."""
        return {"kind": self.kind, "source": self.source}

    @classmethod
    def from_wire(cls, content: Any) -> "Constraint":
        """Return the constraint of an Open. Raises UsageError for anything else."""
        if not isinstance(content, dict) or set(content) != {"kind", "source"}:
            raise UsageError(f"constraint is {reprlib.repr(content)}, expected an object with kind and source")
        return cls(content["kind"], content["source"])
