"""A small model that drafts: held whole on the last board, with slots of its own that follow those of the answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgellm.agent.drafters import Ask
from edgellm.agent.slots import HeldSlot, Ids, ids_of
from edgellm.model.protocols import Array, Section, Slot
from edgellm.model.sampler import Sampler
from edgellm.plan import Plan
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from edgellm.text.vocabulary import check_draft


class _Step(NamedTuple):
    x: Array
    position: int
    slot: Slot
    pass_len: int
    logits: int


class _Memory:
    """A slot, and the choice of tokens for the sequence that has it."""

    def __init__(self, slot: HeldSlot):
        self.slot = slot
        self._sampler: tuple[Sampling, int, Sampler] | None = None

    def sampler(self, ask: Ask, vocab_size: int, same: int) -> Sampler:
        """Return a sampler of the options of `ask`, whose text agrees with the one before in its first `same` tokens.
        """
        kept = self._sampler
        if kept is None or kept[:2] != (ask.sampling, ask.began) or same < ask.began:
            kept = self._sampler = ask.sampling, ask.began, Sampler(ask.sampling, vocab_size, ask.began)
        kept[2].follow(ask.ids, min(same, len(ask.ids)))
        kept[2].follow(ask.ids, len(ask.ids))
        return kept[2]


class DraftModel:
    """Drafts with `section`, all layers of a model whose tokens are those of the answering one, which has `vocab_size`
    of them. `slots` are numbered as those of the answers. It takes up to `chunk` tokens of a prompt at once."""

    name = "model"
    takes_hidden = False

    def __init__(
        self, section: Section[Any], slots: Sequence[Slot], vocab_size: int, chunk: int,
        rope_switch_len: int | None = None,
    ):  # fmt: skip
        self._section, self._vocab_size, self._chunk, self._switch = section, vocab_size, chunk, rope_switch_len
        self._memories = [_Memory(HeldSlot(slot, number)) for number, slot in enumerate(slots)]
        self._context = min((slot.max_seq_len for slot in slots), default=0)

    def computed(self, slot: int, position: int, ids: Sequence[int], hidden: np.ndarray[Any, Any]) -> None:
        """It takes nothing but tokens."""

    def behind(self, ask: Ask) -> int:
        """Return how many tokens of `ask.ids` have to be computed before the first draft; at least 1."""
        return len(ask.ids) - self._begins(ask)

    def catch_up(self, ask: Ask) -> bool:
        """Compute a chunk of these tokens, but not the last one; return whether any are left."""
        begin, last = self._begins(ask), min(len(ask.ids), self._context) - 1
        end = min(begin + self._chunk, last)
        if begin < end:
            self._run([(ask, begin, ask.ids[begin:end], 0)])
        return end < last

    def drafts(self, asks: Sequence[Ask]) -> list[tuple[int, ...]]:
        """Return for each of `asks`, of different slots, up to `most` tokens that may follow. Raises ModelError for
        logits that aren't finite."""
        found: list[list[int]] = [[] for _ in asks]
        most = [self._most(ask) for ask in asks]
        begins = [self._begins(ask) for ask in asks]
        samplers = [
            self._memories[ask.slot].sampler(ask, self._vocab_size, begin)
            for ask, begin in zip(asks, begins, strict=True)
        ]
        for step in range(max(most, default=0)):
            going = [i for i in range(len(asks)) if step < most[i]]
            work = []
            for i in going:
                ids = ids_of(found[i][-1:]) if step else asks[i].ids[begins[i] :]
                work.append((asks[i], len(asks[i].ids) + step - len(ids), ids, 1))
            for i, logits in zip(going, self._run(work), strict=True):
                assert logits is not None, "each step asks for logits"
                token = samplers[i].choose(self._within(logits[-1]), len(asks[i].ids) + step)
                samplers[i].append(token)
                found[i].append(token)
        return [tuple(drafts) for drafts in found]

    def _most(self, ask: Ask) -> int:
        """Return how many drafts there may be within a slot, whose last one needn't be computed, and within one set of
        rotary factors."""
        most = min(ask.most, self._context - len(ask.ids) + 1)
        if self._switch is not None and len(ask.ids) <= self._switch:
            most = min(most, self._switch - len(ask.ids) + 1)
        return max(0, most)

    def _begins(self, ask: Ask) -> int:
        """Return where computing has to begin: behind what the slot holds of these tokens, and never behind all."""
        slot = self._memories[ask.slot].slot
        return slot.begins_at(min(len(ask.ids) - 1, slot.shares(ask.ids, self._long(ask), "")))

    def _long(self, ask: Ask) -> bool:
        return self._switch is not None and len(ask.ids) > self._switch

    def _run(self, work: list[tuple[Ask, int, Ids, int]]) -> list[Array | None]:
        """Compute tokens at positions, each in its slot; return what the head gives for them."""
        steps = []
        for ask, position, ids, logits in work:
            slot = self._memories[ask.slot].slot
            assert slot.kv is not None, "slots are released with the model"
            slot.begin(position, ids, self._long(ask))
            x = np.array(ids, np.int64)
            x[x >= self._section.vocab_size] = 0  # a token that only the other model has
            pass_len = max(len(ask.ids), position + len(ids))
            steps.append(_Step(x, position, slot.kv, pass_len, logits))
        results = self._section.forward_many(steps)
        for ask, position, ids, _ in work:
            self._memories[ask.slot].slot.computed(position, ids)
        return results

    def _within(self, logits: Array) -> Array:
        """Return the logits of the answering model's tokens, which may be fewer or more than this one's."""
        if len(logits) >= self._vocab_size:
            return logits[: self._vocab_size]
        return np.concatenate([logits, np.full(self._vocab_size - len(logits), -np.inf, np.float32)])


def load_draft_model(plan: Plan, model: tuple[Manifest, Path], draft: tuple[Manifest, Path], load: Any) -> DraftModel:
    """Return the draft model of a `plan` of `model`, loaded from `draft`, with slots. Raises PlanError if their tokens
    differ, and what `load` raises."""
    check_draft(*model, *draft)
    manifest, folder = draft
    section = load(manifest, folder, 0, manifest.num_layers)
    context = min(plan.context, manifest.max_seq_len)
    slots = [section.new_slot(context, plan.kv_dtype) for _ in range(plan.slots)]
    return DraftModel(section, slots, model[0].vocab_size, plan.chunk, manifest.rope_switch_len)
