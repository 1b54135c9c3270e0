"""The wheelhouse of a kind of board: every wheel it needs, so that it needs neither a compiler nor internet.

    wheels/aarch64-py3.11/0.1.0-1f2e3d4c/      the folder's name is the wheelhouse's id; aarch64-py3.11-generic, too,
                                               has torch and transformers for models without native sections, and
                                               aarch64-py3.11-serving what `edgellm serve` needs
        *.whl                                  edgellm's own, its dependencies', and pip's
        requirements.txt                       all but pip, with hashes
        wheelhouse.json                        what it was made of

On a board: `python -m pip install --no-index --find-links FOLDER --require-hashes -r FOLDER/requirements.txt`, with
PYTHONPATH=FOLDER/pip-….whl where there is no pip.
"""

import hashlib
import json
import os
import re
import shutil
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgellm import __version__
from edgellm.controller import installed, wheels
from edgellm.controller.wheels import Target, Wheels, alone_in, check_wheel
from edgellm.errors import UsageError, WheelhouseError
from edgellm.files import fsync_folder, sha256_of, write_atomically

MACHINES = tuple(wheels.ELF_MACHINES)
PIP = "pip>=25,<28"  # fetched for the boards
_RECIPE = 2  # counts up when the same inputs make another wheelhouse
_STAMP = "wheelhouse.json"
_KEEP = 4  # of one kind; they share their dependencies' bytes
_LEAST_BYTES = 700 << 20  # free on the disk before wheels are fetched; a generic wheelhouse takes a third of it
CONSTRAINTS = "constraints.txt"  # the exact versions that boards install
_SOURCES = ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE")  # and edgellm/


@dataclass(frozen=True)
class Wheelhouse:
    """A finished wheelhouse; `pip` is the name of pip's wheel in it, `wheels` all wheels' sizes in bytes by name, and
    `installed_bytes` what they take on a board."""

    id: str
    folder: Path
    wheels: dict[str, int]
    pip: str
    installed_bytes: int
    changed: bool = False

    def libraries(self) -> str:
        """An id of all that it has but edgellm itself, for its kind of board. Versions with the same one can share
        these files on a board. Raises OSError."""
        lines = (self.folder / "requirements.txt").read_text().splitlines()
        others = [line for line in lines if not line.startswith("edgellm==")]
        return hashlib.sha256("\n".join([self.folder.parent.name, *others]).encode()).hexdigest()[:16]

    def to_dict(self) -> dict:
        return {
            "changed": self.changed, "folder": str(self.folder), "id": self.id, "libraries": self.libraries(),
            "pip": self.pip, "wheels": len(self.wheels), "bytes": sum(self.wheels.values()),
            "installed_bytes": self.installed_bytes,
        }  # fmt: skip


@dataclass(frozen=True)
class _Inputs:
    """Hashes of what a wheelhouse is made of: the sources of edgellm's own wheel, and what the others follow from."""

    sources: str
    dependencies: str


def make(
    source: Path, machine: str, python: str, *, generic: bool = False, serving: bool = False,
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda what: None, run: wheels.Run = wheels.run,
) -> Wheelhouse:  # fmt: skip
    """Return the wheelhouse of `source` for a machine and a Python ("3.11").

    `source` is a repository, from which edgellm's own wheel is built, or the folder of an installed edgellm's
    playbooks, in which case the package index has the wheel. Make the wheelhouse if it isn't there; resolve
    dependencies again only if pyproject.toml or constraints.txt changed them. With `generic` it has torch and
    transformers, with `serving` what `edgellm serve` needs. Raise UsageError for a target that edgellm doesn't run on,
    WheelhouseError for wheels that can't be fetched or built; nothing half-made is left.
    """
    source, cache = Path(source).resolve(), cache or _cache_folder()
    extras = [name for name, wanted in (("generic", generic), ("serving", serving)) if wanted]
    dependencies, least = _project(source, extras)
    constraints = _constraints(source)
    target = _target(machine, python, least)
    kind = cache / "wheels" / f"{target.machine}-py{target.python}{''.join(f'-{name}' for name in extras)}"
    try:
        kind.mkdir(parents=True, exist_ok=True)
        with alone_in(kind):
            inputs = _inputs(source, [*dependencies, PIP], constraints, target)
            earlier = _earlier(kind)
            for stamped, house in earlier:
                if stamped == inputs:
                    return house
            alike = [h for stamped, h in earlier if stamped.dependencies == inputs.dependencies]
            workshop = Wheels(cache / "tools", progress, run)
            made = _make(source, target, [*dependencies, PIP], constraints, inputs, kind, alike, workshop)
            for _, house in earlier[_KEEP - 1 :]:
                if house.folder != made.folder:
                    shutil.rmtree(house.folder, ignore_errors=True)
            return made
    except OSError as e:
        raise WheelhouseError(f"{e.filename or kind}: {e.strerror or e}; the wheels need a place there") from None


