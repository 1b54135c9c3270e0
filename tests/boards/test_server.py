"""A machine serves: deployed with the cluster, asked from another board, kept, moved, revoked, and removed."""

import json
import re
import shutil
import sys

import pytest

from tests.boards.conftest import CACHE, Cluster, new_controller
from tests.boards.harness import BIN, HOME, ROOT, Board, Controller, lab, wait_for
from tests.boards.test_identities import is_revoked

PORT = 8080
BODY = {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 8, "temperature": 0}


def curl(board: Board, url: str, *options: str) -> tuple[int, dict]:
    """What a server answers to a board: the status, and the JSON."""
    quiet = ("--silent", "--show-error", "--max-time", 60, "--write-out", r"\n%{http_code}")
    said = lab("on", board.number, "curl", *quiet, *options, url)
    text, _, status = said.rpartition("\n")
    return int(status), json.loads(text)


def chat(board: Board, url: str, *options: str) -> tuple[int, dict]:
    """What a server answers to a question."""
    body = ("--header", "Content-Type: application/json", "--data", json.dumps(BODY))
    return curl(board, f"{url}/v1/chat/completions", *body, *options)


def key_of(controller: Controller, name: str = "default") -> str:
    path = controller.config / "api-keys" / name
    assert path.stat().st_mode & 0o777 == 0o600
    return path.read_text().strip()


def started(board: Board) -> str:
    return board.root("systemctl show -P ExecMainStartTimestampMonotonic edgellm-server").strip()

def answers(board: Board, url: str, controller: Controller) -> bool:
    """Whether a server answers a question of a board's."""
    return chat(board, url, "--header", f"Authorization: Bearer {key_of(controller)}")[0] == 200


def left_of_a_server(board: Board) -> list[str]:
    """What of a server, or of one that was there, is on a board: files, and its user."""
    files = [path for path in board.ours() if "server" in path and "/site-packages/" not in path]
    return files + [line for line in board.root("getent passwd").splitlines() if line.startswith("edgellm-server")]


def test_a_board_serves_whom_it_knows_and_a_second_deploy_changes_nothing(cluster: Cluster, controller: Controller):
    board, other = cluster.boards[:2]
    url = f"https://{board.host}:{PORT}"
    cluster.inventory(edgellm_server=board.name, edgellm_server_tls="cluster")
    played = controller.deploy().good()
    assert f"serving: {url}/ with the API key in {controller.config}/api-keys/default" in played.text
    trust = ("--cacert", str(controller.config / "ca/ca.pem"))
    key = key_of(controller)
    assert key not in played.text

    status, told = chat(other, url, *trust)
    assert status == 401 and "API key" in told["error"]["message"]
    status, told = chat(other, url, *trust, "-H", f"Authorization: Bearer {key}")
    assert status == 200 and told["usage"]["completion_tokens"] == 8
    right = controller.ask(BODY["messages"][0]["content"], 8)["text"]
    assert told["choices"][0]["message"]["content"].strip() == right.strip()
    assert f"server-{board.name} asks: sequence" in "".join(b.journal(200) for b in cluster.boards)

    began = started(board)
    again = controller.deploy().good()
    assert again.touched(*cluster.boards) == {b.name: 0 for b in cluster.boards} and started(board) == began
    assert set(again.changed(*cluster.boards).values()) == {0}

    controller.edgellm("key", "default", "-i", controller.inventory_path)
    auth = ("-H", f"Authorization: Bearer {key_of(controller)}")
    assert key_of(controller) != key and started(board) == began
    assert curl(other, f"{url}/v1/models", *trust, *auth)[0] == 200
    assert curl(other, f"{url}/v1/models", *trust, "-H", f"Authorization: Bearer {key}")[0] == 401

    identity = controller.config / "ca/servers" / board.name
    assert not is_revoked(controller, other, identity)
    cluster.inventory()  # nobody serves
    controller.deploy().good()
    assert is_revoked(controller, other, identity)
    assert left_of_a_server(board) == []


@pytest.mark.boards_all
def test_the_server_answers_with_another_model_at_once(cluster: Cluster, controller: Controller):
    board, other = cluster.boards[:2]
    url = f"http://{board.host}:{PORT}"
    cluster.inventory(edgellm_server=board.name)
    controller.deploy().good()
    auth = ("--header", f"Authorization: Bearer {key_of(controller)}")
    before = curl(other, f"{url}/v1/models", *auth)[1]["data"][0]["id"]
    controller.ansible("playbooks/model.yml", "-e", "edgellm_quantize=int8").good()
    assert chat(other, url, *auth)[0] == 200
    assert controller.cluster()["model"] == curl(other, f"{url}/v1/models", *auth)[1]["data"][0]["id"]
    controller.deploy().good()  # back to the inventory's
    assert chat(other, url, *auth)[0] == 200
    assert curl(other, f"{url}/v1/models", *auth)[1]["data"][0]["id"] == before


