"""What `make bench` decides without measuring: rows, verdicts, sizes, what llama.cpp said, and the files written."""

import json
import mmap
import os
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import (
    chart,
    divergence,
    models,
    peer,
    peer_build,
    random_gguf,
    routing,
    shapes,
    speed,
    tables,
    targets,
)
from benchmarks.asking import rate
from benchmarks.ours import AgentMemory, together
from benchmarks.processes import BenchmarkError, mapped_bytes
from benchmarks.targets import Run, Target, make_result
from edgellm.config import DEFAULT_MODEL

TARGET = Target("a", "A", "smollm2", "decode", 2.0, 0.8)


def test_ratios_are_taken_within_a_run_and_then_their_median():
    runs = [Run(10.0, 5.0, 1000.0), Run(30.0, 10.0, 3000.0), Run(40.0, 10.0, 2000.0)]
    result = make_result(TARGET, runs, (80, 40), paths={"native"})
    assert (result.ours, result.base, result.times) == (30.0, 10.0, 3.0)
    assert result.share == pytest.approx(0.8) and result.base_share == pytest.approx(0.2)
    assert result.ok and result.verdict == "reached" and result.paths == ("native",)


@pytest.mark.parametrize(
    ("run", "verdict"),
    [(Run(19.0, 10.0, 1000.0), "falls short"), (Run(20.0, 10.0, 1800.0), "falls short"),
     (Run(20.0, None, 1000.0), "not measured"), (Run(20.0, 10.0, None), "not measured"),
     (Run(10.0, 10.0, None), "falls short"), (Run(20.0, 10.0, 1000.0), "reached")],
)  # fmt: skip
def test_a_row_reaches_its_target_only_by_both_of_its_limits(run, verdict):
    assert make_result(TARGET, [run], (40, 40)).verdict == verdict


def test_repeated_text_falls_short_if_the_tokens_differ():
    target = Target("r", "R", "smollm2", "repeated", 1.5)
    assert make_result(target, [Run(3.0, 1.0, same=True)] * 2, (1, 1)).verdict == "reached"
    other = make_result(target, [Run(3.0, 1.0, same=True), Run(3.0, 1.0, same=False)], (1, 1))
    assert not other.ok and other.verdict == "falls short: other tokens"
    assert make_result(target, [], (1, 1)).verdict == "not measured"


def test_a_run_that_failed_is_left_out_and_gives_its_reason_if_no_other_succeeded():
    failed = Run(reason="not measured: a board was lost")
    assert make_result(TARGET, [failed, failed], (40, 40)).verdict == "not measured: a board was lost"
    assert make_result(TARGET, [failed, Run(20.0, 10.0, 1000.0)], (40, 40)).verdict == "reached"


def test_only_decoding_one_stream_has_a_share_of_the_memory():
    target = Target("s", "S", "1b-int4", "streams", 4.0)
    assert make_result(target, [Run(8.0, 2.0, 100.0)], (10, 10)).share is None


def test_a_row_to_compare_with_has_no_verdict_but_that_it_failed():
    target = Target("c", "C", "phi3-int4", "pipelined", None)
    row = make_result(target, [Run(60.0, 15.0, 1000.0)], (80, 40))
    assert targets.cells(row) == ("C", "15.0", "–", "60.0", "4.00", "", "", "", "", "")
    assert make_result(target, [Run(reason="not measured: why")], (80, 40)).verdict == "not measured: why"


def test_the_table_lines_up_and_is_markdown():
    result = make_result(TARGET, [Run(10.0, 4.0, 1000.0)], (80, 40))
    head, rule, row = targets.markdown(targets.COLUMNS, [targets.cells(result)]).split("\n")
    assert len(head) == len(rule) == len(row) and rule.strip("|-") == ""
    cells = [c.strip() for c in row.strip("|").split("|")]
    assert cells == ["A", "4.00", "–", "10.0", "2.50", "≥ 2.00", "80 %", "≥ 80 %", "16 %", "reached"]


def test_streams_count_only_while_all_of_them_decode():
    assert together([[0.0, 1.0, 2.0, 3.0], [1.5, 2.5, 3.5]]) == pytest.approx((2 + 1) / 1.5)
    assert together([[0.0, 1.0, 2.0]]) == 1.0
    assert together([[0.0, 1.0], [2.0, 3.0]]) is None and together([[1.0]]) is None


