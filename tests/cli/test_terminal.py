"""What boards and models say on a terminal: text, and nothing that the terminal would obey."""

import sys

from edgellm.console import Progress, for_terminal, note

ESCAPES = "b1: \x1b[2J\x1b]0;title\x07\x1b]52;c;cm0gLXJmIH4K\x07\n[sudo] password for me: "


def test_a_note_is_one_line_without_escapes(capsys):
    note(ESCAPES)
    assert capsys.readouterr().err == "b1: [2J]0;title]52;c;cm0gLXJmIH4K [sudo] password for me: \n"


def test_progress_is_named_without_escapes(capsys):
    with Progress() as progress:
        progress(f"waiting for {ESCAPES}")
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and shown.strip("\n").isprintable()


def test_an_answer_on_a_terminal_keeps_its_lines_and_loses_its_escapes(monkeypatch):
    answer = "two\n\tlines, 52 °C, שלום 👩‍🌾\x1b[31m\x9b2J\x08\r"
    assert for_terminal(answer) == answer  # a file or a pipe gets what the model said
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert for_terminal(answer) == "two\n\tlines, 52 °C, שלום 👩‍🌾[31m2J"
