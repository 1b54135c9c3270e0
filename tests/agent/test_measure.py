"""What a board offers: free RAM under control groups of either version, from files as the kernel writes them, and
how fast it decodes."""

from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from edgellm.agent import load, measure
from edgellm.errors import ManifestError
from tests.fakes import make_manifest

MB = 1 << 20


def group(folder, version: int, limit: str, used: int, cache: int, shmem: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    limit_name, used_name, prefix, cache_name = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_", "cache"),
        2: ("memory.max", "memory.current", "", "file"),
    }[version]
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / used_name).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{prefix}{cache_name} {cache}\n{prefix}shmem {shmem}\n")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 64 GB available, in the control group /a/b."""

    def make(version: int):
        own = tmp_path / "own"
        own.write_text("5:cpu:/\n4:memory:/a/b\n0::/\n" if version == 1 else "0::/a/b\n")
        monkeypatch.setattr(measure, "_OWN_CGROUPS", own)
        monkeypatch.setattr(measure, "_CGROUPS", tmp_path)
        memory = psutil.virtual_memory()._replace(available=64 << 30)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        return tmp_path / "memory" if version == 1 else tmp_path

    return make


@pytest.mark.parametrize("version", (1, 2))
@pytest.mark.parametrize(
    ("inner", "outer", "free_mb"),
    [
        # (limit, used, cache, of it tmpfs) of the group and of the one above it
        ((4000 * MB, 300 * MB, 0, 0), None, 3700),
        ((4000 * MB, 2300 * MB, 2000 * MB, 0), None, 3700),  # mapped shards are free already
        ((4000 * MB, 2300 * MB, 2000 * MB, 500 * MB), None, 3200),  # a tmpfs can't be dropped
        ((4000 * MB, 300 * MB, 0, 0), (1000 * MB, 300 * MB, 0, 0), 700),
        ((4000 * MB, 4100 * MB, 0, 0), None, 0),
        (None, None, 64 << 10),
    ],
)
def test_a_board_offers_what_its_control_group_leaves(machine, version, inner, outer, free_mb):
    root = machine(version)
    none = "max" if version == 2 else str((1 << 63) - 4096)
    group(root / "a", version, *(outer or (none, 0, 0, 0)))
    group(root / "a" / "b", version, *(inner or (none, 0, 0, 0)))
    assert measure.free_ram_bytes() == free_mb * MB


def test_a_board_without_control_groups_offers_what_the_machine_has(machine, tmp_path):
    machine(1)
    (tmp_path / "own").unlink()
    assert measure.free_ram_bytes() == 64 << 30


class _SlowSection:
    """Takes 2 ms a layer, and 6 ms more for logits, by a clock of its own."""

    now_s = 0.0

    def __init__(self, layers: int):
        self.layers = layers

    def new_slot(self, context):
        return None

    def example(self):
        return None

    def forward(self, x, position, slot, pass_len, want_logits):
        _SlowSection.now_s += 0.002 * self.layers + (0.006 if want_logits else 0)


def split_of(folder, there, layer_bytes: int = 100) -> SimpleNamespace:
    """A manifest of four layers, with the shards `there` in `folder`."""
    for name in there:
        (folder / name).touch()

    def shard(name: str, ram_bytes: int):
        return SimpleNamespace(name=name, bytes=0, ram_bytes=ram_bytes, sha256="")

    return SimpleNamespace(
        num_layers=4, model="m", embedding=shard("embedding", 2000), head=shard("head", 20 * layer_bytes),
        head_touched_bytes=20 * layer_bytes,
        layer=lambda i: shard(f"layer-{i}", layer_bytes), touched_bytes_per_token=(layer_bytes,) * 4,
    )  # fmt: skip


ALL = ("layer-0", "layer-1", "layer-2", "layer-3")


@pytest.mark.parametrize(
    ("there", "corrupt", "head_s"),
    [
        ((*ALL, "head"), False, 0.006),  # timed
        ((*ALL, "head"), True, 0.040),  # twenty times a layer's bytes
        (("layer-1", "head"), False, 0.040),
        (("layer-2", "layer-3"), False, 0.040),
    ],
)
def test_the_head_is_timed_where_it_is_and_scaled_where_not(tmp_path, monkeypatch, there, corrupt, head_s):
    loaded = []

    def load_section(manifest, folder, start, end, *, without_ends=False, path="auto"):
        loaded.append((start, end, without_ends))
        if corrupt and not without_ends:
            raise ManifestError("head: SHA-256 is 1, the manifest says 2")
        return _SlowSection(end - start)

    monkeypatch.setattr(load, "load_section", load_section)
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: _SlowSection.now_s))
    found = measure.measure_decode(split_of(tmp_path, there), tmp_path)
    assert found == (pytest.approx(0.002), pytest.approx(head_s))
    assert all(without_ends or (start, end) == (3, 4) for start, end, without_ends in loaded)