def test_repeated_answers_count_tokens_after_the_first_of_each():
    answers = [{"tokens": [1] * 11, "timings": {"first_token_s": 1.0, "total_s": 3.0}},
               {"tokens": [1] * 21, "timings": {"first_token_s": 0.5, "total_s": 3.5}}]  # fmt: skip
    assert rate(answers) == 30 / 5.0


def test_llama_bench_is_understood_or_quoted():
    test = {"samples_ts": [12.5], "n_threads": 1, "backends": "RPC", "model_filename": "a"}
    rate, settings = peer.parse_bench(json.dumps([test]))
    assert rate == 12.5 and settings["backends"] == "RPC" and settings["n_threads"] == 1
    assert "model_filename" not in settings
    for said in ("", "[]", json.dumps([test, test]), json.dumps([{**test, "samples_ts": [1, 2]}])):
        with pytest.raises(BenchmarkError, match="llama-bench said something else"):
            peer.parse_bench(said)


def test_llama_batched_bench_is_understood_or_quoted():
    said = 'main: x\n{"pl": 1, "speed_tg": 5.5}\n{"pl": 4, "speed_tg": 13.5, "n_ubatch": 512, "t": 1.0}\n'
    assert peer.parse_batched(said, 4) == (13.5, {"n_ubatch": 512})
    with pytest.raises(BenchmarkError, match="nothing of 8 streams"):
        peer.parse_batched(said, 8)


def test_the_fastest_micro_batch_is_found():
    tests = [{"n_ubatch": size, "avg_ts": rate} for size, rate in ((32, 10.0), (64, 14.5), (512, 9.0))]
    assert peer.parse_micro_batches(json.dumps(tests)) == 64
    with pytest.raises(BenchmarkError, match="llama-bench said something else"):
        peer.parse_micro_batches("[]")


def test_the_peer_is_built_for_this_cpu_and_without_amx():
    assert "-DGGML_NATIVE=ON" in peer_build.cmake_flags(frozenset())
    assert not any("amx" in flag for flag in peer_build.cmake_flags(frozenset({"avx2"})))
    assert any("-mno-amx-int8" in flag for flag in peer_build.cmake_flags(frozenset({"avx2", "amx_tile"})))
    assert peer_build.progress_of("[12/143] Building CXX object a.o") == (12, 143)
    assert peer_build.progress_of("ninja: no work to do.") is None


@pytest.mark.parametrize(
    ("shape", "weights", "megabytes"),
    [(shapes.PHI3_MINI, "Q4_0", 2120), (shapes.PHI3_MINI, "Q8_0", 3956), (shapes.LLAMA_1B, "Q4_0", 763),
     (shapes.PHI3_MINI, "Q4_K_M", 2341), (shapes.GEMMA3_1B, "Q4_K_M", 800), (shapes.QWEN35_4B, "Q4_K_M", 2698)],
)
def test_shapes_read_as_many_bytes_a_token_as_the_models_do(shape, weights, megabytes):
    kinds = {name: kind for name, _, kind in shapes.tensors(shape, weights)}
    vocabulary = shape.vocab, shape.hidden
    embedding = 0 if shape.tied else shapes.stored_bytes(vocabulary, kinds["token_embd.weight"])
    assert round((shapes.file_bytes(shape, weights) - embedding) / 1e6) == megabytes


