"""Questions whose boards have something happen to them in mid-answer."""

import threading
import time
from collections.abc import Awaitable, Callable

from edgellm.manager.session import Session
from edgellm.plan import Plan
from edgellm.structure import Constraint
from edgellm.wire.status import SequenceStats
from tests.fakes import GREEDY, Boards

PROMPT = [5, 17, 3, 42, 8, 1, 90, 33, 2, 11, 64, 7]
Happening = Callable[[Boards], Awaitable[None]]


class Asked:
    """An answer, and what was told on the way."""

    def __init__(self):
        self.tokens: list[int] = []
        self.finish = ""
        self.told: list[str] = []
        self.adopted: list[Plan] = []
        self.stats: dict[str, SequenceStats] = {}


class Leash:
    """A gate of fake sections: boards that have run far ahead of whoever reads the answer go slowly. Else, on a busy
    machine, all of it may be computed before something happens to them."""

    MOST = 20  # steps

    def __init__(self):
        self.taken = 0  # tokens that were read, of all answers
        self.answers = 0  # under way
        self._engine = threading.local()

    def wait(self, timeout_s: float) -> bool:
        engine = self._engine
        engine.steps = getattr(engine, "steps", self.taken) + 1 if self.answers else self.taken
        if engine.steps - self.taken > self.MOST:
            time.sleep(0.2)
            engine.steps = self.taken  # replays take steps, too, for which no token is read
        return True

    @classmethod
    def of(cls, boards: Boards) -> "Leash":
        """Return the leash of these boards, all but those that have another gate."""
        leash = next((gate for gate in boards.gates.values() if isinstance(gate, cls)), None) or cls()
        for i in range(boards.count):
            boards.gates.setdefault(f"b{i}", leash)
        for section in boards.sections.values():
            section.gate = section.gate or leash
        return leash


async def asked(
    boards: Boards, plan: Plan, at: dict[int, Happening], count: int, sampling=GREEDY, *, eos=(), patience_s=10.0,
    got: Asked | None = None, constraint: Constraint | None = None,
) -> Asked:  # fmt: skip
    """Ask, and after so many tokens have something happen. With `got`, what has come is there even after an error."""
    got, leash = got or Asked(), Leash.of(boards)
    leash.answers += 1
    try:
        await _ask(boards, plan, at, got, leash, count, sampling, eos, patience_s, constraint)
    finally:
        leash.answers -= 1
    return got


async def _ask(boards, plan, at, got, leash, count, sampling, eos, patience_s, constraint) -> None:
    async with Session(
        boards.manifest, plan, boards.addresses, tls=boards.client_tls, patience_s=patience_s, tell=got.told.append,
        adopted=lambda plan, addresses, tag: got.adopted.append(plan),
    ) as session:  # fmt: skip
        if 0 in at:
            await at[0](boards)
        stream = session.generate(
            PROMPT, sampling=sampling, max_tokens=count, eos=eos, stats=got.stats, constraint=constraint
        )
        async for chosen in stream:
            got.tokens.append(chosen.token)
            leash.taken += 1
            assert chosen.position == len(PROMPT) + len(got.tokens) - 1 and not got.finish
            got.finish = chosen.finish
            if len(got.tokens) in at:
                await at[len(got.tokens)](boards)


# What happens to boards


def cut(*which: int) -> Happening:
    """All their connections end; they may be dialled again."""

    async def cut(boards):
        for i in which:
            boards.cut(i)

    return cut


def stop(*which: int) -> Happening:
    async def stop(boards):
        for i in which:
            await boards.stop(i)

    return stop


def restart(*which: int) -> Happening:
    async def restart(boards):
        for i in which:
            await boards.stop(i)
        for i in which:
            await boards.start(i)

    return restart


def drain(i: int) -> Happening:
    async def drain(boards):
        boards.agents[i].stop()

    return drain


def form(cuts: tuple[int, ...], epoch: int, **kwargs) -> Happening:
    """Another manager commits a plan."""

    async def form(boards):
        await boards.form(cuts, epoch=epoch, context=256, **kwargs)

    return form


async def cut_between_boards(boards: Boards) -> None:
    """The manager's own connections stay."""
    boards.agents[0].stage._next.peer._transport.abort()


async def hang(boards: Boards) -> None:
    """Board b1 is there and says nothing more."""
    connections = boards.agents[1].connections
    connections._on_message = lambda peer, message: None
    for peer in connections.peers:
        peer._on_message = lambda peer, message: None


async def lose_a_step(boards: Boards) -> None:
    """A hidden state vanishes on the way."""
    stage = boards.agents[1].stage
    stage.hidden = lambda peer, message: delattr(stage, "hidden")
