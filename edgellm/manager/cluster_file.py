"""The cluster file: what deploy (or `local up`) writes for the manager. Boards, their addresses, the model, the plan.

Format 2, a JSON object: `format`, `model` (its name), `model_dir` (the folder with manifest.json and the tokenizer
files), `tls` (the folder with the manager's certificate, or null; both relative to the cluster file where they lie near
it), `boards` (name, host, port, and `ssh`: how to log in there, or null), `plan`, `tag` (the plan's `certificate` and
`signature`; only with TLS), `created` (ISO time).

Format 3 is the same with `more`: a list of further models, each with `model`, `model_dir`, `plan` and `tag`. A file is
written in format 3 only if there are any.
"""

import json
import os
import reprlib
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgellm.errors import ClusterError, PlanError, UsageError
from edgellm.files import write_atomically
from edgellm.plan import BOARD_NAME, Plan
from edgellm.wire.addresses import Address, is_host, is_loopback, is_port
from edgellm.wire.credentials import Credentials, client_credentials

FORMAT = 2
FORMAT_MORE = 3  # with further models
MAX_MORE = 15
FILE_NAME = "cluster.json"
VARIABLE = "EDGELLM_CLUSTER"

_MAX_BYTES = 4 << 20
_FIELDS = {"format", "model", "model_dir", "tls", "boards", "plan", "created"}
_MAKE = "Make it with 'edgellm local up', or deploy."
_AGAIN = "Deploy again, or remove the file."


@dataclass(frozen=True)
class SshAccess:
    """How to log in on a board; None leaves the choice to SSH's own configuration. `key` is a private key's path."""

    host: str
    user: str | None = None
    port: int | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if not is_host(self.host):
            raise ClusterError(f"ssh: {reprlib.repr(self.host)} is not a host name or IP address")
        for name in ("user", "key"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value.isprintable() and 0 < len(value) <= 4096):
                raise ClusterError(f"ssh: {name} is {reprlib.repr(value)}, expected a text")
        if self.user is not None and self.user.startswith("-"):
            raise ClusterError(f"ssh: user is {self.user!r}, expected a user's name")
        if self.port is not None and not is_port(self.port):
            raise ClusterError(f"ssh: port is {reprlib.repr(self.port)}, expected 1 to 65535")


@dataclass(frozen=True)
class Board:
    """A board's name in plans and where its agent listens; `host` is a name or an IP address."""

    name: str
    host: str
    port: int
    ssh: SshAccess | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and BOARD_NAME.match(self.name)):
            raise ClusterError(f"boards: {reprlib.repr(self.name)} is not a board name")
        if not is_host(self.host):
            raise ClusterError(f"boards: {self.name}: {reprlib.repr(self.host)} is not a host name or IP address")
        if not is_port(self.port):
            raise ClusterError(f"boards: {self.name}: port is {reprlib.repr(self.port)}, expected 1 to 65535")


@dataclass(frozen=True)
class FurtherModel:
    """A model that the boards have beside the default one, and its plan: the last one that they held, or as long as
    they never held any, one that they could."""

    model: str
    model_dir: str
    plan: Plan
    tag: dict[str, str] | None = None

    def __post_init__(self) -> None:
        _check_model(self.model, self.plan, self.tag)
        _check_folder("model_dir", self.model_dir)


