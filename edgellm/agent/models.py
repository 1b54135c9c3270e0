"""The models whose shards lie on this board: for each its manifest, its folder, and what its steps take here."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgellm.agent.constraint import Grammars
from edgellm.agent.pace import Pace, Speed
from edgellm.agent.settled import Settled
from edgellm.errors import EdgellmError, ManifestError
from edgellm.plan import Plan
from edgellm.shards.manifest import Manifest

log = logging.getLogger(__name__)
MAX_MODELS = 16  # so that a Status stays small


@dataclass
class Model:
    """One model here. `pace` and `settled` are its own, because a layer of another model takes another time, and
    `grammars` follow constraints in its tokens. `disk_bytes_per_s` is how fast its experts come from the disk; None:
    not measured, as without experts."""

    manifest: Manifest
    folder: Path
    pace: Pace = field(default_factory=Pace)
    settled: Settled = field(default_factory=Settled)
    grammars: Grammars = field(init=False)
    disk_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        self.grammars = Grammars(self.manifest, self.folder)


class Models:
    """The models of `board`, by the SHA-256 of their manifests. The first is the default, of which the board reports
    as long as it holds no plan."""

    def __init__(self, board: str, models: Sequence[Model]):
        self._board = board
        self.default = models[0]
        self._all = {model.manifest.sha256: model for model in reversed(models)}

    @classmethod
    def read(cls, board: str, folders: Sequence[Path], *, generic: bool = False) -> "Models":
        """Read the models in `folders`, for `generic` sections or others. Raises ManifestError for the first if it
        can't be read, or if there are too many; another one is left out, with a line in the log, so that it doesn't
        keep the board from serving."""
        if len(folders) > MAX_MODELS:
            raise ManifestError(f"board {board} is given {len(folders)} models; it takes at most {MAX_MODELS}")

        def model(folder: Path) -> Model:
            manifest = Manifest.read(folder)
            return Model(manifest.as_generic() if generic else manifest, folder)

        models = [model(folders[0])]
        for folder in folders[1:]:
            try:
                models.append(model(folder))
            except ManifestError as e:
                log.warning("a model is left out: %s", e)
        return cls(board, models)

    def __iter__(self) -> Iterator[Model]:
        return iter([self.default, *(model for model in self._all.values() if model is not self.default)])

    @property
    def served(self) -> bool:
        """Whether any section's steps could tell how fast the board is."""
        return any(model.pace.served for model in self)

    def of(self, plan: Plan) -> Model:
        """Return the model of a plan. Raises ManifestError if it isn't here."""
        model = self._all.get(plan.manifest_sha256)
        if model is None or model.manifest.num_layers != plan.num_layers:
            here = ", ".join(f"{m.manifest.model} ({m.manifest.sha256[:12]}…)" for m in self)
            raise ManifestError(
                f"board {self._board} has the shards of {here}, the plan is for {plan.model} "
                f"({plan.manifest_sha256[:12]}…). Push the same shards to every board."
            )
        return model

    def draft_of(self, plan: Plan, board: str) -> Model | None:
        """Return the model that drafts on a board of a plan; None if none does. Raises ManifestError if it isn't here.
        """
        draft = plan.drafts_on(board)
        if draft is None:
            return None
        if (model := self._all.get(draft.manifest_sha256)) is None:
            raise ManifestError(
                f"board {board} lacks the shards of {draft.model} ({draft.manifest_sha256[:12]}…), which is to draft "
                f"for {plan.model}. Push them to every board that may be the last one: deploy again."
            )
        return model

    def time_others(self, measure: Callable[[Manifest, Path], tuple[float, float]]) -> None:
        """Measure the models behind the default one; those that can't be are left out, with a line in the log."""
        for model in list(self)[1:]:
            try:
                model.pace.start = Speed(*measure(model.manifest, model.folder))
            except EdgellmError as e:
                log.warning("%s is left out: %s", model.manifest.model, e)
                del self._all[model.manifest.sha256]
