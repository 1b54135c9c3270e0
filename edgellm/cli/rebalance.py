"""`edgellm rebalance`: a better plan for the boards' current condition."""

import json
from pathlib import Path

import click

from edgellm.cli.group import verbose_option
from edgellm.console import note
from edgellm.errors import ClaimError, UsageError


@click.command()
@click.option("--dry-run", is_flag=True, help="Show what would move, but change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE",
              help="Cluster file.  [default: as for ask]")  # fmt: skip
@verbose_option
def rebalance(dry_run, as_json, cluster, verbose):
    """Measure the boards again, and move layers if that gains 10 % or more.

    Running answers continue with the same tokens. The boards must already have the shards, because only deploy pushes
    them.

    \b
    Examples:
      edgellm rebalance --dry-run
      edgellm rebalance --json
    """
    import asyncio

    from edgellm.manager.cluster_file import ClusterFile, find
    from edgellm.plan import explain_move, explain_move_dict
    from edgellm.shards.manifest import Manifest

    path = find(str(cluster) if cluster else None)
    if path is None:
        raise UsageError("no cluster file. Deploy, or start a local cluster with 'edgellm local up'.")
    file = ClusterFile.read(path)
    manifest = Manifest.read(file.model_dir_path(path))
    move, current, capacities, loaded = asyncio.run(_rebalance(file, path, manifest, dry_run))
    if as_json:
        content = explain_move_dict(move, manifest, capacities, current)
        click.echo(json.dumps({**content, "dry_run": dry_run, "loaded_bytes": loaded}))
    else:
        click.echo(explain_move(move, manifest, capacities, current))


async def _rebalance(file, path, manifest, dry_run):
    from edgellm.manager.rebalance import propose, settle
    from edgellm.manager.survey import Fleet, newest_plan

    async with Fleet(manifest, file.addresses(), file.client_tls(path)) as fleet:
        await fleet.survey()
        for reason in fleet.missing.values():
            note(reason)
        current = newest_plan(fleet.reports) or file.plan
        capacities = [fleet.reports[b].capacity for b in sorted(fleet.reports)]
        move = await propose(fleet, current.settings, file.plan)
        loaded = {}
        if not dry_run:
            outcome = await settle(fleet, None, file.plan, grow=True, tell=note)
            if outcome.move is None:
                raise ClaimError("another manager is giving the boards a plan. Try again once it has finished.")
            move, loaded = outcome.move, outcome.loaded_bytes
            file.with_plan(outcome.plan, fleet.addresses, fleet.tag_of(outcome.plan)).write_if_newer(path)
        return move, current, capacities, loaded
