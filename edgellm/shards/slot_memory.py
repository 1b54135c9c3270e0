"""How much a slot keeps for a layer, in positions and in bytes. kernels/section.h computes the same, and refuses a slot
of another size. Standard library only, because planners count with it."""

KV_BYTES = {"float32": 4, "float16": 2, "int8": 1}  # of an element of a key or value
SCALE_BYTES = {"float32": 0, "float16": 0, "int8": 4}  # that a head's key, or value, has beside its elements
_KEYS = 16  # that lie side by side (KEYS in kernels/abi.h)
_RING = 64  # RING there


def kept_positions(window: int, context: int) -> int:
    """Return for how many positions a slot of `context` tokens has room in a layer: all, or of a `window` (0: none) a
    ring, in which position p lies at p modulo its size."""
    every = _up(context, _KEYS)
    return min(every, _up(window + _RING, _RING)) if 0 < window < context else every


def kv_bytes(elements: int, scales: int, window: int, context: int, kv_dtype: str) -> int:
    """Return the bytes of a layer's keys and values in a slot of `context` tokens, of which each has `elements`, and
    `scales` in 8 bits."""
    return kept_positions(window, context) * (elements * KV_BYTES[kv_dtype] + scales * SCALE_BYTES[kv_dtype])


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
