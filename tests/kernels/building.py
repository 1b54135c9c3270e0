"""What the tests of the kernels share: instruction sets, tools that may be missing, programs and what they print."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgellm.kernels import library

HERE = Path(__file__).parent


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


def run(*command) -> list[str]:
    """The lines that a program prints; fails with what it says if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()
