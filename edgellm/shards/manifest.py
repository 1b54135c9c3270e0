"""The manifest: what a split model consists of. Standard library only, since the manager reads it.

Format (docs/shards.md has it field by field): `manifest.json` beside the shard files. It is written last, so a folder
with a manifest is a finished split.
"""

import hashlib
import json
import re
import reprlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeGuard

from edgellm.errors import ManifestError
from edgellm.files import write_atomically
from edgellm.structure import OTHER_POOL, POOLS

FORMAT = 2
_FORMER = 1  # which lacks the fields that `_since_2` fills in
SHARD_FORMAT = "edgellm-shard-2"  # of the shard files that are written and read now
MANIFEST_NAME = "manifest.json"
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_MAX_MANIFEST_BYTES = 8 << 20
_MOST = 1 << 50  # of anything that is counted here
_PER_LAYER = (
    "kv_elements_per_token", "kv_scales_per_token", "kv_window_tokens", "state_bytes", "touched_bytes_per_token",
)  # fmt: skip
# Of a few models alone, an entry per layer too; left out of others' manifests.
_OF_A_FEW = ("expert_bytes", "kv_sources", "row_elements")
_COUNTS = (
    "num_layers", "hidden_size", "vocab_size", "max_seq_len", "activation_elements_per_token", "rope_switch_len",
)  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """One shard file. `kind` is "embedding", "layer" or "head"; `layer` is the layer's number, else None.

    `bytes` is the file's size; `ram_bytes` what a board needs to hold it (mapped packed weights, plus what is widened
    to float32 when loaded).
    """

    name: str
    kind: str
    layer: int | None
    bytes: int
    ram_bytes: int
    sha256: str


@dataclass(frozen=True)
class ModelFile:
    """A file beside the shards that isn't weights: config.json, tokenizer.json, …"""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Mtp:
    """The head for multi-token prediction, whose tensors are in the head's shard: what it takes there in RAM, an
    embedding of its own included, and what a slot keeps for its layer."""

    ram_bytes: int
    kv_elements_per_token: int
    kv_scales_per_token: int


