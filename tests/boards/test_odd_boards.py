"""Boards as owners have them: strict, noisy, small, half set up. Each is deployed, or refused in a useful sentence."""


import json
import sys

import pytest

from tests.boards.conftest import CACHE, KEEP, PROMPT, new_controller
from tests.boards.harness import BIN, ROOT, Board, Controller, figure
from tests.boards.test_bad_inventory import sentence

NOISE = r"printf 'Welcome home!\nIP: 192.168.1.7\nload: '; echo 'bash: warning: setlocale: LC_ALL' >&2"
SPARE_MB = 512


def login(board: Board, home: str, *lines: str) -> None:
    """Let every login run these lines first, also one that only runs a command."""
    script, file = "\n".join(lines), f"{home}/.bashrc"
    board.root(f"cp {file} {file}.old; cat - {file}.old >{file} <<'END'\n{script}\nEND")


class Odd:
    """Three boards that can be used, and four that can't."""

    def __init__(self):
        self.strict, self.roots, self.small = Board(21), Board(22), Board(23)
        self.expired, self.hanging, self.full, self.terminal = Board(24), Board(25), Board(26), Board(29)
        self.good = (self.strict, self.roots, self.small)
        self.bad = (self.expired, self.hanging, self.full, self.terminal)
        self.boards = (*self.good, *self.bad)
        self.controller = new_controller("odd")

    def up(self) -> None:
        for board in self.boards:
            board.destroy()
            board.up(memory=1536, disk=2048 if board is self.small else None)
        self.small.fill(SPARE_MB)
        # Files are for their owner alone, /tmp is full and runs nothing, and a login prints before it does anything.
        self.strict.root("mount -o remount,noexec,size=1m /tmp; head -c 2M /dev/zero >/tmp/full", check=False)
        login(self.strict, "/home/edge", "umask 077", NOISE)
        self.roots.root("cp -r /home/edge/.ssh /root/ && chown -R root:root /root/.ssh; printf 'Port 22\nPort 2222\n' "
                        ">/etc/ssh/sshd_config.d/ports.conf; systemctl restart ssh")  # fmt: skip
        login(self.roots, "/root", "umask 077", NOISE)
        self.roots.root("mv /usr/bin/sudo /usr/bin/no-sudo")
        self.full.root("mkdir /var/lib/edgellm; mount -t tmpfs -o size=30m tmpfs /var/lib/edgellm")
        login(self.hanging, "/home/edge", "[ -e /tmp/patient ] || exec sleep 3600")
        self.expired.root("chage -d 0 edge")
        self.terminal.root("echo 'Defaults requiretty' >/etc/sudoers.d/terminal")

    def inventory(self, *boards: Board, **variables) -> Controller:
        root = "ansible_user=root ansible_port=2222"
        per_board = {self.strict: f"ansible_host={self.strict.host6}", self.roots: root}
        options = {"edgellm_objective": "throughput", "edgellm_threads": 1, **variables}
        self.controller.inventory(list(boards), per_board, **options)
        return self.controller


@pytest.fixture(scope="module")
def odd(lab_up):
    boards = Odd()
    if not (KEEP and all(board.is_up() for board in boards.boards)):
        boards.up()
    yield boards
    for board in () if KEEP else boards.boards:
        board.destroy()


@pytest.fixture(scope="module")
def played(odd):
    return odd.inventory(*odd.boards).deploy("-e", "preflight_seconds=15")


def test_odd_boards_are_deployed_and_the_others_named(odd, played, reference):
    assert played.rc != 0
    assert set(odd.controller.plan()) == {board.name for board in odd.good}
    answer = odd.controller.ask(PROMPT, 20)
    assert answer["tokens"] == reference["tokens"][:20]
    sentence(played.text, "board24", "must change its password", "chage")
    sentence(played.text, "board25", "SSH works, but a command was not done after 25 s")
    sentence(played.text, "board26", "31 MB free on /var/lib/edgellm", "edgellm needs", "MB there")
    sentence(played.text, "board29", "sudo demands a terminal", "!requiretty")
    assert played.touched(*odd.bad) == dict.fromkeys((board.name for board in odd.bad), 0)
    figure("deploy: three odd boards, and four that can't be used", played.seconds)


