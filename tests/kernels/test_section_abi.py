"""The C ABI of sections under hypothesis: any shape computes the same everywhere, and what doesn't fit is refused by a
status. Once as it is, once with sanitizers."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from building import available
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from shapes import Made, Shape, shapes

from edgellm.kernels import library
from edgellm.kernels.abi import NULL, codes, ffi
from edgellm.model.native.abi import MOST_TOKENS, new_steps
from tests.native_abi import call, fields, get, new, put, struct_of

FUZZ = settings(
    deadline=None, derandomize=True, database=None, max_examples=200, suppress_health_check=list(HealthCheck)
)
OK, *REFUSED = codes("Status").values()
ODD = [0, 1, 2, 3, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 511, 512, 513, 4097, *(1 << n for n in (24, 31, 32, 62, 63)),
       (1 << 24) - 1, (1 << 64) - 1, (1 << 64) - 16]  # fmt: skip


@pytest.fixture(autouse=True)
def as_before():
    yield
    library.use_target(None)
    library.set_threads(1)


class Open:
    """A section inside the library, if it takes what describes it: `status` says."""

    def __init__(self, made: Made):
        self.made, self.spec, into = made, made.spec, ffi.new("Section **")
        self.status = call("edgellm_section_new", self.spec, ffi.sizeof("SectionSpec"), into)
        self.handle = into[0]
        if self.status:
            assert self.handle == NULL
            return
        rng, half = np.random.default_rng(1), made.shape.rotary_dim // 2
        self.tables = [rng.uniform(-1, 1, (made.shape.context, half)).astype(np.float32) for _ in range(4)]
        for which in range(2 if half else 0):
            assert self.rope(which, *self.tables[2 * which : 2 * which + 2]) == OK

    def __enter__(self):
        return self

    def __exit__(self, *_):
        call("edgellm_section_free", self.handle)

    def rope(self, which, cos, sin, count=None, positions=None):
        count, positions = cos.size if count is None else count, len(cos) if positions is None else positions
        return call("edgellm_section_rope", self.handle, which, cos.ctypes.data, sin.ctypes.data, count, positions)

    def slot(self) -> np.ndarray:
        return self.made.slot(self.spec.num_layers)

    def inputs(self, tokens: int) -> np.ndarray:
        rng = np.random.default_rng(2)
        if self.spec.embedding.data != NULL:
            return rng.integers(0, self.spec.vocab, tokens)
        return rng.uniform(-1, 1, (tokens, self.spec.row_in or self.spec.hidden)).astype(np.float32)

    def run(self, steps: list, x: np.ndarray) -> np.ndarray:
        """Hidden states of all tokens, then the logits, in one row."""
        wanted = sum(s.logits for s in steps)
        out = np.empty((len(x), self.spec.row_out or self.spec.hidden), np.float32)
        logits = np.empty((wanted, self.spec.vocab), np.float32)
        ids, hidden = (x.ctypes.data, None) if x.dtype == np.int64 else (None, x.ctypes.data)
        status = call(
            "edgellm_section_run", self.handle, row(steps), len(steps), 0, self.spec.num_layers, ids, hidden, len(x),
            out.ctypes.data, out.size, logits.ctypes.data, logits.size,
        )  # fmt: skip
        assert status == OK
        return np.concatenate([out.ravel(), logits.ravel()])


def row(steps: list):
    """Return steps as a call takes them: one after the other."""
    together = new_steps()
    for i, step in enumerate(steps):
        together[i] = step[0]
    return together


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit for bit; what is no number is none, whatever its bits."""
    number = ~np.isnan(a)
    return np.array_equal(number, ~np.isnan(b)) and np.array_equal(a[number].view(np.int32), b[number].view(np.int32))


GATE_IN_ONE_LAYER = Shape(
    hidden=32, heads=2, kv_heads=1, head_dim=16, rotary_dim=16, intermediate=288, vocab=7, positions=0, context=17,
    encodings=("int8", "int8"), ends="f16", kv="f16", gated=(False, True), windows=(0, 0), layer_norm=False,
    biases=False, qk_norm="", attends=(), activation=0, odd=False, has_embedding=True, has_head=True,
    values="ordinary", seed=1,
)  # fmt: skip


