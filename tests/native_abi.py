"""abi.h for tests: calls with plain numbers as addresses, and any field of a struct read and set by its path."""

from edgellm.kernels.abi import ffi
from edgellm.kernels.library import library


def call(name: str, *arguments):
    """Call a function of the library; addresses are numbers or None, as no caller of ours gives them."""
    function = getattr(library(), name)
    kinds = ffi.typeof(function).args
    return function(*(convert(kind, value) for kind, value in zip(kinds, arguments, strict=True)))


def convert(kind, value):
    """Return a number as this C type, wrapped around where it is too large; anything else as it is."""
    if kind.kind == "pointer":
        return ffi.cast(kind, value or 0) if value is None or isinstance(value, int) else value
    return int(ffi.cast(kind, value)) if isinstance(value, int) else value


def new(kind: str, **fields):
    """Return a pointer to a new struct."""
    made = ffi.new(f"{kind} *")
    for name, value in fields.items():
        put(made, (name,), value)
    return made


def fields(kind: str, before: tuple = ()) -> list[tuple]:
    """Return the paths to all numbers and addresses within a struct."""
    found = []
    for name, field in ffi.typeof(kind).fields:
        path = (*before, name)
        found += fields(field.type.cname, path) if field.type.kind == "struct" else [path]
    return found


def put(struct, path: tuple, value) -> None:
    """Set the number or address at this path."""
    parent = _at(struct, path[:-1])
    kind = ffi.typeof(parent)
    kind = kind.item if kind.kind == "pointer" else kind
    setattr(parent, path[-1], convert(dict(kind.fields)[path[-1]].type, value))


def get(struct, path: tuple):
    """Return the number or address at this path; of a null pointer None."""
    value = _at(struct, path)
    if isinstance(value, ffi.CData) and ffi.typeof(value).kind == "pointer":
        return int(ffi.cast("uintptr_t", value)) or None
    return value


def struct_of(struct, path: tuple) -> str:
    """Return the name of the struct that holds the field at this path."""
    kind = ffi.typeof(_at(struct, path[:-1]))
    return (kind.item if kind.kind == "pointer" else kind).cname


def _at(struct, path: tuple):
    for name in path:
        struct = getattr(struct, name)
    return struct