@pytest.mark.boards_all
def test_a_second_deploy_of_odd_boards_changes_nothing(odd, played):
    again = odd.inventory(*odd.good).deploy().good()
    assert again.changed(*odd.good) == dict.fromkeys((board.name for board in odd.good), 0)


@pytest.mark.boards_all
def test_an_agent_that_cannot_be_executed_is_not_started_for_ever_and_healed(odd, played):
    """As after an upgrade of the board's system, which takes its Python away."""
    board = odd.small
    board.root("ln -sfn /nowhere/python /opt/edgellm/current/bin/python; systemctl restart edgellm-agent", check=False)
    shown = board.root("systemctl show -p ActiveState -p ExecMainStatus -p NRestarts edgellm-agent").split()
    assert set(shown) == {"ActiveState=failed", "ExecMainStatus=203", "NRestarts=0"}
    odd.inventory(*odd.good).deploy().good()
    assert board.root("systemctl is-active edgellm-agent") == "active\n"
    assert odd.controller.ask(PROMPT, 3)["tokens"]


@pytest.mark.boards_all
def test_a_first_agent_that_does_not_start_says_why_and_the_next_deploy_installs_it_again(extra):
    board, controller = extra(27, memory=1536), new_controller("failing")
    controller.inventory([board], edgellm_threads=1)
    drop_in = "/etc/systemd/system/edgellm-agent.service.d"
    board.root(f"mkdir {drop_in}; printf '[Service]\nExecStart=\nExecStart=/nowhere/edgellm\n' >{drop_in}/broken.conf")
    played = controller.deploy()
    assert played.rc != 0
    sentence(played.text, "board27: the agent", "there is no previous version", "can't execute /nowhere/edgellm")
    said = board.ssh("systemctl is-active edgellm-agent; systemctl is-enabled edgellm-agent", check=False)
    assert said.split() == ["failed", "disabled"]
    assert board.root("ls /opt/edgellm/versions/*/.complete", check=False) == ""
    board.root(f"rm -r {drop_in}; systemctl daemon-reload")
    controller.deploy().good()
    assert board.root("ls /opt/edgellm/versions/*/.complete").count("\n") == 1
    assert controller.deploy().good().changed(board) == {"board27": 0}


@pytest.mark.boards_all
def test_the_controller_may_stand_on_a_board(lab_up, extra):
    """It brings an environment of its own, whose Python lies in a home that the agent's unit doesn't see."""
    python = (sys.base_prefix,) if sys.base_prefix != "/usr" else ()
    board, controller = extra(28, memory=3072, share=(ROOT, CACHE.resolve(), *python)), new_controller("here")
    kind = ("--machine", "x86_64", "--python", "3.11")
    controller.edgellm("controller", "wheelhouse", *kind, "--source", ROOT, timeout=300)
    line = f"board28 ansible_connection=local ansible_host={board.host} edgellm_threads=1"
    board.root(f"printf '[boards]\n{line}\n' >/root/inventory.ini")
    env = {"HOME": "/root", "XDG_CACHE_HOME": CACHE.resolve(), "PATH": f"{BIN}:/usr/bin:/bin:/usr/sbin:/sbin"}
    here = f"cd {ROOT} && env " + " ".join(f"{name}={value}" for name, value in env.items())
    played = board.root(f"{here} ansible-playbook -i /root/inventory.ini deploy.yml", timeout=300)
    assert "unreachable=0    failed=0" in played
    assert board.root("readlink -f /opt/edgellm/current/bin/python").startswith("/usr/bin/python3")
    shown = board.root("systemctl show -p ActiveState -p NRestarts edgellm-agent").split()
    assert set(shown) == {"ActiveState=active", "NRestarts=0"}
    answer = json.loads(board.root(f"{here} edgellm ask '{PROMPT}' --temperature 0 --max-tokens 5 --json", timeout=60))
    assert len(answer["tokens"]) == 5
    again = board.root(f"{here} ansible-playbook -i /root/inventory.ini deploy.yml", timeout=300)
    assert "changed=0    unreachable=0    failed=0" in again
