"""sections.cpp, which runs sections with every family's features: with sanitizers, and for aarch64. The bits are the
same on every instruction set of every processor."""

import pytest
from building import HERE, run

from benchmarks.crossbuild import EMULATOR

SIZE = ["70", "3"]  # tokens, more than a block of attention; sections of random features, beside the families'
SOURCE = HERE / "sections.cpp"


@pytest.fixture(scope="module")
def expected(sanitized):
    """(hashes, instruction sets) on this processor."""
    lines = run(sanitized.program(SOURCE), *SIZE)
    return [x for x in lines if ": " in x], [x for x in lines if ": " not in x]


def test_sections_neither_leave_their_buffers_nor_overflow_and_are_the_same_everywhere(expected):
    hashes, sets = expected
    assert len(hashes) > 23 and len({line.split(": ")[1] for line in hashes}) == len(hashes)
    assert sets[-1] == "scalar"


@pytest.mark.parametrize("cpu, sets", [("cortex-a72", ["neon", "scalar"]), ("cortex-a76", ["dotprod"])])
def test_sections_give_the_same_bits_on_aarch64(aarch64, expected, cpu, sets):
    lines = run(EMULATOR, "-cpu", cpu, aarch64.program(SOURCE), *SIZE, *sets)
    assert lines == [*expected[0], *sets]
