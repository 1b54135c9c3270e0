"""The layout of a source whose model only transformers knows: its structure is found by tracing an empty model."""

from edgellm.checkpoint.layout import Layout, ShardContent, StoredTensor, check_shape, unexpected
from edgellm.checkpoint.sources import Source
from edgellm.errors import CheckpointError
from edgellm.model.families.find import find_spec


def traced_layout(source: Source, rehearsed: bool = True) -> Layout:
    """Return a source's layout; reads headers only. With `rehearsed`, a tiny model of the same config has run in
    sections first.

    Raises CheckpointError for a tensor that is missing, one too many, or of another shape than the model's, ModelError
    for a model that can't be split.
    """
    from edgellm.model.generic.build import build_empty
    from edgellm.model.generic.structure import Key, trace

    structure = trace(source.config)
    model = build_empty(source.config, real_buffers=False)
    tensors = source.tensors(model)
    if structure.tied and structure.tied_head and structure.tied_head not in tensors and structure.tied in tensors:
        tensors = {**tensors, structure.tied_head: tensors[structure.tied]}
    known = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for name, tensor in tensors.items():
        if name not in known:
            raise unexpected(tensor.origin, structure.architecture, len(tensors), len(known))

    def stored(key: Key) -> StoredTensor:
        outer = isinstance(key, str)
        name = key if isinstance(key, str) else f"{structure.layers_path}.{key[0]}.{key[1]}"
        tensor, shape = tensors.get(name), tuple(structure.shapes[key])
        if tensor is None:
            raise CheckpointError(
                f"{source.where}: tensor {name} is missing; {structure.architecture} needs it with shape "
                f"{list(shape)} ({sum(n in tensors for n in known)} of {len(known)} are there)"
            )
        check_shape(tensor, shape, name)
        own_name = name if outer else str(key[1])
        return StoredTensor(own_name, tensor, key in structure.packable, key in structure.transposed)

    shards = [ShardContent("embedding", None, tuple(map(stored, structure.embedding_names)))]
    for i, names in enumerate(structure.layer_names):
        shards.append(ShardContent("layer", i, tuple(stored((i, name)) for name in names)))
    shards.append(ShardContent("head", None, tuple(map(stored, structure.head_names))))
    if rehearsed:
        from edgellm.checkpoint.rehearsal import rehearse

        if not rehearse(source.config, structure):
            source.notes += (
                f"{source.where}: no small model of this config runs in transformers, so its sections could not be "
                f"tried before splitting. Run 'edgellm verify' once the boards hold it.",
            )
    return Layout(
        architecture=structure.architecture,
        model_type=structure.model_type,
        hidden_size=structure.hidden_size,
        vocab_size=structure.vocab_size,
        max_seq_len=structure.max_seq_len,
        kv_elements_per_token=tuple(structure.kv_elements_per_token),
        activation_elements_per_token=structure.activation_elements_per_token,
        rope_switch_len=structure.rope_switch_len,
        shards=tuple(shards),
        spec=find_spec(source.config.to_dict())[0],
    )