@pytest.mark.boards_all
def test_the_server_moves_once_it_answers_at_the_other_board(cluster: Cluster, controller: Controller):
    first, second, asker = cluster.boards
    old, new = (f"http://{board.host}:{PORT}" for board in (first, second))
    cluster.inventory(edgellm_server=first.name)
    controller.deploy().good()
    key, identity = key_of(controller), controller.config / "ca/servers" / first.name
    cluster.inventory(edgellm_server=second.name)
    # Something else has the port there: the new server doesn't start, and the old one goes on.
    second.root(f"systemd-run --collect --unit=squatter python3 -m http.server --bind {second.host} {PORT}")
    try:
        played = controller.deploy()
        assert played.rc != 0 and "the server doesn't answer" in played.text and "Address already in use" in played.text
        assert answers(asker, old, controller)
    finally:
        second.root("systemctl stop squatter")
    controller.deploy().good()
    assert answers(asker, new, controller) and key_of(controller) == key
    assert is_revoked(controller, asker, identity) and left_of_a_server(first) == []
    again = controller.deploy().good()
    assert again.touched(*cluster.boards) == {b.name: 0 for b in cluster.boards}
    cluster.inventory()
    controller.deploy().good()
    assert left_of_a_server(second) == []


@pytest.mark.boards_all
def test_removing_and_revoking_boards_and_the_server_itself(cluster: Cluster, controller: Controller):
    board, other, third = cluster.boards
    url = f"http://{board.host}:{PORT}"
    cluster.inventory(edgellm_server=board.name)
    controller.deploy().good()
    began = started(board)

    # Another board goes: the server goes on, by the new plan.
    controller.ansible("playbooks/remove.yml", "-e", f"board={third.name}").good()
    assert third.name not in controller.plan()
    wait_for(lambda: answers(other, url, controller), 30, "answer without the removed board")
    assert started(board) == began
    controller.deploy().good()
    assert set(controller.plan()) == {b.name for b in cluster.boards}
    wait_for(lambda: answers(other, url, controller), 30, "answer with all boards")

    # Whoever has a copy of the server's key is out at once, and the server with it, until the next deploy.
    identity, stolen = controller.config / "ca/servers" / board.name, controller.home / "stolen"
    shutil.rmtree(stolen, ignore_errors=True)
    shutil.copytree(identity, stolen)
    controller.ansible("playbooks/revoke.yml", "-e", f"name=server-{board.name}").good()
    assert is_revoked(controller, other, stolen) and not answers(other, url, controller)
    controller.deploy().good()
    assert answers(other, url, controller)
    assert is_revoked(controller, other, stolen) and not is_revoked(controller, other, identity)

    # A card that was copied has the keys of its board and of its server.
    shutil.rmtree(stolen)
    shutil.copytree(identity, stolen)
    controller.ansible("playbooks/revoke.yml", "-e", f"name={board.name}").good()
    assert is_revoked(controller, other, stolen)
    controller.deploy().good()
    assert answers(other, url, controller)

    # Its board goes, and the server with it.
    shutil.rmtree(stolen)
    shutil.copytree(identity, stolen)
    controller.ansible("playbooks/remove.yml", "-e", f"board={board.name}").good()
    assert is_revoked(controller, other, stolen) and left_of_a_server(board) == []
    assert controller.ask("Hi", 2)["tokens"]
    cluster.inventory()
    controller.deploy().good()
    assert left_of_a_server(board) == []


@pytest.mark.boards_all
@pytest.mark.timeout(1200)
def test_the_machine_that_deploys_serves_until_a_board_does_or_nobody(lab_up, extra):
    """Its environment is this machine's, as in test_the_controller_may_stand_on_a_board."""
    python = (sys.base_prefix,) if sys.base_prefix != "/usr" else ()
    board, here = extra(27, memory=2048), extra(28, memory=2048, share=(ROOT, HOME, CACHE.resolve(), *python))
    controller = new_controller("serving")
    kind = ("--machine", "x86_64", "--python", "3.11", "--source", ROOT)  # fetched where there is a way out
    controller.edgellm("controller", "wheelhouse", *kind, timeout=300)
    controller.edgellm("controller", "wheelhouse", *kind, "--serving", timeout=300)
    env = {**{k: v for k, v in controller.env.items() if k in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")},
           "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}  # fmt: skip
    there = f"cd {ROOT} && env " + " ".join(f"{name}={value}" for name, value in env.items())

    def play(playbook: str, **options) -> str:
        controller.inventory([board], edgellm_threads=1, **options)
        return here.root(f"{there} ansible-playbook -i {controller.inventory_path} {playbook}", timeout=500)

    url = f"http://127.0.0.1:{PORT}"
    played = play("deploy.yml", edgellm_server="controller")
    assert f"serving: {url}/ with the API key in {controller.config}/api-keys/default" in played
    assert answers(here, url, controller)
    began = started(here)
    assert "server-controller asks: sequence" in board.journal(200)
    again = play("deploy.yml", edgellm_server="controller")
    assert started(here) == began
    assert not re.search(r"changed=[1-9]|failed=[1-9]|unreachable=[1-9]", again.rpartition("PLAY RECAP")[2])
    assert here.pids() == [], "no agent runs on a machine that only serves"

    identity = controller.config / "ca/servers/controller"
    play("deploy.yml", edgellm_server=board.name)
    assert answers(here, f"http://{board.host}:{PORT}", controller) and left_of_a_server(here) == []
    assert is_revoked(controller, board, identity)
    play("deploy.yml", edgellm_server="controller")
    assert answers(here, url, controller) and left_of_a_server(board) == []
    play("playbooks/reset.yml", edgellm_server="controller")
    assert left_of_a_server(here) == [] and board.ours() == set()
    assert not (controller.config / "cluster.json").exists()
