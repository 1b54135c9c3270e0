"""Pages: their names, which of them stay, and what the disk may do to their files."""

import os
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.agent import page_store
from edgellm.agent.page_index import Index
from edgellm.agent.page_memory import PageMemory
from edgellm.agent.page_section import Pick, SectionPages, Want, find, is_cheaper, lacking, pick
from edgellm.agent.page_store import PageStore
from edgellm.agent.pages import (
    KINDS,
    PAGE_TOKENS,
    Origin,
    Record,
    head_bytes,
    next_key,
    pack,
    record_of,
    unpack,
)  # fmt: skip
from edgellm.agent.slots import HeldSlot, ids_of
from edgellm.model.protocols import Memory

ORIGIN = Origin("a" * 64, "float16", "native b")
PAYLOAD = np.arange(100, dtype=np.uint8)
KV, WINDOW, STATE = KINDS["kv"], KINDS["window"], KINDS["state"]
KEYS = [bytes([i]) * 32 for i in range(9)]
RECORDS = [Record(key, KV, 0, 1) for key in KEYS]
HEAD = head_bytes(1)
IDS = ids_of(range(4 * PAGE_TOKENS))


def keys_of(root, ids=IDS):
    keys = [root]
    for i in range(len(ids) // PAGE_TOKENS):
        keys.append(next_key(keys[-1], ids[i * PAGE_TOKENS : (i + 1) * PAGE_TOKENS]))
    return keys[1:]


def test_whatever_keys_and_values_depend_on_makes_other_pages():
    origins = [ORIGIN, Origin("b" * 64, "float16", "native b"), Origin("a" * 64, "float32", "native b"),
               Origin("a" * 64, "float16", "native c")]  # fmt: skip
    roots = [origin.root("", False) for origin in origins] + [ORIGIN.root("anna", False), ORIGIN.root("", True)]
    assert len(set(roots)) == len(roots)
    ids = ids_of(range(64))
    assert next_key(roots[0], ids) == next_key(roots[0], ids_of(range(64)))
    assert len({next_key(root, ids) for root in roots} | {next_key(roots[0], ids_of(range(1, 65)))}) == len(roots) + 1


def test_a_name_tells_what_is_in_a_file():
    record = Record(KEYS[3], STATE, 4, 17)
    assert record.name == "03" * 32 + ".3-4-17.page" and record_of(record.name) == record
    for name in ("03" * 32 + ".page", "03" * 32 + ".9-4-17.page", "03" * 32 + ".1-4-4.page",
                 "03" * 32 + ".1-04-17.page", "03" * 31 + ".1-4-17.page", record.name + "x", "a.jpg"):  # fmt: skip
        assert record_of(name) is None


RECORD = Record(KEYS[1], KV, 3, 6)
PARTS = {3: PAYLOAD, 5: PAYLOAD[:40]}


@pytest.mark.parametrize("at", [0, 8, 10, 12, 16, 20, 24, 28, 60, 64, 72, 104, head_bytes(2) - 1])
def test_a_file_whose_beginning_has_one_wrong_byte_is_none(at):
    content = pack(RECORD, PARTS)
    size = len(content) + 140
    places = unpack(RECORD, content + b"more", size)
    assert len(content) == head_bytes(2) and [(layer, p.at, p.size) for layer, p in places.items()] == [
        (3, len(content), 100), (5, len(content) + 100, 40)
    ]  # fmt: skip
    assert places[5].holds(PAYLOAD[:40]) and not places[5].holds(PAYLOAD[1:41]) and not places[5].holds(PAYLOAD[:39])
    assert unpack(RECORD, content[:at], size) is None and unpack(RECORD, content, size + 1) is None
    for other in (RECORD._replace(key=KEYS[2]), RECORD._replace(kind=STATE), RECORD._replace(first=2)):
        assert unpack(other, content, size) is None
    assert unpack(RECORD, content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :], size) is None


