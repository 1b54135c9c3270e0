"""Why a connection failed or ended, in words for the owner; the peer is "it"."""

import errno
import os
import re
import socket
import ssl

_UNREACHABLE = "no route to it, is it on and connected?"
_NO_ANSWER = "it doesn't answer, is it on and connected?"
_RESET = "it reset the connection"
_FORBIDDEN = "this machine's own firewall doesn't allow the connection"
_BY_NUMBER = {
    **dict.fromkeys((errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN), _UNREACHABLE),
    errno.ETIMEDOUT: _NO_ANSWER,
    **dict.fromkeys((errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE), _RESET),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _FORBIDDEN),
}


def connection_reason(error: Exception, service: str = "its agent") -> str:
    """Return why a connection to `service` failed or ended, without a full stop at the end.

    asyncio puts its own words in place of the system's ("Connect call failed"), or the words of several addresses into
    one text, so what counts is the error's number.
    """
    number = _number(error)
    if isinstance(error, socket.gaierror | UnicodeError) or (isinstance(error, ValueError) and number is None):
        return "the name is not known"  # a host that can't even be looked up is a ValueError
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(getattr(error, 'reason', None) or 'unknown error').lower().replace('_', ' ')}"
    if number == errno.ECONNREFUSED:
        return f"connection refused, is {service} running?"
    if isinstance(error, TimeoutError):
        return _NO_ANSWER
    if isinstance(error, ConnectionResetError):  # asyncio raises some without a number
        return _RESET
    if number in _BY_NUMBER:
        return _BY_NUMBER[number]
    if number is not None and number in errno.errorcode:
        return os.strerror(number).lower()
    return str(error).lower() or type(error).__name__


def connection_code(error: Exception) -> str:
    """Return at which point a connection failed to be made, as one of DIAL_CODES."""
    number = _number(error)
    if isinstance(error, socket.gaierror | UnicodeError) or (isinstance(error, ValueError) and number is None):
        return "name"
    if number == errno.ECONNREFUSED:
        return "refused"
    if isinstance(error, TimeoutError):
        return "timeout"
    return "forbidden" if number in (errno.EACCES, errno.EPERM) else "unreachable"


def _number(error: Exception) -> int | None:
    """Return the system's number of an error; of several addresses' errors, the first one's."""
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return number
    found = re.search(r"\[Errno (\d+)\]", str(error))
    return int(found[1]) if found else None
