"""Outgoing connections: dials a board, greets it, and checks that it is the right one."""

import asyncio
from collections.abc import Callable

from edgellm.config import CONNECT_TIMEOUT_S
from edgellm.errors import DialError, RemoteProtocolError
from edgellm.wire.credentials import Credentials
from edgellm.wire.messages import Hello, Message
from edgellm.wire.peer import Peer
from edgellm.wire.protocol import Protocol
from edgellm.wire.reasons import connection_code, connection_reason
from edgellm.wire.tls import Channel


async def connect(
    host: str,
    port: int,
    me: Hello,
    on_message: Callable[[Peer, Message], None],
    on_lost: Callable[[Peer, str], None],
    *,
    board: str | None = None,
    tls: Credentials | None = None,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> Peer:
    """Dial a board and exchange hellos. Raises DialError that names the board (or its address) and the reason.

    With `tls`, the board's certificate must name the sender of its hello, and so `board` if that is given.
    """
    who = f"board {board} ({host}:{port})" if board else f"{host}:{port}"
    own = "this manager's" if me.role == "manager" else f"board {me.name}'s"
    peer, code = None, "rejected"
    try:
        async with asyncio.timeout(timeout_s):
            _, peer = await asyncio.get_running_loop().create_connection(
                lambda: Peer(
                    Protocol(me, dials=True), on_message, on_lost,
                    Channel(tls.context, server_side=False, own=own) if tls else None,
                ),
                host, port,
            )  # fmt: skip
            await peer.ready
        if peer.lost is not None:  # right after its hello
            raise RemoteProtocolError(peer.lost)
        if board is not None and peer.name != board:
            raise RemoteProtocolError(f"calls itself {peer.name}; is the address right?")
        if tls is not None:
            tls.dialled.add(peer)
        return peer
    except TimeoutError:
        code, reason = "timeout", f"no answer within {timeout_s:g} s"
        if peer is not None:
            code, reason = "silent", f"{reason}, though it takes connections"
    except (OSError, ValueError) as e:
        code, reason = connection_code(e), connection_reason(e)
    except RemoteProtocolError as e:
        reason = str(e)
    except BaseException:
        if peer is not None:
            peer.close()
        raise
    if peer is not None:
        peer.close()
    raise DialError(f"{who}: {reason}", board, code, reason) from None
