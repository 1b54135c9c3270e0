"""The command line as a user and a shell see it: stdout and stderr apart, exit codes, one line an error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm import __version__
from tests.cli.commands import call, fails

# Help


@pytest.mark.parametrize(
    "command",
    [[], ["split"], ["agent"], ["plan"], ["ask"], ["local"], ["local", "up"], ["local", "down"], ["verify"],
     ["rebalance"], ["status"], ["doctor"], ["logs"]],
    ids=" ".join,
)
def test_every_command_has_help_with_a_sentence_and_an_example(command):
    result = call(*command, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    usage, example = result.stdout.index("Usage: "), result.stdout.index("Examples:")
    assert usage < example and f"edgellm {' '.join(command[:1])}" in result.stdout[example:]
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


def test_steps_of_the_playbooks_are_no_commands_for_people():
    assert "controller" not in call("--help").stdout
    assert "Examples:" in call("controller", "--help").stdout


def test_no_command_shows_the_help_on_stderr():
    for command in ([], ["local"]):
        result = call(*command)
        assert (result.exit_code, result.stdout) == (2, "") and result.stderr.count("\n") > 5


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [("transformers", ["split", "FOLDER", "--out", "OUT"], "convert"),
     ("cryptography", ["controller", "certificates", "--ca", "CA", "--manager", "ID", "--board", "p"], "controller")],
)  # fmt: skip
def test_a_package_that_is_not_installed_is_named_with_its_extra(tmp_path, package, arguments, extra):
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER" / "config.json").write_text('{"model_type": "llama"}')
    code = f"import sys; sys.modules[{package!r}] = None; from edgellm.cli import main; main({arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    said = f"this needs {package}, which is not installed. Run 'make controller', or pip install 'edgellm[{extra}]'."
    assert (done.returncode, done.stderr) == (1, f"edgellm: {said}\n")


def test_version():
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"edgellm, version {__version__}\n")


# Errors


BAD_WORDS = {
    "an empty prompt": (["ask", ""], "the prompt is empty"),
    "a blank prompt": (["ask", " \n"], "the prompt is empty"),
    "an empty pipe": (["ask"], "the prompt is empty"),
    "an unknown option": (["ask", "hi", "--temprature", "1"], "--temprature"),
    "an unknown command": (["aks"], "aks"),
    "two prompts": (["ask", "hi", "there"], "unexpected extra argument"),
    "a temperature below 0": (["ask", "hi", "--temperature", "-1"], "temperature is -1.0, expected a number from 0"),
    "a temperature of nan": (["ask", "hi", "--temperature", "nan"], "temperature is nan"),
    "no number": (["ask", "hi", "--temperature", "hot"], "'hot' is not a valid float"),
    "a top-p over 1": (["ask", "hi", "--top-p", "1.5"], "top-p is 1.5, expected a number from 0 to 1"),
    "a negative top-k": (["ask", "hi", "--top-k", "-3"], "top-k is -3"),
    "a negative min-p": (["ask", "hi", "--min-p", "-0.1"], "min-p is -0.1"),
    "a repeat penalty of 0": (["ask", "hi", "--repeat-penalty", "0"], "repeat-penalty is 0.0"),
    "a negative seed": (["ask", "hi", "--seed", "-1"], "seed is -1"),
    "a huge seed": (["ask", "hi", "--seed", str(1 << 64)], "seed is"),
    "no tokens": (["ask", "hi", "--max-tokens", "0"], "max-tokens is 0, expected at least 1"),
    "system and raw": (["ask", "hi", "--raw", "--system", "be brief"], "--raw"),
    "no address": (["agent", "--shards", ".", "--listen", "7710"], "'7710' is not an address, expected HOST:PORT"),
    "no slots": (["plan", "--manifest", ".", "--board", "a=1GB", "--slots", "0"], "0 is not in the range"),
    "an odd quantization": (["split", "x", "--out", "y", "--quantize", "int3"], "'int3' is not one of"),
    "nothing to split": (["split"], "Missing argument 'SOURCE'"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, words", BAD_WORDS.values(), ids=BAD_WORDS)
def test_bad_words_are_one_line_on_stderr_and_exit_code_2(arguments, words):
    assert words in fails(2, *arguments)


def test_stdin_that_is_no_text_is_refused():
    assert "stdin is not UTF-8 text (byte 2)" in fails(2, "ask", "-", stdin=b"hi\xff")


def test_v_adds_the_traceback(home):
    result = call("ask", "hi", "--cluster", home / "no.json", "-v")
    assert result.exit_code == 1 and "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("edgellm: cluster file ")


# The cluster file


def test_the_cluster_file_is_looked_for_in_four_places(home, monkeypatch):
    """Each place has a broken one; the error tells which was taken."""
    places = [home / "given.json", home / "variable.json", Path("cluster.json"), home / "config/edgellm/cluster.json"]
    places[3].parent.mkdir(parents=True)
    for place in places:
        place.write_text("{")
    monkeypatch.setenv("EDGELLM_CLUSTER", str(places[1]))
    assert f"cluster file {places[0]}: not JSON" in fails(1, "ask", "hi", "--cluster", places[0])
    assert f"cluster file {places[1]}: not JSON" in fails(1, "ask", "hi")
    monkeypatch.delenv("EDGELLM_CLUSTER")
    assert "cluster file cluster.json: not JSON" in fails(1, "ask", "hi")
    places[2].unlink()
    assert f"cluster file {places[3]}: not JSON" in fails(1, "ask", "hi")


def test_a_cluster_file_that_is_not_there_is_not_skipped(home, monkeypatch):
    assert "no.json: No such file" in fails(1, "ask", "hi", "--cluster", home / "no.json")
    monkeypatch.setenv("EDGELLM_CLUSTER", str(home / "no.json"))
    assert "no.json: No such file" in fails(1, "ask", "hi")
    assert "no.json: No such file" in fails(1, "verify")


def test_a_foreign_cluster_file_says_what_is_wrong(home, cluster):
    content = json.loads(cluster.file.read_text())
    content["model_dir"] = str(cluster.model_dir)
    file = home / "odd.json"
    for change, words in (
        ({"format": 9}, "format is 9"),
        ({"boards": []}, "uses board b0"),
        ({"model_dir": "/nowhere"}, "/nowhere/manifest.json"),
        ({"plan": {**content["plan"], "manifest_sha256": "0" * 64}}, "the cluster serves"),
        ({"plan": 5}, "plan"),
    ):
        file.write_text(json.dumps({**content, **change}))
        assert words in fails(1, "ask", "hi", "--cluster", file)
    assert "no cluster file" in fails(2, "verify")
