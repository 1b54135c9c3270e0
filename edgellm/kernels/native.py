"""The Python face of libedgellm: checks tensors, then hands their addresses to the native kernels."""

import ctypes
import functools
import importlib.metadata
from pathlib import Path

import torch

from edgellm.errors import EdgellmError

ENCODINGS = {"int4": 0, "int8": 1, "bf16": 2, "f16": 3}  # as in rows.h
GROUP = 32  # weights in a block of int4 or int8
BLOCK_BYTES = {"int4": 20, "int8": 34}
_DTYPES = {"int4": torch.uint8, "int8": torch.uint8, "bf16": torch.bfloat16, "f16": torch.float16}

_ABI = 1
_NAME = "libedgellm.so"
_STATUS = {
    1: "a null pointer",
    2: "an unknown encoding",
    3: "a shape it can't compute",
    4: "a buffer of another length than its shape says",
    5: "fewer than one thread",
    6: "an instruction set that this processor lacks",
}


def packed_shape(encoding: str, shape: tuple[int, int]) -> tuple[int, int]:
    """The shape of the tensor that holds a weight of `shape` [out, in]; ValueError if it can't be packed so."""
    out, columns = shape
    if encoding not in ENCODINGS and encoding != "f32":
        raise ValueError(f"encoding {encoding!r} is none of f32, {', '.join(ENCODINGS)}")
    if out < 1 or columns < 1:
        raise ValueError(f"a weight of shape [{out}, {columns}] has no elements")
    if encoding not in BLOCK_BYTES:
        return out, columns
    if columns % GROUP:
        raise ValueError(f"{encoding} packs rows in groups of {GROUP}; this weight has rows of {columns}")
    return out, columns // GROUP * BLOCK_BYTES[encoding]


def check_data(data: torch.Tensor, encoding: str, shape: tuple[int, int]) -> None:
    """Raises ValueError unless `data` is what a weight of `shape` [out, in] looks like in this encoding."""
    expected = packed_shape(encoding, shape)
    dtype = _DTYPES.get(encoding, torch.float32)
    if data.dtype != dtype:
        raise ValueError(f"an {encoding} weight is a tensor of {dtype}, not of {data.dtype}")
    if tuple(data.shape) != expected:
        raise ValueError(f"an {encoding} weight of shape {list(shape)} is a tensor of shape {list(expected)}, "
                         f"not {list(data.shape)}")
    if data.device.type != "cpu" or not data.is_contiguous():
        raise ValueError(f"an {encoding} weight must be a dense tensor in main memory")


def _check_floats(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype != torch.float32:
        raise ValueError(f"{name} must be float32, not {tensor.dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, not {list(tensor.shape)}")
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"{name} must be a dense tensor in main memory")


def _check_threads(threads: int) -> None:
    if threads < 1:
        raise ValueError(f"at least 1 thread is needed, not {threads}")


def linear(x: torch.Tensor, data: torch.Tensor, encoding: str, out: torch.Tensor, threads: int = 1) -> None:
    """Writes x · wᵀ to `out`, reading the packed weights where they are.

    x: float32 [tokens, in]; data: uint8 [out, bytes of a row] for int4 and int8, else bfloat16 or float16 [out, in];
    out: float32 [tokens, out]. A token's result is the same bit for bit whatever other tokens are in the call.
    Raises ValueError if they don't fit together.
    """
    if x.dim() != 2:
        raise ValueError(f"x must have 2 dimensions, not {x.dim()}")
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding {encoding!r} is none of {', '.join(ENCODINGS)}")
    tokens, columns = x.shape
    rows = data.shape[0] if data.dim() else 0
    check_data(data, encoding, (rows, columns))
    _check_floats("x", x, (tokens, columns))
    _check_floats("out", out, (tokens, rows))
    _check_threads(threads)
    status = library().edgellm_linear(
        data.data_ptr(), data.nbytes, ENCODINGS[encoding], rows, columns, x.data_ptr(), tokens, out.data_ptr(), threads
    )
    _check_status("linear", status)


def dequantize(data: torch.Tensor, encoding: str, start: int, end: int, out: torch.Tensor, threads: int = 1) -> None:
    """Writes rows [start, end) of a packed weight to `out`, float32 [end - start, in]; ValueError if they don't fit."""
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding {encoding!r} is none of {', '.join(ENCODINGS)}")
    if data.dim() != 2 or out.dim() != 2:
        raise ValueError(f"data and out must have 2 dimensions, not {data.dim()} and {out.dim()}")
    rows, columns = data.shape[0], out.shape[1]
    check_data(data, encoding, (rows, columns))
    if not 0 <= start <= end <= rows:
        raise ValueError(f"rows {start} to {end} are not within the {rows} rows of this weight")
    _check_floats("out", out, (end - start, columns))
    _check_threads(threads)
    status = library().edgellm_dequantize(
        data.data_ptr(), data.nbytes, ENCODINGS[encoding], rows, columns,
        start, end, out.data_ptr(), out.numel(), threads,
    )
    _check_status("dequantize", status)


def read(data: torch.Tensor) -> int:
    """Reads a dense uint8 tensor with one core, returns the sum of its 64-bit words: a measure of the memory."""
    if data.dtype != torch.uint8 or not data.is_contiguous() or data.nbytes % 64:
        raise ValueError(f"read wants dense uint8, a multiple of 64 bytes, not {data.nbytes} bytes of {data.dtype}")
    total = ctypes.c_uint64()
    _check_status("read", library().edgellm_read(data.data_ptr(), data.nbytes, ctypes.byref(total)))
    return total.value


def target() -> str:
    """The instruction set in use: avx512, avx2, neon or portable."""
    return library().edgellm_target().decode()


def use_target(name: str | None) -> None:
    """Computes with another instruction set from now on, None for the best; for tests. ValueError if it can't."""
    if library().edgellm_use_target(None if name is None else name.encode()):
        raise ValueError(f"this processor can't run the kernels for {name}")


def _check_status(function: str, status: int) -> None:
    if status:
        raise EdgellmError(f"libedgellm refused {function}: {_STATUS.get(status, f'status {status}')}")


def _candidates() -> list[Path]:
    # An editable install keeps the library in site-packages, beside the metadata, not in the checkout.
    found = [Path(__file__).with_name(_NAME)]
    try:
        found.append(Path(importlib.metadata.distribution("edgellm").locate_file(f"edgellm/kernels/{_NAME}")))
    except importlib.metadata.PackageNotFoundError:
        pass
    return found


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library; EdgellmError if it isn't built, can't be loaded, or is of another version."""
    path = next((path for path in _candidates() if path.is_file()), None)
    if path is None:
        raise EdgellmError(f"the native kernels ({_NAME}) are not built. Build them with: pip install -e .")
    try:
        lib = ctypes.CDLL(str(path))
        abi = lib.edgellm_abi()
    except (OSError, AttributeError) as error:
        raise EdgellmError(f"the native kernels can't be loaded: {error}. Build them anew: pip install -e .") from error
    if abi != _ABI:
        raise EdgellmError(f"{path} has interface {abi}, this edgellm needs {_ABI}. Build it anew: pip install -e .")
    pointer, size, number = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int
    weights = [pointer, size, number, size, size]
    lib.edgellm_target.restype = ctypes.c_char_p
    lib.edgellm_use_target.argtypes = [ctypes.c_char_p]
    lib.edgellm_linear.argtypes = [*weights, pointer, size, pointer, number]
    lib.edgellm_dequantize.argtypes = [*weights, size, size, pointer, size, number]
    lib.edgellm_read.argtypes = [pointer, size, ctypes.POINTER(size)]
    return lib
