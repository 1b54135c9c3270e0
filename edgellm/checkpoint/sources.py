"""What can be split: `open_source` tells a folder, a GGUF file, the built-in model and a hub id apart."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgellm.checkpoint.layout import Layout
from edgellm.checkpoint.tensors import SourceTensor
from edgellm.errors import CheckpointError

# Called as progress(what, done, total): what is being made or fetched, bytes done, bytes in all (0 if unknown).
Progress = Callable[[str, int, int], None]

NEVER_ASKED = "its split can be planned and measured, but not asked."  # what a source without a tokenizer is good for

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")


class Source:
    """A checkpoint that can be split. `name` is the model's, `where` the path for errors, `notes` what its owner should
    know before it is split."""

    name: str
    where: str
    eos_token_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()
    pooling: str = ""  # as in the manifest
    config: Any  # a transformers config read from local files, for sources without a layout of their own

    def layout(self) -> Layout:
        """Return the tensors of every shard and what the manifest says of the model; reads headers only.

        Raises CheckpointError for tensors that aren't the model's, ModelError for a model that can't be split.
        """
        from edgellm.checkpoint.traced import traced_layout

        return traced_layout(self)

    def tensors(self, model: Any) -> dict[str, SourceTensor]:
        """Return the source's tensors by state_dict name of `model` (empty, on the meta device); reads headers only.

        Tensors that transformers ignores are left out. One that maps to no name of the model's keeps its own.
        """
        raise NotImplementedError

    def fingerprint_parts(self) -> list[bytes]:
        """Return what tells this checkpoint from another: config, headers, sizes, times."""
        raise NotImplementedError

    def write_files(self, folder: Path) -> list[str]:
        """Write config and tokenizer files into `folder`; return their names."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """The SHA-256 over `fingerprint_parts`; equal for an unchanged checkpoint."""
        digest = hashlib.sha256()
        for part in self.fingerprint_parts():
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()


def open_source(
    text: str, progress: Progress | None = None, note: Callable[[str], None] = lambda text: None
) -> Source:
    """Return the source that `text` names: a folder, a .gguf file, a built-in model, or a hub id "org/name".

    Fetches what isn't here yet, reporting to `progress`, after the terms of a built-in model went to `note`. Raises
    CheckpointError in one line for what can't be used.
    """
    from edgellm.checkpoint.builtin import BUILTIN, fetch_builtin

    path = Path(text).expanduser()
    if text in BUILTIN and not path.exists():
        from edgellm.checkpoint.gguf.source import GGUFSource

        if terms := BUILTIN[text].terms:
            note(terms)
        return GGUFSource(fetch_builtin(text, progress), name=text, sampling=BUILTIN[text].sampling)
    if path.is_dir():
        from edgellm.checkpoint.folder import FolderSource

        return FolderSource(path)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            from edgellm.checkpoint.gguf.source import GGUFSource

            return GGUFSource(path)
        if path.suffix in (".safetensors", ".json"):
            raise CheckpointError(f"{path}: give the folder that holds it, {path.parent}, not the file")
        raise CheckpointError(f"{path} is neither a .gguf file nor a folder. {_accepted()}")
    if _HUB_ID.match(text) and path.suffix.lower() != ".gguf":
        from edgellm.checkpoint.folder import FolderSource
        from edgellm.checkpoint.hub import fetch_hub

        return FolderSource(fetch_hub(text, progress), name=text)
    raise CheckpointError(f"{text!r} is not a folder, a file or a model's name. {_accepted()}")


def _accepted() -> str:
    from edgellm.checkpoint.builtin import BUILTIN

    return (
        "SOURCE is a Hugging Face folder, a .gguf file, a hub id such as org/name, or the built-in "
        f"{' or '.join(BUILTIN)}."
    )
