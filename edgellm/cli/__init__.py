"""The command line: one function per command, heavy imports inside it. Answers go to stdout, all else to stderr."""

import click

from edgellm import __version__
from edgellm.cli.agent import agent
from edgellm.cli.ask import ask
from edgellm.cli.bench import bench
from edgellm.cli.chat import chat
from edgellm.cli.cluster import doctor, logs, status
from edgellm.cli.controller import controller
from edgellm.cli.deploy import deploy, model, remove, reset, upgrade
from edgellm.cli.group import CONTEXT, Group
from edgellm.cli.identities import join, key, manager, revoke
from edgellm.cli.local import local
from edgellm.cli.models import plan, split, verify
from edgellm.cli.rebalance import rebalance
from edgellm.cli.serve import serve


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="edgellm")
def main():
    """A handful of small boards that answer as one machine.

    \b
    Examples:
      edgellm ask "Why is the sky blue?"
      edgellm deploy --sample > inventory.ini && nano inventory.ini && edgellm deploy
      edgellm chat
      edgellm serve
      edgellm local up && edgellm ask "And at night?"
      edgellm split ./Phi-3-mini-4k-instruct --out phi3 --quantize int8
      edgellm plan --manifest phi3 --board pi1=3.1GB,pi2=3.1GB --explain
    """


COMMANDS = (
    ask, chat, serve, deploy, upgrade, model, remove, reset, manager, join, revoke, key, status, doctor, logs,
    rebalance, local, split, plan, verify, agent, bench, controller,
)  # fmt: skip
for command in COMMANDS:
    main.add_command(command)
