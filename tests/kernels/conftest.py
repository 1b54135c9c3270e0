"""The kernels as C++ tests take them, built once for all workers."""

import os

import pytest
from building import needs

from benchmarks.crossbuild import CROSS, EMULATOR, Objects
from edgellm.controller.wheels import cross_defines
from edgellm.files import locked

# Without optimization: with it, sanitizers take minutes to compile.
SANITIZED = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Calls a function with a folder of this name that all of pytest-xdist's workers share, one after the other."""

    def built(name, make):
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name
        folder.mkdir(exist_ok=True)
        with locked(folder, timeout_s=280):
            return make(folder)

    return built


@pytest.fixture(scope="session")
def sanitized(build):
    """This machine's kernels with address and undefined behaviour sanitizers."""
    needs("g++")
    defines = {"CMAKE_CXX_COMPILER": "g++", "CMAKE_BUILD_TYPE": "None", "CMAKE_CXX_FLAGS": " ".join(SANITIZED)}
    return build("sanitized", lambda folder: Objects.build(folder, defines, ["g++", *SANITIZED]))


@pytest.fixture(scope="session", params=["zig", "gcc"])
def aarch64(request, build):
    """The kernels of aarch64, to be run under an emulator: as zig compiles them for boards, and as GCC does."""
    needs(EMULATOR)
    needs(CROSS)
    if request.param == "zig":
        return build("zig", Objects.of_boards)
    defines = {**cross_defines([CROSS], "aarch64"), "CMAKE_BUILD_TYPE": "None", "CMAKE_CXX_FLAGS": "-O1"}
    return build("gcc", lambda folder: Objects.build(folder, defines, [CROSS, "-static"]))
