"""A side's identity, and whom it trusts: certificates from a folder, and whom a certificate names."""

import contextlib
import logging
import os
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.errors import ClusterError

log = logging.getLogger(__name__)
FILES = ("ca.pem", "cert.pem", "key.pem")
MANAGER_URI = "edgellm:manager"
BOARD_URI = "edgellm:board:"  # and its name

_AGAIN = "Deploy again."


class Credentials:
    """The certificate that one side shows, and the CA that it trusts: ca.pem, cert.pem and key.pem in a folder.

    Renewed files are used from the next connection on; if they can't be used, the earlier ones stay in use. Raises
    ClusterError if the files can't be used to begin with.
    """

    def __init__(self, folder: Path | str, server_side: bool):
        self.folder, self.server_side = Path(folder), server_side
        self._stamps = self._look()
        self._context = _load(self.folder, server_side)

    @property
    def context(self) -> ssl.SSLContext:
        """The SSL context for the next connection, from the files as they are now."""
        stamps = self._look()
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._context = _load(self.folder, self.server_side)
                log.info("reads the renewed certificate in %s", self.folder)
            except ClusterError as e:
                log.warning("keeps the certificate it has: %s", e)
        return self._context

    def _look(self) -> list[tuple[str, int, int, int, int]]:
        stamps = []
        for name in FILES:
            with contextlib.suppress(OSError):
                s = os.stat(self.folder / name)
                stamps.append((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
        return stamps


def server_credentials(folder: Path | str) -> Credentials:
    """Return what a board listens with. Raises ClusterError with the path and the way out."""
    return Credentials(folder, server_side=True)


def client_credentials(folder: Path | str) -> Credentials:
    """Return what a manager, or a board, dials with. Raises ClusterError with the path and the way out."""
    return Credentials(folder, server_side=False)


def identity(tls: ssl.SSLObject) -> tuple[str, str | None] | None:
    """Return whom the peer's certificate names: ("manager", None), ("board", NAME), or None for neither or several.

    `tls` has done its handshake: a certificate that isn't verified says nothing.
    """
    shown: Mapping[str, Any] = tls.getpeercert() or {}
    names = [value for kind, value in shown.get("subjectAltName", ()) if kind == "URI"]
    match names:
        case [uri] if uri == MANAGER_URI:
            return "manager", None
        case [uri] if uri.startswith(BOARD_URI) and len(uri) > len(BOARD_URI):
            return "board", uri.removeprefix(BOARD_URI)
    return None


def _load(folder: Path, server_side: bool) -> ssl.SSLContext:
    ca, cert, key = (folder / name for name in FILES)
    for path in (ca, cert, key):
        try:
            with open(path, "rb") as f:
                mode = os.fstat(f.fileno()).st_mode
        except OSError as e:
            raise ClusterError(f"certificate file {path}: {(e.strerror or str(e)).lower()}. {_AGAIN}") from None
    # As ssh does, because anyone who could read it may have it. A deploy makes it private again.
    if mode & 0o077:
        raise ClusterError(
            f"certificate file {key}: others may read it (mode {stat.S_IMODE(mode):04o}), expected 0600. "
            f"Run 'chmod 600 {key}' if nobody has read it, or remove it and deploy again."
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # addresses vary: the name that counts is in the certificate's URI
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if server_side:
        context.num_tickets = 0  # no resumption: every connection shows its certificate, and when that ends
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError:
        raise ClusterError(f"certificate file {ca}: not a certificate. {_AGAIN}") from None
    try:
        context.load_cert_chain(cert, key, password="")  # never asks on a terminal
    except ssl.SSLError as e:
        reason = "the two belong to different certificates" if e.reason == "KEY_VALUES_MISMATCH" else "one is damaged"
        raise ClusterError(f"certificate files {cert} and {key}: {reason}. {_AGAIN}") from None
    return context
