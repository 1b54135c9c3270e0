"""Stored tensors that transformers holds as parts of others: experts' gate and up are one tensor there. Pure.

Shards have each projection by itself, because files do, and in encodings of their own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edgellm.model.families.parts import Shape


@dataclass(frozen=True)
class Piece:
    """The stored tensor `name` is rows `first`, `first` + `step`, … of transformers' `tensor`, which has `rows` rows.

    Rows are the last dimension but one of `tensor`; the last one where it is `transposed`, or a bias (`is_bias`), which
    has no columns.
    """

    name: str
    tensor: str
    first: int
    step: int
    rows: int
    transposed: bool = False
    is_bias: bool = False

    def whole_shape(self, shape: Shape) -> Shape:
        """Return the shape of transformers' tensor, from the stored one's."""
        if self.is_bias:
            return (*shape[:-1], self.rows)
        *others, _, columns = shape
        return (*others, columns, self.rows) if self.transposed else (*others, self.rows, columns)

    def cut(self, whole: np.ndarray, count: int) -> np.ndarray:
        """Return the stored tensor of `count` rows out of transformers'."""
        rows = whole if self.is_bias or not self.transposed else whole.swapaxes(-1, -2)
        chosen = slice(self.first, self.first + self.step * (count - 1) + 1, self.step)
        return rows[..., chosen] if self.is_bias else rows[..., chosen, :]

    def put(self, stored: np.ndarray, whole: np.ndarray) -> None:
        """Write a stored tensor to its place in transformers'."""
        count = stored.shape[-1 if self.is_bias else -2]
        self.cut(whole, count)[...] = stored


@dataclass(frozen=True)
class Tiled(Piece):
    """A stored tensor of transformers' shape, whose `rows` value heads of `step` values, behind `first` others, are in
    another order: of R value heads of each of K key heads, transformers has those of a key head one after the other,
    and the stored tensor the first ones of all `key_heads` before the second ones. They are columns where it is
    `transposed`."""

    key_heads: int = 1

    def whole_shape(self, shape: Shape) -> Shape:
        return shape

    def cut(self, whole: np.ndarray, count: int) -> np.ndarray:
        return self._reordered(whole, (self.key_heads, self.rows // self.key_heads))

    def put(self, stored: np.ndarray, whole: np.ndarray) -> None:
        whole[...] = self._reordered(stored, (self.rows // self.key_heads, self.key_heads))

    def _reordered(self, values: np.ndarray, heads: tuple[int, int]) -> np.ndarray:
        rows = values.swapaxes(0, -1) if self.transposed else values
        found = rows.copy()
        of_heads = rows[self.first :].reshape(*heads, self.step, *rows.shape[1:])
        found[self.first :] = of_heads.swapaxes(0, 1).reshape(rows[self.first :].shape)
        return found.swapaxes(0, -1) if self.transposed else found


@dataclass(frozen=True)
class Slice:
    """The stored tensor `name` of a layer is what it needs of transformers' `tensor`, which all layers share: as much
    as it has, from `first` on along `axis`."""

    name: str
    tensor: str
    shape: Shape  # of transformers' tensor
    axis: int = 0
    first: int = 0


@dataclass(frozen=True)
class HeadRows(Piece):
    """A stored tensor [heads, count, columns] whose head h is the `count` rows from `first` on of those that
    transformers' tensor has for it: `rows` / `heads`, one head after the other. `transposed`: [heads, columns, count].
    """

    # `cut` takes the rows of some heads, too.

    heads: int = 1
    count: int = 1

    def whole_shape(self, shape: Shape) -> Shape:
        return (self.rows, shape[-2 if self.transposed else -1])

    def cut(self, whole: np.ndarray, count: int) -> np.ndarray:
        of_heads = whole.reshape(-1, self.rows // self.heads, whole.shape[-1])[:, self.first : self.first + self.count]
        return of_heads.swapaxes(1, 2) if self.transposed else of_heads

    def put(self, stored: np.ndarray, whole: np.ndarray) -> None:
        self.cut(whole, stored.shape[-2])[...] = stored


def assemble(pieces: Iterable[Piece], stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return transformers' tensors, in float32, by name, of those pieces that are in `stored`."""
    found: dict[str, np.ndarray] = {}
    for piece in pieces:
        if piece.name in stored:
            part = stored[piece.name]
            if piece.tensor not in found:
                found[piece.tensor] = np.empty(piece.whole_shape(part.shape), np.float32)
            piece.put(part, found[piece.tensor])
    return found
