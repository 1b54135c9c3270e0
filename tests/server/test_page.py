"""What the page asks: its files and their headers, signing in, kept conversations, answers, and the boards."""

import re
from pathlib import Path

import httpx
import pytest

from edgellm import conversations
from edgellm.errors import ConversationError
from edgellm.server import boards, page_chat
from edgellm.server.boards import changes
from edgellm.server.keys import Keys
from tests.cli.commands import answer_to
from tests.server.serving import Serving, events_of

FILES = Path(__file__).parents[2] / "edgellm" / "server" / "page"
TALKS, ANSWER = "/page/api/conversations", "/page/api/answer"


@pytest.fixture(scope="module")
def paged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paged")
    served = Serving(folder, state=folder / "state")
    yield served
    served.stop()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A server with two keys."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = Keys(folder / "api-keys.json")
    made = {name: keys.make(name) for name in ("kitchen", "desk")}
    served = Serving(folder, state=folder / "state")
    served.made = made
    yield served
    served.stop()


def ask(served, **fields) -> list[dict]:
    response = served.post(ANSWER, {"settings": {"temperature": 0, "max_tokens": 8}, **fields})
    assert response.status_code == 200, response.text
    return events_of(response.text)


def text_of(events: list[dict]) -> str:
    return "".join(e["text"] for e in events if e["kind"] == "text")


def new(served) -> str:
    response = served.post(TALKS, {})
    assert response.status_code == 201
    return response.json()["id"]


def read(served, id_: str) -> dict:
    return served.http.get(f"{TALKS}/{id_}").json()


# Files


def test_the_page_may_load_nothing_from_elsewhere_and_run_nothing_inline(paged):
    page = paged.http.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "http" not in policy
    assert "frame-ancestors 'none'" in policy and "require-trusted-types-for 'script'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]* src=)|https?:", page.text)
    for path in re.findall(r'(?:href|src)="(/[^"]*)"', page.text):
        assert paged.http.get(path).status_code == 200, path


def test_scripts_import_files_that_are_there_and_never_parse_html(paged):
    for file in FILES.glob("*.js"):
        text = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), file
        for name in re.findall(r'from "\./([\w.]+)"', text):
            answer = paged.http.get(f"/page/files/{name}")
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/javascript")