def test_layers_are_taken_from_whatever_records_have_them():
    want = Want(KV, (4, 5, 6, 7))
    narrow, wide, state = Record(KEYS[0], KV, 4, 6), Record(KEYS[0], KV, 0, 12), Record(KEYS[0], STATE, 0, 12)
    assert pick(want, [[wide]]) == [Pick(0, wide, (4, 5, 6, 7))]
    assert pick(want, [[state, narrow], [wide]]) == [Pick(0, narrow, (4, 5)), Pick(1, wide, (6, 7))]
    assert pick(want, [[state, narrow]]) is None and pick(want, []) is None
    assert lacking(want, KEYS[0], [state, narrow]) == [(Record(KEYS[0], KV, 6, 8), (6, 7))]
    middle = Record(KEYS[0], KV, 5, 7)
    assert lacking(want, KEYS[0], [middle]) == [
        (Record(KEYS[0], KV, 4, 5), (4,)), (Record(KEYS[0], KV, 7, 8), (7,))
    ]  # fmt: skip
    assert lacking(want, KEYS[0], [wide]) == []
    apart = Want(KV, (3, 7, 11))  # attention in every fourth layer
    assert lacking(apart, KEYS[0], []) == [(Record(KEYS[0], KV, 3, 12), (3, 7, 11))]
    assert lacking(apart, KEYS[0], [middle, Record(KEYS[0], KV, 7, 8)]) == [
        (Record(KEYS[0], KV, 3, 4), (3,)), (Record(KEYS[0], KV, 11, 12), (11,))
    ]  # fmt: skip


def test_a_section_begins_where_all_its_kinds_of_memory_do():
    """Layers: state, window of 100 tokens, full attention."""
    section = SectionPages(ORIGIN, 3, [Memory("state", 1), Memory("window", 100), Memory()])
    assert section.wants == (Want(STATE, (3,), 1), Want(WINDOW, (4,), 2), Want(KV, (5,)))
    root = b"root"
    keys = keys_of(root)
    records: dict[bytes, list[Record]] = {}

    def found():
        pages = find(root, IDS, 4, section.wants, [lambda key: records.get(key, [])])
        return [sorted(layer for p in page for layer in p.layers) for page in pages]

    for key in keys[:3]:
        records[key] = [Record(key, KV, 5, 6)]
    assert found() == []
    records[keys[2]].append(Record(keys[2], STATE, 0, 4))
    assert found() == []
    records[keys[2]].append(Record(keys[2], WINDOW, 4, 5))
    assert found() == []
    records[keys[1]].append(Record(keys[1], WINDOW, 4, 5))
    assert found() == [[5], [4, 5], [3, 4, 5]]
    records[keys[3]] = [Record(keys[3], KV, 0, 9)]  # no checkpoint there
    assert found() == [[5], [4, 5], [3, 4, 5]]
    records[keys[0]].append(Record(keys[0], STATE, 3, 4))
    records[keys[2]].pop(1)
    assert found() == []  # the window at the first page's end isn't there
    records[keys[0]].append(Record(keys[0], WINDOW, 3, 5))
    assert found() == [[3, 4, 5]]
    records[keys[0]].pop(0)
    assert found() == []


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 60)), max_size=30))
def test_pages_stay_within_the_budget_and_the_oldest_go(adds):
    index, order, sizes = Index(100), [], {}
    for which, size in adds:
        gone = index.add(RECORDS[which], size)
        order = [k for k in order if k != RECORDS[which]] + [RECORDS[which]]
        sizes[RECORDS[which]] = size
        expected = []
        while sum(sizes[k] for k in order) > 100:
            expected.append(order.pop(0))
        assert gone == expected and index.bytes == sum(sizes[k] for k in order) and index.pages == len(order)


def test_the_last_pages_of_a_sequence_go_before_those_that_they_need():
    index = Index(300)
    records = [Record(key, KV, 0, 1) for key in keys_of(b"root")[:3]]
    for record in records:
        index.add(record, 100)
    index.use(records)

    def found(root, pages):
        return [p.record for page in find(root, IDS, pages, [Want(KV, (0,))], [index.of]) for p in page]

    assert found(b"root", 3) == records and found(b"root", 2) == records[:2]
    assert index.add(RECORDS[0], 150) == [records[2], records[1]]
    assert found(b"root", 3) == records[:1] and found(b"other", 3) == []


def test_records_of_one_page_are_counted_as_one_page():
    index = Index(1000)
    first, second = Record(KEYS[0], KV, 0, 4), Record(KEYS[0], KV, 4, 6)
    index.add(first, 100), index.add(second, 50), index.add(RECORDS[1], 10)
    assert (index.pages, index.bytes, index.bytes_at(KEYS[0])) == (2, 160, 150) and index.of(KEYS[0]) == (first, second)
    index.remove(first), index.remove(first)
    assert (index.pages, index.bytes, index.of(KEYS[0])) == (2, 60, (second,))
    index.remove(second)
    assert (index.pages, index.of(KEYS[0])) == (1, ())
    index.budget_bytes = 5
    assert index.shrink() == [RECORDS[1]] and index.bytes == 0


