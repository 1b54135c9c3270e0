"""Action plugin edgellm_lock: one playbook at a time works on a cluster.

   - edgellm_lock:
       folder: "{{ edgellm_folder }}"

The lock is a file in the cache, which names the process of ansible-playbook, its user, when it began, and its playbook.
It holds for as long as that process lives, so nobody has to release it, and a run that was killed blocks nobody.
"""

import fcntl
import getpass
import hashlib
import json
import os
import time
from pathlib import Path

import psutil
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

from ansible import context


def lock_path(folder: str, cache: str) -> Path:
    """Return where the lock of the cluster in a config folder is."""
    name = hashlib.sha256(os.path.abspath(folder).encode()).hexdigest()[:12]
    return Path(cache) / "edgellm" / "locks" / f"{name}.json"


def take(path: Path, me: dict) -> dict | None:
    """Take the lock for `me`, {"pid", "started_s", "user", "since", "playbook"}; return who has it if another does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with open(fd, "r+") as file:
        fcntl.flock(fd, fcntl.LOCK_EX)  # for a moment, so that two that begin together see each other
        holder = _parsed(file.read(4096))
        if holder and (holder["pid"], holder["started_s"]) != (me["pid"], me["started_s"]) and _lives(holder):
            return holder
        file.seek(0)
        file.truncate()
        file.write(json.dumps(me))
    return None


def process(pid: int, playbook: str) -> dict:
    """Return who holds the lock if the process `pid` does."""
    return {
        "pid": pid, "started_s": psutil.Process(pid).create_time(), "user": getpass.getuser(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"), "playbook": playbook,
    }  # fmt: skip


def sentence(holder: dict) -> str:
    """Return why this run can't begin, and what to do."""
    return (
        f"Another run is at work on this cluster: {holder['playbook']}, process {holder['pid']} of {holder['user']}, "
        f"since {holder['since']}. Wait until it has ended, or end it with 'kill -INT {holder['pid']}', then run this "
        f"again."
    )


def _parsed(text: str) -> dict | None:
    try:
        found = json.loads(text)
        whole = type(found["pid"]) is int and found["pid"] > 0 and isinstance(found["started_s"], float)
        return found if whole and all(isinstance(found[key], str) for key in ("user", "since", "playbook")) else None
    except (ValueError, KeyError, TypeError):
        return None  # empty, or half written when the power failed


def _lives(holder: dict) -> bool:
    try:
        return abs(psutil.Process(holder["pid"]).create_time() - holder["started_s"]) < 1
    except psutil.NoSuchProcess:
        return False


class ActionModule(ActionBase):
    """What Ansible runs."""

    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec({
            "folder": {"type": "path", "required": True},
            "cache": {"type": "path", "required": True},
        })  # fmt: skip
        playbooks = ", ".join(os.path.basename(p) for p in context.CLIARGS.get("args", ()))
        try:
            me = process(os.getppid(), playbooks)  # tasks run in children of ansible-playbook
            holder = take(lock_path(args["folder"], args["cache"]), me)
        except OSError as e:
            raise AnsibleError(f"this machine can't write {e.filename}: {e.strerror}") from None
        return {**result, "failed": True, "msg": sentence(holder)} if holder else {**result, "changed": False}
