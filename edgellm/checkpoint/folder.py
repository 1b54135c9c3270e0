"""A Hugging Face model folder as a source: config.json, one or more safetensors files, tokenizer files."""

import json
from pathlib import Path

from edgellm.checkpoint.described import described_layout, needs_description
from edgellm.checkpoint.float8 import BLOCK, FLOAT8, Float8Rows, Scale, block_of, is_other_scale, scale_names
from edgellm.checkpoint.folder_pooling import read_pooling
from edgellm.checkpoint.folder_tokenizer import read_tokenizer
from edgellm.checkpoint.json_file import read_json, read_json_if_there, to_bytes
from edgellm.checkpoint.layout import Layout
from edgellm.checkpoint.mxfp4 import join_mxfp4
from edgellm.checkpoint.names import map_names, quiet_transformers
from edgellm.checkpoint.sources import NEVER_ASKED, Source
from edgellm.checkpoint.tensors import FileRows, LoadedRows, Rows, SourceTensor, transposed_rows
from edgellm.checkpoint.vocabulary.ends import end_token_ids
from edgellm.errors import CheckpointError
from edgellm.model.families.config import MAX_LAYERS
from edgellm.model.families.find import find_spec
from edgellm.model.families.multimodal import text_config, text_tensor
from edgellm.shards.positioned_file import CheckpointFile
from edgellm.shards.safetensors_file import SafetensorsFile, TensorInfo
from edgellm.structure import OTHER_POOL

_ENCODINGS = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "I64": "i64", "I32": "i32", "I16": "i16", "I8": "i8",
    "U8": "u8", "BOOL": "bool",
}  # fmt: skip


