"""A plan in numbers and words, and boards typed on a command line."""

import json
import re

import pytest

from edgellm.errors import PlanError, UsageError
from edgellm.plan import (
    Capacity,
    Settings,
    explain_dict,
    explain_move,
    explain_move_dict,
    explain_text,
    make_plan,
    next_plan,
    parse_board,
    parse_boards,
    parse_size,
)
from edgellm.plan import fleet as fleet_module

MB = 10**6


def explained(manifest, boards, **request):
    plan = make_plan(manifest, boards, Settings(16, chunk=1, **request), 1)
    json.dumps(facts := explain_dict(plan, manifest, boards))
    return facts, explain_text(plan, manifest, boards)


def test_sections_are_told_in_bytes_and_seconds(make_manifest, make_boards):
    manifest = make_manifest([100] * 6, embedding=50, kv=1000)
    facts, text = explained(manifest, make_boards((450, 2, 9, 1), (450, 3, 5, 1)))
    first, second = facts["sections"]
    assert (first["board"], first["start"], first["end"]) == ("pi1", 0, 3)
    assert first["weights_bytes"] == 350 * MB
    assert first["kv_bytes"] == 3 * 1000 * 4 * 16
    for s in (first, second):
        used = sum(s[f"{name}_bytes"] for name in ("weights", "kv", "activations", "headroom", "free"))
        assert used == s["offer_bytes"]
    assert first["stage_s"] == pytest.approx(0.007)
    assert second["stage_s"] == pytest.approx(0.015)
    assert facts["token_s"] == pytest.approx(0.022)
    assert facts["tokens_per_s"] == pytest.approx(1 / 0.022)
    assert facts["pipelined_tokens_per_s"] == pytest.approx(1 / 0.015)
    assert "45.5 tokens/s, 22 ms a token" in text
    assert "66.7 tokens/s together, with as many of prompts; the slowest stage is pi2: 15 ms for a token" in text
    assert "0-3 (3)" in text


def test_bytes_that_a_token_reads_are_told_beside_those_held_where_there_are_experts(make_manifest, make_boards):
    boards = make_boards((650, 2, 9, 1))
    manifest = make_manifest([100] * 4, head=30, touched_bytes_per_token=(10 * MB, 20 * MB, 30 * MB, 40 * MB))
    facts, text = explained(manifest, boards)
    assert [s["touched_bytes"] for s in facts["sections"]] == [130 * MB]
    assert re.search(r"weights +of which a token reads", text) and re.search(r"0.43 GB +0.13 GB", text)
    assert "reads" not in explained(make_manifest([100] * 4), boards)[1]


def test_a_boards_time_is_that_of_the_bytes_that_a_token_touches(make_manifest):
    manifest = make_manifest([100] * 2, head=50, touched_bytes_per_token=(10 * MB, 20 * MB))
    assert parse_board("pi1=1GB", manifest).layer_s == pytest.approx(15 * MB / 6e9)
    board = parse_board("pi1=1GB@3GB/s", manifest)
    assert board.layer_s == pytest.approx(0.005) and board.head_s == pytest.approx(50 * MB / 3e9)
    with pytest.raises(UsageError, match="pi1's memory rate is '3XB/s', expected a number with GB/s or MB/s"):
        parse_board("pi1=1GB@3XB/s", manifest)


def test_state_has_a_column_where_there_is_any(make_manifest, make_boards):
    boards = make_boards((450, 2))
    facts, text = explained(make_manifest([100] * 2, kv=1000, state_bytes=(0, 3 * MB)), boards, slots=2)
    (section,) = facts["sections"]
    assert section["state_bytes"] == 6 * MB and re.search(r"KV +state", text) and " 6.0 MB" in text
    used = ("weights", "kv", "state", "activations", "headroom", "free")
    assert sum(section[f"{name}_bytes"] for name in used) == section["offer_bytes"]
    assert "state" not in explained(make_manifest([100] * 2), boards)[1]


