"""Messages of one sequence: its slot, its hidden states and its end (docs/wire.md)."""

import struct
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edgellm.errors import RemoteProtocolError
from edgellm.limits import MAX_CHECKPOINTS, MAX_CHOICES, MAX_FRAME_BYTES
from edgellm.wire.body import KB, MB, check_size, cut, json_of, object_of, text_of, unpack
from edgellm.wire.printable import printable

# Why a sequence failed, as numbered in FAILED.
FAILURES = ("error", "busy", "epoch", "draining", "link", "unknown")

_SEQUENCE = struct.Struct(">IQ")  # of the messages that say no more
_OPEN = struct.Struct(">IQII")


@dataclass(frozen=True)
class Open:
    """Reserve a slot for a sequence: first on the first board, which chooses the slot; then the same one on the others.

    `ids` are the prompt's token ids. `options`: `plan` (its digest), `sampling`, `max_tokens`, `eos` (token ids that
    end the answer), `began` (the position where the answer began, if `ids` hold some of it already), `logits` (true:
    the last board also sends its logits), `logprobs` (of so many likeliest tokens), `constraint` (what the answer must
    match), `pool` (an embedding in place of an answer), `progress` (true: the last board tells how far the prompt is),
    `cache` (whose prefixes may be reused), `keep` (false: nothing is kept on disk), `reuse` (at most so many tokens of
    the prompt need not be computed where the slot holds them), `wait_s` (for a slot, on the first board), `slot` (which
    one, on the others).
    """

    TYPE: ClassVar[int] = 10
    LIMIT: ClassVar[int] = 8 * MB
    OPTIONS_LIMIT: ClassVar[int] = 64 * KB
    epoch: int
    seq_id: int
    options: dict[str, Any]
    ids: tuple[int, ...]

    def encode(self) -> bytes:
        options = json_of(self.options)
        head = _OPEN.pack(self.epoch, self.seq_id, len(options), len(self.ids))
        return head + options + struct.pack(f"<{len(self.ids)}I", *self.ids)

    @classmethod
    def decode(cls, body: bytes) -> "Open":
        epoch, seq_id, options_bytes, count = unpack("open", _OPEN, body)
        check_size("open", body, _OPEN.size + options_bytes + 4 * count)
        if options_bytes > cls.OPTIONS_LIMIT:
            raise RemoteProtocolError(f"open: {options_bytes} bytes of options, at most {cls.OPTIONS_LIMIT}")
        at = _OPEN.size + options_bytes
        return cls(
            epoch, seq_id, object_of("open", body[_OPEN.size : at]), struct.unpack_from(f"<{count}I", body, at)
        )


_OPENED = struct.Struct(">IQIBI")


@dataclass(frozen=True)
class Opened:
    """Slot number `slot` is reserved. It holds the prompt's first `reused` tokens already: computing may start there
    or earlier; if there are `checkpoints`, only at one of them or at 0. `batches`: a step here gives the same bits no
    matter what is computed with it, so drafts may be verified."""

    TYPE: ClassVar[int] = 11
    LIMIT: ClassVar[int] = _OPENED.size + 4 * MAX_CHECKPOINTS
    epoch: int
    seq_id: int
    reused: int = 0
    batches: bool = False
    slot: int = 0
    checkpoints: tuple[int, ...] = ()

    def encode(self) -> bytes:
        head = _OPENED.pack(self.epoch, self.seq_id, self.reused, int(self.batches), self.slot)
        return head + struct.pack(f"<{len(self.checkpoints)}I", *self.checkpoints)

    @classmethod
    def decode(cls, body: bytes) -> "Opened":
        epoch, seq_id, reused, batches, slot = unpack("opened", _OPENED, body)
        size = len(body) - _OPENED.size
        if size % 4 or size > 4 * MAX_CHECKPOINTS:
            raise RemoteProtocolError(f"opened: {size} bytes of checkpoints, at most {MAX_CHECKPOINTS} of 4 each")
        if batches > 1:
            raise RemoteProtocolError(f"opened: batches {batches}, expected 0 or 1")
        checkpoints = struct.unpack_from(f"<{size // 4}I", body, _OPENED.size)
        return cls(epoch, seq_id, reused, bool(batches), slot, checkpoints)


_QUEUED = struct.Struct(">IQI")


@dataclass(frozen=True)
class Queued:
    """No slot is free. The sequence stands in line at the first board; `position` 1 is next."""

    TYPE: ClassVar[int] = 27
    LIMIT: ClassVar[int] = _QUEUED.size
    epoch: int
    seq_id: int
    position: int

    def encode(self) -> bytes:
        return _QUEUED.pack(self.epoch, self.seq_id, self.position)

    @classmethod
    def decode(cls, body: bytes) -> "Queued":
        check_size("queued", body, _QUEUED.size)
        return cls(*_QUEUED.unpack(body))


_START = struct.Struct(">IQIB")


@dataclass(frozen=True)
class Start:
    """Every board has the sequence's slot: the first board begins with its prompt behind the first `reuse` tokens, and
    may draft if `speculate`."""

    TYPE: ClassVar[int] = 26
    LIMIT: ClassVar[int] = _START.size
    epoch: int
    seq_id: int
    reuse: int = 0
    speculate: bool = False

    def encode(self) -> bytes:
        return _START.pack(self.epoch, self.seq_id, self.reuse, int(self.speculate))

    @classmethod
    def decode(cls, body: bytes) -> "Start":
        check_size("start", body, _START.size)
        epoch, seq_id, reuse, speculate = _START.unpack(body)
        if speculate > 1:
            raise RemoteProtocolError(f"start: speculate {speculate}, expected 0 or 1")
        return cls(epoch, seq_id, reuse, bool(speculate))


