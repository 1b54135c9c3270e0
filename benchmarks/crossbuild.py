"""The kernels' object files, built by CMake as for every wheel, with another compiler: zig's, for boards, or one with
sanitizers. Programs that look inside the kernels are linked to them."""

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from edgellm.controller import wheels

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "edgellm" / "kernels"
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
_PROGRAM = ["-std=c++17", "-O1", "-fno-exceptions", "-fno-rtti", f"-I{KERNELS}"]


@dataclass(frozen=True)
class Objects:
    """The kernels' object files under `folder`, and the command that links a program to them."""

    folder: Path
    linker: tuple[str, ...]

    @classmethod
    def build(cls, folder: Path, defines: dict[str, str], linker: list[str]) -> "Objects":
        """Build what isn't up to date of all the kernels in a folder, with these variables of CMake; raises
        CalledProcessError."""
        # What pip installs beside this Python counts, whether or not its folder is on PATH.
        search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        environment = wheels.build_environment() | {"PATH": search}
        cmake = shutil.which("cmake", path=search)
        if cmake is None:
            raise FileNotFoundError("cmake is not installed. Install it: pip install -e '.[dev]'")
        configure = [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *(f"-D{k}={v}" for k, v in defines.items())]
        quiet = {"env": environment, "stdout": subprocess.DEVNULL}
        if subprocess.run(configure, stderr=subprocess.DEVNULL, **quiet).returncode:
            # What the folder was built with may be gone since.
            subprocess.run([*configure, "--fresh"], check=True, **quiet)
        subprocess.run([cmake, "--build", folder, "--parallel", "2"], check=True, **quiet)
        return cls(folder, tuple(linker))

    @classmethod
    def of_boards(cls, folder: Path) -> "Objects":
        """Build those that a wheel for aarch64 boards has: compiled by zig. Programs are linked by GCC."""
        defines = wheels.cross_defines(wheels.zig_compiler(zig(), "aarch64"), "aarch64")
        return cls.build(folder, {**defines, "CMAKE_BUILD_TYPE": "Release"}, [CROSS, "-static"])

    @property
    def shared(self) -> Path:
        """libedgellm.so, as CMake links it."""
        return self.folder / "libedgellm.so"

    def program(self, source: Path) -> Path:
        """Return a program of this C++ file and the kernels, linked if any of them is newer."""
        into = self.folder / source.stem
        newest = max(path.stat().st_mtime_ns for path in (source, self.shared, *KERNELS.glob("*.h")))
        if not into.exists() or into.stat().st_mtime_ns < newest:
            objects = sorted(self.folder.glob("CMakeFiles/edgellm.dir/**/*.o"))
            part = into.with_name(f"{into.name}.{os.getpid()}")  # another process may be linking it, too
            subprocess.run([*self.linker, *_PROGRAM, source, *objects, "-lpthread", "-o", part], check=True)
            part.rename(into)
        return into


def zig() -> Path:
    """Return where zig is installed; raises FileNotFoundError."""
    found = importlib.util.find_spec("ziglang")
    if found is None or found.origin is None:
        raise FileNotFoundError(f"zig is not installed. Install it: pip install {wheels.ZIG}")
    return Path(found.origin).with_name("zig")
