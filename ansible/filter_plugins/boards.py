"""Filters: a board's facts from its probe, whether the board can be used, and failed tasks in one sentence."""

import json
import re

PYTHON_LEAST = (3, 11)
CLOCK_TOLERANCE_S = 3600
MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
SYSTEMS = ("debian", "ubuntu", "armbian", "raspbian")
VERSIONS, WHEELS, MODELS = "/opt/edgellm/versions", "/var/lib/edgellm/wheels", "/var/lib/edgellm/models"
LEAST_MB = 1  # that each folder takes besides versions, wheels and shards
BYTES_PER_FILE = 24 << 10  # a version's files are larger on average
SPARE_BYTES = 200 * 10**6  # stay free beside shards, as in roles/shards
OWN_BYTES = 10 << 20  # more than edgellm's own wheel takes, packed and unpacked
STANDALONE = "/opt/edgellm/python-"  # the folder of a CPython that deploy brought begins so


def board_facts(stdout: str, now_s: float) -> dict:
    """Return the probe's `edgellm_NAME=VALUE` lines as a dict, with `clock_ahead_s` against this machine's `now_s`."""
    found = facts_in(stdout)
    found.pop("room", None)
    facts = {"missing": [], "packages": [], "python": "", "python_minor": "", "standalone_lacks": False, **found}
    facts["clock_ahead_s"] = int(found["time_s"]) - round(now_s) if found.get("time_s", "").isdigit() else 0
    facts["machine"] = MACHINES.get(found.get("machine", ""), found.get("machine", ""))
    for name in ("ram_kb", "ram_free_kb", "agent_kb"):
        facts[name] = int(found[name]) if found.get(name, "").isdigit() else 0
    facts["rooms"] = rooms(stdout)
    version = tuple(int(part) for part in found.get("python_version", "").split(".")[:2] if part.isdigit())
    if len(version) == 2 and version >= PYTHON_LEAST and found.get("python_whole") == "yes":
        facts["python_minor"] = ".".join(map(str, version))
    else:
        facts["missing"].append("python3")
    facts["standalone"] = not facts["missing"] and facts["python"].startswith(STANDALONE)
    return facts


def board_problem(facts: dict, board: str) -> str:
    """Return why the board can't be used and what to do, in one or two sentences; "" if it can."""
    system, machine, bits = facts.get("id", ""), facts["machine"], facts.get("bits", "")
    family = {system, *facts.get("id_like", "").split()}
    if facts.get("root") != "yes":
        return (
            f"board {board}: {facts.get('user', 'the user')} can't use sudo without a password. "
            f"Allow it in /etc/sudoers.d, or set another user as ansible_user."
        )
    if not family & set(SYSTEMS):
        named = facts.get("pretty") or system or "an unknown system"
        return f"board {board} runs {named}; edgellm supports Debian, Ubuntu and Armbian. Install one of them."
    if machine not in MACHINES.values():
        return f"board {board} is {machine}; edgellm runs on x86_64 and aarch64. Use a 64-bit board."
    if bits == "32" or facts.get("packages_for", machine) in ("armhf", "armel", "i386"):
        return (
            f"board {board} has a 32-bit system ({facts.get('packages_for', '32 bits')}) on a 64-bit kernel "
            f"({machine}). Install a 64-bit image on its card."
        )
    if facts.get("systemd") != "yes":
        return (
            f"board {board} was not booted with systemd, which edgellm needs to supervise the agent. Install an image "
            f"with systemd on its card."
        )
    if read_only := facts.get("read_only"):
        return (
            f"board {board}: {read_only} is on a read-only file system. Look for card errors in 'dmesg', then "
            f"remount it writable or replace the card."
        )
    if unwritable := facts.get("unwritable"):
        return f"board {board} can't write to {unwritable}. Look at its owner and at 'lsattr', then run this again."
    if closed := facts.get("closed"):
        return (
            f"board {board}: only its owner and group may enter {closed}, but the agent runs as the user edgellm. "
            f"Run 'sudo chmod o+x {closed}' there."
        )
    if problem := room_problem(facts, board, {}):
        return problem
    if abs(facts["clock_ahead_s"]) > CLOCK_TOLERANCE_S:
        hours, way = abs(facts["clock_ahead_s"]) / 3600, "ahead of" if facts["clock_ahead_s"] > 0 else "behind"
        return (
            f"board {board}: its clock is {hours:.1f} hours {way} this machine's, and certificates would not be valid. "
            f"Set it; 'timedatectl set-ntp true' does so if the board reaches a time server."
        )
    return ""


