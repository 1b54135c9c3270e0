"""Nothing that a board says moves a cursor, changes a colour, or begins a line of its own."""

import pytest

from edgellm.wire.printable import printable, without_controls


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ready, 52 °C", "ready, 52 °C"),
        ("\x1b[2J\x1b]0;title\x07gone\r", "[2J]0;titlegone "),
        ("a\tb\nc\x00d\x9b31m", "a b cd31m"),
        ("one\r\n2026 INFO forged\u2028\x85\x0b\x0c", "one  2026 INFO forged    "),
        ("abc\u202edcba\u2066x\u200b", "abcdcbax"),
        ("half a character: \ud83d \udce9", "half a character:  "),
        ("", ""),
    ],
)
def test_text_is_one_line_without_anything_that_a_terminal_obeys(text, expected):
    assert printable(text) == expected and printable(text).isprintable()


def test_long_text_is_cut():
    assert printable("x" * 5000, 4096) == "x" * 4096 + "…"
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("\x1b" * 10 + "seen", 12) == "se…"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\n\tlines, שלום 👩‍🌾\n", "two\n\tlines, שלום 👩‍🌾\n"),
        ("\x1b[31mred\x1b]52;c;cm0=\x07\x08\r\x9b2J\x7f", "[31mred]52;c;cm0=2J"),
    ],
)
def test_an_answer_keeps_its_lines_and_its_language(text, expected):
    assert without_controls(text) == expected