def test_an_unchanged_file_is_not_sent_again(paged):
    first = paged.http.get("/page/files/app.js")
    again = paged.http.get("/page/files/app.js", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    assert "content-security-policy" in first.headers


@pytest.mark.parametrize("name", ["nothing.js", "..%2fapp.py", "%2e%2e/app.py", "__init__.py", "app.js%00"])
def test_there_are_no_other_files(paged, name):
    assert paged.http.get(f"/page/files/{name}").status_code == 404


# Signing in


@pytest.mark.parametrize("path", ["session", "conversations", "conversations/x", "export", "boards", "boards/live"])
def test_without_a_key_there_is_only_the_page(keyed, path):
    assert keyed.http.get("/").status_code == 200
    assert keyed.http.get("/page/files/app.js").status_code == 200
    refused = keyed.http.get(f"/page/api/{path}")
    assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"


def test_a_key_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(keyed):
    with httpx.Client(base_url=keyed.base) as browser:
        assert browser.post("/page/sign-in", json={"key": "edgellm-wrong"}).status_code == 401
        signed = browser.post("/page/sign-in", json={"key": f" {keyed.made['desk']} "})
        assert signed.status_code == 204
        cookie = signed.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie and "Secure" not in cookie
        session = browser.get("/page/api/session").json()
        assert (session["key"], session["signed_in"], session["history"]) == ("desk", True, True)
        assert [m["name"] for m in session["models"]] == ["fake"]
        assert browser.delete("/page/sign-in").status_code == 204
        assert browser.get("/page/api/session").status_code == 401


def test_each_key_has_its_own_conversations(keyed):
    kitchen = {"authorization": f"Bearer {keyed.made['kitchen']}"}
    desk = {"authorization": f"Bearer {keyed.made['desk']}"}
    id_ = keyed.post(TALKS, {}, **kitchen).json()["id"]
    assert [c["id"] for c in keyed.http.get(TALKS, headers=kitchen).json()["conversations"]] == [id_]
    assert keyed.http.get(TALKS, headers=desk).json()["conversations"] == []
    for answer in (
        keyed.http.get(f"{TALKS}/{id_}", headers=desk), keyed.http.delete(f"{TALKS}/{id_}", headers=desk),
        keyed.http.get(f"{TALKS}/{id_}/export", headers=desk),
        keyed.http.patch(f"{TALKS}/{id_}", json={"title": "x"}, headers=desk),
    ):  # fmt: skip
        assert answer.status_code == 404
    events = events_of(keyed.post(ANSWER, {"conversation": id_, "text": "hi"}, **desk).text)
    assert events == [] or events[0]["kind"] == "error"
    assert keyed.http.delete(f"{TALKS}/{id_}", headers=kitchen).status_code == 204


# Answers


def test_an_answer_is_told_and_kept(paged):
    id_ = new(paged)
    events = ask(paged, conversation=id_, text="Why?")
    assert [e["kind"] for e in events if e["kind"] not in ("text", "progress")] == ["kept", "accepted", "ended"]
    assert events[0]["title"] == "Why?" and events[0]["count"] == 1
    assert text_of(events) == answer_to("Why?", 8)
    question, answer = read(paged, id_)["messages"]
    assert (question["role"], question["content"]) == ("user", "Why?")
    assert (answer["content"], answer["model"], answer["finish"]) == (text_of(events), "fake", "length")
    assert answer["timings"] == events[-1]["timings"] and answer["timings"]["tokens"] == 8


def test_the_next_question_is_asked_with_all_that_was_said(paged):
    id_ = new(paged)
    first = text_of(ask(paged, conversation=id_, text="a"))
    second = text_of(ask(paged, conversation=id_, keep=2, text="b"))
    assert second == answer_to(f"a{first}b", 8)
    assert [m["content"] for m in read(paged, id_)["messages"]] == ["a", first, "b", second]


def test_answer_again_and_edit_replace_what_followed(paged):
    id_ = new(paged)
    first = text_of(ask(paged, conversation=id_, text="a"))
    assert text_of(ask(paged, conversation=id_, keep=1)) == first
    assert read(paged, id_)["count"] == 2
    edited = text_of(ask(paged, conversation=id_, keep=0, text="c"))
    assert [m["content"] for m in read(paged, id_)["messages"]] == ["c", edited]


def test_a_system_prompt_and_settings_are_kept_with_the_conversation(paged):
    id_ = new(paged)
    events = ask(paged, conversation=id_, text="b", settings={"system": "a", "temperature": 0, "max_tokens": 4})
    assert text_of(events) == answer_to("ab", 4)
    assert read(paged, id_)["settings"] == {"system": "a", "temperature": 0.0, "max_tokens": 4}
    assert paged.http.patch(f"{TALKS}/{id_}", json={"settings": {"top_k": 3}}).status_code == 200
    assert read(paged, id_)["settings"] == {"top_k": 3}


def test_what_need_not_be_kept_is_not(paged):
    before = len(paged.http.get(TALKS).json()["conversations"])
    events = ask(paged, messages=[{"role": "user", "content": "Why?"}])
    assert text_of(events) == answer_to("Why?", 8)
    assert len(paged.http.get(TALKS).json()["conversations"]) == before


def test_half_an_answer_is_kept_and_the_next_waits_for_that(paged):
    id_ = new(paged)
    paged.cluster.pace.delay_s = 0.05
    try:
        asked = {"conversation": id_, "text": "a", "settings": {"temperature": 0, "max_tokens": 60}}
        with paged.http.stream("POST", ANSWER, json=asked) as response:
            for line in response.iter_lines():
                if '"text"' in line and '"kind":"text"' in line:
                    break
    finally:
        paged.cluster.pace.delay_s = 0.0
    again = ask(paged, conversation=id_, keep=1)
    assert again[-1]["kind"] == "ended"
    assert [m["content"] for m in read(paged, id_)["messages"]] == ["a", text_of(again)]
    paged.wait_free()


def test_an_answer_that_was_stopped_is_there_as_far_as_it_came(paged):
    id_ = new(paged)
    paged.cluster.pace.delay_s = 0.05
    try:
        asked = {"conversation": id_, "text": "a", "settings": {"temperature": 0, "max_tokens": 60}}
        with paged.http.stream("POST", ANSWER, json=asked) as response:
            next(line for line in response.iter_lines() if '"kind":"text"' in line)
    finally:
        paged.cluster.pace.delay_s = 0.0
    paged.wait(lambda: read(paged, id_)["count"] == 2)
    answer = read(paged, id_)["messages"][1]
    assert answer["finish"] == "cancelled" and answer["content"]
    assert answer_to("a", 60).startswith(answer["content"])
    paged.wait_free()


def test_two_answers_in_one_conversation_are_one_too_many(paged, monkeypatch):
    monkeypatch.setattr(page_chat, "_ENDS_S", 0.1)
    id_ = new(paged)
    paged.cluster.pace.delay_s = 0.05
    try:
        asked = {"conversation": id_, "text": "a", "settings": {"temperature": 0, "max_tokens": 60}}
        with paged.http.stream("POST", ANSWER, json=asked) as response:
            lines = response.iter_lines()  # held, because it closes the connection at its end
            next(line for line in lines if '"kind":"text"' in line)
            with httpx.Client(base_url=paged.base, timeout=20) as other:
                refused = other.post(ANSWER, json={"conversation": id_, "keep": 1})
            assert refused.status_code == 409 and "answered elsewhere" in refused.json()["error"]["message"]
    finally:
        paged.cluster.pace.delay_s = 0.0
    paged.wait_free()


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [({"keep": 5, "text": "a"}, 409, "changed elsewhere"), ({"keep": 0}, 400, "no question to answer"),
     ({"text": "  "}, 400, "question is empty"), ({"conversation": "nothing", "text": "a"}, 404, "no such"),
     ({"text": 5}, 400, "text: expected"), ({"text": "a", "settings": {"temperature": "x"}}, 400, "settings.temp"),
     ({"text": "a", "settings": {"temperature": -3}}, 400, "temperature"),
     ({"text": "a", "model": "another"}, 400, "no model 'another'"),
     ({"conversation": None, "messages": []}, 400, "no question")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(paged, fields, status, says):
    refused = paged.post(ANSWER, {"conversation": new(paged), **fields})
    told = [e for e in events_of(refused.text) if e.get("kind") == "error"] if refused.status_code == 200 else []
    message, code = (told[0]["message"], told[0]["status"]) if told else (
        refused.json()["error"]["message"], refused.status_code)  # fmt: skip
    assert code == status and says in message


# Kept conversations


def test_conversations_are_found_renamed_exported_and_deleted(paged):
    id_ = new(paged)
    answer = text_of(ask(paged, conversation=id_, text="zebra crossing"))
    found = paged.http.get(TALKS, params={"search": "zeb"}).json()["conversations"]
    assert [(c["id"], c["excerpt"]) for c in found] == [(id_, "zebra crossing")] and "messages" not in found[0]
    renamed = paged.http.patch(f"{TALKS}/{id_}", json={"title": '<b>"Stripes"</b>\r\nSet-Cookie: a'})
    assert renamed.json()["title"] == '<b>"Stripes"</b> Set-Cookie: a'
    page = paged.http.get(f"{TALKS}/{id_}/export")
    assert page.headers["content-disposition"] == 'attachment; filename="b-stripes-b-set-cookie-a.md"'
    assert "## You\n\nzebra crossing\n\n## fake\n\n" + answer in page.text
    exported = paged.http.get(f"{TALKS}/{id_}/export", params={"format": "json"}).json()
    assert exported["messages"][1]["content"] == answer
    assert paged.http.get(f"{TALKS}/{id_}/export", params={"format": "exe"}).status_code == 400
    everything = paged.http.get("/page/api/export").json()["conversations"]
    assert id_ in [c["id"] for c in everything]
    assert paged.http.delete(f"{TALKS}/{id_}").status_code == 204
    assert paged.http.get(f"{TALKS}/{id_}").status_code == 404
    new(paged)
    assert paged.http.delete(TALKS).json()["deleted"] >= 1
    assert paged.http.get(TALKS).json() == {"conversations": []}


def test_a_server_without_history_keeps_nothing(tmp_path):
    served = Serving(tmp_path, state=tmp_path / "state", history=False)
    try:
        assert served.http.get("/page/api/session").json()["history"] is False
        for answer in (served.http.get(TALKS), served.post(TALKS, {}), served.http.get("/page/api/export")):
            assert answer.status_code == 404 and "keeps no conversations" in answer.json()["error"]["message"]
        assert text_of(ask(served, messages=[{"role": "user", "content": "Why?"}])) == answer_to("Why?", 8)
        assert not (tmp_path / "state").exists()
    finally:
        served.stop()


def test_a_message_that_is_too_long_to_keep_is_refused(paged, monkeypatch):
    monkeypatch.setattr(conversations, "MAX_TEXT", 10)
    refused = paged.post(ANSWER, {"conversation": new(paged), "text": "x" * 11})
    assert refused.status_code == 409 and "11 characters, at most 10" in refused.json()["error"]["message"]


def test_a_broken_file_is_told_when_the_server_starts(tmp_path):
    (tmp_path / "conversations.db").write_text("no database" * 100)
    with pytest.raises(ConversationError, match="not a database"):
        page_chat.Kept(tmp_path)


# Boards


def test_the_boards_as_they_stand(paged):
    state = paged.http.get("/page/api/boards").json()
    assert state["serving"] is True and state["num_layers"] == 6 and state["model"] == "fake"
    assert [b["board"] for b in state["boards"]] == ["b0", "b1"]
    first = state["boards"][0]
    assert first["section"]["start"] == 0 and first["serving"] and first["address"].startswith("127.0.0.1:")
    assert {"temperature_c", "ram_offered_bytes", "predicted_ms_per_token", "hop_s", "link_mbit"} <= first.keys()
    assert all({"board", "what", "todo"} <= f.keys() for f in state["findings"])
    assert paged.http.get("/page/api/boards", params={"model": "another"}).status_code == 400


def test_the_boards_live(paged):
    with paged.http.stream("GET", "/page/api/boards/live") as response:
        line = next(line for line in response.iter_lines() if line.startswith("data: "))
    assert '"kind":"boards"' in line and '"board":"b1"' in line


ROW = {"board": "pi1", "state": "serving", "section": {"start": 0, "end": 3}, "throttled": False}
STATE = {"epoch": 1, "serving": True, "boards": [ROW, {**ROW, "board": "pi2", "section": {"start": 3, "end": 6}}]}


def with_row(**fields) -> dict:
    return {**STATE, "boards": [{**ROW, **fields}, STATE["boards"][1]]}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [(None, STATE, []), (STATE, STATE, []),
     (STATE, with_row(state="unreachable: refused", section=None), [("bad", "pi1 was lost")]),
     (with_row(state="unreachable: refused"), STATE, [("good", "pi1 is back")]),
     (STATE, {**STATE, "boards": STATE["boards"][1:]}, [("plain", "pi1 is no longer in the cluster")]),
     ({**STATE, "boards": STATE["boards"][1:]}, STATE, [("good", "pi1 joined")]),
     (STATE, with_row(section={"start": 0, "end": 2}), [("plain", "pi1 holds layers 0–1 now")]),
     (STATE, with_row(section=None), [("plain", "pi1 gave up its layers")]),
     (STATE, with_row(throttled=True), [("bad", "pi1 is throttled")]),
     (with_row(throttled=True), with_row(throttled=None), [("good", "pi1 is no longer throttled")]),
     (STATE, {**STATE, "epoch": 2}, [("plain", "plan 2 is in use")]),
     ({**STATE, "serving": False}, STATE, [("good", "every board of the plan is serving")])],
)  # fmt: skip
def test_what_counts_as_news(before, after, told):
    assert [(c["kind"], c["text"]) for c in changes(before, after)] == told


def test_a_board_that_is_lost_is_news(tmp_path, monkeypatch):
    monkeypatch.setattr(boards, "_EVERY_S", 0.05)
    served = Serving(tmp_path)
    try:
        assert served.http.get("/page/api/boards").json()["news"] == []
        served.cluster.call(served.cluster.boards.stop(0))
        served.wait(lambda: served.http.get("/page/api/boards").json()["news"])
        state = served.http.get("/page/api/boards").json()
        assert "b0 was lost" in [n["text"] for n in state["news"]]
        assert not state["serving"] and any(f["board"] == "b0" for f in state["findings"])
    finally:
        served.stop()