def facts_in(stdout: str) -> dict[str, str]:
    """Return the `edgellm_NAME=VALUE` lines of a script's output, whatever else and whichever line ends it has."""
    return dict(re.findall(r"^edgellm_(\w+)=(.*?)\s*$", stdout, re.M))


def rooms(stdout: str) -> dict[str, dict]:
    """Return the room that the probe found for each folder: {"free_kb", "inodes", "mount"}.

    `inodes` is None on file systems that don't run out of them.
    """
    found = {}
    for free, inodes, total, mount, folder in re.findall(
        r"^edgellm_room= *(\d+) +(\d+|-) +(\d+|-) +(/.*?) (/.*?)\s*$", stdout, re.M
    ):
        counted = inodes.isdigit() and total.isdigit() and int(total) > 0
        found[folder] = {"free_kb": int(free), "inodes": int(inodes) if counted else None, "mount": mount}
    return found


def room_problem(facts: dict, board: str, needs: dict[str, int]) -> str:
    """Return which file system has too little room for `needs`, the MB that folders take; "" if all have enough.

    Folders of one file system need the sum. Every folder that the probe looked at needs LEAST_MB besides.
    """
    by_mount: dict[str, dict[str, int]] = {}
    for folder, room in facts["rooms"].items():
        need = LEAST_MB + needs.get(folder, 0)
        by_mount.setdefault(room["mount"], {})[folder] = need
    for mount, folders in by_mount.items():
        room, need = facts["rooms"][next(iter(folders))], sum(folders.values())
        free, inodes, files = room["free_kb"] * 1024 // 10**6, room["inodes"], need * 10**6 // BYTES_PER_FILE
        each = ", ".join(f"{mb} MB in {folder}" for folder, mb in folders.items() if mb > 1 and folder != mount)
        there = f"{need} MB there" + (f" ({each})" if each else "")
        if facts.get("full") in folders:
            free = 0  # for us: the rest is root's, or beyond a quota
        if free < need:
            if free == 0:
                return (
                    f"board {board}: {mount} is full, 0 MB are free, but edgellm needs {there}. Free some space there, "
                    f"or use a larger card."
                )
            return (
                f"board {board} has {free} MB free on {mount}, but edgellm needs {there}. Free some space there, or "
                f"use a larger card."
            )
        if inodes is not None and inodes < files:
            return (
                f"board {board} has {inodes} inodes free on {mount}, but edgellm needs {files} there, one for each "
                f"file. Remove files there, or use a larger card."
            )
    return ""


def software_problem(facts: dict, board: str, wheelhouse: dict) -> str:
    """Return why a version doesn't fit on a board, and what to do; "" if it fits.

    `wheelhouse` is the answer of `edgellm controller wheelhouse`. A board without edgellm must hold the version twice,
    because the next one is installed beside the one that runs.
    """
    if wheelhouse["id"] in facts.get("complete", "").split():
        return ""
    versions, wheels = wheelhouse["installed_bytes"] * (1 if facts.get("versions") else 2), wheelhouse["bytes"]
    if facts.get("libraries") == wheelhouse["libraries"]:  # which are hard-linked, and not pushed
        versions = wheels = OWN_BYTES
    if facts["standalone_lacks"]:
        versions, wheels = versions + facts["standalone_installed_bytes"], wheels + facts["standalone_bytes"]
    return room_problem(facts, board, {VERSIONS: round(versions / 1e6), WHEELS: round(wheels / 1e6)})


def disk_estimate(facts: dict, installed_bytes: int) -> dict:
    """Return as {"disk_bytes"} what a board without edgellm has for shards once one version is installed.

    {} for other boards, because their agents know.
    """
    models, versions = facts["rooms"].get(MODELS), facts["rooms"].get(VERSIONS)
    if facts.get("installed") or not models or not versions:
        return {}
    version = installed_bytes if models["mount"] == versions["mount"] else 0
    return {"disk_bytes": max(0, models["free_kb"] * 1024 - version - SPARE_BYTES)}


