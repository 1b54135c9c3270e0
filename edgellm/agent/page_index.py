"""Which records of pages a tier has, and which go first. No disk, and no clock."""

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence

from edgellm.agent.pages import Record


class Index:
    """Records, their bytes, and which were used last. Those that were used least recently go first, as soon as all
    together are more than `budget_bytes`."""

    def __init__(self, budget_bytes: int):
        self.budget_bytes, self.bytes = budget_bytes, 0
        self._sizes: OrderedDict[Record, int] = OrderedDict()  # the one that was used last at the end
        self._by_key: dict[bytes, tuple[Record, ...]] = {}

    def __contains__(self, record: Record) -> bool:
        return record in self._sizes

    @property
    def pages(self) -> int:
        """How many pages there is anything of."""
        return len(self._by_key)

    def of(self, key: bytes) -> tuple[Record, ...]:
        """Return the records of a page."""
        return self._by_key.get(key, ())

    def size_of(self, record: Record) -> int:
        """Return the bytes of a record; 0 if there is none."""
        return self._sizes.get(record, 0)

    def bytes_at(self, key: bytes) -> int:
        """Return the bytes of a page's records."""
        return sum(self._sizes[record] for record in self.of(key))

    def add(self, record: Record, size: int) -> list[Record]:
        """Add a record as the one that was used last; return those that have to go for it."""
        self.remove(record)
        self._sizes[record] = size
        self._by_key[record.key] = (*self.of(record.key), record)
        self.bytes += size
        return self.shrink()

    def shrink(self) -> list[Record]:
        """Forget records until all are within the budget; return these."""
        gone: list[Record] = []
        while self.bytes > self.budget_bytes:
            gone.append(next(iter(self._sizes)))
            self.remove(gone[-1])
        return gone

    def remove(self, record: Record) -> None:
        """Forget a record, if it is there."""
        size = self._sizes.pop(record, None)
        if size is None:
            return
        self.bytes -= size
        if left := tuple(other for other in self.of(record.key) if other != record):
            self._by_key[record.key] = left
        else:
            del self._by_key[record.key]

    def use(self, records: Iterable[Record]) -> None:
        """Record that a sequence uses these records, in the order of its pages: the first ones last, because the others
        are of no use without those before them."""
        for record in reversed(list(records)):
            if record in self._sizes:
                self._sizes.move_to_end(record)


class Tier:
    """Records in one place, at most `budget_bytes`, and what is asked about them. For several threads."""

    def __init__(self, budget_bytes: int):
        self._lock = threading.Lock()
        self._index = Index(budget_bytes)

    @property
    def budget_bytes(self) -> int:
        """The most that the records may take now."""
        return self._index.budget_bytes

    @property
    def pages(self) -> int:
        """How many pages there is anything of."""
        return self._index.pages

    @property
    def size_bytes(self) -> int:
        """The bytes of all records."""
        return self._index.bytes

    def records_of(self, key: bytes) -> tuple[Record, ...]:
        """Return the records of a page."""
        with self._lock:
            return self._index.of(key)

    def bytes_at(self, key: bytes) -> int:
        """Return the bytes of a page's records."""
        with self._lock:
            return self._index.bytes_at(key)

    def bytes_of_kinds(self, key: bytes, kinds: Collection[int]) -> int:
        """Return the bytes of a page's records of these kinds."""
        with self._lock:
            return sum(self._index.size_of(record) for record in self._index.of(key) if record.kind in kinds)

    def used(self, records: Sequence[Record]) -> None:
        """Record that a sequence uses these records, in the order of its pages."""
        with self._lock:
            self._index.use(records)
