"""Sections of the native library: what abi.h's structs are made from, and the calls, with errors raised.

Structs point to memory that they don't own: the caller that fills one in must keep the arrays.
"""

import weakref
from typing import Any, TypeAlias

import numpy as np

from edgellm.errors import ModelError
from edgellm.kernels import library
from edgellm.kernels.abi import NULL, constants, ffi
from edgellm.shards.mapped import MappedTensor

MOST_TOKENS: int = constants.MOST_TOKENS  # in one call
MOST_STEPS: int = constants.MOST_STEPS

Struct: TypeAlias = Any  # a struct of abi.h, or an array of them, in memory of its own
Fields: TypeAlias = dict[str, Any]  # the fields of a struct by name; those left out are 0

_FLOATS, _IDS = ffi.typeof("float[]"), ffi.typeof("int64_t[]")  # parsed once: a step's call takes microseconds


def floats(values: np.ndarray | None) -> Fields:
    """Return the fields of a FloatsSpec; without values its data is null."""
    return {} if values is None else {"data": ffi.cast("float *", values.ctypes.data), "count": values.size}


def projection(
    tensor: MappedTensor, first: int = 0, rows: int | None = None, bias: np.ndarray | None = None
) -> Fields:
    """Return the fields of a ProjectionSpec: of all rows from `first` on unless `rows` says how many. A tensor of three
    dimensions is experts'; their biases are [experts, rows], one after the other."""
    *experts, out, columns = tensor.shape
    assert tensor.encoding is not None  # integers are no weights
    return {
        "data": ffi.cast("void *", tensor.data.ctypes.data), "bytes": tensor.data.nbytes, "out": out, "in": columns,
        "first": first, "rows": out - first if rows is None else rows, "experts": experts[0] if experts else 0,
        "encoding": library.ENCODINGS[tensor.encoding], "bias": floats(bias),
    }  # fmt: skip


def new_layers(count: int) -> Struct:
    """Return an array of LayerSpecs, all zeros; its elements take Fields."""
    return ffi.new("LayerSpec[]", count)


def new_section(fields: Fields) -> Struct:
    """Return a pointer to a SectionSpec."""
    return ffi.new("SectionSpec *", fields)


def new_steps() -> Struct:
    """Return an array of as many StepSpecs as a call takes."""
    return ffi.new("StepSpec[]", MOST_STEPS)


def _check(what: str, status: int) -> None:
    if status:
        raise ModelError(f"libedgellm refused to {what}: {library.meaning(status)}")


class SectionHandle:
    """A section inside the library; what `spec` points to must outlive it. Freed with the object."""

    def __init__(self, spec: Struct):
        lib, into = library.library(), ffi.new("Section **")
        _check("make a section", lib.edgellm_section_new(spec, ffi.sizeof("SectionSpec"), into))
        self._handle = into[0]
        freed = weakref.finalize(self, lib.edgellm_section_free, self._handle)
        freed.atexit = False  # a thread may still be in it
        self._run, self._rope = lib.edgellm_section_run, lib.edgellm_section_rope

    def set_rope(self, which: int, cos: np.ndarray, sin: np.ndarray) -> None:
        """Give rotary factors [positions, rotary_dim / 2], as table `which` (2 * set, + 1 if long); the caller keeps
        them."""
        tables = ffi.from_buffer(_FLOATS, cos), ffi.from_buffer(_FLOATS, sin)
        _check("take rotary factors", self._rope(self._handle, which, *tables, cos.size, len(cos)))

    def run(self, steps: Struct, count: int, layers: tuple[int, int], x: np.ndarray, out: np.ndarray | None,
            logits: np.ndarray | None, ids: np.ndarray | None = None) -> None:  # fmt: skip
        """Run the first `count` of `steps` over layers [start, end); x: int64 [tokens] or float32 [tokens, row], then
        with `ids` int64 [tokens] if layers have something of these."""
        rows = None if x.dtype == np.int64 else x
        ids = x if rows is None else ids
        status = self._run(
            self._handle, steps, count, *layers,
            NULL if ids is None else ffi.from_buffer(_IDS, ids),
            NULL if rows is None else ffi.from_buffer(_FLOATS, rows), len(x),
            NULL if out is None else ffi.from_buffer(_FLOATS, out), 0 if out is None else out.size,
            NULL if logits is None else ffi.from_buffer(_FLOATS, logits), 0 if logits is None else logits.size,
        )  # fmt: skip
        _check("run a step", status)