@settings(FUZZ, max_examples=25)
@example(shape=GATE_IN_ONE_LAYER, cut=0.5, threads=1)
@given(shape=shapes(), cut=st.floats(0, 1), threads=st.integers(1, 2))
def test_a_section_of_any_shape_gives_the_same_bits_everywhere_and_however_it_is_cut(shape, cut, threads):
    made, n = Made.of(shape), shape.context
    first = 1 + int(cut * (n - 1))
    results = []
    for name in available():
        library.use_target(name)
        library.set_threads(threads)
        with Open(made) as section:
            assert section.status == OK
            x, kv = section.inputs(n), section.slot()
            each = bool(shape.has_head)  # logits after every token
            results.append(section.run([made.step(n, 0, n * each, kv)], x))
            kv = section.slot()
            begin = section.run([made.step(first, 0, first * each, kv)], x[:first])
            rest = [made.step(1, at, each, kv) for at in range(first, min(n, first + 2))]
            at, parts = first * shape.hidden, [section.run([s], x[s.position : s.position + 1]) for s in rest]
            assert same(begin[:at], results[0][:at])
            for s, part in zip(rest, parts, strict=True):
                at = s.position * shape.hidden
                assert same(part[: shape.hidden], results[0][at : at + shape.hidden])
                at = n * shape.hidden + s.position * shape.vocab
                assert not each or same(part[shape.hidden :], results[0][at : at + shape.vocab])
        assert same(results[-1], results[0]), name


def odd_values(structure, path: tuple):
    """What a caller may put there by mistake; memory is as long as before, so no value may promise more of it."""
    old, kind = get(structure, path), struct_of(structure, path)
    if path[-1] in ("data", "layers", "slot"):
        odd_address_is_refused = kind in ("FloatsSpec", "StepSpec") or (
            kind == "ProjectionSpec" and get(structure, (*path[:-1], "encoding")) >= library.ENCODINGS["bf16"]
        )
        return [None, old + 1] if path[-1] != "layers" and odd_address_is_refused and old else [None]
    if path[-1] in ("bytes", "slot_bytes"):
        return [0, 1, old // 2, max(old, 1) - 1, old + 1, old + 4, (1 << 64) - 1]
    if path[-1] == "num_layers":
        return [0, 1, 4097, 1 << 24, 1 << 40, (1 << 64) - 1]
    if isinstance(old, float):
        return [0.0, -1.0, math.nan, math.inf, 1e300]
    return [*ODD, old + 1, max(old, 1) - 1]


def change(data, structure, paths: list[tuple]) -> None:
    """Spoil one to three fields."""
    for path in data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=3, unique=True)):
        put(structure, path, data.draw(st.sampled_from(odd_values(structure, path)), label=".".join(path)))


@FUZZ
@given(shape=shapes(), data=st.data())
def test_a_section_that_does_not_fit_is_refused_and_any_other_computes(shape, data):
    made = Made.of(shape)
    if data.draw(st.booleans()):
        change(data, made.spec, fields("SectionSpec"))
    else:
        layer = data.draw(st.integers(0, len(shape.gated) - 1))
        change(data, made.layers[layer], fields("LayerSpec"))
    with Open(made) as section:
        assert section.status == OK or section.status in REFUSED
        if section.status == OK:
            logits, kv = int(made.spec.head.data != NULL), section.slot()
            section.run([made.step(shape.context, 0, logits, kv)], section.inputs(shape.context))


@st.composite
def calls(draw):
    """Changes to a call of edgellm_section_run, by argument."""
    names = "num_steps", "layer_start", "layer_end", "count", "out_elements", "logits_elements"
    possible = dict.fromkeys(names, st.sampled_from(ODD)) | {
        "ids": st.sampled_from(["none", "odd", "both"]), "out": st.sampled_from(["none", "odd"]),
        "logits": st.sampled_from(["none", "odd"]), "token": st.sampled_from([-1, -(2**63), 2**63 - 1, 40]),
    }  # fmt: skip
    names = draw(st.lists(st.sampled_from(sorted(possible)), max_size=2, unique=True))
    return {name: draw(possible[name]) for name in names}


