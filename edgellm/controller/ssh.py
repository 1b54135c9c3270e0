"""SSH to boards: one fixed script a connection, its lines as they come, every wait with a deadline.

Host keys work as with OpenSSH's `accept-new`: a board's first key is accepted, reported and added to known_hosts; a
changed one is refused. Keys come from the inventory, from ssh-agent, or from ~/.ssh; ~/.ssh/config is read for the
host's name, user, port, key and host key rules.
"""

import contextlib
import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import BoardError, UsageError
from edgellm.manager.cluster_file import SshAccess
from edgellm.wire.printable import printable
from edgellm.wire.reasons import connection_reason

CONNECT_TIMEOUT_S = 6.0
_LOGIN_TIMEOUT_S = 15.0
_POLL_S = 0.2
_KEEPALIVE_S = 10
_MAX_LINE_BYTES = 64 << 10
_MAX_STDERR_BYTES = 4096
# As root if the user may without a password, since shards, certificates and the journal belong to others.
_COMMAND = "sh -c 'if sudo -n true 2>/dev/null; then exec sudo -n sh -s; else exec sh -s; fi'"
_known_hosts = threading.Lock()  # boards are asked at once, and may be new at once


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class Done:
    """How a script ended: its exit code (-1 if the board didn't say) and the end of what it said on stderr."""

    code: int
    stderr: str


def run_script(
    board: str, access: SshAccess, script: str, on_line: Callable[[str], None], *, deadline_s: float | None,
    max_bytes: int | None = 4 << 20, stop: threading.Event | None = None, tell: Callable[[str], None] = _silent,
) -> Done:  # fmt: skip
    """Run `script` (fixed text: nothing of a user's or a board's may be pasted into it) by sh on a board.

    `on_line` gets each line of stdout as it comes, control characters included: show it `printable` only. Ends when the
    script does, or when `stop` is set. Raises BoardError, naming the board and the way out, if the board can't be
    reached, refuses us, is lost, sends more than `max_bytes`, or takes longer than `deadline_s` (None: no limit).
    """
    client, access = _connect(board, access, tell)
    try:
        transport = client.get_transport()
        transport.set_keepalive(_KEEPALIVE_S)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # a cut cable ends the connection
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2 * _KEEPALIVE_S * 1000)
        channel = transport.open_session(timeout=_LOGIN_TIMEOUT_S)
        channel.settimeout(_LOGIN_TIMEOUT_S)
        channel.exec_command(_COMMAND)
        channel.sendall(b"{\n" + script.encode() + b"\nexit\n}\n")  # in braces: read to its end before it runs
        channel.shutdown_write()
        return _receive(board, channel, on_line, deadline_s, max_bytes, stop or threading.Event())
    except (OSError, EOFError) as e:
        reason = connection_reason(e) if str(e) else "closed by the board"
        raise BoardError(f"board {board}: SSH connection lost: {reason}", board) from None
    except Exception as e:
        raise _explain(board, access, e) from None
    finally:
        client.close()


def _receive(board, channel, on_line, deadline_s, max_bytes, stop) -> Done:
    lines, stderr, received = _Lines(on_line), bytearray(), 0
    end_s = None if deadline_s is None else time.monotonic() + deadline_s
    channel.settimeout(_POLL_S)
    while not stop.is_set():
        try:
            data = channel.recv(1 << 15)
            received += len(data)
            lines.feed(data)
        except TimeoutError:
            data = None
        while channel.recv_stderr_ready():
            piece = channel.recv_stderr(1 << 15)
            received += len(piece)
            stderr = (stderr + piece)[-_MAX_STDERR_BYTES:]
            if not piece:
                break
        if data == b"":
            break
        if max_bytes is not None and received > max_bytes:
            raise BoardError(f"board {board}: said {received} bytes over SSH, expected at most {max_bytes}", board)
        if end_s is not None and time.monotonic() > end_s:
            raise BoardError(f"board {board}: not done over SSH within {deadline_s:g} s", board)
    if stop.is_set():
        return Done(-1, "")
    lines.end()
    channel.status_event.wait(_LOGIN_TIMEOUT_S)
    if channel.exit_status == -1:
        raise EOFError
    return Done(channel.exit_status, stderr.decode(errors="replace"))


