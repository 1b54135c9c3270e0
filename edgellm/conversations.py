"""Kept conversations: one SQLite file that `edgellm serve` and `edgellm chat` share. An owner, which is the name of an
API key, sees only its own.

    store = Conversations()
    talk = store.new("kitchen")
    store.append("kitchen", talk.id, [Message("user", "Why is the sky blue?")])
    store.last("kitchen").messages
"""

import contextlib
import json
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from edgellm.errors import ConversationError, NoConversationError

STATE = "EDGELLM_STATE"  # environment variable: the folder of what a server keeps
ROLES = ("system", "user", "assistant", "tool")
MAX_TITLE = 120  # characters
MAX_TEXT = 2_000_000  # characters of a message
MAX_MESSAGES = 4000  # of a conversation
MAX_CONVERSATIONS = 10_000  # of an owner
_MAX_SETTINGS = 100_000  # characters of JSON
_MAX_WORDS = 12  # of a search
_EXCERPT = 160  # characters
_BUSY_S = 5.0  # that one program waits for another to finish writing
_VERSION = 1
_SCHEMA = """
CREATE TABLE conversation(
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, title TEXT NOT NULL, model TEXT NOT NULL, settings TEXT NOT NULL,
    created_s REAL NOT NULL, changed_s REAL NOT NULL
);
CREATE INDEX conversation_by_owner ON conversation(owner, changed_s);
CREATE TABLE message(
    id INTEGER PRIMARY KEY, conversation TEXT NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
    position INTEGER NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL, reasoning TEXT NOT NULL, model TEXT NOT NULL,
    finish TEXT NOT NULL, timings TEXT NOT NULL, created_s REAL NOT NULL, UNIQUE(conversation, position)
);
"""
_INDEX = """
CREATE VIRTUAL TABLE message_words USING fts5(
    content, content='message', content_rowid='id', tokenize="unicode61 remove_diacritics 2"
);
CREATE TRIGGER message_added AFTER INSERT ON message BEGIN
    INSERT INTO message_words(rowid, content) VALUES (new.id, new.content);
END;
CREATE TRIGGER message_deleted AFTER DELETE ON message BEGIN
    INSERT INTO message_words(message_words, rowid, content) VALUES ('delete', old.id, old.content);
END;
"""


@dataclass(frozen=True)
class Message:
    """One message. `finish` is why an answer ended ("" while unknown), `timings` are numbers of how it was computed."""

    role: str
    content: str
    reasoning: str = ""
    model: str = ""
    finish: str = ""
    timings: Mapping[str, Any] = field(default_factory=dict)
    created_s: float = 0.0  # seconds since 1970; 0: now


@dataclass(frozen=True)
class Conversation:
    """A conversation: `settings` are what its asker chose, such as a system prompt. A list's have no messages, but
    `count` of them. `excerpt` is where a search found its words."""

    id: str
    title: str
    model: str
    settings: Mapping[str, Any]
    created_s: float
    changed_s: float
    count: int
    messages: tuple[Message, ...] = ()
    excerpt: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return it as a page of Markdown; the messages are as they are."""
        lines = [f"# {self.title or 'Conversation'}"]
        if system := self.settings.get("system"):
            lines += ["## System", str(system)]
        for message in self.messages:
            who = {"user": "You", "assistant": message.model or "Assistant"}.get(message.role, message.role.title())
            lines.append(f"## {who}")
            if message.reasoning:
                lines.append("\n".join(f"> {line}" for line in message.reasoning.splitlines()))
            lines.append(message.content)
        return "\n\n".join(lines) + "\n"


def state_folder() -> Path:
    """Return the folder of what a server keeps: $EDGELLM_STATE, or this user's own."""
    return Path(os.environ.get(STATE) or platformdirs.user_state_dir("edgellm"))


