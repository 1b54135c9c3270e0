"""Filters: check the inventory before any board is touched, and describe its boards for `edgellm controller`."""

import re
import socket
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.inventory import detect_range, expand_hostname_range

BOARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
# One value for the whole cluster; the others may differ from board to board.
CLUSTER_WIDE = tuple(
    f"edgellm_{v}" for v in (
        "model", "models", "draft_model", "quantize", "objective", "context", "slots", "chunk", "kv_dtype",
        "swap_experts", "path", "ca", "manager", "server", "server_address", "server_port", "server_tls",
    )
)
# What argument_specs can't express.
TYPES = {"int": "whole number", "str": "text", "bool": "yes or no: true or false"}
LIMITS = {"edgellm_port": (1, 65535), "edgellm_server_port": (1, 65535),
          "edgellm_context": (1, 1 << 24), "edgellm_slots": (1, 1024), "edgellm_chunk": (1, 8192),
          "edgellm_threads": (1, 1024), "edgellm_drain_seconds": (0, 3600)}  # fmt: skip
FORMS = {
    "edgellm_memory_max": (r"\d+(\.\d+)?[KMGT%]?|infinity", "a size for systemd, such as 90% or 3G"),
    "edgellm_cores": (r"\d{1,4}(-\d{1,4})?(\s*,\s*\d{1,4}(-\d{1,4})?)*", "cores, such as 4-7 or 0,2"),
    "edgellm_ram": (r"\d+(\.\d+)?\s*([KMGT]i?)?B", "a size, such as 3GB"),
    "edgellm_cache_gb": (r"\d{1,6}(\.\d{1,6})?", "a number of gigabytes, such as 1 or 0.5"),
    "edgellm_model": (r"[^\s'\"].*", "a model"),
    "edgellm_models": (r"[^\s'\"\[][^'\"]*", "models with commas between them"),
    "edgellm_draft_model": (r"[^\s'\"\[][^'\"]*", "a model"),
    "edgellm_ca": (r"[/~].*", "an absolute path"),
    "edgellm_server_address": (r"[0-9A-Fa-f.:]+", "an IP address, such as 192.168.1.11 or 0.0.0.0"),
    "edgellm_server_tls": (r"cluster|[/~].*", "cluster, or a folder's absolute path"),
    "edgellm_manager": (BOARD_NAME.pattern, "a name of letters, digits, '.', '_' and '-'"),
}
CONNECTION = ("host", "port", "user", "ssh_private_key_file", "ssh_common_args", "ssh_extra_args", "host_key_checking",
              "python_interpreter")  # fmt: skip


def inventory_problems(names, hostvars, options, sources) -> list[str]:
    """Return one sentence per problem, which names the board or the variable and says what to do; [] if there is none.

    `names` are the boards, `options` the inventory's variables as in the role's argument_specs, and `sources` the
    inventory's paths.
    """
    found = [p for source in sources for p in listed_twice(Path(source))]
    told: dict[str, list[str]] = {}  # a sentence, and the boards it is about
    for name in names:
        for sentence in _variables(hostvars[name], options):
            told.setdefault(sentence, []).append(name)
        if not BOARD_NAME.match(name):
            found.append(
                f"board {name!r} has a name that edgellm can't use. Use letters, digits, '.', '_' and '-', "
                f"and set its address as ansible_host."
            )
    for sentence, boards in told.items():
        found.append(f"{'board' if len(boards) == 1 else 'boards'} {', '.join(boards)}: {sentence}")
    for variable in CLUSTER_WIDE:
        values = {str(hostvars[name].get(variable, "")): name for name in reversed(names)}
        if len(values) > 1:
            each = " and ".join(f"{value or 'unset'} on {name}" for value, name in sorted(values.items()))
            found.append(f"{variable} is {each}, but a cluster has one value. Set it once, under [boards:vars].")
    server = str(hostvars[names[0]].get("edgellm_server") or "") if names else ""
    if server and server not in names and server != "controller":
        found.append(
            f"edgellm_server is {server!r}, expected one of {', '.join(names)}, or controller, or nothing. Correct it "
            "in the inventory."
        )
    values = hostvars[names[0]] if names else {}
    if str(values.get("edgellm_swap_experts", "")).lower() in ("true", "yes", "on", "1"):
        if values.get("edgellm_path") == "generic":
            found.append(
                "edgellm_swap_experts is set, and with edgellm_path=generic experts can't be swapped. Set edgellm_path "
                "to auto, or edgellm_swap_experts to false."
            )
    return found or _places(names, hostvars)


