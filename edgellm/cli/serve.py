"""`edgellm serve`: the HTTP APIs, for clients of language models."""

import contextlib
import ipaddress
import os
import socket
from pathlib import Path

import click

from edgellm.cli.embedded import embedded
from edgellm.cli.group import verbose_option
from edgellm.console import note
from edgellm.errors import UsageError

DEFAULT_PORT = 8080


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="Where to listen; beyond this machine it needs an API key.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True,
              help="0 takes any that is free.")  # fmt: skip
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE",
              help="Cluster file.  [default: $EDGELLM_CLUSTER, ./cluster.json, the user's config folder]")  # fmt: skip
@click.option("--tls-cert", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="Serve HTTPS with this certificate chain.")  # fmt: skip
@click.option("--tls-key", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="The key of --tls-cert.")  # fmt: skip
@click.option("--allow-origin", multiple=True, metavar="ORIGIN",
              help="Let pages of this origin ask, such as https://chat.example; * is any (repeatable).")  # fmt: skip
@click.option("--allow-host", multiple=True, metavar="NAME",
              help="Answer to this host name too (repeatable).")  # fmt: skip
@click.option("--new-key", metavar="NAME", help="Make an API key of this name, print it once, and end.")
@click.option("--share-cache", is_flag=True,
              help="Let keys share what boards keep of prompts: faster, but times tell who asked what.")  # fmt: skip
@click.option("--no-history", is_flag=True, help="Keep no conversations.")
@click.option("--json-log", is_flag=True, help="Write the access log as JSON lines.")
@verbose_option
def serve(
    host, port, cluster, tls_cert, tls_key, allow_origin, allow_host, new_key, share_cache, no_history, json_log,
    verbose,
):
    """Answer the clients of OpenAI, Ollama and Anthropic over HTTP, and a person's browser.

    Without a cluster file, serve starts two agents on this machine with the built-in model, and stops them when it
    ends. Beyond this machine it needs an API key, which --new-key makes.

    \b
    Examples:
      edgellm serve
      edgellm serve --new-key kitchen
      edgellm serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
    """
    from edgellm.manager.cluster_file import find
    from edgellm.server.app import Settings
    from edgellm.server.keys import FILE_NAME, Keys
    from edgellm.server.listen import listen

    keys_path = _config_dir() / FILE_NAME
    keys = Keys(keys_path)
    if new_key is not None:
        click.echo(keys.make(new_key))
        note(f"the key {new_key!r} is shown only now; its SHA-256 is in {keys_path}")
        return
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key need each other. Give both.")
    if not _is_loopback(host) and not keys.needed:
        raise UsageError(f"{host} can be reached from other machines, and there is no API key in {keys_path}. "
                         "Make one: edgellm serve --new-key NAME")  # fmt: skip
    settings = Settings(
        keys_path, frozenset(h.casefold() for h in (*allow_host, host)), frozenset(allow_origin),
        state=_state_dir(), history=not no_history, json_log=json_log, share_cache=share_cache,
    )  # fmt: skip
    with listen(host, port) as listener:
        path = find(str(cluster) if cluster else None)
        with contextlib.nullcontext(path) if path is not None else embedded("serve") as path:
            _run(path, settings, listener, tls_cert, tls_key, keys.needed)


def _run(path: Path, settings, listener: socket.socket, cert: Path | None, key: Path | None, keyed: bool) -> None:
    import asyncio
    import logging
    import signal

    import uvicorn

    from edgellm.server.app import make_app
    from edgellm.server.change_over import SeveralModels
    from edgellm.server.http import Http

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("edgellm").setLevel(logging.INFO)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    url = f"{'https' if cert else 'http'}://{'localhost' if _is_any(host) else shown}:{port}"

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            if self.started:
                _announce(url, keyed)

        @contextlib.contextmanager
        def capture_signals(self):
            """End in good order on Ctrl-C and SIGTERM; uvicorn would raise the signal again at the end."""
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.handle_exit, number, None)
            yield

        async def shutdown(self, sockets=None):
            app.state.ending.set()
            await super().shutdown(sockets)

    app = make_app(SeveralModels(path, note), settings)
    configuration = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False,
        ssl_certfile=cert, ssl_keyfile=key, timeout_graceful_shutdown=1, timeout_keep_alive=30, ws="none",
        lifespan="on", http=Http, h11_max_incomplete_event_size=64 << 10,
    )  # fmt: skip
    asyncio.run(Server(configuration).serve([listener]))


def _announce(url: str, keyed: bool) -> None:
    bearer = " -H 'Authorization: Bearer YOUR-KEY'" if keyed else ""
    message = '{"messages": [{"role": "user", "content": "Why is the sky blue?"}]}'
    note(f"open {url}/")
    note(f"or ask: curl{bearer} {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{message}'")


def _config_dir() -> Path:
    from edgellm.manager.cluster_file import default_path

    return Path(os.environ["EDGELLM_CONFIG"]) if "EDGELLM_CONFIG" in os.environ else default_path().parent


def _state_dir() -> Path:
    from edgellm.manager.local import state_dir

    return Path(os.environ["EDGELLM_STATE"]) if "EDGELLM_STATE" in os.environ else state_dir()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_any(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified
