"""Action plugin edgellm_controller: steps of `edgellm controller` on this machine, in one process.

   - edgellm_controller:
       steps:
         - {name: fit, command: [fit], request: {…}}
         - {name: certificates, command: [certificates, --board, pi1]}

A step's `request` goes to the command as a JSON file. The steps end with the first that fails, unless it is `optional`,
and with one whose answer isn't true for what it `must` have, such as fits.

The result has `answers`, {name: the JSON object that the command printed}, and `problems`, {name: why it failed}. The
task itself never fails, because then only one board would know why; `problem` is the one that ended the steps, or "".
What a step changes on this machine is no change of a board, so playbooks/parts/controller.yml counts it.
"""

import json
import subprocess

from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template


def read(stdout: str, stderr: str, rc: int) -> dict:
    """Return the answers and problems that `edgellm controller steps` printed, or the problem that it printed none."""
    try:
        found = json.loads(stdout)
        return {"answers": found["answers"], "problems": found["problems"], "problem": found["problem"]}
    except (ValueError, KeyError, TypeError):
        said = [line.strip() for line in stderr.splitlines() if line.strip()] or [f"it ended with exit code {rc}"]
        problem = f"edgellm failed on this machine: {said[-1].removeprefix('edgellm: ')}"
        return {"answers": {}, "problems": {"steps": problem}, "problem": problem}


class ActionModule(ActionBase):
    """What Ansible runs."""

    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec({
            "steps": {"type": "list", "elements": "dict", "required": True},
        })  # fmt: skip
        command = [self._templar.template(trust_as_template("{{ edgellm_bin }}")), "controller", "steps"]
        request = json.dumps(args["steps"])
        # In the folder where ansible-playbook was started, because a relative path of a model begins there.
        done = subprocess.run(command, input=request, capture_output=True, text=True)
        return {**result, "changed": False, **read(done.stdout, done.stderr, done.returncode), "stderr": done.stderr}