class _Lines:
    """Bytes into lines; of one that is too long, the beginning."""

    def __init__(self, on_line: Callable[[str], None]):
        self._on_line, self._begun = on_line, bytearray()

    def feed(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._add(line)
            self.end()
        self._add(rest)

    def end(self) -> None:
        if self._begun:
            self._on_line(self._begun.decode(errors="replace").rstrip("\r"))
            self._begun.clear()

    def _add(self, data: bytes) -> None:
        self._begun += data[: _MAX_LINE_BYTES - len(self._begun)]


def _connect(board: str, access: SshAccess, tell):
    """Return a paramiko client that is logged in, and the access it used in full. Raises BoardError."""
    try:
        import paramiko
    except ModuleNotFoundError:
        raise UsageError("SSH needs paramiko: pip install 'edgellm[controller]'") from None

    logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)  # its errors reach us as exceptions
    config = _user_config(access.host)
    access = _resolved(access, config)
    client = paramiko.SSHClient()
    try:
        files = [Path(p).expanduser() for p in config.get("userknownhostsfile", "~/.ssh/known_hosts").split()]
        strict = config.get("stricthostkeychecking") == "yes"
        known = _load_known_hosts(client.get_host_keys(), [*files, Path("/etc/ssh/ssh_known_hosts")])
        client.set_missing_host_key_policy(_AcceptNew(board, files[0], strict, tell))
        dial = functools.partial(
            client.connect, access.host, access.port, access.user,
            pkey=_load_key(board, access.key) if access.key else None, look_for_keys=not access.key,
            timeout=CONNECT_TIMEOUT_S, banner_timeout=_LOGIN_TIMEOUT_S, auth_timeout=_LOGIN_TIMEOUT_S,
            channel_timeout=_LOGIN_TIMEOUT_S,
        )  # fmt: skip
        try:
            dial()
        except paramiko.BadHostKeyException as e:
            # paramiko knows one key of a kind for a host; as for OpenSSH, each line of known_hosts counts.
            name = _known_name(access)
            if not _is_known(known, name, e.key):
                raise
            client.close()
            client.get_host_keys().clear()
            client.get_host_keys().add(name, e.key.get_name(), e.key)
            dial()
    except BaseException as e:
        client.close()
        if isinstance(e, Exception):
            raise _explain(board, access, e) from None
        raise
    return client, access


def _resolved(access: SshAccess, config: dict) -> SshAccess:
    """Return the access with what ~/.ssh/config adds: the real host name, and what the inventory leaves open."""
    keys = [k for k in config.get("identityfile", ()) if Path(k).expanduser().is_file()]
    return SshAccess(
        config.get("hostname", access.host), access.user or config.get("user"),
        access.port or int(config.get("port", 22)), access.key or next(iter(keys), None),
    )  # fmt: skip


def _user_config(host: str) -> dict:
    """Return what ~/.ssh/config says of the host, by OpenSSH's names in lower case."""
    import paramiko

    try:
        return paramiko.SSHConfig.from_path(str(Path("~/.ssh/config").expanduser())).lookup(host)
    except Exception:  # not there, or more than paramiko understands
        return {}


def _load_key(board: str, key: str):
    """Return the key in a file; None if it has a passphrase, so that only ssh-agent can use it."""
    import paramiko

    path = Path(key).expanduser()
    try:
        return paramiko.PKey.from_path(path)
    except OSError as e:
        raise BoardError(f"board {board}: SSH key {path}: {(e.strerror or str(e)).lower()}", board) from None
    except (TypeError, paramiko.PasswordRequiredException):
        return None
    except Exception:
        raise BoardError(f"board {board}: SSH key {path} is not a private key that can be read", board) from None


