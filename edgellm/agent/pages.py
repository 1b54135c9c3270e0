"""Pages: what a slot keeps of a prompt, in pieces of a fixed number of tokens. A page's name is a hash of all tokens up
to its end. Pure: no thread, no disk, no clock.

A page's *kind* says what is in it. There is one so far, the keys and values of each of its tokens. A recurrent layer's
state at a page's end, or the last tokens of a sliding window, would be kinds of their own: they too depend on nothing
but the tokens before them.
"""

import hashlib
import struct
import sys
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from edgellm import __version__
from edgellm.agent.slots import Ids

PAGE_TOKENS = 64
KEYS_VALUES = 1  # the kind of page that holds the keys and values of its tokens
_MAGIC = b"EDGEPAGE"
_FORMAT = 1
_HEADER = struct.Struct("<8sHHIQ32s32s")  # magic, format, kind, tokens, bytes, key, BLAKE2b of the bytes
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True)
class Origin:
    """What keys and values depend on besides the tokens: the section that made them, and how. `layout` is the
    section's `page_layout`."""

    manifest_sha256: str
    start: int
    end: int
    kv_dtype: str
    layout: str

    def root(self, cache: str, long: bool) -> bytes:
        """Return the hash that stands before the first page of the sequences that share the name `cache`; `long` says
        that they were computed with long rotary factors."""
        fields = [
            __version__, self.manifest_sha256, self.start, self.end, self.kv_dtype, self.layout, sys.byteorder,
            KEYS_VALUES, PAGE_TOKENS, long, cache,
        ]  # fmt: skip
        return hashlib.sha256(repr(fields).encode()).digest()


def next_key(before: bytes, ids: Ids) -> bytes:
    """Return the key of the page with the tokens `ids`, behind the page with the key `before`."""
    return hashlib.sha256(before + np.asarray(ids, "<u4").tobytes()).digest()


def pack(key: bytes, payload: np.ndarray) -> bytes:
    """Return the header of a page's file; `payload`, uint8 [bytes], follows it."""
    check = hashlib.blake2b(payload.data, digest_size=32).digest()
    return _HEADER.pack(_MAGIC, _FORMAT, KEYS_VALUES, PAGE_TOKENS, payload.size, key, check)


def unpack(key: bytes, content: np.ndarray) -> np.ndarray | None:
    """Return what is in a page's file, uint8 [bytes], without a copy; None if it isn't the page of this key, whole and
    unchanged."""
    payload = content[HEADER_BYTES:]
    return payload if content[:HEADER_BYTES].tobytes() == pack(key, payload) else None


class Index:
    """Which pages there are, their bytes, and which were used last. Those that were used least recently go first, as
    soon as all together are more than `budget_bytes`."""

    def __init__(self, budget_bytes: int):
        self.budget_bytes, self.bytes = budget_bytes, 0
        self._pages: OrderedDict[bytes, int] = OrderedDict()  # the one that was used last at the end

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, key: bytes) -> bool:
        return key in self._pages

    def size_of(self, key: bytes) -> int:
        """Return the bytes of a page; 0 if there is none."""
        return self._pages.get(key, 0)

    def add(self, key: bytes, size: int) -> list[bytes]:
        """Add a page as the one that was used last; return the pages that have to go for it."""
        self.remove(key)
        self._pages[key] = size
        self.bytes += size
        gone: list[bytes] = []
        while self.bytes > self.budget_bytes:
            oldest = next(iter(self._pages))
            self.remove(oldest)
            gone.append(oldest)
        return gone

    def remove(self, key: bytes) -> None:
        """Forget a page, if it is there."""
        self.bytes -= self._pages.pop(key, 0)

    def use(self, keys: list[bytes]) -> None:
        """Record that the pages of a sequence are used: its first one last, because the others are of no use without
        those before them."""
        for key in reversed(keys):
            if key in self._pages:
                self._pages.move_to_end(key)

    def find(self, before: bytes, ids: Ids, pages: int) -> list[bytes]:
        """Return the keys of the pages that `ids` begin with, at most `pages`, up to the first that isn't there;
        `before` is the root."""
        found: list[bytes] = []
        for i in range(pages):
            before = next_key(before, ids[i * PAGE_TOKENS : (i + 1) * PAGE_TOKENS])
            if before not in self._pages:
                break
            found.append(before)
        return found


def is_cheaper(size: int, tokens: int, byte_s: float, token_s: float | None) -> bool:
    """Return whether reading `size` bytes takes less than computing `tokens`, which take `token_s` each here; None: not
    known, so that reading is tried."""
    return token_s is None or size * byte_s < tokens * token_s
