"""Doctor's edge: the script as sh runs it on a made-up board, answers of every kind, boards of which some are dead."""

import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from edgellm import __version__
from edgellm.controller import examine as examining
from edgellm.controller.doctor import HERE, Unit, diagnose
from edgellm.controller.examine import Meter, examine
from edgellm.controller.script import QUICK_SCRIPT, SCRIPT, parse
from edgellm.controller.ssh import Done
from edgellm.errors import BoardError
from edgellm.manager.cluster_file import ClusterFile, SshAccess
from tests.certificates import ensure
from tests.controller.shards import whole_manifest, write_model
from tests.fakes import LAYERS, Boards, block, make_manifest, make_plan, run

SYSTEMCTL = """#!/bin/sh
echo LoadState=loaded; echo ActiveState=active; echo SubState=running; echo UnitFileState=enabled
echo NRestarts=2; echo ActiveEnterTimestampMonotonic=1000000
"""


class Sham:
    """A board's file system under a folder; `run` runs scripts there as `run_script` would over SSH."""

    def __init__(self, root, uid: int = 0):
        self.root = root
        self.model, self.tls = root / "var/lib/edgellm/model", root / "etc/edgellm/tls"
        self.bin = root / "bin"
        for folder in (self.model, self.tls, self.bin, root / "opt/edgellm"):
            folder.mkdir(parents=True)
        whole_manifest().write(self.model)
        write_model(self.model)
        made = ensure(root / "ca", ["b0"], datetime.now(UTC) - timedelta(days=1))
        for name in ("ca.pem", "cert.pem", "key.pem"):
            (self.tls / name).write_bytes((made.boards["b0"] / name).read_bytes())
        (self.tls / "key.pem").chmod(0o600)
        self.command("systemctl", SYSTEMCTL)
        self.command("vcgencmd", "#!/bin/sh\necho throttled=0x50000\n")
        self.command("id", f"#!/bin/sh\necho {uid}\n")

    def command(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, board, access, script, on_line, **options) -> Done:
        for place in ("/var/lib/edgellm", "/opt/edgellm", "/etc/edgellm"):
            script = script.replace(place, f"{self.root}{place}")
        script = script.replace("PATH=", f"PATH={self.bin}:")
        done = subprocess.run(["sh", "-s"], input=script.encode(), capture_output=True, timeout=30)
        for line in done.stdout.decode(errors="replace").splitlines():
            on_line(line)
        return Done(done.returncode, done.stderr.decode())


def asked(board: Sham, script: str = SCRIPT) -> dict:
    """The script's answers as facts."""
    lines = []
    board.run("b0", None, script, lambda line: lines.append((time.time(), line)))
    return parse(lines, quick=script == QUICK_SCRIPT)


def test_the_script_tells_all_of_a_healthy_board(tmp_path):
    board, began_s = Sham(tmp_path), time.time()
    facts = asked(board)
    names = {s.name for s in whole_manifest().shards} | {"manifest.json"}
    # The same clock, looked at once while the script ran and once when its lines had come.
    assert facts["is_root"] and began_s - time.time() < facts["skew_s"] <= 0
    assert facts["unit"] == Unit("loaded", "active", "running", "enabled", 2, facts["unit"].since_s)
    assert facts["unit"].since_s > 0
    assert facts["firmware"] == 0x50000 and facts["key_mode"] == "600" and facts["disk_free_bytes"] > 0
    assert 300 < facts["certificate_days"] < 1000 and facts["ca_days"] > facts["certificate_days"]
    assert facts["files"].keys() == facts["sums"].keys() == names
    assert facts["sums"]["head.safetensors"] == whole_manifest().head.sha256


def test_the_quick_script_reads_no_shards(tmp_path):
    facts = asked(Sham(tmp_path), QUICK_SCRIPT)
    assert "sums" not in facts and facts["files"]["head.safetensors"] == whole_manifest().head.bytes


def test_a_disk_is_timed_where_a_shard_is_large_enough(tmp_path):
    board = Sham(tmp_path)
    board.command("dd", "#!/bin/sh\necho '8+0 records in' >&2\n"
                        "echo '67108864 bytes (67 MB, 64 MiB) copied, 8.00 s, 8.4 MB/s' >&2\n")  # fmt: skip
    assert asked(board)["read_bytes_per_s"] == pytest.approx(67108864 / 8)
    board.command("dd", "#!/bin/sh\necho '21 bytes copied, 0.0001 s, 210 kB/s' >&2\n")
    assert "read_bytes_per_s" not in asked(board)
    board.command("dd", "#!/bin/sh\necho 'dd: failed to open: Invalid argument' >&2; exit 1\n")
    assert "read_bytes_per_s" not in asked(board)


def test_a_shard_that_cannot_be_read_has_no_sum(tmp_path):
    board = Sham(tmp_path)
    board.command("sha256sum", "#!/bin/sh\nexit 1\n")
    assert set(asked(board)["sums"].values()) == {""}


