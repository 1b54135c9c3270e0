"""Tells systemd that the agent is ready, drains, or is alive. Does nothing without systemd."""

import os
import socket


def ready() -> None:
    """Say that the service has started (Type=notify)."""
    _notify("READY=1")


def stopping() -> None:
    """Say that the service drains, and will end."""
    _notify("STOPPING=1")


def watchdog() -> None:
    """Say that the service is alive; call it far more often than the unit's WatchdogSec."""
    _notify("WATCHDOG=1")


def _notify(message: str) -> None:
    """Send to systemd's socket. A message that can't be sent is dropped, because the service matters more."""
    place = os.environ.get("NOTIFY_SOCKET")
    if not place or place[0] not in "/@":
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(0.2)
            sock.sendto(message.encode(), "\0" + place[1:] if place[0] == "@" else place)
    except (OSError, ValueError):
        pass
