"""chat as a user and a shell see it, and ask -c."""

import json
import signal
import subprocess
import sys

import pytest

from edgellm.cli.chat import read_text
from edgellm.conversations import Conversations, Message
from tests.cli.commands import answer_to, call, fails
from tests.tiny import environment, wait_until

TEMPLATE = "{% for m in messages %}{{ m.content }}|{% endfor %}"


@pytest.fixture(scope="module", autouse=True)
def template(cluster):
    (cluster.model_dir / "chat_template.jinja").write_text(TEMPLATE)


def chat(cluster, *lines, options=()):
    result = call("chat", "--cluster", cluster.file, "--max-tokens", 20, *options, stdin="\n".join(lines) + "\n")
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout, result.stderr


def kept():
    store = Conversations()
    try:
        return [store.read("", c.id) for c in store.recent("")]
    finally:
        store.close()


def test_each_answer_knows_what_was_said_before(cluster):
    shown, told = chat(cluster, "Why?", "", "And?")
    first = answer_to("Why?|", 20)
    second = answer_to(f"Why?|{first}|And?|", 20)
    assert shown == f"{first}\n{second}\n"
    assert told.startswith("fake answers;") and told.count("\n") == 1
    (talk,) = kept()
    assert [(m.role, m.content) for m in talk.messages] == [
        ("user", "Why?"), ("assistant", first), ("user", "And?"), ("assistant", second),
    ]  # fmt: skip


def test_the_second_answer_needs_only_what_is_new(cluster):
    _, told = chat(cluster, "Why is that so, and why not at all?", "And?", options=("-v",))
    assert "already held" in told.splitlines()[-1]


def test_a_chat_goes_on(cluster):
    first, _ = chat(cluster, "Why?", options=("--system", "Be brief."))
    assert first == answer_to("Be brief.|Why?|", 20) + "\n"
    second, _ = chat(cluster, "And?", options=("-c",))
    assert second == answer_to(f"Be brief.|Why?|{first[:-1]}|And?|", 20) + "\n"
    assert len(kept()) == 1 and len(kept()[0].messages) == 4


def test_ask_goes_on_with_what_ask_was_asked(cluster):
    options = ("--cluster", cluster.file, "--max-tokens", 20)
    assert fails(2, "ask", "-c", "And?", *options).startswith("there is no conversation to go on with.")
    first = call("ask", "Why?", *options, "--system", "Be brief.").stdout[:-1]
    second = call("ask", "-c", "And?", *options).stdout[:-1]
    assert second == answer_to(f"Be brief.|Why?|{first}|And?|", 20)
    third = call("ask", "-c", "And?", *options, "--system", "Rhyme.").stdout[:-1]
    assert third == answer_to(f"Rhyme.|Why?|{first}|And?|{second}|And?|", 20)
    assert len(kept()) == 1
    assert "Use one of them" in fails(2, "ask", "-c", "And?", "--raw", *options)


def test_nothing_is_kept_that_is_not_to_be(cluster):
    options = ("--cluster", cluster.file, "--max-tokens", 5)
    assert call("ask", "Why?", *options, "--raw").exit_code == 0
    assert call("ask", "Why?", *options, "--no-history").exit_code == 0
    chat(cluster, "Why?", options=("--no-history",))
    assert kept() == []


