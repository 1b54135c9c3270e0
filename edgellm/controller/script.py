"""Doctor's script for a board over SSH, which is fixed text, and its output as facts."""

import re
from datetime import UTC, datetime

from edgellm.controller.doctor import Unit
from edgellm.wire.printable import printable

_LEAST_READ_BYTES = 4 << 20  # less read at once says nothing of a disk
_FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"

# Fixed text: the script can't depend on anything that a user or a board has sent.
_ASK = r"""
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec </dev/null
echo "clock $(date +%s.%N)"
echo "user $(id -u)"
echo "uptime $(cat /proc/uptime)"
systemctl show edgellm-agent.service -p LoadState -p ActiveState -p SubState -p UnitFileState -p NRestarts \
    -p ActiveEnterTimestampMonotonic 2>/dev/null | sed 's/^/unit /'
df -Pk /var/lib/edgellm /opt/edgellm 2>/dev/null | awk 'NR > 1 { print "free", $4 }'
command -v vcgencmd >/dev/null && echo "firmware $(vcgencmd get_throttled 2>/dev/null)"
sed 's/^/cert /' /etc/edgellm/tls/cert.pem 2>/dev/null
sed 's/^/ca /' /etc/edgellm/tls/ca.pem 2>/dev/null
echo "key $(stat -c %a /etc/edgellm/tls/key.pem 2>/dev/null)"
cd /var/lib/edgellm/model/ 2>/dev/null || { echo "end"; exit 0; }
stat -L -c 'file %s %n' -- * 2>/dev/null
largest=$(ls -S -- *.safetensors 2>/dev/null | head -n 1)
[ -n "$largest" ] && dd if="./$largest" of=/dev/null bs=1M count=64 iflag=direct 2>&1 |
    sed -n 's/^[0-9].*copied/read &/p'
"""
_SUMS = r"""
for file in *; do
    [ -f "$file" ] || continue
    sum=$(nice -n 19 sha256sum <"$file" 2>/dev/null)
    echo "sum ${sum%% *} $file"
done
"""
QUICK_SCRIPT = _ASK + "echo end\n"
SCRIPT = _ASK + _SUMS + "echo end\n"


def parse(lines: list[tuple[float, str]], quick: bool = False) -> dict:
    """Return what the script said, with the time that each line came, as fields of `Facts`. What isn't well-formed is
    left out."""
    said: dict[str, list[str]] = {}
    came_s: dict[str, float] = {}
    for at_s, line in lines:
        word, _, rest = line.partition(" ")
        said.setdefault(word, []).append(rest)
        came_s.setdefault(word, at_s)
    if not lines or lines[-1][1] != "end":
        return {"ssh_error": "its answers over SSH stopped early; do its disk and its shell work?"}
    facts: dict = {"is_root": said.get("user") == ["0"]}
    if (clock := _float(_first(said, "clock"))) is not None:
        facts["skew_s"] = clock - came_s["clock"]
    unit = dict(line.partition("=")[::2] for line in said.get("unit", ()))
    if unit:
        facts["unit"] = _unit(unit, _float(_first(said, "uptime").split(" ")[0]))
    free = [n for text in said.get("free", ()) if (n := _int(text)) is not None]
    if free:
        facts["disk_free_bytes"] = min(free) * 1024
    if match := re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})", _first(said, "firmware")):
        facts["firmware"] = int(match[1], 16)
    if match := re.match(r"(\d{1,15}) bytes .*copied, ([0-9.e+-]{1,20}) s", _first(said, "read")):
        seconds = _float(match[2])
        if seconds and seconds > 0 and int(match[1]) >= _LEAST_READ_BYTES:
            facts["read_bytes_per_s"] = int(match[1]) / seconds
    for word, field in (("cert", "certificate_days"), ("ca", "ca_days")):
        if word in said:
            days = _days("\n".join(said[word]))
            facts |= {field: days} if days is not None else {"certificate_error": "its certificate can't be read"}
    if re.fullmatch(r"[0-7]{3,4}", _first(said, "key")):
        facts["key_mode"] = _first(said, "key")
    if "file" in said or facts["is_root"]:
        facts["files"] = _named(said.get("file", ()), r"(\d{1,15})", int)
    if "files" in facts and not quick:
        facts["sums"] = _named(said.get("sum", ()), r"([0-9a-f]{64}|)", str)
    return facts


def _unit(said: dict[str, str], uptime_s: float | None) -> Unit:
    active_since = _int(said.get("ActiveEnterTimestampMonotonic", ""))
    since_s = None if active_since is None or uptime_s is None else max(0.0, uptime_s - active_since / 1e6)
    load, active, sub, enabled = (
        printable(said.get(k, ""), 40) for k in ("LoadState", "ActiveState", "SubState", "UnitFileState")
    )
    return Unit(load, active, sub, enabled, restarts=_int(said.get("NRestarts", "")) or 0, since_s=since_s)


def _days(pem: str) -> float | None:
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        return None
    return (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86400


def _named(lines, value: str, make) -> dict:
    """Return lines "VALUE NAME" as {name: value}."""
    found = (re.fullmatch(rf"{value} ({_FILE_NAME})", line) for line in lines)
    return {m[2]: make(m[1]) for m in found if m}


def _first(said: dict[str, list[str]], word: str) -> str:
    return said.get(word, [""])[0]


def _int(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None


def _float(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,15}(\.\d{1,12})?(e[+-]?\d{1,2})?", text) else None
