"""edgellm bench: small shapes, what it says of machines, and that it needs neither a model nor torch."""

import json
import os
import subprocess
import sys

import pytest

from edgellm.agent import bench
from edgellm.cli import main
from edgellm.kernels import library

TINY = bench.Shape("tiny", 64, 96, 2, 1, 32)


def run(*arguments):
    """The finished process of `edgellm bench` on a core, quick."""
    core = min(os.sched_getaffinity(0))
    line = [sys.executable, "-m", "edgellm", "bench", "--seconds", "0", "--cores", str(core), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_a_layer_is_its_four_products():
    assert TINY.matrices == ((128, 64), (64, 64), (192, 64), (64, 96))
    phi3 = bench.SHAPES["phi-3-mini"].matrices
    assert phi3 == ((9216, 3072), (3072, 3072), (16384, 3072), (3072, 8192))


def test_rows_agree_with_the_bytes_and_operations_of_a_layer():
    weights = 128 * 64 + 64 * 64 + 192 * 64 + 64 * 96
    stored = {"int4s": weights * 288 // 512, "f16": 2 * weights}
    rows = list(bench.measure(TINY, ["int4s", "f16"], [1, 3], seconds=0, cold_bytes=1 << 20))
    assert [(row.encoding, row.tokens) for row in rows] == [("int4s", 1), ("int4s", 3), ("f16", 1), ("f16", 3)]
    for row in rows:
        seconds = row.ms_per_layer / 1e3
        assert row.gb_per_s * seconds * 1e9 == pytest.approx(stored[row.encoding])
        assert row.gop_per_s * seconds * 1e9 == pytest.approx(2 * row.tokens * weights)


def test_every_encoding_of_weights_can_be_measured():
    from edgellm.cli.bench import _WEIGHTS

    assert set(_WEIGHTS) == set(library.ENCODINGS)
    wide = bench.Shape("wide", 256, 512, 4, 4, 64)
    rows = list(bench.measure(wide, list(_WEIGHTS), [5], seconds=0, cold_bytes=1 << 10))
    assert [row.encoding for row in rows] == list(_WEIGHTS)


def test_an_encoding_whose_blocks_are_wider_than_the_shape_is_refused_in_a_line():
    done = run("--shape", "smollm2-135m", "--weights", "q4_k")
    assert done.returncode == 2 and done.stdout == ""
    assert "smollm2-135m can't be measured with --weights q4_k: q4_k packs rows in groups of 256" in done.stderr


def test_reading_is_measured():
    assert bench.read_speed(1 << 20, seconds=0) > 0


ORANGE_PI = "".join(f"processor\t: {i}\nCPU part\t: {'0xd05' if i < 4 else '0xd0b'}\n\n" for i in range(8))


@pytest.mark.parametrize("model, cpuinfo, board, cpu", [
    ("Orange Pi 5\0", ORANGE_PI, "Orange Pi 5", "4 x Cortex-A55, 4 x Cortex-A76"),
    (None, "model name\t: AMD EPYC\n\nmodel name\t: AMD EPYC\n", "unknown", "2 x AMD EPYC"),
    ("New", "CPU part\t: 0xfff\nmodel name\t: ARMv8\n", "New", "1 x part 0xfff"),
    (None, None, "unknown", "unknown"),
])  # fmt: skip
def test_a_machine_is_named_as_far_as_it_tells(tmp_path, model, cpuinfo, board, cpu):
    for path, text in (("proc/device-tree/model", model), ("proc/cpuinfo", cpuinfo)):
        if text is not None:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
    assert bench.describe(tmp_path) == bench.Machine(board, cpu)


def test_the_command_offers_every_shape_and_encoding():
    shape, weights, *_ = main.commands["bench"].params
    assert list(shape.type.choices) == list(bench.SHAPES) and set(weights.type.choices) == set(library.ENCODINGS)


def test_json_says_all_that_the_text_does():
    done = run("--shape", "smollm2-135m", "--weights", "int8", "--tokens", "1", "--json")
    assert done.returncode == 0 and done.stderr == ""
    found = json.loads(done.stdout)
    assert found["shape"] == "smollm2-135m" and found["threads"] == 1 and found["kernels"] == library.target()
    assert found["core_reads_gb_per_s"] > 0 and found["cpu"]
    (row,) = found["rows"]
    assert row["encoding"] == "int8" and row["tokens"] == 1 and row["ms_per_layer"] > 0


def test_the_table_has_a_line_a_measurement():
    done = run("--shape", "smollm2-135m", "--weights", "int4s", "--tokens", "2", "--target", "scalar")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0].startswith("edgellm ")
    assert lines[1].startswith("scalar kernels, threads: 1, cores: ")
    assert lines[3].split() == ["a", "layer", "of", "smollm2-135m", "tokens", "ms", "GB/s", "GOP/s"]
    assert lines[4].split()[:2] == ["int4s", "2"] and len(lines) == 5


@pytest.mark.parametrize("arguments, said", [
    (["--threads", "64"], "64 threads need as many cores, not 1 (0)"),
    (["--target", "abacus"], "can't run the kernels for abacus"),
    (["--cores", "x"], "is not a list of cores"),
])  # fmt: skip
def test_what_can_not_be_is_one_sentence(arguments, said):
    done = run(*arguments)
    assert done.returncode != 0 and said in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


def test_it_needs_no_torch():
    code = (
        "import sys\nfor name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "from edgellm.cli import main\n"
        "main(['bench', '--shape', 'smollm2-135m', '--weights', 'int8', '--tokens', '1', '--seconds', '0'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "int8" in done.stdout, done.stderr
