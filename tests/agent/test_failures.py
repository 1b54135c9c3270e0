"""What goes wrong between boards, and that nobody waits for ever because of it."""

import asyncio
import threading
from dataclasses import replace

import pytest

from edgellm.errors import BoardError
from edgellm.manager.board import BoardClient
from edgellm.manager.client import ClusterClient
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from edgellm.wire.dial import connect
from edgellm.wire.peer import Peer
from tests.agent.hostile import until
from tests.fakes import HIDDEN, Boards, ask, assign, connect_all, generate, make_plan, run

PROMPT = [5, 17, 3, 42, 8, 1, 90, 33, 2, 11, 64, 7]


def test_a_link_that_is_refused_right_after_the_hello_fails_its_sequence(tmp_path, monkeypatch):
    received = Peer.data_received

    def refuse_b0(peer, data):  # b1 hangs up on b0 in the packet that has its hello
        received(peer, data)
        greeted = peer.protocol.peer
        if greeted is not None and (greeted.role, greeted.name) == ("board", "b0") and not peer.protocol.dials:
            peer.refuse("no boards today")

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            monkeypatch.setattr(Peer, "data_received", refuse_b0)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                # The manager waits a little for a dead board to be found out before it believes the neighbour.
                monkeypatch.setattr("edgellm.manager.client.PONG_TIMEOUT_S", 0.1)
                monkeypatch.setattr("edgellm.manager.client.PING_EVERY_S", 0.1)
                with pytest.raises(BoardError, match="board b0 .*board b1 .*no boards today"):
                    await ask(cluster, PROMPT)
            monkeypatch.setattr(Peer, "data_received", received)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                return await ask(cluster, PROMPT)

    assert [c.token for c in run(go())] == generate(PROMPT, 10)


