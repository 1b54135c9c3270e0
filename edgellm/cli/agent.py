"""`edgellm agent`: the daemon on a board."""

import json
import logging
import os
import sys
from pathlib import Path

import click

from edgellm import config
from edgellm.cli.group import verbose_option
from edgellm.errors import UsageError


@click.command()
@click.option("--shards", type=click.Path(path_type=Path, file_okay=False), required=True, multiple=True,
              help="Folder with a manifest and shard files; repeatable, the first model is the default.")  # fmt: skip
@click.option("--listen", default=f"127.0.0.1:{config.DEFAULT_PORT}", show_default=True, metavar="HOST:PORT",
              help="Address to listen on; port 0 takes a free port.")  # fmt: skip
@click.option("--name", help="The board's name in plans.  [default: the host's name]")
@click.option("--threads", type=click.IntRange(1, 1024),
              help="Number of compute threads.  [default: measured, the fastest]")  # fmt: skip
@click.option("--cores", metavar="LIST", help="Cores to compute on, such as 4-7 or 0,2.  [default: measured]")
@click.option("--path", type=click.Choice(["auto", "generic"]), default="auto", show_default=True,
              help="auto: native code if edgellm has it for the model; generic: transformers.")  # fmt: skip
@click.option("--ram", metavar="SIZE", help="Offer at most this much RAM, such as 3GB.  [default: all that is free]")
@click.option("--drain-seconds", type=click.FloatRange(0), default=60.0, show_default=True,
              help="After SIGTERM, let running answers continue for this long.")  # fmt: skip
@click.option("--tls", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="FOLDER",
              help="Folder with this board's ca.pem, cert.pem and key.pem; required beyond loopback.")  # fmt: skip
@click.option("--cache-gb", type=click.FloatRange(0, 1e6), default=0.0, show_default=True, metavar="GB",
              help="Keep prompts on disk in up to this many GB, so that their beginnings needn't be computed again; 0: "
                   "keep none.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Where to keep them, for this agent alone.  [default: in the agent's state folder]")  # fmt: skip
@click.option("--cache-ram-gb", type=click.FloatRange(0, 1e6), default=config.DEFAULT_CACHE_RAM_GB, show_default=True,
              metavar="GB",
              help="Keep them in up to this much of the RAM that no plan needs, too; 0: don't.")  # fmt: skip
@click.option("--announce", is_flag=True, hidden=True, help="Print the address as JSON once the agent listens.")
@click.option("--until-eof", is_flag=True, hidden=True, help="Exit when stdin ends.")
@verbose_option
def agent(
    shards, listen, name, threads, cores, path, ram, drain_seconds, tls, cache_gb, cache, cache_ram_gb, announce,
    until_eof, verbose,
):  # fmt: skip
    """Serve a section of a model from this machine.

    The agent measures its free RAM and finds the cores that decode fastest. It serves the section that a manager
    assigns to it. After SIGTERM it accepts no new questions, finishes the running answers, and exits.

    \b
    Examples:
      edgellm agent --shards phi3 --listen 192.168.1.11:7710 --tls /etc/edgellm/tls
      edgellm agent --shards phi3 --listen 127.0.0.1:7711 --ram 2GB --threads 1
    """
    import asyncio
    import socket

    from edgellm.agent import journal
    from edgellm.agent.cores import parse_list
    from edgellm.agent.serve import AgentOptions, serve
    from edgellm.agent.tune import state_folder
    from edgellm.plan import BOARD_NAME, parse_size

    journal.begin(logging.DEBUG if verbose else logging.INFO)
    host, port = _address(listen)
    if not shards[0].is_dir():  # a further model that isn't there is left out
        raise UsageError(f"--shards {shards[0]} is not a folder. Give the folder of a split model.")
    name = name or socket.gethostname().split(".")[0]
    if not BOARD_NAME.match(name):
        raise UsageError(f"{name!r} is not a board name, expected letters, digits, '.', '_' or '-'. Set --name.")
    if tls is None and not _is_loopback(host):
        raise UsageError(
            f"other machines can reach {host}, but only the owner's may. Give this board's certificate with "
            "--tls FOLDER (deploy makes it), or listen on 127.0.0.1."
        )
    ram_bytes = parse_size(ram, "--ram") if ram else None
    wanted = parse_list(cores) if cores is not None else None
    options = AgentOptions(
        shards[0], host, port, name, threads, ram_bytes, drain_seconds, tls, wanted, path,
        cache=cache or state_folder() / "cache" / name, cache_bytes=int(cache_gb * 1e9),
        cache_ram_bytes=int(cache_ram_gb * 1e9), more=shards[1:],
    )  # fmt: skip

    def ready(running):
        if announce:
            try:
                print(json.dumps({"name": name, "host": host, "port": running.port}), flush=True)
            except BrokenPipeError:  # the parent is gone; its record of us remains, with which we can still be ended
                sys.stdout = open(os.devnull, "w")

    asyncio.run(serve(options, ready, sys.stdin if until_eof else None))


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text!r} is not an address, expected HOST:PORT such as 0.0.0.0:{config.DEFAULT_PORT}")
    return host.strip("[]"), int(port)