def test_odd_file_names_are_left_out(tmp_path):
    board = Sham(tmp_path)
    for name in ("two words", "\x1b[2J", "-rf", "$(reboot)", "x" * 200, "\nend"):
        (board.model / name).write_text("x")
    assert asked(board)["files"].keys() == {s.name for s in whole_manifest().shards} | {"manifest.json"}


def test_a_blank_board_has_no_files(tmp_path):
    board = Sham(tmp_path)
    for path in (*board.model.iterdir(), *board.tls.iterdir()):
        path.unlink()
    board.model.rmdir()
    board.command("systemctl", "#!/bin/sh\nexit 1\n")
    facts = asked(board)
    assert facts["files"] == {} and "unit" not in facts and "certificate_days" not in facts
    board.command("id", "#!/bin/sh\necho 1000\n")  # who isn't root may just not see them
    assert "files" not in asked(board)


SAID = [
    "clock 99.5", "user 0", "uptime 200.0 1.0", "unit LoadState=loaded", "unit ActiveState=act\x1b[31mive",
    "unit NRestarts=many", "unit ActiveEnterTimestampMonotonic=-5", "free 100", "free 50", "free lots",
    "firmware throttled=0xZZ", "read 99999999 bytes (x) copied, nan s", "cert rubbish", "key rwx------",
    "file 12 a.safetensors", "file -1 b.safetensors", "file 12 ../../etc/passwd", "sum zz a.safetensors", "end",
]  # fmt: skip


def test_what_a_board_says_is_parsed_with_suspicion():
    assert parse([(100.0, line) for line in SAID]) == {
        "is_root": True,
        "skew_s": -0.5,
        "unit": Unit("loaded", "act[31mive", "", "", 0, None),
        "disk_free_bytes": 50 * 1024,
        "certificate_error": "its certificate can't be read",
        "files": {"a.safetensors": 12},
        "sums": {},
    }


@pytest.mark.parametrize("lines", [[], ["end of nothing"], ["\0" * 50], SAID[:-1]])
def test_answers_that_break_off_are_a_finding(lines):
    assert "stopped early" in parse([(1.0, line) for line in lines])["ssh_error"]


def cluster_of(boards: Boards, plan, path, ssh=True) -> ClusterFile:
    access = {name: SshAccess("127.0.0.1", "edge") for name in boards.addresses} if ssh else None
    file = ClusterFile.make(boards.folder, boards.addresses, plan, ssh=access)
    file.write(path)
    return file


def test_examine_puts_wire_and_ssh_together(tmp_path):
    async def go():
        (tmp_path / "model").mkdir()
        sham = Sham(tmp_path / "sham")
        (sham.model / "layer-0001.safetensors").write_bytes(bytes(7) + b"x")
        (sham.model / "layer-0004.safetensors").unlink()
        steps, told = [], []
        async with Boards(tmp_path / "model", 2, whole_manifest()) as boards:
            plan = await boards.form((0, 3, 6))
            file = cluster_of(boards, plan, tmp_path / "cluster.json")
            meter = Meter(lambda what, done, total: steps.append((done, total)))
            facts = await examine(file, tmp_path / "cluster.json", run=sham.run, meter=meter, tell=told.append)
        here, b0, b1 = facts
        assert here.board == HERE and diagnose(here) == []
        for f in (b0, b1):
            assert f.version == f.our_version == __version__ and f.wire_error is f.ssh_error is f.tcp_error is None
            assert f.ram_total_bytes and f.unit.active == "active" and f.need_bytes
        assert ("damaged: layer-0001.safetensors" in [x.what for x in diagnose(b0)]) and not told
        assert "it lacks layer-0004.safetensors" in [x.what for x in diagnose(b1)]
        assert "it lacks layer-0004.safetensors" not in [x.what for x in diagnose(b0)]  # it isn't b0's
        assert steps and steps[-1][0] == steps[-1][1]

    run(go())


def test_a_dead_board_and_a_board_without_ssh_do_not_keep_the_others(tmp_path):
    def no_ssh(board, access, script, on_line, **options):
        raise BoardError(f"board {board} (127.0.0.1:22): SSH: connection refused, is sshd running?", board)

    async def go():
        (tmp_path / "model").mkdir()
        async with Boards(tmp_path / "model", 2, whole_manifest()) as boards:
            plan = await boards.form((0, 3, 6))
            file = cluster_of(boards, plan, tmp_path / "cluster.json")
            await boards.stop(1)
            return await examine(file, tmp_path / "cluster.json", run=no_ssh, quick=True)

    _, b0, b1 = run(go())
    assert [f.what for f in diagnose(b0)] == ["SSH: connection refused, is sshd running?"]
    assert b0.version == __version__
    (finding,) = diagnose(b1)
    assert finding.what.startswith("can't be reached: 127.0.0.1:")