def test_windows_are_told_and_their_slots_are_small(make_manifest, make_boards):
    manifest = make_manifest([100] * 4, kv=[64, 64, 64, 0], kv_window_tokens=(0, 100, 100, 0))
    boards = make_boards((450, 2))
    plan = make_plan(manifest, boards, Settings(1000, 2, chunk=1, kv_dtype="float16"), 1)
    facts, text = explain_dict(plan, manifest, boards), explain_text(plan, manifest, boards)
    assert facts["kept_tokens"] == [1000, 192, 192, 0]
    assert "windows:      2 of 4 layers keep 192 tokens of 1000" in text
    assert facts["sections"][0]["kv_bytes"] == 2 * 64 * 2 * (1008 + 2 * 192)
    assert "windows" not in explain_text(make_plan(manifest, boards, Settings(96), 1), manifest, boards)


def test_keys_and_values_in_8_bits_have_scales_beside_them(make_manifest, make_boards):
    manifest = make_manifest([100] * 2, kv=256, kv_scales_per_token=(4, 8))
    boards = make_boards((450, 2))
    plan = make_plan(manifest, boards, Settings(1000, 3, chunk=1, kv_dtype="int8"), 1)
    (section,) = explain_dict(plan, manifest, boards)["sections"]
    assert section["kv_bytes"] == 3 * 1008 * (2 * 256 + 4 * (4 + 8))


def test_many_answers_are_told_by_turns(make_manifest, make_boards):
    boards = make_boards((450, 2, 4, 1, 1, 0.5), (450, 3, 9, 1, 1, 0.5))
    facts, text = explained(make_manifest([100] * 6, embedding=50), boards, slots=4)
    # Two answers a group. pi2: 3 + 1 + 2 * 0.5 ms for each of 2 layers; pi1: 4 ms for each of 4, and a half more head.
    assert [s["turn_s"] for s in facts["sections"]] == [pytest.approx(0.011), pytest.approx(0.023)]
    assert facts["pipelined_tokens_per_s"] == pytest.approx(2 / 0.023)
    assert "87.0 tokens/s together, with as many of prompts" in text
    assert "the slowest stage is pi1: 23 ms for a token of 2 answers" in text


@pytest.mark.parametrize(
    ("objective", "offers", "why"),
    [
        ("latency", ((900, 2), (900, 3, 0, 1)), "adding pi2 would slow a token from 12 ms to 14 ms"),
        ("latency", ((900, 2), (900, 2)), "adding pi2 wouldn't make a token faster than 12 ms"),
        ("latency", ((900, 2.02), (700, 2)), "adding pi2 would make a token only 0.1 ms faster than 12.1 ms"),
        (
            "latency",
            ((900, 2), (90, 1)),
            "holds not even one layer: 90.0 MB of its 0.16 GB are usable, the smallest layer needs 0.10 GB",
        ),
        (
            "throughput",
            ((900, 2), (900, 20)),
            "one layer and a hop take 20 ms there, more than the slowest stage's 12 ms",
        ),
        (
            "throughput",
            ((900, 2, 0, 9), (900, 2, 0, 9)),
            "wouldn't make the slowest stage faster than 12 ms and would slow a token from 12 ms to 30 ms",
        ),
    ],
)
def test_unused_boards_are_told_why(make_manifest, make_boards, objective, offers, why):
    facts, text = explained(make_manifest([100] * 6), make_boards(*offers), objective=objective)
    assert [u["board"] for u in facts["unused"]] == ["pi2"]
    assert why in facts["unused"][0]["why"]
    assert why in text


def test_a_board_more_than_layers_is_told(make_manifest, make_boards):
    facts, _ = explained(make_manifest([100]), make_boards((900, 2), (900, 2)))
    assert facts["unused"][0]["why"] == "no split over pi1 and pi2 together fits"


def test_too_many_different_boards_are_no_claim(make_manifest, make_boards, monkeypatch):
    monkeypatch.setattr(fleet_module, "MAX_STATES", 3)
    facts, _ = explained(make_manifest([100] * 3), make_boards((350, 2), (250, 3)))
    assert [u["board"] for u in facts["unused"]] == ["pi2"]
    assert "no better plan with it was found" in facts["unused"][0]["why"]


