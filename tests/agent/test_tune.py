"""An agent tries sets of cores once, keeps the result, and tries again when the machine is another one."""

import json
import logging
import shutil
import subprocess
import sys

import pytest

from edgellm.agent import load, tune
from edgellm.agent.cores import Core
from edgellm.errors import ManifestError
from edgellm.kernels import library
from edgellm.shards.manifest import Manifest
from tests.model.families import CONFIGS, random_model
from tests.model.make_split import make_split

FOUR = tuple(Core(n, 1.0, n) for n in range(4))


class FakeSection:
    """Decodes in as many seconds as the fake clock is told for the set of cores in use."""

    def __init__(self, seconds: dict[tuple[int, ...], float]):
        self.seconds, self.now_s, self.cores, self.used = seconds, 0.0, (), []

    def new_slot(self, context):
        return None

    def example(self):
        return None

    def use(self, cores):
        self.cores = cores
        self.used.append(cores)

    def forward(self, x, position, slot, pass_len, logits):
        self.now_s += self.seconds[self.cores]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    make_split(random_model(CONFIGS["smollm"]()), folder, "int8")
    return folder


@pytest.fixture
def calls(monkeypatch):
    """What was measured and set; as if this machine had four equal cores, of which the first two are fastest."""
    found = {"threads": [], "measured": 0, "calm": True}

    def set_threads(count, cores=()):
        found["threads"].append((count, tuple(cores)))

    def time_sets(section, sets, use, queued_s):
        found["measured"] += 1
        return {some: 0.001 if len(some) == 2 else 0.002 for some in sets}, found["calm"]

    monkeypatch.setattr(tune, "read_cores", lambda allowed: FOUR)
    monkeypatch.setattr(tune, "time_sets", time_sets)
    monkeypatch.setattr(load, "set_threads", set_threads)
    return found


def take(model_dir, state, threads=None, cores=None):
    return tune.take_cores(Manifest.read(model_dir), model_dir, threads, cores, state)


def undisturbed() -> float:
    return 0.0


def test_sets_take_turns_until_the_time_is_over(monkeypatch):
    section = FakeSection({(0, 1): 0.025, (0,): 0.035})
    monkeypatch.setattr(tune.time, "perf_counter", lambda: section.now_s)
    seconds, calm = tune.time_sets(section, list(section.seconds), section.use, undisturbed)
    assert seconds == pytest.approx(section.seconds) and calm
    assert section.used == [(0, 1), (0,)] * 3  # 0.12 s a round: the third begins before 0.3 s are over


def test_slow_sets_are_tried_twice_and_no_more(monkeypatch):
    section = FakeSection({(0, 1): 4.0, (0,): 6.0})
    monkeypatch.setattr(tune.time, "perf_counter", lambda: section.now_s)
    tune.time_sets(section, list(section.seconds), section.use, undisturbed)
    assert len(section.used) == 4


def test_while_others_have_the_cores_nothing_is_sure(monkeypatch):
    section = FakeSection({(0, 1): 0.03, (0,): 0.04})
    monkeypatch.setattr(tune.time, "perf_counter", lambda: section.now_s)
    _, calm = tune.time_sets(section, list(section.seconds), section.use, lambda: section.now_s / 2)
    assert not calm
    assert len(section.used) == 10  # it goes on for twice as long


