"""Engines of one board compute in turns."""

import threading

from edgellm.agent import turns as module
from edgellm.agent.turns import Turns

WAIT_S = 20.0


def in_thread(turns: Turns, name: str, ran: list[str], go: threading.Event | None = None) -> threading.Thread:
    def run() -> None:
        with turns.mine():
            ran.append(name)
            if go is not None:
                assert go.wait(WAIT_S)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def until(turns: Turns, count: int) -> None:
    """Wait until so many run or wait."""
    deadline = threading.Event()
    for _ in range(2000):
        if len(turns._turns) >= count:
            return
        deadline.wait(0.01)
    raise AssertionError("they never came")


def test_one_step_runs_at_a_time_in_the_order_of_asking():
    turns, ran, go = Turns(), [], threading.Event()
    threads = [in_thread(turns, "a", ran, go)]
    for i, name in enumerate("bcd"):
        until(turns, i + 1)
        threads.append(in_thread(turns, name, ran))
    until(turns, 4)
    assert ran == ["a"]
    go.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert ran == ["a", "b", "c", "d"] and not turns._turns


def test_a_step_that_takes_long_keeps_nobody_from_computing(monkeypatch):
    monkeypatch.setattr(module, "_LONG_S", 0.05)
    turns, ran, go = Turns(), [], threading.Event()
    hangs = in_thread(turns, "hangs", ran, go)
    until(turns, 1)
    for name in "bc":
        in_thread(turns, name, ran).join(WAIT_S)
    assert ran == ["hangs", "b", "c"]
    go.set()
    hangs.join(WAIT_S)


def test_a_step_that_fails_gives_its_turn_on():
    turns = Turns()
    try:
        with turns.mine():
            raise ValueError
    except ValueError:
        pass
    with turns.mine():
        assert len(turns._turns) == 1
