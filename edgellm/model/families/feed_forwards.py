"""The parts of a layer that work on each token alone: gated and plain MLPs, and experts. Pure."""

from dataclasses import dataclass

from edgellm.model.families.parts import Norm, Projection, Shape, Vector, merged, stored
from edgellm.model.families.pieces import Piece

ACTIVATIONS = ("silu", "gelu_tanh", "relu_squared", "swiglu_clamped")  # in the order of kernels/abi.h
SCORINGS = ("softmax", "sigmoid", "softmax_of_chosen")  # so, too


@dataclass(frozen=True)
class GatedMlp:
    """down(activation(gate(x)) * up(x)). "swiglu_clamped" is gpt-oss's: gate * sigmoid(1.702 gate) * (up + 1), with the
    gate at most `limit` and up within ±limit. `pieces` says what transformers holds as parts of other tensors."""

    gate: Projection
    up: Projection
    down: Projection
    activation: str = "silu"
    limit: float = 0.0
    pieces: tuple[Piece, ...] = ()

    @property
    def intermediate_size(self) -> int:
        return self.up.rows

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matrices that every token is multiplied with."""
        return (self.gate, self.up, self.down)

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return merged(*self.projections)

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that its modules, the activation function among them, produce for one token."""
        return self.gate.rows + 2 * self.up.rows + self.down.rows


@dataclass(frozen=True)
class PlainMlp:
    """down(activation(up(x)))."""

    up: Projection
    down: Projection
    activation: str = "gelu_tanh"
    pieces: tuple[Piece, ...] = ()

    @property
    def intermediate_size(self) -> int:
        return self.up.rows

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matrices that every token is multiplied with."""
        return (self.up, self.down)

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return merged(*self.projections)

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that its modules, the activation function among them, produce for one token."""
        return 2 * self.up.rows + self.down.rows


@dataclass(frozen=True)
class Router:
    """Which `top_k` experts a token goes to, and with which weights.

    Scores are `scoring` of weight(x): "softmax" over all experts, "sigmoid" of each, or "softmax_of_chosen" over those
    that were chosen by what weight(x) gives (gpt-oss). `correction` is added for choosing only. With `groups` > 1 only
    the experts of the `top_groups` best groups may be chosen, a group being as good as its two best experts together,
    or as the best one alone if `group_by_best`. `normalise`: the weights of those chosen are divided by their sum (plus
    1e-20). Last, all are times `scale`, and each expert's times its one of `expert_scales`, where there are any.
    """

    weight: Projection
    experts: int
    top_k: int
    scoring: str = "softmax"
    normalise: bool = False
    scale: float = 1.0
    correction: Vector | None = None
    groups: int = 1
    top_groups: int = 1
    expert_scales: Vector | None = None
    group_by_best: bool = False

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return self.weight.tensors | stored(self.correction, self.expert_scales)


@dataclass(frozen=True)
class Apart:
    """The norms of experts that stand apart from `shared` (Gemma 4), which alone takes what the layer's norm gives.

    Experts take `before` of what comes into the layer's feed-forward, and their router takes an RMSNorm of it, whose
    weight is `router_scale` times `router_factor`. What the shared one gives goes through `after_shared`, what the
    experts give through `after`, before both are added.
    """

    router_scale: Vector
    router_factor: float
    before: Norm
    after_shared: Norm
    after: Norm

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return merged(self.before, self.after_shared, self.after) | stored(self.router_scale)


@dataclass(frozen=True)
class Experts:
    """`experts` of which a router chooses `top_k` for each token: their results, weighted, are added, in ascending
    order of the experts' numbers. `shared` computes every token too, and is added last; with `shared_gate`, a
    projection to one value, its result is multiplied by sigmoid(shared_gate(x)).

    `gate` is None where experts are plain MLPs. `pieces` says what transformers holds as parts of other
    tensors.
    """

    router: Router
    gate: Projection | None
    up: Projection
    down: Projection
    activation: str = "silu"
    limit: float = 0.0
    shared: GatedMlp | PlainMlp | None = None
    shared_gate: Projection | None = None
    apart: Apart | None = None
    pieces: tuple[Piece, ...] = ()

    @property
    def intermediate_size(self) -> int:
        return self.up.rows

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matrices that every token is multiplied with: all but the experts' own."""
        shared = self.shared.projections if self.shared else ()
        return (self.router.weight, *shared, *((self.shared_gate,) if self.shared_gate else ()))

    @property
    def expert_projections(self) -> tuple[Projection, ...]:
        """The matrices of which each token is multiplied with `top_k` experts' ones."""
        return (*((self.gate,) if self.gate else ()), self.up, self.down)

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        found = merged(*self.projections, *self.expert_projections) | self.router.tensors
        return found | (self.apart.tensors if self.apart else {})

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that its modules produce for one token."""
        chosen = 4 * self.router.top_k * (self.intermediate_size + self.down.rows)
        return self.router.experts + chosen + (self.shared.activation_elements_per_token if self.shared else 0)


FeedForward = GatedMlp | PlainMlp | Experts