class FolderSource(Source):
    """A folder with config.json and safetensors files; raises CheckpointError for what can't be read."""

    def __init__(self, folder: Path, name: str | None = None):
        from edgellm.model.generic.build import config_from_dict

        self.folder = folder.resolve()
        self.where = str(folder)
        self.name = name or self.folder.name
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} has no config.json, so it is not a Hugging Face model folder")
        self._config_json = read_json(folder / "config.json")
        text = text_config(self._config_json)
        self._text_alone = text is not None
        # Both keys are in use; what is read here is no longer quantized, and config.json doesn't say so any more.
        quantization = [self._config_json.pop(k, None) for k in ("quantization_config", "compression_config")]
        self._quantization = next((q for q in quantization if q), None)
        if text is not None:
            self._config_json = text
            self.notes += (f"{folder} is a model for images too. Its text model alone is split: it reads no images.",)
        self._block = block_of(self._quantization, str(folder)) if self._quantization else BLOCK
        with quiet_transformers():
            config = config_from_dict(self._config_json, f"{folder}/config.json")
        self.config = config
        self._indexed: dict[str, str] | None = None  # file by tensor
        self._files = self._weight_files()
        self.pooling = read_pooling(self.folder)
        if self.pooling == OTHER_POOL:
            self.notes += (f"{folder}: its authors make embeddings in a way that edgellm doesn't know; it makes none.",)
        if self._text_alone and any(text_tensor(n) == "lm_head.weight" for file in self._files for n in file.tensors):
            # Its head is a tensor of its own, whatever the default for the whole model is.
            self._config_json["tie_word_embeddings"] = config.tie_word_embeddings = False
        self._generation_json = read_json_if_there(folder / "generation_config.json")
        eos = self._generation_json.get("eos_token_id")
        if eos is None:
            eos = getattr(config.get_text_config(), "eos_token_id", None)
        vocab_size = config.get_text_config().vocab_size
        self.eos_token_ids = self._within(as_token_ids(eos, f"{folder}: eos_token_id"), vocab_size)
        self._tokenizer = read_tokenizer(self.folder, vocab_size)
        if self._tokenizer is None:
            self.notes += (
                f"{folder} has no tokenizer (no tokenizer.json, tokenizer.model or vocab.json): {NEVER_ASKED}",
            )
            return
        self.notes += self._tokenizer.notes
        own = self._tokenizer.eos_token_id
        named = self.eos_token_ids if own is None else (*self.eos_token_ids, own)
        self.eos_token_ids = end_token_ids(named, self._tokenizer.control_tokens, self._tokenizer.added_words)

    def _within(self, ids: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
        """Return those of `ids` that the model can choose; the others, of which a note tells, would end no answer."""
        if beyond := [i for i in ids if i >= vocab_size]:
            self.notes += (f"{self.where}: eos_token_id {beyond[0]} is beyond the {vocab_size} tokens of the model.",)
        return tuple(i for i in ids if i < vocab_size)

    def _weight_files(self) -> list[SafetensorsFile]:
        """The safetensors files; as in transformers, a whole model.safetensors counts more than an index."""
        whole, index = self.folder / "model.safetensors", self.folder / "model.safetensors.index.json"
        if whole.is_file():
            file = SafetensorsFile.open(whole)
            if index.is_file():
                self.notes += self._about_index(file, index)
            return [file]
        self._indexed = self._read_index(index) if index.is_file() else None
        names = sorted(set((self._indexed or {}).values()))
        for name in names:
            if not (self.folder / name).is_file():
                raise CheckpointError(f"{index} names {len(names)} files, of which {name} is missing. Fetch it again.")
        if names:
            return [SafetensorsFile.open(self.folder / name) for name in names]
        others = sorted(p.name for p in self.folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if others:
            raise CheckpointError(
                f"{self.folder} has its weights only as {others[0]}, a pickle that could run code and is never opened. "
                "Get the model's safetensors files, or convert it on a machine you trust with save_pretrained()."
            )
        raise CheckpointError(f"{self.folder} has neither model.safetensors nor model.safetensors.index.json")

    def _about_index(self, whole: SafetensorsFile, index: Path) -> tuple[str, ...]:
        """What is to be said about an index beside a whole file, which counts whatever the index says."""
        name = whole.file.path.name
        counts = f"the weights are those of {name} alone."
        try:
            mapping = self._read_index(index)
        except CheckpointError as e:
            return (f"{e}; {counts}",)
        files = sorted(set(mapping.values()))
        if files != [name]:
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            return (f"{index} names {files[0]}{more}; {counts}",)
        if others := sorted(mapping.keys() ^ whole.tensors.keys()):
            return (f"{index} and {name} differ in {len(others)} tensors, {others[0][:120]} first; {counts}",)
        return ()

    def _read_index(self, index: Path) -> dict[str, str]:
        """Return the name of each tensor's file, by the tensor's name."""
        mapping = read_json(index).get("weight_map")
        if not isinstance(mapping, dict) or not mapping:
            raise CheckpointError(f"{index} has no weight_map")
        indexed = {str(k): str(v) for k, v in mapping.items()}
        for name in sorted(set(indexed.values())):
            if "/" in name or name in (".", ".."):
                raise CheckpointError(f"{index} names {name[:120]!r}, which is not a plain file name")
        return indexed

    def layout(self) -> Layout:
        spec, _ = find_spec(self._config_json)
        if spec and needs_description(spec):
            further = self._config_json.get("num_nextn_predict_layers")
            further = further if type(further) is int and 0 < further <= MAX_LAYERS else 0
            return described_layout(spec, self.config, self._named_tensors(), self.where, further)
        return super().layout()

    def tensors(self, model) -> dict[str, SourceTensor]:
        return map_names(model, self._named_tensors(), self.where)

    def _named_tensors(self) -> dict[str, SourceTensor]:
        """Return the tensors by the checkpoint's own names."""
        there: dict[str, tuple[CheckpointFile, TensorInfo]] = {}
        for file in self._files:
            for name, info in file.tensors.items():
                if self._indexed is not None and self._indexed.get(name) != file.file.path.name:
                    at = self._indexed.get(name, "no file at all")
                    raise CheckpointError(f"{_origin(file.file, name)} is there, but the index says it is in {at}")
                there[name] = file.file, info
        for name, file_name in (self._indexed or {}).items():
            if name not in there:
                raise CheckpointError(f"{self.folder / file_name} lacks tensor {name}, which the index says it has")
        dtypes = {name: info.dtype for name, (_, info) in there.items()}
        scales = scale_names(dtypes, self._quantization is not None, self.where)
        found = {}
        for name, (path, info) in there.items():
            if name in scales.values() or (self._quantization and is_other_scale(name)):
                continue
            ours = text_tensor(name) if self._text_alone else name
            if ours is None:
                continue
            scale = None
            if name in scales:
                scale_file, scale_info = there[scales[name]]
                scale = Scale(scale_file, scale_info, self._block, _origin(scale_file, scales[name]))
            found[ours] = _tensor(path, info, name, scale)
        return join_mxfp4(found) if self._quantization else found

    def fingerprint_parts(self) -> list[bytes]:
        parts = [json.dumps([self._config_json, self._quantization], sort_keys=True).encode()]
        for file in self._files:
            parts += [file.file.path.name.encode(), file.header, f"{file.file.bytes} {file.file.mtime_ns}".encode()]
        return parts

    def write_files(self, folder: Path) -> list[str]:
        files = {"config.json": to_bytes(self._config_json)}
        if self._generation_json:
            files["generation_config.json"] = to_bytes(self._generation_json)
        if self._tokenizer is not None:
            files |= self._tokenizer.files
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return list(files)


def _origin(file: CheckpointFile, name: str) -> str:
    return f"{file.path}: tensor {name}"


def _tensor(file: CheckpointFile, info: TensorInfo, name: str, scale: Scale | None) -> SourceTensor:
    origin = _origin(file, name)

    def open_rows(transposed: bool) -> Rows:
        rows: Rows
        if info.dtype in FLOAT8:
            rows = Float8Rows(file, info, origin, scale)
        else:
            rows = FileRows(file, info.offset, info.shape, _ENCODINGS[info.dtype], origin)
        if info.dtype == "F64":
            rows = LoadedRows(info.shape, "f32", rows.read_all_f32)
        return transposed_rows(rows) if transposed else rows

    if info.dtype in FLOAT8:
        encoding = "bf16" if scale is None else "f32"
    elif info.dtype in _ENCODINGS:
        encoding = "f32" if info.dtype == "F64" else _ENCODINGS[info.dtype]
    else:
        raise CheckpointError(f"{origin} has dtype {info.dtype}, readable are {', '.join((*_ENCODINGS, *FLOAT8))}")
    return SourceTensor(info.shape, encoding, origin, open_rows)


def as_token_ids(value, what: str) -> tuple[int, ...]:
    """Token ids from a config's eos_token_id: none, one or a list."""
    ids = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
    if not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
        raise CheckpointError(f"{what} is {str(value)[:80]}, expected token ids")
    return tuple(dict.fromkeys(ids))
