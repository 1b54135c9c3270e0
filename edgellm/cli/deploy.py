"""`edgellm deploy`, `upgrade`, `model`, `remove` and `reset`: the playbooks, without a checkout and with a page."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from edgellm.console import note
from edgellm.errors import UsageError

_OPTIONS = [
    click.option("-i", "--inventory", type=click.Path(path_type=Path), default="inventory.ini", show_default=True,
                 metavar="FILE", help="The boards, one per line."),
    click.option("--limit", metavar="BOARDS", help="Inspect and change only these boards."),
    click.option("-k", "--ask-pass", is_flag=True, help="Ask for the boards' SSH password."),
    click.option("-K", "--ask-become-pass", is_flag=True, help="Ask for the boards' sudo password."),
    click.option("-e", "--extra-vars", multiple=True, metavar="NAME=VALUE",
                 help="Set a variable of the inventory for this run (repeatable)."),
    click.option("--json", "as_json", is_flag=True, help="Print a JSON line per step, and a summary as the last."),
    click.option("-v", "--verbose", is_flag=True, help="Show Ansible's own output in place of the page."),
]  # fmt: skip
# How Ansible asks for passwords.
PROMPTS = {"ssh": r"SSH password:\s*$", "sudo": r"BECOME password.*:\s*$"}
CHECK = click.option("--check", is_flag=True, help="Show what would be done, and change nothing on any board.")


def with_options(*more):
    """Return what adds the options of every playbook to a command, after `more`."""

    def add(command):
        for option in reversed([*more, *_OPTIONS]):
            command = option(command)
        return command

    return add


@click.command()
@with_options(CHECK)
@click.option("--sample", is_flag=True, help="Print an inventory to begin with, every variable explained.")
def deploy(sample, **options):
    """Turn the boards of an inventory into a cluster that answers.

    A second run changes nothing unless something needs changing. deploy exits with 1 if a board is left out, and says
    why.

    \b
    Examples:
      edgellm deploy --sample > inventory.ini
      edgellm deploy
      edgellm deploy --check
      edgellm deploy -i attic.ini --limit pi4
    """
    if sample:
        from edgellm.controller.installed import project

        click.echo((project() / "inventory.ini").read_text(), nl=False)
        return
    play("deploy", "deploy.yml", **options)


@click.command()
@with_options(CHECK)
def upgrade(**options):
    """Upgrade the boards to this edgellm's version, one at a time.

    A board whose new agent doesn't start goes back to its previous version, and the upgrade stops there.

    \b
    Examples:
      edgellm upgrade
    """
    play("upgrade", "playbooks/upgrade.yml", **options)


@click.command()
@click.argument("name")
@with_options(CHECK)
def model(name, inventory, **options):
    """Let the cluster answer with another model.

    NAME is smollm2-135m, a Hugging Face folder or hub id, a GGUF file, or a folder of 'edgellm split'. The current
    model answers until the new one is on every board.

    \b
    Examples:
      edgellm model ./Qwen3-4B-Q4_0.gguf
    """
    play("model", "playbooks/model.yml", {"edgellm_model": name}, inventory=inventory, **options)
    if not options["check"] and f"edgellm_model={name}" not in inventory.read_text(errors="replace").splitlines():
        note(f"Set edgellm_model={name} in {inventory} too, or the next deploy goes back to its model.")


@click.command()
@click.argument("board")
@with_options(CHECK)
def remove(board, **options):
    """Take a board out of the cluster, and stop its agent.

    \b
    Examples:
      edgellm remove pi4
    """
    play("remove", "playbooks/remove.yml", {"board": board}, **options)


@click.command()
@with_options(CHECK)
@click.option("--yes", is_flag=True, help="Don't ask.")
def reset(yes, **options):
    """Remove edgellm from the boards, and the cluster from this machine.

    The cache of models and wheels stays.

    \b
    Examples:
      edgellm reset
      edgellm reset --limit pi4
    """
    if not yes and not options["check"]:
        if not sys.stdin.isatty():
            raise UsageError("reset removes edgellm, its models and its certificates. Say so with --yes.")
        click.confirm("Remove edgellm, its models and its certificates from the boards?", abort=True, err=True)
    play("reset", "playbooks/reset.yml", **options)


def play(
    title: str, playbook: str, variables: dict[str, Any] | None = None, *, inventory: Path, limit: str | None,
    ask_pass: bool, ask_become_pass: bool, extra_vars: tuple[str, ...], as_json: bool, verbose: bool,
    check: bool = False,
) -> None:  # fmt: skip
    """Run a playbook and show how it goes; exit with 1 if it fails."""
    from edgellm.cli.page import Events, Page
    from edgellm.controller import playbook as ansible
    from edgellm.controller.installed import project

    if not inventory.exists():
        raise UsageError(
            f"there is no {inventory}. Get one with 'edgellm deploy --sample > {inventory}', write your boards into "
            "it, and run this again."
        )
    folder = project()
    arguments = ["-i", str(inventory.absolute())]
    for given in extra_vars:
        arguments += ["-e", given]
    if variables:
        arguments += ["-e", json.dumps(variables)]
    for option, wanted in (("--check", check), ("--ask-pass", ask_pass), ("--ask-become-pass", ask_become_pass)):
        arguments += [option] if wanted else []
    arguments += ["--limit", limit] if limit else []
    if verbose:
        sys.stdout.flush()
        binary = str(ansible.command())
        os.execve(binary, [binary, str(folder / playbook), *arguments], ansible.environment(folder))
    passwords = _passwords(ask_pass, ask_become_pass)
    try:
        with (Events if as_json else Page)(title) as page:
            rc = ansible.run(folder, playbook, arguments, passwords, page.event, page.run.progress, page.tick)
    except KeyboardInterrupt:
        note(f"{title} was stopped. Running it again goes on from there.")
        raise
    went_well = page.end(rc)
    if page.run.ready and not as_json and Path(sys.prefix).parent.name.startswith("archive-v"):
        note("uvx keeps edgellm in its cache. For the command edgellm: uv tool install 'edgellm[controller]'")
    if not went_well:
        sys.exit(1)


def _passwords(ssh: bool, sudo: bool) -> dict[str, str]:
    """Return the answers to Ansible's prompts, asked of the user before the page begins."""
    import getpass

    found = {}
    if ssh:
        found[PROMPTS["ssh"]] = getpass.getpass("SSH password: ")
    if sudo:
        again = " (empty: the SSH password)" if ssh else ""
        found[PROMPTS["sudo"]] = getpass.getpass(f"sudo password{again}: ")
    return found
