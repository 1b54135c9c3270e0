"""What compiles the kernels for these tests is what compiles them for boards."""

import importlib.metadata
import platform
import subprocess
import tomllib

import pytest

from benchmarks.crossbuild import ROOT, zig
from edgellm.controller.wheels import ZIG, check_library, cross_defines, zig_compiler
from edgellm.kernels import library


def test_the_dev_extra_has_the_zig_that_builds_wheels():
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    assert ZIG in dev
    assert f"ziglang=={importlib.metadata.version('ziglang')}" == ZIG
    version = subprocess.run([zig(), "version"], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    assert version in ZIG


def test_boards_kernels_are_compiled_for_glibc_without_the_library_of_cpp():
    compiler = zig_compiler(zig(), "aarch64")
    assert compiler == [str(zig()), "c++", "-nostdlib++", "-target", "aarch64-linux-gnu.2.28"]
    assert cross_defines(compiler, "aarch64") == {
        "CMAKE_CXX_COMPILER": ";".join(compiler), "CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": "aarch64",
    }  # fmt: skip


@pytest.mark.native
def test_the_library_built_here_loads_on_boards_with_an_old_glibc():
    path = next(path for path in library._candidates() if path.is_file())
    check_library(path.read_bytes(), platform.machine())