@FUZZ
@given(shape=shapes(), changed=calls(), data=st.data())
def test_a_call_that_does_not_fit_is_refused_and_leaves_the_section_as_it_was(shape, changed, data):
    made = Made.of(shape)
    with Open(made) as section:
        tokens = [data.draw(st.integers(1, min(9, shape.context))) for _ in range(data.draw(st.integers(1, 3)))]
        slots = [section.slot() for _ in tokens]
        good = [made.step(n, 0, int(shape.has_head), kv) for n, kv in zip(tokens, slots, strict=True)]
        x = section.inputs(sum(tokens))
        expected = section.run(good, x)

        steps = row(good)
        if not changed or data.draw(st.booleans()):
            change(data, steps[data.draw(st.integers(0, len(good) - 1))], fields("StepSpec"))
        says = dict(num_steps=len(good), layer_start=0, layer_end=len(shape.gated), count=len(x),
                    out_elements=len(x) * shape.hidden,
                    logits_elements=len(good) * shape.has_head * shape.vocab)  # fmt: skip
        says |= {name: value for name, value in changed.items() if name in says}
        # Memory is as long as said, or the call is not to be taken.
        honest = True

        def memory(count, most, dtype, width=1):
            nonlocal honest
            honest &= count <= most
            return np.resize(x if dtype == x.dtype else np.zeros(1, dtype), (count if count <= most else 1) * width)

        fed = memory(says["count"], 2 * MOST_TOKENS, x.dtype, 1 if x.dtype == np.int64 else shape.hidden)
        out = memory(says["out_elements"], 2 * MOST_TOKENS * shape.hidden, np.float32)
        logits = memory(says["logits_elements"], 2 * MOST_TOKENS * shape.vocab, np.float32)
        if "token" in changed and fed.dtype == np.int64 and fed.size:
            fed[-1] = changed["token"]
        ids, hidden = (fed.ctypes.data, None) if fed.dtype == np.int64 else (None, fed.ctypes.data)
        match changed.get("ids"):
            case "none":
                ids = hidden = None
            case "odd":
                ids, hidden = ids and ids + 1, hidden and hidden + 1
            case "both":
                ids = hidden = fed.ctypes.data
        places = {"none": lambda a: None, "odd": lambda a: a.ctypes.data + 1, None: lambda a: a.ctypes.data}
        status = call(
            "edgellm_section_run", section.handle, steps, says["num_steps"], says["layer_start"], says["layer_end"],
            ids, hidden, says["count"], places[changed.get("out")](out), says["out_elements"],
            places[changed.get("logits")](logits), says["logits_elements"],
        )  # fmt: skip
        assert status in REFUSED or status == OK and honest
        assert same(section.run(good, x), expected)


@settings(FUZZ, max_examples=60)
@given(shape=shapes(), which=st.sampled_from(ODD), count=st.sampled_from(ODD), positions=st.sampled_from(ODD))
def test_rotary_factors_that_do_not_fit_are_refused(shape, which, count, positions):
    """What a table is long for, a step is checked against."""
    with Open(Made.of(shape)) as section:
        fits = which < 8 and 0 < positions < 1 << 24 and count > 0 and count % positions == 0
        table = np.zeros(count if fits and count < 1 << 20 else 1, np.float32)
        if fits and count >= 1 << 20:
            return
        assert (section.rope(which, table, table, count, positions) == OK) == fits
        for cos, sin in ((None, table.ctypes.data), (table.ctypes.data, None), (table.ctypes.data + 1,) * 2):
            assert call("edgellm_section_rope", section.handle, 0, cos, sin, 0, 0) == 1


def test_nothing_is_no_section():
    step = new("StepSpec", tokens=1, context=1, kv_encoding=3)
    assert call("edgellm_section_new", None, ffi.sizeof("SectionSpec"), ffi.new("Section **")) == 1
    assert call("edgellm_section_rope", None, 0, None, None, 0, 0) == 1
    assert call("edgellm_section_run", None, step, 1, 0, 0, None, None, 0, None, 0, None, 0) == 1
    call("edgellm_section_free", None)


@pytest.mark.kernels
def test_all_of_it_with_sanitizers(sanitized):
    """In a process of its own, whose allocations are watched, too."""
    code = (
        "import sys\nfrom pathlib import Path\nimport pytest\nfrom edgellm.kernels import library\n"
        "library._candidates = lambda: [Path(sys.argv[1])]\n"
        "sys.exit(pytest.main(['-q', '-s', '-p', 'no:cacheprovider', '-k', 'not sanitizers', sys.argv[2]]))\n"
    )
    asan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = {**os.environ, "LD_PRELOAD": asan.stdout.strip(), "PYTHONMALLOC": "malloc",
                   "ASAN_OPTIONS": "detect_leaks=0"}  # fmt: skip
    command = [sys.executable, "-c", code, sanitized.shared, Path(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:] + done.stderr[-4000:]
