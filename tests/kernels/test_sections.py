"""sections.cpp, which runs sections with every family's features: with sanitizers, and for aarch64. The bits are the
same on every instruction set of every processor."""

import pytest
from building import HERE, available, run

from benchmarks.crossbuild import EMULATOR

pytestmark = pytest.mark.kernels

SIZE = ["70", "3"]  # tokens, more than a block of attention; sections of random features, beside the families'
SHORT = ["12", "3"]
SOURCE = HERE / "sections.cpp"


def sections(*command) -> tuple[list[str], list[str]]:
    """Return (hashes, instruction sets)."""
    lines = run(*command)
    return [x for x in lines if ": " in x], [x for x in lines if ": " not in x]


@pytest.fixture(scope="module")
def expected(sanitized) -> list[str]:
    """The hashes that this processor's fastest instruction set gives."""
    return sections(sanitized.program(SOURCE), *SIZE, available()[0])[0]


def test_sections_neither_leave_their_buffers_nor_overflow_and_are_the_same_everywhere(sanitized, expected):
    assert len(expected) > 23 and len({line.split(": ")[1] for line in expected}) == len(expected)
    *fast, scalar = available()
    assert sections(sanitized.program(SOURCE), *SIZE, *fast) == (expected, fast)
    # Not optimized, scalar is too slow for more.
    short, sets = sections(sanitized.program(SOURCE), *SHORT)
    assert len(short) == len(expected) and sets == [*fast, scalar]


@pytest.mark.parametrize("aarch64", ["zig"], indirect=True)
@pytest.mark.parametrize("cpu, sets", [("cortex-a72", ["neon"]), ("cortex-a76", ["dotprod"])])
def test_sections_give_the_same_bits_on_aarch64(aarch64, expected, cpu, sets):
    lines = run(EMULATOR, "-cpu", cpu, aarch64.program(SOURCE), *SIZE, *sets)
    assert lines == [*expected, *sets]