def test_what_is_read_more_slowly_than_computed_is_computed():
    assert is_cheaper(10**6, 64, 1e-8, 0.001) and not is_cheaper(10**7, 64, 1e-8, 0.001)
    assert is_cheaper(10**9, 64, 1.0, None)


def picks(*records):
    return [Pick(1, record, tuple(range(record.first, record.end))) for record in records]


def read(store, record):
    parts = store.read(picks(record))
    return None if parts is None else parts[0]


def write(store, record, part=PAYLOAD):
    return store.write(record, {0: part})


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
    assert write(store, RECORDS[1], PAYLOAD) and write(store, RECORDS[2], PAYLOAD[:50])
    store = again(store)
    store.expect(RECORDS[1]), store.expect(RECORDS[5])
    assert np.array_equal(read(store, RECORDS[1]), PAYLOAD) and np.array_equal(read(store, RECORDS[2]), PAYLOAD[:50])
    size = 2 * HEAD + 150
    assert (store.pages, store.size_bytes, store.written_today_bytes) == (2, size, size)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (store.folder, *store.folder.iterdir())]
    assert modes == [0o700, 0o600, 0o600]
    store.close()


def test_the_order_of_use_outlives_the_agent(store):
    for record in RECORDS[1:4]:
        write(store, record)
    for age_s, record in ((9e5, RECORDS[3]), (8e5, RECORDS[1]), (7e5, RECORDS[2])):
        times = page_store.time.time() - age_s
        os.utime(store._path(record), (times, times))
    store.used([RECORDS[3]])
    store = again(store, 2 * (HEAD + 100))
    assert [bool(store.records_of(key)) for key in KEYS[1:4]] == [False, True, True]
    assert len(list(store.folder.iterdir())) == 2
    store.close()


def test_a_budget_of_nothing_removes_what_is_there(store):
    write(store, RECORDS[1], PAYLOAD)
    store.close()
    assert not PageStore(store.folder, 0).open()
    assert list(store.folder.iterdir()) == []


def test_what_is_no_page_stays_and_what_is_half_written_goes(store):
    (store.folder / "holiday.jpg").write_bytes(b"mine")
    (store.folder / f"{KEYS[1].hex()}.1-0-1.part").write_bytes(b"half")
    (store.folder / RECORDS[2].name).mkdir()
    store = again(store)
    assert store.pages == 0 and read(store, RECORDS[2]) is None
    assert sorted(path.name for path in store.folder.iterdir()) == [RECORDS[2].name, "holiday.jpg"]
    store.close()


def test_files_of_format_1_and_of_unknown_kinds_go(store):
    write(store, RECORDS[1])
    for name in (f"{KEYS[1].hex()}.page", f"{KEYS[1].hex()}.4-0-1.page", f"{KEYS[1].hex()}.1-0-1-7.page"):
        (store.folder / name).write_bytes(b"EDGEPAGE\1\0")
    store = again(store)
    assert [path.name for path in store.folder.iterdir()] == [RECORDS[1].name] and store.pages == 1
    store.close()


def test_some_layers_of_several_records_are_read_and_checked_alone(store):
    first, second = Record(KEYS[1], KV, 0, 3), Record(KEYS[1], KV, 3, 5)
    assert store.write(first, {layer: PAYLOAD + layer for layer in range(3)})
    assert store.write(second, {layer: PAYLOAD[:70] + layer for layer in (3, 4)})
    some = [Pick(1, first, (1, 2)), Pick(1, second, (3,))]
    expected = {1: PAYLOAD + 1, 2: PAYLOAD + 2, 3: PAYLOAD[:70] + 3}

    def same():
        parts = store.read(some)
        return parts.keys() == expected.keys() and all(np.array_equal(parts[i], expected[i]) for i in parts)

    assert same() and same() and store.size_bytes // 2 < store.bytes_of(some) < store.size_bytes
    path = store.folder / first.name
    content = bytearray(path.read_bytes())
    content[head_bytes(3) + 50] ^= 1  # of layer 0, which nobody wants
    path.write_bytes(content)
    assert same()
    content[head_bytes(3) + 150] ^= 1
    path.write_bytes(content)
    assert store.read(some) is None and not path.exists() and store.records_of(KEYS[1]) == (second,)


