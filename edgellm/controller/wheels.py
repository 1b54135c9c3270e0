"""Wheels for another machine's Python: resolves and fetches them, and builds edgellm's own.

uv, which the extra "controller" installs, resolves for a machine or Python that isn't this one (pip evaluates markers
for itself). zig compiles the kernels for another machine; it is fetched from the package index when it is first needed,
and kept in the cache folder.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import WheelhouseError
from edgellm.files import locked

GLIBC = (2, 28)  # Debian 10's: the newest that current wheels of NumPy and torch need
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
UV = "uv==0.13.9"  # as the extra "controller" has it
ZIG = "ziglang==0.17.1"  # exactly, since it decides the bytes of our wheel
_LOCK_TIMEOUT_S = 3600.0
_RESOLVE_TIMEOUT_S, _BUILD_TIMEOUT_S, _FETCH_TIMEOUT_S = 600.0, 1200.0, 3600.0
_EPOCH = "315532800"  # 1980, where zip files begin
_CUDA = re.compile(r"(nvidia|cuda)-|triton==")
_OFFLINE = re.compile(
    r"connection broken|error sending request|Failed to fetch|timed out|name resolution|Name or service not known|"
    r"Network is unreachable|dns error|Connection refused|Cannot connect to proxy"
)
_ONLY_FOR = re.compile(r"only found wheels for `([^`]+)` .*?tags?: (.*)")

Run = Callable[..., subprocess.CompletedProcess]


def run(command: list[str], env: dict[str, str], cwd: Path, timeout_s: float) -> subprocess.CompletedProcess:
    """Run a command to its end, without input, its output kept as text."""
    return subprocess.run(
        command, env=env, cwd=cwd, timeout=timeout_s, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace",
    )  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A board's machine and Python, for example aarch64 and 3.11."""

    machine: str
    python: str

    def __str__(self) -> str:
        return f"{self.machine} and Python {self.python}"

    @property
    def is_machine(self) -> bool:
        """Whether this computer can build for it without cross-compiling."""
        return sys.platform == "linux" and platform.machine() == self.machine

    @property
    def is_here(self) -> bool:
        """Whether it is this very interpreter's kind, so that pip can resolve for it."""
        return self.is_machine and self.python == f"{sys.version_info.major}.{sys.version_info.minor}"

    @property
    def pip_options(self) -> list[str]:
        """What makes pip choose wheels for it; pip doesn't know that a newer platform takes older ones' wheels."""
        platforms = [f"manylinux_2_{minor}" for minor in range(GLIBC[1], 4, -1)] + ["manylinux2014", "linux"]
        options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", self.python]
        return options + [word for p in platforms for word in ("--platform", f"{p}_{self.machine}")]


