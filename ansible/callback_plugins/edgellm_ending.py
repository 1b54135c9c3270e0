"""Callback plugin edgellm_ending: the last lines of every playbook, after Ansible's recap.

They say what each board holds and how to ask, each board that was left out with its reason and its way out, and why the
run could not go on. They come however the run ended: a task of the playbook could not tell, because Ansible ends a
playbook once a play has lost all its boards.
"""

from pathlib import Path

from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import filter_loader

from ansible import context

DOCUMENTATION = """
name: edgellm_ending
type: aggregate
short_description: what each board holds, and which boards are left out and why
description: Prints the last lines of edgellm's playbooks, after Ansible's recap.
"""
RESET_AGAIN = "The certificates stay on this machine, so that you can run this again."


def ready(answer: dict) -> list[str]:
    """Return what each board holds and how to ask, from the answer of `edgellm controller form`."""
    held: dict[str, list[str]] = {}
    for section in answer["sections"]:
        held.setdefault(section["board"], []).append(f"{section['start']}-{section['end'] - 1}")
    lines = [f"{board} holds layers {', '.join(layers)}" for board, layers in held.items()]
    lines += [f"{board} holds nothing: the model needs fewer boards" for board in answer.get("unused", [])]
    return [*lines, 'ready: edgellm ask "Why is the sky blue?"']


def left_out(boards: dict[str, dict], lost: list[str], said: dict[str, str]) -> list[str]:
    """Return a sentence or two for each board that could not be used or was left out, from boards' variables.

    `lost` are boards that stopped answering, and `said` is what failed tasks said of other boards.
    """
    found = []
    for name, host in boards.items():
        reason = host.get("preflight_reason") or host.get("reset_reason") or said.get(name)
        if not reason and name in lost:
            reason = f"board {name} was lost during this run. Check its power and cable, then run this again."
        if not reason and host.get("retire_reason"):
            reason = (
                f"{host['retire_reason']} It is no longer in the inventory, but its agent may still run. If it comes "
                f"back, run there: sudo systemctl disable --now edgellm-agent"
            )
        found += [reason] if reason else []
    return found


def revoked(step: dict) -> list[str]:
    """Return what has been revoked, and what comes next, from the answer of `edgellm controller revoke`."""
    who = " and ".join(step["who"])
    lines = [f"The certificates of {who} {'are' if step['changed'] else 'were already'} revoked."]
    for board in step["boards"]:
        lines.append(f"Remove the line of {board} from the inventory if it is gone, or the next deploy adds it again.")
    return lines


def issued(step: dict) -> list[str]:
    """Return what to do with an identity, from the answer of `edgellm controller manager`."""
    may = "ask and plan" if step["admin"] else "ask"
    file = step["file"]
    return [f"{file} lets {step['name']} {may}. Move it to that machine, and run there: edgellm join {Path(file).name}"]


def serving(hosts: dict[str, dict]) -> list[str]:
    """Return where the server answers and with which key, from the variables of all machines."""
    told = next((host["server_told"] for host in hosts.values() if host.get("server_told")), {})
    if "key_file" not in told:
        return []
    ca = f" --cacert {told['ca']}" if told["tls"] == "cluster" else ""
    line = f"serving: {told['url']}/ with the API key in {told['key_file']}"
    asks = f"""curl{ca} -H "Authorization: Bearer $(cat {told['key_file']})" {told['url']}/v1/models"""
    return [line, f"serving: try {asks}"]


def keys(step: dict, served: bool) -> list[str]:
    """Return what became of an API key, from the answer of `edgellm controller key`."""
    if step["file"] is None:
        return [f"The API key {step['name']} is removed. Those that are left: {', '.join(step['keys'])}."]
    told = f"The API key {step['name']} is in {step['file']}. An earlier one of this name is refused."
    return [told if served else f"The API key {step['name']} is in {step['file']}. The next deploy tells the server."]