@pytest.mark.parametrize(
    ("there", "layer_bytes", "cache", "layers"),
    [
        (ALL, 100, 1000, (0, 4)),  # all of them would stay in the cache, but there are no more
        (ALL, 100, 100, (2, 4)),
        (ALL, 100, 10, (2, 3)),  # the middle one is more than the cache holds
        (ALL, 100, 150, (1, 4)),
        (("layer-0", "layer-2", "layer-3"), 100, 1000, (2, 4)),  # no gap between them
        (("layer-1",), 100, 1000, (1, 2)),
    ],
)
def test_layers_are_timed_that_no_cache_holds(tmp_path, monkeypatch, there, layer_bytes, cache, layers):
    monkeypatch.setattr(measure, "_cache_bytes", lambda: cache)
    assert measure.timed_layers(split_of(tmp_path, there, layer_bytes), tmp_path) == layers


@pytest.mark.parametrize(
    ("sizes", "found"),
    [((), 0), (("32K", "1024K", "8192K"), 8 << 20), (("?", "64K"), 64 << 10), (("9999999K",), 32 << 20)],
)
def test_the_largest_cache_counts(tmp_path, monkeypatch, sizes, found):
    for i, size in enumerate(sizes):
        (tmp_path / f"index{i}").mkdir()
        (tmp_path / f"index{i}/size").write_text(f"{size}\n")
    monkeypatch.setattr(measure, "_CACHES", tmp_path)
    assert measure._cache_bytes() == found


def test_a_corrupt_layer_is_passed_over_and_told_of(tmp_path, monkeypatch, caplog):
    def load_section(manifest, folder, start, end, *, without_ends=False, path="auto"):
        if start <= 2 < end:
            raise ManifestError("layer-2: SHA-256 is 1, the manifest says 2")
        return _SlowSection(end - start)

    monkeypatch.setattr(load, "load_section", load_section)
    section, layers = measure.load_timed(split_of(tmp_path, ALL), tmp_path)
    assert section.layers == layers == 1
    assert "layers 0-4 are not timed: layer-2: SHA-256" in caplog.text


def test_a_board_whose_layers_are_all_corrupt_says_so(tmp_path, monkeypatch):
    def load_section(*args, **kwargs):
        raise ManifestError("SHA-256 is 1, the manifest says 2")

    monkeypatch.setattr(load, "load_section", load_section)
    with pytest.raises(ManifestError, match="SHA-256 is 1"):
        measure.measure_decode(split_of(tmp_path, ALL), tmp_path)


def test_a_board_without_any_layer_says_so(tmp_path):
    with pytest.raises(ManifestError, match="no layer shard of m is here; push shards"):
        measure.measure_decode(split_of(tmp_path, ("head",)), tmp_path)


@pytest.mark.parametrize(
    ("took", "steps", "fastest"),
    [
        ((9, 2, 2, 2, 2, 2), 6, 2),  # the first wakes the core up, five are alike
        ((2.0, 2.08, 2.02, 2.1, 2.06), 5, 2.0),
        ((4, 4, 4, 4, 2, 2, 4, 2, 2, 2), 10, 2),  # half of them beside other work
        ((4, 5, 6, 7, 8, 9, 10, 3), 21, 3),  # none like another
        ((150,) * 5, 5, 150),  # slow, and alike
        ((100, 120, 140, 160, 180), 5, 100),  # slow, and time is up
    ],
)
def test_a_step_is_timed_until_its_time_is_sure(monkeypatch, took, steps, fastest):
    clock = SimpleNamespace(ms=0.0, steps=0)

    def forward(x, position, slot, pass_len, want_logits):
        assert (position, pass_len) == (clock.steps, clock.steps + 1)
        clock.ms += took[clock.steps] if clock.steps < len(took) else took[-1] + clock.steps
        clock.steps += 1

    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock.ms / 1e3))
    section = SimpleNamespace(new_slot=lambda context: None, example=lambda: None, forward=forward)
    assert measure._decode_s(section, False) == pytest.approx(fastest / 1e3)
    assert clock.steps == steps


def test_the_disks_speed_is_that_of_experts_alone(tmp_path):
    manifest = make_manifest(num_layers=2)
    assert measure.disk_bytes_per_s(manifest, tmp_path) is None, "no experts"
    manifest = replace(manifest, expert_bytes=(0, 8))
    assert measure.disk_bytes_per_s(manifest, tmp_path) is None, "no shards"
    (tmp_path / manifest.layer(1).name).write_bytes(bytes(3 << 20))
    assert measure.disk_bytes_per_s(manifest, tmp_path) > 1000
