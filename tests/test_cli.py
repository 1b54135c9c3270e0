"""The command line as a user and a shell see it: stdout and stderr apart, exit codes, one line an error."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgellm import __version__
from edgellm.cli import main
from edgellm.manager.client import connect_all
from edgellm.manager.cluster import ClusterFile
from tests.fakes import Boards, generate, make_manifest, make_plan
from tests.tiny import environment, wait_until, write_tokenizer

# One token a character: the fake model's vocabulary of 97.
VOCAB = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ", "ĉ"]
TEXT = {i: {"Ġ": " ", "Ċ": "\n", "ĉ": "\t"}.get(c, c) for i, c in enumerate(VOCAB)}
CONTEXT = 3000
ASK = [sys.executable, "-m", "edgellm", "ask"]


def ids_of(text: str) -> list[int]:
    reverse = {c: i for i, c in TEXT.items()}
    return [reverse[c] for c in text]


def answer_to(prompt: str, count: int) -> str:
    return "".join(TEXT[i] for i in generate(ids_of(prompt), count))


class Pace:
    """A gate for the fake section: each of its steps takes `delay_s`."""

    delay_s = 0.0

    def wait(self, timeout: float) -> bool:
        time.sleep(self.delay_s)
        return True


class Cluster:
    """Two boards of the fake model in a thread, and the cluster file for them."""

    def __init__(self, folder: Path):
        self.model_dir, self.file, self.pace = folder / "model", folder / "cluster.json", Pace()
        self.model_dir.mkdir()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            self.boards = Boards(self.model_dir, 2, gates={"b1": self.pace})
            write_tokenizer(self.model_dir, VOCAB)
            self.call(self.boards.__aenter__())
            self.plan = self.call(self.boards.form((0, 3, 6), context=CONTEXT, slots=2, chunk=16))
            ClusterFile.make(self.model_dir, self.boards.addresses, self.plan).write(self.file)
        except BaseException:
            self.stop_loop()
            raise

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def free_slots(self) -> list[int]:
        async def ask_all():
            boards = await connect_all(self.boards.addresses)
            try:
                return [(await b.status())["section"]["free_slots"] for b in boards]
            finally:
                for board in boards:
                    board.close()

        return self.call(ask_all())

    def stop(self) -> None:
        self.call(self.boards.__aexit__())
        self.stop_loop()

    def stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home, and an empty working folder."""
    for name, value in environment(tmp_path).items():
        if name.startswith("XDG_") or name == "HOME":
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("EDGELLM_CLUSTER", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def call(*arguments, stdin=None):
    """The command in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)


def fails(code: int, *arguments, stdin=None) -> str:
    """The one line of the error."""
    result = call(*arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (code, ""), (result.output, result.exception)
    *notes, line = result.stderr.splitlines()
    assert line.startswith("edgellm: ") and not notes, result.stderr
    return line.removeprefix("edgellm: ")


# Help


@pytest.mark.parametrize(
    "command",
    [[], ["split"], ["agent"], ["plan"], ["ask"], ["local"], ["local", "up"], ["local", "down"], ["verify"],
     ["rebalance"]],
    ids=" ".join,
)
def test_every_command_has_help_with_a_sentence_and_an_example(command):
    result = call(*command, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    usage, example = result.stdout.index("Usage: "), result.stdout.index("Examples:")
    assert usage < example and f"edgellm {' '.join(command[:1])}" in result.stdout[example:]
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


def test_no_command_shows_the_help_on_stderr():
    for command in ([], ["local"]):
        result = call(*command)
        assert (result.exit_code, result.stdout) == (2, "") and result.stderr.count("\n") > 5


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
    "no address": (["agent", "--shards", ".", "--listen", "7710"], "'7710' is no address, expected HOST:PORT"),
    "no slots": (["plan", "--manifest", ".", "--board", "a=1GB", "--slots", "0"], "0 is not in the range"),
    "an odd quantization": (["split", "x", "--out", "y", "--quantize", "int3"], "'int3' is not one of"),
    "nothing to split": (["split"], "Missing argument 'SOURCE'"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, words", BAD_WORDS.values(), ids=BAD_WORDS)
def test_bad_words_are_one_line_on_stderr_and_exit_code_2(arguments, words):
    assert words in fails(2, *arguments)


def test_stdin_that_is_no_text_is_refused():
    assert "stdin is no UTF-8 text (byte 2)" in fails(2, "ask", "-", stdin=b"hi\xff")


def test_v_adds_the_traceback(home):
    result = call("ask", "hi", "--cluster", home / "no.json", "-v")
    assert result.exit_code == 1 and "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("edgellm: cluster file ")


def test_a_prompt_longer_than_the_context_is_refused_before_any_board_is_asked(home, cluster):
    nowhere = {name: ("127.0.0.1", 9 + i) for i, name in enumerate(cluster.plan.boards)}
    file = home / "nowhere.json"
    ClusterFile.make(cluster.model_dir, nowhere, cluster.plan).write(file)
    line = fails(2, "ask", "x" * (CONTEXT + 1), "--cluster", file)
    assert line.startswith(f"the prompt has {CONTEXT + 1} tokens, a slot of this cluster holds {CONTEXT}.")
    line = fails(2, "ask", "hi", "--cluster", file, "--system", "Be brief.")
    assert line == "fake has no chat template. Leave --system out."
    line = fails(1, "ask", "hi", "--cluster", file)
    assert "board b0 (127.0.0.1:9): connection refused, is its agent running?" in line


# The cluster file


def test_the_cluster_file_is_looked_for_in_four_places(home, monkeypatch):
    """Each place has a broken one; the error tells which was taken."""
    places = [home / "given.json", home / "variable.json", Path("cluster.json"), home / "config/edgellm/cluster.json"]
    places[3].parent.mkdir(parents=True)
    for place in places:
        place.write_text("{")
    monkeypatch.setenv("EDGELLM_CLUSTER", str(places[1]))
    assert f"cluster file {places[0]}: no JSON" in fails(1, "ask", "hi", "--cluster", places[0])
    assert f"cluster file {places[1]}: no JSON" in fails(1, "ask", "hi")
    monkeypatch.delenv("EDGELLM_CLUSTER")
    assert "cluster file cluster.json: no JSON" in fails(1, "ask", "hi")
    places[2].unlink()
    assert f"cluster file {places[3]}: no JSON" in fails(1, "ask", "hi")


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


# An answer


def test_ask_streams_the_answer_to_stdout_and_nothing_else(cluster):
    result = call("ask", "Why is the sky blue?", "--cluster", cluster.file, "--max-tokens", 40)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == answer_to("Why is the sky blue?", 40) + "\n"


def test_ask_takes_the_prompt_from_stdin(cluster):
    expected = answer_to("Why?\n", 20) + "\n"
    for arguments in (["-"], []):
        result = call("ask", *arguments, "--cluster", cluster.file, "--max-tokens", 20, stdin="Why?\n")
        assert (result.exit_code, result.stdout) == (0, expected)


def test_json_has_text_tokens_timings_and_the_reason(cluster):
    result = call("ask", "Why?", "--cluster", cluster.file, "--max-tokens", 20, "--seed", 7, "--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == 0 and result.stdout.count("\n") == 1
    assert answer["tokens"] == generate(ids_of("Why?"), 20) and answer["text"] == answer_to("Why?", 20)
    assert (answer["finish_reason"], answer["prompt_tokens"], answer["seed"]) == ("length", 4, 7)
    times = answer["timings"]
    assert 0 < times["first_token_s"] <= times["total_s"]
    assert times["decode_tokens_per_s"] > 0 and times["prefill_tokens_per_s"] > 0
    assert [(s["board"], s["start"], s["end"]) for s in answer["stages"]] == [("b0", 0, 3), ("b1", 3, 6)]
    assert all(s["decode_ms_per_token"] > 0 and s["sent_bytes_per_token"] > 0 for s in answer["stages"])


def test_json_tells_what_was_reused_and_drafted_and_neither_changes_the_answer(cluster):
    options = ("--cluster", cluster.file, "--max-tokens", 200, "--json")
    first, again, plain = (
        json.loads(call("ask", "Tell me why, why, why, why!", *options, *more).stdout)
        for more in ((), (), ("--no-speculate",))
    )
    assert first["tokens"] == again["tokens"] == plain["tokens"]
    assert first["reused_tokens"] < again["reused_tokens"] == plain["reused_tokens"] == again["prompt_tokens"] - 1
    assert again["draft_tokens"] >= again["accepted_tokens"] >= 0 and again["draft_tokens"] > 0
    assert (plain["draft_tokens"], plain["accepted_tokens"]) == (0, 0)
    spoken = call("ask", "Tell me why, why, why, why!", *options[:-1], "-v").stderr
    assert f"({again['reused_tokens']} held already)" in spoken


def test_the_first_of_several_stop_texts_ends_the_answer(cluster):
    whole = answer_to("Why?", 60)
    stops = [whole[40:43], whole[20:22], "never to be found"]
    cut = min(whole.index(s) for s in stops[:2])
    options = [x for s in stops for x in ("--stop", s)]
    result = call("ask", "Why?", "--cluster", cluster.file, "--max-tokens", 60, "--json", *options)
    answer = json.loads(result.stdout)
    assert (answer["text"], answer["finish_reason"]) == (whole[:cut], "stop")
    assert wait_until(lambda: cluster.free_slots() == [2, 2])


def test_v_says_how_fast_it_was_on_stderr(cluster):
    result = call("ask", "Why?", "--cluster", cluster.file, "--max-tokens", 20, "-v")
    assert result.stdout == answer_to("Why?", 20) + "\n"
    assert "prompt 4 tokens" in result.stderr and "answer 20 tokens" in result.stderr
    assert "b0 [0-3)" in result.stderr and "b1 [3-6)" in result.stderr and "tok/s" in result.stderr


# Boards that are lost


@pytest.fixture
def own(tmp_path_factory):
    """A cluster for one test."""
    cluster = Cluster(tmp_path_factory.mktemp("own"))
    yield cluster
    cluster.stop()


def test_an_answer_goes_on_without_a_board_and_the_cluster_file_has_the_new_plan(own, home):
    own.pace.delay_s = 0.005
    process = start(own, home, "--max-tokens", "80")
    try:
        first = process.stdout.read(5)
        own.call(own.boards.stop(0))
        stdout, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, (first + stdout).decode()) == (0, answer_to("Why?", 80) + "\n"), stderr
    trouble, plan = stderr.decode().splitlines()
    assert trouble.startswith("board b0 (127.0.0.1:") and trouble.endswith("; trying to go on …")
    assert plan == "epoch 2: b1 layers 0-6"
    file = ClusterFile.read(own.file)
    assert (file.plan.epoch, file.plan.boards, file.addresses()) == (2, ("b1",), own.boards.addresses)


def test_wait_is_how_long_lost_boards_are_waited_for(own):
    own.call(own.boards.stop(1))
    for i in range(3, 6):
        (own.model_dir / f"layer-{i:04}.safetensors").unlink()  # b0 can't stand in
    began_s = time.monotonic()
    result = call("ask", "Why?", "--cluster", own.file, "--wait", "0")
    assert (result.exit_code, result.stdout) == (1, "") and time.monotonic() - began_s < 10
    assert "board b1 (127.0.0.1:" in result.stderr and "nobody has layers 3-6" in result.stderr
    assert result.stderr.count("\n") == 1 and "trying to go on" not in result.stderr
    result = call("ask", "Why?", "--cluster", own.file, "--wait", "0.3")
    assert (result.exit_code, result.stdout) == (1, "") and "Trying to go on …" in result.stderr
    own.call(own.boards.stop(0))
    result = call("ask", "Why?", "--cluster", own.file)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1  # no board at all: at once, for 120 s would be odd
    assert "board b0 (127.0.0.1:" in result.stderr and "board b1 (127.0.0.1:" in result.stderr
    assert "--wait" in fails(2, "ask", "Why?", "--wait", "-1")


def test_a_cluster_file_that_can_not_be_written_does_not_end_the_answer(own):
    own.call(own.boards.form((0, 2, 6), epoch=3, context=CONTEXT, slots=2, chunk=16))
    own.file.with_name("cluster.json.part").mkdir()
    result = call("ask", "Why?", "--cluster", own.file, "--max-tokens", 20)
    assert (result.exit_code, result.stdout) == (0, answer_to("Why?", 20) + "\n"), result.stderr
    assert result.stderr.startswith(f"cluster file {own.file}: ") and result.stderr.count("\n") == 1
    assert ClusterFile.read(own.file).plan == own.plan
    own.file.with_name("cluster.json.part").rmdir()
    result = call("ask", "Why?", "--cluster", own.file, "--max-tokens", 20)
    assert result.stderr == "" and ClusterFile.read(own.file).plan.epoch == 3


# Rebalance


def test_rebalance_says_what_would_move_and_then_moves_it(own):
    own.call(own.boards.form((0, 5, 6), epoch=4, context=CONTEXT, slots=2, chunk=16))
    rebalance = ("rebalance", "--cluster", own.file)
    dry = call(*rebalance, "--dry-run", "--json")
    assert (dry.exit_code, dry.stderr) == (0, ""), dry.output
    said = json.loads(dry.stdout)
    assert said["changed"] and said["dry_run"] and (said["epoch_before"], said["epoch"]) == (4, 5)
    assert own.boards.agents[0].stage.epoch == 4 and ClusterFile.read(own.file).plan.epoch == 1
    text = call(*rebalance, "--dry-run").stdout
    assert "epoch 5 instead of 4" in text and "b0" in text and "to load" in text
    done = json.loads(call(*rebalance, "--json").stdout)
    assert done["changed"] and not done["dry_run"] and done["boards"] == said["boards"]
    assert sum(done["loaded_bytes"].values()) == done["moved_bytes"] == said["moved_bytes"] > 0
    plan = ClusterFile.read(own.file).plan
    assert plan.epoch == 5 == own.boards.agents[0].stage.epoch and plan.sections[0].end == 4
    again = json.loads(call(*rebalance, "--json").stdout)
    assert (again["changed"], again["epoch"], again["loaded_bytes"]) == (False, 5, {})
    assert "epoch 5 stays" in call(*rebalance).stdout
    result = call("ask", "Why?", "--cluster", own.file, "--max-tokens", 20)
    assert (result.stdout, result.stderr) == (answer_to("Why?", 20) + "\n", "")


def test_rebalance_names_boards_that_do_not_answer_and_waits_for_no_other_manager(own):
    own.boards.agents[1].holding._claim = ("another manager", 9)
    assert "another manager is giving the boards a plan. Try again" in fails(1, "rebalance", "--cluster", own.file)
    own.boards.agents[1].holding._claim = None
    own.call(own.boards.stop(1))
    result = call("rebalance", "--cluster", own.file, "--dry-run")
    assert result.exit_code == 0 and "board b1 is gone" in result.stdout
    assert result.stderr.startswith("board b1 (127.0.0.1:") and result.stderr.count("\n") == 1
    own.call(own.boards.stop(0))
    assert "no board answers" in call("rebalance", "--cluster", own.file).stderr.splitlines()[-1]
    assert "no cluster file" in fails(2, "rebalance")


@pytest.fixture
def slow(cluster):
    cluster.pace.delay_s = 0.01
    yield cluster
    cluster.pace.delay_s = 0.0


def start(cluster, home, *arguments) -> subprocess.Popen:
    """A question with a long answer, in a process."""
    return subprocess.Popen(
        [*ASK, "Why?", "--cluster", str(cluster.file), "--max-tokens", "2500", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home),
    )  # fmt: skip


def test_ctrl_c_ends_the_boards_work_too(slow, home):
    process = start(slow, home, "-v")
    try:
        first = process.stdout.read(5)
        assert min(slow.free_slots()) < 2
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130 and b"Traceback" not in stderr and b"ended by cancelled" in stderr
    text = (first + stdout).decode()
    assert text.endswith("\n") and answer_to("Why?", 2500).startswith(text[:-1])
    assert slow.free_slots() == [2, 2]


def test_a_reader_that_has_enough_ends_it_without_noise(slow, home):
    process = start(slow, home)
    try:
        assert process.stdout.read(1).decode() == answer_to("Why?", 1)
        process.stdout.close()
        process.stdout = None
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, stderr) == (1, b"")
    assert wait_until(lambda: slow.free_slots() == [2, 2])


def test_the_manager_stays_small_and_imports_no_torch(cluster, home):
    """Memory of the process image itself (VmHWM): what its parent held before exec doesn't count."""
    code = (
        "import atexit, re, sys\n"
        "def tell():\n"
        "    kb = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read()).group(1)\n"
        "    heavy = [m for m in ('torch', 'transformers', 'numpy', 'safetensors', 'gguf') if m in sys.modules]\n"
        "    print(kb, heavy, file=sys.stderr)\n"
        "atexit.register(tell)\n"
        "from edgellm.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "ask", "Why?", "--cluster", str(cluster.file), "--max-tokens", "500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment(home))
    assert (done.returncode, done.stdout) == (0, answer_to("Why?", 500) + "\n")
    kilobytes, heavy = done.stderr.split(" ", 1)
    assert heavy.strip() == "[]" and int(kilobytes) < 200_000


def test_a_full_disk_behind_stdout_is_an_error_not_a_traceback(cluster, home):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*ASK, "Why?", "--cluster", str(cluster.file), "--max-tokens", "5"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, env=environment(home),
        )  # fmt: skip
    assert done.returncode not in (0, 120) and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("edgellm: ") and "No space left" in done.stderr


