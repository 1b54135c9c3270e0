"""Scripts over SSH, against a server on loopback: host keys, logins, lines, limits, deadlines, hostile boards."""

import os
import socket
import threading
import time

import pytest

from edgellm.controller.ssh import run_script
from edgellm.errors import BoardError
from edgellm.manager.cluster_file import SshAccess
from tests.controller.sshd import Sshd


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home without an ssh-agent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path


def login(sshd: Sshd, home, **changes) -> SshAccess:
    """How to reach it, with its user's key in a file."""
    key = home / "key"
    if not key.exists():
        sshd.user_key.write_private_key_file(str(key))
    return SshAccess(**{"host": "127.0.0.1", "user": "edge", "port": sshd.port, "key": str(key), **changes})


def run(access: SshAccess, script: str = "true", **options):
    """(how it ended, its lines, what was told)."""
    lines, told = [], []
    done = run_script("pi1", access, script, lines.append, **{"deadline_s": 20, "tell": told.append, **options})
    return done, lines, told


def refusal(access: SshAccess, **options) -> str:
    with pytest.raises(BoardError) as caught:
        run(access, **options)
    assert caught.value.board == "pi1" and "\n" not in str(caught.value)
    assert str(caught.value).startswith("board pi1")
    return str(caught.value)


def test_a_script_runs_and_its_lines_come_back(home):
    with Sshd() as sshd:
        script = "echo one\nprintf 'two\\nthree'\necho oops >&2\nexit 3"
        done, lines, _ = run(login(sshd, home), script)
        assert (done.code, done.stderr, lines) == (3, "oops\n", ["one", "two", "three"])


def test_a_script_that_reads_stdin_does_not_eat_itself(home):
    with Sshd() as sshd:
        assert run(login(sshd, home), "cat\necho after")[1] == ["after"]


def test_a_new_host_key_is_taken_told_and_written_down(home):
    (home / ".ssh").mkdir()
    known = home / ".ssh" / "known_hosts"
    known.write_text("# mine\nelsewhere ssh-rsa rubbish")  # and no line end
    with Sshd() as sshd:
        access = login(sshd, home)
        told = run(access)[2]
        assert len(told) == 1 and "pi1" in told[0] and "is new" in told[0] and sshd.host_key.fingerprint in told[0]
        key = sshd.host_key
        line = f"[127.0.0.1]:{sshd.port} {key.get_name()} {key.get_base64()}"
        assert known.read_text().splitlines() == ["# mine", "elsewhere ssh-rsa rubbish", line]
        assert run(access)[2] == []


def test_the_first_known_hosts_is_the_owners_alone(home):
    with Sshd() as sshd:
        run(login(sshd, home))
    assert (home / ".ssh").stat().st_mode & 0o777 == 0o700
    assert (home / ".ssh" / "known_hosts").stat().st_mode & 0o777 == 0o600


def test_a_changed_host_key_is_refused_before_any_login(home):
    with Sshd() as sshd:
        access = login(sshd, home)
        run(access)
        known = (home / ".ssh" / "known_hosts").read_text()
        sshd.host_key = type(sshd.host_key).generate()
        text = refusal(access)
        assert "host key has changed" in text and f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'" in text
        assert (home / ".ssh" / "known_hosts").read_text() == known


@pytest.mark.parametrize("hashed", [False, True])
def test_of_several_keys_of_a_host_in_known_hosts_each_counts(home, hashed):
    import paramiko

    with Sshd() as sshd:
        name = f"[127.0.0.1]:{sshd.port}"
        name = paramiko.HostKeys.hash_host(name) if hashed else name
        others = [type(sshd.host_key).generate() for _ in range(2)]
        lines = [f"{name} {key.get_name()} {key.get_base64()}\n" for key in (others[0], sshd.host_key, others[1])]
        (home / ".ssh").mkdir()
        (home / ".ssh" / "known_hosts").write_text("".join(lines))
        assert run(login(sshd, home))[2] == []
        (home / ".ssh" / "known_hosts").write_text(lines[0] + lines[2])
        assert "has changed" in refusal(login(sshd, home))


