"""Tried pairs to sentences, by tables: which boards can't reach each other, why, and what to do."""

import pytest

from edgellm.controller.pairs import from_here, reached_by, troubles, untried
from edgellm.errors import DIAL_CODES
from edgellm.manager.pairs import HERE, Pair
from edgellm.wire.reach import Outcome

PLACES = {f"b{i}": (f"10.0.0.{i}", 7710) for i in range(1, 9)}
DROPS = Outcome("timeout", "no answer within 2 s")
REJECTS = Outcome("refused", "connection refused, is its agent running?")


def tried(count: int, broken: dict[str, Outcome | None], places=PLACES) -> list[Pair]:
    """Pairs of `count` boards and this machine; all work but those named, as in "b1>b2", ">b2" from this machine."""
    boards = list(places)[:count]
    ways = [(HERE, b) for b in boards] + [(d, b) for d in boards for b in boards if d != b]
    pairs, left = [], dict(broken)
    for d, b in ways:
        outcome = left.pop(f"{'' if d == HERE else d}>{b}", Outcome("ok"))
        pairs.append(Pair(d, b, places[b], outcome, "" if outcome else "it can't be asked"))
    assert not left
    return pairs


def sentences(*args, **kwargs) -> list[str]:
    return [t.sentence for t in troubles(tried(*args, **kwargs))]


def test_nothing_is_wrong():
    for count in (0, 1, 2, 5):
        assert troubles(tried(count, {})) == [] and from_here(tried(count, {})) == {}


def test_one_direction_of_one_pair():
    (trouble,) = troubles(tried(3, {"b1>b2": DROPS}))
    assert trouble.sentence == (
        "b1 can't reach b2 at 10.0.0.2:7710: no answer within 2 s. Allow TCP port 7710 between the boards, with ufw on "
        "b2: 'sudo ufw allow from 10.0.0.1 to any port 7710 proto tcp'."
    )
    assert trouble.boards == ("b2", "b1") and [(p.dialler, p.board) for p in trouble.pairs] == [("b1", "b2")]


def test_a_firewall_that_rejects_is_not_taken_for_an_agent_that_does_not_run():
    (said,) = sentences(2, {"b2>b1": REJECTS})
    assert said.startswith("b2 can't reach b1 at 10.0.0.1:7710: connection refused. Allow TCP port 7710")


def test_both_directions_of_a_pair_are_one_sentence():
    (said,) = sentences(4, {"b1>b2": DROPS, "b2>b1": DROPS})
    assert said.startswith("b1 (10.0.0.1:7710) and b2 (10.0.0.2:7710) can't reach each other: no answer within 2 s. ")
    assert "with ufw on both: 'sudo ufw allow 7710/tcp'; if there is no firewall, check the switch" in said
    assert len(sentences(4, {"b1>b2": DROPS, "b2>b1": Outcome("unreachable", "no route to host")})) == 2


def test_a_board_that_no_other_reaches_is_said_once():
    (said,) = sentences(4, {f"{b}>b3": DROPS for b in ("b1", "b2", "b4")})
    assert said == (
        "no other board reaches b3 at 10.0.0.3:7710, though this machine does: no answer within 2 s. Allow TCP port "
        "7710 between the boards, with ufw on b3: 'sudo ufw allow 7710/tcp'."
    )


def test_a_board_that_reaches_nobody_is_said_once():
    (said,) = sentences(5, {f"b1>b{i}": DROPS for i in (2, 3, 4, 5)})
    assert said.startswith("b1 can't reach any other board (b2 at 10.0.0.2:7710, b3 at 10.0.0.3:7710, b4 at "
                           "10.0.0.4:7710 and others): no answer within 2 s. ")  # fmt: skip
    assert "port 7710 on b1, with ufw: 'sudo ufw allow out 7710/tcp'; if there is no firewall" in said


def test_a_board_apart_from_all_others_is_said_once():
    ways = [f"{d}>{b}" for d, b in [("b1", "b2"), ("b1", "b3"), ("b2", "b1"), ("b3", "b1")]]
    (trouble,) = troubles(tried(3, dict.fromkeys(ways, DROPS)))
    assert trouble.boards == ("b1",) and len(trouble.pairs) == 4
    assert trouble.what == "b1 (10.0.0.1:7710) and the other boards can't reach each other: no answer within 2 s"


def test_boards_that_all_block_each_other_are_said_once():
    (trouble,) = troubles(tried(4, {f"b{i}>b{j}": REJECTS for i in range(1, 5) for j in range(1, 5) if i != j}))
    assert trouble.boards == (HERE, "b2", "b3", "b4", "b1") and len(trouble.pairs) == 12
    assert trouble.what.startswith("no board reaches another one (10.0.0.2:7710, 10.0.0.3:7710, 10.0.0.4:7710 and")
    assert trouble.todo.startswith("Allow TCP port 7710 between the boards, with ufw on each: 'sudo ufw allow 7710/t")


def test_different_troubles_are_told_apart():
    told = sentences(5, {"b1>b3": DROPS, "b2>b3": DROPS, "b4>b3": DROPS, "b5>b3": DROPS, "b1>b2": REJECTS})
    assert [t.split(" at ")[0] for t in told] == ["no other board reaches b3", "b1 can't reach b2"]


