"""edgellm: a handful of small boards that answer as one machine."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.client import AsyncClient as AsyncClient
    from edgellm.client import Client as Client

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Return what is imported only when it is used, because it takes a while."""
    if name in ("AsyncClient", "Client"):
        from edgellm import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
