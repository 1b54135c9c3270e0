"""Experts in MXFP4 as gpt-oss' checkpoints have them: blocks of 32 weights in one tensor, exponents in another."""

from functools import partial

import numpy as np

from edgellm.checkpoint.tensors import Rows, SourceTensor, block_shape
from edgellm.errors import CheckpointError
from edgellm.kernels.library import GROUP

_BLOCKS, _SCALES = "_blocks", "_scales"


def join_mxfp4(tensors: dict[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Return the tensors with each `NAME_blocks` [experts, rows, blocks, 16] and `NAME_scales` [experts, rows, blocks],
    both bytes, as one NAME [experts, rows, columns] in MXFP4. Raises CheckpointError if they don't go together."""
    found = dict(tensors)
    for name, blocks in tensors.items():
        if not name.endswith(_BLOCKS):
            continue
        whole = name.removesuffix(_BLOCKS)
        scales = tensors.get(whole + _SCALES)
        if scales is None or blocks.shape != (*scales.shape, GROUP // 2) or len(scales.shape) != 3:
            there = "no tensor" if scales is None else f"shape {list(scales.shape)}"
            raise CheckpointError(
                f"{blocks.origin} has shape {list(blocks.shape)} and {whole}{_SCALES} {there}, expected "
                f"[experts, rows, blocks, {GROUP // 2}] and [experts, rows, blocks]. Fetch the checkpoint again."
            )
        if (blocks.encoding, scales.encoding) != ("u8", "u8"):
            raise CheckpointError(f"{blocks.origin} and its scales are {blocks.encoding} and {scales.encoding}, not u8")
        shape = (*scales.shape[:-1], scales.shape[-1] * GROUP)
        del found[name], found[whole + _SCALES]
        found[whole] = SourceTensor(shape, "mxfp4", blocks.origin, partial(_joined, blocks, scales, shape))
    return found


def _joined(blocks: SourceTensor, scales: SourceTensor, shape: tuple[int, ...], transposed: bool) -> Rows:
    return _JoinedRows(blocks, scales, shape)


class _JoinedRows(Rows):
    """MXFP4 in GGUF's blocks: a byte with the exponent, then 16 with two weights each, of which the second lies half a
    block after the first. Checkpoints have neighbours in a byte."""

    def __init__(self, blocks: SourceTensor, scales: SourceTensor, shape: tuple[int, ...]):
        super().__init__(shape, "mxfp4")
        self._blocks, self._scales = blocks.rows(), scales.rows()

    def read(self, start: int, stop: int) -> np.ndarray:
        pairs, exponents = self._blocks.read(start, stop), self._scales.read(start, stop)
        codes = np.empty((*exponents.shape, GROUP), np.uint8)
        codes[..., 0::2], codes[..., 1::2] = pairs & 15, pairs >> 4
        whole = np.empty((*exponents.shape, 1 + GROUP // 2), np.uint8)
        whole[..., 0] = exponents
        whole[..., 1:] = codes[..., : GROUP // 2] | codes[..., GROUP // 2 :] << 4
        return whole.reshape(block_shape((stop - start, *self.shape[1:]), "mxfp4"))
