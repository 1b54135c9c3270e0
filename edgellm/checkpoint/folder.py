"""A Hugging Face model folder as a source: config.json, one or more safetensors files, tokenizer files."""

import json
import shutil
from pathlib import Path

from edgellm.checkpoint.names import map_names, one_line, quiet_transformers
from edgellm.checkpoint.sources import Source
from edgellm.checkpoint.tensors import FileRows, LoadedRows, Rows, SourceTensor, transposed_rows
from edgellm.errors import CheckpointError
from edgellm.shards.safetensors_file import SafetensorsFile

_ENCODINGS = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "I64": "i64", "I32": "i32", "I16": "i16", "I8": "i8",
    "U8": "u8", "BOOL": "bool",
}  # fmt: skip
_COPIED = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_SLOW_TOKENIZERS = ("tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
_MAX_JSON_BYTES = 64 << 20


class FolderSource(Source):
    """A folder with config.json and safetensors files; raises CheckpointError for what can't be read."""

    def __init__(self, folder: Path, name: str | None = None):
        from edgellm.model.generic.build import config_from_dict

        self.folder = folder.resolve()
        self.where = str(folder)
        self.name = name or self.folder.name
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} has no config.json, so it is no Hugging Face model folder")
        self._config_json = read_json(folder / "config.json")
        if method := self._config_json.get("quantization_config"):
            method = method.get("quant_method", "unknown") if isinstance(method, dict) else "unknown"
            raise CheckpointError(
                f"{folder}: the weights are quantized already (method {str(method)[:40]}), which edgellm can't read. "
                "Give the unquantized checkpoint or a GGUF file."
            )
        with quiet_transformers():
            self.config = config_from_dict(self._config_json, f"{folder}/config.json")
        self._files = [SafetensorsFile.open(path) for path in self._weight_files()]
        generation = folder / "generation_config.json"
        generation = read_json(generation) if generation.is_file() else {}
        eos = generation.get("eos_token_id")
        if eos is None:
            eos = getattr(self.config.get_text_config(), "eos_token_id", None)
        self.eos_token_ids = as_token_ids(eos, f"{folder}: eos_token_id")

    def _weight_files(self) -> list[Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            content = read_json(index)
            mapping = content.get("weight_map")
            if not isinstance(mapping, dict) or not mapping:
                raise CheckpointError(f"{index} has no weight_map")
            names = sorted({str(name) for name in mapping.values()})
            for name in names:
                if "/" in name or name in (".", ".."):
                    raise CheckpointError(f"{index} names {name[:120]!r}, which is no plain file name")
                if not (self.folder / name).is_file():
                    raise CheckpointError(
                        f"{index} names {len(names)} files, of which {name} is missing. Fetch it again."
                    )
            self._indexed = {str(k): str(v) for k, v in mapping.items()}
            return [self.folder / name for name in names]
        self._indexed = None
        if (self.folder / "model.safetensors").is_file():
            return [self.folder / "model.safetensors"]
        others = sorted(p.name for p in self.folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if others:
            raise CheckpointError(
                f"{self.folder} has its weights only as {others[0]}, a pickle that could run code and is never opened. "
                "Get the model's safetensors files, or convert it on a machine you trust with save_pretrained()."
            )
        raise CheckpointError(f"{self.folder} has neither model.safetensors nor model.safetensors.index.json")

    def tensors(self, model) -> dict[str, SourceTensor]:
        found: dict[str, SourceTensor] = {}
        for file in self._files:
            for name, info in file.tensors.items():
                origin = f"{file.file.path}: tensor {name}"
                if self._indexed is not None and self._indexed.get(name) != file.file.path.name:
                    at = self._indexed.get(name, "no file at all")
                    raise CheckpointError(f"{origin} is there, but the index says it is in {at}")
                if info.dtype not in _ENCODINGS:
                    raise CheckpointError(f"{origin} has dtype {info.dtype}, readable are {', '.join(_ENCODINGS)}")
                found[name] = SourceTensor(
                    info.shape,
                    "f32" if info.dtype == "F64" else _ENCODINGS[info.dtype],
                    origin,
                    lambda transposed, f=file.file, i=info, o=origin: _rows(f, i, o, transposed),
                )
        for name, file_name in (self._indexed or {}).items():
            if name not in found:
                raise CheckpointError(f"{self.folder / file_name} lacks tensor {name}, which the index says it has")
        return map_names(model, found, self.where)

    def fingerprint_parts(self) -> list[bytes]:
        parts = [json.dumps(self._config_json, sort_keys=True).encode()]
        for file in self._files:
            parts += [file.file.path.name.encode(), file.header, f"{file.file.bytes} {file.file.mtime_ns}".encode()]
        return parts

    def write_files(self, folder: Path) -> list[str]:
        shutil.copyfile(self.folder / "config.json", folder / "config.json")
        names = ["config.json"]
        if (self.folder / "tokenizer.json").is_file():
            shutil.copyfile(self.folder / "tokenizer.json", folder / "tokenizer.json")
            names.append("tokenizer.json")
        elif any((self.folder / name).is_file() for name in _SLOW_TOKENIZERS):
            names += self._convert_tokenizer(folder)
        for name in _COPIED:
            if (self.folder / name).is_file() and name not in names:
                shutil.copyfile(self.folder / name, folder / name)
                names.append(name)
        return names

    def _convert_tokenizer(self, folder: Path) -> list[str]:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
            tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        except Exception as e:  # converters raise whatever their vocabulary's format makes them
            raise CheckpointError(
                f"{self.folder}: no tokenizer.json, and transformers can't make one: {one_line(e)}"
            ) from None
        return ["tokenizer.json"]


def _rows(file, info, origin: str, transposed: bool) -> Rows:
    rows: Rows = FileRows(file, info.offset, info.shape, _ENCODINGS[info.dtype], origin)
    if info.dtype == "F64":
        wide = rows
        rows = LoadedRows(info.shape, "f32", lambda: wide.read_all().float())
    return transposed_rows(rows) if transposed else rows


def read_json(path: Path) -> dict:
    """A JSON object from a file; raises CheckpointError with the path."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, at most {_MAX_JSON_BYTES} are read")
        content = json.loads(path.read_bytes())
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror or e}") from None
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} is no JSON: {one_line(e)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return content


def as_token_ids(value, what: str) -> tuple[int, ...]:
    """Token ids from a config's eos_token_id: none, one or a list."""
    ids = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
    if not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
        raise CheckpointError(f"{what} is {str(value)[:80]}, expected token ids")
    return tuple(dict.fromkeys(ids))
