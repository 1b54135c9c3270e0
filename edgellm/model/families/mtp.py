"""Multi-token prediction: the layer behind the last one that some families have, to draft what follows. Pure.

Many checkpoints bring its weights, and transformers leaves them unread, so a split may lack them.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgellm.model.families.config import Config
from edgellm.model.families.parts import Matrix, Norm, Projection, Shape, merged, rms_norm, whole

if TYPE_CHECKING:
    from edgellm.model.families.spec import Layer, Spec

PREFIX = "mtp."  # of its tensors' names, in the head's shard
LAYER_PREFIX = f"{PREFIX}layers.0."  # of those of its layer


@dataclass(frozen=True)
class Mtp:
    """Of a token's hidden state h, behind the model's final norm, and the token that follows it, the head makes

        norm(layer(fc([embedding_norm(embedding(token)), hidden_norm(h)])))

    from which the model's own head gives the token after that one. The same goes in as h to draft one token more.

    `embedding` is a copy of the model's, None where the head is tied to it. `checkpoint_names` are pairs: how names in
    the shard begin, and how those in a checkpoint do.
    """

    embedding_norm: Norm
    hidden_norm: Norm
    fc: Projection
    layer: "Layer"
    norm: Norm
    embedding: Matrix | None
    checkpoint_names: tuple[tuple[str, str], ...] = ()

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each tensor by its name in the head's shard."""
        found = merged(self.embedding_norm, self.hidden_norm, self.fc, self.norm)
        found |= {LAYER_PREFIX + name: shape for name, shape in self.layer.tensors.items()}
        return found | ({self.embedding.name: self.embedding.shape} if self.embedding else {})

    @property
    def matrices(self) -> dict[str, Matrix]:
        """Return what may be packed, by its name in the head's shard."""
        found = {LAYER_PREFIX + name: matrix for name, matrix in self.layer.matrices.items()}
        return found | {matrix.name: matrix for matrix in (self.fc.weight, self.embedding) if matrix}

    @property
    def kept(self) -> frozenset[str]:
        """Return the names of matrices that aren't to be quantized."""
        return frozenset(LAYER_PREFIX + name for name in self.layer.kept)

    def checkpoint_name(self, name: str) -> str:
        """Return what a checkpoint calls a tensor, by its name in the shard."""
        for ours, theirs in self.checkpoint_names:
            if name.startswith(ours):
                return theirs + name[len(ours) :]
        return name


def with_mtp(spec: "Spec", config: Config, layer: "Layer", **names: str) -> "Spec":
    """Return `spec` with a head of one `layer`, unless the config says that there is none, or are several.

    `names` are those of a checkpoint: `fc`, `pre_fc_norm_embedding`, `pre_fc_norm_hidden`, `norm`, and `layers` for how
    the layer's names begin; without them they are those of the shard. Raises UnsupportedError.
    """
    count = config.count("mtp_num_hidden_layers", "num_nextn_predict_layers", "num_mtp_layers", default=1, least=0)
    if count != 1:
        return spec
    hidden, offset = spec.hidden_size, spec.final_norm.offset
    layers = names.pop("layers", LAYER_PREFIX)
    pairs = [(f"{PREFIX}{ours}.", f"{theirs}.") for ours, theirs in names.items()]
    mtp = Mtp(
        rms_norm(f"{PREFIX}pre_fc_norm_embedding", hidden, offset),
        rms_norm(f"{PREFIX}pre_fc_norm_hidden", hidden, offset), whole(f"{PREFIX}fc", hidden, 2 * hidden), layer,
        rms_norm(f"{PREFIX}norm", hidden, offset),
        None if spec.tied else Matrix(f"{PREFIX}embed_tokens.weight", spec.vocab_size, hidden),
        (*pairs, (LAYER_PREFIX, layers)),
    )  # fmt: skip
    return replace(spec, mtp=mtp)
