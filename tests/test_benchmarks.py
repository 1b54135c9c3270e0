"""The benchmarks' tables and arithmetic; what they measure is for `make bench`."""

import importlib
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

import benchmarks
from benchmarks import baseline, constrained, perplexity, phi3, profile, report, schemas, startup
from benchmarks.engine import Measurements, wire_rows
from benchmarks.processes import BenchmarkError
from benchmarks.report import Row, at_least, at_most, holds
from edgellm.cli.local import local_up
from edgellm.kernels import library
from edgellm.model.generic.structure import trace
from edgellm.plan import Plan, Section
from edgellm.shards.manifest import Manifest
from edgellm.structure import Constraint
from edgellm.text.grammars import check
from tests.model.families import CONFIGS, random_model
from tests.model.make_split import make_split, round_weights


def test_a_table_shows_limits_and_what_falls_short():
    rows = [
        Row("decode", 61.234, "tok/s"),
        at_least("  against one process", 2.5, "", 1.0),
        at_most("overhead", 80, "bytes", 64),
        at_most("memory", None, "MB", 200),
        holds("imports torch", "no", "no", True),
    ]
    assert report.table(rows) == (
        "decode                 61.2 tok/s\n"
        "  against one process  2.50        ≥ 1.00  ok\n"
        "overhead                 80 bytes  ≤ 64    falls short\n"
        "memory                    – MB     ≤ 200   not measured\n"
        "imports torch            no        no      ok"
    )


def test_schemas_are_of_every_kind_the_same_each_time_and_all_compile():
    made = list(schemas.examples(200))
    assert made == list(schemas.examples(200)) and made[:10] != list(schemas.examples(10, seed=1))
    assert {e.kind for e in made} == set(schemas.KINDS)
    for example in made:
        jsonschema.Draft202012Validator.check_schema(example.schema)
        check(Constraint("json_schema", json.dumps(example.schema)))


def test_an_answer_counts_as_valid_only_if_its_schema_says_so():
    example = schemas.Example("own", {"type": "object", "required": ["a"]}, "")
    assert constrained.is_valid('{"a": 1}', example) == ""
    assert constrained.is_valid("{}", example) == "own: 'a' is a required property"
    assert constrained.is_valid('{"a": ', example).startswith("own: Expecting value")


def test_a_limit_that_is_just_reached_is_met():
    assert at_most("", 64, "", 64).ok and at_least("", 1.0, "", 1.0).ok
    assert not at_least("", 0.999, "", 1.0).ok


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), ("4 + 5", "4 + 5"), (12, "12"), (0.034, "0.03"), (9.994, "9.99"), (9.996, "10.0"), (99.96, "100"),
     (1234.5, "1234"), (-0.5, "-0.50")],
)  # fmt: skip
def test_numbers_have_about_three_digits(value, text):
    assert report.number(value) == text


def test_what_was_not_measured_has_no_median_and_no_ratio():
    found = Measurements()
    found.add("a", None)
    for value in (3.0, 1.0, 2.0):
        found.add("b", value)
    assert found["a"] is None and found["nothing"] is None and found["b"] == 2.0
    assert report.ratio(None, 1.0) is None and report.ratio(1.0, None) is None and report.ratio(1.0, 0.0) is None
    assert report.ratio(3.0, 2.0) == 1.5


def test_wire_rows_count_what_is_sent_beside_hidden_states():
    sections = (Section("a", 0, 2), Section("b", 2, 4))
    plan = Plan(1, "m", "0" * 64, 4, "latency", 64, 1, 8, "float32", sections)
    rows = wire_rows(plan, {"a": 256 + 33.0, "b": 70.0}, 256)
    assert [(r.name, r.value) for r in rows[::2]] == [("wire, a → b, a token", 289.0), ("wire, b → a, a token", 70.0)]
    assert [(r.value, r.ok) for r in rows[1::2]] == [(33.0, True), (70.0, False)]
    alone = Plan(1, "m", "0" * 64, 4, "latency", 64, 1, 8, "float32", (Section("a", 0, 4),))
    assert wire_rows(alone, {"a": None}, 256) == []