def test_a_known_host_in_hashed_form_counts(home):
    import paramiko

    with Sshd() as sshd:
        hashed = paramiko.HostKeys.hash_host(f"[127.0.0.1]:{sshd.port}")
        (home / ".ssh").mkdir()
        for key, known in ((sshd.host_key, True), (paramiko.ECDSAKey.generate(), False)):
            (home / ".ssh" / "known_hosts").write_text(f"{hashed} {key.get_name()} {key.get_base64()}\n")
            if known:
                assert run(login(sshd, home))[2] == []
            else:
                assert "has changed" in refusal(login(sshd, home))


def test_the_users_ssh_config_counts(home):
    with Sshd() as sshd:
        access = login(sshd, home)
        (home / ".ssh").mkdir()
        config = home / ".ssh" / "config"
        config.write_text(
            f"Host pi\n HostName 127.0.0.1\n Port {sshd.port}\n User edge\n IdentityFile {access.key}\n"
            f" UserKnownHostsFile {home}/mine\n"
        )
        assert run(SshAccess("pi"))[0].code == 0
        assert (home / "mine").exists() and not (home / ".ssh" / "known_hosts").exists()
        (home / "mine").unlink()
        config.write_text(config.read_text() + " StrictHostKeyChecking yes\n")
        assert "not in known_hosts" in refusal(SshAccess("pi"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"user": "root"}, "SSH refuses root with key"),
        ({"key": "/nowhere/key"}, "SSH key /nowhere/key: no such file or directory"),
        ({"key": None}, "no SSH key to use"),
        ({"key": os.devnull}, "not a private key that can be read"),
        ({"host": "no-such-board.invalid"}, "the name is not known"),
    ],
)
def test_logins_that_fail_say_why(home, changes, expected):
    with Sshd() as sshd:
        assert expected in refusal(login(sshd, home, **changes))


def test_a_key_with_a_passphrase_is_left_to_the_agent(home):
    with Sshd() as sshd:
        sshd.user_key.write_private_key_file(str(home / "locked"), password="secret")
        assert "ssh-add" in refusal(login(sshd, home, key=str(home / "locked")))


def test_nobody_listens(home):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "connection refused" in refusal(SshAccess("127.0.0.1", "edge", port))


def test_what_listens_is_no_ssh(home):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n\x1b[31m" * 200)

        thread = threading.Thread(target=talk)
        thread.start()
        text = refusal(SshAccess("127.0.0.1", "edge", server.getsockname()[1]))
        thread.join(10)
    assert "SSH failed" in text and "\x1b" not in text


def test_a_script_past_its_deadline(home):
    over = threading.Event()

    def slow(command, script, channel):
        over.wait(20)
        return 0

    with Sshd(slow) as sshd:
        assert "not done over SSH within 0.5 s" in refusal(login(sshd, home), deadline_s=0.5)
        over.set()


def test_a_board_that_talks_without_end(home):
    def endless(command, script, channel):
        while True:
            channel.sendall(b"x" * 30000 + b"\n")

    with Sshd(endless) as sshd:
        assert "expected at most 100000" in refusal(login(sshd, home), max_bytes=100_000)


def test_a_line_without_end_is_cut(home):
    def one_line(command, script, channel):
        channel.sendall(b"y" * 300_000 + b"\nnext\r\n\xff\n")
        return 0

    with Sshd(one_line) as sshd:
        done, lines, _ = run(login(sshd, home))
        assert [len(line) for line in lines] == [1 << 16, 4, 1] and lines[1:] == ["next", "\ufffd"]


def test_a_board_that_is_lost_in_between(home):
    with Sshd(lambda command, script, channel: (channel.sendall(b"half\n"), sshd.hang_up(), None)[2]) as sshd:
        assert "SSH connection lost" in refusal(login(sshd, home))


def test_lines_come_as_they_are_said_until_told_to_stop(home):
    stop, seen = threading.Event(), []

    def follow(command, script, channel):
        for i in range(1000):
            channel.sendall(f"line {i}\n".encode())
            time.sleep(0.02)
        return 0

    def on_line(line):
        seen.append(line)
        if len(seen) == 3:
            stop.set()

    with Sshd(follow) as sshd:
        run_script("pi1", login(sshd, home), "", on_line, deadline_s=None, max_bytes=None, stop=stop)
        assert seen[:3] == ["line 0", "line 1", "line 2"] and len(seen) < 1000