def kind(facts: dict, generic: bool) -> list:
    """Return the kind of wheels that a board needs: machine, Python, and whether torch is among them."""
    return [facts["machine"], facts["python_minor"], bool(generic)]


def kinds(hosts, generic: bool, keep: bool) -> list[list]:
    """Return the kinds of wheels that boards need, from their variables. With `keep`, those that have torch keep it."""
    usable = [host["preflight_board"] for host in hosts if not host["preflight_reason"]]
    return sorted({tuple(kind(facts, generic or (keep and "torch" in facts))) for facts in usable})


def wheelhouse_step(wanted, source: str) -> dict:
    """Return the step of `edgellm controller` that gets the wheels of a kind."""
    machine, python, generic = wanted
    command = ["wheelhouse", "--machine", machine, "--python", python, "--source", source]
    return {"name": f"wheels {machine} {python} {generic}", "command": command + (["--generic"] if generic else []),
            "optional": True}  # fmt: skip


def last_line(stderr: str) -> str:
    """Return the error sentence of a failed edgellm command, without the command's name."""
    lines = [line.strip() for line in str(stderr).splitlines() if line.strip()]
    return lines[-1].removeprefix("edgellm: ").removeprefix("error: ") if lines else "it failed without a message"


def memory(facts: dict, memory_max: str, ram: str, path: str, version: str) -> dict:
    """Return a board's RAM for `edgellm controller fit`, in bytes: what would be `free` if no agent ran, and the limits
    that the agent's unit is going to have; None: no limit.

    `kept` is whether the running agent's unit has these limits and this `path` (auto or generic) already, and `stays`
    whether it also runs this `version`, so that it isn't started again for any of these.
    """
    runs = (facts.get("agent_memory_max", ""), facts.get("agent_ram", ""), facts.get("agent_path") or "auto")
    wanted = (str(memory_max), str(ram or "").replace(" ", ""), str(path))
    kept = facts["agent_kb"] > 0 and runs == wanted
    return {
        "free": (facts["ram_free_kb"] + facts["agent_kb"]) * 1024,
        "memory_max": _size(memory_max, facts["ram_kb"] * 1024, 1024),
        "ram": _size(ram, 0, 1000),
        "kept": kept,
        "stays": kept and facts.get("installed", "").rpartition("/")[2] == version,
    }


def _size(text: str, whole: int, kilo: int) -> int | None:
    """Return the bytes of "90%" (of `whole`), of "3G" for systemd or of "3GB" or "3GiB"; None for anything else."""
    if match := re.fullmatch(r"([\d.]+)%", str(text)):
        return int(whole * float(match[1]) / 100)
    if match := re.fullmatch(r"([\d.]+)\s*([KMGT]?)(i?)B?", str(text)):
        return int(float(match[1]) * (1024 if match[3] else kilo) ** " KMGT".index(match[2] or " "))
    return None


def with_packages(facts: dict, stdout: str) -> dict:
    """Return the board's facts once apt has installed what is missing; `stdout` is that of packages.sh. If apt can't,
    the board is to get a standalone CPython."""
    found = facts_in(stdout)
    if not found.get("packages"):
        return {**facts, "standalone": True, "mirror": found.get("mirror", "")}
    if found.get("python"):
        facts = {**facts, "python": found["python"], "python_minor": found["python_minor"]}
    return {**facts, "packages": found["packages"].split()}


def standalone_steps(hosts) -> list[dict]:
    """Return the steps of `edgellm controller` that get a CPython for boards that run a standalone one, from their
    variables."""
    usable = [host["preflight_board"] for host in hosts if not host["preflight_reason"]]
    machines = sorted({facts["machine"] for facts in usable if facts["standalone"]})
    return [{"name": f"python {m}", "command": ["python", "--machine", m], "optional": True} for m in machines]


