"""Measures how fast this machine reads memory and multiplies a layer's weights.

Only products count, which are nine tenths of a step; weights are random. Needs neither a model nor torch.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.kernels import library

_READ_BYTES = 256 << 20  # larger than the caches
_COLD_BYTES = 64 << 20  # of weights that are read before the same ones come again
_CALLS, _MOST_CALLS = 3, 200
_FINITE = 0x3C  # bytes below it make fp16 scales and floats that are small


@dataclass(frozen=True)
class Shape:
    """The sizes that decide how much one layer reads and computes."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """[out, in] of the layer's products: query, key and value; output; gate and up; down."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (q + 2 * kv, self.hidden), (self.hidden, q), (2 * self.intermediate, self.hidden), (
            self.hidden, self.intermediate)  # fmt: skip


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("smollm2-135m", 576, 1536, 9, 3, 64),
        Shape("llama-3.2-1b", 2048, 8192, 32, 8, 64),
        Shape("phi-3-mini", 3072, 8192, 32, 32, 96),
        Shape("llama-3.1-8b", 4096, 14336, 32, 8, 128),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """The board's name and its processors, as far as the system reports them."""

    board: str
    cpu: str


@dataclass(frozen=True)
class Row:
    """The products of one layer with `tokens` tokens: one is decode, more are prefill."""

    encoding: str
    tokens: int
    ms_per_layer: float
    gb_per_s: float  # of weights read
    gop_per_s: float  # two operations per weight and token: GFLOP/s where weights are floats


def read_speed(count: int = _READ_BYTES, seconds: float = 0.5) -> float:
    """Return how fast one core reads memory, in GB/s."""
    data = np.ones(count // 64 * 64, np.uint8)
    return data.nbytes / _median(lambda i: library.read(data), seconds) / 1e9


def measure(
    shape: Shape, encodings: list[str], tokens: list[int], seconds: float = 0.5, cold_bytes: int = _COLD_BYTES
) -> Iterator[Row]:
    """Yield a row for each encoding and number of tokens, each measured for about this many seconds."""
    rng = np.random.default_rng(0)
    for encoding in encodings:
        count = sum(library.weight_bytes(encoding, matrix) for matrix in shape.matrices)
        copies = [_layer(shape, encoding, rng) for _ in range(-(-cold_bytes // count))]
        for n in tokens:
            inputs = {columns: rng.standard_normal((n, columns), np.float32) for _, columns in shape.matrices}
            outputs = {rows: np.empty((n, rows), np.float32) for rows, _ in shape.matrices}

            def layer(i, copies=copies, inputs=inputs, outputs=outputs, encoding=encoding):
                for matrix, weight in zip(shape.matrices, copies[i % len(copies)], strict=True):
                    rows, columns = matrix
                    integer = encoding in library.GROUP_BYTES
                    library.linear(inputs[columns], weight, encoding, matrix, outputs[rows], integer)

            taken = _median(layer, seconds)
            weights = sum(rows * columns for rows, columns in shape.matrices)
            yield Row(encoding, n, taken * 1e3, count / taken / 1e9, 2 * n * weights / taken / 1e9)


def describe(root: Path = Path("/")) -> Machine:
    """Return a description of this machine: on boards the device tree's model and the cores' kinds."""
    board = _text(root / "proc/device-tree/model").strip("\0\n ")
    facts = [line.partition(":") for line in _text(root / "proc/cpuinfo").splitlines()]
    names = [value.strip() for key, _, value in facts if key.strip() == "model name"]
    parts = [_PARTS.get(value.strip(), f"part {value.strip()}") for key, _, value in facts if key.strip() == "CPU part"]
    kinds = parts or names  # 32-bit names of ARM processors tell less than their parts
    counted = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
    return Machine(board[:200] or "unknown", ", ".join(counted)[:200] or "unknown")


_PARTS = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1", "0xd41": "Cortex-A78",
}  # fmt: skip


def _layer(shape: Shape, encoding: str, rng: np.random.Generator) -> list[np.ndarray]:
    counts = [library.weight_bytes(encoding, matrix) for matrix in shape.matrices]
    return [rng.integers(0, _FINITE, count, dtype=np.uint8) for count in counts]


def _median(call: Callable[[int], object], seconds: float) -> float:
    """Return the median time of a call, made for about so many seconds; the first, which warms up, doesn't count."""
    call(0)
    times: list[float] = []
    while len(times) < _CALLS or (sum(times) < seconds and len(times) < _MOST_CALLS):
        start = time.perf_counter()
        call(len(times) + 1)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