def _variables(values, options: dict) -> list[str]:
    mine = {key: values[key] for key in values if key.startswith("edgellm_")}
    found = []
    for key in sorted(mine.keys() - options.keys()):
        found.append(f"there is no variable {key}. Correct or remove it; inventory.ini lists all variables.")
    for key in sorted(mine.keys() & options.keys()):
        value, option = mine[key], options[key]
        if option["default"] == "" and (value is None or value == ""):
            continue
        wrong = bool(ArgumentSpecValidator({key: option}).validate({key: value}).error_messages)
        wants = f"one of {', '.join(option['choices'])}" if option.get("choices") else f"a {TYPES[option['type']]}"
        if key in LIMITS:
            least, most = LIMITS[key]
            wants = f"a whole number from {least} to {most}"
            wrong = wrong or not re.fullmatch(r"-?\d+", str(value)) or not least <= int(value) <= most
        if key in FORMS:
            form, wants = FORMS[key]
            wrong = wrong or not re.fullmatch(form, str(value))
        if wrong:
            found.append(f"{key} is {value!r}, expected {wants}. Correct it in the inventory.")
    return found


def _places(names, hostvars) -> list[str]:
    found, doors, addresses = [], {}, {}
    for name in names:
        values = hostvars[name]
        host, port = str(values.get("ansible_host") or name), int(values.get("ansible_port") or 22)
        address = str(values.get("edgellm_address") or host)
        try:
            address = resolve(address)
        except OSError:
            found.append(
                f"board {name}: {address} is neither an IP address nor a name that this machine can resolve. "
                f"Give the board's IP address as edgellm_address or ansible_host."
            )
            continue
        if said := _unreachable(name, address, alone=len(names) == 1):
            found.append(said)
        if other := doors.setdefault((host, port), name) != name and doors[host, port]:
            found.append(_one_address(other, name, host, "ansible_host"))
        elif other := addresses.setdefault(address, name) != name and addresses[address]:
            found.append(_one_address(other, name, address, "edgellm_address"))
    return found


def _unreachable(board: str, address: str, *, alone: bool) -> str:
    """Return why other machines can't use an address; "" if they can, or if the board is `alone` on this machine."""
    ip = ip_address(address)
    if ip.version == 6 and ip.is_link_local:
        why = "is a link-local address, which names a network card of one machine"
    elif ip.is_unspecified or ip.is_multicast:
        why = "is not the address of one board"
    elif ip.is_loopback and not alone:
        why = "reaches only the machine itself"
    else:
        return ""
    return (
        f"board {board}: {address} {why}, and the other boards must reach this one. Give its address on their "
        f"network, such as 192.168.1.11 or fd00::11, as edgellm_address or ansible_host."
    )


def _one_address(one: str, other: str, address: str, variable: str) -> str:
    return f"boards {one} and {other} share the address {address}. Correct {variable} of one of them."


def listed_twice(path: Path) -> list[str]:
    """Return a sentence for each board listed twice in a group of an INI inventory; Ansible silently merges them."""
    if not path.is_file() or path.suffix in (".yml", ".yaml", ".json"):
        return []
    section, seen = "ungrouped", Counter()
    for line in path.read_text(errors="replace").splitlines():
        line = line.split("#")[0].split(";")[0].strip()
        if header := re.match(r"\[([^]]+)\]", line):
            section = header[1]
        elif line and ":" not in section:
            pattern = line.split()[0].strip("'\"")
            for name in expand_hostname_range(pattern) if detect_range(pattern) else [pattern]:
                seen[section, name] += 1
    return [
        f"board {name} is listed {'twice' if times == 2 else f'{times} times'} in [{section}] of {path.name}. "
        f"Keep one line, or give the other its own name."
        for (section, name), times in seen.items()
        if times > 1
    ]


