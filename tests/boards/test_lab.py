"""The lab keeps its promises: what the other tests do to boards really happens to them."""

import re
import subprocess
import time

import pytest

from tests.boards.harness import HOME, LAB, NUMBER, PORT, Board, figure, lab, wait_for


@pytest.fixture(scope="module")
def board(lab_up):
    """A board with 1500 MB of RAM and a disk of 700 MB."""
    board = Board(15)
    board.destroy()
    began = time.monotonic()
    board.up(memory=1500, disk=700)
    figure("a board boots", time.monotonic() - began)
    yield board
    board.destroy()


def test_a_board_has_a_running_systemd_and_a_user_with_sudo(board):
    assert board.ssh("systemctl is-system-running --wait") == "running\n"
    assert board.root("id -un; hostname") == "root\nboard15\n"


def test_a_board_sees_its_own_memory_and_can_take_no_more(board):
    def total():
        return int(re.search(r"MemTotal:\s+(\d+) kB", board.ssh("cat /proc/meminfo"))[1]) // 1024

    assert total() == 1500
    unit = "systemd-run --quiet --wait --pipe --collect -p ProtectKernelTunables=yes --unit=edgellm-probe"
    assert f"{1500 * 1024} kB" in board.root(f"{unit} grep MemTotal /proc/meminfo")
    board.memory(800)
    assert total() == 800
    board.root("systemd-run --quiet --wait --pipe --unit=hungry python3 -c 'bytearray(1 << 30)'", check=False)
    assert board.root("systemctl show -P Result hungry").strip() in ("oom-kill", "signal")  # cgroup v1 can't tell why
    board.memory(1500)


def test_a_units_memory_limit_holds(board):
    limited = "systemd-run --quiet --wait -p MemoryMax=100M python3 -c"
    assert board.root(f"{limited} 'bytearray(50 << 20)'; echo $?") == "0\n"
    assert board.root(f"{limited} 'bytearray(200 << 20)'; echo $?") != "0\n"


def test_power_loss_loses_what_was_not_synced(board):
    board.ssh("echo kept > kept; sync; head -c 3000000 /dev/urandom > written; mv kept renamed")
    board.kill()
    assert not board.is_up() and board.pids("ssh.service") == []
    board.up()
    assert board.ssh("ls").split() == ["kept"]
    assert board.ssh("cat kept") == "kept\n"


def test_a_clean_reboot_loses_nothing(board):
    board.ssh("echo kept > unsynced")
    boot = board.ssh("cat /proc/sys/kernel/random/boot_id; systemctl show -P UserspaceTimestampMonotonic")
    board.reboot()
    assert board.ssh("cat unsynced") == "kept\n"
    assert board.ssh("cat /proc/sys/kernel/random/boot_id; systemctl show -P UserspaceTimestampMonotonic") != boot


def test_a_cut_cable_and_a_healed_one(board):
    reach = [LAB, "in", "timeout", "2", "bash", "-c", f"exec 3<>/dev/tcp/{board.host}/22"]
    board.cut()
    assert subprocess.run(reach, stderr=subprocess.DEVNULL, timeout=10).returncode != 0
    board.heal()
    wait_for(lambda: subprocess.run(reach, stderr=subprocess.DEVNULL, timeout=10).returncode == 0, 10, "cable")


def test_a_firewall_on_a_board_drops_or_rejects_what_comes_to_the_agents_port(board):
    def reach(port=PORT) -> int:
        command = [LAB, "in", "timeout", "2", "bash", "-c", f"exec 3<>/dev/tcp/{board.host}/{port}"]
        return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=10).returncode

    board.root(f"systemd-run --quiet --unit=listening python3 -m http.server {PORT}")
    wait_for(lambda: reach() == 0, 20, "listener")
    board.block(None)
    assert reach() == 124 and reach(22) == 0  # no answer at all
    board.unblock()
    assert reach() == 0
    board.block(None, "reject")
    assert reach() == 1
    board.unblock()
    board.block(Board(16))  # another board
    assert reach() == 0
    board.heal()
    board.root("systemctl stop listening")


def test_a_board_reaches_out_only_with_an_uplink(board):
    out = "timeout 5 bash -c 'getent ahostsv4 deb.debian.org >&2 && exec 3<>/dev/tcp/deb.debian.org/80' 2>&1; echo $?"
    began = time.monotonic()
    assert board.ssh(out).splitlines()[-1] != "0"
    assert time.monotonic() - began < 5
    board.uplink(True)
    assert board.ssh(out).splitlines()[-1] == "0"
    board.uplink(False)
    assert board.ssh(out).splitlines()[-1] != "0"


def test_a_full_disk(board):
    assert 500 < int(board.ssh("df --output=avail -B1M / | tail -1")) < 700
    board.fill(20)
    assert 15 <= int(board.ssh("df --output=avail -B1M / | tail -1")) <= 25
    assert "No space left" in board.ssh("head -c 50M /dev/zero 2>&1 > more; rm more full")


def test_a_clock_that_is_off(board):
    def seconds_off():
        seen = board.ssh("date +%s; python3 -c 'import time; print(int(time.time()))'").split()
        assert abs(int(seen[0]) - int(seen[1])) <= 1
        return int(seen[0]) - time.time()

    board.clock(-7200)
    assert -7205 < seconds_off() < -7195
    board.clock(0)
    assert -5 < seconds_off() < 5


def test_a_card_that_fails_is_read_only_until_the_next_boot(board):
    board.readonly()
    assert "Read-only file system" in board.ssh("touch x 2>&1", check=False)
    assert board.ssh("touch /tmp/x && echo fine") == "fine\n"
    board.kill()
    board.up()
    board.ssh("touch x")


def test_link_speed(board):
    size = 4_000_000

    def seconds():
        began = time.monotonic()
        board.ssh(f"head -c {size} /dev/zero")
        return time.monotonic() - began

    free = seconds()
    lab("shape", board.number, "10mbit")
    slow = seconds()
    lab("shape", board.number, "off")
    assert slow > size * 8 / 10e6 * 0.8 > free


def test_bare_boards_have_no_python(lab_up):
    board = Board(16)
    board.destroy()
    board.up(memory=512, image="bare")
    try:
        assert board.ssh("ls /usr/bin/python* /usr/bin/rsync 2>/dev/null", check=False) == ""
    finally:
        board.destroy()


def test_a_destroyed_board_leaves_nothing(lab_up):
    board = Board(17)
    board.destroy()
    board.up(memory=256)
    pids = [int(p) for p in lab("pids", 17).split()]
    assert pids
    board.destroy()
    assert not board.is_up() and lab("pids", 17) == ""
    lab_name = f"eboards_{NUMBER}"
    looks = (["losetup", "-a"], ["ip", "netns"], ["find", "/sys/fs/cgroup", "-path", f"*{lab_name}/17*"])
    left = "".join(subprocess.run(look, capture_output=True, text=True, timeout=10).stdout for look in looks)
    assert f"{HOME}/boards/17/" not in left and f"{lab_name}.17" not in left and f"{lab_name}/17" not in left
