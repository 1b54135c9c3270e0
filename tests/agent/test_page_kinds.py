"""Layers with a window or a recurrent state keep pages of their own kind; a slot goes on where all kinds allow it."""

import threading
import time

import numpy as np
import pytest

from edgellm.agent.page_keep import Keeping, Save
from edgellm.agent.page_memory import PageMemory
from edgellm.agent.page_restore import Restore, Restoring
from edgellm.agent.page_section import SectionPages
from edgellm.agent.page_store import PageStore
from edgellm.agent.pages import PAGE_TOKENS, Origin
from edgellm.agent.slots import HeldSlot, ids_of
from edgellm.model.protocols import Memory

MEMORIES = (Memory("state", 1), Memory("window", 100), Memory())
SECTION = SectionPages(Origin("a" * 64, "float16", "hybrid"), 3, MEMORIES)
IDS = ids_of(range(1, 300))
MB = 1 << 20


class Hybrid:
    """A slot of three layers: a state that it has at its `checkpoints`, a window that it has from `windows` on, and
    full attention. `held` has what was restored, by layer and end."""

    earliest, checkpoint, filled = 0, 0, 1 << 20

    def __init__(self, checkpoints=(128, 256), windows=64):
        self.checkpoints, self.windows = checkpoints, windows
        self.asked: list[tuple[int, tuple[int, ...]]] = []
        self.held: dict[tuple[int, int], bytes] = {}

    def export(self, start, end, layers):
        self.asked.append((end, tuple(sorted(layers))))
        has = (end in self.checkpoints, start >= self.windows, True)
        return [what(i, end) if has[i] and i in layers else None for i in range(3)]

    def restore(self, start, end, parts):
        self.held |= {(i, end): part.tobytes() for i, part in enumerate(parts) if part is not None}


def what(layer, end):
    return np.full(50 * (layer + 1), (7 * layer + end // 64) % 251, np.uint8)


@pytest.fixture(params=["ram", "disk"])
def tiers(request, tmp_path):
    """A RAM and a disk, of which one keeps pages."""
    memory, store = PageMemory(MB), PageStore(tmp_path, MB)
    if request.param == "ram":
        memory.limit(MB)
        yield memory, None
    else:
        assert store.open()
        yield memory, store
        store.close()


def keep(tiers, slot, ids=IDS):
    held = HeldSlot(slot, 0)
    held.computed(0, ids)
    keeping, job = Keeping(*tiers, threading.Event()), Save(SECTION, held, ids, b"root", "", False, lambda: True)
    keeping.in_ram(job)
    keeping.on_disk(job)


def restore(tiers, most=298, before=0):
    """Return how many tokens were found, how many the slot has then, and the slot."""
    restoring, slot = Restoring(*tiers), HeldSlot(Hybrid(), 0)
    slot.computed(0, IDS[:before])
    pages = restoring.find(SECTION, b"root", IDS, most, before, None)
    told = []
    restoring.restore(
        Restore(SECTION, slot, IDS, before // PAGE_TOKENS, pages, None, told.append, time.monotonic())
    )
    assert told == [len(slot.ids)] and slot.ids == IDS[: told[0]]
    return len(pages) * PAGE_TOKENS, told[0], slot.kv


def test_a_slot_goes_on_at_the_last_checkpoint_whose_window_is_there(tiers):
    keep(tiers, Hybrid())
    found, there, slot = restore(tiers)
    assert (found, there) == (256, 256)
    assert slot.held == {
        **{(2, end): what(2, end).tobytes() for end in (64, 128, 192, 256)},
        **{(1, end): what(1, end).tobytes() for end in (192, 256)},  # 100 tokens
        (0, 256): what(0, 256).tobytes(),
    }
    assert restore(tiers, most=255)[:2] == (0, 0)  # of the window before 128, half isn't there


def test_without_a_checkpoint_nothing_is_found(tiers):
    keep(tiers, Hybrid(checkpoints=()))
    assert restore(tiers)[:2] == (0, 0)


def test_a_checkpoint_that_comes_later_is_kept_then(tiers):
    keep(tiers, Hybrid(checkpoints=(), windows=0))
    slot = Hybrid(checkpoints=(192,))
    keep(tiers, slot)
    assert slot.asked == [(64, (0,)), (128, (0,)), (192, (0,)), (256, (0,))]  # the rest is there
    assert restore(tiers)[:2] == (192, 192)


def test_what_is_not_whole_to_the_last_page_leaves_the_slot_as_it_was_or_empty(tiers):
    memory, store = tiers
    for lost, there in ((128, 64), (192, 64), (256, 0)):
        keep(tiers, Hybrid())
        read, pages = (store or memory).read, []

        def some(picks, read=read, pages=pages, lost=lost):
            pages.append(picks)
            return None if len(pages) == lost // 64 - 1 else read(picks)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store or memory, "read", some)
            assert restore(tiers, before=64)[:2] == (256, there)