def with_standalone(facts: dict, answers: dict) -> dict:
    """Return the facts of a board that runs a standalone CPython, from the answers to `standalone_steps`. A board that
    has one keeps it if this machine can't get the current one."""
    made = answers.get(f"python {facts['machine']}")
    if not made:
        return facts
    folder = f"/opt/edgellm/{made['name']}"
    return {
        **facts, "python": f"{folder}/bin/python3", "python_minor": made["minor"],
        "standalone_lacks": not facts["python"].startswith(f"{folder}/"),
        **{f"standalone_{key}": value for key, value in made.items()},
    }  # fmt: skip


def standalone_problem(facts: dict, problems: dict, board: str) -> str:
    """Return why a board without a Python gets none, from the problems of `standalone_steps`; "" if it does."""
    why_not = problems.get(f"python {facts['machine']}")
    if not why_not or not facts["missing"]:
        return ""
    has = facts.get("python_version")
    if hidden := facts.get("python_hidden"):
        has = f"only {hidden}, which the agent's user may not run"
    lacks = "Python 3.11 or newer" + (f" (it has {has})" if has else "")
    apt = "its apt reaches no mirror" if facts.get("mirror") == "no" else "its mirror doesn't offer it"
    return f"board {board} lacks {lacks}, {apt}, and this machine has none for it. {why_not}"


def known_reason(text: str, board: str, address: str = "") -> str:
    """Return the sentence for an error message that boards are known to give; "" for others."""
    place = f"{board} ({address})" if address and address != board else board
    for pattern, sentence in REASONS:
        if re.search(pattern, text, re.I):
            return sentence.format(board=board, place=place)
    return ""


def why(result, board: str, address: str = "") -> str:
    """Return a failed or unreachable task's result as a sentence that names the board and says what to do."""
    late = re.search(r"not done after (\d+) s$", str(result.get("msg")))
    if seconds := (result.get("timedout") or {}).get("period") or (late and late[1]):
        return (
            f"board {board}: SSH works, but a command was not done after {seconds} s. Try 'ssh {address or board} "
            f"true'. Its login scripts must not wait or start another shell, and its disk must answer."
        )
    texts = [result.get(key) for key in ("msg", "module_stderr", "stderr", "stdout", "module_stdout")]
    for item in result.get("results") or []:
        texts += [item.get(key) for key in ("msg", "stderr") if item.get("failed")]
    text = "\n".join(str(t) for t in texts if t)
    if ours := re.findall(r"^edgellm: (.+)$", str(result.get("stderr", "")), re.M):
        return ours[-1].strip()
    if text.startswith(("board ", "The ")):
        return " ".join(text.split())
    if sentence := known_reason(text, board, address):
        return sentence
    said = [line.strip() for line in text.splitlines() if line.strip()] or ["it gave no reason"]
    words = f"{said[0]} {said[-1] if len(said) > 1 else ''}".rstrip(". ")[:600]
    return f"board {board}: {words}. Fix that, then run this again."


def not_healthy(result, board: str, version: str, before: dict, journal: str) -> str:
    """Return why the new agent doesn't run, and what runs instead; `before` is the agent's previous state."""
    if "systemd" not in str(result.get("invocation", "")) and "edgellm-agent" not in str(result.get("msg", "")):
        return why(result, board)
    lines = [line.strip() for line in journal.splitlines() if line.strip()]
    telling = [line for line in lines if not SYSTEMD_CHATTER.match(line)] or lines
    last = " | ".join(telling[-4:]) or "without a message"
    back = f"{before['version']} runs again" if before.get("version") else "there is no previous version to go back to"
    return f"board {board}: the agent of edgellm {version} doesn't start, and {back}. Its journal ends: {last}."


def answers(stdout: str, board: str) -> bool:
    """Return whether `board` answered, according to the output of `edgellm status --json`."""
    try:
        return any(row["board"] == board and row["version"] for row in json.loads(stdout)["boards"])
    except (ValueError, KeyError, TypeError):
        return False


def lost(board: str) -> str:
    """Return the sentence for a board that stopped answering while it was being set up."""
    return f"board {board} was lost while it was being set up. Check its power and cable, then run this again."