def _load_known_hosts(keys, files: list[Path]) -> list:
    """Add every line that can be understood, except markers (@cert-authority, @revoked); return them as entries."""
    import paramiko

    known = []
    for path in files:
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            entry = None
            if line.strip() and line.lstrip()[0] not in "#@":
                with contextlib.suppress(Exception):
                    entry = paramiko.hostkeys.HostKeyEntry.from_line(line.strip())
            if entry is not None and entry.key is not None:
                known.append(entry)
                for name in entry.hostnames:
                    keys.add(name, entry.key.get_name(), entry.key)
    return known


def _known_name(access: SshAccess) -> str:
    """Return what known_hosts calls a place."""
    return access.host if access.port == 22 else f"[{access.host}]:{access.port}"


def _is_known(entries: list, hostname: str, key) -> bool:
    """Return whether one of the entries says that a host has this key."""
    import paramiko

    alone = paramiko.HostKeys()
    for entry in entries:
        if entry.key == key:
            for name in entry.hostnames:
                alone.add(name, key.get_name(), key)
    return alone.check(hostname, key)


class _AcceptNew:
    """paramiko's question what to do about a host that known_hosts doesn't have."""

    def __init__(self, board: str, file: Path, strict: bool, tell):
        self._board, self._file, self._strict, self._tell = board, file, strict, tell

    def missing_host_key(self, client, hostname: str, key) -> None:
        """Write the key down (one line more; the rest of the file stays as it is), and say so."""
        if self._strict:
            raise BoardError(
                f"board {self._board}: the host key of {hostname} is not in known_hosts, and ~/.ssh/config is strict "
                f"about that. Run 'ssh {hostname}' once.", self._board,
            )  # fmt: skip
        line = f"{hostname} {key.get_name()} {key.get_base64()}\n"
        try:
            with _known_hosts:
                self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                with open(fd, "r+b", buffering=0) as f:
                    if f.seek(0, os.SEEK_END) and os.pread(fd, 1, os.fstat(fd).st_size - 1) != b"\n":
                        line = "\n" + line
                    f.write(line.encode())
            where = f"now in {self._file}"
        except OSError as e:
            where = f"could not be written to {self._file} ({e.strerror})"
        self._tell(f"{self._board}: the SSH host key of {hostname} is new, {where}: {key.fingerprint}")


def _explain(board: str, access: SshAccess, error: Exception) -> BoardError:
    """Return what paramiko raises, as one sentence with the way out."""
    import paramiko

    place = f"{access.host}:{access.port}"
    match error:
        case BoardError():
            return error
        case paramiko.BadHostKeyException():
            reason = (
                f"its SSH host key has changed, to {error.key.fingerprint}. If you reinstalled it, run "
                f"\"ssh-keygen -R '{_known_name(access)}'\" and try again"
            )
        case paramiko.AuthenticationException():
            who, key = access.user or "you", f" with key {access.key}" if access.key else ""
            reason = f"SSH refuses {who}{key}. Check the inventory's user and key, or 'ssh-add' one with a passphrase"
        case paramiko.ssh_exception.NoValidConnectionsError():
            refused = [e for e in error.errors.values() if isinstance(e, ConnectionRefusedError)]
            reason = f"SSH: {connection_reason([*refused, *error.errors.values()][0], 'sshd')}"
        case TimeoutError():
            reason = f"no answer by SSH within {CONNECT_TIMEOUT_S:g} s"
        case OSError() | UnicodeError():
            reason = f"SSH: {connection_reason(error, 'sshd')}"
        case paramiko.SSHException() if "authentication methods" in str(error):
            reason = "no SSH key to use. Name one in the inventory, or 'ssh-add' one"
        case _:
            reason = f"SSH failed: {printable(str(error) or type(error).__name__, 200)}"
    return BoardError(f"board {board} ({place}): {reason}", board)
