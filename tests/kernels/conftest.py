"""The kernels as C++ tests take them, in pytest's cache: built once for all workers and runs."""

import pytest
from building import needs

from benchmarks.crossbuild import CROSS, EMULATOR, Objects
from edgellm.controller.wheels import cross_defines
from edgellm.files import locked

# Without optimization: with it, sanitizers take minutes to compile.
SANITIZED = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="session")
def build(request):
    """Calls a function with a folder of this name in the cache, which one process after the other may use."""

    def built(name, make):
        folder = request.config.cache.mkdir(f"kernels-{name}")
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
