"""The C ABI of libedgellm as abi.h has it, read by cffi: its structs, its codes and its constants."""

from pathlib import Path
from typing import Any

from cffi import FFI

ffi = FFI()
ffi.cdef(Path(__file__).with_name("abi.h").read_text(encoding="utf-8"))

# Constants have their values from abi.h alone: none is a symbol that a library must have.
constants: Any = ffi.dlopen(None)
NULL = ffi.NULL


def codes(enum: str) -> dict[str, int]:
    """Return an enum's constants by name, in the order of their values."""
    return {name: value for value, name in sorted(ffi.typeof(f"enum {enum}").elements.items())}
