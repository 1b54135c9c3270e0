"""The kernels as C++ tests take them, built once."""

import platform

import pytest
from building import CROSS, EMULATOR, SANITIZED, Library, needs


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory):
    """This machine's kernels with address and undefined behaviour sanitizers."""
    return Library.build(tmp_path_factory.mktemp("sanitized"), "g++", SANITIZED, platform.machine())


@pytest.fixture(scope="session")
def aarch64(tmp_path_factory):
    """The kernels of aarch64, to be run under an emulator."""
    needs(EMULATOR)
    return Library.build(tmp_path_factory.mktemp("aarch64"), CROSS, ["-O1", "-static"], "aarch64")
