"""argv, stdin and stdout that carry no UTF-8, that are closed, full, or read by nobody: never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import answer_to
from tests.tiny import environment

EDGELLM = [sys.executable, "-m", "edgellm"]


@pytest.fixture
def run(home, cluster):
    """Run a command in a process; (exit code, stdout, stderr). `redirect` is what a shell would do with it."""

    def run(*arguments, redirect="", stdin=b"", stdout=subprocess.PIPE, **env):
        arguments = [a if isinstance(a, bytes) else str(a).encode() for a in arguments]
        command = [*EDGELLM, *arguments]
        if redirect:
            command = ["sh", "-c", f'exec "$@" {redirect}', "sh", *command]
        own = {**environment(home), "EDGELLM_CLUSTER": str(cluster.file), **env}
        done = subprocess.run(command, input=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=60, env=own)
        assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, done.stderr.decode()
        return done.returncode, done.stdout, done.stderr.decode()

    return run


def test_arguments_that_are_no_utf8_are_one_sentence(run):
    bad, named = b"caf\xe9", ("--system", "--stop")
    for arguments, what in ((bad,), "the prompt"), *((("hi", name, bad), name) for name in named):
        code, stdout, stderr = run("ask", *arguments)
        assert (code, stdout, stderr.count("\n")) == (2, b"", 1)
        assert stderr.startswith(f"edgellm: {what} is not UTF-8 text (byte ")


def test_utf8_arguments_are_read_whatever_the_locale(run):
    """The vocabulary here has no é, and leaves it out: the answer is the one to the rest."""
    for env in ({"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "POSIX"}):
        code, stdout, stderr = run("ask", "Why\u00e9?", "--max-tokens", "20", **env)
        assert (code, stdout.decode()) == (0, answer_to("Why?", 20) + "\n"), stderr


NO_UTF8_NAMES = [
    ("split", b"caf\xe9", "--out", "out"), ("plan", "--manifest", b"caf\xe9", "--board", "a=1GB"),
    ("ask", "hi", "--cluster", b"caf\xe9"), ("status", "--cluster", b"caf\xe9"), ("doctor", b"caf\xe9"),
    ("logs", b"caf\xe9"), ("rebalance", "--cluster", b"caf\xe9"), ("verify", "--cluster", b"caf\xe9"),
    ("local", "up", "--model", b"caf\xe9"), ("local", "down", "--cluster", b"caf\xe9"), (b"caf\xe9",),
    ("agent", "--shards", b"caf\xe9"), ("plan", "--manifest", ".", "--board", b"caf\xe9=1GB"),
    ("verify", "--prompt", b"caf\xe9"), ("controller", "model", b"caf\xe9"),
]  # fmt: skip


@pytest.mark.parametrize("arguments", NO_UTF8_NAMES, ids=lambda a: str(a[0]) + str(len(a)))
def test_names_that_are_no_utf8_are_one_sentence(run, arguments):
    code, stdout, stderr = run(*arguments, HF_HUB_OFFLINE="1", PYTHONIOENCODING="ascii")
    assert code in (1, 2) or arguments[:2] == ("local", "down"), (stdout, stderr)
    assert stderr.count("\n") <= 2


def test_stdin_that_is_no_text_or_closed_is_one_sentence(run):
    code, stdout, stderr = run("ask", "-", stdin=b"caf\xe9")
    assert (code, stdout, stderr) == (2, b"", "edgellm: stdin is not UTF-8 text (byte 3)\n")
    for arguments in (("ask",), ("ask", "-")):
        code, stdout, stderr = run(*arguments, redirect="<&-")
        assert (code, stdout) == (2, b"") and stderr.startswith("edgellm: no prompt.") and stderr.count("\n") == 1


PRINTING = {
    "an answer": ("ask", "Why?", "--max-tokens", "20"),
    "an answer in JSON": ("ask", "Why?", "--max-tokens", "20", "--json"),
    "help": ("--help",),
    "status": ("status",),
    "local down": ("local", "down"),
}


@pytest.mark.parametrize("arguments", PRINTING.values(), ids=PRINTING)
def test_a_stdout_that_is_closed_or_full_is_one_sentence(run, arguments):
    for redirect, words in ((">&-", "stdout is closed"), (">/dev/full", "No space left on device")):
        code, _, stderr = run(*arguments, redirect=redirect)
        assert code == 1 and stderr == f"edgellm: {words}\n", (redirect, stderr)


@pytest.mark.parametrize("arguments", PRINTING.values(), ids=PRINTING)
def test_a_reader_that_is_gone_is_no_error_to_speak_of(run, arguments):
    read, write = os.pipe()
    os.close(read)
    try:
        code, _, stderr = run(*arguments, stdout=write)
    finally:
        os.close(write)
    assert (code, stderr) == (1, "")


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full"])
def test_a_stderr_that_is_closed_or_full_changes_no_answer(run, redirect):
    code, stdout, _ = run(*PRINTING["an answer"], redirect=redirect)
    assert (code, stdout.decode()) == (0, answer_to("Why?", 20) + "\n")


def test_an_error_without_a_stderr_keeps_its_exit_code_and_stdout_clean(run):
    for redirect in ("2>&-", "2>/dev/full"):
        assert run("ask", "hi", "--top-p", "7", redirect=redirect)[:2] == (2, b"")


def test_characters_that_stdout_lacks_are_replaced(run):
    code, stdout, stderr = run("status", PYTHONIOENCODING="ascii")
    assert code == 0 and b"?C" in stdout, stderr  # °C


def test_a_cluster_file_of_a_name_that_is_no_utf8_works(run, cluster, tmp_path):
    content = json.loads(Path(cluster.file).read_text())
    content["model_dir"] = str(cluster.model_dir)
    path = os.fsencode(tmp_path) + b"/caf\xe9.json"
    with open(path, "w") as f:
        json.dump(content, f)
    code, stdout, stderr = run("ask", "Why?", "--max-tokens", "20", "--cluster", path)
    assert (code, stdout.decode()) == (0, answer_to("Why?", 20) + "\n"), stderr