def test_perplexity_is_that_of_the_next_tokens():
    even = np.zeros((3, 4), np.float32)
    assert perplexity.perplexity(even, [0, 1, 2]) == pytest.approx(4.0)
    sure = np.full((3, 4), -50.0, np.float32)
    sure[0, 1] = sure[1, 2] = sure[2, 0] = 50.0
    assert perplexity.perplexity(sure, [0, 1, 2]) == pytest.approx(1.0)
    halves = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [1 / 3] * 3]))
    assert perplexity.perplexity(halves, [2, 0, 2]) == pytest.approx(8**0.5)  # of a half and a quarter


def test_benchmarks_have_the_settings_of_the_commands(tmp_path):
    make_split(random_model(CONFIGS["smollm"]()), tmp_path)
    settings = startup.plan_for(Manifest.read(tmp_path)).settings
    options = {p.name: p.default for p in local_up.params}
    assert settings.context == 256  # the model's most
    assert (settings.slots, settings.chunk) == (options["slots"], options["chunk"])
    assert settings.kv_dtype == phi3.SETTINGS.kv_dtype == options["kv_dtype"]


@pytest.mark.parametrize("encoding", library.GROUP_BYTES)
def test_the_baseline_has_the_weights_that_packed_ones_stand_for(encoding, tmp_path):
    model = random_model(CONFIGS["smollm"]())
    make_split(model, tmp_path, encoding, "int8")
    with torch.no_grad():
        round_weights(model, trace(model.config), encoding, "int8")
    state = baseline.load(tmp_path).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(state[name], weight.to(torch.bfloat16)), name


def test_json_holds_rows_with_their_verdicts_and_the_machine():
    machine = report.machine()
    content = json.loads(report.to_json("engine", machine, [at_most("overhead", 33, "bytes", 64)], runs=5))
    assert content["rows"][0]["verdict"] == "ok" and content["runs"] == 5
    assert content["machine"]["cores"] >= 1 and content["machine"]["versions"]["torch"]
    assert machine["cpu"] in report.machine_text(machine, 0.5)


def test_the_phi3_model_has_its_weights():
    from transformers import Phi3Config

    config = Phi3Config(**{k: v for k, v in phi3.CONFIG.items() if k not in ("architectures", "model_type")})
    structure = trace(config)
    weights = {f"model.layers.{i}.{name}": shape for (i, name), shape in
               ((k, s) for k, s in structure.shapes.items() if isinstance(k, tuple))}  # fmt: skip
    weights |= {k: s for k, s in structure.shapes.items() if isinstance(k, str)}
    written = [None, *range(config.num_hidden_layers)]
    assert {n: tuple(s) for group in written for n, s in phi3.tensors(group).items()} == weights
    assert sum(phi3.elements(group) for group in written) == 3_821_079_552  # as published


def test_samples_are_counted_by_kind_of_work():
    script = """
        7f10a integer_passes<5> (/a b/libedgellm.so)
        7f10b edgellm::(anonymous namespace)::integer_block<5, 2ul> (/a b/libedgellm.so)
        7f10c (anonymous namespace)::attend_as<unsigned short> (/a b/libedgellm.so)
        7f10d edgellm::(anonymous namespace)::quantize (/a b/libedgellm.so)
        55aa0 _PyEval_EvalFrameDefault (/usr/lib/libpython3.11.so.1.0)
        55aa1 [unknown] (/usr/bin/python3.11)
 ffffffff8110 _raw_spin_unlock_irqrestore ([kernel.kallsyms])
        7f10a integer_passes<5> (/a b/libedgellm.so)
"""
    assert list(profile.shares(script).values()) == [37.5, 12.5, 12.5, 25.0, 12.5]
    with pytest.raises(BenchmarkError, match="install.strip=false"):
        profile.shares("  7f10a [unknown] (/a/libedgellm.so)")
    with pytest.raises(BenchmarkError, match="no samples"):
        profile.shares("\n")


@pytest.mark.parametrize("name", sorted(p.stem for p in Path(benchmarks.__file__).parent.glob("*.py")))
def test_what_a_benchmark_imports_is_there(name):
    importlib.import_module(f"benchmarks.{name}")
