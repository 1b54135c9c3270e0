"""What the tests of hostile peers watch in the log."""

import logging

import pytest

pytest.register_assert_rewrite("tests.agent.hostile")  # so that its asserts, too, show both sides


@pytest.fixture
def logged(caplog):
    """The log as text; it must hold no traceback, whatever the peers did."""
    caplog.set_level(logging.INFO)
    yield lambda: caplog.text
    during = caplog.get_records("call")
    assert not [r for r in during if r.levelno >= logging.ERROR or r.exc_info], caplog.text