@dataclass(frozen=True)
class Close:
    """The manager is done with this sequence: it ended, was cancelled, or failed elsewhere."""

    TYPE: ClassVar[int] = 14
    LIMIT: ClassVar[int] = _SEQUENCE.size
    epoch: int
    seq_id: int

    def encode(self) -> bytes:
        return _SEQUENCE.pack(self.epoch, self.seq_id)

    @classmethod
    def decode(cls, body: bytes) -> "Close":
        check_size("close", body, _SEQUENCE.size)
        return cls(*_SEQUENCE.unpack(body))


_HIDDEN = struct.Struct(">IQIIIBBBx")


@dataclass(frozen=True)
class Hidden:
    """One step's activations for the tokens `ids` at positions [position, position + len(ids)), from a board to the
    next.

    `pass_len` is the sequence's length at the end of the pass that this chunk belongs to. After each of the chunk's
    last `logits` tokens the last board is to choose one; all `ids` behind the first of these are drafts, which count
    as long as they are what is chosen. The first board's next step has room for up to `drafts` that the last board may
    send with the tokens that it chooses.
    """

    TYPE: ClassVar[int] = 12
    OVERHEAD: ClassVar[int] = _HIDDEN.size  # bytes beside ids and tensor, without the frame's prefix
    LIMIT: ClassVar[int] = MAX_FRAME_BYTES
    epoch: int
    seq_id: int
    position: int
    pass_len: int
    logits: int
    ids: tuple[int, ...]
    data: bytes = field(repr=False)  # [len(ids), hidden_size] in this encoding
    encoding: int = 0  # float32
    drafts: int = 0

    def encode(self) -> bytes:
        count = len(self.ids)
        head = _HIDDEN.pack(
            self.epoch, self.seq_id, self.position, count, self.pass_len, self.logits, self.encoding, self.drafts
        )
        return b"".join((head, struct.pack(f"<{count}I", *self.ids), self.data))

    @classmethod
    def decode(cls, body: bytes) -> "Hidden":
        epoch, seq_id, position, count, pass_len, logits, encoding, drafts = unpack("hidden", _HIDDEN, body)
        if encoding:
            raise RemoteProtocolError(f"hidden: encoding {encoding}, this edgellm knows 0 (float32)")
        size = len(body) - _HIDDEN.size - 4 * count
        if count < 1 or size < 1 or size % (4 * count):
            raise RemoteProtocolError(f"hidden: {len(body) - _HIDDEN.size} bytes of ids and tensor for {count} tokens")
        if logits > min(count, MAX_CHOICES):
            raise RemoteProtocolError(f"hidden: {logits} choices in a step of {count}, at most {MAX_CHOICES}")
        if drafts >= MAX_CHOICES:
            raise RemoteProtocolError(f"hidden: room for {drafts} drafts, at most {MAX_CHOICES - 1}")
        if position + count > pass_len:
            raise RemoteProtocolError(f"hidden: positions up to {position + count} in a pass of length {pass_len}")
        ids = struct.unpack_from(f"<{count}I", body, _HIDDEN.size)
        data = body[_HIDDEN.size + 4 * count :]
        return cls(epoch, seq_id, position, pass_len, logits, ids, data, drafts=drafts)


@dataclass(frozen=True)
class Closed:
    """Answer to close: the slot is free. `stats`: what this board did for the sequence (docs/wire.md)."""

    TYPE: ClassVar[int] = 15
    LIMIT: ClassVar[int] = 64 * KB
    epoch: int
    seq_id: int
    stats: dict[str, Any]

    def encode(self) -> bytes:
        return _SEQUENCE.pack(self.epoch, self.seq_id) + json_of(self.stats)

    @classmethod
    def decode(cls, body: bytes) -> "Closed":
        epoch, seq_id = unpack("closed", _SEQUENCE, body)
        return cls(epoch, seq_id, object_of("closed", body[_SEQUENCE.size :]))


_FAILED = struct.Struct(">IQBB")


@dataclass(frozen=True)
class Failed:
    """This sequence can't continue on this board. `code` indexes FAILURES; for a broken link, `board` is the board that
    can't be reached."""

    TYPE: ClassVar[int] = 16
    LIMIT: ClassVar[int] = 4 * KB
    epoch: int
    seq_id: int
    code: int
    reason: str
    board: str = ""

    def encode(self) -> bytes:
        board = cut(self.board, 255)
        head = _FAILED.pack(self.epoch, self.seq_id, self.code, len(board)) + board
        return head + cut(self.reason, self.LIMIT - len(head))

    @classmethod
    def decode(cls, body: bytes) -> "Failed":
        epoch, seq_id, code, board_bytes = unpack("failed", _FAILED, body)
        if code >= len(FAILURES):
            raise RemoteProtocolError(f"failed: code {code}, the highest is {len(FAILURES) - 1}")
        at = _FAILED.size + board_bytes
        if at > len(body):
            raise RemoteProtocolError(f"failed: {len(body)} bytes, expected at least {at}")
        board = printable(text_of("failed", body[_FAILED.size : at]))
        return cls(epoch, seq_id, code, printable(text_of("failed", body[at:])), board)
