"""edgellm: a handful of small boards that answer as one machine."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.blocking import Client as Client
    from edgellm.client import AsyncClient as AsyncClient

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Return what is imported only when it is used, because it takes a while."""
    if name == "AsyncClient":
        from edgellm.client import AsyncClient

        return AsyncClient
    if name == "Client":
        from edgellm.blocking import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
