"""Who may do what on an agent: an asker asks and doesn't plan, the revoked are refused, and the log says who it was."""

import logging
import os

import pytest

from edgellm.agent import serve
from edgellm.errors import BoardError, ClaimError, DialError
from edgellm.manager.board import BoardClient
from edgellm.manager.client import ClusterClient
from edgellm.manager.connections import Connections
from edgellm.manager.pairs import try_pairs
from edgellm.wire import messages as m
from edgellm.wire.credentials import client_credentials
from tests import certificates
from tests.certificates import make_cluster
from tests.fakes import Boards, ask, assign, generate, make_plan, run, until

PROMPT = [3, 1, 4, 1, 5]
PLAN_FIRST = "manager anna may ask, but not change the plan: only an admin may. Do it on an admin's machine, or"


@pytest.fixture
def cluster(tmp_path):
    return make_cluster(tmp_path / "tls", ["b0", "b1"])


@pytest.fixture(autouse=True)
def quick_sweep(monkeypatch):
    monkeypatch.setattr(serve, "_SWEEP_S", 0.01)


def test_an_asker_asks_and_does_not_plan(cluster, tmp_path, caplog):
    caplog.set_level(logging.INFO, "edgellm")

    async def go():
        async with Boards(tmp_path, 2, tls=cluster) as boards:
            plan = await boards.form((0, 3, 6))
            anna = client_credentials(cluster / "asker")
            async with ClusterClient.dial(plan, boards.addresses, anna) as client:
                assert [c.token for c in await ask(client, PROMPT)] == generate(PROMPT, 10)
            async with Connections(anna) as connections:
                clients = await connections.to_all(boards.addresses)
                nexts = make_plan(boards.manifest, (0, 2, 6), epoch=2)
                with pytest.raises(ClaimError, match=PLAN_FIRST):
                    await assign(nexts, boards.addresses, clients)
                content = {"plan": nexts.to_dict(), "addresses": boards.addresses, "board": "b0"}
                for order, answer in (
                    (m.Claim({"replaces": 1, "epoch": 2}), m.Claimed), (m.Assign(content), m.Assigned),
                    (m.Commit({"epoch": 2}), m.Committed), (m.Reach({"boards": {"b1": ["127.0.0.1", 1]}}), m.Reached),
                ):  # fmt: skip
                    said = await clients[0].ask(order, answer)
                    assert "manager anna may ask, but not" in said.content["error"]
                assert (await clients[0].status()).epoch == 1  # on the same connection
            assert [a.holding.epoch for a in boards.agents] == [1, 1]
            async with ClusterClient.dial(plan, boards.addresses, anna) as client:
                assert [c.token for c in await ask(client, PROMPT)] == generate(PROMPT, 10)
        return plan

    run(go())
    log = caplog.text
    assert "anna asks: sequence" in log and "refused a claim of 127.0.0.1:" in log
    assert "claims this board for epoch 1" in log and "has committed epoch 1" in log and "pc (127.0.0.1:" in log


def test_pairs_that_an_asker_may_not_try_are_unknown_and_say_why(cluster, tmp_path):
    async def go():
        async with Boards(tmp_path, 2, tls=cluster) as boards:
            return await try_pairs(boards.addresses, client_credentials(cluster / "asker"))

    pairs = {(p.dialler, p.board): p for p in run(go())}
    assert pairs["this machine", "b0"].outcome.ok and not pairs["b0", "b1"].broken
    assert "manager anna may ask, but not have boards dial each other" in pairs["b0", "b1"].reason


def test_without_tls_everyone_plans(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            await boards.form((0, 3, 6))

    run(go())


def test_a_revoked_manager_is_refused_on_the_connection_that_stands_and_on_new_ones(cluster, tmp_path):
    async def go():
        async with Boards(tmp_path, 2, tls=cluster) as boards:
            await boards.form((0, 3, 6))
            anna, pc = client_credentials(cluster / "asker"), client_credentials(cluster / "manager")
            standing = await BoardClient("b0", *boards.addresses["b0"], anna).connect()
            other = await BoardClient("b0", *boards.addresses["b0"], pc).connect()
            certificates.revoke(cluster, "anna", cluster / "boards/b0")
            await until(standing.lost.done, 3)
            assert "refused: the certificate of manager anna has been revoked" in str(standing.lost.result())
            with pytest.raises(DialError, match="refused this manager's certificate: it has been revoked"):
                await BoardClient("b0", *boards.addresses["b0"], anna).connect()
            assert (await other.status()).epoch == 1
            other.close()
            # A board that the list hasn't reached yet goes on with her: it gets it at its next deploy.
            late = await BoardClient("b1", *boards.addresses["b1"], anna).connect()
            certificates.revoke(cluster, "anna", cluster / "boards/b1")
            await until(late.lost.done, 3)

    run(go())


@pytest.mark.parametrize("told", ["b0", "b1"])
def test_links_to_and_from_a_revoked_board_end(cluster, tmp_path, told):
    """b0 dials b1 with hidden states, and b1 dials b0 with tokens: whichever is told ends both connections."""
    revoked = {"b0": "b1", "b1": "b0"}[told]

    async def go():
        async with Boards(tmp_path, 2, tls=cluster) as boards:
            plan = await boards.form((0, 3, 6))
            async with ClusterClient.dial(plan, boards.addresses, boards.client_tls) as client:
                assert [c.token for c in await ask(client, PROMPT)] == generate(PROMPT, 10)
                agent = next(a for a in boards.agents if a.options.name == told)
                links = [p for p in agent._client_tls.dialled if p.name == revoked and p.lost is None]
                listens = [p for p in agent.connections.peers if p.name == revoked]
                assert len(links) == 1 and len(listens) == 1
                certificates.revoke(cluster, f"board:{revoked}", cluster / "boards" / told)
                await until(lambda: links[0].lost and listens[0].lost, 3)
                with pytest.raises(BoardError):
                    await ask(client, PROMPT)

    run(go())


def test_a_half_written_list_ends_nobody_and_is_said(cluster, tmp_path, caplog):
    async def go():
        async with Boards(tmp_path, 1, tls=cluster) as boards:
            client = await BoardClient("b0", *boards.addresses["b0"], client_credentials(cluster / "manager")).connect()
            (cluster / "boards/b0/revoked.json").write_text('{"serials": ["12')
            await until(lambda: "keeps the certificates it has: revocations" in caplog.text, 3)
            assert (await client.status()).name == "b0"
            os.unlink(cluster / "boards/b0/revoked.json")
            client.close()

    run(go())
