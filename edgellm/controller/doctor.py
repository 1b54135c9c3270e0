"""Diagnoses what is wrong with a board, and what to do: from facts to findings, without I/O."""

from dataclasses import asdict, dataclass, field

from edgellm.config import AGENT_BYTES, DEFAULT_PORT
from edgellm.controller.remembered import Failure
from edgellm.manager.pairs import HERE
from edgellm.plan import headroom_bytes

DEPLOY = "Run 'edgellm deploy'"

_SKEW_S = 5.0  # certificates and logs go by the clock
_GIGABIT = 1000
_HOT_C = 80.0  # boards slow down from here or a little above
_SLOW_READ = 20e6  # bytes/s: a gigabyte of shards takes most of a minute to take over
_DISK_FREE_BYTES = 1_000_000_000
_SYSTEM_BYTES = 200_000_000  # Debian with sshd and its journal
_CERTIFICATE_DAYS = 30
_RESTARTED_S = 86400.0  # restarts longer ago than this are history


@dataclass(frozen=True)
class Unit:
    """The agent's systemd unit; `restarts` since it was started by hand, `since_s` how long it has been active."""

    load: str
    active: str
    sub: str
    enabled: str
    restarts: int = 0
    since_s: float | None = None


@dataclass(frozen=True)
class Facts:
    """What is known of a board; None: not known. `*_error` is a reason where something failed, else None.

    `port` is the agent's. `reached_by` are the boards that reach it, and `pairs` is what keeps it and other boards from
    reaching each other, as (what, todo). `failures` are those that its agent remembers.

    `idle` is why a board of the plan doesn't serve it, though its agent answers; `ready` is whether all it takes is a
    question, at which it loads its section. `path` and `kernels` are how it computes, `native_elsewhere` whether
    another board computes natively.

    `files` are sizes in bytes by name, of what lies in its model folder; `sums` are their SHA-256 ("" for one that
    can't be read); `needed` are the names that must be there; `manifest` has (size, SHA-256) by name.
    """

    board: str
    tcp_error: str | None = None
    wire_error: str | None = None
    ssh_error: str | None = None
    port: int = DEFAULT_PORT
    reached_by: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    idle: str | None = None
    ready: bool = False
    has_ssh: bool = True
    is_root: bool = True
    version: str | None = None
    our_version: str | None = None
    unit: Unit | None = None
    skew_s: float | None = None
    link_mbit: int | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    undervoltage: bool | None = None
    firmware: int | None = None
    ram_total_bytes: int | None = None
    offered_bytes: int | None = None
    need_bytes: int | None = None
    disk_free_bytes: int | None = None
    read_bytes_per_s: float | None = None
    path: str | None = None
    native_elsewhere: bool = False
    kernels: str | None = None
    manifest_error: str | None = None
    model_sha256: str | None = None
    manifest_sha256: str | None = None
    manifest: dict[str, tuple[int, str]] = field(default_factory=dict)
    needed: frozenset[str] = frozenset()
    files: dict[str, int] | None = None
    sums: dict[str, str] | None = None
    failures: tuple[Failure, ...] = ()
    certificate_error: str | None = None
    certificate_days: float | None = None
    ca_days: float | None = None
    key_mode: str | None = None


@dataclass(frozen=True)
class Finding:
    """Something wrong with `board`: what it is `about` (a word), `what`, and `todo`, a sentence each."""

    board: str
    about: str
    what: str
    todo: str


def diagnose(facts: Facts) -> list[Finding]:
    """Return everything that is wrong with one board; an empty list for a healthy one."""
    found = []
    for about, rule in _RULES:
        found += [Finding(facts.board, about, what, todo) for what, todo in rule(facts)]
    wrong = {f.about for f in found}  # which says more of the same files
    return found + [Finding(facts.board, *f) for f in facts.failures if f.about != "shards" or "shards" not in wrong]


def summary(facts: Facts) -> str:
    """Return in one short line what is fine, and what was measured."""
    parts = []
    if facts.version:
        parts.append(f"edgellm {facts.version}")
    if facts.ready:
        parts.append("loads its section at the next question")
    if facts.temperature_c is not None:
        parts.append(f"{facts.temperature_c:.0f} °C")
    if facts.link_mbit is not None:
        parts.append(f"link {facts.link_mbit} Mb/s")
    if facts.read_bytes_per_s is not None:
        parts.append(f"reads {facts.read_bytes_per_s / 1e6:.0f} MB/s")
    if facts.disk_free_bytes is not None:
        parts.append(f"{facts.disk_free_bytes / 1e9:.1f} GB of disk free")
    if facts.sums is not None:
        parts.append(f"{sum(1 for n in facts.sums if n in facts.manifest)} files of the model verified")
    elif facts.files is not None:
        parts.append(f"{sum(1 for n in facts.files if n in facts.manifest)} files of the model there")
    if facts.skew_s is not None:
        parts.append(f"clock {facts.skew_s:+.1f} s")
    if facts.certificate_days is not None:
        parts.append(f"certificate for {facts.certificate_days:.0f} days")
    if not facts.has_ssh and facts.board != HERE:
        parts.append("no SSH in the cluster file: only what its agent reports")
    return ", ".join(parts)


