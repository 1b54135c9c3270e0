"""Builds the kernels for tests: with sanitizers for this processor, and for aarch64 under an emulator."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgellm.kernels import library

KERNELS = Path(library.__file__).parent
HERE = Path(__file__).parent
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", f"-I{KERNELS}"]
# Without optimization: with it, sanitizers take minutes to compile.
SANITIZED = ["-O0", "-g1", "-fPIC", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
COMMON = ("libedgellm", "target", "gemm_scalar", "pool", "section", "section_run", "ops_base")
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = [*(f"-mavx512{x}" for x in ("f", "bw", "dq", "vl", "vnni")), *_AVX2]
_X86_64 = {"gemm_avx2": _AVX2, "ops_avx2": _AVX2, "gemm_avx512vnni": _AVX512, "ops_avx512": _AVX512}
_AARCH64 = {"gemm_neon": [], "gemm_dotprod": []}


def available() -> list[str]:
    """The instruction sets that this processor has; those of aarch64 run under qemu."""
    found = []
    for name in ("avx512vnni", "avx2", "dotprod", "neon", "scalar"):
        try:
            library.use_target(name)
            found.append(name)
        except ValueError:
            continue
    library.use_target(None)
    return found


def needs(tool: str) -> None:
    """Skip where a tool isn't installed; where CI installs it, that is a failure."""
    if shutil.which(tool) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{tool} is not installed")


@dataclass(frozen=True)
class Library:
    """The kernels' object files in `folder`, and how they were compiled."""

    folder: Path
    compiler: str
    flags: tuple[str, ...]

    @classmethod
    def build(cls, folder: Path, compiler: str, flags: list[str], machine: str) -> "Library":
        """All of the kernels that a machine has."""
        needs(compiler)
        own = {"x86_64": _X86_64, "aarch64": _AARCH64}.get(machine, {})
        flags = [*FLAGS, *flags, *(["-DEDGELLM_X86_64"] if own is _X86_64 else [])]
        for name, more in {**dict.fromkeys(COMMON, []), **own}.items():
            command = [compiler, *flags, *more, "-c", KERNELS / f"{name}.cpp", "-o", folder / f"{name}.o"]
            subprocess.run(command, check=True)
        return cls(folder, compiler, tuple(flags))

    def program(self, source: Path) -> Path:
        """A program of this file and the kernels."""
        return self._link(self.folder / source.stem, source)

    def shared(self) -> Path:
        """libedgellm.so."""
        return self._link(self.folder / "libedgellm.so", "-shared")

    def _link(self, into: Path, *more) -> Path:
        if not into.exists():
            objects = sorted(self.folder.glob("*.o"))
            subprocess.run([self.compiler, *self.flags, *more, *objects, "-lpthread", "-o", into], check=True)
        return into


def run(*command) -> list[str]:
    """The lines that a program prints; fails with what it says if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()