# Plan and split


@pytest.fixture
def manifest(tmp_path):
    """Six layers of 100 MB."""
    from dataclasses import replace

    manifest = make_manifest()
    shards = tuple(replace(s, bytes=100_000_000, ram_bytes=100_000_000) for s in manifest.shards)
    folder = tmp_path / "model"
    folder.mkdir()
    replace(manifest, shards=shards).write(folder)
    return folder


def test_plan_says_who_gets_what_and_explains(manifest):
    boards = ["--board", "pi1=700MB,pi2=700MB"]
    result = call("plan", "--manifest", manifest, *boards, "--objective", "throughput")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "pi1: layers 0-4\npi2: layers 4-6\n"  # the head is worth a layer
    result = call("plan", "--manifest", manifest / "manifest.json", *boards, "--explain")
    assert result.exit_code == 0 and "pi1" in result.stdout and "MB" in result.stdout and "free" in result.stdout
    result = call("plan", "--manifest", manifest, *boards, "--json")
    plan = json.loads(result.stdout)["plan"]
    assert sum(s["end"] - s["start"] for s in plan["sections"]) == 6
    result = call("plan", "--manifest", manifest, *boards, "--json", "--explain")
    assert set(json.loads(result.stdout)) == {"plan", "explain"}


def test_a_plan_that_does_not_fit_says_offer_need_and_what_would(manifest):
    line = fails(1, "plan", "--manifest", manifest, "--board", "pi1=300MB", "--board", "pi2=200MB")
    assert "pi1" in line and "pi2" in line and "0.30 GB" in line and "0.20 GB" in line, line


