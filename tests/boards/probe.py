"""Peers that have no business with an agent; a program of its own, run on the boards' network: KIND HOST PORT [FOLDER].

Prints one JSON object. `tls`: with the certificate in FOLDER, if one is given; `plain`: the wire without TLS; `scan`:
every port from 1 to 10000; `idle`: 1000 connections held until stdin ends; `claim`: as the manager with the identity in
FOLDER, claims the board whose name comes after it for the next epoch, and gives the claim back; `stand`: holds a
connection, and says how it ended.
"""

import asyncio
import json
import socket
import ssl
import sys
import warnings
from pathlib import Path

from edgellm.manager.board import BoardClient
from edgellm.wire import messages as m
from edgellm.wire.credentials import client_credentials

CONNECTIONS = 1000
PORTS = range(1, 10001)
HELLO = m.encode(m.Hello("manager", "stranger")) + m.encode(m.AskStatus())


def tls(host: str, port: int, folder: str | None) -> dict:
    """Shake hands, greet, ask for the status: what came back?"""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # we trust anybody: they are not to trust us
    if folder:
        context.load_cert_chain(Path(folder) / "cert.pem", Path(folder) / "key.pem")
    with socket.create_connection((host, port), 5) as sock:
        sock.settimeout(15)
        try:
            with context.wrap_socket(sock) as secure:
                secure.sendall(HELLO)
                return {"refused": "", "received": len(_all(secure))}
        except (ssl.SSLError, ConnectionError) as e:
            return {"refused": str(e), "received": 0}


def plain(host: str, port: int) -> dict:
    """The same without TLS."""
    with socket.create_connection((host, port), 5) as sock:
        sock.settimeout(15)
        try:
            sock.sendall(HELLO)
            answer = _all(sock)
        except ConnectionError as e:
            return {"refused": str(e), "received": 0}
    return {"refused": "closed", "received": len(answer), "hex": answer[:64].hex()}


def _all(sock) -> bytes:
    received = b""
    while len(received) < 500 and (data := sock.recv(65536)):  # so much only who is heard gets
        received += data
    return received


async def scan(host: str, first: int = PORTS.start, last: int = PORTS.stop) -> dict:
    """Connect everywhere, say nothing, go."""
    ports, found = iter(range(first, last)), []

    async def some():
        for port in ports:
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 2)
            except (OSError, TimeoutError):
                continue
            found.append(port)
            writer.close()

    await asyncio.gather(*(some() for _ in range(200)))
    return {"open": sorted(found)}


async def idle(host: str, port: int) -> dict:
    """Hold connections until stdin ends; how many the agent still held then."""
    opened = [await asyncio.wait_for(asyncio.open_connection(host, port), 10) for _ in range(CONNECTIONS)]
    print(json.dumps({"opened": len(opened)}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    held = sum(not reader.at_eof() for reader, _ in opened)
    for _, writer in opened:
        writer.transport.abort()
    return {"held": held}


async def claim(host: str, port: int, folder: str, board: str) -> dict:
    """Try to change the plan: why not?"""
    client = await BoardClient(board, host, port, client_credentials(folder)).connect()
    epoch = (await client.status()).epoch or 0
    answer = await client.ask(m.Claim({"replaces": epoch, "epoch": epoch + 1}), m.Claimed)
    client.close()
    return {"error": answer.content["error"]}


async def stand(host: str, port: int, folder: str, board: str) -> dict:
    """Hold a connection, with pings, until it ends."""
    client = await BoardClient(board, host, port, client_credentials(folder)).connect()
    print(json.dumps({"stands": True}), flush=True)
    async with asyncio.timeout(300):
        return {"ended": str(await client.lost)}


def main() -> None:
    kind, host, port, *folder = sys.argv[1:]
    match kind:
        case "tls":
            answer = tls(host, int(port), folder[0] if folder else None)
        case "plain":
            answer = plain(host, int(port))
        case "scan":
            answer = asyncio.run(scan(host))
        case "claim":
            answer = asyncio.run(claim(host, int(port), *folder))
        case "stand":
            answer = asyncio.run(stand(host, int(port), *folder))
        case "idle":
            answer = asyncio.run(idle(host, int(port)))
    print(json.dumps(answer))


if __name__ == "__main__":
    warnings.simplefilter("ignore", ResourceWarning)
    main()
