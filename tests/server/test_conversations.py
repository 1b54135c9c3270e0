"""Kept conversations: whose they are, what is found, edited and deleted, and files that can't be used."""

import json
import sqlite3
import stat
import threading

import pytest

from edgellm import conversations
from edgellm.conversations import Conversations, Message, excerpt
from edgellm.errors import ConversationError, NoConversationError

ASKED = Message("user", "Why is the sky blue?\nBriefly.")
TOLD = Message("assistant", "Rayleigh scattering: crème brûlée.", "Think.", "smol", "stop", {"tokens_per_s": 4.5})


@pytest.fixture
def store(tmp_path):
    store = Conversations(tmp_path / "state" / "c.db")
    yield store
    store.close()


@pytest.fixture(params=["indexed", "without FTS5"])
def either(request, tmp_path, monkeypatch):
    if request.param != "indexed":
        monkeypatch.setattr(conversations, "_has_fts5", lambda: False)
    store = Conversations(tmp_path / "c.db")
    yield store
    store.close()


def test_a_conversation_is_kept_as_it_was(store, tmp_path):
    id_ = store.new("kitchen", settings={"system": "Be brief.", "temperature": 0.5}).id
    store.append("kitchen", id_, [ASKED, TOLD])
    store.close()
    again = Conversations(tmp_path / "state" / "c.db")
    try:
        talk = again.read("kitchen", id_)
        assert (talk.title, talk.model, talk.count) == ("Why is the sky blue? Briefly.", "smol", 2)
        assert talk.settings == {"system": "Be brief.", "temperature": 0.5}
        first, second = talk.messages
        assert (first.role, first.content) == ("user", ASKED.content) and first.created_s > 1e9
        kept = (second.content, second.reasoning, second.model, second.finish, second.timings)
        assert kept == (TOLD.content, TOLD.reasoning, TOLD.model, TOLD.finish, TOLD.timings)
        assert again.last("kitchen") == talk
    finally:
        again.close()


def test_only_this_user_reads_the_files(store):
    store.new("kitchen", messages=[ASKED])
    files = list(store.path.parent.iterdir())
    assert len(files) == 3, "the database, its log and the log's index"
    assert {stat.S_IMODE(f.stat().st_mode) for f in files} == {0o600}
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_an_owner_sees_only_its_own(store):
    id_ = store.new("kitchen", messages=[ASKED]).id
    assert store.recent("hall") == [] and store.last("hall") is None and store.search("hall", "sky") == []
    assert list(store.export("hall")) == [] and store.delete_all("hall") == 0
    for action in (
        lambda: store.read("hall", id_), lambda: store.append("hall", id_, [ASKED]), lambda: store.delete("hall", id_),
        lambda: store.truncate("hall", id_, 0), lambda: store.rename("hall", id_, "x"),
        lambda: store.configure("hall", id_, {}), lambda: store.read("kitchen", "another"),
    ):  # fmt: skip
        with pytest.raises(NoConversationError, match="no such conversation"):
            action()
    assert store.read("kitchen", id_).count == 1


def test_the_last_used_comes_first(store):
    first, second = store.new("k", title="one").id, store.new("k", title="two").id
    assert [c.id for c in store.recent("k")] == [second, first]
    store.append("k", first, [ASKED])
    assert [c.title for c in store.recent("k")] == ["one", "two"]
    assert [c.title for c in store.recent("k", limit=1, offset=1)] == ["two"]
    assert store.last("k").id == first
    store.rename("k", second, " a\nnew  name ")
    assert [c.title for c in store.recent("k")] == ["one", "a new name"], "a name is no use"


@pytest.mark.parametrize(
    ("text", "count"),
    [("sky", 1), ("SKY blu", 1), ("scatter", 1), ("sky scattering", 0), ("", 0), ('"', 0), ("NEAR(sky", 0),
     ("OR", 0), ("%", 0), ("_ky", 0), ("holiday", 1), ("100", 1)],
)  # fmt: skip
def test_search_finds_beginnings_of_words(either, text, count):
    either.new("k", messages=[ASKED, TOLD])
    either.new("k", title="Holiday 100% sure", messages=[Message("user", "Where to?")])
    assert len(either.search("k", text)) == count


def test_search_ignores_accents_and_tells_where(store):
    store.new("k", messages=[ASKED, TOLD])
    (found,) = store.search("k", "brulee")
    assert found.excerpt == TOLD.content and found.messages == ()


