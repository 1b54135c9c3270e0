"""A GGUF as a source: its config, its tensors, its vocabulary. Native families need neither torch nor transformers."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.checkpoint.gguf.config import ARCHITECTURES, make_config
from edgellm.checkpoint.gguf.header import Header
from edgellm.checkpoint.gguf.metadata import POOLING_TYPES, Metadata
from edgellm.checkpoint.gguf.parts import open_gguf
from edgellm.checkpoint.gguf.refused import refuse_architecture
from edgellm.checkpoint.gguf.rows import open_rows, widened_types
from edgellm.checkpoint.gguf_tokenizer import gguf_end_token_ids, write_tokenizer
from edgellm.checkpoint.layout import Layout
from edgellm.checkpoint.names import quiet_transformers
from edgellm.checkpoint.sources import NEVER_ASKED, Source
from edgellm.checkpoint.tensors import SourceTensor
from edgellm.checkpoint.vocabulary.metadata import has_vocabulary
from edgellm.errors import CheckpointError
from edgellm.model.families.find import find_spec

# general.sampling.* and what generation_config.json calls it.
_SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
}  # fmt: skip


class GGUFSource(Source):
    """A GGUF, in one file or in parts; raises CheckpointError for what can't be read.

    `sampling` is what its authors advise, in the words of generation_config.json, where the file itself doesn't say.
    """

    def __init__(self, path: Path, name: str | None = None, sampling: dict[str, float | bool] | None = None):
        self.where = str(path)
        self._gguf = open_gguf(path)
        self.name = name or self._gguf.name
        self.path = self._gguf.path.resolve()
        self._sampling = sampling or {}
        metadata = self._gguf.metadata
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not self._gguf.tensors:
            raise CheckpointError(
                f"{path} has {len(self._gguf.tensors)} tensors and general.architecture {str(architecture)[:40]!r}: it "
                "holds no model"
            )
        self.architecture = architecture
        if metadata.get("general.type", "model") != "model":
            raise CheckpointError(f"{path} holds no model: general.type is {str(metadata['general.type'])[:40]!r}")
        if self.architecture not in ARCHITECTURES:
            refuse_architecture(self.where, self.architecture)
        shapes = {name: info.shape for name, info in self._gguf.tensors.items()}
        self._config = make_config(Header(Metadata(metadata, self.where), shapes, self._read_f32))
        self.spec, _ = find_spec(self._config)
        if self.spec:
            self._config["architectures"] = [self.spec.architecture]
        pooling = metadata.get(f"{architecture}.pooling_type")
        self.pooling = POOLING_TYPES.get(pooling, "") if type(pooling) is int else ""
        ends = gguf_end_token_ids(metadata, self.where)
        self.eos_token_ids = tuple(i for i in ends if i < self._config["vocab_size"])
        self.notes += widened_types(self.where, self._gguf.tensors)
        if not has_vocabulary(metadata):
            self.notes += (f"{path} has no vocabulary (tokenizer.ggml.tokens): {NEVER_ASKED}",)

    @cached_property
    def config(self) -> Any:
        """The transformers config."""
        from edgellm.model.generic.build import causal_class, config_from_dict

        with quiet_transformers():
            config = config_from_dict(self._config, self.where)
        config.architectures = [causal_class(config).__name__]
        return config

    def _read_f32(self, name: str) -> np.ndarray | None:
        info = self._gguf.tensors.get(name)
        return None if info is None else open_rows(name, info).read_all_f32()

    def layout(self) -> Layout:
        if self.spec:
            from edgellm.checkpoint.gguf.native import PERMUTED, native_layout

            blocks = self._gguf.metadata.get(f"{self.architecture}.block_count")
            return native_layout(
                self.spec, self._gguf.tensors, self.where, permuted=self.architecture in PERMUTED,
                num_blocks=blocks if type(blocks) is int else 0,
            )  # fmt: skip
        return super().layout()

    def tensors(self, model: Any) -> dict[str, SourceTensor]:
        from edgellm.checkpoint.gguf.generic import generic_tensors

        return generic_tensors(self._gguf.tensors, self.architecture, self._config, model)

    def fingerprint_parts(self) -> list[bytes]:
        found = []
        for part in self._gguf.parts:
            found += [part.header, f"{part.file.bytes} {part.file.mtime_ns}".encode()]
        return found

    def write_files(self, folder: Path) -> list[str]:
        config = json.dumps(self._config, indent=2) if self.spec else self.config.to_json_string(use_diff=False)
        (folder / "config.json").write_text(config.rstrip() + "\n")
        (folder / "generation_config.json").write_text(json.dumps(self._generation(), indent=1) + "\n")
        names = ["config.json", "generation_config.json"]
        return names + write_tokenizer(self.path, self._gguf.metadata, folder)

    def _generation(self) -> dict:
        """Return the content of generation_config.json: what ends an answer, and the sampling that the authors
        advise."""
        found: dict = {"eos_token_id": list(self.eos_token_ids)} if self.eos_token_ids else {}
        for theirs, ours in _SAMPLING.items():
            value = self._gguf.metadata.get(f"general.sampling.{theirs}")
            if type(value) in (int, float):
                found[ours] = float(f"{value:.7g}") if isinstance(value, float) else value
        if "temperature" in found:
            found["do_sample"] = found["temperature"] > 0
        return self._sampling | found
