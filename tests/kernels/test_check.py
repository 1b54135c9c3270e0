"""check.cpp, which compares every instruction set with the scalar one bit for bit: with sanitizers, and for aarch64."""

import pytest
from building import HERE, run

from benchmarks.crossbuild import EMULATOR

pytestmark = pytest.mark.kernels

SOURCE = HERE / "check.cpp"


@pytest.mark.parametrize("cpu, targets", [
    ("cortex-a72", ["neon", "scalar"]),
    ("cortex-a76", ["dotprod", "neon", "scalar"]),
])  # fmt: skip
def test_the_kernels_of_aarch64_equal_the_scalar_ones(aarch64, cpu, targets):
    lines = run(EMULATOR, "-cpu", cpu, aarch64.program(SOURCE), "60")
    assert [line.split(":")[0] for line in lines] == targets


def test_the_kernels_neither_leave_their_buffers_nor_overflow(sanitized):
    assert run(sanitized.program(SOURCE), "60")[-1] == "scalar: 60 shapes equal"


ABI = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>
#include "exported.h"
using namespace edgellm;
static uint64_t some() {
    static const uint64_t odd[] = {0, 1, 3, 15, 16, 17, 31, 32, 33, 64, 640, 1088, 1280,
                                   1ull << 31, 1ull << 32, 1ull << 40, 1ull << 63, ~0ull, ~0ull - 31};
    return odd[rand() % (sizeof odd / sizeof *odd)];
}
int main() {
    // Buffers hold what 16 tokens and 64 rows of 64 columns need; larger calls must have been refused for their length.
    std::vector<uint8_t> w(8704);
    std::vector<float> x(17 * 64), y(17 * 64);
    std::vector<int8_t> q(17 * 64);
    std::vector<int32_t> o(64);
    int counts[8] = {};
    for (int i = 0; i < 200000; i++) {
        const uint64_t out = some(), in = some(), tokens = rand() % 18, bytes = rand() % 4 ? some() : 8704;
        const int encoding = rand() % 18 - 1;
        // A caller's y and x are as long as the shape that it gives, which the library can't know.
        const bool large = out > 64 || in > 64;
        const void* data = rand() % 9 && bytes <= w.size() ? w.data() : nullptr;
        if (!large || bytes > w.size() || in > 64)
            counts[edgellm_linear(data, bytes, encoding, out, in, large || rand() % 9 == 0 ? nullptr : x.data(), tokens,
                                  large || rand() % 9 == 0 ? nullptr : y.data(), rand() % 2)]++;
        const uint64_t start = some(), end = some();
        counts[edgellm_dequantize(data, bytes, encoding, out, in, start, end, large ? nullptr : y.data(), some())]++;
        const float* some_x = in > 64 || rand() % 9 == 0 ? nullptr : x.data();
        counts[edgellm_quantize(some_x, tokens, in, q.data(), y.data(), y.data(), o.data())]++;
        uint64_t total;
        counts[edgellm_read(data, bytes, rand() % 9 ? &total : nullptr)]++;
    }
    for (int i = 0; i < 6; i++) if (i != 5 && !counts[i]) return printf("never status %d\n", i), 1;
    printf("abi: refused what is bad\n");
}
"""


def test_bad_arguments_are_refused_at_the_boundary(sanitized, tmp_path):
    source = tmp_path / "abi.cpp"
    source.write_text(ABI)
    assert run(sanitized.program(source)) == ["abi: refused what is bad"]
