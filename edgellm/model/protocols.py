"""The interfaces of sections, slots and steps: native, generic and fake ones alike.

A section's slots are its own kind: `S` names it, so that no section is given another's.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

Array = np.ndarray[Any, Any]
CHECKPOINT_TOKENS = 256  # prompts are cut at multiples, where slots keep the states of recurrent layers
Progress = Callable[[str, int, int], None]  # shard name, bytes done, bytes in all


@dataclass(frozen=True)
class Memory:
    """What a layer remembers of a sequence, as pages keep it.

    To go on at a position, a slot needs what its pages hold of the last `reach` tokens before it; None: of all. So "kv"
    has a reach of None, "window" that of its window, and "state", of which a page holds what stands at its end, one of
    1.
    """

    kind: Literal["kv", "window", "state"] = "kv"
    reach: int | None = None


@runtime_checkable
class Slot(Protocol):
    """What a section remembers of one sequence of up to `max_seq_len` tokens, reserved at once.

    `filled` tokens are stored. A step may begin at any position from `earliest` to there, also where one has begun
    before, at a `checkpoint` before that, or at 0. A layer with a window or a state forgets: then a step that begins at
    0 begins anew, and so `filled` may be less after a step than before.
    """

    max_seq_len: int
    filled: int
    ram_bytes: int

    @property
    def earliest(self) -> int:
        """The smallest position besides 0 from which a step may begin now; more than `filled` if only 0 will do, and 0
        if any position will."""

    @property
    def checkpoint(self) -> int:
        """A position before `earliest` from which a step may begin, too; 0 if there is none."""

    def export(self, start: int, end: int, layers: Collection[int] | None = None) -> Sequence[Array | None]:
        """Return for each layer a copy of what it keeps of positions [start, end), or of its state at `end`: uint8
        [bytes], which don't depend on where the slot ends. None for a layer that doesn't have it any more, and for
        those that aren't among `layers` (0 is the section's first). `start` and `end` are multiples of 16."""

    def restore(self, start: int, end: int, parts: Sequence[Array | None]) -> None:
        """Store what another slot exported for these positions; None leaves a layer as it is. Raises ModelError if a
        part has another size, leaves a gap or doesn't fit."""


S = TypeVar("S", bound=Slot)
S_co = TypeVar("S_co", bound=Slot, covariant=True)


class Step(Protocol[S_co]):
    """Positions [position, position + len(x)) of the sequence in `slot`, in a pass that ends at `pass_len` tokens; the
    last section gives logits after the last `logits` of them.

    x is int64 [tokens] in the first section, float32 [tokens, row_size] in the others.
    """

    @property
    def x(self) -> Array: ...
    @property
    def position(self) -> int: ...
    @property
    def slot(self) -> S_co: ...
    @property
    def pass_len(self) -> int: ...
    @property
    def logits(self) -> int: ...


@runtime_checkable
class Section(Protocol[S]):
    """Consecutive layers of a decoder; the first section also embeds, the last one also has the head. Not for two
    threads at once."""

    @property
    def path(self) -> str:
        """How it computes: "native" or "generic"."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def row_size(self) -> int:
        """Floats of a token that come from the section before: `hidden_size`, and what else its layers need."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def ram_bytes(self) -> int:
        """Bytes of its weights, mapped ones included."""

    @property
    def batches(self) -> bool:
        """Whether `forward_many` gives the bits that `forward` gives one by one, in less time."""

    @property
    def reuses(self) -> bool:
        """Whether keys and values depend only on the tokens up to them, so that another sequence may use them."""

    @property
    def reuses_any(self) -> bool:
        """Whether no layer forgets: `earliest` is 0 in all slots, however long they are."""

    @property
    def page_layout(self) -> str:
        """A name for the layout of what slots export, and for whatever their bits depend on besides the model: pages of
        another layout can't be restored. "" if slots can't be exported."""

    @property
    def memories(self) -> Sequence[Memory]:
        """What each layer remembers, as slots export it."""

    def new_slot(self, max_seq_len: int, kv_dtype: str = ...) -> S:
        """Return memory for one sequence; kv_dtype is float16, float32 or int8, and each kind has its own default.
        Raises ModelError for more tokens than the model is made for, or a number format that the section lacks."""

    def example(self) -> Array:
        """Return an x of one token, to time a step with."""

    def forward(self, x: Array, position: int, slot: S, pass_len: int, logits: int) -> Array | None:
        """Run one step: `forward_many` of it."""

    def forward_many(self, steps: Sequence[Step[S]]) -> list[Array | None]:
        """Run steps. Return a result for each: what the next section takes; from the last section float32
        [logits, vocab_size], or None where `logits` is 0. Raises ModelError for a step that doesn't fit."""

    def embed(self, x: Array, position: int, slot: S, pass_len: int) -> Array:
        """Run one step on the last section. Return what its head would take, float32 [tokens, hidden_size]: what the
        last layer makes of each token, behind the final norm. Raises ModelError where a model has no such thing."""

    def trace(self, x: Array, position: int, slot: S, pass_len: int) -> Array:
        """Run one step without a result. Return what each layer makes of it, float32 [layers, tokens, hidden_size]."""