def test_a_link_that_was_made_to_wait_is_read_again_after_a_cancel(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.passing._MAX_WAITING_BYTES", 2 * 5 * HIDDEN * 4)
    gate = threading.Event()

    async def go():
        async with Boards(tmp_path, 2, gates={"b1": gate}) as boards:
            plan = await boards.form((0, 3, 6), context=200)
            stage = boards.agents[1].stage
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                long = asyncio.create_task(ask(cluster, PROMPT * 10))
                await until(lambda: stage.passing.paused)
                long.cancel()
                await asyncio.gather(long, return_exceptions=True)
                gate.set()
                return await ask(cluster, PROMPT)

    assert [c.token for c in run(go())] == generate(PROMPT, 10)


def test_an_answer_whose_step_was_lost_ends_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.manager.client.PING_EVERY_S", 0.02)
    monkeypatch.setattr("edgellm.manager.client.STALL_TIMEOUT_S", 0.2)

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            boards.agents[1].stage.hidden = lambda peer, message: None
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                with pytest.raises(BoardError, match="the answer stalled: no board has had work for 0.2 s"):
                    await ask(cluster, PROMPT)

    run(go())


def test_a_new_plan_does_not_stop_the_loop_while_a_step_runs(tmp_path):
    gate = threading.Event()

    async def go():
        async with Boards(tmp_path, 2, gates={"b1": gate}) as boards:
            plan = await boards.form((0, 3, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                answer = asyncio.create_task(ask(cluster, PROMPT))
                await until(lambda: boards.agents[1].stage.engine.step_s > 0)
                forming = asyncio.create_task(boards.form((0, 2, 6), epoch=2))
                await until(lambda: boards.agents[1].stage is None)
                # b1 waits for its running step; it answers pings all the same
                board = cluster.boards[1]
                sent = board._pinged
                await until(lambda: board._pinged > sent + 1)  # so the one behind `sent` was answered
                assert boards.agents[1].stage is None
                gate.set()
                await forming
                with pytest.raises(BoardError, match="has moved on to epoch 2"):
                    await answer

    run(go())


def test_no_section_is_taken_while_a_board_drains(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=30, eos=())
                tokens = [(await anext(stream)).token]
                clients = await connect_all(boards.addresses)
                boards.agents[1].stop()
                with pytest.raises(BoardError, match="b1 is stopping and takes no section"):
                    await assign(make_plan(boards.manifest, (0, 2, 6), epoch=2), boards.addresses, clients[1:])
                return tokens + [c.token async for c in stream]

    assert run(go()) == generate(PROMPT, 30)


def test_the_same_sections_at_other_addresses_move_the_links(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = make_plan(boards.manifest, (0, 3, 6))
            clients = await connect_all(boards.addresses)
            nowhere = {**boards.addresses, "b1": ("127.0.0.1", 1)}
            await assign(plan, nowhere, clients)
            plan = replace(plan, epoch=2)
            assert await assign(plan, boards.addresses, clients) == {"b0": 0, "b1": 0}  # bytes loaded
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                return await ask(cluster, PROMPT)

    assert [c.token for c in run(go())] == generate(PROMPT, 10)


def test_two_boards_that_swapped_addresses_are_noticed(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            swapped = dict(zip(["b1", "b0"], boards.addresses.values(), strict=True))
            with pytest.raises(BoardError, match="calls itself b[01]; is the address right"):
                async with ClusterClient.dial(plan, swapped):
                    pass

    run(go())


def test_a_dial_that_is_given_up_leaves_no_connection_behind(tmp_path, monkeypatch):
    async def go():
        async with Boards(tmp_path, 1) as boards:
            agent = boards.agents[0]
            monkeypatch.setattr(Peer, "data_received", lambda peer, data: None)  # nobody says hello
            host, port = boards.addresses["b0"]
            dial = asyncio.create_task(connect(host, port, m.Hello("manager", "x"), print, print, board="b0"))
            await until(lambda: agent.connections.strangers)
            dial.cancel()
            await until(lambda: not agent.connections.strangers)

    run(go(), 4)  # sooner than the hello's timeout


def test_a_plan_that_the_model_can_not_hold_leaves_the_running_one(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            with pytest.raises(BoardError, match="context of 5000 tokens is over the 4096"):
                await boards.form((0, 2, 6), epoch=2, context=5000)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                return await ask(cluster, PROMPT)

    assert [c.token for c in run(go())] == generate(PROMPT, 10)


def test_middle_boards_want_the_prompt_too(tmp_path):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 2, 4, 6))
            board = await BoardClient("b1", *boards.addresses["b1"]).connect()
            events = asyncio.Queue()
            board.subscribe(9, events)
            board.send(m.Open(plan.epoch, 9, {"plan": plan.digest, "max_tokens": 3}, ()))
            _, answer = await board.receive(events, 5.0, "nothing")
            board.close()
            return answer

    assert run(go()).reason == "a prompt of 0 tokens; a slot takes 1 to 64"


def test_a_token_that_the_model_has_not_is_refused_by_the_first_board(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            await boards.form((0, 3, 6))
            lost = asyncio.get_running_loop().create_future()
            me, (host, port) = m.Hello("board", "b1"), boards.addresses["b0"]
            peer = await connect(host, port, me, print, lambda peer, why: lost.set_result(why), board="b0")
            peer.send(m.Tokens(1, 9, 0, 0, (97,)))
            return await lost

    assert run(go()) == "refused: token id 97; the vocabulary has 97"


def test_changes_of_the_plan_that_wait_for_each_other_are_bounded(tmp_path):
    async def go():
        async with Boards(tmp_path, 1) as boards:
            plan, (agent,) = make_plan(boards.manifest, (0, 6)), boards.agents
            board = await BoardClient("b0", *boards.addresses["b0"]).connect()
            await board.ask(m.Claim({"replaces": None, "epoch": 1}), m.Claimed)
            async with agent.holding._changing:  # one is being loaded
                for _ in range(5):
                    board.send(m.Assign({"plan": plan.to_dict(), "addresses": boards.addresses, "board": "b0"}))
                async with asyncio.timeout(5):
                    reason = str(await board.lost)
                assert not agent.holding.claimed
            await boards.form((0, 6))  # the four are refused one after the other, then this
            return reason

    assert run(go()).endswith("refused: 4 changes of the plan are already waiting")


@pytest.mark.parametrize("then", ["goes on", "is to be given up"])
def test_an_agent_whose_step_hangs_is_left_to_systemd(tmp_path, monkeypatch, then):
    """Its loop lives and answers, so only the agent itself can tell."""
    monkeypatch.setattr("edgellm.agent.serve.STEP_TIMEOUT_S", 0.05)
    fed = []
    monkeypatch.setattr("edgellm.agent.systemd.watchdog", lambda: fed.append(1))
    monkeypatch.setattr("edgellm.agent.serve._SWEEP_S", 0.01)
    gate = threading.Event()
    gate.set()

    async def go():
        async with Boards(tmp_path, 1, gates={"b0": gate}) as boards:
            (agent,), swept = boards.agents, []
            monkeypatch.setattr(agent.connections, "sweep", lambda: swept.append(1))

            async def sweeps(count):
                enough = len(swept) + count
                await until(lambda: len(swept) >= enough)

            plan = await boards.form((0, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                assert [c.token for c in await ask(cluster, PROMPT)] == generate(PROMPT, 10)
                await until(lambda: fed)
                gate.clear()
                answer = asyncio.create_task(ask(cluster, PROMPT))
                await until(lambda: agent.holding.step_s > 0)
                forming = asyncio.create_task(boards.form((0, 6), epoch=2)) if then != "goes on" else None
                await until(lambda: agent.holding.step_s > 0.05)
                await sweeps(2)  # one may have begun before
                fed.clear()
                await sweeps(3)
                assert not fed  # systemd would restart it by and by
                gate.set()
                await asyncio.gather(answer, *filter(None, [forming]), return_exceptions=True)
                await until(lambda: fed)

    run(go())
