"""Builds llama.cpp's RPC server and benchmarks from the source inside a PyPI sdist, once, into the user's cache."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from pathlib import Path

import psutil

from benchmarks.models import cache_folder, check_disk
from benchmarks.processes import BenchmarkError
from benchmarks.report import cores, cpu_model
from edgellm.console import Progress
from edgellm.files import sha256_of

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
PROGRAMS = ("ggml-rpc-server", "llama-bench", "llama-batched-bench", "llama-logits")
# As fast as it gets on a CPU: this machine's own instructions, tinyBLAS (GGML_LLAMAFILE) and OpenMP as by default.
FLAGS = {
    "CMAKE_BUILD_TYPE": "Release", "BUILD_SHARED_LIBS": "OFF", "GGML_NATIVE": "ON", "GGML_RPC": "ON",
    "GGML_LLAMAFILE": "ON", "GGML_CUDA": "OFF", "LLAMA_OPENSSL": "OFF", "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_SERVER": "OFF", "LLAMA_BUILD_UI": "OFF", "LLAMA_BUILD_EXAMPLES": "OFF", "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_COMMIT": "sdist", "LLAMA_BUILD_NUMBER": "0",  # it would name the checkout that the cache lies in
}  # fmt: skip
# Built with gcc 12 on a CPU with AMX it crashes, and its RPC workers use no AMX anyway.
_WITHOUT_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
_OURS = Path(__file__).with_name("llama_logits.cmake")  # a program of our own in its build
_SOURCE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
_DISK_BYTES = 1_500_000_000  # source and objects, while it builds
_FETCH_TIMEOUT_S, _CONFIGURE_TIMEOUT_S, _BUILD_TIMEOUT_S = 900.0, 600.0, 3 * 3600.0


def build() -> Path:
    """The folder with PROGRAMS, built now if it isn't there. Raises BenchmarkError."""
    flags, out = cmake_flags(_cpu_flags()), folder()
    if all((out / name).is_file() for name in PROGRAMS):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    check_disk(out.parent, _DISK_BYTES)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=out.parent) as temporary, Progress() as progress:
        work = Path(temporary)
        made, log = work / "made", out.parent / "llama.cpp-build.log"
        with open(log, "wb") as said:
            progress(f"fetch {PACKAGE} {VERSION}")
            source = unpack(fetch(work, said, log), work)
            progress("configure llama.cpp")
            command = [_tool("cmake"), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}", "-S", str(source)]
            command += ["-B", str(made), f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={_OURS}", *flags]
            _run(command, said, _CONFIGURE_TIMEOUT_S, log)
            command = [_tool("ninja"), "-C", str(made), f"-j{cores()}", *PROGRAMS]
            _run(command, said, _BUILD_TIMEOUT_S, log, lambda line: _compiled(line, progress))
        whole = work / "whole"
        whole.mkdir()
        for name in PROGRAMS:
            shutil.move(made / "bin" / name, whole / name)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(whole, out)
    return out


def folder() -> Path:
    """Where the programs are or will be. A native build is for one CPU: another one, or other flags, want another."""
    what = (cmake_flags(_cpu_flags()), cpu_model(), sorted(_cpu_flags()))
    return cache_folder() / f"llama.cpp-{VERSION}-{hashlib.sha256(repr(what).encode()).hexdigest()[:12]}"


def cmake_flags(cpu_flags: frozenset[str]) -> list[str]:
    """What cmake is told, for a CPU with these features."""
    found = dict(FLAGS)
    if "amx_tile" in cpu_flags:
        found |= {"CMAKE_C_FLAGS": _WITHOUT_AMX, "CMAKE_CXX_FLAGS": _WITHOUT_AMX}
    return [f"-D{name}={value}" for name, value in found.items()]


def fetch(work: Path, said, log: Path) -> Path:
    """The sdist, out of pip, checked; what pip says goes to the open file `said` at `log`.

    pip asks its build backend for its metadata, and nothing is built.
    """
    command = [
        sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--quiet",
        "--disable-pip-version-check", "--no-input", "--dest", str(work), f"{PACKAGE}=={VERSION}",
    ]  # fmt: skip
    _run(command, said, _FETCH_TIMEOUT_S, log)
    found = sorted(work.glob("*.tar.gz"))
    if len(found) != 1 or (digest := sha256_of(found[0])) != SDIST_SHA256:
        what = f"{len(found)} sdists, expected one" if len(found) != 1 else f"SHA-256 {digest}, expected {SDIST_SHA256}"
        raise BenchmarkError(f"pip download {PACKAGE}=={VERSION} gave {what}; it isn't used")
    return found[0]


def unpack(sdist: Path, work: Path) -> Path:
    """Unpack llama.cpp out of the sdist, and nothing else; returns its folder."""
    with tarfile.open(sdist) as archive:
        members = [m for m in archive if m.name.startswith(_SOURCE)]
        if not members:
            raise BenchmarkError(f"{sdist.name} has no {_SOURCE}")
        archive.extractall(work, members, filter="data")
    return work / _SOURCE


def compiler() -> str | None:
    """The first line of `c++ --version`; None without one."""
    path = shutil.which(os.environ.get("CXX", "c++"))
    if path is None:
        return None
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    return done.stdout.splitlines()[0] if done.stdout else None


def progress_of(line: str) -> tuple[int, int] | None:
    """(steps done, steps in all) of a line that ninja says; None of any other."""
    found = re.match(r"\[(\d+)/(\d+)\] ", line)
    return (int(found[1]), int(found[2])) if found else None


def _compiled(line: str, progress: Progress) -> None:
    if found := progress_of(line):
        progress("build llama.cpp (some minutes, once)", *found)


def _run(command: list[str], log, timeout_s: float, path: Path, heard=lambda line: None) -> None:
    """Run a step with its output in the log and, line by line, in `heard`. It and its children are gone at the end,
    whatever ends it."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, "NINJA_STATUS": "[%f/%t] "},
    )  # fmt: skip
    late = threading.Timer(timeout_s, _kill_all, [process])
    late.start()
    last = ""
    try:
        for raw in process.stdout:
            log.write(raw)
            line = raw.decode(errors="replace").strip()
            last = line or last
            heard(line)
        code = process.wait()
    finally:
        in_time = late.is_alive()
        late.cancel()
        _kill_all(process)
        process.wait()
        process.stdout.close()
    if code:
        why = f"ended with code {code}: {last[:200]}" if in_time else f"took over {timeout_s:g} s"
        raise BenchmarkError(f"{Path(command[0]).name} {why}. All that it said is in {path}.")


def _kill_all(process: subprocess.Popen) -> None:
    """End a process and all that it started: ninja gives each compiler a process group of its own."""
    if process.poll() is not None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        parent.suspend()  # so that it starts no more
        for child in parent.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        parent.kill()


def _tool(name: str) -> str:
    """cmake or ninja: beside this Python, where pip puts them, or on the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise BenchmarkError(f"{name} isn't there. Install what benchmarks need: pip install -e '.[bench]'")
    return found


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()
