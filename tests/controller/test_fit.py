"""Whether the model fits on the boards as the inventory will have them, and what is said if it doesn't."""

import asyncio
from dataclasses import replace

import pytest

from edgellm.config import IDLE_AGENT_BYTES
from edgellm.controller.fit import fit
from tests.controller.asked import LARGE, SETTINGS, request_of
from tests.fakes import Boards, run

GB = 10**9
AGENT = IDLE_AGENT_BYTES["native"]
AT = {f"b{i}": ("127.0.0.1", 9 + i) for i in range(3)}  # where nothing listens


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("edgellm.manager.survey._REACH_TIMEOUT_S", 1.0)
    monkeypatch.setattr("edgellm.manager.survey._LOST_TIMEOUT_S", 0.5)
    monkeypatch.setattr("edgellm.manager.survey.Fleet._share_ram", lambda fleet: None)
    monkeypatch.setattr("edgellm.agent.measure.free_ram_bytes", lambda: 4 << 30)


def board(free: float, disk: float | None = None, **limits) -> dict:
    """What deploy knows of a board with `free` GB beside its agent, and limits in GB."""
    memory = {n: v if isinstance(v, bool) else round(v * GB) for n, v in limits.items()}
    memory["free"] = round(free * GB) + AGENT
    return {"memory": memory} | ({} if disk is None else {"disk_bytes": round(disk * GB)})


@pytest.fixture
def ask(tmp_path):
    """What `fit` says without any agent. LARGE has six layers of 0.3 GB, and a board keeps 67 MB of headroom."""

    def ask(*boards: dict, manifest=LARGE, **changes):
        manifest.write(tmp_path)
        known = {f"b{i}": b for i, b in enumerate(boards)}
        at = {n: AT[n] for n in known}
        no_tls = str(tmp_path / "no-certificates-yet")
        return fit(request_of(tmp_path / "request.json", tmp_path, at, known, **{"tls": no_tls, **changes}))

    return ask


@pytest.mark.parametrize(
    "boards",
    [
        (board(1.1), board(1.1)),
        (board(4, ram=1.1), board(4, memory_max=1.1 + AGENT / GB)),
        (board(2),),
        (board(1.1), board(1.1), board(0)),
        (board(4, disk=1.1), board(1.1)),
    ],
)
def test_before_there_are_agents_what_is_free_within_the_limits_tells_that_it_fits(ask, boards):
    assert ask(*boards) is None


@pytest.mark.parametrize(
    ("boards", "offers"),
    [
        ((board(1.1), board(0.5)), "b0 1.03 GB of 1.10 GB, b1 0.43 GB of 0.50 GB; 0.3"),
        ((board(0), board(0)), "b0 0.0 MB of 0.0 MB, b1 0.0 MB of 0.0 MB; 1.80 GB are missing"),
        ((board(1.1), board(4, ram=0.5)), "b1 0.43 GB of 0.50 GB"),
        ((board(1.1), board(4, memory_max=0.5)), "b1 0.37 GB of 0.44 GB"),
        ((board(4, disk=0.1),), "b0 32.9 MB of 0.10 GB"),
    ],
)
def test_before_there_are_agents_it_is_told_what_is_missing(ask, boards, offers):
    said = ask(*boards)
    assert said.startswith("fake needs 1.80 GB (weights 1.80 GB, KV ") and offers in said


def test_no_board_at_all_and_a_context_that_the_model_does_not_have_are_told_alone(ask):
    left_out = [{"name": "pi3", "reason": "board pi3 is off."}]
    assert ask(left_out=left_out) == (
        "no boards to plan fake on. Add one. First bring back what is left out: board pi3 is off."
    )
    said = ask(board(4), settings=replace(SETTINGS, context=5000).to_dict(), left_out=left_out)
    assert said == "a context of 5000 tokens is over the 4096 of fake. Ask for less."


def test_what_the_owner_has_is_named_before_another_board(ask):
    left_out = [{"name": "pi3", "reason": "board pi3 can't be reached over SSH. Check its power."},
                {"name": "pi4", "reason": "board pi4 is armv7l"}]  # fmt: skip
    said = ask(board(1.1), board(2, ram=0.5), left_out=left_out, manifest=replace(LARGE, quantization="int8"))
    steps = [
        "; 0.33 GB are missing. ",
        "First bring back what is left out: board pi3 can't be reached over SSH. Check its power. board pi4 is armv7l.",
        "edgellm_ram holds b1 at 0.50 GB, of 2.00 GB free: the model fits if b1 offers 0.97 GB. ",
        "It would fit with edgellm_quantize=int4 (about 1.06 GB of weights instead of 1.80 GB), ",
        "or with 2 more boards like b1 (0.50 GB).",
    ]
    places = [said.find(step) for step in steps]
    assert -1 not in places and places == sorted(places), said
    assert said.endswith(steps[-1]) and "--quantize" not in said


def test_the_offer_that_is_said_to_be_enough_is_enough_and_hardly_more(ask):
    said = ask(board(1.1), board(2, ram=0.5))
    assert "fits if b1 offers 0.97 GB." in said
    assert ask(board(1.1), board(2, ram=0.97)) is None and ask(board(1.1), board(2, ram=0.96)) is not None


def test_several_boards_that_are_held_back_are_raised_together(ask):
    said = ask(board(2, ram=0.5), board(2, memory_max=0.6))
    assert (
        "edgellm_ram holds b0 at 0.50 GB, of 2.00 GB free; edgellm_memory_max holds b1 at 0.54 GB, of 2.00 GB free: "
        "the model fits if b0 offers 0.97 GB and b1 offers 1.01 GB."
    ) in said, said


