"""Pages: their names, which of them stay, and what the disk may do to their files."""

import os
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.agent import page_store
from edgellm.agent.page_store import PageStore
from edgellm.agent.pages import HEADER_BYTES, PAGE_TOKENS, Index, Origin, is_cheaper, next_key, pack, unpack
from edgellm.agent.slots import HeldSlot, ids_of

ORIGIN = Origin("a" * 64, 0, 3, "float16", "native b")
PAYLOAD = np.arange(100, dtype=np.uint8)
KEYS = [bytes([i]) * 32 for i in range(9)]


def test_whatever_keys_and_values_depend_on_makes_other_pages():
    origins = [ORIGIN, Origin("b" * 64, 0, 3, "float16", "native b"), Origin("a" * 64, 1, 3, "float16", "native b"),
               Origin("a" * 64, 0, 2, "float16", "native b"), Origin("a" * 64, 0, 3, "float32", "native b"),
               Origin("a" * 64, 0, 3, "float16", "native c")]  # fmt: skip
    roots = [origin.root("", False) for origin in origins] + [ORIGIN.root("anna", False), ORIGIN.root("", True)]
    assert len(set(roots)) == len(roots)
    ids = ids_of(range(64))
    assert next_key(roots[0], ids) == next_key(roots[0], ids_of(range(64)))
    assert len({next_key(root, ids) for root in roots} | {next_key(roots[0], ids_of(range(1, 65)))}) == len(roots) + 1


@pytest.mark.parametrize("at", [0, 8, 10, 12, 16, 24, 60, HEADER_BYTES, HEADER_BYTES + 99])
def test_a_page_with_one_wrong_byte_is_none(at):
    content = np.frombuffer(pack(KEYS[1], PAYLOAD) + PAYLOAD.tobytes(), np.uint8)
    assert np.array_equal(unpack(KEYS[1], content), PAYLOAD)
    assert unpack(KEYS[1], content[:at]) is None and unpack(KEYS[1], np.append(content, content[:1])) is None
    assert unpack(KEYS[2], content) is None
    other = content.copy()
    other[at] ^= 64
    assert unpack(KEYS[1], other) is None


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 60)), max_size=30))
def test_pages_stay_within_the_budget_and_the_oldest_go(adds):
    index, order, sizes = Index(100), [], {}
    for which, size in adds:
        gone = index.add(KEYS[which], size)
        order = [k for k in order if k != KEYS[which]] + [KEYS[which]]
        sizes[KEYS[which]] = size
        expected = []
        while sum(sizes[k] for k in order) > 100:
            expected.append(order.pop(0))
        assert gone == expected and index.bytes == sum(sizes[k] for k in order) and len(index) == len(order)


def test_the_last_pages_of_a_sequence_go_before_those_that_they_need():
    index, ids = Index(300), ids_of(range(3 * PAGE_TOKENS))
    keys, key = [], b"root"
    for i in range(3):
        keys.append(key := next_key(key, ids[i * 64 : i * 64 + 64]))
        index.add(key, 100)
    index.use(keys)
    assert index.find(b"root", ids, 3) == keys and index.find(b"root", ids, 2) == keys[:2]
    assert index.add(KEYS[0], 150) == [keys[2], keys[1]]
    assert index.find(b"root", ids, 3) == keys[:1] and index.find(b"other", ids, 3) == []


def test_what_is_read_more_slowly_than_computed_is_computed():
    assert is_cheaper(10**6, 64, 1e-8, 0.001) and not is_cheaper(10**7, 64, 1e-8, 0.001)
    assert is_cheaper(10**9, 64, 1.0, None)


@pytest.fixture
def store(tmp_path):
    made = PageStore(tmp_path / "cache", 10_000)
    assert made.open()
    yield made
    made.close()


def again(store: PageStore, budget_bytes: int = 10_000) -> PageStore:
    store.close()
    made = PageStore(store.folder, budget_bytes)
    made.open()
    return made


def test_pages_are_found_by_the_next_agent(store):
    assert store.write(KEYS[1], PAYLOAD) and store.write(KEYS[2], PAYLOAD[:50])
    store = again(store)
    store.expect(KEYS[1]), store.expect(KEYS[5])
    assert np.array_equal(store.read(KEYS[1]), PAYLOAD) and np.array_equal(store.read(KEYS[2]), PAYLOAD[:50])
    told = store.status()
    size = 2 * HEADER_BYTES + 150
    assert (told.pages, told.bytes, told.written_today_bytes) == (2, size, size)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (store.folder, *store.folder.iterdir())]
    assert modes == [0o700, 0o600, 0o600]
    store.close()


