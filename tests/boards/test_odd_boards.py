"""Boards as owners have them: strict, noisy, small, half set up. Each is deployed, or refused in a useful sentence."""


import pytest

from tests.boards.conftest import PROMPT, new_controller
from tests.boards.harness import Board, Controller, figure
from tests.boards.test_bad_inventory import sentence

NOISE = r"printf 'Welcome home!\nIP: 192.168.1.7\nload: '; echo 'bash: warning: setlocale: LC_ALL' >&2"
SPARE_MB = 512


def login(board: Board, home: str, *lines: str) -> None:
    """Let every login run these lines first, also one that only runs a command."""
    script, file = "\n".join(lines), f"{home}/.bashrc"
    board.root(f"cp {file} {file}.old; cat - {file}.old >{file} <<'END'\n{script}\nEND")


class Odd:
    """Three boards that can be used, and three that can't."""

    def __init__(self):
        self.strict, self.roots, self.small = Board(21), Board(22), Board(23)
        self.expired, self.hanging, self.full = Board(24), Board(25), Board(26)
        self.good, self.bad = (self.strict, self.roots, self.small), (self.expired, self.hanging, self.full)
        self.boards = (*self.good, *self.bad)
        self.controller = new_controller("odd")

    def up(self) -> None:
        for board in self.boards:
            board.destroy()
            board.up(memory=1536, disk=2048 if board is self.small else None)
        self.small.fill(SPARE_MB)
        # Root keeps its files to itself, /tmp is small and runs nothing, and a login prints before it does anything.
        self.strict.root("mount -o remount,noexec,size=40m /tmp")
        login(self.strict, "/home/edge", "umask 077", NOISE)
        self.roots.root("cp -r /home/edge/.ssh /root/ && chown -R root:root /root/.ssh; printf 'Port 22\nPort 2222\n' "
                        ">/etc/ssh/sshd_config.d/ports.conf; systemctl restart ssh")  # fmt: skip
        login(self.roots, "/root", "umask 077", NOISE)
        self.roots.root("mv /usr/bin/sudo /usr/bin/no-sudo")
        self.full.root("mount -o remount,size=4m /tmp")
        login(self.hanging, "/home/edge", "[ -e /tmp/patient ] || exec sleep 3600")
        self.expired.root("chage -d 0 edge")

    def inventory(self, *boards: Board, **variables) -> Controller:
        root = "ansible_user=root ansible_port=2222"
        per_board = {self.strict: f"ansible_host={self.strict.host6}", self.roots: root}
        options = {"edgellm_objective": "throughput", "edgellm_threads": 1, **variables}
        self.controller.inventory(list(boards), per_board, **options)
        return self.controller


@pytest.fixture(scope="module")
def odd(lab_up):
    boards = Odd()
    boards.up()
    yield boards
    for board in boards.boards:
        board.destroy()


@pytest.fixture(scope="module")
def played(odd):
    return odd.inventory(*odd.boards).deploy("-e", "preflight_seconds=20")


def test_odd_boards_are_deployed_and_the_others_named(odd, played, reference):
    assert played.rc != 0
    assert set(odd.controller.plan()) == {board.name for board in odd.good}
    answer = odd.controller.ask(PROMPT, 20)
    assert answer["tokens"] == reference["tokens"][:20]
    sentence(played.text, "board24", "must change its password", "chage")
    sentence(played.text, "board25", "SSH works, but a command was not done after 20 s")
    sentence(played.text, "board26", "4 MB free on /tmp", "needs 12 MB")
    assert played.touched(*odd.bad) == dict.fromkeys(("board24", "board25", "board26"), 0)
    figure("deploy: three odd boards, and three that can't be used", played.seconds)


@pytest.mark.boards_all
def test_a_second_deploy_of_odd_boards_changes_nothing(odd, played):
    again = odd.inventory(*odd.good).deploy().good()
    assert again.changed(*odd.good) == dict.fromkeys((board.name for board in odd.good), 0)
