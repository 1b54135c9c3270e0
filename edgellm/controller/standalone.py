"""A CPython for boards that have none which is new enough: python-build-standalone's, fetched by uv and trimmed.

    pythons/aarch64/python-3.13.14-20260805-f1cda716/
        python-3.13.14-20260805.tar.gz      what a board unpacks into /opt/edgellm/python-3.13.14-20260805
        python.json                         its SHA-256 and sizes

python.json beside this module names the archives and their SHA-256, in the format of uv's own list. An owner may set
UV_PYTHON_DOWNLOADS_JSON_URL to another such file, and UV_PYTHON_INSTALL_MIRROR to a mirror, as for uv itself.
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from edgellm.controller import wheels
from edgellm.errors import UsageError, WheelhouseError
from edgellm.files import fsync_folder, sha256_of, write_atomically

PINS = Path(__file__).with_name("python.json")
MACHINES = tuple(wheels.ELF_MACHINES)
_RECIPE = 1  # counts up when the same archive is trimmed in another way
_STAMP = "python.json"
_LEAST_BYTES = 300 << 20  # free on the disk before an archive is fetched
_FETCH_TIMEOUT_S = 3600.0
# Neither agents nor Ansible need these: tests, Tcl/Tk, what compiles extensions, and pip, which deploy brings.
_TRIMMED = re.compile(
    r"(include|share/man|lib/pkgconfig|lib/(lib)?(tcl|tk|itcl|tdbc|thread)[^/]*)(/|$)"
    r"|bin/(?!python(3(\.\d+)?)?$)"
    r"|lib/python3\.\d+/(test|idlelib|tkinter|turtledemo|turtle\.py|ensurepip|lib2to3|pydoc_data|config-[^/]+)(/|$)"
    r"|lib/python3\.\d+/(site-packages/|unittest/test/|ctypes/test/|lib-dynload/_(tkinter|test|xx|ctypes_test)[^/]*$)"
    r"|(.*/)?__pycache__(/|$)|.*\.a$"
)


@dataclass(frozen=True)
class Pin:
    """An archive of python-build-standalone: uv's key, such as cpython-3.13.14-linux-aarch64-gnu, and its SHA-256."""

    key: str
    version: str
    build: str
    sha256: str

    @property
    def name(self) -> str:
        """Its folder's name on a board."""
        return f"python-{self.version}-{self.build}" if self.build else f"python-{self.version}"


@dataclass(frozen=True)
class Standalone:
    """A trimmed CPython, ready to push: `archive` is the file's name in `folder`, `installed_bytes` what it takes on a
    board."""

    name: str
    version: str
    folder: Path
    archive: str
    sha256: str
    bytes: int
    installed_bytes: int
    changed: bool = False

    def to_dict(self) -> dict:
        """Return it for JSON, with `minor`, such as 3.13, for which its wheels must be."""
        return {**asdict(self), "folder": str(self.folder), "minor": ".".join(self.version.split(".")[:2])}


def make(
    machine: str, *, cache: Path | None = None, progress: Callable[[str], None] = lambda what: None,
    run: wheels.Run = wheels.run,
) -> Standalone:  # fmt: skip
    """Return the CPython for boards of a machine; fetch it if the cache doesn't have it.

    Raise UsageError for a machine that edgellm doesn't run on, WheelhouseError if it can't be fetched.
    """
    if machine not in MACHINES:
        raise UsageError(f"the machine is {machine!r}, edgellm runs on {' and '.join(MACHINES)}")
    pins = pins_file()
    pin = pinned(pins, machine)
    kind = (cache or _cache_folder()) / "pythons" / machine
    folder = kind / f"{pin.name}-{pin.sha256[:8]}-{_RECIPE}"
    try:
        kind.mkdir(parents=True, exist_ok=True)
        with wheels.alone_in(kind):
            if found := _finished(folder, pin):
                return found
            for left in kind.glob("*.part"):  # by one that was killed
                shutil.rmtree(left)
            free = shutil.disk_usage(kind).free
            if free < _LEAST_BYTES:
                raise WheelhouseError(
                    f"{kind} has {free / 1e6:.0f} MB free, fetching a Python takes {_LEAST_BYTES / 1e6:.0f} MB. Free "
                    "some space, or set XDG_CACHE_HOME to another disk."
                )
            part = kind / "new.part"
            part.mkdir()
            try:
                progress(f"fetch Python {pin.version} for {machine}")
                archive = _fetch(pin, pins, part / "work", run)
                made = _trim(archive, pin, part)
                shutil.rmtree(part / "work")
                for old in kind.iterdir():
                    if old.is_dir() and old != part:
                        shutil.rmtree(old)
                os.replace(part, folder)
                fsync_folder(kind)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            return Standalone(folder=folder, changed=True, **made)
    except OSError as e:
        raise WheelhouseError(f"{e.filename or kind}: {e.strerror or e}; a Python for the boards needs it") from None


