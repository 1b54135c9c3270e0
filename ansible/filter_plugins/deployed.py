"""Filters: what a board has against what it should have, what a run does about each board, and why it can't go on."""

import base64
import hashlib
import json
import re
from pathlib import Path

IDENTITY = {"ca.pem": "root edgellm 0640", "crl.pem": "root edgellm 0640", "cert.pem": "root edgellm 0640",
            "revoked.json": "root edgellm 0640", "key.pem": "edgellm edgellm 0600"}  # fmt: skip
# Where the steps on this machine leave why the run can't go on, in the order in which it counts.
PROBLEMS = ("form_problem", "upgrade_problem", "_model_command", "_cluster_fit", "_identity_step", "_cluster_form",
            "_server_key")


def differences(found: dict, wanted: dict) -> list[str]:
    """Return what differs on a board: packages, base, identity, software, shards, agent; [] if nothing does.

    `found` is what roles/agent/tasks/compare.yml has read there, by script. `wanted` has `packages` that the board
    lacks, the `identity` folder on this machine, `version` and `model` ("" keeps the board's), the `complete` versions
    there, `shards` as filter edgellm_push returns them, `further` as edgellm_push_further does, the agent's `unit`, and
    the `script` that notes what it starts from.
    """
    state = json.loads(found["agent"])
    version, model = wanted["version"] or state["version"], wanted["model"] or state["model"]
    has = (state["version"], state["model"], state["unit"], state["script"], state["active"], state["enabled"])
    should = (version, model, base64.b64encode(wanted["unit"].encode()).decode(),
              hashlib.sha256(wanted["script"].encode()).hexdigest(), "active", "enabled")  # fmt: skip
    differs = {
        "packages": wanted["packages"],
        "base": "edgellm_made=" in found["base"],
        "identity": identity_lines(Path(wanted["identity"])) - set(found["identity"].splitlines()),
        "software": wanted["version"] and wanted["version"] not in wanted["complete"],
        "shards": any(push["names"] or push["problem"] for push in (wanted["shards"], *wanted["further"])),
        "agent": has != should or found["inputs"].strip(),
    }
    return [name for name, differ in differs.items() if differ]


def identity_lines(folder: Path) -> set[str]:
    """Return what roles/identity/files/look.sh prints on a board that has the certificate and key in `folder`."""
    lines = set()
    for name, access in IDENTITY.items():
        path = folder / name
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none yet"
        lines |= {f"{name} {access}", f"{sha256}  {name}"}
    return lines


def problem(host) -> str:
    """Return why the run can't go on, from a board's variables; "" if it can."""
    for name in PROBLEMS:
        found = host.get(name)
        text = str(found if isinstance(found, str) else (found or {}).get("problem") or "")
        if text and name == "_cluster_fit" and "fit" in found["problems"]:
            return f"The model doesn't fit: {text} Nothing was changed on any board."
        if text:
            return text
    return ""


def groups(host) -> list[str]:
    """Return the groups of a board, without "edgellm_", by what there is to do about it.

    stopped: nothing, because the run can't go on. out: nothing, because it can't be used. ready: it can be used, and
    then changing: it lacks something, or running: it lacks nothing. short: its disk is too small for all shards.
    """
    if problem(host):
        return ["stopped"]
    if host["preflight_reason"]:
        return ["out"]
    short = (host.get("agent_push") or {}).get("short")
    return ["ready", "changing" if host["agent_differs"] else "running", *(["short"] if short else [])]


def names(value) -> list[str]:
    """Return the names of a list, or of a text with commas or spaces between them."""
    return [str(name) for name in value] if isinstance(value, list) else re.findall(r"[^,\s]+", str(value or ""))


def without_problem(value, boards: list[str]) -> str:
    """Return the sentence if `-e without=` names a board that isn't there, or all boards; "" if it doesn't."""
    unknown = [name for name in names(value) if name not in boards]
    if unknown:
        return f"There is no board {unknown[0]} to go on without. The boards are {', '.join(boards)}."
    if set(boards) <= set(names(value)):
        return "-e without leaves out all boards. Name only those to go on without."
    return ""


def without_reason(board: str) -> str:
    """Return the sentence for a board that the user left out."""
    return f"board {board} was left as it is, because of -e without={board}. Once it is back, run this again for it."


def upgrade_problem(hosts: dict, without) -> str:
    """Return which boards hold an upgrade up and how to go on without them, from boards' variables by name; "" if none
    does."""
    off = [name for name, host in hosts.items() if host["preflight_reason"] and name not in names(without)]
    bare = [name for name, host in hosts.items()
            if not host["preflight_reason"] and not host["preflight_board"].get("installed")]  # fmt: skip
    if not off and not bare:
        return ""
    told = [f"board {name} has no edgellm yet, so run 'edgellm deploy' first." for name in bare]
    held, others = sorted({*off, *bare}), ",".join([*names(without), *off, *bare])
    if set(hosts) > {*held, *names(without)}:
        told.append(f"To go on without {' and '.join(held)}, add -e without={others}.")
    return " ".join([f"No board was upgraded, because {' and '.join(held)} can't be.", *told])


def failure(host, without="") -> str:
    """Return why the run fails on a board, from its variables: it is left out, or nothing can go on; "" otherwise."""
    if host["inventory_hostname"] in names(without):
        return ""
    return str(host.get("preflight_reason") or host.get("reset_reason") or host.get("server_reason") or problem(host))


class FilterModule:
    """What Ansible loads."""

    def filters(self):
        return {
            "edgellm_differences": differences,
            "edgellm_problem": problem,
            "edgellm_groups": groups,
            "edgellm_names": names,
            "edgellm_without_problem": without_problem,
            "edgellm_without_reason": without_reason,
            "edgellm_upgrade_problem": upgrade_problem,
            "edgellm_failure": failure,
            "edgellm_lines": "\n".join,
        }
