"""What doesn't fit: the need, each board's offer, and the nearest thing that would fit, all computed."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import PlanError
from edgellm.plan import Capacity, Section, Settings, check_plan, headroom_bytes, make_plan, section_need, usable_bytes

MB = 10**6


def refused(manifest, boards, request) -> str:
    with pytest.raises(PlanError) as e:
        make_plan(manifest, boards, request, 1)
    text = str(e.value)
    assert "\n" not in text
    return text


def test_need_counts_weights_kv_and_activations(make_manifest):
    manifest = make_manifest([10, 20, 30], embedding=5, head=7, kv=[1, 2, 3], hidden=8, vocab=100, activation=50)
    request = Settings(64, 2, 16, "float16")
    activations = 16 * 50 * 4 + 16 * 64 * 4 + 16 * 8 * 4 * 2
    first, middle, last = (section_need(manifest, request, i, i + 1) for i in range(3))
    assert (first.weights, first.kv, first.activations) == (15 * MB, 1 * 2 * 64 * 2, activations)
    assert (middle.weights, middle.kv, middle.activations) == (20 * MB, 2 * 2 * 64 * 2, activations)
    assert (last.weights, last.kv, last.activations) == (37 * MB, 3 * 2 * 64 * 2, activations + 100 * 4 * (16 + 8 + 2))
    assert section_need(manifest, request, 0, 3).total == 72 * MB + 6 * 256 + activations + 10400
    # a batch of all slots may be more tokens than a chunk
    assert section_need(manifest, replace(request, slots=32), 1, 2).activations == 2 * activations


def test_state_is_needed_once_a_slot_at_any_context(make_manifest):
    manifest = make_manifest([10, 20, 30], kv=[1, 0, 3], state_bytes=(0, 1000, 0))
    for context in (64, 128):
        needs = [section_need(manifest, Settings(context, 2, 16, "float16"), i, i + 1) for i in range(3)]
        assert [(n.kv, n.state) for n in needs] == [(4 * context, 0), (0, 2000), (12 * context, 0)]
        assert all(n.slots == n.kv + n.state and n.total == n.weights + n.slots + n.activations for n in needs)


def test_headroom_is_64_mib_or_five_per_cent():
    assert headroom_bytes(1_000_000_000) == 64 << 20
    assert headroom_bytes(4_000_000_000) == 200_000_000
    assert usable_bytes(4_000_000_000) == 3_800_000_000
    assert usable_bytes(1000) == 0


def test_error_names_each_offer_and_the_need(make_manifest, make_boards):
    manifest = make_manifest([100] * 4, embedding=50, head=30, kv=500_000)
    text = refused(manifest, make_boards((150, 1), (60, 1)), Settings(16, chunk=1))
    assert text.startswith(
        "tiny needs 0.61 GB (weights 0.48 GB, KV 0.13 GB, activations 0.0 MB) in all at context 16 and 1 slot; "
    )
    assert "pi1 0.15 GB of 0.22 GB, pi2 60.0 MB of 0.13 GB" in text


def test_enough_together_but_no_cut_says_so(make_manifest, make_boards):
    text = refused(make_manifest([100] * 4), make_boards((250, 1), (199, 1)), Settings(16, chunk=1))
    assert "enough together, yet no cut between layers makes every section fit" in text


def test_fewer_slots_and_less_context_are_computed(make_manifest, make_boards):
    # a slot of 1024 tokens needs 41 MB of float32 KV
    manifest = make_manifest([10] * 10, kv=1000)
    text = refused(manifest, make_boards((150, 1)), Settings(1024, 3, chunk=1))
    assert "with 1 slot instead of 3, or with context 384 instead of 1024" in text


def test_one_slot_and_less_context_if_neither_alone_is_enough(make_manifest, make_boards):
    manifest = make_manifest([10] * 10, kv=10_000)
    text = refused(manifest, make_boards((130, 1)), Settings(128, 9, chunk=1))
    assert "It would fit with 1 slot and context 64," in text


@pytest.mark.parametrize(
    ("usable", "expected"),
    [
        (240, "--quantize int8 (about 0.21 GB of weights instead of 0.40 GB)"),
        (150, "--quantize int4 (about 0.13 GB"),
        (99, ""),
    ],
)
def test_lower_bits_are_estimated_from_16(make_manifest, make_boards, usable, expected):
    manifest = make_manifest([92] * 4, embedding=16, head=16, hidden=100, vocab=80_000, quantization="none")
    text = refused(manifest, make_boards((usable, 1)), Settings(16, chunk=1))
    assert ("split with" in text) == bool(expected)
    assert expected in text


def test_int8_can_go_to_int4_and_int4_nowhere(make_manifest, make_boards):
    manifest = make_manifest([100] * 4, quantization="int8")
    boards = make_boards((250, 1))
    assert "--quantize int4 (about 0.24 GB of weights" in refused(manifest, boards, Settings(16, chunk=1))
    assert "--quantize" not in refused(replace(manifest, quantization="int4"), boards, Settings(16, chunk=1))
    # an unquantized split of a source that was packed already gets no promise
    packed = make_manifest([100] * 4, embedding=4, hidden=100, vocab=80_000, quantization="none")
    assert "--quantize" not in refused(packed, boards, Settings(16, chunk=1))


@pytest.mark.parametrize(
    ("offers", "expected"),
    [
        ([(250, 1)], "with 4 more boards like pi1 (0.32 GB)"),
        ([(850, 1)], "with 1 more board like pi1 (0.92 GB)"),
        ([(350, 1), (250, 1), (90, 1)], "with 2 more boards like pi2 (0.32 GB)"),
        ([(350, 1), (90, 1), (90, 1)], "with 2 more boards like pi1 (0.42 GB)"),
    ],
)
def test_more_boards_are_counted(make_manifest, make_boards, offers, expected):
    assert expected in refused(make_manifest([100] * 9), make_boards(*offers), Settings(16, chunk=1))


def test_boards_below_one_layer_say_what_board_it_takes(make_manifest, make_boards):
    text = refused(make_manifest([100, 100, 130, 100]), make_boards((90, 1), (95, 1)), Settings(16, chunk=1))
    assert text.endswith("Layer 2 alone needs a board that offers 0.20 GB: add such boards.")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_what_is_said_to_fit_fits_and_is_the_most(make_manifest, make_boards, data):
    number = st.integers(1, 40)
    manifest = make_manifest(data.draw(st.lists(number, min_size=1, max_size=6)), kv=data.draw(st.integers(0, 4000)))
    boards = make_boards(*((data.draw(number), 1) for _ in range(data.draw(st.integers(1, 3)))))
    request = Settings(data.draw(st.integers(1, 1000)), data.draw(st.integers(1, 6)), chunk=4)

    def works(**change):
        try:
            make_plan(manifest, boards, replace(request, **change), 1)
            return True
        except PlanError:
            return False

    if works():
        return
    text = refused(manifest, boards, request)
    if found := re.search(r"with (\d+) slots? instead", text):
        assert works(slots=int(found[1])) and not works(slots=int(found[1]) + 1)
    if found := re.search(r"with context (\d+) instead", text):
        assert works(context=int(found[1])) and not works(context=int(found[1]) + 64)
    if found := re.search(r"with 1 slot and context (\d+)", text):
        assert not works(slots=1) and works(slots=1, context=int(found[1]))
    if found := re.search(r"with (\d+) more boards? like (pi\d)", text):
        like = next(b for b in boards if b.board == found[2])
        more = [*boards, *(replace(like, board=f"more{i}") for i in range(int(found[1])))]
        make_plan(manifest, more, request, 1)
        with pytest.raises(PlanError):
            make_plan(manifest, more[:-1], request, 1)


def test_bad_requests_are_refused(make_manifest, make_boards):
    manifest = make_manifest([1, 1])
    boards = make_boards((50, 1), (50, 1))
    assert "no boards" in refused(manifest, [], Settings(16))
    assert "pi1 is given 2 times" in refused(manifest, [boards[0], boards[0]], Settings(16))
    assert "5000 tokens is over the 4096" in refused(manifest, boards, Settings(5000))


def test_a_plan_is_checked_against_what_boards_offer_now(make_manifest, make_boards):
    manifest = make_manifest([100] * 4)
    boards = make_boards((250, 1), (250, 1))
    plan = make_plan(manifest, boards, Settings(16, chunk=1), 1)
    check_plan(plan, manifest, boards)
    check_plan(plan, manifest, boards[:1])
    less = Capacity("pi2", 200_000_000, 0.001, 0, 0)
    with pytest.raises(PlanError, match=r"pi2 offers 0.20 GB, 0.13 GB of it usable; layers 2-4 need 0.20 GB \(weights"):
        check_plan(plan, manifest, [boards[0], less])
    with pytest.raises(PlanError, match="is for manifest"):
        check_plan(plan, replace(manifest, vocab_size=2), boards)
    assert plan.sections == (Section("pi1", 0, 2), Section("pi2", 2, 4))
