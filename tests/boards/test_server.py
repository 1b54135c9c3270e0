"""A board serves: deployed with the cluster, asked from another board, kept, moved to another model, and removed."""

import json

from tests.boards.conftest import Cluster
from tests.boards.harness import Board, Controller, lab

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

    cluster.inventory()  # nobody serves
    controller.deploy().good()
    assert not [path for path in board.ours() if "server" in path and "/site-packages/" not in path]
    assert "serv" not in board.root("getent passwd | grep edgellm")