def test_larger_boards_are_asked_for_only_if_nothing_else_helps(ask):
    assert ask(board(0.2), board(0.3)).endswith("Layer 5 alone needs a board that offers 0.37 GB: add such boards.")
    assert ask(board(2, ram=0.2), board(2, ram=0.2)).endswith("offers 0.97 GB and b1 offers 0.97 GB.")


def test_limits_that_hold_back_too_little_are_not_blamed(ask):
    assert "holds" not in ask(board(0.6, ram=0.5), board(0.5))


def test_a_small_disk_is_told_beside_the_ram(ask):
    assert "The disk of b0 has room for 0.10 GB of weights. Free some space there." in ask(board(4, disk=0.1))


def test_fewer_slots_and_less_context_are_told_before_another_board(ask):
    said = ask(board(1.9), settings=replace(SETTINGS, context=4096, slots=9000).to_dict())
    assert said.index("slots instead of 9000") < said.index("more board")


# With agents, each of which offers 1.07 GB: three layers


@pytest.fixture
def live(tmp_path):
    """Run `go(boards, ask)` beside two agents; `ask(**details)` is what `fit` says."""

    def live(go):
        async def between():
            async with Boards(tmp_path, 2, LARGE) as boards:

                async def ask(*details: dict, **changes):
                    known = {f"b{i}": d for i, d in enumerate(details)}
                    path = tmp_path / "request.json"
                    return await asyncio.to_thread(fit, request_of(path, tmp_path, boards.addresses, known, **changes))

                return await go(boards, ask)

        return run(between())

    return live


def test_agents_that_keep_their_limits_or_are_left_alone_are_believed(live):
    async def go(boards, ask):
        kept = board(0.1, kept=True)  # a probe that sees too little
        said = [await ask(kept, kept), await ask(kept), await ask()]
        await boards.stop(1)
        return said, await ask(kept, board(0.1, kept=True)), await ask(kept)

    said, estimated, alone = live(go)
    assert said == [None, None, None]
    assert "b1 32.9 MB of 0.10 GB" in estimated  # nobody answers there: the estimate counts
    assert "b1" not in alone and "b0 1.01 GB of 1.07 GB" in alone


def test_a_limit_that_is_lowered_too_far_is_refused_though_the_agents_offer_enough_now(live):
    async def go(boards, ask):
        await boards.form((0, 3, 6))
        return await ask(board(4, ram=0.5), board(4, kept=True)), await ask(board(4, ram=1), board(4, kept=True))

    said, fits = live(go)
    assert "edgellm_ram holds b0 at 0.50 GB, of 4.00 GB free: the model fits if b0 offers 0.97 GB." in said
    assert fits is None


def test_a_limit_that_is_raised_counts_though_the_agents_offer_too_little_now(live):
    """Also for one board that is to take the share of another, which is dead."""

    async def go(boards, ask):
        for agent in boards.agents:
            agent.holding.room.ram_bytes = 400_000_000
        before = await ask()
        both = await ask(board(4, ram=1), board(4, ram=1))
        await boards.stop(1)
        alone = request_of(boards.folder / "request.json", boards.folder, {"b0": boards.addresses["b0"]},
                           {"b0": board(4, ram=2)})  # fmt: skip
        return before, both, await asyncio.to_thread(fit, alone)

    before, both, alone = live(go)
    assert "b0 0.33 GB of 0.40 GB" in before and both is None and alone is None


def test_what_runs_may_use_its_headroom_up_unless_its_agent_starts_again(live, monkeypatch):
    async def go(boards, ask):
        await boards.form((0, 3, 6))
        monkeypatch.setattr("edgellm.agent.measure.free_ram_bytes", lambda: 930_000_000)
        stays, kept = board(0.93, kept=True, stays=True), board(0.93, kept=True)
        longer = replace(SETTINGS, context=128).to_dict()
        return await ask(stays, stays), [
            await ask(stays, board(0.93)), await ask(kept, kept), await ask(stays, stays, settings=longer)
        ]  # fmt: skip

    stays, others = live(go)
    assert stays is None and all("missing" in said for said in others)


def test_each_model_has_to_fit_and_all_of_them_on_the_disks(ask, tmp_path):
    small = replace(LARGE, model="small", shards=tuple(replace(s, bytes=100_000_000) for s in LARGE.shards))
    huge = replace(LARGE, model="huge", shards=tuple(replace(s, ram_bytes=1_000_000_000) for s in LARGE.shards))
    for manifest in (small, huge):
        (tmp_path / manifest.model).mkdir()
        manifest.write(tmp_path / manifest.model)
    more = [str(tmp_path / "small")]
    assert ask(board(1.1), board(1.1), more=more) is None
    said = ask(board(1.1), board(1.1), more=[*more, str(tmp_path / "huge")])
    assert said.startswith("huge, one of edgellm_models: huge needs ")
    # 0.8 GB of files each, and a board may keep a section only.
    assert ask(board(1.1, 2.0), board(1.1, 2.0), manifest=small, more=more) is None
    tight = ask(board(1.1, 1.0), board(1.1, 1.0), manifest=small, more=[str(tmp_path / "small")])
    assert tight.startswith("small, one of edgellm_models: ") and "room for 0.20 GB" in tight
