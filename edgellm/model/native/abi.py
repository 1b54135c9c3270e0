"""The C ABI of a section in ctypes: structures as in kernels/section.h, and the calls, with errors raised."""

import ctypes
import functools
import weakref
from ctypes import POINTER, byref, c_double, c_int64, c_uint64, c_void_p, sizeof

import numpy as np

from edgellm.errors import ModelError
from edgellm.kernels import library
from edgellm.shards.mapped import MappedTensor

MOST_TOKENS = 512  # in one call
MOST_STEPS = 64


class Floats(ctypes.Structure):
    """float32 values; without any, data is null."""

    _fields_ = [("data", c_void_p), ("count", c_uint64)]

    @classmethod
    def of(cls, values: np.ndarray | None) -> "Floats":
        return cls() if values is None else cls(values.ctypes.data, values.size)


class Projection(ctypes.Structure):
    """Rows [first, first + rows) of a weight [out, in] as it lies in a shard, and their bias."""

    _fields_ = [
        ("data", c_void_p), ("bytes", c_uint64), ("out", c_uint64), ("in_", c_uint64), ("first", c_uint64),
        ("rows", c_uint64), ("encoding", c_int64), ("bias", Floats),
    ]  # fmt: skip

    @classmethod
    def of(cls, tensor: MappedTensor, first: int = 0, rows: int | None = None, bias: np.ndarray | None = None):
        """Of all rows from `first` on unless `rows` says how many."""
        out, columns = tensor.shape
        rows = out - first if rows is None else rows
        assert tensor.encoding is not None  # integers are no weights
        encoding = library.ENCODINGS[tensor.encoding]
        data = tensor.data
        return cls(data.ctypes.data, data.nbytes, out, columns, first, rows, encoding, Floats.of(bias))


class Norm(ctypes.Structure):
    """A norm's weight and bias."""

    _fields_ = [("weight", Floats), ("bias", Floats)]


class Layer(ctypes.Structure):
    """A decoder layer."""

    _fields_ = [
        ("before_attention", Norm), ("before_mlp", Norm),
        ("q", Projection), ("k", Projection), ("v", Projection), ("o", Projection),
        ("gate", Projection), ("up", Projection), ("down", Projection),
        ("q_norm", Floats), ("k_norm", Floats), ("attention_scale", c_double), ("window", c_uint64),
    ]  # fmt: skip


class Section(ctypes.Structure):
    """A section's sizes, layers and ends."""

    _fields_ = [
        ("hidden", c_uint64), ("heads", c_uint64), ("kv_heads", c_uint64), ("head_dim", c_uint64),
        ("rotary_dim", c_uint64), ("intermediate", c_uint64), ("vocab", c_uint64), ("positions", c_uint64),
        ("num_layers", c_uint64), ("eps", c_double), ("layers", POINTER(Layer)),
        ("embedding", Projection), ("position_embedding", Projection), ("head", Projection), ("final_norm", Norm),
    ]  # fmt: skip


class Step(ctypes.Structure):
    """Consecutive positions of one sequence."""

    _fields_ = [
        ("tokens", c_uint64), ("position", c_uint64), ("rope", c_uint64), ("logits", c_uint64), ("kv", c_void_p),
        ("kv_bytes", c_uint64), ("context", c_uint64), ("kv_encoding", c_int64),
    ]  # fmt: skip


def new_steps() -> ctypes.Array[Step]:
    """Return room for as many steps as a call takes."""
    return (Step * MOST_STEPS)()


@functools.cache
def _library() -> ctypes.CDLL:
    lib = library.library()
    lib.edgellm_section_new.argtypes = [POINTER(Section), c_uint64, POINTER(c_void_p)]
    lib.edgellm_section_free.argtypes = [c_void_p]
    lib.edgellm_section_free.restype = None
    lib.edgellm_section_rope.argtypes = [c_void_p, c_uint64, c_void_p, c_void_p, c_uint64, c_uint64]
    lib.edgellm_section_run.argtypes = [
        c_void_p, c_void_p, c_uint64, c_uint64, c_uint64, c_void_p, c_void_p, c_uint64, c_void_p, c_uint64, c_void_p,
        c_uint64,
    ]  # fmt: skip
    return lib


def _check(what: str, status: int) -> None:
    if status:
        raise ModelError(f"libedgellm refused to {what}: {library._STATUS.get(status, f'status {status}')}")


class SectionHandle:
    """A section inside the library; what `spec` points to must outlive it. Freed with the object."""

    def __init__(self, spec: Section):
        self._handle = c_void_p()
        _check("make a section", _library().edgellm_section_new(byref(spec), sizeof(spec), byref(self._handle)))
        freed = weakref.finalize(self, _library().edgellm_section_free, self._handle)
        freed.atexit = False  # a thread may still be in it
        self._run = _library().edgellm_section_run

    def set_rope(self, which: int, cos: np.ndarray, sin: np.ndarray) -> None:
        """Rotary factors [positions, rotary_dim / 2] that the caller keeps."""
        status = _library().edgellm_section_rope(
            self._handle, which, cos.ctypes.data, sin.ctypes.data, cos.size, len(cos)
        )
        _check("take rotary factors", status)

    def run(self, steps: ctypes.Array[Step], count: int, layers: tuple[int, int], x: np.ndarray, out: np.ndarray | None,
            logits: np.ndarray | None) -> None:  # fmt: skip
        """Run the first `count` of `steps` over layers [start, end); x: int64 [tokens] or float32 [tokens, hidden]."""
        address = x.__array_interface__["data"][0]
        ids, hidden = (address, None) if x.dtype == np.int64 else (None, address)
        status = self._run(
            self._handle, steps, count, *layers, ids, hidden, len(x),
            None if out is None else out.__array_interface__["data"][0], 0 if out is None else out.size,
            None if logits is None else logits.__array_interface__["data"][0], 0 if logits is None else logits.size,
        )  # fmt: skip
        _check("run a step", status)
