"""What a token's id adds to a layer's output: the per-layer embeddings of Gemma 4's small models. Pure."""

from dataclasses import dataclass

from edgellm.model.families.parts import Matrix, Norm, Projection, Shape, merged
from edgellm.model.families.pieces import Slice


@dataclass(frozen=True)
class PerLayer:
    """x += after(projection(activation(gate(x)) * input)), where `input` is what the layer has of the token's id:
    scale * (norm(model_scale * model(embedding)) + table_scale * table[id]), and `embedding` what the id was embedded
    as. transformers has the table, `model` and the norm of all layers in one: `slices` says where this layer's are."""

    table: Matrix  # [vocab, width]
    model: Projection
    norm: Norm
    gate: Projection
    projection: Projection
    after: Norm
    table_scale: float
    model_scale: float
    scale: float
    activation: str
    slices: tuple[Slice, ...]

    @property
    def width(self) -> int:
        return self.gate.rows

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matrices that every token is multiplied with."""
        return (self.model, self.gate, self.projection)

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return merged(*self.projections, self.norm, self.after) | {self.table.name: self.table.shape}

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that its modules produce for one token."""
        return 4 * self.width + 2 * self.projection.rows
