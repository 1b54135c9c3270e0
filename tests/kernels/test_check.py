"""check.cpp, which compares every instruction set with the scalar one bit for bit: with sanitizers, and for aarch64."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from edgellm.kernels import native

KERNELS = Path(native.__file__).parent
COMMON = [Path(__file__).with_name("check.cpp"), KERNELS / "gemm_scalar.cpp", KERNELS / "target.cpp"]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", f"-I{KERNELS}"]
of_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86-64")
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
X86_64 = {
    "gemm_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "gemm_avx512vnni.cpp": [*(f"-mavx512{x}" for x in ("f", "bw", "dq", "vl", "vnni")), "-mavx2", "-mfma", "-mf16c"],
}


def needs(tool: str) -> None:
    """Skip where a tool isn't installed; where CI installs it, that is a failure."""
    if shutil.which(tool) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{tool} is not installed")


def build(folder: Path, compiler: str, flags: list[str], files: dict[str, list[str]]) -> Path:
    """Compile check.cpp with these files of kernels/, each with its own flags."""
    needs(compiler)
    objects = []
    for name, own in files.items():
        objects.append(folder / f"{name}.o")
        subprocess.run([compiler, *FLAGS, *flags, *own, "-c", KERNELS / name, "-o", objects[-1]], check=True)
    subprocess.run([compiler, *FLAGS, *flags, *COMMON, *objects, "-o", folder / "check"], check=True)
    return folder / "check"


def run(*command) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split(":")[0] for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory):
    needs(EMULATOR)
    files = {"gemm_neon.cpp": [], "gemm_dotprod.cpp": []}
    return build(tmp_path_factory.mktemp("aarch64"), COMPILER, ["-O1", "-static"], files)


@pytest.mark.parametrize("cpu, targets", [
    ("cortex-a72", ["neon", "scalar"]),
    ("cortex-a76", ["dotprod", "neon", "scalar"]),
])  # fmt: skip
def test_the_kernels_of_aarch64_equal_the_scalar_ones(aarch64, cpu, targets):
    assert run(EMULATOR, "-cpu", cpu, aarch64, "120") == targets


@of_x86_64
def test_the_kernels_neither_leave_their_buffers_nor_overflow(tmp_path):
    program = build(tmp_path, "g++", ["-O0", "-DEDGELLM_X86_64", *SANITIZERS], X86_64)
    assert run(program, "120")[-1] == "scalar"


ABI = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>
extern "C" int edgellm_linear(const void*, uint64_t, int, uint64_t, uint64_t, const float*, uint64_t, float*, int);
extern "C" int edgellm_dequantize(const void*, uint64_t, int, uint64_t, uint64_t, uint64_t, uint64_t, float*, uint64_t);
extern "C" int edgellm_quantize(const float*, uint64_t, uint64_t, int8_t*, float*, float*, int32_t*);
extern "C" int edgellm_read(const void*, uint64_t, uint64_t*);
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
        const int encoding = rand() % 9 - 1;
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


@of_x86_64
def test_bad_arguments_are_refused_at_the_boundary(tmp_path):
    source = tmp_path / "abi.cpp"
    source.write_text(ABI)
    needs("g++")
    files = [KERNELS / f for f in ("libedgellm.cpp", "gemm_scalar.cpp", "target.cpp", "pool.cpp")]
    command = ["g++", *FLAGS, "-O0", *SANITIZERS, source, *files, "-lpthread", "-o", tmp_path / "abi"]
    subprocess.run(command, check=True)
    assert run(tmp_path / "abi") == ["abi"]