# What systemd says of every unit that fails, whatever the reason.
SYSTEMD_CHATTER = re.compile(
    r"(Starting|Started|Stopping|Stopped|Failed to start) edgellm|edgellm-agent\.service: (Main process exited|"
    r"Control process exited|Failed with result|Scheduled restart|Consumed|Deactivated|Failed at step)"
)
# The first that matches counts, so causes come before what they lead to: a full disk also ends a connection.
REASONS = (
    (r"No space left on device|Disk quota exceeded|Errno 28|Errno 122|don't have enough free space",
     "board {board}: its disk is full. Free some space, or use a larger card."),
    (r"Read-only file system|Errno 30",
     "board {board}: its file system is read-only. Look for card errors in 'dmesg', then remount or replace it."),
    (r"Input/output error|Structure needs cleaning|Errno 5\b",
     "board {board}: its disk has errors. Check 'dmesg', and replace the card."),
    (r"password has expired|password is expired|password change required|change your password|token is no longer valid",
     "board {place}: its SSH user must change its password, which has expired. Log in once with 'ssh' and choose a new "
     "one, or let root run 'chage -d $(date +%F) USER' there."),
    (r"account has expired|account is expired",
     "board {place}: its SSH user's account has expired. Let root run 'chage -E -1 USER' there, or set another user as "
     "ansible_user."),
    (r"account is currently not available",
     "board {place}: its SSH user has no login shell. Set another user as ansible_user."),
    (r"not permitted to log in yet|System is going down",
     "board {place} is just starting or shutting down. Wait a minute, then run this again."),
    (r"must have a (tty|terminal) to run sudo",
     "board {board}: its sudo demands a terminal. Add 'Defaults:USER !requiretty' for its SSH user in /etc/sudoers.d."),
    (r"sudo: (command )?not found|sudo: No such file",
     "board {board} has no sudo. Install it with 'apt install sudo' as root, or set root as ansible_user."),
    (r"sudo: .*password is required|Missing sudo password|is not in the sudoers|may not run sudo",
     "board {board}: its user can't use sudo without a password. Allow it in /etc/sudoers.d, give the password with "
     "-K, or set another user as ansible_user."),
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED",
     "board {place} has a different SSH host key than before. If its card is new, remove the old key with "
     "'ssh-keygen -R'."),
    (r"Host key verification failed|authenticity of host",
     "board {place}: its SSH host key is unknown on this machine. Log in once with 'ssh' and accept it."),
    (r"Permission denied \(|Too many authentication failures|Permission denied, please try again",
     "board {place} refuses the SSH key or user. Correct ansible_user and ansible_ssh_private_key_file, run "
     "'ssh-copy-id', or give its password with -k."),
    (r"no such identity|Load key .*(invalid format|error in libcrypto|Permission denied)|UNPROTECTED PRIVATE KEY",
     "board {place}: this machine can't read the SSH private key. Correct ansible_ssh_private_key_file, mode 0600."),
    (r"Could not resolve hostname|Name or service not known",
     "board {place}: its name can't be resolved. Give its IP address as ansible_host."),
    (r"Connection refused",
     "board {place}: nothing listens for SSH there. Enable its ssh service, or correct ansible_host and ansible_port."),
    (r"timed out|No route to host|Network is unreachable|Host is down|Connection reset|closed by remote|Broken pipe|"
     r"kex_exchange|banner exchange|Timeout, server|Shared connection to|Connection closed|Data could not be sent",
     "board {place} can't be reached over SSH. Check its power and cable, and ansible_host."),
)  # fmt: skip


class FilterModule:
    """What Ansible loads."""

    def filters(self):
        return {
            "edgellm_board_facts": board_facts,
            "edgellm_board_problem": board_problem,
            "edgellm_software_problem": software_problem,
            "edgellm_disk_estimate": disk_estimate,
            "edgellm_memory": memory,
            "edgellm_standalone_steps": standalone_steps,
            "edgellm_with_standalone": with_standalone,
            "edgellm_standalone_problem": standalone_problem,
            "edgellm_why": why,
            "edgellm_lost": lost,
            "edgellm_answers": answers,
            "edgellm_not_healthy": not_healthy,
            "edgellm_kind": kind,
            "edgellm_kinds": kinds,
            "edgellm_wheelhouse_step": wheelhouse_step,
            "edgellm_with_packages": with_packages,
            "edgellm_last_line": last_line,
        }