def test_other_reasons_in_a_group_are_not_hidden():
    (said,) = sentences(4, {"b1>b3": DROPS, "b2>b3": DROPS, "b4>b3": REJECTS})
    assert "though this machine does: no answer within 2 s (from b1 to b3). " in said


def test_a_board_that_nobody_reaches_is_left_to_what_says_that_it_is_off():
    off = {">b3": DROPS, "b1>b3": DROPS, "b2>b3": DROPS, "b3>b1": None, "b3>b2": None}
    assert troubles(tried(3, off)) == [] and reached_by(tried(3, off), "b3") == []
    assert from_here(tried(3, off))["b3"].sentence == (
        "this machine can't reach b3 at 10.0.0.3:7710: no answer within 2 s. Allow TCP port 7710 from this machine, "
        "with ufw on b3: 'sudo ufw allow 7710/tcp'."
    )


def test_a_board_that_only_this_machine_does_not_reach():
    pairs = tried(3, {">b3": REJECTS, "b3>b1": None, "b3>b2": None})
    assert troubles(pairs) == [] and reached_by(pairs, "b3") == ["b1", "b2"] and untried(pairs) == {}
    assert from_here(pairs)["b3"].what == (
        "this machine can't reach b3 at 10.0.0.3:7710: connection refused, though b1 and b2 reach it there"
    )


def test_what_an_older_agent_can_not_try_is_unknown_and_no_trouble():
    pairs = [*tried(1, {}), Pair("b1", "b2", PLACES["b2"], None, "its edgellm is too old to try")]
    assert troubles(pairs) == [] and untried(pairs) == {"b1": "its edgellm is too old to try"}


CLOCK = "Set the clock of {}, or let it keep time with 'sudo timedatectl set-ntp true'."
WAYS_OUT = [
    (Outcome("rejected", "its certificate is not valid yet; are the clocks right?"), CLOCK.format("b1")),
    (Outcome("rejected", "refused board b1's certificate: it is not valid yet, by the peer's clock. Are the clocks "
                         "right?"), CLOCK.format("b2")),
    (Outcome("rejected", "its certificate belongs to another cluster. Deploy again if it is yours"),
     "Run 'edgellm deploy', which renews certificates."),
    (Outcome("rejected", "its certificate has expired. Deploy again to renew it"), "which renews certificates."),
    (Outcome("rejected", "calls itself b3; is the address right?"), "Check the boards' addresses in the inventory."),
    (Outcome("rejected", "refused: peer speaks wire version 4, this edgellm speaks 3. Run the same edgellm on both."),
     "edgellm upgrade"),
    (Outcome("forbidden", "this machine's own firewall doesn't allow the connection"), "'sudo ufw allow out 7710/t"),
    (Outcome("unreachable", "there is no route to it. Check its power, its cable and its address"),
     "'ip route get 10.0.0.2' shows the way"),
    (Outcome("name", "the name is not known"), "Use b2's IP address as ansible_host"),
    (Outcome("silent", "no answer within 2 s, though it takes connections"), "See 'edgellm logs b2'"),
]  # fmt: skip


@pytest.mark.parametrize(("outcome", "todo"), WAYS_OUT, ids=lambda x: x.code if isinstance(x, Outcome) else "")
def test_each_reason_has_its_way_out_in_one_sentence(outcome, todo):
    (trouble,) = troubles(tried(3, {"b1>b2": outcome}))
    assert todo in trouble.todo and trouble.todo.endswith(".")
    assert trouble.what.startswith("b1 can't reach b2 at 10.0.0.2:7710: ")
    for advice in ("Deploy again", "are the clocks", "is the address", "agent running", "power", "this machine"):
        assert advice not in trouble.what  # the way out says it, once


def test_every_code_has_a_way_out_for_one_pair_and_for_groups():
    for code in DIAL_CODES:
        for ways in (["b1>b2"], ["b1>b3", "b2>b3"], ["b1>b2", "b1>b3"], ["b1>b2", "b2>b1"]):
            told = sentences(3, dict.fromkeys(ways, Outcome(code, "so it is")))
            assert told and all(s.endswith(".") and (code == "forbidden" or "so it is" in s) for s in told)


def test_a_loopback_address_among_boards_is_each_boards_own():
    places = {"b1": ("127.0.0.1", 7710), "b2": ("10.0.0.2", 7710)}
    (said,) = sentences(2, {"b2>b1": REJECTS}, places)
    assert said.endswith("Give b1 its address in the network as ansible_host, because 127.0.0.1 is each machine's own.")


def test_names_and_ipv6_addresses():
    places = {"b1": ("fe80::1", 7710), "b2": ("pi2.local", 7711)}
    first, second = sentences(2, {"b1>b2": DROPS, "b2>b1": REJECTS}, places)
    assert first.endswith("'sudo ufw allow from fe80::1 to any port 7711 proto tcp'.") and "at pi2.local:7711" in first
    assert second.startswith("b2 can't reach b1 at [fe80::1]:7710") and second.endswith("'sudo ufw allow 7710/tcp'.")
