"""What deploy asks, read from a file that is hostile until parsed."""

import json

import pytest

from edgellm.controller.request import LeftOut, Memory, Request
from edgellm.errors import UsageError
from edgellm.manager.cluster_file import SshAccess
from tests.controller.asked import SETTINGS, content_of, request_of


def test_a_request_is_read(tmp_path):
    access = {"host": "10.0.0.1", "user": "pi", "port": 2222, "key": "/home/me/key"}
    request = request_of(
        tmp_path / "request.json", tmp_path, {"pi1": ("10.0.0.1", 7710), "pi2": ("pi2.local", 7711)},
        {"pi1": {"ssh": access, "disk_bytes": 5,
                 "memory": {"free": 10**9, "ram": 5 * 10**8, "memory_max": None, "kept": True, "stays": 1}},
         "pi2": {"ssh": None, "memory": None}},
        tls=str(tmp_path / "tls"), left_out=[{"name": "pi3", "reason": "board pi3 can't be\nreached."}], path="generic",
    )  # fmt: skip
    assert (request.model_dir, request.settings, request.tls) == (tmp_path, SETTINGS, tmp_path / "tls")
    assert request.addresses == {"pi1": ("10.0.0.1", 7710), "pi2": ("pi2.local", 7711)}
    assert [b.ssh for b in request.boards] == [SshAccess(**access), None]
    assert request.memory == {"pi1": Memory(10**9, None, 5 * 10**8, True)} and request.disk_bytes == {"pi1": 5}
    assert request.left_out == (LeftOut("pi3", "board pi3 can't be reached."),)
    assert request.agent_bytes == 500_000_000


BOARD = {"name": "pi1", "host": "10.0.0.1", "port": 7710}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boards": None}, "NoneType"),
        ({"boards": 5}, "int"),
        ({"boards": [5]}, "int"),
        ({"boards": [{}]}, "'name'"),
        ({"boards": [{**BOARD, "name": "../pi"}]}, "'../pi' is not a board name"),
        ({"boards": [{**BOARD, "host": "-oProxyCommand=x"}]}, "is not a host name"),
        ({"boards": [{**BOARD, "port": "7710"}]}, "port is '7710', expected 1 to 65535"),
        ({"boards": [BOARD, {**BOARD, "port": 7711}]}, "board pi1 is there 2 times, expected once"),
        ({"boards": [{**BOARD, "ssh": {"host": "x", "shell": "y"}}]}, "shell"),
        ({"boards": [{**BOARD, "ssh": {"host": "x", "user": "-x"}}]}, "user is '-x'"),
        ({"boards": [{**BOARD, "ssh": "pi@pi1"}]}, "str"),
        ({"boards": [{**BOARD, "memory": {"free": "4GB"}}]}, "board pi1: free is '4GB', expected a number of bytes"),
        ({"boards": [{**BOARD, "memory": {"free": 5, "ram": -1}}]}, "board pi1: ram is -1"),
        ({"boards": [{**BOARD, "memory": {"free": 5, "memory_max": 1 << 50}}]}, "board pi1: memory_max is 11258999"),
        ({"boards": [{**BOARD, "memory": {"ram": 5}}]}, "'free'"),
        ({"boards": [{**BOARD, "memory": [5]}]}, "AttributeError"),
        ({"left_out": [{"name": "pi3"}]}, "'reason'"),
        ({"left_out": 3}, "int"),
        ({"path": "torch"}, "path is 'torch', expected native or generic"),
        ({"path": []}, "list"),
        ({"boards": [{**BOARD, "disk_bytes": True}]}, "board pi1: disk_bytes is True"),
        ({"settings": {}}, "settings lacks"),
        ({"settings": {**SETTINGS.to_dict(), "context": 0}}, "context is 0"),
        ({"model_dir": 5}, "int"),
        ({"tls": 5}, "int"),
    ],
)
def test_a_request_that_is_none_is_refused_with_its_path(tmp_path, change, words):
    path = tmp_path / "request.json"
    path.write_text(json.dumps({**content_of(tmp_path, {}), **change}))
    with pytest.raises(UsageError) as e:
        Request.read(path)
    assert str(e.value).startswith(f"{path}: ") and words in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"5", b"null", b"\xff\xfe", b"[" * 100_000, b'{"boards": []}'])
def test_what_is_no_request_at_all_is_refused(tmp_path, raw):
    path = tmp_path / "request.json"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=str(path)):
        Request.read(path)
    with pytest.raises(UsageError, match="No such file"):
        Request.read(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("memory", "offer", "limit"),
    [
        (Memory(2000), 1880, None),
        (Memory(100), 0, None),
        (Memory(2000, memory_max=1000), 880, "edgellm_memory_max"),
        (Memory(2000, memory_max=3000), 1880, None),
        (Memory(2000, ram=500), 500, "edgellm_ram"),
        (Memory(2000, 1000, 500), 500, "edgellm_ram"),
        (Memory(2000, 600, 500), 480, "edgellm_memory_max"),
        (Memory(2000, 0), 0, "edgellm_memory_max"),
    ],
)
def test_what_an_agent_will_offer_beside_its_own_120(memory, offer, limit):
    assert memory.offer_bytes(120) == offer
    assert limit is None or memory.limit(120) == limit
