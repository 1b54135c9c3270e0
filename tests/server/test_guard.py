"""Who may ask: keys, hosts, origins, sizes, and requests at once."""

import logging
import socket
import stat

import pytest

from edgellm.errors import UsageError
from edgellm.server.guard import Limits, mended
from edgellm.server.keys import Keys
from tests.cli.commands import answer_to
from tests.server.serving import Serving, user

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A server with two keys, small limits, and an origin."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = Keys(folder / "api-keys.json")
    made = {name: keys.make(name) for name in ("kitchen", "desk")}
    limits = Limits(body_bytes=10_000, bodies_bytes=15_000, requests_per_key=2)
    served = Serving(folder, limits=limits, origins=frozenset({"https://chat.example"}), hosts=frozenset({"pi.lan"}))
    served.made = made
    yield served
    served.stop()


def bearer(served, name="kitchen"):
    return {"authorization": f"Bearer {served.made[name]}"}


@pytest.mark.parametrize(
    ("path", "shape"),
    [(CHAT, lambda e: e["error"]["code"] == "invalid_api_key" and e["error"]["type"] == "authentication_error"),
     ("/v1/models/../models", lambda e: "error" in e), ("/v1/nothing", lambda e: "error" in e),
     ("/api/chat", lambda e: isinstance(e["error"], str)), ("/openapi.json", lambda e: "error" in e),
     ("/v1/messages", lambda e: e["type"] == "error" and e["error"]["type"] == "authentication_error")],
)  # fmt: skip
@pytest.mark.parametrize("key", [None, "Bearer edgellm-wrong", "Bearer", "Basic eA=="])
def test_without_a_key_nothing_is_told_in_the_apis_own_shape(keyed, path, shape, key):
    headers = {"authorization": key} if key else {}
    for response in (keyed.http.get(path, headers=headers), keyed.post(path, {"messages": user("a")}, **headers)):
        assert response.status_code == 401 and shape(response.json())
        assert "fake" not in response.text and response.headers["www-authenticate"] == "Bearer"


def test_a_key_is_shown_in_any_of_three_ways(keyed):
    key = keyed.made["desk"]
    for headers in ({"authorization": f"Bearer {key}"}, {"authorization": f"bearer {key}"}, {"x-api-key": key},
                    {"cookie": f"edgellm_key={key}"}):  # fmt: skip
        assert keyed.http.get("/v1/models", headers=headers).status_code == 200
    assert keyed.http.get("/v1/models", headers={"cookie": "edgellm_key=wrong; ;;="}).status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:80", 200), ("[::1]:80", 200), ("localhost", 200), ("192.168.1.5:8080", 200), ("PI.LAN:8080", 200),
     (socket.gethostname(), 200), ("evil.example", 403), ("evil.example:8080", 403), ("", 403),
     ("127.0.0.1.evil.example", 403)],
)  # fmt: skip
def test_only_names_of_this_machine_are_answered(keyed, host, status):
    response = keyed.http.get("/v1/models", headers={"host": host, **bearer(keyed)})
    assert response.status_code == status


def test_pages_of_other_origins_are_refused_unless_they_are_listed(keyed):
    def get(origin):
        return keyed.http.get("/v1/models", headers={"origin": origin, **bearer(keyed)})

    own, listed = get(keyed.base), get("https://chat.example")
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    assert listed.status_code == 200 and listed.headers["access-control-allow-origin"] == "https://chat.example"
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://[", "file://"):
        refused = get(origin)
        assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers
    ask = {"access-control-request-method": "POST"}
    preflight = keyed.http.options(CHAT, headers={"origin": "https://chat.example", **ask})
    assert preflight.status_code == 204 and "POST" in preflight.headers["access-control-allow-methods"]
    assert keyed.http.options(CHAT, headers={"origin": "https://evil.example", **ask}).status_code == 403


def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so(keyed):
    said = keyed.post(CHAT, b"x" * 10_001, **bearer(keyed))
    assert said.status_code == 413 and said.json()["error"]["message"].endswith("at most 10000 are read")
    unsaid = keyed.http.post(CHAT, content=(b"x" * 1000 for _ in range(20)), headers=bearer(keyed))
    assert unsaid.status_code == 413
    with socket.create_connection(("127.0.0.1", keyed.port)) as s:  # 50 MB, of which nothing is read
        s.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer(keyed)['authorization']}\r\n"
                  "Content-Length: 50000000\r\n\r\n".encode())  # fmt: skip
        assert s.recv(12) == b"HTTP/1.1 413"


def test_all_bodies_together_are_bounded_as_long_as_their_requests_run(keyed):
    keyed.cluster.pace.delay_s = 0.01
    long = {"messages": user("Why?"), "max_tokens": 2500, "stream": True, "speculate": False, "unknown": "x" * 8000}
    try:
        with keyed.http.stream("POST", CHAT, json=long, headers=bearer(keyed)) as one:
            pieces = one.iter_raw()
            assert next(pieces)
            refused = keyed.post(CHAT, long, **bearer(keyed))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
    finally:
        keyed.cluster.pace.delay_s = 0.0
    keyed.wait_free()
    assert keyed.post(CHAT, {**long, "max_tokens": 2}, **bearer(keyed)).status_code == 200


