"""Forming a cluster whose boards can't all reach each other: what stops a deploy, and what its report says."""

import asyncio
import json
import re

import pytest
from click.testing import CliRunner

from edgellm.cli import main
from edgellm.controller import forming
from edgellm.controller.request import Request
from edgellm.errors import BoardError, DialError, PlanError
from edgellm.manager.cluster_file import ClusterFile
from edgellm.plan import Settings
from edgellm.wire.dial import connect
from tests.fakes import Boards, block, make_manifest, run

SETTINGS = Settings(64, 2, 5, "float32", "latency")
LARGE = make_manifest(ram_bytes=300_000_000)  # three layers fit on a board


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("edgellm.manager.survey._REACH_TIMEOUT_S", 1.0)
    monkeypatch.setattr("edgellm.manager.survey.Fleet._share_ram", lambda fleet: None)
    monkeypatch.setattr("edgellm.agent.measure.free_ram_bytes", lambda: 4 << 30)


@pytest.fixture
def on_boards(tmp_path):
    """Run `go(form)` beside `count` boards; `form()` is a deploy's, in its JSON."""

    def on_boards(go, count, manifest=LARGE):
        (tmp_path / "model").mkdir()

        async def between():
            async with Boards(tmp_path / "model", count, manifest) as boards:
                content = {
                    "model_dir": str(boards.folder), "settings": SETTINGS.to_dict(), "tls": None,
                    "boards": [{"name": n, "host": h, "port": p} for n, (h, p) in boards.addresses.items()],
                }  # fmt: skip
                (tmp_path / "request.json").write_text(json.dumps(content))

                async def form(**kwargs) -> dict:
                    request = Request.read(tmp_path / "request.json")
                    path = tmp_path / "cluster.json"
                    return await asyncio.to_thread(forming.form, request, path, lambda text: None, **kwargs)

                return await go(form)

        return run(between())

    return on_boards


def test_a_plan_whose_boards_cannot_reach_each_other_is_formed_and_named(on_boards, tmp_path, monkeypatch):
    closed = block(monkeypatch, "b1>b0")

    async def go(form):
        dry, blocked = await form(dry_run=True), await form()
        closed.clear()
        return dry, blocked, await form()

    dry, blocked, opened = on_boards(go, 2)
    port = ClusterFile.read(tmp_path / "cluster.json").addresses()["b0"][1]
    assert blocked["broken"] == (
        f"b1 can't reach b0 at 127.0.0.1:{port}: no answer within 2 s. Allow TCP port {port} between the boards, with "
        f"ufw on b0: 'sudo ufw allow from 127.0.0.1 to any port {port} proto tcp'."
    )
    assert blocked["changed"] and blocked["epoch"] == 1 and blocked["reasons"] == {}
    assert (opened["broken"], opened["changed"], opened["epoch"]) == ("", False, 1)
    assert dry["broken"] == "" and dry["reasons"] == {}  # there may be no agents yet


def test_a_pair_that_the_plan_does_not_need_is_left_to_the_report(on_boards, monkeypatch):
    block(monkeypatch, "b2>b1", "b0>b2", "b1>b2")

    async def go(form):
        return await form()

    done = on_boards(go, 3)
    assert [s["board"] for s in done["sections"]] == ["b0", "b1"] and done["broken"] == ""
    assert set(done["reasons"]) == {"b2", "b1"}
    assert done["reasons"]["b2"].startswith("board b2: no other board reaches b2 at ")
    assert done["reasons"]["b1"].startswith("board b1: b2 can't reach b1 at ")


def test_an_agent_that_was_just_starting_is_tried_again(on_boards, monkeypatch):
    closed, tried = block(monkeypatch, "b1>b0"), []
    try_pairs = forming.try_pairs

    async def look(*args):
        pairs = await try_pairs(*args)
        tried.append(len([p for p in pairs if p.broken]))
        closed.clear()
        return pairs

    monkeypatch.setattr("edgellm.controller.forming.try_pairs", look)

    async def go(form):
        return await form()

    assert on_boards(go, 2)["broken"] == "" and tried == [1, 0]


def keep_the_controller_from(monkeypatch, *boards: str) -> None:
    async def dial(host, port, me, *args, board, **kwargs):
        if board in boards:
            reason = "no answer within 4 s"
            raise DialError(f"board {board} ({host}:{port}): {reason}", board, "timeout", reason)
        return await connect(host, port, me, *args, board=board, **kwargs)

    monkeypatch.setattr("edgellm.manager.board.connect", dial)


def test_a_board_that_only_the_controller_does_not_reach_has_a_reason(on_boards, monkeypatch):
    keep_the_controller_from(monkeypatch, "b1")

    async def go(form):
        return await form()

    done = on_boards(go, 3)
    assert set(done["missing"]) == set(done["reasons"]) == {"b1"} and done["broken"] == ""
    assert done["reasons"]["b1"].startswith("board b1: this machine can't reach b1 at 127.0.0.1:")
    assert ": no answer within 4 s, though b0 and b2 reach it there. " in done["reasons"]["b1"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_boards_without_which_the_model_does_not_fit_are_named_with_their_port(on_boards, monkeypatch, dry_run):
    keep_the_controller_from(monkeypatch, "b1")

    async def go(form):
        with pytest.raises(PlanError) as e:
            await form(dry_run=dry_run)
        return str(e.value)

    said = on_boards(go, 2)
    assert re.match(r"board b1 \(127\.0\.0\.1:(\d+)\): no answer within 4 s\. Without: .*1\.07 GB", said)
    port = re.search(r":(\d+)\)", said)[1]
    advice = f"If its agent runs, allow TCP port {port} from this machine, with ufw on b1: 'sudo ufw allow {port}/tcp'."
    assert said.endswith(f" {advice}") is not dry_run  # there may be no agents yet


def test_if_no_board_answers_though_agents_may_run_the_firewall_is_named(on_boards, monkeypatch):
    keep_the_controller_from(monkeypatch, "b0", "b1")

    async def go(form):
        with pytest.raises(BoardError) as e:
            await form()
        return str(e.value)

    said = on_boards(go, 2)
    assert said.startswith("no board answers: board b0 (127.0.0.1:") and "; board b1 (127.0.0.1:" in said
    assert re.search(r"\. If their agents run, allow TCP port \d+ or \d+ from this machine, with ufw on each: ", said)


def test_the_command_fails_with_the_sentence_and_has_said_what_it_did(on_boards, tmp_path, monkeypatch):
    block(monkeypatch, "b0>b1", "b1>b0")

    async def go(form):
        words = ["controller", "form", str(tmp_path / "request.json"), "--cluster", str(tmp_path / "cluster.json")]
        return await asyncio.to_thread(CliRunner().invoke, main, words)

    done = on_boards(go, 2)
    assert done.exit_code == 1 and json.loads(done.stdout)["epoch"] == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("edgellm: b0 (127.0.0.1:") and "can't reach each other: no answer within 2 s. Allow" in last


def test_troubles_of_a_long_plan_are_cut_at_three(on_boards, monkeypatch):
    block(monkeypatch, *(f"b{i}>b{(i + 1) % 6}" for i in range(6)))

    async def go(form):
        return await form()

    done = on_boards(go, 6, make_manifest(ram_bytes=600_000_000))  # one layer fits on a board
    assert len(done["sections"]) == 6 and done["broken"].count("can't reach") == 3
