"""An SSH server on loopback, on paramiko: it takes one user with one key, and answers commands as the test says."""

import socket
import subprocess
import threading
from collections.abc import Callable

import paramiko

Answer = Callable[[str, bytes, paramiko.Channel], int]


def by_sh(command: str, script: bytes, channel: paramiko.Channel) -> int:
    """Really run it, without the sudo of the machine that the tests run on."""
    command = command.replace("sudo -n true", "false")
    done = subprocess.run(["sh", "-c", command], input=script, capture_output=True, timeout=20)
    channel.sendall(done.stdout)
    channel.sendall_stderr(done.stderr)
    return done.returncode


class Sshd(paramiko.ServerInterface):
    """Use as `with Sshd() as sshd`; `answer(command, stdin, channel)` writes to the channel and returns the exit code,
    None to hang up without one."""

    def __init__(self, answer: Answer = by_sh, user: str = "edge"):
        self.answer, self.user = answer, user
        self.host_key = paramiko.ECDSAKey.generate()
        self.user_key = paramiko.ECDSAKey.generate()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._transports: list[paramiko.Transport] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> "Sshd":
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)
        for transport in self._transports:
            transport.close()
            transport.join(10)

    def hang_up(self) -> None:
        """As if the board had lost power, and another had sent resets for it."""
        for transport in self._transports:
            transport.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(self.host_key)
            self._transports.append(transport)
            try:
                transport.start_server(server=self)
            except (paramiko.SSHException, EOFError, OSError):
                transport.close()

    # paramiko's side

    def get_allowed_auths(self, username):
        return "publickey"

    def check_auth_publickey(self, username, key):
        known = username == self.user and key.asbytes() == self.user_key.asbytes()
        return paramiko.AUTH_SUCCESSFUL if known else paramiko.AUTH_FAILED

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel, command):
        threading.Thread(target=self._run, args=(channel, command.decode()), daemon=True).start()
        return True

    def _run(self, channel, command: str) -> None:
        try:
            stdin = channel.makefile("rb").read()
            code = self.answer(command, stdin, channel)
            if code is not None:
                channel.send_exit_status(code)
            channel.close()
        except (OSError, EOFError, paramiko.SSHException):
            pass  # the other side has hung up
