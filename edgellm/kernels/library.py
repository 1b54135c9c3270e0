"""The Python face of libedgellm: checks NumPy arrays, then hands their addresses to the native kernels.

A weight is given as an array of any type whose bytes are what kernels/gemm.h describes, in this machine's memory or in
a mapped file, and by its shape [out, in]; results are written to arrays that the caller brings. Nothing here needs
torch: a tensor's memory comes as `tensor.numpy()`.
"""

import functools
import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import EdgellmError
from edgellm.files import sha256_of
from edgellm.kernels.abi import NULL, codes, constants, ffi

ENCODINGS = {name.lower(): code for name, code in codes("Encoding").items() if name != "ENCODINGS"}
GROUP: int = constants.GROUP  # columns that share a scale, of packed weights
TILE: int = constants.TILE  # rows that lie together, of packed weights
VALUE_BYTES = {"bf16": 2, "f16": 2, "f32": 4}
GROUP_BYTES: dict[str, int] = {  # of 32 columns of a tile, of packed weights; of a block of 256 an eighth
    name: getattr(constants, f"{name.upper()}_GROUP_BYTES") for name in ENCODINGS if name not in VALUE_BYTES
}
_IN_SUPER_BLOCKS = ("iq4_xs", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
BLOCK_COLUMNS: dict[str, int] = {  # of packed weights: rows are a multiple of it
    name: constants.SUPER_BLOCK if name in _IN_SUPER_BLOCKS else GROUP for name in GROUP_BYTES
}

_NAME = "libedgellm.so"
_FLOATS = ffi.typeof("float[]")
_STATUS = {
    "BAD_POINTER": "a null pointer",
    "BAD_ENCODING": "an unknown encoding",
    "BAD_SHAPE": "a shape it can't compute",
    "BAD_LENGTH": "a buffer of another length than its shape says",
    "BAD_THREADS": "a number of threads, or cores, that it can't have",
    "BAD_TARGET": "an instruction set that this processor lacks",
    "NO_MEMORY": "more tokens than there is memory for",
}


def stored_shape(encoding: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the tensor that holds a weight of `shape` [out, in]: [tiles, bytes of a tile], or as it is
    for plain encodings; of experts [experts, out, in]: [experts, tiles, bytes of a tile]. Raises ValueError if it can't
    be stored so."""
    *experts, out, columns = shape
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding {encoding!r} is none of {', '.join(ENCODINGS)}")
    if min(shape) < 1:
        raise ValueError(f"a weight of shape {list(shape)} has no elements")
    if encoding not in GROUP_BYTES:
        return tuple(shape)
    if columns % (block := BLOCK_COLUMNS[encoding]):
        raise ValueError(f"{encoding} packs rows in groups of {block}; this weight has rows of {columns}")
    return (*experts, -(-out // TILE), columns // GROUP * GROUP_BYTES[encoding])


def weight_bytes(encoding: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a weight of `shape` [out, in], or of experts [experts, out, in]. Raises ValueError if it
    can't be stored so."""
    return math.prod(stored_shape(encoding, shape)) * VALUE_BYTES.get(encoding, 1)


def linear(
    x: np.ndarray, data: np.ndarray, encoding: str, shape: tuple[int, int], out: np.ndarray, integer: bool = False
) -> None:
    """out = x times the transpose of the weight; float32 [tokens, in] and [tokens, out].

    With `integer`, packed weights are multiplied with x as int8 in groups (gemm.h: product): faster, and off by what
    the rounding of x makes. Raises ValueError if the arrays don't fit together.
    """
    weight = _weight(data, encoding, shape)
    if x.ndim != 2:
        raise ValueError(f"x must have 2 dimensions, not {x.ndim}")
    tokens = x.shape[0]
    places = _floats("x", x, (tokens, shape[1])), tokens, _floats("out", out, (tokens, shape[0]))
    status = library().edgellm_linear(weight, data.nbytes, ENCODINGS[encoding], *shape, *places, integer)
    _check_status("linear", status)


def dequantize(
    data: np.ndarray, encoding: str, shape: tuple[int, int], start: int, end: int, out: np.ndarray
) -> None:
    """Writes rows [start, end) of a weight [out, in] to `out`, float32 [end - start, in]; ValueError if it can't."""
    weight = _weight(data, encoding, shape)
    if not 0 <= start <= end <= shape[0]:
        raise ValueError(f"rows {start} to {end} are not within the {shape[0]} rows of this weight")
    into = _floats("out", out, (end - start, shape[1]))
    status = library().edgellm_dequantize(
        weight, data.nbytes, ENCODINGS[encoding], *shape, start, end, into, out.size
    )
    _check_status("dequantize", status)


def quantize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 [tokens, in] as the integer products take it: int8 [tokens, in], and float32 [tokens, in/32] twice: the
    scale of each group, and scale times the sum of its integers. ValueError if x doesn't come in groups of 32."""
    if x.ndim != 2 or not x.shape[1] or x.shape[1] % GROUP:
        raise ValueError(f"x must be rows of a multiple of {GROUP} values, not of shape {list(x.shape)}")
    tokens, columns = x.shape
    q = np.empty((tokens, columns), np.int8)
    scale, total = (np.empty((tokens, columns // GROUP), np.float32) for _ in range(2))
    offset = np.empty((tokens, columns // GROUP), np.int32)
    into = [ffi.from_buffer("int8_t[]", q), *(ffi.from_buffer(_FLOATS, a) for a in (scale, total)),
            ffi.from_buffer("int32_t[]", offset)]  # fmt: skip
    _check_status("quantize", library().edgellm_quantize(_floats("x", x, x.shape), tokens, columns, *into))
    return q, scale, total


def read(data: np.ndarray) -> int:
    """Reads a dense array with one core, returns the sum of its 64-bit words: a measure of the memory."""
    if not data.flags.c_contiguous or data.nbytes % 64:
        raise ValueError(f"read wants a dense array, a multiple of 64 bytes, not {data.nbytes}")
    total = ffi.new("uint64_t *")
    _check_status("read", library().edgellm_read(ffi.from_buffer(data), data.nbytes, total))
    return total[0]


def set_threads(count: int, cores: Sequence[int] = ()) -> None:
    """Computes with `count` threads from now on, thread i on the i-th of `cores` if there are any; not while something
    computes. ValueError if it can't be."""
    try:
        status = library().edgellm_threads_set(count, list(cores), len(cores))
    except OverflowError:  # no int of C
        status = constants.BAD_THREADS
    if status:
        raise ValueError(f"can't compute with {count} threads" + (f" on cores {list(cores)}" if cores else ""))


def target() -> str:
    """The instruction set in use: avx512vnni, avx2, dotprod, neon or scalar."""
    return ffi.string(library().edgellm_target()).decode()


def use_target(name: str | None) -> None:
    """Computes with another instruction set from now on, None for the best; for tests. ValueError if it can't."""
    if library().edgellm_use_target(NULL if name is None else name.encode()):
        raise ValueError(f"this processor can't run the kernels for {name}")


def _weight(data: np.ndarray, encoding: str, shape: tuple[int, int]) -> Any:
    expected = weight_bytes(encoding, shape)
    if data.nbytes != expected:
        raise ValueError(f"an {encoding} weight of shape {list(shape)} has {expected} bytes, not {data.nbytes}")
    if not data.flags.c_contiguous:
        raise ValueError(f"an {encoding} weight must be a dense array")
    return ffi.from_buffer(data)


def _floats(name: str, array: np.ndarray, shape: tuple[int, ...]) -> Any:
    if array.dtype != np.float32:
        raise ValueError(f"{name} must be float32, not {array.dtype}")
    if array.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, not {list(array.shape)}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be a dense array")
    return ffi.from_buffer(_FLOATS, array)


def _check_status(function: str, status: int) -> None:
    if status:
        raise EdgellmError(f"libedgellm refused {function}: {meaning(status)}")


def meaning(status: int) -> str:
    """Return in words what a call that returned this status found wrong."""
    name = ffi.typeof("enum Status").elements.get(status, "")
    return _STATUS.get(name, f"status {status}")


def _candidates() -> list[Path]:
    # An editable install keeps the library in site-packages, beside the metadata, not in the checkout.
    found = [Path(__file__).with_name(_NAME)]
    try:
        found.append(Path(str(importlib.metadata.distribution("edgellm").locate_file(f"edgellm/kernels/{_NAME}"))))
    except importlib.metadata.PackageNotFoundError:
        pass
    return found


@functools.cache
def digest() -> str:
    """Return the SHA-256 of the library's file, in hex: another build may compute other bits."""
    return sha256_of(_path())


def _path() -> Path:
    path = next((path for path in _candidates() if path.is_file()), None)
    if path is None:
        raise EdgellmError(f"the native kernels ({_NAME}) are not built. Build them with: pip install -e .")
    return path


@functools.cache
def library() -> Any:
    """The loaded library; EdgellmError if it isn't built, can't be loaded, or is of another version."""
    path = _path()
    try:
        lib: Any = ffi.dlopen(str(path))
        abi = lib.edgellm_abi()
    except (OSError, AttributeError) as error:
        raise EdgellmError(f"the native kernels can't be loaded: {error}. Rebuild them: pip install -e .") from error
    if abi != constants.ABI_VERSION:
        raise EdgellmError(
            f"{path} has interface {abi}, this edgellm needs {constants.ABI_VERSION}. Rebuild it: pip install -e ."
        )
    return lib
