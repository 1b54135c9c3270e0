"""Scripts for boards: how they travel, what comes back, and that they do here what they should there."""

import io
import subprocess
import tarfile

import pytest

from tests.playbooks.plugins import ROOT, plugin

run = plugin("action", "edgellm_run")


def played(scripts: dict, data: bytes = b"\n", seconds: int = 20) -> subprocess.CompletedProcess:
    return subprocess.run(["sh", "-c", run.command(scripts, seconds)], input=data, capture_output=True, timeout=60)


def test_scripts_run_in_turn_with_their_arguments_and_the_same_input():
    awkward = "printf '%s\\n' \"$1\" '$2' '\\\\n'\ncat\n"
    done = played({"one": (awkward, ["a b'c"]), "two": ("head -c 3; printf tail", [])}, b"some text\n")
    assert done.returncode == 0
    assert run.parse(done.stdout.decode()) == {"one": "a b'c\n$2\n\\\\n\nsome text\n", "two": "somtail"}


def test_the_first_script_that_fails_ends_them():
    done = played({"one": ("echo before; exit 3", []), "two": ("echo never", [])})
    assert done.returncode == 3 and run.parse(done.stdout.decode()) == {"one": "before\n"}


def test_a_script_that_does_not_end_is_ended():
    assert played({"slow": ("exec sleep 30", [])}, seconds=1).returncode == 124


def test_one_script_gets_bytes():
    stream = run.tar_stream([], {"unit": "x\n"})
    assert run.parse(played({"sum": ("tar -xOf - unit", [])}, stream).stdout.decode()) == {"sum": "x\n"}


def test_what_a_login_prints_is_no_part_of_it():
    noise = "Welcome!\r\n\r\nedgellm_begin=one\r\nfine\r\n\r\nedgellm_end=0\r\n"
    assert run.parse(noise) == {"one": "fine\r\n"}


def test_keys_travel_for_their_owner_alone(tmp_path):
    (tmp_path / "key.pem").write_text("secret")
    with tarfile.open(fileobj=io.BytesIO(run.tar_stream([str(tmp_path / "key.pem")], {}))) as archive:
        [member] = archive.getmembers()
    assert (member.name, member.mode, member.size) == ("key.pem", 0o600, 6)


SCRIPTS = sorted((ROOT / "ansible/roles").rglob("*.sh"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_scripts_fit_into_one_argument(path):
    """Linux takes at most 128 KiB, and what compare.yml reads with five of them must fit too."""
    assert path.stat().st_size < 8000
