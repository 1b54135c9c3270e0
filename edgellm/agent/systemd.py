"""What an agent tells systemd: that it is ready, what it does, that it is alive. Silent where nobody listens."""

import os
import socket


def ready() -> None:
    """The service has started (Type=notify)."""
    _notify("READY=1")


def stopping() -> None:
    """The service drains, and will end."""
    _notify("STOPPING=1")


def status(text: str) -> None:
    """One line for `systemctl status`."""
    _notify(f"STATUS={' '.join(text.split())[:256]}")  # a line break would begin another assignment


def watchdog() -> None:
    """The service is alive (WatchdogSec=): to be called every `watchdog_interval_s()`."""
    _notify("WATCHDOG=1")


def watchdog_interval_s() -> float | None:
    """How often to call `watchdog()`: a third of what systemd allows. None where no watchdog waits for this process."""
    for_pid = os.environ.get("WATCHDOG_PID")
    if not os.environ.get("NOTIFY_SOCKET") or (for_pid and for_pid != str(os.getpid())):
        return None
    try:
        allowed_s = int(os.environ.get("WATCHDOG_USEC", "")) / 1e6
    except ValueError:
        return None
    return allowed_s / 3 if allowed_s > 0 else None


def _notify(message: str) -> None:
    """Send to systemd's socket; what can't be sent is dropped, since the service matters more than its status line."""
    place = os.environ.get("NOTIFY_SOCKET")
    if not place or place[0] not in "/@":
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(0.2)
            sock.sendto(message.encode(), "\0" + place[1:] if place[0] == "@" else place)
    except (OSError, ValueError):
        pass