def test_two_agents_never_share_a_folder(store, caplog):
    assert not PageStore(store.folder, 100).open()
    assert "another agent uses it" in caplog.text


def test_a_disk_that_refuses_costs_pages_and_nothing_else(store, caplog, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page_store.os, "fdatasync", full)
    assert not write(store, RECORDS[1], PAYLOAD) and "No space left" in caplog.text
    monkeypatch.undo()
    assert not write(store, RECORDS[1], PAYLOAD) and list(store.folder.iterdir()) == []  # not for a while
    store._broken_until_s = 0.0
    assert write(store, RECORDS[1], PAYLOAD)


def test_others_keep_some_of_the_disk(store, monkeypatch):
    monkeypatch.setattr(page_store, "_KEEP_FREE_BYTES", 1 << 60)
    assert not write(store, RECORDS[1], PAYLOAD)


def test_a_day_writes_some_budgets_and_no_more(store, monkeypatch):
    day = page_store._today()
    monkeypatch.setattr(page_store, "_today", lambda: day)
    big = np.zeros(4000, np.uint8)
    written = 0
    while write(store, RECORDS[written % 9], big):
        written += 1
    assert written == 8 * 10_000 // (HEAD + 4000)
    monkeypatch.setattr(page_store, "_today", lambda: day + 1)
    assert store.written_today_bytes == 0 and write(store, RECORDS[1], big)


class Stored:
    """A slot's memory in which a step may come between."""

    earliest, checkpoint, filled = 0, 0, 1 << 20

    def __init__(self):
        self.between = lambda: None

    def export(self, start, end, layers):
        self.between()
        return [PAYLOAD]


def test_what_changes_while_it_is_copied_is_no_page():
    slot = HeldSlot(Stored(), 0)
    ids = ids_of(range(64))
    slot.computed(0, ids)
    assert slot.export(0, ids, "", False, {0}) == [PAYLOAD]
    assert slot.export(0, ids, "anna", False, {0}) is None and slot.export(0, ids, "", True, {0}) is None
    assert slot.export(0, ids_of(range(1, 65)), "", False, {0}) is None
    changes = [lambda: slot.begin(63, (5,), False), lambda: slot.begin(64, (5,), True), lambda: slot.forget(),
               lambda: slot.give_to("anna", True)]  # fmt: skip
    for change in changes:
        slot = HeldSlot(slot.kv, 0)
        slot.computed(0, ids)
        slot.kv.between = change
        assert slot.export(0, ids, "", False, {0}) is None
    slot = HeldSlot(slot.kv, 0)
    slot.computed(0, ids)
    slot.kv.between = lambda: (slot.begin(64, (5,), False), slot.computed(64, (5,)))
    assert slot.export(0, ids, "", False, {0}) == [PAYLOAD]


def test_a_slot_that_is_released_keeps_no_memory():
    slot = HeldSlot(Stored(), 0)
    slot.computed(0, ids_of(range(64)))
    slot.release()
    assert slot.kv is None and slot.export(0, ids_of(()), "", False, {0}) is None


def test_pages_in_ram_stay_within_what_is_left_for_them():
    memory = PageMemory(1000)
    assert not write(memory, RECORDS[1])  # nothing is, until it is known
    memory.limit(250)
    source = PAYLOAD.copy()
    assert write(memory, RECORDS[1], source) and write(memory, RECORDS[2])
    source[:] = 0
    assert np.array_equal(read(memory, RECORDS[1]), PAYLOAD)  # a copy
    memory.used([RECORDS[1]])
    kept = read(memory, RECORDS[1])
    assert write(memory, RECORDS[3]) and read(memory, RECORDS[2]) is None and memory.records_of(KEYS[2]) == ()
    assert (memory.pages, memory.size_bytes, memory.budget_bytes) == (2, 200, 250)
    assert memory.parts_of(KEYS[1], {5}) == {} and np.array_equal(memory.parts_of(KEYS[1], {0, 5})[0], PAYLOAD)
    memory.limit(150)
    assert [bool(memory.records_of(key)) for key in KEYS[1:4]] == [False, False, True]
    memory.limit(99)
    assert (memory.pages, memory.size_bytes) == (0, 0) and not write(memory, RECORDS[1])
    assert np.array_equal(kept, PAYLOAD)  # who reads it has it to the end
    memory.limit(10**6)
    assert memory.budget_bytes == 1000
