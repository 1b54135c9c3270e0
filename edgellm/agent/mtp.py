"""The drafter that a model itself brings: its head for multi-token prediction, beside the last section."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgellm.agent.drafters import Ask
from edgellm.limits import MAX_CHOICES
from edgellm.model.native.mtp import MtpHead, MtpSlot, Wanted
from edgellm.model.protocols import Section, Slot
from edgellm.model.sampler import Sampler

_MOST_WAITING = 2 * MAX_CHOICES  # hidden states that wait until drafts are asked for


class MtpDrafter:
    """Drafts with `head` for the sequences in these slots, by number, of a model with `vocab_size` tokens. It computes
    in the threads of its callers, in the turn of whichever calls."""

    name = "mtp"
    takes_hidden = True

    def __init__(self, head: MtpHead, slots: Sequence[MtpSlot], vocab_size: int):
        self._head, self._slots, self._vocab_size = head, slots, vocab_size

    def computed(self, slot: int, position: int, ids: Sequence[int], hidden: np.ndarray[Any, Any]) -> None:
        """Take in a step of the slot; of a prompt's, most is computed here already."""
        memory = self._slots[slot]
        memory.add(position, ids, hidden)
        if len(memory.ids) > _MOST_WAITING:
            self._head.take_in(memory, memory.ids[1:])

    def behind(self, ask: Ask) -> int:
        """Return how many tokens of `ask.ids` have to be computed before the first draft; at least 1."""
        return max(1, len(self._slots[ask.slot].agree(ask.ids)))

    def catch_up(self, ask: Ask) -> bool:
        """Compute these tokens, but not the last one; return whether any are left: none."""
        memory = self._slots[ask.slot]
        self._head.take_in(memory, memory.agree(ask.ids)[:-1])
        return False

    def drafts(self, asks: Sequence[Ask]) -> list[tuple[int, ...]]:
        """Return for each of `asks`, of different slots, up to `most` tokens that may follow. Raises ModelError for
        logits that aren't finite."""
        memories = [self._slots[ask.slot] for ask in asks]
        return [tuple(drafts) for drafts in self._head.drafts([
            Wanted(memory, memory.agree(ask.ids), ask.most, self._chooser(ask))
            for memory, ask in zip(memories, asks, strict=True)
        ])]  # fmt: skip

    def _chooser(self, ask: Ask) -> Any:
        sampler = Sampler(ask.sampling, self._vocab_size, ask.began)
        sampler.follow(ask.ids, len(ask.ids))

        def choose(logits: np.ndarray[Any, Any], position: int) -> int:
            token = sampler.choose(logits, position)
            sampler.append(token)
            return token

        return choose


def mtp_drafter(section: Section[Any], slots: Sequence[Slot]) -> MtpDrafter | None:
    """Return what drafts with the head that the last section of a model brings, None if it brings none. From then on
    the section keeps the hidden states of its last steps."""
    head, memories = getattr(section, "mtp", None), [getattr(slot, "mtp", None) for slot in slots]
    if head is None or None in memories:
        return None
    section.keeps_hidden = True  # type: ignore[attr-defined]  # native sections have it
    return MtpDrafter(head, [memory for memory in memories if memory], section.vocab_size)
