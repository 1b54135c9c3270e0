"""Stop strings, among them those that name a control token."""

from hypothesis import given
from hypothesis import strategies as st

from edgellm.text.stops import StopStrings


@given(st.lists(st.text("abc", max_size=3), max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_stop_strings_end_the_text_before_the_first_of_them_however_it_comes(pieces, strings):
    stop = StopStrings(tuple(strings))
    shown = ""
    for piece in pieces:
        shown += stop.feed(piece)
        if stop.found:
            break
    else:
        shown += stop.flush()
    whole = "".join(pieces)
    starts = [i for s in strings if (i := whole.find(s)) >= 0]
    if not stop.found:
        assert shown == whole and not starts
    else:
        assert whole.startswith(shown) and stop.found in strings and whole.startswith(stop.found, len(shown))
        assert not any(s in shown for s in strings)


def test_nothing_is_held_back_that_can_not_begin_a_stop_string():
    stop = StopStrings(("STOP",))
    assert [stop.feed(t) for t in ("abS", "T", "x", "ST", "OP", "more")] == ["ab", "", "STx", "", "", ""]
    assert stop.found == "STOP"


def test_of_stop_strings_that_begin_at_once_the_shortest_counts_however_they_come():
    for pieces in (["xabc"], list("xabc")):
        stop = StopStrings(("abc", "ab", "c"))
        assert ("".join(stop.feed(piece) for piece in pieces), stop.found) == ("x", "ab")


def test_a_control_token_can_be_a_stop_string_or_part_of_one():
    for strings, shown in ((("<end>",), "ab"), (("b<end>c",), "a"), (("<end>c",), "ab"), (("<other>",), "abc")):
        stop = StopStrings(strings)
        text = stop.feed("ab")
        if stop.mentions("<end>"):
            text += stop.feed("<end>", hidden=True)
        text += stop.feed("c")
        assert (text + stop.flush(), stop.found) == (shown, "" if strings == ("<other>",) else strings[0])


def test_a_control_token_that_was_no_stop_is_not_shown():
    stop = StopStrings(("<end>x",))
    assert stop.mentions("<end>") and not stop.mentions("<start>")
    assert stop.feed("a") + stop.feed("<end>", hidden=True) + stop.feed("yb") + stop.flush() == "ayb"