def pins_file() -> Path:
    """Return the file that names the archives: ours, or the owner's. Raise UsageError if that isn't a local file."""
    named = os.environ.get("UV_PYTHON_DOWNLOADS_JSON_URL", "")
    if not named:
        return PINS
    url = urlsplit(named)
    path = Path(unquote(url.path) if url.scheme == "file" else named)
    if url.scheme not in ("", "file") or not path.is_file():
        raise UsageError(f"UV_PYTHON_DOWNLOADS_JSON_URL is {named!r}, expected a file on this machine")
    return path.absolute()


def pinned(path: Path, machine: str) -> Pin:
    """Return the newest CPython for Linux, glibc and this machine that a file in the format of uv's list names.

    Raise WheelhouseError if it can't be read, or names none from 3.11 on with a SHA-256.
    """
    try:
        found = [_pin(key, entry) for key, entry in json.loads(path.read_text()).items() if _suits(entry, machine)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise WheelhouseError(f"{path}: {e!r}; expected a list of Pythons in uv's format") from None
    if not found:
        raise WheelhouseError(f"{path} names no CPython 3.11 or newer for {machine} and glibc")
    return max(found, key=lambda pin: [int(n) for n in pin.version.split(".")])


def _suits(entry: dict, machine: str) -> bool:
    arch = {"family": machine, "variant": None}
    wanted = {"name": "cpython", "arch": arch, "os": "linux", "libc": "gnu", "prerelease": "", "variant": None}
    return all(entry[key] == value for key, value in wanted.items()) and (entry["major"], entry["minor"]) >= (3, 11)


def _pin(key: str, entry: dict) -> Pin:
    version = ".".join(str(int(entry[part])) for part in ("major", "minor", "patch"))
    pin = Pin(key, version, entry.get("build") or "", entry["sha256"])
    if not re.fullmatch(r"[0-9a-f]{64}", pin.sha256):
        raise ValueError(f"{key} has no SHA-256")
    if not re.fullmatch(r"\w*", pin.build) or not re.fullmatch(r"cpython-[\w.-]+", key):
        raise ValueError(f"{key}, build {pin.build!r}")
    return pin


def _cache_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgellm"))


def _finished(folder: Path, pin: Pin) -> Standalone | None:
    """Return what an earlier run has made, if it is whole."""
    try:
        made = Standalone(folder=folder, **json.loads((folder / _STAMP).read_text()))
        whole = made.name == pin.name and (folder / made.archive).stat().st_size == made.bytes
    except (OSError, ValueError, TypeError):
        return None
    return made if whole else None


def _fetch(pin: Pin, pins: Path, work: Path, run: wheels.Run) -> Path:
    """Return the archive, which uv has fetched and compared with its SHA-256."""
    work.mkdir()
    command = [
        wheels.uv(), "python", "install", "--no-config", "--no-bin", "--no-cache",
        "--install-dir", str(work / "installed"), "--python-downloads-json-url", str(pins), pin.key,
    ]  # fmt: skip
    # uv keeps the archive itself, and unpacks it elsewhere. It doesn't run it, so that it may be another machine's.
    ours = {"UV_PYTHON_CACHE_DIR": str(work / "archives"), "UV_PYTHON_DOWNLOADS": "manual", "TMPDIR": str(work)}
    env = {**os.environ, **ours, "NO_COLOR": "1"}
    try:
        done = run(command, env, work, _FETCH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise WheelhouseError(
            f"fetching {pin.key} took more than {_FETCH_TIMEOUT_S:.0f} s. Check the network, then run this again."
        ) from None
    archives = list((work / "archives").glob("*.tar.gz"))
    if len(archives) != 1 or sha256_of(archives[0]) != pin.sha256:  # uv keeps an archive with another hash, too
        raise WheelhouseError(why(done.stderr, pin))
    return archives[0]


def why(stderr: str, pin: Pin) -> str:
    """Return in a sentence or two why uv didn't fetch an archive."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("Hash mismatch" in line for line in lines):
        return (
            f"the archive of {pin.key} doesn't have the SHA-256 {pin.sha256[:12]}…. Correct the mirror that "
            "UV_PYTHON_INSTALL_MIRROR names, or remove what changes downloads on their way."
        )
    if any("No space left" in line for line in lines):
        return "the disk is full. Free some space, or set XDG_CACHE_HOME to another disk."
    causes = [line.removeprefix("cause:").strip() for line in lines if line.startswith("cause:")] or lines[-1:]
    cause = causes[-1][:200] if causes else "uv said nothing"
    return (
        f"Python {pin.version} can't be fetched ({cause}). Connect this machine to the internet (boards need none), or "
        "set UV_PYTHON_INSTALL_MIRROR to a mirror of python-build-standalone."
    )


def is_trimmed(path: str) -> bool:
    """Return whether boards don't need this path below python/."""
    return _TRIMMED.match(path) is not None


def _trim(archive: Path, pin: Pin, into: Path) -> dict:
    """Write the archive without what boards don't need, and its stamp; return the fields of a Standalone. The same
    archive gives the same bytes. Raise WheelhouseError if it isn't laid out as python-build-standalone's."""
    path = into / f"{pin.name}.tar.gz"
    installed_bytes = 0
    try:
        with (
            tarfile.open(archive) as old,
            open(path, "wb") as file,
            gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new,
        ):
            executable = f"python/bin/python{'.'.join(pin.version.split('.')[:2])}"
            library = _needs_library(old, executable)
            for info in old:
                top, _, rest = info.name.removeprefix("./").partition("/")
                if not rest or is_trimmed(rest) or (rest.startswith("lib/libpython") and not library):
                    continue
                points_to = PurePosixPath(rest).parent / (info.linkname if info.issym() else "")
                outside = ".." in PurePosixPath(rest).parts or os.path.normpath(points_to).startswith(("..", "/"))
                if top != "python" or outside:
                    raise WheelhouseError(f"{archive.name} has a path outside of python/: {info.name}")
                if not (info.isreg() or info.isdir() or info.issym()):
                    raise WheelhouseError(f"{archive.name}: {info.name} is no file, folder or symbolic link")
                info.uid = info.gid = 0
                info.uname = info.gname = "root"
                info.mode = 0o755 if info.mode & 0o100 else 0o644
                info.pax_headers = {}
                new.addfile(info, old.extractfile(info) if info.isreg() else None)
                installed_bytes += info.size
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, KeyError) as e:
        raise WheelhouseError(f"{archive.name} is no archive of python-build-standalone: {e}") from None
    made = {
        "name": pin.name, "version": pin.version, "archive": path.name, "sha256": sha256_of(path),
        "bytes": path.stat().st_size, "installed_bytes": installed_bytes,
    }  # fmt: skip
    write_atomically(into / _STAMP, json.dumps(made, indent=1).encode())
    return made


def _needs_library(archive: tarfile.TarFile, executable: str) -> bool:
    """Return whether the executable loads libpython; most don't, and it is as large as they are."""
    file = archive.extractfile(executable)
    return file is not None and b"libpython3" in file.read()
