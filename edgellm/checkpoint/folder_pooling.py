"""How a folder's authors make one embedding of a text: what sentence-transformers keeps beside a model."""

from pathlib import Path

from edgellm.checkpoint.json_file import parse_json, read_json, read_limited
from edgellm.structure import OTHER_POOL

_MODULES, _DEFAULT, _CONFIG = "modules.json", "1_Pooling", "config.json"
_WITHOUT_EFFECT = ("Transformer", "Normalize")  # the model itself; and every server normalizes
_PREFIX = "pooling_mode_"
_POOLS = {
    "mean": "mean", "mean_tokens": "mean", "lasttoken": "last", "cls": "cls", "cls_token": "cls",
    "weightedmean": "weighted_mean", "weightedmean_tokens": "weighted_mean",
}  # fmt: skip


def read_pooling(folder: Path) -> str:
    """Return one of POOLS, "" if the folder doesn't say, OTHER_POOL for what edgellm can't do, such as a further layer
    or two ways at once. Raises CheckpointError for a file that isn't JSON."""
    name = _DEFAULT
    if (folder / _MODULES).is_file():
        modules = parse_json(read_limited(folder / _MODULES), folder / _MODULES)
        found = [_module(entry) for entry in modules] if isinstance(modules, list) else [("", "")]
        pooling = [path for kind, path in found if kind == "Pooling"]
        if not pooling and all(kind in _WITHOUT_EFFECT for kind, _ in found):
            return ""
        if len(pooling) != 1 or any(kind not in (*_WITHOUT_EFFECT, "Pooling") for kind, _ in found):
            return OTHER_POOL
        name = pooling[0]
        if not name or "/" in name or "\\" in name or name in (".", ".."):
            return OTHER_POOL
    path = folder / name / _CONFIG
    return _pool_of(read_json(path)) if path.is_file() else ""


def _module(entry: object) -> tuple[str, str]:
    """Return a module's kind, and the folder of its files."""
    if not isinstance(entry, dict):
        return "", ""
    return str(entry.get("type")).rsplit(".", 1)[-1], str(entry.get("path", ""))


def _pool_of(config: dict) -> str:
    """Return the pool that a pooling module's config.json names: by one flag a mode, or newer, by the mode's name."""
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [key.removeprefix(_PREFIX) for key, on in config.items() if key.startswith(_PREFIX) and on is True]
    named = modes if isinstance(modes, list) else [modes]
    if len(named) != 1:
        return OTHER_POOL
    return _POOLS.get(str(named[0]), OTHER_POOL)
