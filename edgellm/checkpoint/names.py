"""Maps a checkpoint's tensor names to those of the transformers model.

transformers renames and merges some checkpoint tensors when it loads (experts of a layer into one tensor, say); the
same tables are applied here, a tensor at a time.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np

from edgellm.checkpoint.tensors import LoadedRows, Rows, SourceTensor, transposed_rows
from edgellm.errors import CheckpointError

if TYPE_CHECKING:  # most of what splits a GGUF needs no torch, and takes its errors' lines from here
    import torch

_TORCH_NAMES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool",
}  # fmt: skip


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from writing to stderr what edgellm handles or refuses itself."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def one_line(error: BaseException) -> str:
    """Return an exception's text in one line, or its type."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def ignored_names(model) -> re.Pattern:
    """Return the pattern of checkpoint tensors that transformers leaves unread for this model."""
    patterns = set(model._keys_to_ignore_on_load_unexpected or ())
    # As in PreTrainedModel._adjust_missing_and_unexpected_keys: buffers that once were persistent.
    patterns |= {r"rotary_emb\.inv_freq", r"(^|\.)position_ids$", r"\.(attn|attention)\.(masked_)?bias$"}
    return re.compile("|".join(f"({p})" for p in patterns))


def map_names(model, tensors: dict[str, SourceTensor], where: str) -> dict[str, SourceTensor]:
    """Return `tensors`, given by checkpoint name, by state_dict name of `model`, renamed and merged as transformers
    would."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    converter_of = {pattern: c for c in converters for pattern in c.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix
    ignored = ignored_names(model)

    found: dict[str, SourceTensor] = {}
    groups: dict[str, _Group] = {}
    for name in sorted(tensors, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, pattern = name, None
        if renamed in state and pattern is not None:
            group = groups.setdefault(renamed, _Group(renamed, converter_of[pattern], model))
            group.sources.append((name, pattern, tensors[name]))
        elif renamed in state:
            if renamed in found:
                raise CheckpointError(f"{found[renamed].origin} and {tensors[name].origin} are both {renamed}")
            found[renamed] = tensors[name]
        elif not ignored.search(renamed) and not ignored.search(name):
            found[renamed] = tensors[name]  # unexpected: the caller says so
    for group in groups.values():
        for name, tensor in group.targets(where).items():
            found.setdefault(name, tensor)
    return found


class _Group:
    """Checkpoint tensors that one of transformers' weight converters makes into one or more of the model's."""

    def __init__(self, first: str, converter, model):
        self.first, self.converter, self.model = first, converter, model
        self.sources: list[tuple[str, str, SourceTensor]] = []

    def targets(self, where: str) -> dict[str, SourceTensor]:
        """The resulting tensors, their shapes found by converting on the meta device."""
        import torch

        dtypes = {encoding: getattr(torch, name) for encoding, name in _TORCH_NAMES.items()}
        encodings = {dtype: encoding for encoding, dtype in dtypes.items()}
        try:
            made = self._convert(lambda t: torch.empty(t.shape, dtype=dtypes[t.encoding], device="meta"))
        except Exception as e:  # a converter fails in its own ways when a tensor is missing or misshapen
            raise CheckpointError(
                f"{where}: {len(self.sources)} tensors such as {self.sources[0][2].origin} don't combine into "
                f"{self.first}: {one_line(e)}"
            ) from None
        origin = f"{self.sources[0][2].origin} and {len(self.sources) - 1} more"
        return {
            name: self._tensor(name, tuple(meta.shape), encodings[meta.dtype], origin) for name, meta in made.items()
        }

    def _tensor(self, name: str, shape: tuple[int, ...], encoding: str, origin: str) -> SourceTensor:
        def open_rows(transposed: bool) -> Rows:
            rows = LoadedRows(shape, encoding, lambda: _to_numpy(self._convert(_to_torch)[name]))
            return transposed_rows(rows) if transposed else rows

        return SourceTensor(shape, encoding, origin, open_rows)

    def _convert(self, load: "Callable[[SourceTensor], torch.Tensor]") -> "dict[str, torch.Tensor]":
        converter = deepcopy(self.converter)
        for name, pattern, tensor in self.sources:
            converter.add_tensor(self.first, name, pattern, lambda t=tensor: load(t))
        made = converter.convert(self.first, model=self.model, config=self.model.config)
        return {name: t[0] if isinstance(t, list) else t for name, t in made.items()}


def _to_torch(tensor: SourceTensor) -> "torch.Tensor":
    """Return a plain tensor of the source as torch's."""
    import torch

    data = torch.from_numpy(np.ascontiguousarray(tensor.rows().read_all()))
    return data.view(torch.bfloat16) if tensor.encoding == "bf16" else data


def _to_numpy(data: "torch.Tensor") -> np.ndarray:
    """Return a tensor as `Rows` have it."""
    import torch

    return (data.contiguous().view(torch.uint16) if data.dtype == torch.bfloat16 else data).numpy()