class Conversations:
    """The conversations in one file, which only this user may read. Any thread may call; several programs may have the
    file open at once.

    Methods raise NoConversationError for an id that `owner` doesn't have, and ConversationError for what can't be kept
    or read.
    """

    def __init__(self, path: Path | None = None):
        """Open the file, and make it if there is none. Raises ConversationError for one that can't be used."""
        self.path = path or state_folder() / "conversations.db"
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self.path, flags, 0o600)
            try:
                os.fchmod(fd, 0o600)  # SQLite gives its other files the same
            finally:
                os.close(fd)
            self._db = sqlite3.connect(self.path, _BUSY_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as e:
            raise ConversationError(f"conversations can't be kept in {self.path}: {_reason(e)}") from None
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        with self._errors():
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "secure_delete=ON"):
                self._db.execute(f"PRAGMA {pragma}").close()
        with self._writing() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise ConversationError(
                    f"{self.path} has the format {version}, this edgellm knows {_VERSION} at most: upgrade edgellm"
                )
            if version == 0:
                _run(db, _SCHEMA)
                if _has_fts5():
                    _run(db, _INDEX)
                db.execute(f"PRAGMA user_version={_VERSION}")
        with self._errors():
            names = self._db.execute("SELECT name FROM sqlite_master WHERE name = 'message_words'").fetchall()
        self._indexed = bool(names)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def new(self, owner: str, *, title: str = "", model: str = "", settings: Mapping[str, Any] | None = None,
            messages: Sequence[Message] = ()) -> Conversation:  # fmt: skip
        """Return a new conversation. Without a title, it gets one from its first question."""
        now, id_ = time.time(), secrets.token_urlsafe(12)
        with self._writing() as db:
            count = db.execute("SELECT count(*) FROM conversation WHERE owner = ?", (owner,)).fetchone()[0]
            if count >= MAX_CONVERSATIONS:
                raise ConversationError(f"{count} conversations are kept, at most {MAX_CONVERSATIONS}: delete some")
            db.execute(
                "INSERT INTO conversation VALUES (?, ?, ?, ?, ?, ?, ?)",
                (id_, owner, _title(title), model, _settings(settings or {}), now, now),
            )
            _append(db, id_, messages, now)
            return _read(db, owner, id_)

    def recent(self, owner: str, limit: int = 100, offset: int = 0) -> list[Conversation]:
        """Return an owner's conversations without their messages, the last used one first."""
        query = f"{_SUMMARY} WHERE owner = ? ORDER BY changed_s DESC, rowid DESC LIMIT ? OFFSET ?"
        with self._reading() as db:
            return [_summary(row) for row in db.execute(query, (owner, limit, offset))]

    def search(self, owner: str, text: str, limit: int = 50) -> list[Conversation]:
        """Return the conversations that have all words of `text` in one message or in their title, the last used one
        first, each with an excerpt; words may be beginnings of words."""
        words = re.findall(r"\w+", text)[:_MAX_WORDS]
        if not words:
            return []
        every = " AND ".join(["{} LIKE ? ESCAPE '\\'"] * len(words))
        likes = [f"%{_like(word)}%" for word in words]
        hit, values = every.format(*["content"] * len(words)), list(likes)
        if self._indexed:
            hit, values = "message.id IN (SELECT rowid FROM message_words WHERE message_words MATCH ?)", [_match(words)]
        first = f"SELECT content FROM message WHERE conversation = c.id AND {hit} ORDER BY position LIMIT 1"
        query = f"""
            SELECT {_COLUMNS}, ({first}) AS found FROM conversation c
            WHERE owner = ? AND (found IS NOT NULL OR {every.format(*["title"] * len(words))})
            ORDER BY changed_s DESC LIMIT ?"""
        with self._reading() as db:
            rows = db.execute(query, (*values, owner, *likes, limit)).fetchall()
        return [_summary(row[:-1], excerpt(row[-1] or "", words)) for row in rows]

    def read(self, owner: str, id_: str) -> Conversation:
        """Return a conversation with its messages."""
        with self._reading() as db:
            return _read(db, owner, id_)

    def last(self, owner: str) -> Conversation | None:
        """Return the conversation that was used last, None if there is none."""
        with self._reading() as db:
            row = db.execute(
                "SELECT id FROM conversation WHERE owner = ? ORDER BY changed_s DESC, rowid DESC LIMIT 1", (owner,)
            ).fetchone()
            return None if row is None else _read(db, owner, row[0])

    def append(self, owner: str, id_: str, messages: Sequence[Message], *, at: int | None = None) -> Conversation:
        """Add messages, and return the conversation. With `at`, it must have so many messages before; raises
        ConversationError if somebody else has changed it meanwhile."""
        with self._writing() as db:
            count = _read_summary(db, owner, id_).count
            if at is not None and count != at:
                raise ConversationError(
                    f"the conversation has {count} messages, expected {at}: it was changed elsewhere meanwhile"
                )
            _append(db, id_, messages, time.time())
            return _read(db, owner, id_)

    def truncate(self, owner: str, id_: str, keep: int) -> Conversation:
        """Delete all but the first `keep` messages, and return the conversation. This and `append` edit a message."""
        with self._writing() as db:
            count = _read_summary(db, owner, id_).count
            if not 0 <= keep <= count:
                raise ConversationError(f"the conversation has {count} messages, so the first {keep} can't be kept")
            db.execute("DELETE FROM message WHERE conversation = ? AND position >= ?", (id_, keep))
            return _read(db, owner, id_)

    def rename(self, owner: str, id_: str, title: str) -> Conversation:
        """Give a conversation another title, and return it."""
        return self._set(owner, id_, "title", _title(title))

    def configure(self, owner: str, id_: str, settings: Mapping[str, Any]) -> Conversation:
        """Replace a conversation's settings, and return it."""
        return self._set(owner, id_, "settings", _settings(settings))

    def _set(self, owner: str, id_: str, column: str, value: str) -> Conversation:
        with self._writing() as db:
            _read_summary(db, owner, id_)
            db.execute(f"UPDATE conversation SET {column} = ? WHERE id = ?", (value, id_))
            return _read(db, owner, id_)

    def delete(self, owner: str, id_: str) -> None:
        """Delete a conversation: its text is overwritten in the file."""
        with self._writing() as db:
            _read_summary(db, owner, id_)
            db.execute("DELETE FROM conversation WHERE id = ?", (id_,))
        self._forget()

    def delete_all(self, owner: str) -> int:
        """Delete all conversations of an owner, and return how many."""
        with self._writing() as db:
            count = db.execute("DELETE FROM conversation WHERE owner = ?", (owner,)).rowcount
        self._forget()
        return count

    def _forget(self) -> None:
        """Have deleted words leave the index and the log too."""
        with self._lock, self._errors():
            if self._indexed:
                self._db.execute("INSERT INTO message_words(message_words) VALUES ('optimize')")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()

    def export(self, owner: str) -> Iterator[Conversation]:
        """Yield all conversations of an owner with their messages, the oldest first, one at a time in memory."""
        with self._reading() as db:
            ids = [r[0] for r in db.execute("SELECT id FROM conversation WHERE owner = ? ORDER BY created_s", (owner,))]
        for id_ in ids:
            with contextlib.suppress(NoConversationError):  # deleted meanwhile
                yield self.read(owner, id_)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            yield self._db

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All that is written in it, or nothing."""
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            raise ConversationError(f"the conversations in {self.path} can't be used: {e}") from None


_COLUMNS = """c.id, c.title, c.model, c.settings, c.created_s, c.changed_s,
    (SELECT count(*) FROM message WHERE conversation = c.id)"""
_SUMMARY = f"SELECT {_COLUMNS} FROM conversation c"


def excerpt(text: str, words: Sequence[str]) -> str:
    """Return the piece of a text around the first of `words`, in one line."""
    line = " ".join(text.split())
    found = re.search("|".join(map(re.escape, words)), line, re.IGNORECASE)
    start = max(0, (found.start() if found else 0) - _EXCERPT // 3)
    cut = line[start : start + _EXCERPT]
    return ("…" if start else "") + cut + ("…" if start + _EXCERPT < len(line) else "")


def _summary(row: tuple[Any, ...], found: str = "") -> Conversation:
    id_, title, model, settings, created_s, changed_s, count = row
    return Conversation(id_, title, model, _parsed(settings), created_s, changed_s, count, excerpt=found)


def _read_summary(db: sqlite3.Connection, owner: str, id_: str) -> Conversation:
    row = db.execute(f"{_SUMMARY} WHERE c.id = ? AND owner = ?", (id_, owner)).fetchone()
    if row is None:
        raise NoConversationError("there is no such conversation: it was deleted, or is another key's")
    return _summary(row)


def _read(db: sqlite3.Connection, owner: str, id_: str) -> Conversation:
    head = _read_summary(db, owner, id_)
    rows = db.execute(
        "SELECT role, content, reasoning, model, finish, timings, created_s FROM message WHERE conversation = ? "
        "ORDER BY position", (id_,),
    )  # fmt: skip
    messages = tuple(
        Message(role, content, reasoning, model, finish, _parsed(timings), created_s)
        for role, content, reasoning, model, finish, timings, created_s in rows
    )
    return Conversation(
        head.id, head.title, head.model, head.settings, head.created_s, head.changed_s, len(messages), messages
    )


def _append(db: sqlite3.Connection, id_: str, messages: Sequence[Message], now: float) -> None:
    count = db.execute("SELECT count(*) FROM message WHERE conversation = ?", (id_,)).fetchone()[0]
    if count + len(messages) > MAX_MESSAGES:
        raise ConversationError(f"the conversation has {count} messages, at most {MAX_MESSAGES}: begin a new one")
    for position, message in enumerate(messages, count):
        if message.role not in ROLES:
            raise ConversationError(f"a message's role is {message.role[:40]!r}, expected one of {', '.join(ROLES)}")
        size = len(message.content) + len(message.reasoning)
        if size > MAX_TEXT:
            raise ConversationError(f"a message has {size} characters, at most {MAX_TEXT} are kept")
        timings = _settings(message.timings)
        db.execute(
            "INSERT INTO message(conversation, position, role, content, reasoning, model, finish, timings, created_s) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (id_, position, message.role, _storable(message.content), _storable(message.reasoning), message.model,
             message.finish, timings, message.created_s or now),
        )  # fmt: skip
    asked = next((m.content for m in messages if m.role == "user"), "")
    db.execute(
        "UPDATE conversation SET changed_s = max(?, changed_s), title = CASE title WHEN '' THEN ? ELSE title END, "
        "model = CASE ? WHEN '' THEN model ELSE ? END WHERE id = ?",
        (now, _title(asked), *[next((m.model for m in reversed(messages) if m.model), "")] * 2, id_),
    )


def _title(text: str) -> str:
    line = " ".join(_storable(text[: 4 * MAX_TITLE]).split())
    return line if len(line) <= MAX_TITLE else line[: MAX_TITLE - 1] + "…"


def _settings(value: Mapping[str, Any]) -> str:
    text = json.dumps(dict(value))
    if len(text) > _MAX_SETTINGS:
        raise ConversationError(f"a conversation's settings are {len(text)} characters, at most {_MAX_SETTINGS}")
    return text


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _storable(text: str) -> str:
    """Return text that SQLite can take: half a surrogate pair has no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _match(words: Sequence[str]) -> str:
    """Return an FTS5 query: all of these words, or words that begin so. Quoted, so that none is an operator."""
    return " AND ".join(f'"{word}"*' for word in words)


def _like(word: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", word)


def _run(db: sqlite3.Connection, script: str) -> None:
    """Run several statements in the transaction that is open; `executescript` would end it."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""


def _has_fts5() -> bool:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        try:
            db.execute("CREATE VIRTUAL TABLE t USING fts5(x)")
        except sqlite3.OperationalError:
            return False
    return True


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