@dataclass(frozen=True)
class ClusterFile:
    """A cluster. `model_dir` and `tls` are absolute, or relative to the folder of the file they are read from. `model`
    is the default one, `more` are those that the boards have beside it."""

    model: str
    model_dir: str
    boards: tuple[Board, ...]
    plan: Plan
    tls: str | None = None
    tag: dict[str, str] | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    more: tuple[FurtherModel, ...] = ()

    def __post_init__(self) -> None:
        _check_model(self.model, self.plan, self.tag)
        _check_folder("model_dir", self.model_dir)
        if self.tls is not None:
            _check_folder("tls", self.tls)
        if len(self.more) > MAX_MORE:
            raise ClusterError(f"more has {len(self.more)} models, expected at most {MAX_MORE}")
        for i, name in enumerate(self.models):
            if name in self.models[:i]:
                raise ClusterError(f"there are two models {name!r}, expected one of each name")
        names = [b.name for b in self.boards]
        for name in names:
            if names.count(name) > 1:
                raise ClusterError(f"boards: {name} is there {names.count(name)} times, expected once")
        places = [(b.host, b.port) for b in self.boards]
        for board, place in zip(self.boards, places, strict=True):
            if places.count(place) > 1:
                raise ClusterError(f"boards: {place[0]}:{place[1]} of {board.name} is also another board's")
        for plan in (self.plan, *(further.plan for further in self.more)):
            if strangers := [b for b in plan.boards if b not in names]:
                raise ClusterError(f"plan: it uses board {strangers[0]}, which is not among the {len(names)} boards")
        try:
            aware = datetime.fromisoformat(self.created).tzinfo is not None
        except (TypeError, ValueError):
            aware = False
        if not aware:
            raise ClusterError(f"created is {reprlib.repr(self.created)}, expected an ISO time with its zone")

    @classmethod
    def make(
        cls, model_dir: Path | str, addresses: dict[str, Address], plan: Plan, *, tls: Path | str | None = None,
        ssh: dict[str, SshAccess] | None = None, tag: dict[str, str] | None = None,
    ) -> "ClusterFile":  # fmt: skip
        """Return a cluster made now; `addresses` are host and port by board name."""
        boards = tuple(Board(name, host, port, (ssh or {}).get(name)) for name, (host, port) in addresses.items())
        folder = None if tls is None else str(Path(tls).absolute())
        return cls(plan.model, str(Path(model_dir).absolute()), boards, plan, folder, tag)

    def adding(self, model_dir: Path | str, plan: Plan) -> "ClusterFile":
        """Return the same cluster with a further model, which the boards have in no plan yet. Raises ClusterError if
        there is one of that name."""
        further = FurtherModel(plan.model, str(Path(model_dir).absolute()), plan)
        return replace(self, more=(*self.more, further))

    @property
    def models(self) -> list[str]:
        """The names of all models, the default first."""
        return [self.model, *(further.model for further in self.more)]

    def choose(self, name: str | None) -> FurtherModel:
        """Return what is known of a model; None is the default. Raises UsageError if there is none of that name."""
        all_of = [FurtherModel(self.model, self.model_dir, self.plan, self.tag), *self.more]
        if name is None:
            return all_of[0]
        if found := [m for m in all_of if m.model == name] or [m for m in all_of if m.model.lower() == name.lower()]:
            return found[0]
        raise UsageError(f"this cluster has no model {reprlib.repr(name)}. It has {', '.join(self.models)}.")

    def led_by(self, name: str) -> "ClusterFile":
        """Return the same cluster with this model as the default one. Raises UsageError if there is none of that
        name."""
        chosen = self.choose(name)
        others = tuple(m for m in map(self.choose, self.models) if m.model != chosen.model)
        return replace(
            self, model=chosen.model, model_dir=chosen.model_dir, plan=chosen.plan, tag=chosen.tag, more=others
        )

    def plans(self) -> dict[str, Plan]:
        """Return the plans of all models by the SHA-256 of their manifests, the default one's first."""
        return {plan.manifest_sha256: plan for plan in (self.plan, *(further.plan for further in self.more))}

    def addresses(self) -> dict[str, Address]:
        """Return host and port by board name."""
        return {b.name: (b.host, b.port) for b in self.boards}

    def is_local(self) -> bool:
        """Return whether every board is on loopback."""
        return all(is_loopback(b.host) for b in self.boards)

    def model_dir_path(self, path: Path | str, name: str | None = None) -> Path:
        """Return a model's folder, for a cluster file that lies at `path`; None is the default model."""
        return _at(path, self.choose(name).model_dir)

    def tls_path(self, path: Path | str) -> Path | None:
        """Return the folder with the manager's certificate, for a cluster file that lies at `path`; None without TLS.
        """
        return None if self.tls is None else _at(path, self.tls)

    def client_tls(self, path: Path | str) -> Credentials | None:
        """Return the credentials to dial boards with, or None. Raises ClusterError if the certificate can't be used."""
        folder = self.tls_path(path)
        return None if folder is None else client_credentials(folder)

    def with_plan(
        self, plan: Plan, addresses: dict[str, Address], tag: dict[str, str] | None = None
    ) -> "ClusterFile":
        """Return the same cluster with another plan of one of its models, with its boards where `addresses` has them,
        and those it adds."""
        known = {b.name for b in self.boards}
        there = {b.name: addresses.get(b.name, (b.host, b.port)) for b in self.boards}
        boards = [replace(b, host=there[b.name][0], port=there[b.name][1]) for b in self.boards]
        boards += [Board(name, *addresses[name]) for name in addresses if name not in known]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        same = replace(self, boards=tuple(boards), created=now)
        digests = [further.plan.manifest_sha256 for further in self.more]
        if plan.manifest_sha256 in digests:
            i = digests.index(plan.manifest_sha256)
            return replace(same, more=(*self.more[:i], replace(self.more[i], plan=plan, tag=tag), *self.more[i + 1 :]))
        return replace(same, plan=plan, tag=tag)

    @classmethod
    def read(cls, path: Path | str) -> "ClusterFile":
        """Read a cluster file. Raises ClusterError with the path, what is wrong and what to do."""
        path = Path(path)
        try:
            with open(path, "rb") as f:
                raw = f.read(_MAX_BYTES + 1)
        except OSError as e:
            raise ClusterError(f"cluster file {path}: {e.strerror or e}. {_MAKE}") from None
        if len(raw) > _MAX_BYTES:
            raise ClusterError(f"cluster file {path}: over {_MAX_BYTES} bytes, expected at most that. {_AGAIN}")
        try:
            return cls.from_dict(json.loads(raw))
        except (ValueError, RecursionError) as e:
            raise ClusterError(f"cluster file {path}: not JSON ({e}). {_AGAIN}") from None
        except (ClusterError, PlanError) as e:
            raise ClusterError(f"cluster file {path}: {e}. {_AGAIN}") from None

    def write(self, path: Path | str) -> None:
        """Write the file whole or not at all. Raises ClusterError with the path if that fails."""
        path = Path(path)
        folder = path.absolute().parent
        content = {**self.to_dict(), "model_dir": _stored(self.model_dir_path(path), folder)}
        if (tls := self.tls_path(path)) is not None:
            content["tls"] = _stored(tls, folder)
        for further in content.get("more", ()):
            further["model_dir"] = _stored(_at(path, further["model_dir"]), folder)
        try:
            write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
        except OSError as e:
            raise ClusterError(f"cluster file {path}: {e.strerror or e}. Give another path with --cluster.") from None

    def write_if_newer(self, path: Path | str) -> bool:
        """Write the file unless the one there, of the same models, has a later epoch of each, or these very plans with
        the same boards. A later plan of one model that is there stays. Return whether the file was written."""
        try:
            there = ClusterFile.read(path)
        except ClusterError:
            there = None
        new = self
        if there and there.plans().keys() == self.plans().keys():
            olds = [there.choose(name) for name in there.models]
            known = [(old, self.plans()[old.plan.manifest_sha256]) for old in olds]
            moved = there.boards != self.boards
            if not any(p.epoch > old.plan.epoch or (p == old.plan and moved) for old, p in known):
                return False
            for old, plan in known:
                if old.plan.epoch > plan.epoch:
                    strangers = {b: a for b, a in there.addresses().items() if b not in new.addresses()}
                    new = replace(new.with_plan(old.plan, strangers, old.tag), created=new.created)
        new.write(path)
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that the file holds."""
        return {
            "format": FORMAT_MORE if self.more else FORMAT,
            "model": self.model,
            "model_dir": self.model_dir,
            "tls": self.tls,
            "boards": [asdict(b) for b in self.boards],
            "plan": self.plan.to_dict(),
            **({} if self.tag is None else {"tag": dict(self.tag)}),
            "created": self.created,
            **({"more": [{**vars(m), "plan": m.plan.to_dict()} for m in self.more]} if self.more else {}),
        }

    @classmethod
    def from_dict(cls, content: object) -> "ClusterFile":
        """Parse JSON. Raises ClusterError or PlanError naming the field."""
        if not isinstance(content, dict):
            raise ClusterError("it is not a JSON object")
        if content.get("format") not in (FORMAT, FORMAT_MORE):
            found = reprlib.repr(content.get("format"))
            raise ClusterError(f"format is {found}, this edgellm reads {FORMAT} and {FORMAT_MORE}")
        more = {"more"} if content["format"] == FORMAT_MORE else set()
        _check_keys({"tag": None, **content}, {*_FIELDS, "tag", *more}, "it")
        if not isinstance(content["boards"], list):
            raise ClusterError("boards is not a list")
        tag = _tag(content.get("tag"))
        for board in content["boards"]:
            if not isinstance(board, dict):
                raise ClusterError(f"boards: {reprlib.repr(board)} is not an object")
            _check_keys(board, {"name", "host", "port", "ssh"}, "boards: one")
            if board["ssh"] is not None:
                if not isinstance(board["ssh"], dict):
                    raise ClusterError(f"boards: ssh is {reprlib.repr(board['ssh'])}, expected an object or null")
                _check_keys(board["ssh"], {"host", "user", "port", "key"}, "boards: ssh")
        return cls(
            model=content["model"],
            model_dir=content["model_dir"],
            boards=tuple(
                Board(**{**b, "ssh": None if b["ssh"] is None else SshAccess(**b["ssh"])}) for b in content["boards"]
            ),
            plan=Plan.from_dict(content["plan"]),
            tls=content["tls"],
            tag=tag,
            created=content["created"],
            more=_more(content["more"]) if more else (),
        )


def find(explicit: str | None = None) -> Path | None:
    """Return the cluster file to use: `explicit`, else $EDGELLM_CLUSTER, else ./cluster.json, else the user's; None if
    there is none.

    The first two are taken at their word: if nothing is there, `read` says so.
    """
    named = explicit or os.environ.get(VARIABLE)
    if named:
        return Path(named)
    for path in (Path(FILE_NAME), default_path()):
        if path.exists():
            return path
    return None


def default_path() -> Path:
    """Return the cluster file in the user's config folder, there or not."""
    import platformdirs

    return Path(platformdirs.user_config_dir("edgellm")) / FILE_NAME


