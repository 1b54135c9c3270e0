"""A model's own head for multi-token prediction, which drafts on the board that holds the last layer.

Drafts change no answer, because the model verifies them. So nothing here has to give the same bits everywhere.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

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

Choose = Callable[[Array, int], int]  # a token for a position, from its logits


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
        self.states, self.ids = self.states[len(follows) :].copy(), self.ids[len(follows) :]

    def _restart(self, position: int) -> None:
        self.begin, self.tokens = position, array("I")
        self.states, self.ids = self.states[:0], []


class Wanted(NamedTuple):
    """Up to so many drafts of what follows in a slot; `follows` are the tokens behind the states that wait there."""

    slot: MtpSlot
    follows: Sequence[int]
    most: int
    choose: Choose


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

    def drafts(self, asks: Sequence[Wanted]) -> list[list[int]]:
        """Return the drafts that are wanted: fewer where a slot is full, none where no state waits. Each slot comes
        once."""
        found: list[list[int]] = [[] for _ in asks]
        turn: dict[int, _Part] = {}
        for i, ask in enumerate(asks):
            slot, follows = ask.slot, ask.follows[-MAX_CHOICES:]
            self.take_in(slot, ask.follows[:-MAX_CHOICES])
            if ask.most > 0 and follows:
                turn[i] = _Part(slot, slot.filled, slot.states[: len(follows)], follows)
                slot.took(follows)
        while turn:
            made = dict(zip(turn, self._run(list(turn.values()), True), strict=True))
            for i, (state, logits) in made.items():
                part = turn.pop(i)
                end = part.position + len(part.follows)
                found[i].append(asks[i].choose(logits, end + 1))
                if len(found[i]) < asks[i].most and end - part.slot.begin < part.slot.kv.max_seq_len:
                    turn[i] = _Part(part.slot, end, state, found[i][-1:])
        return found

    def _run(self, parts: Sequence[_Part], wanted: bool) -> list[tuple[Array, Array]]:
        """Run the layer. Return for each part what it gives for the last state, behind its norm [1, hidden_size], and
        if `wanted` the logits [vocab_size]."""
        found: list[tuple[Array, Array]] = []
        batch: list[_Part] = []
        for part in parts:
            if sum(len(p.follows) for p in (*batch, part)) > MTP_TOKENS:
                found += self._run_batch(batch, wanted)
                batch = []
            batch.append(part)
        return found + self._run_batch(batch, wanted)

    def _run_batch(self, parts: Sequence[_Part], wanted: bool) -> list[tuple[Array, Array]]:
        for step, part in zip(self._steps, parts, strict=False):
            slot = part.slot
            step.tokens, step.position, step.logits = len(part.follows), part.position - slot.begin, int(wanted)
            step.slot, step.slot_bytes = slot.kv.address, slot.kv.ram_bytes
            step.context, step.kv_encoding = slot.kv.max_seq_len, slot.kv.encoding
        x = self._inputs([token for part in parts for token in part.follows], [part.states for part in parts])
        out, logits = np.empty_like(x), np.empty((len(parts), self._vocab if wanted else 0), np.float32)
        self._native.run(self._steps, len(parts), (0, 1), x, out, logits if wanted else None)
        ends = np.cumsum([len(part.follows) for part in parts]) - 1
        states = normed(out[ends], self._loaded.norm, None, self._eps)
        return [(states[i : i + 1], row) for i, row in enumerate(logits)]

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
