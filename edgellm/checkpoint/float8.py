"""Weights of 8-bit floats in safetensors, times the scales that a quantized checkpoint keeps beside them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellm.checkpoint.tensors import PLAIN, Rows, from_f32, to_f32
from edgellm.errors import CheckpointError
from edgellm.shards.positioned_file import CheckpointFile
from edgellm.shards.safetensors_file import TensorInfo

FLOAT8 = ("F8_E4M3", "F8_E5M2")
MXFP4 = "mxfp4"  # what a config calls it
_SCALE_SUFFIXES = ("_scale_inv", "_scale")  # after the weight's name; either is multiplied with
# Scales of activations and of the KV cache: edgellm rounds both in its own way.
_OTHER_SCALES = ("input_scale", "output_scale", "activation_scale", "input_scale_ub", "q_scale", "k_scale", "v_scale")
BLOCK = (128, 128)  # where a config doesn't say
_SCALE_ENCODINGS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def block_of(quantization: Any, where: str) -> tuple[int, int]:
    """Return the rows and columns that share a scale, where a config's `quantization_config` has 8-bit floats; MXFP4,
    which has experts alone, says nothing of it.

    Raises CheckpointError for any other quantization.
    """
    config = quantization if isinstance(quantization, dict) else {}
    method, block = config.get("quant_method"), config.get("weight_block_size")
    known = method in ("fp8", "fbgemm_fp8", MXFP4) or (method == "modelopt" and config.get("quant_algo") == "FP8")
    if method == "compressed-tensors":
        groups = config.get("config_groups")
        some = groups.values() if isinstance(groups, dict) else []
        weights = [g["weights"] for g in some if isinstance(g, dict) and isinstance(g.get("weights"), dict)]
        known = bool(weights) and all(w.get("type") == "float" and w.get("num_bits") == 8 for w in weights)
        block = next((w["block_structure"] for w in weights if w.get("block_structure")), None)
    if not known:
        raise CheckpointError(
            f"{where}: the weights are already quantized (method {str(method or 'unknown')[:40]}), and edgellm "
            "reads only 8-bit floats and MXFP4. Use the unquantized checkpoint or a GGUF file."
        )
    if block is None:
        return BLOCK
    if not (isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
        raise CheckpointError(f"{where}: blocks of weights are {str(block)[:60]}, expected [rows, columns]")
    return block[0], block[1]


def scale_names(dtypes: Mapping[str, str], quantized: bool, where: str) -> dict[str, str]:
    """Return for each weight of 8-bit floats the name of its scales, from the dtypes of all tensors by name.

    Raises CheckpointError if a quantized checkpoint lacks them.
    """
    found = {}
    for name, dtype in dtypes.items():
        if dtype in FLOAT8:
            scale = next((name + suffix for suffix in _SCALE_SUFFIXES if name + suffix in dtypes), None)
            if scale is not None:
                found[name] = scale
            elif quantized:
                raise CheckpointError(
                    f"{where}: tensor {name} is of 8-bit floats, and its scales ({name}_scale_inv or {name}_scale) are "
                    "missing. Fetch the checkpoint again."
                )
    return found


def is_other_scale(name: str) -> bool:
    """Whether a tensor of a quantized checkpoint scales something else than weights."""
    return name.rpartition(".")[2].endswith(_OTHER_SCALES)


class Scale:
    """The scales of one weight: one for all of it, one per row, or one per block of its last two dimensions."""

    def __init__(self, file: CheckpointFile, info: TensorInfo, block: tuple[int, int], origin: str):
        self._file, self._info, self._block, self._origin = file, info, block, origin
        self._values: np.ndarray | None = None

    def of_rows(self, shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
        """Return the scales of rows [start, stop) of a weight of `shape`, so shaped that they broadcast over them.

        Raises CheckpointError if there are more or fewer than such a weight has.
        """
        if self._values is None:
            self._values = self._checked(self._read(), shape)
        values = self._values
        for i, (size, share) in enumerate(zip(shape, self._shares(shape), strict=True)):
            if (count := values.shape[i]) > 1:
                wanted = np.arange(start, stop) if i == 0 else np.arange(size)
                values = np.take(values, wanted if count == size else wanted // share, axis=i)
        return values

    def _shares(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How many rows, columns, … have one scale if there is one per block."""
        return ((1,) * len(shape) + self._block)[-len(shape) :] if len(shape) > 1 else (1,) * len(shape)

    def _checked(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """`values` with as many dimensions as the weight."""
        if values.size == 1:
            return values.reshape((1,) * len(shape))
        values = values.reshape(values.shape + (1,) * (len(shape) - values.ndim))
        found: tuple[int, ...] = values.shape
        fitting = [(1, size, -(-size // share)) for size, share in zip(shape, self._shares(shape), strict=True)]
        if len(found) != len(shape) or any(n not in some for n, some in zip(found, fitting, strict=True)):
            raise CheckpointError(
                f"{self._origin} has shape {list(self._info.shape)}; a weight {list(shape)} has one scale, one a row, "
                f"or one a block of {self._block[0]} x {self._block[1]}"
            )
        return values

    def _read(self) -> np.ndarray:
        """All scales, in float32."""
        info = self._info
        raw = self._file.read(info.offset, info.bytes, self._origin)
        if info.dtype == "F8_E8M0":
            return _E8M0[np.frombuffer(raw, np.uint8)].reshape(info.shape)
        if info.dtype not in _SCALE_ENCODINGS:
            raise CheckpointError(f"{self._origin} has dtype {info.dtype}, expected scales in F32, F16 or BF16")
        encoding = _SCALE_ENCODINGS[info.dtype]
        return to_f32(np.frombuffer(raw, PLAIN[encoding]), encoding, info.shape).reshape(info.shape)


class Float8Rows(Rows):
    """Rows of 8-bit floats: exact in bfloat16 without scales, rounded once to float32 with them."""

    def __init__(self, file: CheckpointFile, info: TensorInfo, origin: str, scale: Scale | None):
        super().__init__(info.shape, "bf16" if scale is None else "f32")
        self._file, self._info, self._origin, self._scale = file, info, origin, scale

    def read(self, start: int, stop: int) -> np.ndarray:
        return from_f32(self.read_f32(start, stop), self.encoding)

    def read_f32(self, start: int, stop: int) -> np.ndarray:
        inner = math.prod(self.shape[1:])
        raw = self._file.read(self._info.offset + start * inner, (stop - start) * inner, self._origin)
        values = _VALUES[self._info.dtype][np.frombuffer(raw, np.uint8)].reshape(stop - start, *self.shape[1:])
        if self._scale is None:
            return values
        with np.errstate(all="ignore"):  # what isn't finite is refused where it is written
            return values * self._scale.of_rows(self.shape or (1,), start, stop)


def _table(exponent_bits: int, mantissa_bits: int) -> np.ndarray:
    """Return the 256 values of a float of these bits, as IEEE 754 has it."""
    bits = np.arange(256)
    bias = (1 << exponent_bits - 1) - 1
    exponent = bits >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = bits & (1 << mantissa_bits) - 1
    fraction = mantissa / (1 << mantissa_bits)
    values = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    return np.where(bits >> 7, -values, values).astype(np.float32)


def _e4m3() -> np.ndarray:
    table = _table(4, 3)  # no infinity: only all ones is no number
    table[[0x7F, 0xFF]] = np.nan
    return table


def _e5m2() -> np.ndarray:
    table = _table(5, 2)
    table[[0x7C, 0xFC]] = np.inf, -np.inf
    table[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
    return table


_VALUES = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2()}
_E8M0 = np.append(2.0 ** np.arange(-127.0, 128.0), np.nan).astype(np.float32)