def report(facts: Facts, findings: list[Finding]) -> dict:
    """Return a board's findings and facts for JSON; of its files, how many were there and how many were read."""
    known = asdict(facts)
    for name in ("board", "manifest", "needed", "files", "sums", "pairs", "failures"):
        del known[name]
    return {
        "board": facts.board,
        "findings": [{"about": f.about, "what": f.what, "todo": f.todo} for f in findings],
        "facts": {
            **known,
            "files": None if facts.files is None else len(facts.files),
            "sums": None if facts.sums is None else len(facts.sums),
        },
    }


def _reach(f: Facts):
    though = f", though {', '.join(f.reached_by)} can reach it" if f.reached_by else ""
    if f.tcp_error and f.has_ssh and f.ssh_error:
        todo = "Check its power, its cable, and its address in the inventory."
        todo = "Check this machine's network and firewall." if f.reached_by else todo
        yield f"can't be reached: {f.tcp_error}{though}", todo
        return
    if f.ssh_error:
        yield f.ssh_error, "Until SSH works, only what its agent reports is known."
    elif not f.is_root:
        yield "its SSH user may not use sudo without a password", "Allow it; until then not everything can be checked."
    if f.tcp_error and not f.has_ssh:
        yield f"its agent can't be reached: {f.tcp_error}", "Check that it runs, its cable, and its address."
    elif f.tcp_error and (f.unit is None or f.unit.active == "active"):
        yield (
            f"its agent can't be reached: {f.tcp_error}{though}",
            f"Check its firewall, which must let in TCP port {f.port} (with ufw: 'sudo ufw allow {f.port}/tcp'), and "
            "its address in the inventory.",
        )
    elif f.wire_error and not f.tcp_error:
        by_certificate = "certificate" in f.wire_error or "TLS" in f.wire_error
        if "version" in f.wire_error:
            todo = "Run 'edgellm upgrade', so that all have one version."
        elif by_certificate and _clock_is_wrong(f):
            todo = "Set its clock first: a certificate is valid from one time to another."
        elif by_certificate and "clock" in f.wire_error:
            todo = "Compare 'date' there and here, and set the clock that is wrong."
        elif by_certificate:
            todo = f"{DEPLOY}, which renews certificates."
        else:
            todo = f"'edgellm logs {f.board}' may say why."
        yield f"its agent doesn't answer correctly: {f.wire_error}", todo


def _pairs(f: Facts):
    yield from f.pairs


def _agent(f: Facts):
    unit = f.unit
    if unit is None:
        return
    logs = f"'edgellm logs {f.board}' says why"
    if unit.load in ("not-found", ""):
        yield "the agent is not installed", f"{DEPLOY}."
        return
    if unit.active != "active":
        yield f"the agent does not run ({unit.active}, {unit.sub})", f"{logs}; {_lower(DEPLOY)} to start it."
    if unit.enabled not in ("enabled", "enabled-runtime", "static", "linked"):
        yield f"the agent would not start after a reboot ({unit.enabled or 'not enabled'})", f"{DEPLOY}."
    if unit.restarts and (unit.since_s is None or unit.since_s < _RESTARTED_S):
        ago = "" if unit.since_s is None else f", the last time {_span(unit.since_s)} ago"
        yield f"the agent was restarted {unit.restarts} times{ago}", f"{logs}."


def _plan(f: Facts):
    if f.idle and not (f.model_sha256 and f.model_sha256 != f.manifest_sha256):  # which is named below
        yield f"it does not serve its section: {f.idle}", f"Ask anything, or {_lower(DEPLOY)}: either settles the plan."


def _version(f: Facts):
    if f.version and f.our_version and f.version != f.our_version:
        yield (
            f"it runs edgellm {f.version}, this machine {f.our_version}",
            "Run 'edgellm upgrade'.",
        )


def _clock_is_wrong(f: Facts) -> bool:
    return f.skew_s is not None and abs(f.skew_s) > _SKEW_S


def _clock(f: Facts):
    if f.skew_s is not None and _clock_is_wrong(f):
        where = "ahead of" if f.skew_s > 0 else "behind"
        yield (
            f"its clock is {_span(abs(f.skew_s))} {where} this machine's",
            "Let it keep time with 'sudo timedatectl set-ntp true', or set it.",
        )


def _link(f: Facts):
    if f.link_mbit is not None and f.link_mbit < _GIGABIT:
        yield (
            f"its link runs at {f.link_mbit} Mb/s",
            "If board and switch support 1000 Mb/s, try another cable or port: all four pairs must connect.",
        )


