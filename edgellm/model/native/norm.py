"""Norms outside of the library's calls, in float64: of what goes to the caller, and into drafts."""

import numpy as np

from edgellm.model.protocols import Array


def normed(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    """Return LayerNorm of x [tokens, hidden_size] where there is a bias, else RMSNorm, as the kernels have them."""
    exact = x.astype(np.float64)
    if bias is not None:
        exact -= exact.mean(axis=1, keepdims=True)
    exact /= np.sqrt(np.square(exact).mean(axis=1, keepdims=True) + eps)
    exact *= weight
    if bias is not None:
        exact += bias
    found: Array = exact.astype(np.float32)
    return found