def test_one_key_may_not_take_everything(keyed):
    keyed.cluster.pace.delay_s = 0.01
    ask = {"messages": user("Why?"), "max_tokens": 2500, "stream": True, "speculate": False}
    try:
        with (
            keyed.http.stream("POST", CHAT, json=ask, headers=bearer(keyed)) as one,
            keyed.http.stream("POST", CHAT, json=ask, headers=bearer(keyed)) as two,
        ):
            pieces = [one.iter_raw(), two.iter_raw()]  # a stream is closed when nobody holds its iterator
            assert all(next(p) for p in pieces)
            refused = keyed.post(CHAT, ask, **bearer(keyed))
            assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
            assert int(refused.headers["retry-after"]) >= 1
            assert keyed.http.get("/v1/models", headers=bearer(keyed)).status_code == 200
    finally:
        keyed.cluster.pace.delay_s = 0.0
    keyed.wait_free()
    told = keyed.post(CHAT, {"messages": user("Why?"), "max_tokens": 5}, **bearer(keyed, "desk")).json()
    assert told["choices"][0]["message"]["content"] == answer_to("Why?", 5)


def test_each_key_has_a_cache_of_its_own_for_prompts(keyed, monkeypatch):
    client, caches = keyed.models.clients["fake"], []
    chat = client.chat
    monkeypatch.setattr(client, "chat", lambda m, **o: (caches.append(o["cache"]), chat(m, **o))[1])
    for name in ("kitchen", "desk"):
        keyed.post(CHAT, {"messages": user("Why?"), "max_tokens": 3}, **bearer(keyed, name))
    monkeypatch.setattr(keyed.models, "share_cache", True)
    keyed.post(CHAT, {"messages": user("Why?"), "max_tokens": 3}, **bearer(keyed))
    assert caches == ["kitchen", "desk", ""]


def test_the_access_log_tells_who_and_how_much_but_no_word_of_a_prompt(keyed, caplog):
    with caplog.at_level(logging.INFO, "edgellm.access"):
        keyed.post(CHAT, {"messages": user("SECRET"), "max_tokens": 5}, **bearer(keyed))
        keyed.post(CHAT, {"messages": user("SECRET")})
        keyed.http.get("/health")
        keyed.wait(lambda: sum(r.name == "edgellm.access" for r in caplog.records) >= 2)
    lines = [r.getMessage() for r in caplog.records if r.name == "edgellm.access"]
    assert lines[0].startswith(f"POST {CHAT} by kitchen: 200 in ") and lines[0].endswith(" ms, 6 + 5 tokens")
    assert lines[1].startswith(f"POST {CHAT} by anybody: 401 in ")
    assert "SECRET" not in caplog.text and keyed.made["kitchen"] not in caplog.text


def test_keys_are_kept_as_hashes_and_a_changed_file_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.server.keys._LOOK_EVERY_S", 0.0)
    path = tmp_path / "config" / "api-keys.json"
    keys, other = Keys(path), Keys(path)
    key = keys.make("kitchen")
    assert key.startswith("edgellm-") and len(key) == 8 + 43 and key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (len(other), other.name_of(key), other.name_of(key + "x"), other.name_of("")) == (1, "kitchen", None, None)
    again = other.make("kitchen")
    assert (keys.name_of(key), keys.name_of(again), len(keys)) == (None, "kitchen", 1)
    assert keys.remove("kitchen") and not keys.remove("kitchen") and len(other) == 0
    path.write_text("[")
    assert keys.name_of(again) is None and keys.needed  # the last one was removed
    key = Keys(tmp_path / "b.json").make("a")
    other = Keys(tmp_path / "b.json")
    (tmp_path / "b.json").write_text("[")
    assert other.name_of(key) == "a"
    (tmp_path / "b.json").unlink()
    assert other.name_of(key) is None and other.needed and not Keys(tmp_path / "none.json").needed
    for name in ("", "a b", "../x", "x" * 49):
        with pytest.raises(UsageError, match="can't name a key"):
            keys.make(name)


@pytest.mark.parametrize("content", ["[", "[]", '{"keys": [{}]}', '{"keys": [{"name": "a", "sha256": "b"}]}', "{}"])
def test_a_broken_file_of_keys_lets_nobody_in(tmp_path, content):
    path = tmp_path / "api-keys.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="api-keys.json"):
        Keys(path)


def test_paths_are_mended():
    assert mended("/v1/v1/v1/models") == mended("//v1//models/") == mended("/models") == "/v1/models"
    assert mended("/api/api/tags") == mended("/v1/api/tags") == "/api/tags"
    assert mended("/api/v1/chat/completions") == "/v1/chat/completions"
    for path in ("/", "/v1", "/health", "/api/chat", "/page/v1.js", "/v1/models/a/b"):
        assert mended(path) == path
