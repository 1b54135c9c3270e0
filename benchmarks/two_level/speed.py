"""Products with the project's int4 and with a two-level one, cold weights, in turns; product.cpp has the layout."""

import ctypes
import mmap
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgellm.kernels import library

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "edgellm/kernels"
TILE, BLOCK = 16, 256
BITS = {"affine": 5.0, "two-level": 4.5}
_FLAGS = (
    "-O3 -std=c++17 -shared -fPIC -ffp-contract=off -fno-math-errno -fno-exceptions -fno-rtti -Wall -Wextra "
    "-DEDGELLM_X86_64 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx2 -mfma -mf16c"
).split()


def build(folder: Path) -> ctypes.CDLL:
    """Compiles product.cpp with g++ into `folder`; CalledProcessError if that fails."""
    path = folder / "two_level.so"
    sources = [str(HERE / "product.cpp"), str(KERNELS / "gemm_scalar.cpp")]
    subprocess.run(["g++", *_FLAGS, "-I", str(KERNELS), *sources, "-o", str(path)], check=True)
    found = ctypes.CDLL(str(path))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    found.multiply.argtypes = [ctypes.c_int, pointer, size, size, pointer, pointer, pointer, size, pointer, size, size]
    found.multiply.restype = None
    return found


def random_weights(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Bytes of a weight [out, in]: any nibbles and 6-bit numbers, small fp16."""
    out, columns = shape
    tiles, blocks = out // TILE, columns // BLOCK
    data = rng.integers(0, 256, (tiles, blocks, int(BITS[kind] * 512)), dtype=np.uint8)
    if kind == "affine":
        halves = rng.normal(0, 0.01, (tiles, blocks, 8, 32)).astype(np.float16)
        data.reshape(tiles, blocks, 8, 320)[..., 256:] = halves.view(np.uint8)
    else:
        data[..., 192:256] = rng.normal(0, 0.0002, (tiles, blocks, 32)).astype(np.float16).view(np.uint8)
    return data.reshape(tiles, -1)


def mapped(count: int, huge: bool) -> np.ndarray:
    """Memory in pages of 4 KB, as a mapped shard's, or in huge ones; uint8 [count]."""
    area = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(area, np.uint8)


def values(kind: str, data: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """What the bytes stand for, float64 [out, in]."""
    out, columns = shape
    tiles, blocks = out // TILE, columns // BLOCK
    data = data.reshape(tiles, blocks, -1)
    if kind == "affine":
        groups = data.reshape(tiles, blocks, 8, 320)
        nibbles, rest = groups[..., :256], np.ascontiguousarray(groups[..., 256:]).view(np.float16)
        d, m = rest[..., :TILE].astype(np.float64), rest[..., TILE:].astype(np.float64)
    else:
        nibbles = data[..., 256:].reshape(tiles, blocks, 8, 256)
        lower = data[..., :128].reshape(tiles, blocks, 8, TILE).astype(np.int64)
        upper = data[..., 128:192].reshape(tiles, blocks, 1, 4, TILE).astype(np.int64)
        upper = np.concatenate([upper, upper >> 4], axis=2).reshape(tiles, blocks, 8, TILE)
        halves = np.ascontiguousarray(data[..., 192:256]).view(np.float16).astype(np.float32)[:, :, None]
        d = (halves[..., :TILE] * ((lower & 15) | (upper & 3) << 4).astype(np.float32)).astype(np.float64)
        m = (halves[..., TILE:] * ((lower >> 4) | (upper >> 2 & 3) << 4).astype(np.float32)).astype(np.float64)
    chunks = nibbles.reshape(tiles, blocks, 8, 4, TILE, 4)
    q = np.stack([chunks & 15, chunks >> 4], axis=4)  # tile, block, group, chunk, half, row, column
    q = q.transpose(0, 5, 1, 2, 3, 4, 6).reshape(tiles, TILE, blocks, 8, 32)
    d, m = (a.transpose(0, 3, 1, 2)[..., None] for a in (d, m))
    return (d * q + m).reshape(out, columns)


class Product:
    """One kind's product: copies of a weight that together are larger than any cache, used in turn."""

    def __init__(self, own: ctypes.CDLL, kind: str, shape: tuple[int, int], copies: int, threads: int, huge=False):
        self.own, self.kind, self.shape, self.copies = own, kind, shape, copies
        one = random_weights(kind, shape, np.random.default_rng(0))
        self.one, self.data = one, mapped(one.nbytes * copies, huge)
        self.data.reshape(copies, -1)[:] = one.reshape(-1)
        self.threads, self.used = threads, 0

    def __call__(self, activations: tuple, y: np.ndarray, pool: ThreadPoolExecutor) -> float:
        """Multiplies with the next copy, rows shared among the threads; returns the seconds that took."""
        at = self.data.ctypes.data + self.used % self.copies * self.one.nbytes
        self.used += 1
        out, columns = self.shape
        cuts = [out // TILE * i // self.threads * TILE for i in range(self.threads + 1)]
        inputs = [a.ctypes.data for a in activations]

        def part(start: int, end: int) -> None:
            self.own.multiply(self.kind != "affine", at, out, columns, *inputs, len(y), y.ctypes.data, start, end)

        if self.threads == 1:  # its own time, so that waiting for a core doesn't count
            began = time.thread_time()
            part(0, out)
            return time.thread_time() - began
        began = time.perf_counter()
        list(pool.map(part, cuts[:-1], cuts[1:]))
        return time.perf_counter() - began


def check(own: ctypes.CDLL) -> None:
    """Both products against float64, for tokens of one pass and of several; AssertionError if they are off."""
    shape = (96, 3072)
    for kind in BITS:
        product = Product(own, kind, shape, 1, 1)
        weight = values(kind, product.one, shape)
        for tokens in (1, 2, 4, 8, 19):
            x = np.random.default_rng(tokens).standard_normal((tokens, shape[1]), np.float32)
            q, scale, total = library.quantize(x)
            y = np.empty((tokens, shape[0]), np.float32)
            product((q, scale, total), y, None)
            seen = q.astype(np.float64) * scale.repeat(32, axis=1)
            assert np.allclose(y, seen @ weight.T, rtol=1e-4, atol=1e-3 * np.abs(weight).max()), (kind, tokens)


def measure(
    shape: tuple[int, int], tokens: list[int], cold_bytes: int, repeats: int, threads: int, huge: bool = False
) -> list[dict]:
    """A dict for each number of tokens: medians in seconds of both kinds, and the median ratio of neighbours."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        own = build(Path(folder))
        check(own)
        count = -(-cold_bytes // (shape[0] * shape[1] * 9 // 16))
        products = {kind: Product(own, kind, shape, count, threads, huge) for kind in BITS}
        found = []
        for n in tokens:
            x = np.random.default_rng(n).standard_normal((n, shape[1]), np.float32)
            activations, y = library.quantize(x), np.empty((n, shape[0]), np.float32)
            times = {kind: [] for kind in BITS}
            for i in range(max(7, repeats if n < 64 else repeats // 4) + 1):
                for kind in list(BITS)[:: 1 if i % 2 else -1]:
                    times[kind].append(products[kind](activations, y, pool))
            both = np.array([times["affine"][1:], times["two-level"][1:]])  # the first ones warm up
            found.append({
                "tokens": n, "threads": threads, "affine_s": float(np.median(both[0])),
                "two_level_s": float(np.median(both[1])), "faster": float(np.median(both[0]) / np.median(both[1]) - 1),
                "faster_best": float(both[0].min() / both[1].min() - 1),
                "faster_paired": float(np.median(both[0] / both[1]) - 1),
                "affine_gb_per_s": float(products["affine"].one.nbytes / np.median(both[0]) / 1e9),
                "two_level_gb_per_s": float(products["two-level"].one.nbytes / np.median(both[1]) / 1e9),
            })  # fmt: skip
    return found
