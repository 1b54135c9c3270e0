"""The search: tables of offers and sections, and equality with trying everything."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import PlanError
from edgellm.plan import Capacity, Settings, explain_dict, make_plan, section_need, usable_bytes
from edgellm.plan import fleet as fleet_module
from edgellm.plan.search import ALIKE
from tests.plan.prices import token_ns, turn_ns

# A layer has 10 MB, the embedding 5, the head 5; activations are 0.2 KB.
LATENCY = [
    # one board holds it: no other helps, the fastest of those that hold it is taken
    (((200, 5), (200, 5)), {"pi1": 10}),
    (((200, 5), (200, 4)), {"pi2": 10}),
    (((200, 5, 1), (200, 5, 0)), {"pi2": 10}),
    (((200, 5), (50, 1, 0, 100)), {"pi1": 10}),
    # a fast small board is worth its hop
    (((200, 5, 0, 1), (50, 1, 0, 1)), {"pi1": 6, "pi2": 4}),
    # the fast board is full, wherever it stands; where the head is dear it goes elsewhere
    (((60, 5, 0, 1), (80, 1, 0, 1)), {"pi1": 3, "pi2": 7}),
    (((80, 1, 50, 1), (60, 5, 0, 1)), {"pi1": 7, "pi2": 3}),
    # equal boards share evenly, in the order given, no more of them than needed
    (((60, 5), (60, 5), (60, 5)), {"pi1": 5, "pi2": 5}),
    (((60, 5, 0, 9), (60, 5, 0, 1), (60, 5, 0, 1)), {"pi2": 5, "pi3": 5}),
    (((45, 5), (45, 5), (45, 5)), {"pi1": 3, "pi2": 4, "pi3": 3}),
    # a board that holds no layer is left out
    (((9, 1), (200, 5)), {"pi2": 10}),
]
THROUGHPUT = [
    (((200, 5), (200, 5)), {"pi1": 5, "pi2": 5}),
    (((200, 5), (200, 5), (200, 5)), {"pi1": 4, "pi2": 3, "pi3": 3}),
    (((200, 1), (200, 4)), {"pi1": 8, "pi2": 2}),
    # RAM bounds what speed would want
    (((46, 1), (200, 4)), {"pi1": 4, "pi2": 6}),
    # a hop that costs more than it saves
    (((200, 5, 0, 26), (200, 5, 0, 26)), {"pi1": 10}),
    (((200, 5), (200, 5), (200, 5, 0, 30)), {"pi1": 5, "pi2": 5}),
    # the head weighs as much as four layers: it goes where least else is
    (((200, 5, 20), (200, 5, 20)), {"pi1": 7, "pi2": 3}),
]


ROOM = [
    # equally fast, so the larger board has it all; so too if the smaller one seems faster by less than 2 %
    ("latency", ((115, 5), (400, 5)), {"pi2": 10}),
    ("latency", ((115, 5), (400, 5.09)), {"pi2": 10}),
    ("latency", ((115, 5), (400, 5.11)), {"pi1": 10}),
    # as full to the sixteenth: the board listed first
    ("latency", ((200, 5), (201, 5)), {"pi1": 10}),
    # more boards are not fewer boards, however much room they give
    ("latency", ((115, 5), (115, 5)), {"pi1": 10}),
    # equally fast wherever the cut is
    ("latency", ((60, 5, 0, 1), (100, 5, 0, 1)), {"pi1": 4, "pi2": 6}),
    ("latency", ((60, 5, 0, 1), (400, 5, 0, 1), (60, 5, 0, 1)), {"pi2": 10}),
    # the slowest stage comes first, then room: the embedding, too, goes where it fills least
    ("throughput", ((60, 5), (400, 5)), {"pi1": 5, "pi2": 5}),
    ("throughput", ((60, 5), (60, 5), (400, 5), (400, 5)), {"pi3": 3, "pi1": 2, "pi2": 2, "pi4": 3}),
]


@pytest.mark.parametrize(
    ("objective", "offers", "expected"),
    [("latency", *row) for row in LATENCY] + [("throughput", *row) for row in THROUGHPUT] + ROOM,
)
def test_boards_get_the_expected_layers(make_manifest, make_boards, objective, offers, expected):
    manifest = make_manifest([10] * 10, embedding=5, head=5)
    plan = make_plan(manifest, make_boards(*offers), Settings(16, chunk=1, objective=objective), epoch=3)
    assert {s.board: s.num_layers for s in plan.sections} == expected
    assert list(plan.boards) == list(expected)
    assert plan.epoch == 3


def test_kv_of_the_whole_context_and_all_slots_is_counted(make_manifest, make_boards):
    manifest = make_manifest([1] * 4, kv=250)  # float32 at context 1000 (1008 are kept): 1 MB a layer and slot
    boards = make_boards((9.2, 1), (4.2, 2))
    assert len(make_plan(manifest, boards, Settings(1000, chunk=1), 1).sections) == 1
    plan = make_plan(manifest, boards, Settings(1000, 2, chunk=1), 1)
    assert [s.num_layers for s in plan.sections] == [3, 1]
    assert len(make_plan(manifest, boards, Settings(1000, 2, chunk=1, kv_dtype="float16"), 1).sections) == 1


def test_layers_may_differ_in_size_and_kv(make_manifest, make_boards):
    manifest = make_manifest([30, 1, 1, 1, 1, 1], kv=[0, 0, 0, 0, 0, 25_000])
    plan = make_plan(manifest, make_boards((31.1, 1), (15, 2)), Settings(96, chunk=1), 1)
    assert [(s.board, s.start, s.end) for s in plan.sections] == [("pi1", 0, 2), ("pi2", 2, 6)]


def test_layers_cost_what_their_bytes_do(make_manifest, make_boards):
    manifest = make_manifest([20] * 4 + [10] * 8)
    plan = make_plan(manifest, make_boards((400, 5), (400, 5)), Settings(16, chunk=1, objective="throughput"), 1)
    assert [s.num_layers for s in plan.sections] == [4, 8]
    facts = explain_dict(plan, manifest, make_boards((400, 5), (400, 5)))
    assert [s["stage_s"] for s in facts["sections"]] == [pytest.approx(0.030)] * 2  # 12 layers of mean size: 60 ms
    # Of which only those count that a token touches: layers of experts.
    manifest = make_manifest([90] * 4 + [10] * 8, touched_bytes_per_token=(20,) * 4 + (10,) * 8)
    plan = make_plan(manifest, make_boards((400, 5), (400, 5)), Settings(16, chunk=1, objective="throughput"), 1)
    assert [s.num_layers for s in plan.sections] == [4, 8]


# (slots, ms for a further token and for a prompt's on pi1, on pi2): layers of pi1. A token alone takes 4 ms on both.
TURNS = [
    (1, (0, 0), (0, 0), 6),
    (1, (0, 2), (0, 0), 5),  # 6 ms a layer with a prompt's token, and 4
    (2, (4, 0), (0, 0), 6),  # a group is one answer: nothing runs together
    (4, (4, 0), (0, 0), 4),  # two answers: 8 ms a layer, and 4
    (8, (0, 1), (0, 4), 9),  # four, with as many prompt tokens: 8 ms a layer, and 20
    (8, (None, None), (0, 4), 6),  # what isn't measured is as on the others
    (8, (None, None), (None, None), 6),
]


@pytest.mark.parametrize(("slots", "first", "second", "layers"), TURNS)
def test_throughput_counts_batches_and_prompts(make_manifest, make_boards, slots, first, second, layers):
    seconds = [[None if ms is None else ms / 1e3 for ms in more] for more in (first, second)]
    boards = [
        replace(board, batch_layer_s=batch_s, prefill_layer_s=prefill_s)
        for board, (batch_s, prefill_s) in zip(make_boards((400, 4), (400, 4)), seconds, strict=True)
    ]
    request = Settings(16, slots, chunk=1, objective="throughput")
    plan = make_plan(make_manifest([10] * 12), boards, request, 1)
    assert plan.section_of("pi1").num_layers == layers
    assert make_plan(make_manifest([10] * 12), boards, replace(request, objective="latency"), 1).boards == ("pi1",)


def test_many_boards_of_one_kind_are_searched_exactly(make_manifest, make_boards):
    plan = make_plan(make_manifest([10] * 40), make_boards(*[(21, 5)] * 30), Settings(16, chunk=1), 1)
    assert [s.num_layers for s in plan.sections] == [2] * 20
    assert plan.boards == tuple(f"pi{i}" for i in range(1, 21))


def test_many_different_boards_get_a_plan_that_fits(make_manifest, make_boards):
    manifest = make_manifest([10] * 40)
    boards = make_boards(*[(25 + i, 5 + i / 7, 1 + i, 1) for i in range(24)])
    for objective in ("latency", "throughput"):
        check_sound(make_plan(manifest, boards, Settings(16, chunk=1, objective=objective), 1), manifest, boards)


def test_very_different_boards_fall_back_to_the_largest_first(make_manifest, make_boards, monkeypatch):
    monkeypatch.setattr(fleet_module, "MAX_STATES", 4)
    manifest = make_manifest([10] * 7)
    boards = make_boards((11, 1), (41, 9), (21, 5))
    plan = make_plan(manifest, boards, Settings(16, chunk=1), 1)
    check_sound(plan, manifest, boards)
    assert plan.boards == ("pi2", "pi3", "pi1")


def check_sound(plan, manifest, boards):
    assert [i for s in plan.sections for i in range(s.start, s.end)] == list(range(manifest.num_layers))
    offers = {b.board: b.ram_bytes for b in boards}
    for s in plan.sections:
        assert section_need(manifest, plan.settings, s.start, s.end).total <= usable_bytes(offers.pop(s.board))


def price(sections, manifest, boards, request):
    """What the search compares, in ns: the objective's figure, a token's time, stages; how full the fullest board is;
    the boards in order. `sections`: (index of board, start, end) in order."""
    alone = len(sections) == 1
    token = sum(token_ns(manifest, boards[i], a, b, alone) for i, a, b in sections)
    turns = [turn_ns(manifest, boards[i], request, len(boards), a, b, alone) for i, a, b in sections]
    need = [section_need(manifest, request, a, b).total for _, a, b in sections]
    usable = [max(1, usable_bytes(boards[i].ram_bytes)) for i, _, _ in sections]
    full = max(math.ceil(Fraction(16 * a, b)) for a, b in zip(need, usable, strict=True))
    figure = token if request.objective == "latency" else max(turns)
    return figure, token, len(sections), full, tuple(i for i, _, _ in sections)


def try_everything(manifest, boards, request):
    """The price of the best of all ordered subsets and cuts, or None: the fastest, unless others of no more stages are
    as fast to the fiftieth and leave more room."""
    n, prices = manifest.num_layers, []
    for count in range(1, min(len(boards), n) + 1):
        for order in permutations(range(len(boards)), count):
            for inner in combinations(range(1, n), count - 1):
                cuts = (0, *inner, n)
                sections = list(zip(order, cuts, cuts[1:], strict=False))
                need = [section_need(manifest, request, a, b).total for _, a, b in sections]
                if all(x <= usable_bytes(boards[i].ram_bytes) for x, (i, _, _) in zip(need, sections, strict=True)):
                    prices.append(price(sections, manifest, boards, request))
    if not prices:
        return None
    best = min(p[:3] for p in prices)
    limits = [x + x // ALIKE for x in best[:2]]
    alike = [p for p in prices if p[0] <= limits[0] and p[1] <= limits[1] and p[2] <= best[2]]
    full = min(p[3] for p in alike)
    alike = [p for p in alike if p[3] == full]
    same = [p for p in alike if p[:3] == best]
    return min(same, key=lambda p: p[4]) if same else min(alike, key=lambda p: (*p[1:3], p[4]))


@st.composite
def problems(draw):
    layers = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    shape = {name: draw(st.integers(0, 9)) for name in ("embedding", "head")}
    kv = [draw(st.sampled_from((0, 0, 2500, 5000))) for _ in layers]  # a slot of 100 tokens: 0, 1 or 2 MB
    time = st.integers(0, 4)
    board = st.tuples(st.integers(0, 40), st.integers(1, 4), time, time, time, time)
    return layers, shape, kv, draw(st.lists(board, min_size=1, max_size=4)), draw(st.integers(1, 9))


@settings(max_examples=250, deadline=None)
@given(problem=problems(), objective=st.sampled_from(("latency", "throughput")))
def test_plan_equals_trying_everything(make_manifest, make_boards, problem, objective):
    layers, shape, kv, offers, slots = problem
    manifest = make_manifest(layers, kv=kv, vocab=1000, activation=100, **shape)
    boards = make_boards(*offers)
    request = Settings(100, slots, chunk=8, objective=objective)
    expected = try_everything(manifest, boards, request)
    if expected is None:
        with pytest.raises(PlanError, match="needs .* offer"):
            make_plan(manifest, boards, request, 1)
        return
    plan = make_plan(manifest, boards, request, 1)
    check_sound(plan, manifest, boards)
    index = {b.board: i for i, b in enumerate(boards)}
    sections = [(index[s.board], s.start, s.end) for s in plan.sections]
    found = price(sections, manifest, boards, request)
    assert found == expected
    assert make_plan(manifest, boards, request, 1) == plan
    facts = explain_dict(plan, manifest, boards)
    assert facts["token_s"] == pytest.approx(expected[1] / 1e9)
    if objective == "throughput":
        assert facts["pipelined_tokens_per_s"] == pytest.approx(facts["group"] * 1e9 / expected[0])
    assert all(s["free_bytes"] >= 0 for s in facts["sections"])
    assert len(facts["unused"]) == len(boards) - len(plan.sections)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), objective=st.sampled_from(("latency", "throughput")))
def test_plan_of_too_many_boards_is_never_over_capacity(make_manifest, make_boards, problem, objective):
    layers, shape, kv, offers, slots = problem
    manifest = make_manifest(layers, kv=kv, **shape)
    boards = make_boards(*offers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet_module, "MAX_STATES", 3)
        try:
            plan = make_plan(manifest, boards, Settings(100, slots, chunk=8, objective=objective), 1)
        except PlanError:
            return
    check_sound(plan, manifest, boards)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_measured_times_of_any_size_give_a_sound_plan(make_manifest, data):
    seconds = st.floats(0, 3600, allow_nan=False)
    boards = [
        Capacity(
            f"b{i}",
            data.draw(st.integers(0, 1 << 30)),
            max(data.draw(seconds), 1e-12),
            data.draw(seconds),
            data.draw(seconds),
            batch_layer_s=data.draw(st.none() | seconds),
            prefill_layer_s=data.draw(st.none() | seconds),
        )
        for i in range(data.draw(st.integers(1, 5)))
    ]
    manifest = make_manifest([20] * data.draw(st.integers(1, 20)), embedding=7, head=7)
    objective = data.draw(st.sampled_from(("latency", "throughput")))
    try:
        plan = make_plan(manifest, boards, Settings(64, objective=objective), 0)
    except PlanError:
        return
    check_sound(plan, manifest, boards)
