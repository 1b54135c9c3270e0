"""docs/messages.md has every sentence that leaves a board out of a deploy, and each of them has a way out."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("messages", ROOT / "docs" / "messages.py")
messages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(messages)


def test_the_page_is_what_the_code_says():
    assert messages.PAGE.read_text() == messages.page(), "the sentences have changed: run 'make messages'"


def test_the_reasons_of_ssh_are_all_there():
    source = (ROOT / "ansible/filter_plugins/boards.py").read_text()
    told = messages.sentences(ROOT / "ansible/filter_plugins/boards.py")
    table = source.partition("REASONS = (")[2].partition("\n)")[0]
    assert len(re.findall(r'"board \{', table)) >= 11
    assert len([text for text in told if text.startswith("board NAME")]) >= len(re.findall(r'"board \{', table))


PYTHON = '''
"""board NAME is a docstring. Not this."""
TABLE = ((r"x", "board {place} is off. "
          "Switch it on."),)
def why(board, facts):
    """board x. Nor this."""
    if facts:
        return f"board {board}: {facts['a'] + 1} MB are {facts['b']}, {board}. Free {'some'} space."
    return "no board"
'''
PLAYBOOK = """
- ansible.builtin.fail:
    msg: "board {{ inventory_hostname }} has {{ a | int }} MB. Run deploy.yml first."
- ansible.builtin.fail:
    msg: >-
      There are no boards in {{ file }}.
      Add a line.
  when: true
- ansible.builtin.debug:
    msg: board {{ item }} has been removed
"""


@pytest.mark.parametrize(
    ("suffix", "text", "said"),
    [
        (".py", PYTHON, ["board NAME is off. Switch it on.", "board NAME: … MB are …, NAME. Free … space."]),
        (".yml", PLAYBOOK, ["board NAME has … MB. Run deploy.yml first.", "There are no boards in …. Add a line."]),
    ],
)
def test_sentences_are_found_wherever_they_stand(tmp_path, suffix, text, said):
    path = tmp_path / f"x{suffix}"
    path.write_text(text)
    assert messages.sentences(path) == said


def test_what_happened_and_what_to_do_are_two_columns():
    assert messages.split("board NAME: a | b. Do c. Then d.") == ("board NAME: a \\| b.", "Do c. Then d.")
