"""Which boards to dial, and what came of it: parsed with suspicion on both sides."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import DIAL_CODES, RemoteProtocolError
from edgellm.wire import messages as m
from edgellm.wire.reach import MAX_TRIES, Outcome, outcomes_of, reach_content, reached_content, tries_of

ADDRESSES = {"pi2": ("10.0.0.3", 7710), "pi3": ("pi3.local", 7711), "pi4": ("fe80::1", 1)}
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
# The first draw of a text takes seconds on a busy machine.
_patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_a_question_and_its_answer_survive_the_wire():
    asked = m.Reach.decode(m.Reach(reach_content(ADDRESSES)).encode())
    assert tries_of(asked.content) == ADDRESSES and list(tries_of(asked.content)) == list(ADDRESSES)
    outcomes = {"pi2": Outcome("ok"), "pi3": Outcome("timeout", "no answer within 2 s"), "pi4": Outcome("name", "?")}
    answered = m.Reached.decode(m.Reached(reached_content(outcomes)).encode())
    assert outcomes_of(answered.content, ADDRESSES) == outcomes
    assert outcomes["pi2"].ok and not outcomes["pi3"].ok


@pytest.mark.parametrize(
    "boards",
    [
        None, [], {}, "pi2", 5,
        {"pi2": None}, {"pi2": "10.0.0.3:7710"}, {"pi2": ["10.0.0.3"]}, {"pi2": ["10.0.0.3", "7710"]},
        {"pi2": ["10.0.0.3", 0]}, {"pi2": ["10.0.0.3", 65536]}, {"pi2": ["10.0.0.3", True]}, {"pi2": ["a b", 7710]},
        {"pi2": ["10.0.0.3", 7710, 1]}, {"": ["10.0.0.3", 7710]}, {"a/b": ["10.0.0.3", 7710]},
        {"x" * 64: ["10.0.0.3", 7710]}, {"pi2": ["10.0.0.3", 7710], "-": ["10.0.0.3", 7710]},
        {f"pi{i}": ["10.0.0.3", 7710] for i in range(MAX_TRIES + 1)},
    ],
)  # fmt: skip
def test_what_no_manager_would_ask_is_refused(boards):
    with pytest.raises(RemoteProtocolError, match="^reach: "):
        tries_of({"boards": boards})


@_patient
@given(st.dictionaries(st.sampled_from(["boards", "more"]), _JSON))
def test_any_question_is_addresses_or_refused(content):
    try:
        tries = tries_of(content)
    except RemoteProtocolError:
        return
    assert tries and all(isinstance(host, str) and 0 < port < 65536 for host, port in tries.values())


@_patient
@given(st.dictionaries(st.sampled_from(["boards", "more"]), _JSON | st.dictionaries(st.sampled_from("ab"), _JSON)))
def test_any_answer_is_an_outcome_of_each_board_or_unknown(content):
    outcomes = outcomes_of(content, ["a", "b"])
    assert list(outcomes) == ["a", "b"]
    for outcome in outcomes.values():
        assert outcome is None or outcome.code in ("ok", *DIAL_CODES)


def test_reasons_are_cut_and_lose_what_moves_a_cursor():
    said = {"a": {"code": "timeout", "reason": "\x1b[2Jgone\n"}, "b": {"code": "later", "reason": "x" * 5000},
            "c": {"code": "name", "reason": ""}, "d": {"code": "ok", "reason": 5},
            "e": {"code": "timeout"}}  # fmt: skip
    assert outcomes_of({"boards": said}, "abcdef") == {
        "a": Outcome("timeout", "[2Jgone"), "b": Outcome("rejected", "x" * 300),
        "c": Outcome("name", "no reason given"), "d": Outcome("ok"), "e": None, "f": None,
    }  # fmt: skip


def test_the_longest_answer_fits_into_its_message():
    outcomes = {f"{i:063}": Outcome("rejected", "\N{GRINNING FACE}" * 5000) for i in range(MAX_TRIES)}
    assert len(m.Reached(reached_content(outcomes)).encode()) < m.Reached.LIMIT
    places = {f"{i:063}": (".".join(["a" * 62] * 4), 65535) for i in range(MAX_TRIES)}
    assert len(m.Reach(reach_content(places)).encode()) < m.Reach.LIMIT
