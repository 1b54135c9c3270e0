"""The rotary parameters of a config, from a GGUF's metadata and from its tensors of factors."""

import math
from collections.abc import Callable

import numpy as np

from edgellm.checkpoint.gguf.metadata import Metadata
from edgellm.errors import CheckpointError

# Tensors that hold no weights: what they say becomes part of the config.
FACTOR_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
ReadTensor = Callable[[str], np.ndarray | None]  # a tensor in float32 by name, None if the file has none

_CLOSE = 1e-5  # a factor that was stored in float32 and one that is computed are the same number


def rope_parameters(metadata: Metadata, read: ReadTensor, head_dim: int, max_seq_len: int) -> dict:
    """Return `rope_parameters` for a config. Of LongRoPE also `original_max_position_embeddings`.

    Raises CheckpointError for scaling that no config can say.
    """
    theta = metadata.number("rope.freq_base", 10000.0)
    if not theta:
        raise CheckpointError(f"{metadata.where}: {metadata.key('rope.freq_base')} is 0, expected a number over 0")
    rotated = metadata.count("rope.dimension_count", head_dim)
    if rotated > head_dim or rotated % 2:
        raise CheckpointError(
            f"{metadata.where}: {metadata.key('rope.dimension_count')} is {rotated}, expected an even number up to the "
            f"{head_dim} elements of a head"
        )
    parameters = {"rope_type": "default", "rope_theta": theta}
    if rotated != head_dim:
        parameters["partial_rotary_factor"] = rotated / head_dim
    return parameters | _scaling(metadata, read, theta, max_seq_len)


def _scaling(metadata: Metadata, read: ReadTensor, theta: float, max_seq_len: int) -> dict:
    where = metadata.where
    kind = metadata.get("rope.scaling.type")
    original = metadata.count("rope.scaling.original_context_length", 0, least=0)
    factor = metadata.number("rope.scaling.factor", 0.0) or metadata.number("rope.scale_linear", 0.0)
    long, short = read("rope_factors_long.weight"), read("rope_factors_short.weight")
    if long is not None and short is not None:
        if not original or kind not in (None, "longrope"):
            raise CheckpointError(
                f"{where}: {metadata.key('rope.scaling.type')} is {str(kind)[:40]!r} and "
                f"{metadata.key('rope.scaling.original_context_length')} {original}; LongRoPE's factors need "
                "'longrope' and at least 1"
            )
        return _longrope(metadata, long, short, original, max_seq_len)
    divisors = read("rope_freqs.weight")
    if divisors is not None and not np.all(divisors == 1):
        if factor not in (0.0, 1.0):
            key = metadata.key("rope.scaling.factor")
            raise CheckpointError(f"{where}: {key} is {factor:g} beside rope_freqs.weight, expected one of them")
        return _llama3(divisors.reshape(-1), theta, original, where)
    if kind == "none" or kind in (None, "linear", "yarn") and factor in (0.0, 1.0):
        return {}
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and original:
        return _yarn(metadata, factor, original)
    if kind == "longrope" and factor in (0.0, 1.0):
        return {}  # named in files of models that don't need it
    raise CheckpointError(
        f"{where}: {metadata.key('rope.scaling.type')} is {str(kind)[:40]!r}, {metadata.key('rope.scaling.factor')} "
        f"{factor:g} and {metadata.key('rope.scaling.original_context_length')} {original}, which edgellm can't read "
        "from a GGUF. Use the model's safetensors folder."
    )


def _yarn(metadata: Metadata, factor: float, original: int) -> dict:
    found = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for ours, theirs in (("beta_fast", "rope.scaling.yarn_beta_fast"), ("beta_slow", "rope.scaling.yarn_beta_slow")):
        if value := metadata.number(theirs, 0.0):
            found[ours] = value
    # Converters write a config's attention_factor as the second of these. llama.cpp, which leaves that out, multiplies
    # YaRN's own factor with the first.
    names = "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"
    beside, whole = (metadata.number(name, 1.0) or 1.0 for name in names)
    if abs(whole - 1.0) > _CLOSE:
        found["attention_factor"] = float(f"{whole:.7g}")
    elif abs(beside - 1.0) > _CLOSE:
        found["attention_factor"] = beside * (0.1 * math.log(factor) + 1.0)
    return found


def _longrope(metadata: Metadata, long: np.ndarray, short: np.ndarray, original: int, max_seq_len: int) -> dict:
    found = {
        "rope_type": "longrope",
        "long_factor": _seven_digits(long),
        "short_factor": _seven_digits(short),
        "original_max_position_embeddings": original,
    }
    stretch = max_seq_len / original
    default = 1.0 if stretch <= 1 or original < 2 else math.sqrt(1 + math.log(stretch) / math.log(original))
    stated = metadata.number("rope.scaling.attn_factor", 0.0)
    if stated and abs(stated - default) > _CLOSE * default:
        found["attention_factor"] = float(f"{stated:.7g}")
    return found


def _seven_digits(values: np.ndarray) -> list[float]:
    """Return float32 values as the decimal numbers that they were rounded from."""
    return [float(f"{v:.7g}") for v in values.reshape(-1).tolist()]


def _llama3(divisors: np.ndarray, theta: float, original: int, where: str) -> dict:
    """Return Llama 3's scaling, found again from the divisors it leads to: llama.cpp stores only these."""
    factors = divisors.astype(np.float64)
    factor = float(f"{factors.max():.6g}")
    frequencies = theta ** -(np.arange(len(factors), dtype=np.float64) / len(factors))
    for length in dict.fromkeys(n for n in (original, 8192, 4096, 2048, 16384, 32768) if n):
        smooth = (length * frequencies / (2 * math.pi) - 1.0) / 3.0  # 0 at wavelength = length, 1 at length / 4
        smooth = smooth.clip(0, 1)
        if np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-3, atol=1e-8):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": length,
            }
    raise CheckpointError(
        f"{where}: rope_freqs.weight has {len(factors)} divisors up to {factor} that are not Llama 3's scaling for any "
        "length from 2048 to 32768. Use the model's safetensors folder."
    )
