"""A split folder of a family whose structure transformers' model doesn't show: made from the Spec and a state dict."""

import json
from pathlib import Path

from make_split import BLOCK, _sha256, pack
from safetensors.torch import save_file

from edgellm.model.families.find import find_spec
from edgellm.model.generic.shardfile import FORMAT
from edgellm.shards.manifest import Manifest, ModelFile, Shard
from edgellm.shards.mapped import PACKED


def split_by_spec(model, folder: Path, encoding: str = "f32", layers_path: str = "model.layers") -> Manifest:
    """Write shards, config.json and manifest.json of `model`; its matrices in `encoding` where rows can be packed."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    config = folder / "config.json"
    spec, reason = find_spec(json.loads(config.read_text()))
    assert spec is not None, reason
    state = model.state_dict()
    files = [("embedding", None), *(("layer", i) for i in range(spec.num_layers)), ("head", None)]
    shards = []
    for kind, layer in files:
        tensors, encodings = {}, {}
        matrices = spec.matrices(kind, layer)
        for name, shape in spec.shard_tensors(kind, layer).items():
            full = name if layer is None else f"{layers_path}.{layer}.{name}"
            tensor = state[full].contiguous().clone()
            assert tuple(tensor.shape) == shape, name
            if name in matrices and encoding in PACKED and shape[-1] % BLOCK == 0:
                encodings[name] = [encoding, list(shape)]
                tensor = pack(tensor, encoding)
            tensors[name] = tensor
        file = f"{kind}.safetensors" if layer is None else f"layer-{layer:04}.safetensors"
        save_file(tensors, folder / file, {"format": FORMAT, "encodings": json.dumps(encodings)})
        size = (folder / file).stat().st_size
        shards.append(Shard(file, kind, layer, size, size, _sha256(folder / file)))
    manifest = Manifest(
        model="test", architecture=spec.architecture, model_type=spec.model_type, quantization=encoding,
        num_layers=spec.num_layers, hidden_size=spec.hidden_size, vocab_size=spec.vocab_size,
        max_seq_len=spec.max_seq_len, eos_token_ids=(), kv_elements_per_token=spec.kv_elements_per_token,
        activation_elements_per_token=spec.activation_elements_per_token, rope_switch_len=spec.rope_switch_len,
        shards=tuple(shards), files=(ModelFile(config.name, config.stat().st_size, _sha256(config)),),
    )  # fmt: skip
    manifest.write(folder)
    return manifest
