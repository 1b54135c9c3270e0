"""GenericSections of one model run in one process, as the boards run them."""

from pathlib import Path

import numpy as np

from edgellm.model.generic.section import GenericSection
from edgellm.shards.manifest import Manifest


def load(manifest: Manifest, folder: Path, cuts: tuple[int, ...]) -> list[GenericSection]:
    """GenericSections between consecutive cuts: (0, 2, 5) gives 0-2 and 2-5."""
    return [GenericSection.load(manifest, folder, a, b) for a, b in zip(cuts, cuts[1:], strict=False)]


class Ring:
    """Greedy decoding of one sequence through sections."""

    def __init__(self, sections: list[GenericSection], max_seq_len=96, kv_dtype="float32", chunk=7):
        self.sections, self.chunk = sections, chunk
        self.slots = [s.new_slot(max_seq_len, kv_dtype) for s in sections]
        self.switch_len = sections[0].structure.rope_switch_len
        self.ids: list[int] = []
        self.done = 0  # tokens in the slots

    def step(self, ids: list[int], position: int, pass_len: int, logits: int = 1) -> np.ndarray | None:
        """One pass of a chunk through all sections: the logits of its last token, float32 [1, vocab]."""
        x = np.array(ids, np.int64)
        for section, slot in zip(self.sections, self.slots, strict=True):
            x = section.forward(x, position, slot, pass_len, logits)
        return x

    def feed(self, ids: list[int]) -> int:
        """Add tokens and return the next one; starts over where LongRoPE changes its factors, as generate() does."""
        before, self.ids = len(self.ids), self.ids + ids
        if self.switch_len and 0 < before <= self.switch_len < len(self.ids):
            self.done = 0
        while self.done < len(self.ids):
            chunk = self.ids[self.done : self.done + self.chunk]
            last = self.done + len(chunk) == len(self.ids)
            logits = self.step(chunk, self.done, len(self.ids), int(last))
            self.done += len(chunk)
        return int(logits.argmax())

    def generate(self, prompt: list[int], new_tokens: int) -> list[int]:
        """Greedy continuation of a prompt."""
        out = [self.feed(prompt)]
        while len(out) < new_tokens:
            out.append(self.feed(out[-1:]))
        return out
