"""A GGUF file as a source: its tensors under transformers' names, Q4_0, Q4_1 and Q8_0 blocks kept as they are."""

import json
from pathlib import Path

import numpy as np
import torch

from edgellm.checkpoint.gguf_config import FACTOR_TENSORS, config_dict, extra_settings
from edgellm.checkpoint.gguf_file import GGUFFile, GGUFTensor
from edgellm.checkpoint.gguf_tokenizer import gguf_end_token_ids, write_tokenizer
from edgellm.checkpoint.names import one_line, quiet_transformers
from edgellm.checkpoint.sources import Source
from edgellm.checkpoint.tensors import (
    BLOCK_BYTES,
    PLAIN,
    BlockRows,
    FileRows,
    LoadedRows,
    Rows,
    SourceTensor,
    transposed_rows,
)
from edgellm.errors import CheckpointError

_AS_STORED = {"F32": "f32", "F16": "f16", "BF16": "bf16", "Q4_1": "int4", "Q4_0": "int4s", "Q8_0": "int8"}


class GGUFSource(Source):
    """A GGUF file; raises CheckpointError for what can't be read."""

    def __init__(self, path: Path, name: str | None = None):
        from edgellm.model.generic.build import config_from_dict

        self.path = path.resolve()
        self.where = str(path)
        self.name = name or path.stem
        self._gguf = GGUFFile.open(path)
        self.architecture = self._gguf.metadata.get("general.architecture")
        if not isinstance(self.architecture, str) or not self._gguf.tensors:
            raise CheckpointError(
                f"{path} has {len(self._gguf.tensors)} tensors and general.architecture "
                f"{str(self.architecture)[:40]!r}: it holds no model"
            )
        self._config_dict = config_dict(self._gguf, self.where)
        self._config_dict |= extra_settings(self._gguf, self._config_dict, self._read_f32, self.where)
        with quiet_transformers():
            self.config = config_from_dict(self._config_dict, self.where)
        ends = gguf_end_token_ids(self._gguf.metadata, self.where)
        self.eos_token_ids = tuple(i for i in ends if i < self.config.vocab_size)

    def _read_f32(self, name: str) -> torch.Tensor:
        return self._rows(name).read_all().float()

    def _rows(self, name: str) -> Rows:
        """A tensor as the file has it."""
        info, file = self._gguf.tensors[name], self._gguf.file
        what = f"tensor {name}"
        if info.type in _AS_STORED:
            return FileRows(file, info.offset, info.shape, _AS_STORED[info.type], what)
        if info.type == "F64":
            wide = FileRows(file, info.offset, info.shape, "f64", what)
            return LoadedRows(info.shape, "f32", lambda: wide.read_all().float())
        return BlockRows(file, info.offset, info.shape, info.row_bytes, info.type_id, what)

    def tensors(self, model) -> dict[str, SourceTensor]:
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

        self.config.architectures = [type(model).__name__]
        self._processor = TENSOR_PROCESSORS.get(self.architecture, TensorProcessor)(config=self._config_dict)
        try:
            self._names = get_gguf_hf_weights_map(_Names(model), self._processor)
        except (NotImplementedError, KeyError) as e:
            raise CheckpointError(f"{self.where}: architecture {self.architecture!r}: {one_line(e)}") from None
        sources: dict[str, list[str]] = {}
        for name in self._gguf.tensors:
            if name not in FACTOR_TENSORS:
                target = self._names.get(name) or self._names.get(name.removesuffix(".weight"), name)
                sources.setdefault(target, []).append(name)
        return {target: self._tensor(target, names) for target, names in sources.items()}

    def _tensor(self, target: str, names: list[str]) -> SourceTensor:
        info = self._gguf.tensors[names[0]]
        origin = f"{self.path}: tensor {' and '.join(names)}"
        if names[0].endswith("_exps.weight") and len(info.shape) == 3:
            shape = (info.shape[0], sum(self._gguf.tensors[n].shape[1] for n in names), info.shape[2])
            encoding = plain_encoding(self._rows(names[0]).encoding)
            return SourceTensor(
                shape, encoding, origin,
                lambda transposed: LoadedRows(shape, encoding, lambda: self._experts(target, names, encoding)),
            )  # fmt: skip
        if len(names) > 1:
            raise CheckpointError(f"{origin} are both {target}")
        name = names[0]
        if target == "lm_head.weight" or target == name:  # GPT-2's processor handles it aside; unexpected names as is
            return SourceTensor(info.shape, self._rows(name).encoding, origin, lambda transposed: self._rows(name))
        if len(info.shape) == 2:
            order, encoding = self._row_order(name, info), self._rows(name).encoding
            if order is None:
                return self._processed(name, info, origin)
            if isinstance(order, str):
                return SourceTensor(info.shape[::-1], encoding, origin, lambda t: self._conv1d(name, t))
            return SourceTensor(info.shape, encoding, origin, lambda t: self._ordered(name, order))
        return self._processed(name, info, origin)

    def _process(self, name: str, values: np.ndarray, parsed: dict | None = None):
        return self._processor.process(
            weights=values, name=name, tensor_key_mapping=self._names, parsed_parameters=parsed or {"tensors": {}}
        ).weights

    def _row_order(self, name: str, info: GGUFTensor) -> np.ndarray | str | None:
        """How transformers' processor reorders rows: their order, "transposed", or None for anything else. Found by
        giving it row numbers instead of values."""
        numbers = np.arange(info.shape[0], dtype=np.int64)[:, None]
        try:
            made = np.asarray(self._process(name, numbers))
        except ValueError:  # it reshapes columns too
            return None
        if made.shape == (1, info.shape[0]) and info.shape[0] > 1 and np.array_equal(made[0], numbers[:, 0]):
            return "transposed"
        if made.shape == numbers.shape and np.array_equal(np.sort(made[:, 0]), numbers[:, 0]):
            return made[:, 0]
        return None

    def _ordered(self, name: str, order: np.ndarray) -> Rows:
        rows = self._rows(name)
        if np.array_equal(order, np.arange(len(order))):
            return rows
        return LoadedRows(rows.shape, rows.encoding, lambda: rows.read_all()[torch.from_numpy(order)])

    def _conv1d(self, name: str, transposed: bool) -> Rows:
        rows = self._rows(name)  # the file has [out, in], a Conv1D's state_dict [in, out]
        if transposed:
            return rows
        if rows.encoding in BLOCK_BYTES:
            packed = rows
            rows = LoadedRows(packed.shape, "f16", lambda: packed.read_f32(0, packed.shape[0]).half())
        return transposed_rows(rows)

    def _processed(self, name: str, info: GGUFTensor, origin: str) -> SourceTensor:
        """A tensor whose values the processor changes (gemma's norms, say); in float32 if it is a vector."""
        encoding = "f32" if len(info.shape) < 2 else plain_encoding(self._rows(name).encoding)
        shape = info.shape
        if len(shape) <= 2:  # it may add a dimension
            shape = np.shape(self._process(name, np.full(shape, -1.0, np.float32)))

        def load() -> torch.Tensor:
            rows = self._rows(name)
            values = self._process(name, rows.read_f32(0, rows.shape[0]).numpy())
            return torch.from_numpy(np.array(values, np.float32)).to(PLAIN[encoding])

        return SourceTensor(shape, encoding, origin, lambda transposed: LoadedRows(shape, encoding, load))

    def _experts(self, target: str, names: list[str], encoding: str) -> torch.Tensor:
        parsed: dict = {"tensors": {}}
        for name in names:
            rows = self._rows(name)
            self._process(name, rows.read_f32(0, rows.shape[0]).numpy(), parsed)
        return parsed["tensors"][target].to(PLAIN[encoding])

    def fingerprint_parts(self) -> list[bytes]:
        file = self._gguf.file
        return [self._gguf.header, f"{file.bytes} {file.mtime_ns}".encode()]

    def write_files(self, folder: Path) -> list[str]:
        (folder / "config.json").write_text(self.config.to_json_string(use_diff=False))
        generation = {"eos_token_id": list(self.eos_token_ids)} if self.eos_token_ids else {}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
        names = ["config.json", "generation_config.json"]
        return names + write_tokenizer(self.path, self._gguf.metadata, folder)


class _Names:
    """What transformers' name map asks of a model: its names and its base model's. The whole model would have it build
    its table anew for every module, which takes many seconds."""

    def __init__(self, model, prefix: str | None = None):
        prefix = model.base_model_prefix + "." if prefix is None else prefix
        self.config = model.config
        self._state = model.state_dict()
        self._children = []
        if prefix:
            base = _Names(model, "")
            base._state = {k.removeprefix(prefix): v for k, v in self._state.items() if k.startswith(prefix)}
            self._children = [(prefix[:-1], base)]

    def state_dict(self) -> dict:
        return self._state

    def named_children(self) -> list:
        return self._children


def plain_encoding(encoding: str) -> str:
    """The plain encoding for a tensor that can't stay packed."""
    return "f16" if encoding in BLOCK_BYTES else encoding
