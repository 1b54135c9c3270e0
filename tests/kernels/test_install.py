"""tests/kernels/install: silent if nothing is missing, installs where it may, else says what is skipped."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("install")
TOOLS = {"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}
GET = "apt-get install -y --no-install-recommends"


@pytest.fixture
def machine(tmp_path):
    """Runs the script on a machine that has these commands only, each a line of shell: (done, apt-get calls)."""

    def run(ci=False, **commands):
        log = tmp_path / "log"
        for name, line in {"id": "echo 0", **commands}.items():
            file = tmp_path / "bin" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"#!/bin/sh\n{line}\n".replace("LOG", str(log)))
            file.chmod(0o755)
        environment = {"PATH": str(tmp_path / "bin"), **({"CI": "1"} if ci else {})}
        done = subprocess.run(["/bin/sh", SCRIPT], capture_output=True, text=True, timeout=20, env=environment)
        return done, log.read_text().splitlines() if log.exists() else []

    return run


APT = {"apt-get": 'echo "$*" >>LOG; echo chatter'}


def test_nothing_is_said_or_done_if_nothing_is_missing(machine):
    done, asked = machine(**dict.fromkeys(TOOLS, "true"), **APT)
    assert (done.returncode, done.stdout, done.stderr, asked) == (0, "", "", [])


@pytest.mark.parametrize("there", TOOLS)
def test_root_gets_what_is_missing_and_no_more(machine, there):
    done, asked = machine(**{there: "true"}, **APT)
    (wanted,) = [package for tool, package in TOOLS.items() if tool != there]
    assert done.returncode == 0 and done.stderr == ""
    assert asked == ["update -qq", f"install -y --no-install-recommends {wanted} -qq"]


def test_a_user_whom_sudo_asks_no_password_gets_it_too(machine):
    done, asked = machine(id="echo 1000", sudo='[ "$1" = -n ] && shift && PATH=$PATH:/bin:/usr/bin exec "$@"', **APT)
    assert done.returncode == 0 and asked[-1].endswith("g++-aarch64-linux-gnu qemu-user -qq")


@pytest.mark.parametrize("commands", [
    {},  # no apt-get
    {"id": "echo 1000", **APT},  # no sudo
    {"id": "echo 1000", "sudo": "exit 1", **APT},  # which asks for a password
    {"apt-get": "exit 100"},  # no network
], ids=["no apt", "no sudo", "a password", "no network"])  # fmt: skip
@pytest.mark.parametrize("ci", [False, True])
def test_elsewhere_one_line_says_what_is_skipped_and_ci_fails(machine, commands, ci):
    done, asked = machine(ci, **commands)
    assert done.returncode == (1 if ci else 0) and asked == []
    assert "aarch64 kernels" in done.stderr and "are skipped" in done.stderr and done.stderr.count("\n") == 1
    assert done.stderr.endswith(f"sudo {GET} g++-aarch64-linux-gnu qemu-user\n")
