"""A manifest of a split that wasn't made: what a model's shards would take, from its config.json or from file headers.

It is for planning: sizes are those that `split` would write, the SHA-256s are zeros.
"""

import json
from pathlib import Path
from typing import Any

from edgellm.checkpoint.layer_facts import layer_facts, mtp_facts
from edgellm.checkpoint.layout import Layout, layout_of, mtp_kind, shard_file_name
from edgellm.checkpoint.shard import ShardPlan, make_entry, make_plan
from edgellm.checkpoint.sources import Progress, open_source
from edgellm.checkpoint.split import plan_split
from edgellm.checkpoint.tensors import Rows, SourceTensor
from edgellm.errors import CheckpointError
from edgellm.model.families.find import find_spec
from edgellm.shards.manifest import Manifest, ModelFile, Shard

_NO_SHA256 = "0" * 64
_MAX_CONFIG_BYTES = 4 << 20
_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def imagine(source: str, quantize: str = "none", progress: Progress | None = None) -> Manifest:
    """Return the manifest that a split of `source` would have, as far as plans need it.

    `source` is a config.json, a folder with one and no weights, or whatever `open_source` takes: then headers are read,
    and no weights. Raises CheckpointError or ModelError in one line.
    """
    path = Path(source).expanduser()
    if path.suffix == ".json" and path.is_file():
        return _of_config(path, path.resolve().parent.name, quantize)
    if (path / "config.json").is_file() and not any(path.glob("*.safetensors")):
        return _of_config(path / "config.json", path.resolve().name, quantize)
    opened = open_source(source, progress)
    layout, plans = plan_split(opened, quantize)
    return _manifest(opened.name, quantize, layout, plans)


def _of_config(path: Path, name: str, quantize: str) -> Manifest:
    try:
        raw = path.read_bytes()
        if len(raw) > _MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path}: {len(raw)} bytes, a config has at most {_MAX_CONFIG_BYTES}")
        config = json.loads(raw)
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror or e}") from None
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} is not JSON: {e}") from None
    spec, reason = find_spec(config)
    if spec is None:
        raise CheckpointError(
            f"{path}: {reason}. Without weights only models that run natively can be planned; give a folder or a file "
            "that has them"
        )
    layout = layout_of(spec, ())
    encoding = _encoding(config)
    plans = []
    for kind, layer in [("embedding", None), *(("layer", i) for i in range(spec.num_layers)), ("head", None)]:
        matrices, kept = spec.matrices(kind, layer), spec.kept(kind, layer)
        entries = [
            make_entry(tensor, SourceTensor(shape, encoding, f"{path}: {tensor}", _nothing), False, tensor in matrices,
                       mtp_kind(tensor, kind), "none" if tensor in kept else quantize)
            for tensor, shape in spec.shard_tensors(kind, layer).items()
        ]  # fmt: skip
        plans.append(make_plan(shard_file_name(kind, layer), kind, layer, entries))
    return _manifest(name, quantize, layout, plans)


def _encoding(config: dict[str, Any]) -> str:
    """Return the encoding of a checkpoint's weights: what the config says, else bf16, as most are."""
    text = config.get("text_config")
    for content in (config, text if isinstance(text, dict) else {}):
        for name in ("dtype", "torch_dtype"):
            said = content.get(name)
            if isinstance(said, str) and said in _DTYPES:
                return _DTYPES[said]
    return "bf16"


def _nothing(transposed: bool) -> Rows:
    raise AssertionError("an imagined tensor has no values")


def _manifest(name: str, quantize: str, layout: Layout, plans: list[ShardPlan]) -> Manifest:
    return Manifest(
        model=name,
        architecture=layout.architecture,
        model_type=layout.model_type,
        quantization=quantize,
        num_layers=len(plans) - 2,
        hidden_size=layout.hidden_size,
        vocab_size=layout.vocab_size,
        max_seq_len=layout.max_seq_len,
        eos_token_ids=(),
        kv_elements_per_token=layout.kv_elements_per_token,
        activation_elements_per_token=layout.activation_elements_per_token,
        rope_switch_len=layout.rope_switch_len,
        shards=tuple(Shard(p.name, p.kind, p.layer, p.bytes, p.ram_bytes, _NO_SHA256) for p in plans),
        files=(ModelFile("config.json", 0, _NO_SHA256),),
        **layer_facts(layout.spec, plans),
        mtp=mtp_facts(layout.spec, plans),
        sha256=_NO_SHA256,
    )