def test_a_board_that_computes_otherwise_than_the_others_is_told(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            for agent, path in zip(boards.agents, ("native", "generic"), strict=True):
                agent.stage.section.path = path
            cluster = ClusterFile.make(tmp_path, boards.addresses, plan)
            return await examine(cluster, tmp_path / "cluster.json", quick=True)

    _, b0, b1 = run(go())
    assert (b0.path, b0.native_elsewhere) == ("native", False) and b0.kernels == "dotprod"
    assert "compute" not in [f.about for f in diagnose(b0)]
    assert [f.what for f in diagnose(b1) if f.about == "compute"] == [
        "it computes its layers slowly, with transformers, while other boards compute natively"
    ]


def test_only_the_boards_named_are_asked(tmp_path):
    asked_boards = []

    def spy(board, access, script, on_line, **options):
        asked_boards.append((board, script == QUICK_SCRIPT, options["deadline_s"]))
        raise BoardError(f"board {board}: no", board)

    async def go():
        (tmp_path / "model").mkdir()
        async with Boards(tmp_path / "model", 2) as boards:
            file = cluster_of(boards, await boards.form((0, 3, 6)), tmp_path / "cluster.json")
            return await examine(file, tmp_path / "cluster.json", ("b1",), run=spy, quick=True)

    assert [f.board for f in run(go())] == [HERE, "b1"]
    assert asked_boards == [("b1", True, examining._SCRIPT_S)]


def test_boards_that_cannot_reach_each_other_are_found_at_the_board_to_look_at_first(tmp_path, monkeypatch):
    closed = block(monkeypatch, "b0>b1")

    async def go():
        (tmp_path / "model").mkdir()
        async with Boards(tmp_path / "model", 3) as boards:
            path = tmp_path / "cluster.json"
            file = cluster_of(boards, await boards.form((0, 2, 4, 6)), path, ssh=False)
            one = await examine(file, path, quick=True), await examine(file, path, ("b0",), quick=True)
            closed.update({"b2>b1", "b1>b0", "b1>b2", "b0>b2", "b2>b0"})
            none = await examine(file, path, quick=True)
            closed.clear()
            return *one, none, await examine(file, path, quick=True)

    def told(facts) -> dict[str, list[str]]:
        return {f.board: [x.what.split(" at ")[0] for x in diagnose(f) if x.about == "pairs"] for f in facts}

    one, named, none, good = run(go())
    assert told(one) == {HERE: [], "b0": [], "b1": ["b0 can't reach b1"], "b2": []}
    assert told(named) == {HERE: [], "b0": ["b0 can't reach b1"]}  # b1 isn't looked at
    assert [len(told(none)[b]) for b in (HERE, "b0", "b1", "b2")] == [1, 0, 0, 0]
    assert told(good) == {HERE: [], "b0": [], "b1": [], "b2": []}


def test_a_local_cluster_has_its_shards_verified_here(tmp_path):
    async def go():
        (tmp_path / "model").mkdir()
        async with Boards(tmp_path / "model", 2, whole_manifest()) as boards:
            (tmp_path / "model" / "head.safetensors").write_bytes(bytes(7) + b"x")
            file = cluster_of(boards, await boards.form((0, 3, 6)), tmp_path / "cluster.json", ssh=False)
            return await examine(file, tmp_path / "cluster.json")

    here, b0, b1 = run(go())
    assert [f.what for f in diagnose(here)] == ["damaged: head.safetensors"]
    assert diagnose(b0) == diagnose(b1) == []


def test_this_machines_own_troubles(tmp_path):
    plan = make_plan(replace(make_manifest(), sha256="0" * 64), (0, LAYERS))
    file = ClusterFile.make(tmp_path / "nowhere", {"b0": ("127.0.0.1", 1)}, plan, tls=tmp_path / "tls")
    here, b0 = run(examine(file, tmp_path / "cluster.json", quick=True))
    abouts = {f.about: f.what for f in diagnose(here)}
    assert "manifest.json" in abouts["shards"] and "cert.pem" in abouts["certificates"]
    assert diagnose(b0) == []  # not asked without a certificate: that is no trouble of the board's


def test_the_scripts_are_fixed_text_that_sh_can_read():
    for script in (SCRIPT, QUICK_SCRIPT):
        done = subprocess.run(["sh", "-n"], input=script.encode(), capture_output=True, timeout=10)
        assert done.returncode == 0 and not done.stderr
        assert script.isascii() and script.endswith("echo end\n")


def test_threads_of_boards_that_hang_do_not_hold_the_program(tmp_path):
    code = (
        "import asyncio, time\n"
        "from edgellm.controller.examine import in_thread\n"
        "async def go():\n"
        "    await asyncio.wait_for(in_thread(time.sleep, 60), 0.1)\n"
        "try:\n    asyncio.run(go())\nexcept TimeoutError:\n    print('given up')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.stdout == "given up\n"