def test_plan_refuses_odd_boards_and_contexts(manifest):
    plan = ["plan", "--manifest", manifest]
    assert "expected NAME=SIZE" in fails(2, *plan, "--board", "pi1")
    assert "pi1 is given 2 times" in fails(2, *plan, "--board", "pi1=1GB,pi1=2GB")
    assert "--context is 9999" in fails(2, *plan, "--board", "pi1=1GB", "--context", 9999)
    assert "does not exist" in fails(2, "plan", "--manifest", "nowhere", "--board", "pi1=1GB")
    (manifest / "manifest.json").write_text("{}")
    assert "manifest has format None" in fails(1, *plan, "--board", "pi1=1GB")


def test_split_of_nonsense_says_what_it_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gguf").write_text("hello")
    for source, words in (
        (tmp_path / "nowhere", "nowhere"),
        (tmp_path / "empty", "config.json"),
        (tmp_path / "text.gguf", "text.gguf"),
        ("a/b/c", "a/b/c"),
    ):
        line = fails(1, "split", source, "--out", tmp_path / "out")
        assert words in line, line
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_plan_for_the_test_model_is_as_the_cluster_holds_it(cluster):
    assert make_plan(cluster.boards.manifest, (0, 3, 6), context=CONTEXT, slots=2, chunk=16) == cluster.plan