def test_limits_are_told(make_manifest, make_boards):
    manifest = make_manifest([100] * 4, kv=100_000, max_seq_len=1024)  # 6.4 MB of KV a layer and slot of 16
    facts, text = explained(manifest, make_boards((260, 1), (260, 1)))
    assert facts["would_not_fit"] == [
        "more than 4 slots at context 16",
        "a context over 64 with 1 slot",
        "the model on one board: it needs 0.43 GB (an offer of 0.49 GB), the largest, pi1, offers 0.33 GB",
    ]
    assert "wouldn't fit: more than 4 slots" in text


def test_the_limits_said_are_the_limits(make_manifest, make_boards):
    manifest, boards = make_manifest([100] * 4, kv=100_000), make_boards((260, 1), (260, 1))
    make_plan(manifest, boards, Settings(16, 4, chunk=1), 1)
    make_plan(manifest, boards, Settings(64, 1, chunk=1), 1)
    for too_much in (Settings(16, 5, chunk=1), Settings(128, 1, chunk=1)):
        with pytest.raises(PlanError):
            make_plan(manifest, boards, too_much, 1)


def test_explaining_needs_every_board_of_the_plan(make_manifest, make_boards):
    boards = make_boards((900, 1), (900, 2))
    plan = make_plan(make_manifest([1]), boards, Settings(16), 1)
    with pytest.raises(PlanError, match="pi1, whose capacity isn't given"):
        explain_dict(plan, make_manifest([1]), boards[1:])


def test_typed_boards_are_capacities(make_manifest):
    manifest = make_manifest([60] * 4, head=30)
    assert parse_board("pi1=3.1GB@25ms", manifest) == Capacity("pi1", 3_100_000_000, 0.025, 0.0125, 0.0005)
    assert parse_board(" old-pc = 2GiB ", manifest) == Capacity("old-pc", 2 << 30, 0.01, 0.005, 0.0005)
    two = parse_boards(["a=512MB@500us,b=512MiB", "c=1gb@0.5s"], manifest)
    assert [(c.board, c.ram_bytes) for c in two] == [("a", 512 * MB), ("b", 512 << 20), ("c", 10**9)]
    assert [c.layer_s for c in two] == [0.0005, 0.01, 0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a board"),
        ("pi1", "is not a board"),
        ("=3GB", "no valid name"),
        ("a/b=3GB", "no valid name"),
        ("pi1=", "pi1's size is '', expected a number with GB"),
        ("pi1=3", "pi1's size is '3'"),
        ("pi1=-3GB", "pi1's size is '-3GB'"),
        ("pi1=0GB", "expected more than 0"),
        ("pi1=1e3GB", "pi1's size"),
        ("pi1=nanGB", "pi1's size"),
        ("pi1=3TB", "pi1's size"),
        ("pi1=9999999999999GB", "ram_bytes"),
        ("pi1=3GB@", "pi1's time a layer is ''"),
        ("pi1=3GB@25", "pi1's time a layer is '25', expected a number with s, ms or us"),
        ("pi1=3GB@0ms", "expected more than 0"),
        ("pi1=3GB@5000s", "layer_s"),
        ("pi1=3GB@1ms@2ms", "is not a board"),
        ("pi1=3GB,", "is not a board"),
        ("pi1=3GB,pi1=4GB", "pi1 is given 2 times"),
        ("x" * 500, "is not a board"),
        ("\x1b[2J", "is not a board"),
    ],
)
def test_nonsense_boards_are_usage_errors(make_manifest, text, message):
    with pytest.raises(UsageError) as e:
        parse_boards([text], make_manifest([1]))
    assert message in str(e.value)
    assert len(str(e.value)) < 250 and str(e.value).isprintable()


