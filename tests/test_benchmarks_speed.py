"""What `make bench` decides without measuring: rows, verdicts, sizes, what llama.cpp said, and the files written."""

import json
import mmap
import os

import numpy as np
import pytest

from benchmarks import chart, models, peer, peer_build, shapes, speed, targets
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


def test_the_peer_is_built_for_this_cpu_and_without_amx():
    assert "-DGGML_NATIVE=ON" in peer_build.cmake_flags(frozenset())
    assert not any("amx" in flag for flag in peer_build.cmake_flags(frozenset({"avx2"})))
    assert any("-mno-amx-int8" in flag for flag in peer_build.cmake_flags(frozenset({"avx2", "amx_tile"})))
    assert peer_build.progress_of("[12/143] Building CXX object a.o") == (12, 143)
    assert peer_build.progress_of("ninja: no work to do.") is None


@pytest.mark.parametrize(
    ("shape", "weights", "megabytes"),
    [(shapes.PHI3_MINI, "Q4_0", 2120), (shapes.PHI3_MINI, "Q8_0", 3956), (shapes.LLAMA_1B, "Q4_0", 763)],
)
def test_shapes_read_as_many_bytes_a_token_as_the_models_do(shape, weights, megabytes):
    embedding = 0 if shape.tied else shapes.stored_bytes((shape.vocab, shape.hidden), weights)
    assert round((shapes.file_bytes(shape, weights) - embedding) / 1e6) == megabytes


@pytest.mark.parametrize("kind", list(shapes.BLOCKS))
def test_random_blocks_are_weights_of_the_usual_spread(kind):
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = shapes.random_rows(kind, 64, 1024, np.random.default_rng(0))
    values = dequantize(rows, GGMLQuantizationType[kind])
    assert values.shape == (64, 1024) and rows.nbytes == shapes.stored_bytes((64, 1024), kind)
    assert abs(values.mean()) < 0.003 and 0.018 < values.std() < 0.023


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_a_written_shape_is_split(architecture, tmp_path):
    from edgellm.checkpoint.sources import open_source
    from edgellm.checkpoint.split import split

    fused = architecture == "phi3"
    shape = shapes.Shape("tiny", architecture, 2, 256, 512, 4, 4 if fused else 2, 96, 128, 1e4, 1e-5, not fused, fused)
    path, seen = tmp_path / "tiny.gguf", []
    shapes.write_gguf(path, shape, "Q4_0", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (shapes.file_bytes(shape, "Q4_0"),) * 2 and os.listdir(tmp_path) == ["tiny.gguf"]
    embedding = 0 if shape.tied else shapes.stored_bytes((96, 256), "Q4_0")
    assert models.gguf_bytes_a_token(path) == shapes.file_bytes(shape, "Q4_0") - embedding
    manifest = split(open_source(str(path)), tmp_path / "split", "int4")
    assert (manifest.num_layers, manifest.hidden_size, manifest.vocab_size) == (2, 256, 96)


def test_disk_is_asked_for_what_is_not_there_yet(tmp_path):
    size = models.BUILTIN[DEFAULT_MODEL].bytes
    assert models.needed_bytes(["smollm2"], tmp_path) == size + size * 5 // 4
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "model.gguf").touch()
    assert models.needed_bytes(["smollm2"], tmp_path) == size * 5 // 4
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
