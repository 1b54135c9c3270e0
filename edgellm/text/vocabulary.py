"""Whether two models have the same tokens. Imports no tokenizers library: boards compare, too."""

from pathlib import Path
from typing import Any

from edgellm.errors import ManifestError, PlanError
from edgellm.shards.manifest import Manifest
from edgellm.text.json_file import read_json

_FILE = "tokenizer.json"


def check_draft(model: Manifest, folder: Path, draft: Manifest, draft_folder: Path) -> None:
    """Raise PlanError in one sentence unless a model can draft for another one: their tokens have to be the same."""
    try:
        differs = difference(model, folder, draft, draft_folder)
    except ManifestError as e:
        differs = str(e)
    if differs:
        raise PlanError(f"{draft.model} can't draft for {model.model}: {differs}. Choose a model of the same family.")


def difference(model: Manifest, folder: Path, other: Manifest, other_folder: Path) -> str:
    """Return how the tokens of another model differ from a model's, as a part of a sentence; "" if an id that both have
    is the same token in both. Raises ManifestError for a file that can't be read.

    The files beside the shards say so: equal ones by their SHA-256, and others if their vocabularies are equal.
    """
    files = [next((f for f in manifest.files if f.name == _FILE), None) for manifest in (model, other)]
    for manifest, file in zip((model, other), files, strict=True):
        if file is None:
            return f"{manifest.model} was split without a {_FILE}, so its tokens aren't known"
    if files[0].sha256 == files[1].sha256:  # type: ignore[union-attr]
        return ""
    own, its = (_tokens(read_json(place / _FILE)) for place in (folder, other_folder))
    if len(own[0]) != len(its[0]):
        return f"{other.model} has a vocabulary of {len(its[0])} tokens, and {model.model} has one of {len(own[0])}"
    for part, its_part in zip(own, its, strict=True):
        for number in sorted(part.keys() & its_part.keys()):
            if part[number] != its_part[number]:
                return (
                    f"token {number} is {its_part[number]!r:.40} in {other.model}, and {part[number]!r:.40} in "
                    f"{model.model}"
                )
    return ""


def _tokens(content: dict[str, Any]) -> tuple[dict[int, str], dict[int, str]]:
    """Return the tokens of a tokenizer.json by id: those of its vocabulary, and those that were added to it."""
    model = content.get("model")
    said = model.get("vocab") if isinstance(model, dict) else None
    vocabulary: dict[int, str] = {}
    if isinstance(said, dict):
        vocabulary = {number: str(token) for token, number in said.items() if type(number) is int}
    elif isinstance(said, list):  # of pairs with scores, in the order of ids
        vocabulary = {i: str(pair[0]) for i, pair in enumerate(said) if isinstance(pair, list) and pair}
    entries = content.get("added_tokens")
    added = {
        entry["id"]: str(entry.get("content"))
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and type(entry.get("id")) is int
    }
    return vocabulary, added