class Wheels:
    """Resolves, fetches and builds. `tools` is a folder of the cache; `run` runs commands; `progress(what)` is told
    what begins. All raise WheelhouseError in a sentence."""

    def __init__(self, tools: Path, progress: Callable[[str], None] = lambda what: None, run: Run = run):
        self._tools, self._progress, self._run = tools, progress, run

    def resolve(self, requirements: list[str], constraints: list[str], target: Target, work: Path) -> list[str]:
        """Return "name==version" of every package that `requirements` need on the target, in the versions that
        `constraints` name; never a CUDA build of torch."""
        self._progress(f"resolve packages for {target}")
        wanted = work / "requirements.in"
        wanted.write_text("".join(f"{r}\n" for r in requirements))
        exact = work / "constraints.txt"
        exact.write_text("".join(f"{c}\n" for c in constraints))
        if target.is_here:
            report = work / "report.json"
            command = [
                *_pip("install"), "--dry-run", "--ignore-installed", "--quiet", "--report", str(report),
                "--target", str(work / "nowhere"), *target.pip_options, "-c", str(exact), "-r", str(wanted),
            ]  # fmt: skip
            self._do(command, work, _RESOLVE_TIMEOUT_S, target)
            found = [i["metadata"] for i in json.loads(report.read_text())["install"]]
            pins = [f"{m['name']}=={m['version']}" for m in found]
        else:
            command = [
                uv(), "pip", "compile", "--quiet", "--no-header",
                "--no-annotate", "--only-binary", ":all:", "--python-version", target.python,
                "--python-platform", f"{target.machine}-manylinux_{GLIBC[0]}_{GLIBC[1]}", "-c", str(exact), str(wanted),
            ]  # fmt: skip
            told = self._do(command, work, _RESOLVE_TIMEOUT_S, target, UV_PYTHON_DOWNLOADS="never").stdout
            pins = [line.split("#")[0].split(";")[0].strip() for line in told.splitlines()]
        pins = [p for p in pins if p]
        if cuda := [p for p in pins if _CUDA.match(p)]:
            raise WheelhouseError(
                f"torch for {target} comes with CUDA here: {len(cuda)} packages such as {cuda[0]}, gigabytes that no "
                "board can use. Set PIP_EXTRA_INDEX_URL and UV_EXTRA_INDEX_URL to an index with CPU builds of torch."
            )
        return pins

    def fetch(self, pins: list[str], target: Target, into: Path, work: Path) -> None:
        """Put the wheels of these "name==version" into a folder."""
        self._progress(f"fetch {pins[0] if len(pins) == 1 else f'{len(pins)} wheels'} for {target}")
        wanted = work / "pins.txt"
        wanted.write_text("".join(f"{p}\n" for p in pins))
        command = [
            *_pip("download"), "--no-deps", "--quiet", "--progress-bar=off", *target.pip_options,
            "--dest", str(into), "-r", str(wanted),
        ]  # fmt: skip
        self._do(command, work, _FETCH_TIMEOUT_S, target)

    def fetch_own(self, version: str, target: Target, into: Path, work: Path) -> Path:
        """Put edgellm's own wheel of this version into a folder, from the package index."""
        self.fetch([f"edgellm=={version}"], target, into, work)
        found = list(into.glob(f"edgellm-{version}-*.whl"))
        if len(found) != 1:
            there = ", ".join(sorted(p.name for p in into.iterdir())) or "nothing"
            raise WheelhouseError(f"pip should have fetched edgellm {version} for {target.machine}, not {there}")
        return found[0]

    def build(self, source: Path, target: Target, into: Path, work: Path, *, playbooks: bool = False) -> Path:
        """Build edgellm's own wheel from its repository; the same files give the same bytes. Boards need no
        playbooks in it."""
        self._progress(f"build edgellm for {target.machine}")
        tag = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{target.machine}"
        defines = {"EDGELLM_PLAYBOOKS": "ON" if playbooks else "OFF"}
        settings = {"wheel.reproducible": "true"}
        env = {"SOURCE_DATE_EPOCH": _EPOCH, "_PYTHON_HOST_PLATFORM": tag}
        if not target.is_machine:
            zig = self._tool(ZIG, target, work) / "ziglang" / "zig"
            env |= {
                "LDFLAGS": "-s",
                "ZIG_GLOBAL_CACHE_DIR": str(self._tools / "zig-cache"),
                "ZIG_LOCAL_CACHE_DIR": str(work / "zig-cache"),
            }
            defines |= cross_defines(zig_compiler(zig, target.machine), target.machine)
            settings["install.strip"] = "false"  # this machine's strip doesn't know that machine's files
        settings |= {f"cmake.define.{name}": value for name, value in defines.items()}
        into.mkdir(exist_ok=True)
        options = [f"--config-settings={name}={value}" for name, value in settings.items()]
        command = [*_pip("wheel"), "--no-deps", "--quiet", *options, "--wheel-dir", str(into)]
        self._do([*command, str(source)], work, _BUILD_TIMEOUT_S, target, **env)
        made = list(into.glob(f"edgellm-*-py3-none-{tag}.whl"))
        if len(made) != 1:
            there = ", ".join(sorted(p.name for p in into.iterdir())) or "nothing"
            raise WheelhouseError(f"edgellm's wheel for {target.machine} should end in py3-none-{tag}.whl, not {there}")
        return made[0]

    def _tool(self, requirement: str, target: Target, work: Path) -> Path:
        """The folder in which a tool is installed, fetched if need be."""
        folder = self._tools / re.sub(r"[^\w.]+", "-", requirement)
        self._tools.mkdir(parents=True, exist_ok=True)
        with alone_in(self._tools):
            if not folder.is_dir():
                self._progress(f"fetch {requirement}")
                part = folder.with_name(f"{folder.name}.part")
                shutil.rmtree(part, ignore_errors=True)
                command = [*_pip("install"), "--no-deps", "--only-binary=:all:", "--quiet", "--target", str(part)]
                self._do([*command, requirement], work, _FETCH_TIMEOUT_S, target)
                part.rename(folder)
        return folder

    def _do(self, command: list[str], work: Path, timeout_s: float, target: Target, **env: str):
        """Run a command in `work`, where its temporary files go too; raises WheelhouseError if it fails."""
        ours = build_environment() | {"TMPDIR": str(work), "LC_ALL": "C.UTF-8", **env}
        what = f"{Path(command[0]).name} {' '.join(command[1:4])}"
        try:
            done = self._run(command, ours, work, timeout_s)
        except subprocess.TimeoutExpired:
            raise WheelhouseError(
                f"'{what}' took more than {timeout_s:.0f} s. Check the network, then run this again."
            ) from None
        except OSError as e:
            raise WheelhouseError(f"{command[0]}: {e.strerror or e}") from None
        if done.returncode:
            raise WheelhouseError(why(f"{done.stdout}\n{done.stderr}", what, target))
        return done