def _cache_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgellm"))


def _project(source: Path, extras: Sequence[str]) -> tuple[list[str], tuple[int, int]]:
    """Return (dependencies with those of `extras`, least Python) from edgellm's pyproject.toml."""
    path = source / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text())["project"]
        if project["name"] != "edgellm":
            raise UsageError(f"{path} is {project['name']}'s. Give the repository of edgellm with --source.")
        least = re.fullmatch(r">=(\d+)\.(\d+)", project["requires-python"])
        if least is None:
            raise ValueError(f"requires-python is {project['requires-python']}, expected >=MAJOR.MINOR")
        more = _of_extras(project["optional-dependencies"], extras)
        return [*project["dependencies"], *more], (int(least[1]), int(least[2]))
    except FileNotFoundError:
        raise UsageError(f"{source} has no pyproject.toml. Give the repository of edgellm with --source.") from None
    except (ValueError, KeyError, TypeError) as e:
        raise WheelhouseError(f"{path}: {e!r}; expected edgellm's own project") from None


def _of_extras(known: Mapping[str, list[str]], extras: Sequence[str]) -> Iterator[str]:
    """Yield the requirements of extras, and in place of "edgellm[NAME]" those of that extra."""
    for name in extras:
        for requirement in known[name]:
            if own := re.fullmatch(r"edgellm\[([a-z,]+)\]", requirement):
                yield from _of_extras(known, own[1].split(","))
            else:
                yield requirement


def _constraints(source: Path) -> list[str]:
    try:
        lines = (source / CONSTRAINTS).read_text().splitlines()
    except FileNotFoundError:
        raise UsageError(f"{source} has no {CONSTRAINTS}. Give the repository of edgellm with --source.") from None
    return [line for line in lines if line and not line.startswith("#")]


def _target(machine: str, python: str, least: tuple[int, int]) -> Target:
    version = re.fullmatch(r"(\d)\.(\d{1,2})", python)
    if machine not in MACHINES:
        raise UsageError(f"the machine is {machine!r}, edgellm runs on {' and '.join(MACHINES)}")
    if version is None:
        raise UsageError(f"Python is {python!r}, expected two numbers such as 3.11")
    if (int(version[1]), int(version[2])) < least:
        raise UsageError(f"Python {python} is older than edgellm's oldest, {least[0]}.{least[1]}")
    return Target(machine, python)


def _is_repository(source: Path) -> bool:
    return (source / "CMakeLists.txt").is_file() or (source / "edgellm").is_dir()


def _inputs(source: Path, requirements: list[str], constraints: list[str], target: Target) -> _Inputs:
    digest = hashlib.sha256(f"{_RECIPE} {target} {'' if target.is_machine else wheels.ZIG} {wheels.GLIBC}\0".encode())
    if _is_repository(source):
        for path in sorted(_source_files(source)):
            digest.update(f"{path.relative_to(source)}\0{sha256_of(path)}\0".encode())
    else:  # a version number doesn't say which build of it this is
        digest.update(json.dumps([__version__, installed.modules()], sort_keys=True).encode())
    others = json.dumps([_RECIPE, str(target), wheels.GLIBC, requirements, constraints])
    return _Inputs(digest.hexdigest(), hashlib.sha256(others.encode()).hexdigest())


def _source_files(source: Path) -> Iterator[Path]:
    yield from (path for name in _SOURCES if (path := source / name).is_file())
    for folder, folders, names in os.walk(source / "edgellm"):
        folders[:] = [f for f in folders if f != "__pycache__"]
        yield from (Path(folder) / n for n in names if not n.endswith((".pyc", ".so")))


def _earlier(kind: Path) -> list[tuple[_Inputs, Wheelhouse]]:
    """The whole wheelhouses of a kind, newest first."""
    found = []
    for stamp in kind.glob(f"*/{_STAMP}"):
        if stamp.parent.suffix == ".part":
            continue
        try:
            told = json.loads(stamp.read_text())
            house = Wheelhouse(stamp.parent.name, stamp.parent, told["wheels"], told["pip"], told["installed_bytes"])
            if _is_whole(house.folder, house.wheels):
                found.append((stamp.stat().st_mtime_ns, _Inputs(**told["inputs"]), house))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # damaged: made again
    return [(inputs, house) for _, inputs, house in sorted(found, key=lambda f: f[0], reverse=True)]


