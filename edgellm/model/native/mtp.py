"""A model's own head for multi-token prediction, run on the board that holds the last layer, and its drafts.

Drafts change no answer, because the model verifies them. So nothing here has to give the same bits everywhere.
"""

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from edgellm.kernels import library
from edgellm.limits import MAX_CHOICES, MTP_TOKENS
from edgellm.model.native.abi import SectionHandle, new_steps
from edgellm.model.native.norm import normed
from edgellm.model.native.slot import NativeSlot
from edgellm.model.protocols import Array

if TYPE_CHECKING:
    from edgellm.model.families.spec import Layer, Spec
    from edgellm.model.native.load import LoadedMtp

_MOST_WAITING = 2 * MAX_CHOICES  # states that wait until drafts are asked for


class MtpSlot:
    """What the head remembers of one sequence: of each position from `begin` on, with the token that follows it.

    Positions [begin, filled) are in its keys and values; `tokens` are those at [begin, filled]. `states` float32
    [waiting, hidden_size] are the hidden states of the next positions, where `ids` are, which may be drafts. It may
    begin behind the sequence's start, where the model's slot was filled from elsewhere: then drafts know less.
    """

    def __init__(self, layer: "Layer", hidden_size: int, max_seq_len: int, kv_dtype: str):
        self.kv = NativeSlot([layer], max_seq_len, kv_dtype)
        self.begin = 0
        self.tokens = array("I")
        self.states, self.ids = np.empty((0, hidden_size), np.float32), list[int]()
        self._replaced: int | None = None

    @property
    def filled(self) -> int:
        return self.begin + max(0, len(self.tokens) - 1)

    def replaced(self, position: int) -> None:
        """Note that the model's slot has another text from `position` on, which came from elsewhere. This may be called
        in any thread."""
        self._replaced = position if self._replaced is None else min(position, self._replaced)

    def cut(self, position: int) -> None:
        """Forget positions from `position` on, because they are computed again."""
        if position < self.begin:
            self._restart(position)
        kept = max(0, position - self.filled)
        del self.tokens[position - self.begin + 1 :]
        self.states, self.ids = self.states[:kept], self.ids[:kept]

    def add(self, position: int, ids: Sequence[int], states: Array) -> None:
        """Append the hidden states from `position` on, where `ids` are."""
        if self._replaced is not None:
            self.cut(self._replaced)
            self._replaced = None
        self.cut(position)
        if position != self.filled + len(self.ids):
            self._restart(position)
        if not self.ids:  # and the token here may be another one than was thought
            del self.tokens[position - self.begin :]
            self.tokens.append(ids[0])
        self.states, self.ids = np.concatenate([self.states, states]), [*self.ids, *ids]

    def agree(self, ids: "array[int]") -> "array[int]":
        """Forget what isn't of the sequence `ids`. Return the tokens behind the states that wait; none if one of its
        states isn't there, but that of its last token."""
        last = len(ids) - 1
        if self.tokens != ids[self.begin : self.filled + 1]:
            self._restart(self.filled)
        count = min(last - self.filled, len(self.ids))
        if count < last - self.filled or self.ids[:count] != list(ids[self.filled : last]):
            count = 0
        return ids[self.filled + 1 : last + 1] if count > 0 else array("I")

    def took(self, follows: Sequence[int]) -> None:
        """Record that as many of the states that wait are computed, with the tokens behind them."""
        self.tokens.extend(follows)
        self.states, self.ids = self.states[len(follows) :], self.ids[len(follows) :]

    def _restart(self, position: int) -> None:
        self.begin, self.tokens = position, array("I")
        self.states, self.ids = self.states[:0], []


class _Part(NamedTuple):
    """Hidden states of a sequence from `position` on, and the token behind each."""

    slot: MtpSlot
    position: int
    states: Array
    follows: Sequence[int]


