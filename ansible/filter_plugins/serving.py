"""Filters: where the server answers, whether it does, what its machine has against what it should have, and who it was.
"""

import base64
import hashlib
import socket
from ipaddress import ip_address
from pathlib import Path

PUSHED = ("api-keys.json", "https-cert.pem", "https-key.pem")


def url(listen: str, port, tls: str, own: str) -> str:
    """Return where a server answers that listens at an address. `own` is its machine's, in place of "all"."""
    host = own if _is_any(listen) else listen
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def names(listen: str, board: str, own: str, is_board: bool) -> list[str]:
    """Return the addresses and host names of the server, for its certificate and its check of Host headers.

    The controller is known by its own host name, a board by the inventory's.
    """
    name = board if is_board else socket.gethostname().split(".")[0]
    found = [own if _is_any(listen) else listen, own, name, f"{name}.local", "localhost", "127.0.0.1"]
    return list(dict.fromkeys(found))


def differences(found: dict, version: str, unit: str, made: dict) -> list[str]:
    """Return what differs on the server's machine: software, server; [] if nothing does.

    `found` is what roles/server/files/look.sh has printed there. `version` is the one to install, "" to keep the one
    there, and `made` the answer of `edgellm controller server`, {} if it isn't known (with --check).
    """
    should = {"active": "active", "enabled": "enabled", "unfinished": "",
              "unit": base64.b64encode(unit.encode()).decode()}  # fmt: skip
    if version:
        should["version"] = version
    if made:
        pushed = {Path(path).name: Path(path) for path in made["files"]}
        should["stamp"] = made["stamp"]
        should |= {name: _sha256(pushed[name]) if name in pushed else "" for name in PUSHED}
    differs = {
        "software": version and version not in found["complete"].split(),
        "server": any(found[key] != value for key, value in should.items()),
    }
    return [name for name, differ in differs.items() if differ]


def stands(hosts: list[dict]) -> bool:
    """Return whether a server answers on each of these machines, by their variables."""
    return all(host.get("server_told") for host in hosts)


def revoke_step(board: str, ca_options: list[str]) -> dict:
    """Return the step of `edgellm controller` that revokes the identity of a machine's server."""
    command = ["revoke", "--missing-ok", f"manager:server-{board}"[:71], *ca_options]
    return {"name": f"revoke {board}", "command": command, "optional": True}


def _is_any(address: str) -> bool:
    try:
        return ip_address(address).is_unspecified
    except ValueError:
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class FilterModule:
    """What Ansible loads."""

    def filters(self):
        return {
            "edgellm_server_url": url,
            "edgellm_server_names": names,
            "edgellm_server_differences": differences,
            "edgellm_server_revoke": revoke_step,
            "edgellm_server_stands": stands,
        }