@dataclass(frozen=True)
class Manifest:
    """A split model. Sizes in bytes, lengths in tokens; `activation_elements_per_token` bounds what one layer's modules
    produce for one token.

    These have one entry per layer. `kv_elements_per_token`: keys and values together. `kv_scales_per_token`: the scales
    that these need beside them in 8 bits. `kv_window_tokens`: how many tokens a slot has to keep, 0 for all.
    `state_bytes`: what a slot keeps at any length. `touched_bytes_per_token`: the weights that one token is multiplied
    with. `expert_bytes`: the weights of which a token touches only some; empty where the split doesn't say, or there
    are none. `kv_sources`: the layer whose keys and values a layer sees, itself or an earlier one. `row_elements`: how
    many floats of a token come in if another board has the layer before. That is `hidden_size`, and more where layers
    need something of earlier ones or of the token's id. Those that are left out have what a manifest of format 1 means,
    which didn't have them.
    """

    model: str
    architecture: str
    model_type: str
    quantization: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_seq_len: int
    eos_token_ids: tuple[int, ...]
    kv_elements_per_token: tuple[int, ...]
    activation_elements_per_token: int
    rope_switch_len: int | None  # LongRoPE: sequences longer than this use other factors, from position 0 on
    shards: tuple[Shard, ...]
    files: tuple[ModelFile, ...]
    kv_scales_per_token: tuple[int, ...] = ()
    kv_window_tokens: tuple[int, ...] = ()
    state_bytes: tuple[int, ...] = ()
    touched_bytes_per_token: tuple[int, ...] = ()
    expert_bytes: tuple[int, ...] = ()
    kv_sources: tuple[int, ...] = ()
    row_elements: tuple[int, ...] = ()
    source_sha256: str = ""  # of the source and the options: tells a finished split of the same source from another
    format: int = FORMAT  # as it was read
    pooling: str = ""  # how its authors make an embedding: of POOLS, or OTHER_POOL; "" if the source doesn't say
    mtp: Mtp | None = None  # what drafts, if the model brings it
    sha256: str = field(default="", compare=False)  # of manifest.json itself; set by `read`

    def __post_init__(self) -> None:
        _check_format(self.format)
        for name in ("model", "architecture", "model_type", "quantization", "source_sha256"):
            value = getattr(self, name)
            if not (isinstance(value, str) and len(value) <= 256 and (value.isprintable() or not value)):
                raise ManifestError(f"manifest: {name} is {str(value)[:60]!r}, expected a short text")
        for name in _COUNTS:
            value = getattr(self, name)
            if name == "rope_switch_len" and value is None:
                continue
            least = 0 if name == "activation_elements_per_token" else 1
            if not (_is_int(value) and least <= value <= _MOST):
                raise ManifestError(f"manifest: {name} is {str(value)[:60]!r}, expected an integer from {least} on")
        if self.pooling not in ("", *POOLS, OTHER_POOL):
            raise ManifestError(
                f"manifest: pooling is {str(self.pooling)[:60]!r}, expected {', '.join(POOLS)} or {OTHER_POOL}"
            )
        for name in (*_PER_LAYER, *_OF_A_FEW):
            count = len(getattr(self, name))
            if count != self.num_layers and (count or name == _PER_LAYER[0]):
                raise ManifestError(f"manifest: {name} has {count} entries for {self.num_layers} layers")
        expected = [("embedding", None), *(("layer", i) for i in range(self.num_layers)), ("head", None)]
        found = [(s.kind, s.layer) for s in self.shards]
        if found != expected:
            raise ManifestError(
                f"manifest: expected {len(expected)} shards (embedding, {self.num_layers} layers, head), "
                f"found {len(found)} or another order"
            )
        for entry in self.entries:
            if not _SAFE_NAME.match(entry.name):
                raise ManifestError(f"manifest: {entry.name!r} is not a plain file name")
            sizes = (entry.bytes, getattr(entry, "ram_bytes", 0))
            if not (all(_is_int(n) and 0 <= n <= _MOST for n in sizes) and _SHA256.match(entry.sha256)):
                raise ManifestError(f"manifest: {entry.name} has a bad size or SHA-256")
        if self.mtp is not None:
            numbers = (self.mtp.ram_bytes, self.mtp.kv_elements_per_token, self.mtp.kv_scales_per_token)
            if not all(_is_int(n) and 0 <= n <= _MOST for n in numbers) or self.mtp.ram_bytes > self.head.ram_bytes:
                raise ManifestError(
                    f"manifest: mtp is {', '.join(str(n)[:20] for n in numbers)}, expected integers, and at most the "
                    f"{self.head.ram_bytes} bytes of the head"
                )
        for name, values in self._since_2().items():
            object.__setattr__(self, name, getattr(self, name) or values)
        held = (shard.ram_bytes for shard in self.shards[1:-1])
        if any(experts > ram for experts, ram in zip(self.expert_bytes, held, strict=False)):
            raise ManifestError("manifest: expert_bytes says that a layer's experts take more RAM than the layer")
        self._check_passed()

    def _check_passed(self) -> None:
        for i, source in enumerate(self.kv_sources):
            if source > i or self.kv_sources[source] != source:
                raise ManifestError(
                    f"manifest: kv_sources has {source} for layer {i}, which isn't an earlier one that sees its own"
                )
        if self.row_elements and min(self.row_elements) < self.hidden_size:
            raise ManifestError(f"manifest: row_elements has {min(self.row_elements)}, less than hidden_size")

    @property
    def widest_row(self) -> int:
        """The most floats of a token that go from one board to the next."""
        return max((self.hidden_size, *self.row_elements))

    def _since_2(self) -> dict[str, tuple[int, ...]]:
        """Return what the fields are that format 1 lacks: no layer forgets, and all weights are used. Heads have at
        least 16 elements, each with a scale."""
        none = (0,) * self.num_layers
        return {
            "kv_scales_per_token": tuple(-(-elements // 16) for elements in self.kv_elements_per_token),
            "kv_window_tokens": none, "state_bytes": none,
            "touched_bytes_per_token": tuple(s.ram_bytes for s in self.shards[1:-1]),
        }  # fmt: skip

    @property
    def entries(self) -> tuple[Shard | ModelFile, ...]:
        """Every file that the manifest names, shards first."""
        return (*self.shards, *self.files)

    @property
    def embedding(self) -> Shard:
        return self.shards[0]

    @property
    def head(self) -> Shard:
        return self.shards[-1]

    @property
    def head_touched_bytes(self) -> int:
        """Bytes of weights that a token's logits take: those of the head, without what drafts."""
        return self.head.ram_bytes - (self.mtp.ram_bytes if self.mtp else 0)

    def layer(self, i: int) -> Shard:
        return self.shards[1 + i]

    @property
    def touched_expert_bytes(self) -> int:
        """The bytes of experts' weights that one token is multiplied with, in all layers."""
        if not self.expert_bytes:
            return 0
        others = sum(s.ram_bytes for s in self.shards[1:-1]) - sum(self.expert_bytes)
        return max(0, sum(self.touched_bytes_per_token) - others)

    def as_generic(self) -> "Manifest":
        """Return the same model as generic sections hold it: their slots keep all positions, and their experts must be
        in RAM."""
        return replace(self, kv_window_tokens=(0,) * self.num_layers, expert_bytes=())

    def section_shards(self, start: int, end: int) -> tuple[Shard, ...]:
        """The shards of section [start, end): its layers, the embedding if it is first, the head if it is last."""
        shards = self.shards[1 + start : 1 + end]
        if start == 0:
            shards = (self.embedding, *shards)
        if end == self.num_layers:
            shards = (*shards, self.head)
        return shards

    def to_json(self) -> str:
        content = asdict(self)
        del content["sha256"], content["format"]
        for name in ("pooling", *_OF_A_FEW):  # as before there were these fields
            if not content[name]:
                del content[name]
        if self.mtp is None:
            del content["mtp"]
        return json.dumps({"format": FORMAT, **content}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """Parse and validate; raises ManifestError with what is wrong."""
        raw = text.encode() if isinstance(text, str) else text
        try:
            content = json.loads(raw)
        except (ValueError, RecursionError) as e:
            raise ManifestError(f"manifest is not JSON: {e}") from None
        if not isinstance(content, dict):
            raise ManifestError("manifest is not a JSON object")
        _check_format(content.get("format"))
        try:
            lists = _PER_LAYER if content["format"] == FORMAT else _PER_LAYER[:1]
            content["shards"] = tuple(Shard(**s) for s in content["shards"])
            content["files"] = tuple(ModelFile(**f) for f in content["files"])
            content["eos_token_ids"] = tuple(_ints(content["eos_token_ids"]))
            if "mtp" in content:
                content["mtp"] = Mtp(**content["mtp"])
            for name in (*lists, *(content.keys() & set(_OF_A_FEW))):
                content[name] = tuple(_ints(content[name]))
                if not content[name]:
                    raise TypeError(f"{name} is empty")
            if extra := content.keys() & set(_PER_LAYER) - set(lists):
                raise TypeError(f"{min(extra)} in format {content['format']}")
            return cls(**content, sha256=hashlib.sha256(raw).hexdigest())
        except (TypeError, KeyError, AttributeError) as e:
            said = str(e).encode("unicode_escape").decode()  # on one line, whatever a field is called
            raise ManifestError(f"manifest lacks a field or has one too many: {said}") from None

    @classmethod
    def read(cls, folder: Path | str) -> "Manifest":
        """Read FOLDER/manifest.json (or the file itself); raises ManifestError with the path."""
        path = Path(folder)
        path = path if path.suffix == ".json" and not path.is_dir() else path / MANIFEST_NAME
        try:
            if path.stat().st_size > _MAX_MANIFEST_BYTES:
                raise ManifestError(f"{path}: {path.stat().st_size} bytes, at most {_MAX_MANIFEST_BYTES}")
            raw = path.read_bytes()
        except OSError as e:
            raise ManifestError(
                f"{path}: {e.strerror or e}. Make it with 'edgellm split SOURCE --out {path.parent}'."
            ) from None
        try:
            return cls.from_json(raw)
        except ManifestError as e:
            raise ManifestError(f"{path}: {e}") from None

    def write(self, folder: Path | str) -> None:
        """Write FOLDER/manifest.json whole or not at all (temporary file, fsync, rename)."""
        write_atomically(Path(folder) / MANIFEST_NAME, self.to_json().encode())


def _check_format(found: object) -> None:
    if not (_is_int(found) and found in (_FORMER, FORMAT)):
        raise ManifestError(
            f"manifest has format {reprlib.repr(found)}, this edgellm reads {_FORMER} and {FORMAT}. Split the model "
            "again."
        )


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _ints(values: object) -> list[int]:
    if not isinstance(values, list) or not all(_is_int(v) and 0 <= v <= _MOST for v in values):
        raise TypeError(f"expected a list of integers, got {reprlib.repr(values)}")
    return values