def resolve(address: str) -> str:
    """Return an IP address unchanged, or a name's first address; raise OSError if it has none.

    Link-local and loopback addresses come last: mDNS gives the first for NAME.local, and /etc/hosts the second for the
    machine's own name.
    """
    try:
        return str(ip_address(address.strip("[]")))
    except ValueError:
        found = [entry[4][0] for entry in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)]
        return min(found, key=lambda text: ip_address(text).is_link_local + 2 * ip_address(text).is_loopback)


def fleet(names, hostvars, port) -> list[dict]:
    """Return boards for `edgellm controller`: name, agent's host and port, how to log in. `port` is the default.

    As for ssh, a key's relative path starts where ansible-playbook was started.
    """
    boards = []
    for name in names:
        values = hostvars[name]
        host = str(values.get("ansible_host") or name)
        user, ssh_port = values.get("ansible_user"), values.get("ansible_port")
        key = values.get("ansible_ssh_private_key_file")
        boards.append({
            "name": name,
            "host": resolve(str(values.get("edgellm_address") or host)),
            "port": int(values.get("edgellm_port") or port),
            "ssh": {
                "host": host,
                "user": str(user) if user else None,
                "port": int(ssh_port) if ssh_port else None,
                "key": str(Path(key).expanduser().absolute()) if key else None,
            },
        })  # fmt: skip
    return boards


def connections(names, hostvars) -> dict[str, dict]:
    """Return how Ansible reached each board, without passwords: enough to stop its agent once its line is gone."""
    wanted = [f"ansible_{c}" for c in CONNECTION]
    known = {name: {key: str(hostvars[name][key]) for key in wanted if hostvars[name].get(key)} for name in names}
    return {name: {"ansible_host": name, **values} for name, values in known.items()}


def gone(known: dict, names, hostvars) -> list[str]:
    """Return boards that the last deploy knew and the inventory doesn't, except those that were only renamed."""
    here = {(str(hostvars[n].get("ansible_host") or n), int(hostvars[n].get("ansible_port") or 22)) for n in names}
    return [
        name for name, how in known.items()
        if name not in names and (how["ansible_host"], int(how.get("ansible_port") or 22)) not in here
    ]  # fmt: skip


def known(before: dict, gone_boards, names, ran: dict, limited: bool) -> dict:
    """Return the boards of boards.json after a run that reached the boards `ran`.

    They are those of the inventory, and those that are gone from it until their agents are stopped. With --limit, the
    run does nothing about the others.
    """
    kept = {name: how for name, how in before.items() if limited or name in names or name in gone_boards}
    return kept | ran


# What steps of `edgellm controller` have changed on this machine, by the first word of their names.
CHANGES = {
    "model": "a model was split",
    "python": "a Python for boards was fetched",
    "wheels": "wheels were built or fetched",
    "certificates": "certificates were made or renewed",
    "form": "the cluster's plan or its cluster file has changed",
    "server": "the server's identity, keys or certificate were made or renewed",
    "key": "an API key was made or removed",
    "remember": "boards.json has changed: other boards, or other ways to reach them",
}


RESULTS = ("_model_command", "_python_command", "_wheelhouse_command", "_cluster_fit", "_cluster_form", "_cluster_gone",
           "_server_command", "_server_key")


def controller_changes(hosts) -> list[str]:
    """Return what a run has changed on this machine, a line each, from the results its tasks left on the boards."""
    found = []
    for host in hosts:
        for result in RESULTS:
            for step, answer in ((host.get(result) or {}).get("answers") or {}).items():
                if answer.get("changed") and step.split()[0] in CHANGES:
                    found.append(CHANGES[step.split()[0]])
    return list(dict.fromkeys(found))


class FilterModule:
    """What Ansible loads."""

    def filters(self):
        return {
            "edgellm_inventory_problems": inventory_problems,
            "edgellm_fleet": fleet,
            "edgellm_known": known,
            "edgellm_controller_changes": controller_changes,
            "edgellm_gone": gone,
            "edgellm_connections": connections,
            "edgellm_resolve": resolve,
        }