def _is_whole(folder: Path, sizes: dict[str, int]) -> bool:
    def size(path: Path) -> int:
        return path.stat().st_size if path.is_file() else -1

    return size(folder / "requirements.txt") > 0 and all(size(folder / name) == n for name, n in sizes.items())


def _make(
    source: Path, target: Target, requirements: list[str], constraints: list[str], inputs: _Inputs, kind: Path,
    alike: list[Wheelhouse], workshop: Wheels,
) -> Wheelhouse:  # fmt: skip
    for left in kind.glob("*.part"):  # by one that was killed
        shutil.rmtree(left)
    part, work = kind / "new.part", kind / "work.part"
    try:
        part.mkdir()
        work.mkdir()
        if _is_repository(source):
            own = workshop.build(source, target, part, work)
        else:
            own = workshop.fetch_own(__version__, target, part, work)
        check_wheel(own, target.machine)
        if not _is_repository(source):
            _check_same_code(own)
        if _inputs(source, requirements, constraints, target) != inputs:
            raise WheelhouseError(f"{source} was changed while edgellm was built from it. Run this again.")
        if alike:
            for name in alike[0].wheels:
                if not name.startswith("edgellm-"):
                    _link(alike[0].folder / name, part / name)
        else:
            free = shutil.disk_usage(part).free
            if free < _LEAST_BYTES:
                raise WheelhouseError(
                    f"{kind} has {free / 1e6:.0f} MB free, fetching the boards' wheels takes {_LEAST_BYTES / 1e6:.0f} "
                    "MB. Free some space, or set XDG_CACHE_HOME to another disk."
                )
            workshop.fetch(pins := workshop.resolve(requirements, constraints, target, work), target, part, work)
            _check_fetched(pins, part)
        return _finish(part, kind, inputs)
    finally:
        for folder in (part, work):
            shutil.rmtree(folder, ignore_errors=True)


def _check_same_code(wheel: Path) -> None:
    """Raise WheelhouseError unless a wheel has the Python modules of the edgellm that runs: boards and controller must
    be of one build."""
    with zipfile.ZipFile(wheel) as archive:
        records = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD")]
        told = installed.modules("".join(archive.read(name).decode() for name in records))
    here = installed.modules()
    if other := sorted(name for name in told.keys() | here.keys() if told.get(name) != here.get(name)):
        raise WheelhouseError(
            f"the package index has another build of edgellm {__version__} than the one installed here: {other[0]} "
            f"differs ({len(other)} of {len(here)} files). Install edgellm again from that index."
        )


def _link(path: Path, new: Path) -> None:
    try:
        os.link(path, new)
    except OSError:  # a file system without links
        shutil.copy2(path, new)


def _check_fetched(pins: list[str], folder: Path) -> None:
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    there = {plain(p.name.split("-")[0]) for p in folder.glob("*.whl")}
    if missing := [p for p in pins if plain(re.split(r"[=\[ ]", p)[0]) not in there]:
        raise WheelhouseError(f"pip fetched no wheel of {missing[0]} ({len(missing)} of {len(pins)} are missing)")


def _unpacked_bytes(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _finish(part: Path, kind: Path, inputs: _Inputs) -> Wheelhouse:
    """Name the wheelhouse by what is in it, and move it into place."""
    files = sorted(part.glob("*.whl"))
    hashes = {p.name: sha256_of(p) for p in files}
    named = {p.name.split("-")[0].lower(): p.name for p in files}
    lines = [
        "{}=={} --hash=sha256:{}".format(*name.split("-")[:2], sha256)
        for name, sha256 in hashes.items() if name != named["pip"]
    ]  # fmt: skip
    (part / "requirements.txt").write_text("".join(f"{line}\n" for line in lines))
    digest = hashlib.sha256("".join(f"{name} {sha256}\n" for name, sha256 in hashes.items()).encode()).hexdigest()
    version = named["edgellm"].split("-")[1]
    folder = kind / f"{version}-{digest[:8]}"
    house = Wheelhouse(
        folder.name, folder, {p.name: p.stat().st_size for p in files}, named["pip"],
        sum(_unpacked_bytes(p) for p in files if p.name != named["pip"]), changed=True,
    )  # fmt: skip
    told = {k: v for k, v in asdict(house).items() if k in ("wheels", "pip", "installed_bytes")}
    stamp = json.dumps({"inputs": asdict(inputs), **told}, indent=1)
    write_atomically(part / _STAMP, stamp.encode())
    if _is_whole(folder, house.wheels):  # of other sources that make the same wheels
        write_atomically(folder / _STAMP, stamp.encode())
        return replace(house, changed=False)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(part, folder)
    fsync_folder(kind)
    return house
