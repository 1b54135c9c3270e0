"""Pages: what layers remember of a prompt, in pieces of a fixed number of tokens, and the files that hold them. Pure:
no thread, no disk, no clock.

A page's *key* is a hash of all tokens up to its end, and of what else the bits depend on. It doesn't name layers: a
*record* holds some layers of a page, so a board that gets other layers still finds those that it had. Which kind of
memory a layer has follows from the model, so a record is of one kind, and of whichever layers in its range have it.
"""

import hashlib
import re
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgellm import __version__
from edgellm.agent.slots import Ids

PAGE_TOKENS = 64
KINDS = {"kv": 1, "window": 2, "state": 3}  # as files have them; a kind that isn't here is no page of ours
_MAGIC = b"EDGEPAGE"
_FORMAT = 2  # 1 had no layers, and one kind
_HEADER = struct.Struct("<8sHHIIII32s")  # magic, format, kind, tokens, first layer, layer after the last, parts, key
_PART = struct.Struct("<IQ32s")  # layer, bytes, BLAKE2b of them
_CHECK_BYTES = 32  # BLAKE2b of all this
_NAME = re.compile(r"([0-9a-f]{64})\.(\d{1,5})-(\d{1,5})-(\d{1,5})\.page\Z")
_ANY_NAME = re.compile(r"[0-9a-f]{64}(\.[0-9-]+)?\.page\Z")  # format 1 had only the key


class Record(NamedTuple):
    """The parts of one page for the layers in [first, end) that have memory of this kind."""

    key: bytes
    kind: int
    first: int
    end: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.key.hex()}.{self.kind}-{self.first}-{self.end}.page"


def record_of(name: str) -> Record | None:
    """Return the record in a file of this name; None if that is no name of a record, or one of an unknown kind."""
    found = _NAME.match(name)
    if found is None:
        return None
    record = Record(bytes.fromhex(found[1]), int(found[2]), int(found[3]), int(found[4]))
    return record if record.kind in KINDS.values() and record.first < record.end and record.name == name else None


def is_name(name: str) -> bool:
    """Return whether some version of edgellm may have given this name to a file of pages."""
    return _ANY_NAME.match(name) is not None


@dataclass(frozen=True)
class Origin:
    """What a layer's bits depend on besides the tokens: the model, and how it is computed. `layout` is the section's
    `page_layout`."""

    manifest_sha256: str
    kv_dtype: str
    layout: str

    def root(self, cache: str, long: bool) -> bytes:
        """Return the hash that stands before the first page of the sequences that share the name `cache`; `long` says
        that they were computed with long rotary factors."""
        fields = [
            __version__, self.manifest_sha256, self.kv_dtype, self.layout, sys.byteorder, PAGE_TOKENS, long, cache,
        ]  # fmt: skip
        return hashlib.sha256(repr(fields).encode()).digest()


def next_key(before: bytes, ids: Ids) -> bytes:
    """Return the key of the page with the tokens `ids`, behind the page with the key `before`."""
    return hashlib.sha256(before + np.asarray(ids, "<u4").tobytes()).digest()


# Files


def pack(record: Record, parts: Mapping[int, np.ndarray]) -> bytes:
    """Return the beginning of a record's file; the `parts`, uint8 [bytes] by layer, follow in this order."""
    content = _HEADER.pack(
        _MAGIC, _FORMAT, record.kind, PAGE_TOKENS, record.first, record.end, len(parts), record.key
    ) + b"".join(_PART.pack(layer, part.size, _digest(part)) for layer, part in parts.items())
    return content + hashlib.blake2b(content, digest_size=_CHECK_BYTES).digest()


def head_bytes(parts: int) -> int:
    """Return how long the beginning of a file with so many parts is."""
    return _HEADER.size + parts * _PART.size + _CHECK_BYTES


class Place(NamedTuple):
    """Where a layer's part is in a file."""

    at: int
    size: int
    digest: bytes

    def holds(self, part: np.ndarray) -> bool:
        """Return whether this is the part, unchanged."""
        return part.size == self.size and _digest(part) == self.digest


def unpack(record: Record, content: bytes, file_bytes: int) -> dict[int, Place] | None:
    """Return where the parts of a record are, by layer, in a file that has `file_bytes` and begins with `content`; None
    if it isn't the file of this record, whole, with an unchanged beginning."""
    if len(content) < head_bytes(0):
        return None
    magic, version, kind, tokens, first, end, parts, key = _HEADER.unpack_from(content)
    told = (magic, version, kind, tokens, first, end, key)
    head = head_bytes(parts)
    if told != (_MAGIC, _FORMAT, record.kind, PAGE_TOKENS, record.first, record.end, record.key) or len(content) < head:
        return None
    checked = content[: head - _CHECK_BYTES]
    if hashlib.blake2b(checked, digest_size=_CHECK_BYTES).digest() != content[head - _CHECK_BYTES : head]:
        return None
    places: dict[int, Place] = {}
    at = head
    for layer, size, digest in _PART.iter_unpack(checked[_HEADER.size :]):
        places[layer] = Place(at, size, digest)
        at += size
    return places if at == file_bytes else None


def _digest(part: np.ndarray) -> bytes:
    return hashlib.blake2b(part.data, digest_size=32).digest()