def test_a_folder_that_cannot_be_written_costs_no_answer(cluster, home, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("EDGELLM_STATE", str(home / "file" / "folder"))
    result = call("ask", "Why?", "--cluster", cluster.file, "--max-tokens", 5)
    assert (result.exit_code, result.stderr) == (0, "")
    shown, told = chat(cluster, "Why?")
    assert shown == answer_to("Why?|", 20) + "\n" and "conversations can't be kept" in told


def test_a_system_prompt_can_change_in_between(cluster):
    shown, told = chat(cluster, "/system", "/system Be brief.", "Why?", "/system -", "Why?")
    first = answer_to("Be brief.|Why?|", 20)
    assert shown == f"{first}\n{answer_to(f'Why?|{first}|Why?|', 20)}\n"
    assert [x for x in told.splitlines() if "system" in x] == [
        "system prompt: none", "system prompt: Be brief.", "system prompt: none",
    ]  # fmt: skip
    assert kept()[0].settings == {"system": ""}


def test_a_question_can_be_answered_again(cluster):
    shown, told = chat(cluster, "/retry", "Why?", "/retry", "And?")
    first = answer_to("Why?|", 20)
    assert shown == f"{first}\n{first}\n{answer_to(f'Why?|{first}|And?|', 20)}\n"
    assert "nothing to answer again" in told
    assert [m.content for m in kept()[0].messages][:3] == ["Why?", first, "And?"]


def test_a_new_conversation_can_begin(cluster):
    shown, _ = chat(cluster, "Why?", "/new", "And?")
    assert shown.splitlines()[1] == answer_to("And?|", 20)
    assert len(kept()) == 2


def test_a_conversation_can_be_saved(cluster, home):
    _, told = chat(cluster, "/save", "/system Be brief.", "Why?", "/save a.json", "/save a.md", "/save a.md",
                   "/save no/where")  # fmt: skip
    answer = answer_to("Be brief.|Why?|", 20)
    saved = json.loads((home / "here" / "a.json").read_text())["messages"]
    assert [m["content"] for m in saved] == ["Be brief.", "Why?", answer]
    assert (home / "here" / "a.md").read_text().endswith(f"**assistant**\n\n{answer}\n\n")
    assert "needs the name of a file" in told and "is there already" in told and "No such file" in told


def test_help_and_mistakes(cluster):
    shown, told = chat(cluster, "/help", "/nonsense", "//x", "/exit", "Why?")
    assert shown == answer_to("/x|", 20) + "\n"
    assert "/retry" in told and "there is no /nonsense" in told


def test_what_cannot_be_answered_ends_no_chat(cluster):
    shown, told = chat(cluster, "x" * 4000, "Why?")
    assert shown == answer_to("Why?|", 20) + "\n"
    assert "a slot of this cluster holds" in told


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["one"], "one"), (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""', "one", "", "two", '"""'], "one\n\ntwo"),
        (['"""one', 'two"""'], "one\ntwo"), (['"""one"""'], "one"), (['"""', "one"], "one"), (["one\\"], "one"),
    ],
)  # fmt: skip
def test_texts_of_several_lines(lines, text):
    given = iter(lines)

    def read(_prompt):
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    assert read_text(read) == text
    with pytest.raises(EOFError):
        read_text(read)


def test_ctrl_c_ends_an_answer_and_not_the_chat(cluster, home):
    cluster.pace.delay_s = 0.02
    process = subprocess.Popen(
        [sys.executable, "-m", "edgellm", "chat", "--cluster", str(cluster.file), "--max-tokens", "2500"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home), bufsize=0,
    )  # fmt: skip
    try:
        process.stdin.write(b"Why?\n")
        shown = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: cluster.free_slots() == [2, 2])
        cluster.pace.delay_s = 0.0
        out, err = process.communicate(b"/save talk.json\n/exit\n", timeout=20)
        assert process.returncode == 0, err
    finally:
        cluster.pace.delay_s = 0.0
        process.kill()
        process.wait()
    answer = (shown + out).decode().rstrip("\n")
    assert answer_to("Why?|", 2500).startswith(answer) and 1 <= len(answer) < 2500
    saved = json.loads((home / "here" / "talk.json").read_text())["messages"]
    assert saved[1]["content"] == answer
    assert kept()[0].messages[1].finish == "cancelled"


def test_reasoning_is_no_part_of_what_goes_on(cluster, home):
    store = Conversations()
    store.new("", messages=[Message("user", "Why?"), Message("assistant", "So.", "Hm.")])
    store.close()
    shown, _ = chat(cluster, "And?", options=("-c",))
    assert shown == answer_to("Why?|So.|And?|", 20) + "\n"