def uv() -> str:
    """Return the path of uv; raise WheelhouseError if it isn't installed."""
    try:
        from uv import find_uv_bin

        return find_uv_bin()
    except (ImportError, FileNotFoundError):
        install = f"{sys.executable} -m pip install '{UV}'"
        raise WheelhouseError(f"{sys.executable} has no uv. Install it: {install}") from None


def zig_compiler(zig: Path, machine: str) -> list[str]:
    """Return the command that compiles C++ for boards of a machine, by the zig at this path."""
    # Without C++'s library, which the kernels don't use and zig would take a minute to compile.
    return [str(zig), "c++", "-nostdlib++", "-target", f"{machine}-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"]


def cross_defines(compiler: list[str], machine: str) -> dict[str, str]:
    """Return CMake's variables that make it compile for another machine with this command."""
    return {
        "CMAKE_CXX_COMPILER": ";".join(compiler), "CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": machine,
    }  # fmt: skip


def build_environment() -> dict[str, str]:
    """Return this process's environment without flags for compilers: those meant for this machine (-march=native, say)
    must not reach what a board gets."""
    flags = re.compile(r"C(XX|PP)?FLAGS$|LDFLAGS$|CMAKE_|SKBUILD_")
    return {name: value for name, value in os.environ.items() if not flags.match(name)}


def _pip(command: str) -> list[str]:
    return [sys.executable, "-m", "pip", command, "--disable-pip-version-check", "--no-input"]


def why(output: str, what: str, target: Target) -> str:
    """Return what the output of a failed pip or uv means, in a sentence."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if "No module named pip" in output:
        return f"{sys.executable} has no pip. Install it: {sys.executable} -m ensurepip"
    if full := next((line for line in lines if "No space left on device" in line), None):
        return f"the disk is full ({full[-120:]}). Free some space, or set XDG_CACHE_HOME to another disk."
    if only := _ONLY_FOR.search(" ".join(lines)):
        package, pythons = only[1], sorted({int(n) for n in re.findall(r"`cp3(\d+)`", only[2]) if int(n) >= 11})
        use = f"use an image with Python 3.{pythons[0]} to 3.{pythons[-1]}" if pythons else "none is for Linux"
        return f"there is no {package} wheel for {target}; {use}"
    if offline := list(_OFFLINE.finditer(output)):
        return (
            f"the package index can't be reached ({offline[-1][0]}), and the wheels of {target} are not in the cache "
            "yet. Connect this machine to the network (the boards need none), or set PIP_INDEX_URL and "
            "UV_DEFAULT_INDEX to a mirror."
        )
    causes = [line for line in lines if re.match(r"(error|cause|ERROR|CMake Error|×|╰)\W", line)] or lines[-1:]
    return f"'{what}' failed for {target}: {' '.join(causes[:3])[:400] or 'it said nothing'}"


def check_library(library: bytes, machine: str) -> None:
    """Raises WheelhouseError unless this shared library is for `machine` and a glibc that boards have."""
    found = int.from_bytes(library[18:20], "little")
    if library[:4] != b"\x7fELF" or found != ELF_MACHINES[machine]:
        raise WheelhouseError(f"libedgellm was built for ELF machine {found}, {machine} is {ELF_MACHINES[machine]}")
    needed = max([(int(a), int(b)) for a, b in re.findall(rb"GLIBC_(\d+)\.(\d+)", library)], default=GLIBC)
    if needed > GLIBC:
        raise WheelhouseError(
            f"libedgellm built here needs glibc {needed[0]}.{needed[1]}, boards are promised {GLIBC[0]}.{GLIBC[1]}. "
            "Build it with an older compiler or system."
        )


def check_wheel(wheel: Path, machine: str) -> None:
    """Raise WheelhouseError unless edgellm's wheel has the native library for `machine`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            check_library(archive.read("edgellm/kernels/libedgellm.so"), machine)
    except (zipfile.BadZipFile, KeyError) as e:
        raise WheelhouseError(f"edgellm's wheel for {machine} lacks its library: {e}") from None


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold `folder` alone; wait for another edgellm that works there, and raise WheelhouseError if it never ends."""
    try:
        with locked(folder, _LOCK_TIMEOUT_S):
            yield
    except TimeoutError as e:
        raise WheelhouseError(str(e)) from None