@pytest.mark.parametrize("kind", list(shapes.BLOCKS))
def test_random_blocks_are_weights_of_the_usual_spread(kind):
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = random_gguf.random_rows(kind, 64, 1024, np.random.default_rng(0))
    values = dequantize(rows, GGMLQuantizationType[kind])
    assert values.shape == (64, 1024) and rows.nbytes == shapes.stored_bytes((64, 1024), kind)
    assert 0.018 < values.std() < 0.023
    # With a mean of their own, weights would add the same to all tokens, which then went to the same experts.
    assert abs(values.mean()) < 4 * values.std() / values.size**0.5


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_a_written_shape_is_split(architecture, tmp_path):
    from edgellm.checkpoint.sources import open_source
    from edgellm.checkpoint.split import split

    fused = architecture == "phi3"
    shape = shapes.Shape("tiny", architecture, 2, 256, 512, 4, 4 if fused else 2, 96, 128, 1e4, 1e-5, not fused, fused)
    path, seen = tmp_path / "tiny.gguf", []
    random_gguf.write_gguf(path, shape, "Q4_0", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (shapes.file_bytes(shape, "Q4_0"),) * 2 and os.listdir(tmp_path) == ["tiny.gguf"]
    embedding = 0 if shape.tied else shapes.stored_bytes((96, 256), "Q4_0")
    assert models.gguf_bytes_a_token(path) == shapes.file_bytes(shape, "Q4_0") - embedding
    manifest = split(open_source(str(path)), tmp_path / "split", "int4")
    assert (manifest.num_layers, manifest.hidden_size, manifest.vocab_size) == (2, 256, 96)


def _tiny(shape: shapes.Shape) -> shapes.Shape:
    """Return a shape with all its parts and few weights."""
    small = {"rope.dimension_count": 32, "rope.dimension_sections": [8, 8, 0, 0], "ssm.state_size": 32,
             "ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 128}  # fmt: skip
    said = {name: value for name, value in small.items() if name in shape.metadata}
    return replace(
        shape.cut(6), hidden=256, inner=512, heads=4, kv_heads=2, head=64, vocab=512, context=256,
        experts=min(shape.experts, 16), chosen=min(shape.chosen, 2), expert_inner=256 if shape.experts else 0,
        metadata={**shape.metadata, **said},
    )  # fmt: skip


@pytest.mark.parametrize("name", [n for n, recipe in models.RECIPES.items() if recipe.shape])
def test_every_shape_is_computed_natively(name, tmp_path):
    from edgellm.agent.load import load_section
    from edgellm.checkpoint.sources import open_source
    from edgellm.checkpoint.split import split

    recipe, path, folder = models.RECIPES[name], tmp_path / "tiny.gguf", tmp_path / "split"
    random_gguf.write_gguf(path, _tiny(recipe.shape), recipe.weights, lambda done, total: None)
    manifest = split(open_source(str(path)), folder, recipe.quantize)
    section = load_section(manifest, folder, 0, manifest.num_layers)
    assert section.path == "native"
    ids = np.random.default_rng(0).integers(0, 512, 32)
    logits = section.forward(ids, 0, section.new_slot(32, "float16"), 32, 32)
    assert np.isfinite(logits).all() and len(set(logits.argmax(axis=1))) > 4  # tokens stay apart
    # Both sides' bytes are those of the same weights, but for biases of experts, of which all count here.
    ours, theirs = models.Model(name, path, folder, {}).bytes_a_token()
    assert ours == pytest.approx(theirs, rel=0.1 if name == "gpt-oss-20b" else 0.02)


def test_tokens_spread_over_the_experts_of_random_weights(tmp_path):
    from edgellm.checkpoint.sources import open_source
    from edgellm.checkpoint.split import split

    path = tmp_path / "tiny.gguf"
    random_gguf.write_gguf(path, _tiny(shapes.QWEN3_30B), "Q4_0", lambda done, total: None)
    split(open_source(str(path)), tmp_path / "split")
    rows = routing.rows_of(tmp_path / "split", 256)
    assert [row.value for row in rows[::2]] == ["16 of 16"] * 5 and all(row.value < 3 for row in rows[1::2])


def test_models_measured_longest_ago_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_KEPT_BYTES", 100)
    for i, name in enumerate(("old", "kept", "newer")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.gguf").write_bytes(b"x" * 40)
        os.utime(tmp_path / name, (i, i))
    models._make_room(tmp_path, 0, [])
    assert len(os.listdir(tmp_path)) == 3  # nothing is needed, though they are more than may be kept
    models._make_room(tmp_path, 50, [tmp_path / "kept"])
    assert os.listdir(tmp_path) == ["kept"]


def test_a_models_rows_take_their_places_in_the_table(tmp_path):
    about = {"machine": {**speed.report.machine(), "commit": "abc"}, "runs": 1, "layers": None, "peer": "llama 1"}
    targets = {t.key: t for t in tables.TABLES["pipeline"]}

    def put(key: str, ours: float, **more) -> str:
        result = make_result(targets[key], [Run(ours, 4.0, 1000.0)], (80, 40))
        tables.put(tmp_path, "pipeline", [result], {**about, **more}, {})
        return tables.write(tmp_path, "pipeline")

    put("lfm2-8b-decode", 8.0)
    put("qwen3-30b-decode", 4.0)
    text = put("lfm2-8b-decode", 10.0, machine={**about["machine"], "commit": "def"})  # again, later
    lines = [line for line in text.splitlines() if "decode" in line]
    assert ["Qwen3-30B" in lines[0], "LFM2" in lines[1], len(lines)] == [True, True, 2]
    assert "falls short" in lines[0] and "| 2.50" in lines[1] and "reached" in lines[1]
    assert "commit abc" in text and "commit def" in text and (tmp_path / "pipeline.png").is_file()
    assert text == (tmp_path / "pipeline.md").read_text()


def test_windows_of_a_text_begin_as_prompts_do():
    assert divergence.windows_of(list(range(10)), [99], 4, 5) == [[99, 0, 1, 2], [99, 3, 4, 5], [99, 6, 7, 8]]
    assert divergence.windows_of(list(range(4)), [], 4, 1) == [[0, 1, 2, 3]]
    with pytest.raises(BenchmarkError, match="has 2 tokens, 4 were asked for"):
        divergence.windows_of([1, 2], [99], 4, 1)


def test_disk_is_asked_for_what_is_not_there_yet(tmp_path):
    size, recipe = models.BUILTIN[DEFAULT_MODEL].bytes, models.RECIPES["smollm2"]
    assert models.needed_bytes(recipe, tmp_path) == size + 2 * size
    (tmp_path / "model.gguf").touch()
    assert models.needed_bytes(recipe, tmp_path) == 2 * size
    models.check_disk(tmp_path, 0)
    with pytest.raises(BenchmarkError, match="GB of disk are free"):
        models.check_disk(tmp_path, 1 << 60)


def test_a_mapped_file_counts_as_far_as_it_was_touched(tmp_path):
    path = tmp_path / "shard"
    path.write_bytes(b"x" * (1 << 20))
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[::4096]) == ord("x") * 256
        assert mapped_bytes(os.getpid(), tmp_path) == 1 << 20
        assert mapped_bytes(os.getpid(), tmp_path / "elsewhere") == 0


def test_an_agents_own_memory_is_its_peak_without_weights_and_kv():
    assert AgentMemory("a", 500, 300, 80).beyond == 120


@pytest.mark.parametrize(
    ("most", "last"), [(1.0, 1.0), (0.3, 0.3), (6.0, 6.0), (6.1, 8.0), (3.3, 4.0), (480.0, 500.0)]
)
def test_ticks_reach_the_largest_value(most, last):
    found = chart.ticks(most)
    assert found[0] == 0 and found[-1] == pytest.approx(last) and 3 < len(found) < 8


def test_results_are_written_as_text_json_and_chart(tmp_path):
    from PIL import Image as image

    machine = {**speed.report.machine(), "commit": "abc", "load_average_after": [0.5]}
    result = make_result(TARGET, [Run(10.0, 4.0, 1000.0)], (80, 40))
    more = {"runs": 1, "peer": {"package": "llama-cpp-python 1"}}
    text = speed.write_results(tmp_path, "speed", machine, [result], [], more)
    assert (tmp_path / "speed.md").read_text() == text and "| A " in text and "commit abc" in text
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content["speed"][0]["times"] == 2.5 and content["speed"][0]["runs"][0]["read"] == 1000.0
    with image.open(tmp_path / "speed.png") as drawn:
        assert drawn.width == 1280


def test_the_command_line_knows_its_rows(capsys):
    assert speed.parse(["--only", "lean", "--only", "1b-streams"]).only == ["lean", "1b-streams"]
    with pytest.raises(SystemExit):
        speed.parse(["--only", "nothing"])
    assert "phi3-prefill" in capsys.readouterr().err
    assert speed.parse([]).tables == ["speed", "pipeline", "board"] and speed.parse(["--only", "lean"]).models == {}
    wanted = speed.parse(["--table", "board", "--models", "smollm2,phi3-q4_k"]).models
    assert wanted == {"board": ["phi3-q4_k", "smollm2"]}
    assert speed.parse(["--models", "gemma3-1b,smollm2"]).models == {"pipeline": ["gemma3-1b"], "board": ["smollm2"]}
    with pytest.raises(SystemExit):
        speed.parse(["--table", "board", "--models", "gemma3-1b"])
    assert "gemma3-1b isn't in board" in capsys.readouterr().err
