"""The models that a server answers with. Each has a client, and whoever asks holds it while the answer runs."""

import time
from dataclasses import dataclass
from typing import Any, Protocol, Self

from edgellm.client import AsyncClient
from edgellm.errors import EdgellmError, UsageError
from edgellm.manager.progress import Progress


class UnknownModel(UsageError):
    """There is no model of this name."""


class Loading(EdgellmError):
    """The boards are loading the model: `progress` is from 0 to 1, `eta_s` an estimate, None if nothing is known."""

    def __init__(self, message: str, progress: float = 0.0, eta_s: float | None = None):
        super().__init__(message)
        self.progress, self.eta_s = progress, eta_s


@dataclass(frozen=True)
class Model:
    """Facts about a model, as its manifest and its plan have them. Sizes are in bytes, lengths in tokens."""

    name: str
    created_s: int  # since 1970: when its split was finished
    digest: str  # SHA-256 of its manifest
    architecture: str
    family: str
    quantization: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    size: int
    max_context: int
    context: int  # of the slots that boards have for it
    slots: int
    loaded: bool
    pooling: str = ""  # how its authors make an embedding, as in the manifest
    expires_s: float | None = None  # since 1970: when it goes if nobody asks; None: it stays
    loading: Progress | None = None  # how far boards are with loading it; None: they aren't


class Models(Protocol):
    """What dialects need of the models. `clients` has those in use by name, for metrics; with `share_cache`, API keys
    share what boards keep of prompts."""

    clients: dict[str, AsyncClient]
    share_cache: bool

    def names(self) -> list[str]:
        """Return the names of all models, the default first."""

    def describe(self, name: str) -> Model:
        """Return the facts about a model, "" for the default. Raises UnknownModel."""

    def use(self, name: str, keep_alive_s: float | None = None) -> Any:
        """Return an async context manager, which gives the model's name and its client, and holds it until then.
        Raises UnknownModel, or Loading if it can't answer yet."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


def find_name(asked: str, names: list[str]) -> str:
    """Return the name that is meant: exactly, or whatever its case and without its owner's name and Ollama's tag; the
    first for "". Raises UnknownModel."""
    if not asked:
        return names[0]
    if asked in names:
        return asked
    plain = {_plain(name): name for name in reversed(names)}
    if found := plain.get(_plain(asked)):
        return found
    raise UnknownModel(f"there is no model {asked[:100]!r}. There are: {', '.join(names)}.")


def _plain(name: str) -> str:
    return name.casefold().removesuffix(":latest").rsplit("/", 1)[-1]


def describe(name: str, client: AsyncClient, *, loaded: bool) -> Model:
    """Return the facts about the model of a client."""
    manifest, plan = client.asker.manifest, client.plan
    try:
        created_s = int((client.asker.model_dir / "manifest.json").stat().st_mtime)
    except OSError:
        created_s = int(time.time())
    return Model(
        name, created_s, manifest.sha256, manifest.architecture, manifest.model_type, manifest.quantization,
        manifest.num_layers, manifest.hidden_size, manifest.vocab_size, sum(e.bytes for e in manifest.shards),
        manifest.max_seq_len, plan.context, plan.slots, loaded, manifest.pooling,
    )  # fmt: skip