def test_an_excerpt_is_a_short_line_around_the_word():
    text = "a " * 200 + "needle\nin " + "b " * 200
    cut = excerpt(text, ["needle"])
    assert "needle in b" in cut and "\n" not in cut and len(cut) <= 162 and cut[0] == cut[-1] == "…"
    assert excerpt("short", ["x"]) == "short"


def test_a_message_is_edited_by_truncating(either):
    id_ = either.new("k", messages=[ASKED, TOLD]).id
    assert either.truncate("k", id_, 1).messages[-1].role == "user"
    assert either.search("k", "scattering") == []
    talk = either.append("k", id_, [Message("assistant", "Because.")], at=1)
    assert [m.content for m in talk.messages] == [ASKED.content, "Because."]
    with pytest.raises(ConversationError, match="has 2 messages, expected 1: it was changed elsewhere"):
        either.append("k", id_, [TOLD], at=1)
    with pytest.raises(ConversationError, match="first 3 can't be kept"):
        either.truncate("k", id_, 3)


def test_deleted_text_is_in_no_file_any_more(store):
    id_ = store.new("k", messages=[Message("user", "the passphrase is xyzzyplugh")]).id
    store.new("k", messages=[ASKED])
    assert any(b"xyzzyplugh" in f.read_bytes() for f in store.path.parent.iterdir())
    store.delete("k", id_)
    assert not any(b"xyzzyplugh" in f.read_bytes() for f in store.path.parent.iterdir())
    assert store.search("k", "xyzzyplugh") == [] and len(store.recent("k")) == 1
    assert store.delete_all("k") == 1 and store.recent("k") == []


def test_exports(store):
    talk = store.new("k", settings={"system": "Be brief."}, messages=[ASKED, TOLD])
    assert talk.to_markdown() == (
        "# Why is the sky blue? Briefly.\n\n## System\n\nBe brief.\n\n## You\n\nWhy is the sky blue?\nBriefly.\n\n"
        "## smol\n\n> Think.\n\nRayleigh scattering: crème brûlée.\n"
    )
    again = json.loads(json.dumps(talk.to_dict()))
    assert again["messages"][1]["timings"] == {"tokens_per_s": 4.5} and again["settings"] == {"system": "Be brief."}
    store.new("k")
    assert [c.count for c in store.export("k")] == [2, 0]


def test_what_is_too_much_is_refused_and_nothing_changes(store, monkeypatch):
    id_ = store.new("k", messages=[ASKED]).id
    monkeypatch.setattr(conversations, "MAX_TEXT", 40)
    with pytest.raises(ConversationError, match="41 characters, at most 40"):
        store.append("k", id_, [Message("user", "fits"), Message("user", "x" * 30, "y" * 11)])
    assert store.read("k", id_).count == 1, "not even the first of the two"
    with pytest.raises(ConversationError, match="role is 'root'"):
        store.append("k", id_, [Message("root", "x")])
    monkeypatch.setattr(conversations, "MAX_MESSAGES", 1)
    with pytest.raises(ConversationError, match="1 messages, at most 1"):
        store.append("k", id_, [ASKED])
    monkeypatch.setattr(conversations, "MAX_CONVERSATIONS", 1)
    with pytest.raises(ConversationError, match="1 conversations are kept, at most 1"):
        store.new("k")
    with pytest.raises(ConversationError, match="settings are"):
        store.configure("k", id_, {"system": "x" * 100_001})


def test_half_a_surrogate_pair_is_kept_as_a_question_mark(store):
    assert store.new("k", messages=[Message("user", "a\ud83db")]).messages[0].content == "a?b"


def test_two_programs_write_one_file(store):
    other = Conversations(store.path)
    id_ = store.new("k").id
    try:
        threads = [
            threading.Thread(target=lambda s=s: [s.append("k", id_, [ASKED]) for _ in range(20)])
            for s in (store, other, store)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert other.read("k", id_).count == 60
    finally:
        other.close()


def test_files_that_can_not_be_used(tmp_path):
    broken, newer, link = tmp_path / "broken.db", tmp_path / "newer.db", tmp_path / "link.db"
    broken.write_bytes(b"not a database" * 100)
    with pytest.raises(ConversationError, match="broken.db can't be used: file is not a database"):
        Conversations(broken)
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version=9")
    db.close()
    with pytest.raises(ConversationError, match="has the format 9, this edgellm knows 1 at most: upgrade"):
        Conversations(newer)
    link.symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(ConversationError, match="can't be kept in .*link.db"):
        Conversations(link)
    assert not (tmp_path / "elsewhere.db").exists()


def test_the_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGELLM_STATE", str(tmp_path))
    assert conversations.state_folder() == tmp_path
