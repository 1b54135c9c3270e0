"""The socket that the server listens on."""

import socket

from edgellm.errors import UsageError

_BACKLOG = 256
_SEND_BUFFER = 128 << 10  # bytes that the kernel keeps for a client that reads slowly; by itself it takes megabytes


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises UsageError if the address can't be taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as e:
        raise UsageError(f"--host {host}: {e.strerror or e}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # connections inherit it
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as e:
        listener.close()
        raise UsageError(f"can't listen on {host}:{port}: {e.strerror or e}. Give another --port.") from None
    return listener
