"""A board serves: deployed with the cluster, asked from another board, kept, moved to another model, and removed."""

import json

import pytest

from tests.boards.conftest import Cluster
from tests.boards.harness import Board, Controller, lab
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
    assert not [path for path in board.ours() if "server" in path and "/site-packages/" not in path]
    assert "serv" not in board.root("getent passwd | grep edgellm")


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
