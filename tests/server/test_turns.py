"""Whose turn it is among several models, second by second."""

from edgellm.server.turns import KEEP_ALIVE_S, LULL_S, RETURN_S, STAY_S, Turns


def changed(turns: Turns, name: str, now_s: float, stands: set[str] | None = None) -> None:
    assert turns.next_change(now_s) == name
    turns.change(name, now_s)
    turns.changed(now_s, stands or {name})


def test_the_default_model_answers_at_once():
    turns = Turns(["a", "b"])
    assert turns.may_begin("a", 0.0) and not turns.may_begin("b", 0.0) and turns.next_change(0.0) is None


def test_a_change_waits_until_the_running_answers_are_done():
    turns = Turns(["a", "b"])
    turns.begin("a")
    turns.begin("a")
    turns.ask("b", 10.0)
    turns.end("a", 11.0, None)
    assert turns.next_change(11.0) is None and not turns.is_idle
    turns.end("a", 12.0, None)
    changed(turns, "b", 12.0)
    turns.ask("a", 12.5)
    assert turns.may_begin("b", 14.0) and not turns.may_begin("a", 14.0)
    turns.begin("b")
    turns.leave("b")
    turns.end("b", 15.0, None)
    assert turns.next_change(15.0 + LULL_S / 2) is None  # perhaps the next question of the same person comes
    changed(turns, "a", 15.0 + LULL_S)


def test_nobody_begins_while_the_boards_change_over():
    turns = Turns(["a", "b"])
    turns.ask("b", 0.0)
    turns.change("b", 0.0)
    assert not turns.may_begin("a", 1.0) and not turns.may_begin("b", 1.0) and turns.next_change(1.0) is None


def test_a_model_that_is_asked_again_and_again_stays_its_time_then_it_is_the_other_s_turn():
    turns = Turns(["a", "b"])
    turns.ask("b", 100.0)
    changed(turns, "b", 100.0)
    turns.begin("b")
    turns.leave("b")
    turns.ask("a", 101.0)
    assert turns.may_begin("b", 100.0 + STAY_S - 1)  # it goes on to be asked
    assert not turns.may_begin("b", 100.0 + STAY_S)  # from now on those who ask for it stand behind a
    turns.ask("b", 100.0 + STAY_S)
    assert turns.next_change(100.0 + STAY_S) is None  # an answer runs
    turns.end("b", 101.0 + STAY_S, None)
    changed(turns, "a", 101.0 + STAY_S)
    assert turns.may_begin("a", 102.0 + STAY_S)
    turns.begin("a")
    turns.leave("a")
    turns.end("a", 103.0 + STAY_S, None)
    changed(turns, "b", 104.0 + STAY_S + LULL_S)


def test_three_models_get_their_turns_in_the_order_of_asking():
    turns = Turns(["a", "b", "c"])
    turns.ask("c", 0.0)
    turns.ask("b", 1.0)
    changed(turns, "c", 2.0)
    turns.begin("c")
    turns.leave("c")
    turns.end("c", 3.0, None)
    turns.ask("a", 3.5)
    changed(turns, "b", 3.0 + LULL_S + 1)


def test_who_was_told_when_to_come_back_finds_the_model_still_there():
    turns = Turns(["a", "b"])
    turns.ask("b", 0.0)
    turns.change("b", 0.0)
    turns.leave("b", until_s=20.0)  # the load takes that long
    turns.ask("a", 5.0)
    turns.changed(19.0, {"b"})
    assert turns.next_change(20.0 + LULL_S) is None and turns.may_begin("b", 21.0)
    assert turns.next_change(20.0 + RETURN_S + LULL_S) == "a"  # nobody came


def test_a_model_that_somebody_wanted_and_nobody_waits_for_is_not_loaded():
    turns = Turns(["a", "b"])
    turns.ask("b", 0.0)
    turns.leave("b")
    assert turns.next_change(1.0) is None


def test_an_idle_model_goes_after_its_time_and_the_default_one_returns():
    turns = Turns(["a", "b"])
    turns.ask("b", 0.0)
    changed(turns, "b", 0.0)
    turns.begin("b")
    turns.leave("b")
    assert turns.expires_in_s("b", 1.0) is None  # it answers
    turns.end("b", 2.0, None)
    assert turns.expires_in_s("b", 3.0) == KEEP_ALIVE_S - 1
    assert turns.next_change(1.0 + KEEP_ALIVE_S) is None and turns.next_change(2.0 + KEEP_ALIVE_S) == "a"


def test_keep_alive_is_what_the_last_question_said():
    for keep_alive_s, at_s, expected in ((0.0, 2.0, "a"), (10.0, 11.0, None), (10.0, 12.0, "a"), (-1.0, 1e6, None)):
        turns = Turns(["a", "b"])
        turns.ask("b", 0.0)
        changed(turns, "b", 0.0)
        turns.begin("b")
        turns.leave("b")
        turns.end("b", 2.0, keep_alive_s)
        assert turns.next_change(at_s) == expected


def test_two_models_that_stand_at_once_both_answer_without_a_change():
    turns = Turns(["a", "b", "c"])
    turns.ask("b", 0.0)
    changed(turns, "b", 0.0, {"a", "b"})
    turns.leave("b")
    assert turns.may_begin("a", 1.0) and turns.may_begin("b", 1.0)
    assert turns.next_change(KEEP_ALIVE_S * 2) is None  # the default one is there anyway


def test_a_change_that_failed_is_not_tried_for_ever():
    turns = Turns(["a", "b"])
    turns.ask("b", 0.0)
    turns.change("b", 0.0)
    turns.changed(1.0, {"a"})
    assert turns.next_change(2.0 + LULL_S) is None and turns.may_begin("a", 2.0)


def test_a_model_that_is_wanted_may_be_loaded_beside_while_answers_run():
    turns = Turns(["a", "b", "c"])
    turns.begin("a")
    turns.ask("b", 0.0)
    assert turns.next_beside(0.0) == "b"
    turns.change("b", 0.0, beside=True)
    assert turns.may_begin("a", 1.0) and not turns.may_begin("b", 1.0) and turns.next_beside(1.0) is None
    turns.changed(2.0, {"a", "b"})
    turns.begin("b")
    turns.leave("b")
    assert turns.next_beside(2.0) is None and turns.may_begin("a", 2.0)


def test_a_model_without_room_beside_the_others_is_tried_again_when_these_have_changed():
    turns = Turns(["a", "b", "c"])
    turns.begin("a")
    turns.ask("b", 0.0)
    turns.change("b", 0.0, beside=True)
    turns.kept_out()
    assert turns.next_beside(1.0) is None and turns.next_change(1.0) is None  # it waits for the answer of a
    turns.end("a", 2.0, None)
    changed(turns, "b", 2.0 + LULL_S)
    turns.ask("a", 5.0)
    assert turns.next_beside(5.0) == "a"


def test_only_a_model_beside_the_default_one_is_unloaded_once_its_time_is_over():
    turns = Turns(["a", "b"])
    assert turns.next_unload(1e6) is None
    turns.ask("b", 0.0)
    changed(turns, "b", 0.0, {"a", "b"})
    turns.begin("b")
    turns.leave("b")
    assert turns.next_unload(KEEP_ALIVE_S * 2) is None  # it answers
    turns.end("b", 2.0, 10.0)
    assert turns.next_unload(11.0) is None and turns.next_unload(12.0) == "b"
    turns.ask("b", 12.0)
    assert turns.next_unload(12.0) is None
    turns.leave("b")
    turns.unloaded("b")
    assert turns.stands == {"a"} and turns.next_unload(1e6) is None
