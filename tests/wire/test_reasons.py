"""Errors of connections in the owner's words, none of them Python's."""

import asyncio
import errno
import os
import socket
import ssl

import pytest

from edgellm.errors import BoardError
from edgellm.wire.dial import connect
from edgellm.wire.messages import Hello
from edgellm.wire.reasons import connection_reason

AT = "('10.0.0.9', 7710)"


def of_asyncio(number: int) -> OSError:
    """What asyncio raises for a system's error: its own words in place of the system's."""
    return OSError(number, f"Connect call failed {AT}")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (of_asyncio(errno.EHOSTUNREACH), "no route to it, is it on and connected?"),
        (of_asyncio(errno.ENETUNREACH), "no route to it, is it on and connected?"),
        (of_asyncio(errno.ECONNREFUSED), "connection refused, is its agent running?"),
        (of_asyncio(errno.ETIMEDOUT), "it doesn't answer, is it on and connected?"),
        (TimeoutError(), "it doesn't answer, is it on and connected?"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "it reset the connection"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "it reset the connection"),
        (ConnectionResetError("Connection lost"), "it reset the connection"),
        (of_asyncio(errno.EPERM), "this machine's own firewall doesn't allow the connection"),
        (of_asyncio(errno.EADDRNOTAVAIL), os.strerror(errno.EADDRNOTAVAIL).lower()),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "the name is not known"),
        (UnicodeError("label too long"), "the name is not known"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "TLS failed: unknown error"),
        # A name with two addresses.
        (OSError(f"Multiple exceptions: [Errno {errno.EHOSTUNREACH}] Connect call failed {AT}, [Errno "
                 f"{errno.ECONNREFUSED}] Connect call failed {AT}"),
         "no route to it, is it on and connected?"),
    ],
)  # fmt: skip
def test_an_error_is_told_in_words(error, words):
    assert connection_reason(error) == words


def test_the_service_that_may_not_run_is_named():
    assert connection_reason(ConnectionRefusedError(errno.ECONNREFUSED, "x"), "sshd").endswith("is sshd running?")


def test_dialling_a_board_without_a_route_says_so(monkeypatch):
    async def go():
        async def none(*args, **kwargs):
            raise of_asyncio(errno.EHOSTUNREACH)

        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", none)
        await connect("10.0.0.9", 7710, Hello("manager", "me"), lambda *a: None, lambda *a: None, board="pi1")

    with pytest.raises(BoardError) as e:
        asyncio.run(go())
    assert str(e.value) == (
        "board pi1 (10.0.0.9:7710): no route to it, is it on and connected?"
    )