def test_sizes_are_decimal_or_binary():
    assert [parse_size(s, "--ram") for s in ("2GB", "2 GiB", "1.5MB", "123B")] == [2 * 10**9, 2 << 30, 1_500_000, 123]
    with pytest.raises(UsageError, match="--ram is '2', expected a number with GB, GiB, MB or MiB"):
        parse_size("2", "--ram")


def test_a_move_is_told_board_by_board(make_manifest, make_boards):
    manifest = make_manifest([10] * 10, embedding=5, head=5)
    boards = make_boards((200, 5), (200, 5), (200, 6))
    request = Settings(16, chunk=1, objective="throughput")
    current = make_plan(manifest, boards[:2], request, 4)
    move = next_plan(manifest, current, boards, request, 5)
    facts = explain_move_dict(move, manifest, boards, current)
    assert json.loads(json.dumps(facts)) == facts
    sections = [(b["board"], b["before"], b["after"]) for b in facts["boards"]]
    assert sections == [
        ("pi1", {"start": 0, "end": 5}, {"start": 0, "end": 4}),
        ("pi3", None, {"start": 4, "end": 6}),
        ("pi2", {"start": 5, "end": 10}, {"start": 6, "end": 10}),
    ]
    assert [b["load_bytes"] for b in facts["boards"]] == [0, 20 * MB, 0]
    assert [b["load"] for b in facts["boards"]] == [[], ["layer-0004.safetensors", "layer-0005.safetensors"], []]
    assert (facts["changed"], facts["epoch_before"], facts["epoch"], facts["moved_bytes"]) == (True, 4, 5, 20 * MB)
    assert facts["pipelined_tokens_per_s_before"] == pytest.approx(40)
    assert facts["pipelined_tokens_per_s"] == pytest.approx(50)
    assert facts["gain"] == pytest.approx(0.2)
    text = explain_move(move, manifest, boards, current)
    assert text.splitlines() == [
        "tiny (10 layers) for throughput: epoch 5 instead of 4",
        "",
        "board  layers now      next  to load",
        "pi1       0-5 (5)   0-4 (4)        -",
        "pi3             -   4-6 (2)  20.0 MB",
        "pi2      5-10 (5)  6-10 (4)        -",
        "",
        "to load:      20.0 MB",
        "one answer:   20.0 tokens/s now, 19.2 tokens/s next (predicted)",
        "many at once: 40.0 tokens/s now, 50.0 tokens/s next together",
        "moved:        the slowest stage takes 20 ms instead of 25 ms, 20.0% less; 20.0 MB to load",
    ]


def test_a_kept_plan_a_first_one_and_a_lost_board_are_told(make_manifest, make_boards):
    manifest = make_manifest([10] * 10, embedding=5, head=5)
    boards = make_boards((60, 5), (60, 5), (60, 4.8))
    request = Settings(16, chunk=1)
    first = next_plan(manifest, None, boards[:2], request, 1)
    text = explain_move(first, manifest, boards[:2], None)
    assert "for latency: epoch 1\n" in text and "pi1             -   0-5 (5)  55.0 MB" in text
    assert "\none answer:   20.0 tokens/s (predicted)\n" in text
    kept = next_plan(manifest, first.plan, boards, request, 2)
    text = explain_move(kept, manifest, boards, first.plan)
    assert "for latency: epoch 1 stays\n" in text and "pi3             -         -        -" in text
    assert text.splitlines()[-1] == (
        "kept:         a token takes 50 ms and would take 49 ms with the fastest plan, 2.0% less; "
        "a move is worth it from 10% on"
    )
    lost = next_plan(manifest, first.plan, boards[1:], request, 2)
    facts = explain_move_dict(lost, manifest, boards[1:], first.plan)
    assert [b["board"] for b in facts["boards"]] == ["pi3", "pi2", "pi1"]
    assert facts["boards"][2]["after"] is None
    assert (facts["token_s_before"], facts["slowest_stage_s_before"], facts["gain"]) == (None, None, None)
    assert "moved:        board pi1 is gone, which held layers 0-5; 55.0 MB to load" in explain_move(
        lost, manifest, boards[1:], first.plan
    )
