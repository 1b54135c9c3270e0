"""Tensors of a GGUF whose family only transformers knows: its tables of names, and what it does to values."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellm.checkpoint.gguf.file import GGUFTensor
from edgellm.checkpoint.gguf.rope import FACTOR_TENSORS
from edgellm.checkpoint.gguf.rows import grouped_order, matrix, open_rows, origin_of
from edgellm.checkpoint.tensors import (
    BLOCK_BYTES,
    LoadedRows,
    Rows,
    SourceTensor,
    from_f32,
    plain_encoding,
    transposed_rows,
)
from edgellm.errors import CheckpointError

_TRANSPOSED = "transposed"


def generic_tensors(
    tensors: Mapping[str, GGUFTensor], architecture: str, config: dict, model: Any
) -> dict[str, SourceTensor]:
    """Return the tensors by state_dict name of `model`; one that maps to no name stays under the file's."""
    return _Names(tensors, architecture, config, model).targets()


class _Names:
    def __init__(self, tensors: Mapping[str, GGUFTensor], architecture: str, config: dict, model: Any):
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

        self._tensors, self._architecture, self._config = tensors, architecture, config
        self._processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config)
        self._names = get_gguf_hf_weights_map(_ModelNames(model), self._processor, architecture)

    def targets(self) -> dict[str, SourceTensor]:
        """Return the tensors by the names they get."""
        sources: dict[str, list[str]] = {}
        for name in self._tensors:
            if name not in FACTOR_TENSORS:
                target = self._names.get(name) or self._names.get(name.removesuffix(".weight"), name)
                sources.setdefault(target, []).append(name)
        return {target: self._tensor(target, names) for target, names in sources.items()}

    def _tensor(self, target: str, names: list[str]) -> SourceTensor:
        name, info = names[0], self._tensors[names[0]]
        origin = origin_of(*names, info=info)
        encoding = open_rows(name, info).encoding
        if name.endswith("_exps.weight") and len(info.shape) == 3:
            shape = (info.shape[0], sum(self._tensors[n].shape[1] for n in names), info.shape[2])
            plain = plain_encoding(encoding)

            def load_experts() -> np.ndarray:
                return from_f32(self._experts(target, names), plain)

            return SourceTensor(shape, plain, origin, lambda transposed: LoadedRows(shape, plain, load_experts))
        if len(names) > 1:
            raise CheckpointError(f"{origin} are both {target}")
        if target == "lm_head.weight" or target == name:  # GPT-2's processor handles it aside; unexpected names as is
            return matrix(name, info)
        if len(info.shape) == 2:
            order = self._row_order(name, info)
            if isinstance(order, np.ndarray):
                return matrix(name, info, order)
            if order == _TRANSPOSED:
                return SourceTensor(info.shape[::-1], encoding, origin, lambda t: _conv1d(open_rows(name, info), t))
        return self._processed(name, info, origin)

    def _process(self, name: str, values: np.ndarray, parsed: dict | None = None) -> Any:
        return self._processor.process(
            weights=values, name=name, tensor_key_mapping=self._names, parsed_parameters=parsed or {"tensors": {}}
        ).weights

    def _row_order(self, name: str, info: GGUFTensor) -> np.ndarray | str | None:
        """Return how a matrix's rows are reordered: their order, "transposed", or None for anything else.

        It is found by giving transformers' processor row numbers instead of values.
        """
        if self._architecture == "falcon" and ".attn_qkv." in name:
            heads, kv_heads = self._config["num_attention_heads"], self._config["num_kv_heads"]
            order = grouped_order(heads, kv_heads, self._config["hidden_size"] // heads)
            return order if len(order) == info.shape[0] else None
        numbers = np.arange(info.shape[0], dtype=np.int64)[:, None]
        try:
            made = np.asarray(self._process(name, numbers))
        except ValueError:  # it reshapes columns too
            return None
        if made.shape == (1, info.shape[0]) and info.shape[0] > 1 and np.array_equal(made[0], numbers[:, 0]):
            return _TRANSPOSED
        if made.shape == numbers.shape and np.array_equal(np.sort(made[:, 0]), numbers[:, 0]):
            return made[:, 0]
        return None

    def _processed(self, name: str, info: GGUFTensor, origin: str) -> SourceTensor:
        """Return a tensor whose values the processor changes (gemma's norms, say); in float32 if it is a vector."""
        encoding = "f32" if len(info.shape) < 2 else plain_encoding(open_rows(name, info).encoding)
        shape = info.shape
        if len(shape) <= 2:  # it may add a dimension
            shape = np.shape(self._process(name, np.full(shape, -1.0, np.float32)))

        def load() -> np.ndarray:
            values = self._process(name, open_rows(name, info).read_all_f32())
            return from_f32(np.array(values, np.float32), encoding)

        return SourceTensor(shape, encoding, origin, lambda transposed: LoadedRows(shape, encoding, load))

    def _experts(self, target: str, names: list[str]) -> np.ndarray:
        parsed: dict = {"tensors": {}}
        for name in names:
            self._process(name, open_rows(name, self._tensors[name]).read_all_f32(), parsed)
        return parsed["tensors"][target].numpy()


def _conv1d(rows: Rows, transposed: bool) -> Rows:
    if transposed:
        return rows  # the file has [out, in], a Conv1D's state_dict [in, out]
    if rows.encoding in BLOCK_BYTES:
        packed = rows
        rows = LoadedRows(packed.shape, "f16", lambda: from_f32(packed.read_all_f32(), "f16"))
    return transposed_rows(rows)


class _ModelNames:
    """What transformers' name map asks of a model: its names and its base model's. The whole model would have it build
    its table again for every module, which takes many seconds."""

    def __init__(self, model: Any, prefix: str | None = None):
        prefix = model.base_model_prefix + "." if prefix is None else prefix
        self.config = model.config
        self._state = model.state_dict()
        self._children: list[tuple[str, _ModelNames]] = []
        if prefix:
            base = _ModelNames(model, "")
            base._state = {k.removeprefix(prefix): v for k, v in self._state.items() if k.startswith(prefix)}
            self._children = [(prefix[:-1], base)]

    def state_dict(self) -> dict:
        return self._state

    def named_children(self) -> list:
        return self._children
