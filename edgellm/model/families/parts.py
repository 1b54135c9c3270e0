"""What layers consist of: matrices, vectors, and how a module uses them. Pure."""

from dataclasses import dataclass

Shape = tuple[int, ...]  # [out, in] of a matrix, [experts, out, in] of experts', [size] of a vector


@dataclass(frozen=True)
class Matrix:
    """A matrix [rows, columns], stored as [out, in]; of `experts` matrices [experts, rows, columns] if there are
    any."""

    name: str
    rows: int
    columns: int
    experts: int = 0

    @property
    def shape(self) -> Shape:
        return (self.experts, self.rows, self.columns) if self.experts else (self.rows, self.columns)

    @property
    def elements(self) -> int:
        return max(1, self.experts) * self.rows * self.columns


@dataclass(frozen=True)
class Vector:
    """Values that stay in float32: a norm's weight, a bias, a small table. `shape` where the tensor has more than one
    dimension, or none: then `size` counts its elements."""

    name: str
    size: int
    shape: Shape | None = None

    @property
    def stored_shape(self) -> Shape:
        return (self.size,) if self.shape is None else self.shape


@dataclass(frozen=True)
class Projection:
    """Rows [first, first + rows) of `weight`, of each expert's if it has several, and of `bias`: several projections
    may share one stored matrix."""

    weight: Matrix
    first: int
    rows: int
    bias: Vector | None = None

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return {self.weight.name: self.weight.shape} | stored(self.bias)

    @property
    def elements(self) -> int:
        """Weights of one expert's matrix that this projection multiplies with."""
        return self.rows * self.weight.columns


@dataclass(frozen=True)
class Norm:
    """A LayerNorm if it has a bias, else an RMSNorm. `offset` is added to the weight: 1 where the family stores how far
    its weights are from 1."""

    weight: Vector
    bias: Vector | None = None
    offset: float = 0.0

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return stored(self.weight, self.bias)


def whole(name: str, rows: int, columns: int, biased: bool = False) -> Projection:
    """Return a projection of its own: `name`.weight, and `name`.bias if `biased`."""
    return slices(name, (rows,), columns, biased)[0]


def slices(name: str, rows: tuple[int, ...], columns: int, biased: bool = False) -> list[Projection]:
    """Return projections that are consecutive rows of one matrix."""
    weight = Matrix(f"{name}.weight", sum(rows), columns)
    bias = Vector(f"{name}.bias", sum(rows)) if biased else None
    return [Projection(weight, sum(rows[:i]), count, bias) for i, count in enumerate(rows)]


def rms_norm(name: str, size: int, offset: float = 0.0) -> Norm:
    """Return an RMSNorm whose weight is `name`.weight."""
    return Norm(Vector(f"{name}.weight", size), offset=offset)


def layer_norm(name: str, size: int) -> Norm:
    """Return a LayerNorm: `name`.weight and `name`.bias."""
    return Norm(Vector(f"{name}.weight", size), Vector(f"{name}.bias", size))


def stored(*vectors: Vector | None) -> dict[str, Shape]:
    """Return the shape of each stored tensor by name."""
    return {vector.name: vector.stored_shape for vector in vectors if vector}


def merged(*parts: "Projection | Norm | None") -> dict[str, Shape]:
    """Return the tensors of all parts that are there."""
    found: dict[str, Shape] = {}
    for part in parts:
        found |= part.tensors if part else {}
    return found
