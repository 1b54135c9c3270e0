"""The board's condition, from /sys and /proc: temperature, throttling, voltage, link, RAM, uptime.

A value that can't be read is None: no board has everything, and none of it is worth failing for.
"""

import ipaddress
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edgellm.wire.status import Health

_COLDEST_C, _HOTTEST_C = -40.0, 150.0  # a sensor that says otherwise is broken or not connected
_MAX_MBIT = 1_000_000
_MAX_READ = 64 << 10
_THROTTLED_BITS = 0b1110  # of a Raspberry Pi's firmware: capped, throttled, soft limit; bit 0 is undervoltage
_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"

_Fact = TypeVar("_Fact")
_throttle_counts: dict[Path, int] = {}  # of x86 cores, by root folder, as last read


def health(address: str | None = None, *, root: Path = Path("/")) -> Health:
    """Return the health facts that can be read now; never raises.

    `address` is the IP address that the agent listens on: the link's speed is that of its interface, or without an
    address, that of the default route.
    """
    return Health(
        temperature_c=_or_none(lambda: _temperature_c(root)),
        throttled=_or_none(lambda: _throttled(root)),
        undervoltage=_or_none(lambda: _undervoltage(root)),
        link_mbit=_or_none(lambda: _link_mbit(root, address)),
        ram_total_bytes=_or_none(lambda: _ram_total_bytes(root)),
        uptime_s=_or_none(lambda: _uptime_s(root)),
    )


def _or_none(read: Callable[[], _Fact | None]) -> _Fact | None:
    try:
        return read()
    except Exception:  # drivers may raise anything
        return None


def _temperature_c(root: Path) -> float | None:
    readings = [_number(p) for p in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))]
    celsius = [r / 1000 for r in readings if r is not None and _COLDEST_C <= r / 1000 <= _HOTTEST_C]
    return max(celsius, default=None)


def _throttled(root: Path) -> bool | None:
    firmware = _firmware(root)
    told = [_cooled(root), _counts_rose(root), None if firmware is None else bool(firmware & _THROTTLED_BITS)]
    if told[0] is None:
        told[0] = _held_down(root)
    known = [t for t in told if t is not None]
    return any(known) if known else None


def _cooled(root: Path) -> bool | None:
    """Return whether the kernel's thermal governor holds a CPU's frequency down."""
    states = []
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        kind = _text(device / "type") or ""
        if "cpufreq" in kind:
            states.append(_number(device / "cur_state"))
    known = [s for s in states if s is not None]
    return any(s > 0 for s in known) if known else None


def _held_down(root: Path) -> bool | None:
    """Return whether a CPU may not run at its top frequency.

    Use this only if there is no cooling device, because an owner or an image (Armbian's) may cap it on purpose.
    """
    pairs = [
        (_number(policy / "scaling_max_freq"), _number(policy / "cpuinfo_max_freq"))
        for policy in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    ]
    known = [now < most for now, most in pairs if now is not None and most is not None]
    return any(known) if known else None


def _counts_rose(root: Path) -> bool | None:
    """Return whether an x86 core was throttled since the last look; None on the first call, and if no core counts."""
    cores = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle")
    counts = [_number(core / name) for core in cores for name in ("core_throttle_count", "package_throttle_count")]
    known = [c for c in counts if c is not None]
    if not known:
        return None
    before, _throttle_counts[root] = _throttle_counts.get(root), sum(known)
    return None if before is None else sum(known) > before


def _undervoltage(root: Path) -> bool | None:
    told: list[int | None] = []
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if _text(monitor / "name") == "rpi_volt":
            told.append(_number(monitor / "in0_lcrit_alarm"))
    firmware = _firmware(root)
    told.append(None if firmware is None else firmware & 1)
    known = [t for t in told if t is not None]
    return any(k > 0 for k in known) if known else None


def _firmware(root: Path) -> int | None:
    """Return a Raspberry Pi's throttling bits, where its kernel shows them."""
    text = _text(root / _FIRMWARE)
    return int(text, 16) if text else None


def _link_mbit(root: Path, address: str | None) -> int | None:
    interface = _interface(root, address)
    if interface is None or "/" in interface or interface.startswith("."):
        return None
    speed = _number(root / "sys/class/net" / interface / "speed")
    return speed if speed is not None and 0 < speed <= _MAX_MBIT else None  # -1: no cable; wireless has no file


def _interface(root: Path, address: str | None) -> str | None:
    """Return the interface of this address, or of the default route.

    It comes from the routing table, because a hardened unit may not ask the kernel (AF_NETLINK) for addresses.
    """
    try:
        ip = ipaddress.ip_address((address or "").strip("[]").partition("%")[0])
    except ValueError:
        ip = ipaddress.IPv4Address(0)  # a name, or none: most likely where the default route leads
    if ip.is_loopback:
        return None
    if ip.version == 6 and not ip.is_unspecified:
        for line in (_text(root / "proc/net/if_inet6") or "").splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[0] == ip.packed.hex():
                return fields[5]
    routes = _routes(root)
    own = [r for r in routes if ip.version == 4 and ip in r[0]] or [r for r in routes if not r[0].prefixlen]
    if own:
        return min(own, key=lambda r: (-r[0].prefixlen, r[1]))[2]
    found = []
    for line in (_text(root / "proc/net/ipv6_route") or "").splitlines():
        fields = line.split()
        if len(fields) > 9 and fields[0] == "0" * 32 and fields[1] == "00" and fields[9] != "lo":
            found.append((int(fields[5], 16), fields[9]))
    return min(found)[1] if found else None


def _routes(root: Path) -> list[tuple[ipaddress.IPv4Network, int, str]]:
    """Yield (network, metric, interface) of the IPv4 routing table."""
    found = []
    for line in (_text(root / "proc/net/route") or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7:
            # Numbers as this machine holds what are bytes in network order.
            network, mask = (struct.pack("=I", int(fields[i], 16)) for i in (1, 7))
            prefix = f"{ipaddress.IPv4Address(network)}/{ipaddress.IPv4Address(mask)}"
            found.append((ipaddress.IPv4Network(prefix), int(fields[6]), fields[0]))
    return found


def _ram_total_bytes(root: Path) -> int | None:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            return int(value.split()[0]) * 1024
    return None


def _uptime_s(root: Path) -> float | None:
    text = _text(root / "proc/uptime")
    return float(text.split()[0]) if text else None


def _number(path: Path) -> int | None:
    text = _text(path)
    try:
        return int(text) if text else None
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    """Return a small file's text; None if it can't be read: some files give an error while they have no value."""
    try:
        with open(path, "rb") as f:
            return f.read(_MAX_READ).decode(errors="replace").strip()
    except OSError:
        return None
