"""The layout of a split: facts for the manifest, and the tensors of every shard."""

from dataclasses import dataclass

from edgellm.checkpoint.tensors import SourceTensor
from edgellm.errors import CheckpointError
from edgellm.model.families.mtp import PREFIX as MTP_PREFIX
from edgellm.model.families.spec import Spec


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a shard by its name there.

    A `packable` one is used as a whole by a linear or embedding module, so it may be stored in another encoding.
    `transposed` tensors are Conv1D weights: [in, out] in the source, [out, in] in the shard. `kept` ones stay in the
    source's encoding whatever others are quantized to.
    """

    name: str
    source: SourceTensor
    packable: bool
    transposed: bool = False
    kept: bool = False


@dataclass(frozen=True)
class ShardContent:
    """A shard: `kind` is "embedding", "layer" or "head"; `layer` is the layer's number, else None."""

    kind: str
    layer: int | None
    tensors: tuple[StoredTensor, ...]

    @property
    def file_name(self) -> str:
        return shard_file_name(self.kind, self.layer)


@dataclass(frozen=True)
class Layout:
    """A model to be split, its shards in order; `spec` is how native sections compute it, None if they don't. The other
    fields are the manifest's."""

    architecture: str
    model_type: str
    hidden_size: int
    vocab_size: int
    max_seq_len: int
    kv_elements_per_token: tuple[int, ...]
    activation_elements_per_token: int
    rope_switch_len: int | None
    shards: tuple[ShardContent, ...]
    spec: Spec | None

    @property
    def num_layers(self) -> int:
        return len(self.shards) - 2


def shard_file_name(kind: str, layer: int | None) -> str:
    """Return the name of a shard's file; `kind` is "embedding", "layer" or "head"."""
    return f"{kind}.safetensors" if layer is None else f"layer-{layer:04d}.safetensors"


def mtp_kind(name: str, kind: str) -> str:
    """Return of which kind a tensor is in a shard of `kind`: the layer that drafts is in the head's, and quantized as
    others are."""
    if not name.startswith(MTP_PREFIX):
        return kind
    return "embedding" if name == f"{MTP_PREFIX}embed_tokens.weight" else "layer"


def layout_of(spec: Spec, shards: tuple[ShardContent, ...]) -> Layout:
    """Return the layout of a model that runs natively, with these shards."""
    return Layout(
        architecture=spec.architecture,
        model_type=spec.model_type,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        max_seq_len=spec.max_seq_len,
        kv_elements_per_token=spec.kv_elements_per_token,
        activation_elements_per_token=spec.activation_elements_per_token,
        rope_switch_len=spec.rope_switch_len,
        shards=shards,
        spec=spec,
    )


def check_shape(tensor: SourceTensor, shape: tuple[int, ...], name: str) -> None:
    """Raise CheckpointError for a tensor of another shape than the config says."""
    if tensor.shape != shape:
        raise CheckpointError(
            f"{tensor.origin} has shape {list(tensor.shape)}, the config says {list(shape)} for {name}. "
            "The config and the weights don't belong together."
        )


def unexpected(origin: str, architecture: str, there: int, known: int) -> CheckpointError:
    """Return the error for a tensor that the model doesn't have."""
    return CheckpointError(
        f"{origin}: {architecture} has no such tensor (the checkpoint has {there}, the model {known}). The config "
        "and the weights don't belong together."
    )
