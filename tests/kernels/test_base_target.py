"""The kernels of other processors, compiled here and run under qemu where both a cross compiler and qemu are installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from edgellm.kernels import native

SOURCES = Path(native.__file__).parent
COMPILERS = [
    ("g++", [], "portable"),
    ("aarch64-linux-gnu-g++", ["qemu-aarch64", "-cpu", "cortex-a72"], "neon"),
    ("aarch64-linux-gnu-g++", ["qemu-aarch64", "-cpu", "cortex-a76"], "neon"),
]


@pytest.mark.parametrize("compiler, runner, name", COMPILERS)
def test_base_target_agrees_with_plain_arithmetic(compiler, runner, name, tmp_path):
    for tool in [compiler, *runner[:1]]:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    program = tmp_path / "check"
    sources = [Path(__file__).with_name("check_base.cpp"), SOURCES / "rows_base.cpp"]
    subprocess.run([compiler, "-std=c++17", "-O3", "-static", "-I", SOURCES, *sources, "-o", program], check=True)
    done = subprocess.run([*runner, program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    if runner:
        assert done.stdout.startswith(f"{name}: ")