def ending(
    boards: dict[str, dict], lost: list[str], said: dict[str, str], problem: str, playbook: str,
    servers: dict[str, dict] | None = None,
) -> list[str]:  # fmt: skip
    """Return the last lines of a run: what each board holds, where the server answers, who is left out, and why the run
    could not go on. `servers` are the machines that serve, or did."""
    sentences = left_out(boards, lost, said)
    servers = servers or {}
    sentences += [reason for host in servers.values() if (reason := host.get("server_reason"))]
    missing: dict[str, str] = {}
    lines = []
    for host in boards.values():
        formed = host.get("_cluster_form") or {}
        answers = formed.get("answers") or {}
        if "form" in answers and not lines:
            missing = answers["form"].get("missing") or {}
            lines = ready(answers["form"]) if "canary" in answers and not problem else []
    sentences += [reason for name, reason in missing.items() if not any(name in told for told in sentences)]
    if any(host.get("reset_reason") for host in boards.values()):
        unable = [name for name, host in boards.items() if host.get("reset_reason")]
        sentences.append(f"{RESET_AGAIN} To let {' and '.join(unable)} go, add -e without={','.join(unable)}.")
    if playbook == "remove" and not problem and not sentences and lines:
        lines.insert(0, "Its agent is stopped. Remove the board's line from the inventory, or the next deploy adds it.")
    answers = [(host.get("_identity_step") or {}).get("answers") or {} for host in boards.values()]
    step = next((a["step"] for a in answers if "step" in a), None)
    if playbook == "revoke" and step and not problem:
        lines = [*revoked(step), *lines]
    if playbook == "manager" and step and not problem:
        lines = issued(step)
    made = next((host["_server_key"] for host in boards.values() if host.get("_server_key")), {})
    if playbook == "keys" and not problem and "key" in (made.get("answers") or {}):
        lines = keys(made["answers"]["key"], any(host.get("server_told") for host in servers.values()))
    elif not problem:
        lines = [*lines, *serving(servers)]
    if not problem and not lines and boards and all(host.get("preflight_reason") for host in boards.values()):
        problem = "No board is left to form a cluster with."
    told = [s for s in dict.fromkeys(sentences) if s not in problem]
    return [*lines, *told, *([problem] if problem else [])]


class CallbackModule(CallbackBase):
    """What Ansible loads."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "edgellm_ending"

    def __init__(self):
        super().__init__()
        self._said: dict[str, str] = {}
        self._variables = self._playbook = None

    def v2_playbook_on_start(self, playbook):
        self._playbook = playbook._file_name.rpartition("/")[2].removesuffix(".yml")

    def v2_playbook_on_play_start(self, play):
        self._variables = play.get_variable_manager()

    def v2_runner_on_failed(self, result, ignore_errors=False):
        if not ignore_errors:
            self._said[result.host.get_name()] = " ".join(str(result.result.get("msg", "")).split())

    def v2_playbook_on_stats(self, stats):
        if self._variables is None:
            return
        inventory = self._variables._inventory
        hosts = {host.name: host for group in ("boards", "edgellm_removed")
                 for host in (inventory.groups[group].get_hosts() if group in inventory.groups else [])}  # fmt: skip
        serving = {host.name: host for group in ("edgellm_serving", "edgellm_unserved")
                   for host in (inventory.groups[group].get_hosts() if group in inventory.groups else [])}  # fmt: skip
        servers = {
            name: self._variables.get_vars(host=host, include_hostvars=False) for name, host in serving.items()
        }
        boards = {name: self._variables.get_vars(host=host, include_hostvars=False) for name, host in hosts.items()}
        problem, names, without_reason = (
            filter_loader.get(f"edgellm_{name}").j2_function for name in ("problem", "names", "without_reason")
        )
        problems = [text for host in boards.values() if (text := problem(host))]
        for name, host in boards.items():
            if name in names(host.get("without")):
                host.setdefault("preflight_reason", without_reason(name))
        said = {name: text for name, text in self._said.items() if stats.failures.get(name)}
        lines = ending(boards, list(stats.dark), said, problems[0] if problems else "", self._playbook, servers)
        if context.CLIARGS.get("check"):
            lines = [line for line in lines if not line.startswith(("ready: ", "serving: ")) and " holds " not in line]
        for line in lines:  # a board may have said part of it, and a terminal would obey control characters
            self._display.display("".join(c for c in line if c.isprintable()))