def test_a_disturbed_measurement_is_neither_believed_nor_kept(model_dir, calls, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    calls["calm"] = False
    slow = (Core(4, 1.0, 4), Core(5, 1.0, 5), Core(0, 0.5, 0), Core(1, 0.5, 1), Core(2, 0.5, 2))
    monkeypatch.setattr(tune, "read_cores", lambda allowed: slow)
    monkeypatch.setattr(tune, "choose", lambda seconds: pytest.fail("it was believed"))
    assert take(model_dir, tmp_path).cores == (4, 5)
    assert "other work disturbed the measurement" in caplog.text and not list(tmp_path.iterdir())


def test_time_in_the_queue_is_counted_where_the_kernel_counts_it():
    first = tune._queued_s()
    assert 0 <= first <= tune._queued_s()


def test_what_was_measured_is_used_and_kept(model_dir, calls, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    state = tmp_path / "not/there/yet"
    assert take(model_dir, state).cores == (0, 1)
    assert take(model_dir, state).cores == (0, 1)
    assert calls["threads"] == [(2, (0, 1))] * 2 and calls["measured"] == 1
    assert f"computes with 2 threads on cores 0-1 (measured as the fastest), {library.target()} kernels" in caplog.text
    assert "measured earlier" in caplog.text


@pytest.mark.parametrize("changed", ["cores", "affinity", "machine", "kernels"])
def test_another_machine_is_measured_again(model_dir, calls, tmp_path, monkeypatch, changed):
    take(model_dir, tmp_path)
    if changed == "cores":
        monkeypatch.setattr(tune, "read_cores", lambda allowed: tuple(Core(n, 2.0 - n / 4, n) for n in range(4)))
    elif changed == "affinity":
        monkeypatch.setattr(tune, "read_cores", lambda allowed: FOUR[:3])
    elif changed == "machine":
        monkeypatch.setattr(tune, "_machine", lambda: "Xunlong Orange Pi 6")
    else:
        monkeypatch.setattr(library, "target", lambda: "neon")
    take(model_dir, tmp_path)
    assert calls["measured"] == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xff", b"[]", b"null", b"7", b"[" * 60000, b"{}", b'{"chosen": 3}', b'{"chosen": [[0]]}', "far", "odd"],
)
def test_a_kept_result_that_cannot_be_believed_is_measured_again(model_dir, calls, tmp_path, content):
    take(model_dir, tmp_path)
    path = tmp_path / "cores.json"
    if isinstance(content, str):
        kept = json.loads(path.read_text()) | {"chosen": [0, 77] if content == "far" else [3, 2]}
        content = json.dumps(kept).encode()
    path.write_bytes(content)
    assert take(model_dir, tmp_path).cores == (0, 1)
    assert calls["measured"] == 2
    assert json.loads(path.read_text())["chosen"] == [0, 1]


def test_an_agent_that_cannot_keep_the_result_computes_all_the_same(model_dir, calls, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert take(model_dir, tmp_path / "file/below").cores == (0, 1)
    assert "can't be written, so the next start measures cores again: Not a directory" in caplog.text


def test_what_the_owner_says_is_not_measured(model_dir, calls, tmp_path):
    take(model_dir, tmp_path, cores=(3, 1))
    take(model_dir, tmp_path, threads=3)
    assert calls["threads"] == [(2, (3, 1)), (3, ())] and calls["measured"] == 0
    assert not list(tmp_path.iterdir())


def test_slower_kernels_are_told_of(model_dir, calls, tmp_path, monkeypatch, caplog):
    for target in ("scalar", "avx2", "neon"):
        monkeypatch.setattr(library, "target", lambda target=target: target)
        take(model_dir, tmp_path, threads=1)
    for words in ("expect a tenth of the speed", "the slower AVX2 kernels run", "the slower NEON kernels run"):
        assert words in caplog.text


def test_real_steps_are_timed_on_real_cores(model_dir, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(load, "set_threads", lambda count, cores=(): used.append(tuple(cores)))
    monkeypatch.setattr(tune, "read_cores", lambda allowed: FOUR)
    monkeypatch.setattr(tune, "_queued_s", undisturbed)
    choice = take(model_dir, tmp_path)
    assert choice.cores in {(0, 1, 2, 3), (0, 1), (0,)} and used[-1] == choice.cores
    assert set(used) == {(0, 1, 2, 3), (0, 1), (0,)}


def test_a_corrupt_layer_is_refused_by_name(model_dir, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(model_dir, folder)
    monkeypatch.setattr(tune, "read_cores", lambda allowed: FOUR)
    for path in folder.glob("layer-*"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with pytest.raises(ManifestError, match=r"layer-\d+\.safetensors: SHA-256"):
        take(folder, tmp_path / "state")


def test_results_are_kept_where_systemd_says(monkeypatch, tmp_path):
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/a:{tmp_path}/b")
    assert tune.state_folder() == tmp_path / "a"
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert tune.state_folder() == tmp_path / "edgellm/agent"


def test_threads_that_are_not_pinned_stay_on_the_cores_they_were_given():
    code = """
import os, threading
from edgellm.agent import tune

core, ended = min(os.sched_getaffinity(0)), threading.Event()
other = threading.Thread(target=ended.wait, daemon=True)
other.start()
tune._confine((core,))
print([os.sched_getaffinity(t) == {core} for t in (0, other.native_id)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[True, True]", done.stderr
