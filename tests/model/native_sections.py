"""Native sections of one model run in one process, as the boards run them, and what they are compared with."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from edgellm.model.native.section import NativeSection, read_spec
from edgellm.shards.manifest import Manifest


def load(manifest: Manifest, folder: Path, cuts: tuple[int, ...]) -> list[NativeSection]:
    """Native sections between consecutive cuts."""
    spec, reason = read_spec(manifest, folder)
    assert spec is not None, reason
    return [NativeSection(spec, manifest, folder, a, b) for a, b in zip(cuts, cuts[1:], strict=False)]


def step(x, position, slot, pass_len, logits):
    return SimpleNamespace(x=x, position=position, slot=slot, pass_len=pass_len, logits=logits)


class NativeRing:
    """One sequence through native sections."""

    def __init__(self, sections: list[NativeSection], max_seq_len: int = 96, kv_dtype: str = "float16"):
        self.sections = sections
        self.slots = [s.new_slot(max_seq_len, kv_dtype) for s in sections]
        self.switch_len = sections[0].spec.rope_switch_len
        self.ids: list[int] = []
        self.done = 0  # tokens in the slots

    def step(self, ids, position: int, pass_len: int, logits: int = 1) -> np.ndarray | None:
        """One pass of a chunk through all sections: logits float32 [logits, vocab]."""
        x = np.array(ids, np.int64)
        for section, slot in zip(self.sections, self.slots, strict=True):
            x = section.forward(x, position, slot, pass_len, logits)
        return x

    def logits(self, ids, chunks: tuple[int, ...]) -> np.ndarray:
        """Logits after every token of a sequence that is fed in chunks of these sizes, again and again."""
        found, at, turn = [], 0, 0
        while at < len(ids):
            count = min(chunks[turn % len(chunks)], len(ids) - at)
            found.append(self.step(ids[at : at + count], at, len(ids), count))
            at, turn = at + count, turn + 1
        return np.concatenate(found)

    def feed(self, ids: list[int]) -> int:
        """Add tokens and return the next one; starts over where LongRoPE changes its factors, as generate() does."""
        before, self.ids = len(self.ids), self.ids + ids
        if self.switch_len and 0 < before <= self.switch_len < len(self.ids):
            self.done = 0
        rest = self.ids[self.done :]
        logits = self.step(rest, self.done, len(self.ids))
        self.done = len(self.ids)
        return int(logits[0].argmax())

    def generate(self, prompt: list[int], new_tokens: int) -> list[int]:
        """Greedy continuation of a prompt."""
        out = [self.feed(prompt)]
        while len(out) < new_tokens:
            out.append(self.feed(out[-1:]))
        return out


def reference_logits(model, ids) -> np.ndarray:
    """transformers' logits after every token."""
    with torch.inference_mode():
        return model(torch.tensor([list(ids)])).logits[0].numpy()


def rounded(x: torch.Tensor) -> torch.Tensor:
    """x as integer products take it: int8 in groups of 32."""
    groups = x.reshape(-1, 32)
    largest = groups.abs().amax(1, keepdim=True).clamp(min=1e-30)
    return ((groups * (127 / largest)).round() * (largest / 127)).view(x.shape)


@contextmanager
def rounded_inputs(model):
    """While entered, every linear module of the model sees its input as int8 in groups."""
    kinds = torch.nn.Linear, Conv1D
    hooks = [m.register_forward_pre_hook(lambda _, args: (rounded(args[0]),)) for m in model.modules()
             if isinstance(m, kinds)]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def difference(a: np.ndarray, b: np.ndarray, of=np.max) -> float:
    """The largest norm of a row's difference relative to the row's norm, or what `of` says of them all."""
    return float(of(np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)))


def check_near(manifest: Manifest, folder: Path, cuts: tuple[int, ...], ids: list[int], expected: np.ndarray) -> None:
    """Assert that packed weights give about these logits of all tokens, and the same bits in other chunks."""
    sections = load(manifest, folder, cuts)
    found = NativeRing(sections, kv_dtype="float32").logits(ids, (len(ids),))
    assert difference(found, expected, np.median) < 0.05
    assert np.array_equal(NativeRing(sections, kv_dtype="float32").logits(ids, (1, 7)), found)