def test_the_order_of_use_outlives_the_agent(store):
    for key in KEYS[1:4]:
        store.write(key, PAYLOAD)
    for age_s, key in ((9e5, KEYS[3]), (8e5, KEYS[1]), (7e5, KEYS[2])):
        times = page_store.time.time() - age_s
        os.utime(store._path(key), (times, times))
    store.used([KEYS[3]], 64)
    store = again(store, 2 * (HEADER_BYTES + 100))
    assert [store.has(key) for key in KEYS[1:4]] == [False, True, True]
    assert len(list(store.folder.iterdir())) == 2
    store.close()


def test_a_budget_of_nothing_removes_what_is_there(store):
    store.write(KEYS[1], PAYLOAD)
    store.close()
    assert not PageStore(store.folder, 0).open()
    assert list(store.folder.iterdir()) == []


def test_what_is_no_page_stays_and_what_is_half_written_goes(store):
    (store.folder / "holiday.jpg").write_bytes(b"mine")
    (store.folder / f"{KEYS[1].hex()}.part").write_bytes(b"half")
    (store.folder / f"{KEYS[2].hex()}.page").mkdir()
    store = again(store)
    assert store.status().pages == 0 and store.read(KEYS[2]) is None
    assert sorted(path.name for path in store.folder.iterdir()) == [f"{KEYS[2].hex()}.page", "holiday.jpg"]
    store.close()


def test_two_agents_never_share_a_folder(store, caplog):
    assert not PageStore(store.folder, 100).open()
    assert "another agent uses it" in caplog.text


def test_a_disk_that_refuses_costs_pages_and_nothing_else(store, caplog, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page_store.os, "fdatasync", full)
    assert not store.write(KEYS[1], PAYLOAD) and "No space left" in caplog.text
    monkeypatch.undo()
    assert not store.write(KEYS[1], PAYLOAD) and list(store.folder.iterdir()) == []  # not for a while
    store._broken_until_s = 0.0
    assert store.write(KEYS[1], PAYLOAD)


def test_others_keep_some_of_the_disk(store, monkeypatch):
    monkeypatch.setattr(page_store, "_KEEP_FREE_BYTES", 1 << 60)
    assert not store.write(KEYS[1], PAYLOAD)


def test_a_day_writes_some_budgets_and_no_more(store, monkeypatch):
    day = page_store._today()
    monkeypatch.setattr(page_store, "_today", lambda: day)
    big = np.zeros(4000, np.uint8)
    written = 0
    while store.write(KEYS[written % 9], big):
        written += 1
    assert written == 8 * 10_000 // (HEADER_BYTES + 4000)
    monkeypatch.setattr(page_store, "_today", lambda: day + 1)
    assert store.status().written_today_bytes == 0 and store.write(KEYS[1], big)


class Memory:
    """A slot's memory in which a step may come between."""

    def __init__(self):
        self.between = lambda: None

    def export(self, start, end):
        self.between()
        return PAYLOAD


def test_what_changes_while_it_is_copied_is_no_page():
    slot = HeldSlot(Memory(), 0)
    ids = ids_of(range(64))
    slot.computed(0, ids)
    assert slot.export(0, ids, "", False) is PAYLOAD
    assert slot.export(0, ids, "anna", False) is None and slot.export(0, ids, "", True) is None
    assert slot.export(0, ids_of(range(1, 65)), "", False) is None
    changes = [lambda: slot.begin(63, (5,), False), lambda: slot.begin(64, (5,), True), lambda: slot.forget(),
               lambda: slot.give_to("anna", True)]  # fmt: skip
    for change in changes:
        slot = HeldSlot(slot.kv, 0)
        slot.computed(0, ids)
        slot.kv.between = change
        assert slot.export(0, ids, "", False) is None
    slot = HeldSlot(slot.kv, 0)
    slot.computed(0, ids)
    slot.kv.between = lambda: (slot.begin(64, (5,), False), slot.computed(64, (5,)))
    assert slot.export(0, ids, "", False) is PAYLOAD
