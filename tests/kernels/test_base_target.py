"""The kernels of aarch64, cross-compiled here and run under qemu, where both are installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from edgellm.kernels import native

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    kernels = Path(native.__file__).parent
    program = tmp_path_factory.mktemp("aarch64") / "check"
    sources = [Path(__file__).with_name("check_base.cpp"), kernels / "rows_base.cpp"]
    subprocess.run([COMPILER, "-std=c++17", "-O3", "-static", "-I", kernels, *sources, "-o", program], check=True)
    return program


@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a76"])
def test_the_neon_kernels_agree_with_plain_arithmetic(program, cpu):
    done = subprocess.run([EMULATOR, "-cpu", cpu, program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("neon: ")
