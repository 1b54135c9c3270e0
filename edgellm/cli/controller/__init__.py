"""`edgellm controller`: the steps that the playbooks run on the controller. Each prints one JSON object."""

import click

from edgellm.cli.controller.certificates import certificates, manager, revoke
from edgellm.cli.controller.cluster import canary, fit, form
from edgellm.cli.controller.model import model
from edgellm.cli.controller.python import python
from edgellm.cli.controller.remember import remember
from edgellm.cli.controller.server import key, server
from edgellm.cli.controller.steps import steps
from edgellm.cli.controller.wheelhouse import wheelhouse


@click.group("controller", hidden=True)
def controller():
    """Steps that the playbooks run on this machine; each prints one JSON object.

    \b
    Examples:
      edgellm controller model smollm2-135m
      edgellm controller certificates --board pi1 --board pi2
    """


for command in (
    model, certificates, manager, revoke, wheelhouse, python, fit, form, canary, remember, server, key, steps,
):  # fmt: skip
    controller.add_command(command)
