"""A firewall between two boards, or between the controller and a board: deploy, status and doctor name it."""

import json
import time

import pytest

from tests.boards.conftest import PROMPT
from tests.boards.harness import PORT, Played, figure


@pytest.fixture
def ring(cluster):
    """The boards in the order of their sections; their firewalls are down afterwards."""
    order = sorted(cluster.controller.plan().items(), key=lambda item: item[1])
    boards = {b.name: b for b in cluster.boards}
    yield [boards[name] for name, _ in order]
    for board in cluster.boards:
        board.unblock()


def broken(controller) -> dict[str, str]:
    """What status says of pairs that don't work, by "dialler>board"."""
    return {f"{p['from']}>{p['to']}": p["reason"] for p in controller.status()["pairs"] if not p["ok"]}


def doctor(controller) -> list[str]:
    """Doctor's findings about reaching boards, with what to do."""
    found = json.loads(controller.edgellm("doctor", "--quick", "--json", check=False).text)
    return [f"{f['what']}. {f['todo']}" for b in found["boards"] for f in b["findings"]
            if f["about"] in ("pairs", "reach")]  # fmt: skip


def said(played: Played) -> str:
    """All that a playbook printed, as one line."""
    return " ".join(played.text.replace("\\n", " ").split())


def test_a_pair_that_is_blocked_is_named_by_deploy_status_and_doctor(cluster, controller, ring):
    last, first = ring[-1], ring[0]
    assert broken(controller) == {} and len(controller.status()["pairs"]) == 6
    first.block(last)  # the tokens' way: the last board's to the first
    expected = (
        f"{last.name} can't reach {first.name} at {first.host}:{PORT}: no answer within 2 s. Allow TCP port {PORT} "
        f"between the boards, with ufw on {first.name}: 'sudo ufw allow from {last.host} to any port {PORT} proto tcp'."
    )

    began = time.monotonic()
    status = controller.status()
    figure("status with a pair whose packets are dropped", time.monotonic() - began)
    assert broken(controller) == {f"{last.name}>{first.name}": "no answer within 2 s"}
    assert expected in status["notes"] and not status["serving"]
    assert controller.row(last)["state"] == f"can't reach {first.name}"
    assert controller.edgellm("status", check=False).wait(1) == 1

    assert doctor(controller) == [expected]

    played = controller.deploy()
    assert played.rc != 0 and expected in said(played)

    first.unblock()
    controller.deploy().good()
    assert broken(controller) == {} and doctor(controller) == [] and controller.status()["serving"]
    assert len(controller.ask(PROMPT, 5)["tokens"]) == 5


def test_a_firewall_that_rejects_all_boards_is_said_once(cluster, controller, ring):
    closed, others = ring[1], [ring[0], ring[2]]
    for board in others:
        closed.block(board, "reject")
    (expected,) = doctor(controller)
    assert expected == (
        f"no other board reaches {closed.name} at {closed.host}:{PORT}, though this machine does: connection refused. "
        f"Allow TCP port {PORT} between the boards, with ufw on {closed.name}: 'sudo ufw allow {PORT}/tcp'."
    )
    assert expected in controller.status()["notes"]
    assert len(broken(controller)) == 2


def test_a_board_that_the_controller_alone_does_not_reach(cluster, controller, ring):
    """SSH works and its agent runs, so deploy could take it for well."""
    closed, others = ring[1], sorted([ring[0].name, ring[2].name])
    closed.block(None)
    reach = f"{' and '.join(others)} reach it there"
    notes = controller.status()["notes"]
    assert any(f"this machine can't reach {closed.name} at {closed.host}:{PORT}" in n and reach in n for n in notes)
    (found,) = doctor(controller)
    assert f"no answer from {closed.host}:{PORT}" in found and f"'sudo ufw allow {PORT}/tcp'" in found
    assert f"though {', '.join(others)} can reach it" in found
    played = controller.deploy()
    assert played.rc != 0 and reach in said(played)
    assert f"Allow TCP port {PORT} from this machine, with ufw on {closed.name}" in said(played)