def _heat(f: Facts):
    degrees = "" if f.temperature_c is None else f" ({f.temperature_c:.0f} °C)"
    since_boot = bool(f.firmware and f.firmware >> 16 & 0b1110)
    todo = "Give it a heat sink, a fan, or more air."
    if f.temperature_c is not None and f.temperature_c >= _HOT_C:
        yield f"it is hot: {f.temperature_c:.0f} °C, and slows down{' now' if f.throttled else ' soon'}", todo
    elif f.throttled or (f.firmware and f.firmware & 0b1110):
        yield f"its CPU is throttled{degrees}", todo
    elif since_boot:
        yield "its CPU has been throttled since it booted", todo


def _power(f: Facts):
    todo = "Use the power supply that its maker recommends, with a short, thick cable."
    if f.undervoltage or (f.firmware and f.firmware & 1):
        yield "its power supply is too weak now", todo
    elif f.firmware and f.firmware >> 16 & 1:
        yield "its power supply has been too weak since it booted", todo


def _disk(f: Facts):
    if f.read_bytes_per_s is not None and f.read_bytes_per_s < _SLOW_READ:
        yield (
            f"its disk reads {f.read_bytes_per_s / 1e6:.1f} MB/s, expected {_SLOW_READ / 1e6:.0f} or more",
            "Taking over layers will be slow: give it a better card, or an SSD.",
        )
    if f.disk_free_bytes is not None and f.disk_free_bytes < _DISK_FREE_BYTES:
        yield (
            f"{f.disk_free_bytes / 1e9:.2f} GB of its disk are free, expected {_DISK_FREE_BYTES / 1e9:.0f} or more",
            "Make room, or the next upgrade or model will not fit.",
        )


def _ram(f: Facts):
    agent_bytes = AGENT_BYTES["generic" if f.path == "generic" else "native"]
    if f.ram_total_bytes is not None and f.ram_total_bytes < _SYSTEM_BYTES + agent_bytes + headroom_bytes(0):
        yield (
            f"it has {f.ram_total_bytes / 1e9:.2f} GB of RAM; its system takes some {_SYSTEM_BYTES / 1e9:.2f} GB of it "
            f"and the agent {agent_bytes / 1e9:.2f} GB, which leaves no room for a section",
            "Remove it from the inventory.",
        )
    elif f.offered_bytes is not None and f.need_bytes is not None and f.offered_bytes < f.need_bytes:
        yield (
            f"it offers {f.offered_bytes / 1e9:.2f} GB, its section needs {f.need_bytes / 1e9:.2f} GB",
            "Stop other programs there, or let 'edgellm rebalance' move layers.",
        )


def _compute(f: Facts):
    if f.path == "generic" and f.native_elsewhere:
        yield (
            "it computes its layers slowly, with transformers, while other boards compute natively",
            f"{DEPLOY}, which sets edgellm_path for all of them.",
        )
    if f.kernels == "scalar":
        yield (
            "its CPU has none of the instructions that fast kernels need (AVX2, NEON)",
            "It computes at a tenth of the speed: remove it from the inventory if the others can hold the model.",
        )


def _shards(f: Facts):
    again = f"{DEPLOY}, which pushes what is missing or damaged."
    if f.manifest_error:
        yield f.manifest_error, again
    if f.model_sha256 and f.manifest_sha256 and f.model_sha256 != f.manifest_sha256:
        yield f"it has another model ({f.model_sha256[:12]}…, expected {f.manifest_sha256[:12]}…)", again
        return
    if f.files is None:
        return
    missing = sorted(f.needed - f.files.keys())
    if missing:
        yield f"it lacks {_some(missing)}", again
    wrong = {n for n, size in f.files.items() if n in f.manifest and size != f.manifest[n][0]}
    sums = f.sums or {}
    unread = {n for n, digest in sums.items() if not digest}
    wrong |= {n for n, digest in sums.items() if digest and n in f.manifest and digest != f.manifest[n][1]}
    if wrong - unread:
        yield f"damaged: {_some(sorted(wrong - unread))}", again
    if unread:
        yield f"can't be read: {_some(sorted(unread))}", f"The disk may be failing: replace it. {DEPLOY} after that."


def _certificates(f: Facts):
    renew = f"{DEPLOY}, which renews it."
    if f.certificate_error:
        yield f.certificate_error, renew
    for name, days in (("certificate", f.certificate_days), ("cluster's CA certificate", f.ca_days)):
        if days is not None and days < 0:
            yield f"its {name} ended {-days:.0f} days ago", renew
        elif days is not None and days < _CERTIFICATE_DAYS:
            yield f"its {name} ends in {days:.0f} days", renew
    if f.key_mode is not None and f.key_mode not in ("600", "400"):
        yield f"its private key has mode {f.key_mode}, expected 600", f"{DEPLOY}, which sets it."


# A wrong clock comes first, because certificates fail by it, and so connections.
_RULES = (
    ("clock", _clock), ("reach", _reach), ("pairs", _pairs), ("agent", _agent), ("plan", _plan), ("version", _version),
    ("link", _link), ("heat", _heat), ("power", _power), ("disk", _disk), ("ram", _ram), ("compute", _compute),
    ("shards", _shards), ("certificates", _certificates),
)  # fmt: skip


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _span(seconds: float) -> str:
    """Return a length of time in the unit that fits."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
