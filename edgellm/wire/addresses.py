"""Where a board listens: checks hosts and ports."""

import ipaddress
import re

Address = tuple[str, int]  # a host's name or IP address, and a TCP port

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\Z")


def is_host(value: object) -> bool:
    """Return whether this is a host's name or an IP address."""
    if not isinstance(value, str):
        return False
    try:
        ipaddress.ip_address(value)
        return True
    except ValueError:
        labels = value.removesuffix(".").split(".")
        # All digits and dots would be a mistyped IPv4 address.
        return len(value) <= 253 and all(_LABEL.match(label) for label in labels) and not labels[-1].isdigit()


def is_port(value: object) -> bool:
    """Return whether this is a TCP port that can be dialled."""
    return type(value) is int and 0 < value < 1 << 16


def is_loopback(host: str) -> bool:
    """Return whether this is an address of this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.removesuffix(".").lower() == "localhost"


def parse_address(content: object) -> Address | None:
    """Return the address in a JSON value [HOST, PORT], or None if it holds none."""
    match content:
        case [str(host), int(port)] if is_host(host) and is_port(port):
            return host, port
    return None
