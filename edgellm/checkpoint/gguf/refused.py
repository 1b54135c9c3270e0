"""Architectures that can't be read from a GGUF, and whether the model's safetensors folder would work instead."""

from typing import NoReturn

from edgellm.errors import CheckpointError

FOLDER_WORKS: dict[str, str] = {}
FOLDER_FAILS: dict[str, str] = {}


def refuse_architecture(where: str, architecture: str) -> NoReturn:
    """Raise CheckpointError for an architecture without a function in `config`."""
    said = f"{where}: a GGUF of architecture {architecture[:40]!r} can't be read"
    if architecture in FOLDER_WORKS:
        raise CheckpointError(f"{said}, but the model's safetensors folder can be split: give that")
    if architecture in FOLDER_FAILS:
        raise CheckpointError(f"{said}, nor could the model's safetensors folder be split: {FOLDER_FAILS[architecture]}")
    raise CheckpointError(f"{said}. The model's safetensors folder can be split if transformers knows the model: try that.")
