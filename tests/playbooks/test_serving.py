"""Where the server answers, what differs on its machine, and what a run says of it at its end."""

import base64
import hashlib

import pytest

from tests.playbooks.plugins import plugin

serving = plugin("filter", "serving")
ending = plugin("callback", "edgellm_ending")
UNIT = "[Unit]\n"
TOLD = {"url": "https://192.0.2.1:8080", "tls": "cluster", "key_file": "/c/api-keys/default", "ca": "/c/ca/ca.pem"}


@pytest.fixture
def made(tmp_path) -> dict:
    """What `edgellm controller server` answers."""
    for name in ("server.edgellm", "api-keys.json", "https-cert.pem", "https-key.pem"):
        (tmp_path / name).write_text(name)
    return {"files": [str(path) for path in sorted(tmp_path.iterdir())], "stamp": "s" * 64}


def found(**changes) -> dict:
    """What look.sh prints on a machine whose server is as it should be."""
    names = ("api-keys.json", "https-cert.pem", "https-key.pem")
    files = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    return {"version": "1-a", "complete": "0-z 1-a", "active": "active", "enabled": "enabled", "stamp": "s" * 64,
            "unit": base64.b64encode(UNIT.encode()).decode(), "unfinished": "", **files, **changes}  # fmt: skip


def test_a_server_that_is_as_it_should_be_differs_in_nothing(made):
    assert serving.differences(found(), "1-a", UNIT, made) == []
    assert serving.differences(found(), "", UNIT, made) == []  # and one that keeps its version
    assert serving.differences(found(stamp="?"), "1-a", UNIT, {}) == []  # with --check nobody knows


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"version": "0-z"}, ["server"]),
        ({"version": "", "complete": ""}, ["software", "server"]),
        ({"active": "failed"}, ["server"]),
        ({"enabled": "disabled"}, ["server"]),
        ({"stamp": "t" * 64}, ["server"]),
        ({"unit": ""}, ["server"]),
        ({"unfinished": "yes"}, ["server"]),
        ({"api-keys.json": ""}, ["server"]),
        ({"https-cert.pem": "other"}, ["server"]),
    ],
)
def test_each_thing_differs_by_itself(made, changes, differs):
    assert serving.differences(found(**changes), "1-a", UNIT, made) == differs


def test_a_certificate_that_is_wanted_no_more_differs(made):
    made["files"] = [path for path in made["files"] if "https" not in path]
    assert serving.differences(found(), "1-a", UNIT, made) == ["server"]
    assert serving.differences(found(**{"https-cert.pem": "", "https-key.pem": ""}), "1-a", UNIT, made) == []


def test_a_server_goes_once_the_one_in_its_place_answers():
    assert serving.stands([]) and serving.stands([{"server_told": TOLD}])
    assert not serving.stands([{"server_reason": "no port"}]) and not serving.stands([{"server_told": {}}])


@pytest.mark.parametrize(
    ("listen", "tls", "url"),
    [
        ("192.0.2.1", "", "http://192.0.2.1:8080"),
        ("0.0.0.0", "cluster", "https://192.0.2.9:8080"),
        ("fd00::1", "", "http://[fd00::1]:8080"),
        ("::", "", "http://192.0.2.9:8080"),
    ],
)
def test_where_it_answers(listen, tls, url):
    assert serving.url(listen, 8080, tls, "192.0.2.9") == url


def test_names_in_its_certificate_and_for_its_check_of_hosts(monkeypatch):
    assert serving.names("192.0.2.1", "pi1", "192.0.2.1", True) == [
        "192.0.2.1", "pi1", "pi1.local", "localhost", "127.0.0.1",
    ]  # fmt: skip
    monkeypatch.setattr(serving.socket, "gethostname", lambda: "desk.example")
    assert serving.names("127.0.0.1", "controller", "127.0.0.1", False) == [
        "127.0.0.1", "desk", "desk.local", "localhost",
    ]  # fmt: skip


def test_a_run_ends_with_the_address_and_a_line_that_works():
    lines = ending.ending({"pi1": {}}, [], {}, "", "deploy", {"pi1": {"server_told": TOLD}})
    assert lines == [
        "serving: https://192.0.2.1:8080/ with the API key in /c/api-keys/default",
        'serving: try curl --cacert /c/ca/ca.pem -H "Authorization: Bearer $(cat /c/api-keys/default)" '
        "https://192.0.2.1:8080/v1/models",
    ]
    plain = ending.ending({"pi1": {}}, [], {}, "", "deploy", {"pi1": {"server_told": {**TOLD, "tls": ""}}})
    assert "cacert" not in plain[1]


def test_why_it_does_not_answer_is_said_and_fails_the_run():
    reason = "the server doesn't answer at http://192.0.2.1:8080 after 60 s: it has no key"
    assert ending.ending({"pi1": {}}, [], {}, "", "deploy", {"pi1": {"server_reason": reason}}) == [reason]
    assert plugin("filter", "deployed").failure({"inventory_hostname": "pi1", "server_reason": reason}) == reason


@pytest.mark.parametrize(
    ("file", "servers", "said"),
    [
        ("/c/kitchen", {"pi1": {"server_told": TOLD}}, "The API key kitchen is in /c/kitchen. An earlier one"),
        ("/c/kitchen", {}, "The API key kitchen is in /c/kitchen. The next deploy tells the server."),
        (None, {"pi1": {"server_told": TOLD}}, "The API key kitchen is removed. Those that are left: default."),
    ],
)
def test_what_became_of_a_key(file, servers, said):
    answer = {"name": "kitchen", "file": file, "keys": ["default"]}
    [line] = ending.ending({"pi1": {"_server_key": {"answers": {"key": answer}}}}, [], {}, "", "keys", servers)
    assert line.startswith(said)


def test_the_server_is_a_board_or_the_controller():
    inventory = plugin("filter", "inventory")
    boards = {"pi1": {"ansible_host": "192.0.2.1", "edgellm_server": "pi9"}}
    option = {"edgellm_server": {"type": "str", "default": ""}}
    [problem] = inventory.inventory_problems(["pi1"], boards, option, [])
    assert problem.startswith("edgellm_server is 'pi9', expected one of pi1, or controller, or nothing.")
    for name in ("pi1", "controller", ""):
        boards["pi1"]["edgellm_server"] = name
        assert inventory.inventory_problems(["pi1"], boards, option, []) == []


def test_the_identity_of_a_server_that_is_gone_is_revoked_by_its_own_name():
    from edgellm.controller.serving import identity_of_server

    for board in ("pi1", "b" * 63):
        command = serving.revoke_step(board, ["--ca", "/ca"])["command"]
        assert command == ["revoke", "--missing-ok", f"manager:{identity_of_server(board).name}", "--ca", "/ca"]