def _stored(model_dir: Path, folder: Path) -> str:
    """Return a path relative to the cluster file's folder where that folder, or the one above, holds it: the two can
    then be moved together."""
    above = folder.parent if folder.parent != folder.parent.parent else folder  # not the whole disk
    if model_dir.is_relative_to(folder) or model_dir.is_relative_to(above):
        return os.path.relpath(model_dir, folder)
    return str(model_dir)


def _at(path: Path | str, folder: str) -> Path:
    """Return a folder as a cluster file that lies at `path` means it."""
    return Path(os.path.normpath(Path(path).absolute().parent / folder))


def _more(content: object) -> tuple[FurtherModel, ...]:
    if not isinstance(content, list):
        raise ClusterError(f"more is {reprlib.repr(content)}, expected a list")
    found = []
    for one in content:
        if not isinstance(one, dict):
            raise ClusterError(f"more: {reprlib.repr(one)} is not an object")
        _check_keys(one, {"model", "model_dir", "plan", "tag"}, "more: one")
        found.append(FurtherModel(one["model"], one["model_dir"], Plan.from_dict(one["plan"]), _tag(one["tag"])))
    return tuple(found)


def _tag(tag: object) -> dict[str, str] | None:
    if tag is None:
        return None
    if not isinstance(tag, dict):
        raise ClusterError(f"tag is {reprlib.repr(tag)}, expected an object or null")
    _check_keys(tag, {"certificate", "signature"}, "tag")
    return tag


def _check_model(model: object, plan: Plan, tag: dict[str, str] | None) -> None:
    if model != plan.model:
        raise ClusterError(f"model is {reprlib.repr(model)}, the plan's is {plan.model!r}")
    for name, most in () if tag is None else (("certificate", 8192), ("signature", 256)):
        value = tag.get(name) if tag else None
        if not (isinstance(value, str) and value.isascii() and 0 < len(value) <= most):
            raise ClusterError(f"tag: {name} is {reprlib.repr(value)}, expected a text of up to {most} letters")


def _check_folder(name: str, value: object) -> None:
    if not (isinstance(value, str) and 0 < len(value) <= 4096 and "\0" not in value):
        raise ClusterError(f"{name} is {reprlib.repr(value)}, expected a folder")


def _check_keys(content: dict[str, Any], expected: set[str], what: str) -> None:
    if missing := sorted(expected - content.keys()):
        raise ClusterError(f"{what} lacks {', '.join(missing)}")
    if extra := sorted(content.keys() - expected):
        raise ClusterError(f"{what} has an unknown field {reprlib.repr(extra[0])}")
