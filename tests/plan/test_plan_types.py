"""Plans, capacities and settings go through JSON unharmed, and hostile ones are refused with the field's name."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import PlanError
from edgellm.plan import Capacity, Plan, Section, Settings

PLAN = Plan(
    epoch=7,
    model="tiny",
    manifest_sha256="ab" * 32,
    num_layers=6,
    objective="latency",
    context=128,
    slots=2,
    chunk=16,
    kv_dtype="float16",
    sections=(Section("pi2", 0, 4), Section("pi1", 4, 6)),
)
CAPACITY = Capacity("pi1", 3_000_000_000, 0.01, 0.02, 0.001, 4)


def test_plan_knows_its_boards():
    assert PLAN.boards == ("pi2", "pi1")
    assert PLAN.section_of("pi1") == Section("pi1", 4, 6)
    assert [PLAN.stage_of(b) for b in PLAN.boards] == [0, 1]
    assert [PLAN.next_board(b) for b in PLAN.boards] == ["pi1", None]
    assert PLAN.settings == Settings(128, 2, 16, "float16", "latency")
    assert str(PLAN.sections[0]) == "layers 0-4"
    with pytest.raises(PlanError, match="pi9 has no section"):
        PLAN.section_of("pi9")


def test_a_digest_tells_plans_of_one_epoch_apart():
    text = json.dumps(PLAN.to_dict(), sort_keys=True, separators=(",", ":"))
    assert PLAN.digest == hashlib.sha256(text.encode()).hexdigest()[:16] == "a0a01390cb0ba981"
    assert Plan.from_dict(json.loads(json.dumps(PLAN.to_dict()))).digest == PLAN.digest
    other = replace(PLAN, sections=(Section("pi2", 0, 3), Section("pi1", 3, 6)))
    assert len({PLAN.digest, other.digest, replace(PLAN, epoch=8).digest}) == 3


@pytest.mark.parametrize(("context", "chunk", "expected"), [(16, 8192, 16), (16, 17, 16), (16, 16, 16), (16, 1, 1)])
def test_no_chunk_is_longer_than_the_context(context, chunk, expected):
    assert Settings(context, chunk=chunk).chunk == expected
    assert Settings.from_dict({**PLAN.settings.to_dict(), "context": context, "chunk": chunk}).chunk == expected


@pytest.mark.parametrize("value", [PLAN, CAPACITY, PLAN.settings])
def test_values_survive_json(value):
    assert type(value).from_dict(json.loads(json.dumps(value.to_dict()))) == value


def section(**change):
    return {"board": "pi2", "start": 0, "end": 4, **change}


LAST = section(board="pi1", start=4, end=6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": -1}, "epoch is -1"),
        ({"epoch": True}, "epoch is True"),
        ({"epoch": 1 << 63}, "epoch"),
        ({"model": ""}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"manifest_sha256": "AB" * 32}, "manifest_sha256"),
        ({"manifest_sha256": None}, "manifest_sha256"),
        ({"num_layers": 5}, "end at layer 6, the model has 5"),
        ({"num_layers": "6"}, "num_layers is '6'"),
        ({"objective": "fun"}, "objective is 'fun', expected latency or throughput"),
        ({"objective": ["latency"]}, "objective"),
        ({"context": 0}, "context is 0"),
        ({"slots": 1.0}, "slots is 1.0"),
        ({"chunk": 1 << 40}, "chunk"),
        ({"kv_dtype": "float64"}, "kv_dtype is 'float64', expected float32 or float16 or int8"),
        ({"sections": {}}, "sections"),
        ({"sections": []}, "end at layer 0"),
        ({"sections": [None]}, "section"),
        ({"sections": [section()]}, "end at layer 4, the model has 6"),
        ({"sections": [section(), section(board="pi1", start=3, end=6)]}, "starts at layer 3, expected 4"),
        ({"sections": [section(), section(start=4, end=6)]}, "twice"),
        ({"sections": [section(end=0), LAST]}, "end is 0"),
        ({"sections": [section(end=1e999), LAST]}, "end is inf"),
        ({"sections": [section(board="../x"), LAST]}, "board is '../x'"),
        ({"sections": [section(x=1), LAST]}, "unknown field 'x'"),
        ({"surprise": 1}, "unknown field 'surprise'"),
    ],
)
def test_hostile_plan_is_refused(change, message):
    with pytest.raises(PlanError) as e:
        Plan.from_dict({**PLAN.to_dict(), **change})
    assert message in str(e.value)
    assert len(str(e.value)) < 250


@pytest.mark.parametrize("content", [None, [], 3, "plan", {}])
def test_what_is_no_object_is_refused(content):
    for cls in (Plan, Capacity, Settings):
        with pytest.raises(PlanError, match="expected an object|lacks"):
            cls.from_dict(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"board": ""}, "board"),
        ({"board": "a b"}, "board is 'a b'"),
        ({"ram_bytes": -1}, "capacity of pi1: ram_bytes is -1"),
        ({"ram_bytes": 3.5e9}, "ram_bytes"),
        ({"layer_s": 0}, "layer_s is 0"),
        ({"layer_s": float("nan")}, "layer_s is nan"),
        ({"batch_layer_s": -1}, "batch_layer_s is -1"),
        ({"prefill_layer_s": float("inf")}, "prefill_layer_s is inf"),
        ({"prefill_layer_s": "1"}, "prefill_layer_s is '1'"),
        ({"head_s": float("inf")}, "head_s is inf"),
        ({"hop_s": -0.1}, "hop_s is -0.1"),
        ({"hop_s": "1"}, "hop_s is '1'"),
        ({"hop_s": 10**400}, "hop_s"),
        ({"cores": 0}, "cores is 0"),
    ],
)
def test_hostile_capacity_is_refused(change, message):
    with pytest.raises(PlanError) as e:
        Capacity.from_dict({**CAPACITY.to_dict(), **change})
    assert message in str(e.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=50, deadline=None)
@given(name=st.sampled_from(sorted(PLAN.to_dict())), value=JSON)
def test_any_json_in_any_field_is_a_plan_or_a_plan_error(name, value):
    content = {**PLAN.to_dict(), name: value}
    try:
        plan = Plan.from_dict(content)
    except PlanError:
        return
    assert plan.to_dict() == content
