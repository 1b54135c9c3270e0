"""ask as a user and a shell see it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from edgellm.manager.cluster_file import ClusterFile, default_path
from edgellm.sampling import Sampling
from tests.cli.commands import ASK, CONTEXT, answer_to, call, fails, ids_of, start
from tests.fakes import generate
from tests.tiny import environment, wait_until


def test_a_prompt_longer_than_the_context_is_refused_before_any_board_is_asked(home, cluster):
    nowhere = {name: ("127.0.0.1", 9 + i) for i, name in enumerate(cluster.plan.boards)}
    file = home / "nowhere.json"
    ClusterFile.make(cluster.model_dir, nowhere, cluster.plan).write(file)
    line = fails(2, "ask", "x" * (CONTEXT + 1), "--cluster", file)
    assert line.startswith(f"the prompt has {CONTEXT + 1} tokens, a slot of this cluster holds {CONTEXT}.")
    line = fails(2, "ask", "hi", "--cluster", file, "--system", "Be brief.")
    assert line == "fake has no chat template. Leave out --system."
    line = fails(1, "ask", "hi", "--cluster", file)
    assert "board b0 (127.0.0.1:9): connection refused, is its agent running?" in line


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
    assert f"({again['reused_tokens']} already held)" in spoken


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


@pytest.fixture
def slow(cluster):
    cluster.pace.delay_s = 0.01
    yield cluster
    cluster.pace.delay_s = 0.0


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


# Who answers


def test_agents_of_this_machine_that_answer_while_boards_stand_idle_say_so(cluster):
    boards = {name: ("10.0.0.1", 7710 + i) for i, name in enumerate(cluster.plan.boards)}
    default_path().parent.mkdir(parents=True)
    file = ClusterFile.make(cluster.model_dir, boards, cluster.plan)
    file.write(default_path())
    result = call("ask", "Why?", "--cluster", cluster.file, "--max-tokens", 5)
    assert (result.exit_code, result.stdout) == (0, answer_to("Why?", 5) + "\n")
    assert result.stderr == (
        f"this machine's own agents answer, by {cluster.file}; the boards of {default_path()} stand idle "
        "(ask them with --cluster)\n"
    )
    default_path().write_text("{")  # none of our business here
    assert call("ask", "Why?", "--cluster", cluster.file, "--max-tokens", 5).stderr == ""


# Boards that are lost


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
    assert trouble.startswith("board b0 (127.0.0.1:")
    assert trouble.endswith("; trying to continue for up to 120 s …")
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
    assert "board b1 (127.0.0.1:" in result.stderr and "no board has layers 3-6" in result.stderr
    assert result.stderr.count("\n") == 1 and "trying to go on" not in result.stderr
    result = call("ask", "Why?", "--cluster", own.file, "--wait", "0.3")
    assert (result.exit_code, result.stdout) == (1, "") and "; trying to continue for up to 1 s …" in result.stderr
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


# How an answer is sampled, and where it ends


def advise(cluster, **generation):
    (cluster.model_dir / "generation_config.json").write_text(json.dumps(generation))


def test_an_answer_is_sampled_as_the_models_authors_say_unless_options_say_otherwise(own):
    advise(own, do_sample=True, temperature=0.5, top_p=0.9, min_p=0.01, repetition_penalty=1.1)
    advised = {"temperature": 0.5, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "repeat_penalty": 1.1}
    for options, changed in (
        ((), {}),
        (("--top-k", 0), {"top_k": 0}),
        (("--temperature", 0.7, "--min-p", 0), {"temperature": 0.7, "min_p": 0.0}),
        (("--temperature", 0), {"temperature": 0.0}),
    ):
        asked = ("ask", "Why?", "--cluster", own.file, "--max-tokens", 20, "--seed", 7, *options, "--json")
        answer, again = (json.loads(call(*asked).stdout) for _ in range(2))
        rest = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": []}
        assert answer["sampling"] == {**advised, **changed, **rest} and answer["seed"] == 7
        expected = generate(ids_of("Why?"), 20, sampling=Sampling(**answer["sampling"], seed=7))
        assert answer["tokens"] == again["tokens"] == expected


def test_v_says_how_an_answer_was_sampled_and_who_said_so(own):
    def spoken(*options):
        return call("ask", "Why?", "--cluster", own.file, "--max-tokens", 2, "--seed", 7, "-v", *options).stderr

    assert "sampling: greedy (as the model's authors recommend)\n" in spoken()
    assert "sampling: temperature 0.7 (as asked); seed 7\n" in spoken("--temperature", 0.7)
    advise(own, do_sample=True, temperature=0.2, top_p=0.9)
    assert "sampling: temperature 0.2, top-k 50, top-p 0.9 (as the model's authors recommend); seed 7\n" in spoken()
    assert "sampling: greedy (as asked)\n" in spoken("--temperature", 0)


def test_advice_that_is_no_advice_is_named(own):
    advise(own, do_sample=True, temperature="hot")
    line = fails(1, "ask", "Why?", "--cluster", own.file)
    assert line == f"{own.model_dir}/generation_config.json: temperature is 'hot', expected a number from 0 to 100"


def test_every_end_that_generation_config_names_ends_an_answer(own):
    whole = generate(ids_of("Why?"), 60)
    advise(own, eos_token_id=[whole[30], whole[20], 10**6, "x", None])
    end = min(whole.index(whole[30]), whole.index(whole[20]))
    answer = json.loads(call("ask", "Why?", "--cluster", own.file, "--max-tokens", 60, "--json").stdout)
    assert (answer["tokens"], answer["finish_reason"]) == (whole[: end + 1], "eos")
    assert answer["text"] == answer_to("Why?", end)


def test_a_control_token_can_be_what_stop_names(own):
    """Decoding leaves control tokens out, and --stop sees them all the same."""
    from tokenizers import Tokenizer

    whole = answer_to("Why?", 60)
    control = whole[25]
    library = Tokenizer.from_file(str(own.model_dir / "tokenizer.json"))
    library.add_special_tokens([control])
    library.save(str(own.model_dir / "tokenizer.json"))
    asked = ("ask", "Why?", "--cluster", own.file, "--max-tokens", 60, "--json")
    answer = json.loads(call(*asked).stdout)
    assert (answer["text"], answer["finish_reason"]) == (whole.replace(control, ""), "length")
    at = whole.index(control)
    for stop, shown in ((control, whole[:at]), (whole[at - 2 : at + 1], whole[: at - 2])):
        answer = json.loads(call(*asked, "--stop", stop).stdout)
        assert (answer["text"], answer["finish_reason"]) == (shown, "stop")


# In company


def test_a_question_that_finds_no_slot_says_where_it_stands_in_line(slow, home):
    others = [start(slow, home, "--max-tokens", "60") for _ in range(2)]
    try:
        assert wait_until(lambda: slow.free_slots() == [0, 0])
        result = call("ask", "Why?", "--cluster", slow.file, "--max-tokens", 5)
    finally:
        for process in others:
            process.communicate(timeout=20)
    assert (result.exit_code, result.stdout) == (0, answer_to("Why?", 5) + "\n")
    assert result.stderr == "all slots are taken; this question is next\n"


# A better plan


def test_a_board_that_came_back_is_in_the_plan_after_the_next_question(own):
    own.call(own.boards.stop(1))
    result = call("ask", "Why?", "--cluster", own.file, "--max-tokens", 20)
    assert (result.exit_code, result.stdout) == (0, answer_to("Why?", 20) + "\n"), result.stderr
    assert result.stderr == "epoch 2: b0 layers 0-6\n" and ClusterFile.read(own.file).plan.boards == ("b0",)
    own.call(own.boards.start(1))
    result = call("ask", "Why?", "--cluster", own.file, "--max-tokens", 20)
    assert (result.exit_code, result.stdout) == (0, answer_to("Why?", 20) + "\n"), result.stderr
    plan = ClusterFile.read(own.file).plan
    assert plan.epoch == 3 and set(plan.boards) == {"b0", "b1"} and result.stderr.startswith("epoch 3: ")


def test_the_answer_is_printed_before_boards_that_load_are_waited_for_and_ctrl_c_leaves_at_once(own, home):
    own.call(own.boards.stop(1))
    assert call("ask", "Why?", "--cluster", own.file, "--max-tokens", 2).exit_code == 0
    own.call(own.boards.start(1))
    loading, go_on = threading.Event(), threading.Event()
    load = own.boards.agents[1].holding._load

    def slowly(*args):
        loading.set()
        assert go_on.wait(20)
        return load(*args)

    own.boards.agents[1].holding._load = slowly
    process = start(own, home, "--max-tokens", "20", "--json")
    try:
        line = process.stdout.readline()
        assert json.loads(line)["text"] == answer_to("Why?", 20) and loading.wait(20)
        notes = [process.stderr.readline().decode() for _ in range(2)]
        assert notes[0].startswith("epoch 3: ")
        assert notes[1] == "boards are loading a better plan; waiting for up to 30 s …\n" and process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 0, "the answer was complete"
    finally:
        go_on.set()
        process.kill()
        process.communicate()
    assert ClusterFile.read(own.file).plan.epoch == 2
    assert wait_until(lambda: not any(a.holding.claimed for a in own.boards.agents))