class MtpHead:
    """The head of a model with `spec`. Not for two threads at once, and not while its section runs."""

    def __init__(self, spec: "Spec", loaded: "LoadedMtp"):
        assert spec.mtp is not None
        self._layer, self._eps, self._embed_scale = spec.mtp.layer, spec.eps, spec.embed_scale
        self._hidden, self._vocab = spec.hidden_size, spec.vocab_size
        self._loaded = loaded
        self._native = SectionHandle(loaded.spec)
        self._steps = new_steps()

    def new_slot(self, max_seq_len: int, kv_dtype: str) -> MtpSlot:
        """Return memory for one sequence."""
        return MtpSlot(self._layer, self._hidden, max_seq_len, kv_dtype)

    def set_rope(self, which: int, cos: Array, sin: Array) -> None:
        """Take rotary factors, as SectionHandle does; the caller keeps them."""
        self._native.set_rope(which, cos, sin)

    def take_in(self, slot: MtpSlot, follows: Sequence[int]) -> None:
        """Compute as many of the states that wait in `slot`, behind which are the tokens `follows`."""
        for start in range(0, len(follows), MTP_TOKENS):
            some = follows[start : start + MTP_TOKENS]
            self._run([_Part(slot, slot.filled, slot.states[: len(some)], some)], False)
            slot.took(some)

    def drafts(self, asks: Sequence[tuple[MtpSlot, Sequence[int], int]]) -> list[list[int]]:
        """Return for each (slot, the tokens behind the states that wait there, how many drafts) the likeliest tokens to
        follow: fewer where the slot is full, none where no state waits. Each slot comes once."""
        found: list[list[int]] = [[] for _ in asks]
        turn: dict[int, _Part] = {}
        for i, (slot, follows, count) in enumerate(asks):
            self.take_in(slot, follows[:-MAX_CHOICES])
            if count > 0 and (rest := follows[-MAX_CHOICES:]):
                turn[i] = _Part(slot, slot.filled, slot.states[: len(rest)], rest)
                slot.took(rest)
        while turn:
            made = dict(zip(turn, self._run(list(turn.values()), True), strict=True))
            for i, (state, token) in made.items():
                part = turn.pop(i)
                found[i].append(token)
                position = part.position + len(part.follows)
                if len(found[i]) < asks[i][2] and position - part.slot.begin < part.slot.kv.max_seq_len:
                    turn[i] = _Part(part.slot, position, state, [token])
        return found

    def _run(self, parts: Sequence[_Part], wanted: bool) -> list[tuple[Array, int]]:
        """Run the layer. Return for each part what it gives for the last state, behind its norm [1, hidden_size], and
        if `wanted` the likeliest token, else -1."""
        found: list[tuple[Array, int]] = []
        batch: list[_Part] = []
        for part in parts:
            if sum(len(p.follows) for p in (*batch, part)) > MTP_TOKENS:
                found += self._run_batch(batch, wanted)
                batch = []
            batch.append(part)
        return found + self._run_batch(batch, wanted)

    def _run_batch(self, parts: Sequence[_Part], wanted: bool) -> list[tuple[Array, int]]:
        for step, part in zip(self._steps, parts, strict=False):
            slot = part.slot
            step.tokens, step.position, step.logits = len(part.follows), part.position - slot.begin, int(wanted)
            step.slot, step.slot_bytes = slot.kv.address, slot.kv.ram_bytes
            step.context, step.kv_encoding = slot.kv.max_seq_len, slot.kv.encoding
        x = self._inputs([token for part in parts for token in part.follows], [part.states for part in parts])
        out, logits = np.empty_like(x), np.empty((len(parts), self._vocab), np.float32)
        self._native.run(self._steps, len(parts), (0, 1), x, out, logits if wanted else None)
        ends = np.cumsum([len(part.follows) for part in parts]) - 1
        states = normed(out[ends], self._loaded.norm, None, self._eps)
        tokens = logits.argmax(axis=1).tolist() if wanted else [-1] * len(parts)
        return [(states[i : i + 1], token) for i, token in enumerate(tokens)]

    def _inputs(self, ids: Sequence[int], states: Sequence[Array]) -> Array:
        """Return what goes into the layer, float32 [tokens, hidden_size]."""
        loaded = self._loaded
        rows = np.empty((len(ids), self._hidden), np.float32)
        data, encoding, shape = loaded.embedding
        for row, token in zip(rows, ids, strict=True):
            library.dequantize(data, encoding, shape, token, token + 1, row[None])
        rows *= np.float32(self._embed_scale)
        both = np.concatenate([
            normed(rows, loaded.embedding_norm, None, self._eps),
            normed(np.concatenate(states), loaded.hidden_norm, None, self._eps),
        ], axis=1)  # fmt: skip
        x = np.empty_like(rows)
        library.linear(both, *loaded.fc, x, integer=True)
        return x


class Ask(Protocol):
    """A sequence that wants drafts: at most `most` behind `ids`, all of its tokens that are known, the last one just
    chosen. `slot` is the number of its slot."""

    @property
    def slot(self) -> int: ...
    @property
    def ids(self) -> "array[int]": ...
    @property
    def most(self) -> int: ...


class MtpDrafter:
    """Drafts for the sequences in these slots, by number, from what the model has computed of them. As its head, it's
    not for two threads at once, and not while its section runs."""

    name = "mtp"
    takes_hidden = True

    def __init__(self, head: MtpHead, slots: Sequence[MtpSlot]):
        self._head, self._slots = head, slots

    def computed(self, slot: int, position: int, ids: Sequence[int], hidden: Array) -> None:
        """Take in a step of the slot: `hidden` float32 [tokens, hidden_size] is what the model's head takes at
        [position, position + tokens), where `ids` are, drafts included."""
        memory = self._slots[slot]
        memory.add(position, ids, hidden)
        if len(memory.ids) > _MOST_WAITING:  # a prompt's
            self._head.take_in(memory, memory.ids[1:])

    def behind(self, ask: Ask) -> int:
        """Return how many tokens have to be computed before the first draft; at least 1."""
        return max(1, len(self._slots[ask.slot].agree(ask.ids)))

    def catch_up(self, ask: Ask) -> bool:
        """Compute these tokens, but not the last one; return whether any are left: none."""
        memory = self._slots[ask.slot]
        self._head.take_in(memory, memory.agree(ask.ids)[:-1])
        return False

    def drafts(self, asks: Sequence[Ask]) -> list[tuple[int, ...]]:
        """Return for each of `asks`, of different slots, up to `most` tokens that may follow."""
        memories = [self._slots[ask.slot] for ask in asks]
        found = self._head.drafts([
            (memory, memory.agree(ask.ids), ask.most) for memory, ask in zip(memories, asks, strict=True)
        ])  # fmt: skip
        return [tuple(drafts) for drafts in found]
