"""Action plugin edgellm_run: a role's shell scripts on a board, over the connection that Ansible already has.

   - edgellm_run:
       scripts:
         base: {file: "{{ role_path }}/files/base.sh", arguments: [look]}
         agent: {file: "{{ role_path }}/files/state.sh"}
       input: "text that each script gets on its standard input"
       seconds: 60

All scripts run one after another in one SSH command. The board needs sh and coreutils, no Python: a module of Ansible
takes half a second there, a script as long as its commands. With `become`, they run as root: as the SSH user if that is
root, by sudo with the password of -K if there is one, else by sudo without.

The result has `found`, {name: what it printed}, and `stdout`, what the last one printed. The task fails with the first
script that fails. A task that differs from what is there is a change, so with --check it is one without running.

`files` and `contents`, {name: text}, make the input of the only script a tar stream of these files. They appear in no
argument, result or log. `diff`, {name, before, after}, is what --diff shows.
"""

import base64
import io
import re
import shlex
import tarfile
from pathlib import Path

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

# A board's own root needs no sudo, and may have none.
AS_ROOT = """if [ "$(id -u)" = 0 ]; then exec "$@"; else exec sudo -n "$@"; fi"""


def command(scripts: dict[str, tuple[str, list[str]]], seconds: int) -> str:
    """Return the command that runs scripts, {name: (text, arguments)}, until the first that fails.

    Texts travel as base64, so that no shell on the way can change them.
    """
    alone = len(scripts) == 1  # then the input needn't be text
    lines = [] if alone else ["input=$(cat)"]
    for name, (text, arguments) in scripts.items():
        packed = base64.b64encode(text.encode()).decode()
        words = shlex.join(["sh", *map(str, arguments)])
        run = f'timeout -k 5 {seconds} /bin/sh -c "$(echo {packed} | base64 -d)" {words}'
        lines.append(f"echo; echo edgellm_begin={name}")
        lines.append(run if alone else f'printf "%s\\n" "$input" | {run}')
        lines.append("rc=$?; echo; echo edgellm_end=$rc; [ $rc = 0 ] || exit $rc")
    return "; ".join(lines)


def parse(stdout: str) -> dict[str, str]:
    """Return what the scripts of `command` printed, {name: text}, whatever a login printed before. One that did not end
    is not among them."""
    pattern = r"^edgellm_begin=(\w+)\r?\n(.*?)\r?\nedgellm_end=\d+\r?$"
    return dict(re.findall(pattern, stdout, re.M | re.S))


def tar_stream(paths: list[str], contents: dict[str, str]) -> bytes:
    """Return a tar archive of files by their own names, for their owner alone; raise OSError if one can't be read."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in [
            *((path.name, path.read_bytes()) for path in map(Path, paths)),
            *((name, text.encode()) for name, text in contents.items()),
        ]:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o600
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


class ActionModule(ActionBase):
    """What Ansible runs."""

    TRANSFERS_FILES = False  # needs no temporary folder on the board

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec({
            "scripts": {"type": "dict", "required": True},
            "input": {"type": "str", "default": ""},
            "files": {"type": "list", "elements": "path", "default": []},
            "contents": {"type": "dict", "default": {}},
            "seconds": {"type": "int", "default": 60},
            "diff": {"type": "dict", "default": {}},
        })  # fmt: skip
        result.update(changed=True, found={}, stdout="", rc=0)
        if self._task.diff and (diff := args["diff"]):
            headers = dict.fromkeys(("before_header", "after_header"), diff["name"])
            result["diff"] = {"before": diff["before"], "after": diff["after"], **headers}
        if self._task.check_mode:
            return {**result, "msg": f"would run {', '.join(args['scripts'])}"}
        try:
            scripts = {
                name: (Path(script["file"]).read_text(), script.get("arguments", []))
                for name, script in args["scripts"].items()
            }
            is_tar = args["files"] or args["contents"]
            data = tar_stream(args["files"], args["contents"]) if is_tar else args["input"].encode() or b"\n"
        except OSError as e:
            raise AnsibleError(f"this machine can't read {e.filename}: {e.strerror}") from None
        done = self._execute(command(scripts, args["seconds"]), data)
        found = parse(done["stdout"])
        last = found.get(list(scripts)[-1], done["stdout"])
        result.update(found=found, rc=done["rc"], stdout=last, stdout_lines=last.splitlines(), stderr=done["stderr"])
        if done["rc"] != 0:
            said = [line.strip() for line in done["stderr"].splitlines() if line.strip()]
            at = next((name for name in reversed(scripts) if name in found), next(iter(scripts)))
            why = f"not done after {args['seconds']} s" if done["rc"] in (124, 137) else f"exit code {done['rc']}"
            result.update(failed=True, msg=said[-1] if said else f"{at}: {why}")
        return result

    def _execute(self, text: str, data: bytes) -> dict:
        become = self._connection.become
        if become and become.name == "sudo" and not become.get_option("become_pass"):
            text = shlex.join(["/bin/sh", "-c", AS_ROOT, "sh", "/bin/sh", "-c", text])
            return self._low_level_execute_command(text, sudoable=False, in_data=data)
        return self._low_level_execute_command(text, sudoable=True, in_data=data)
