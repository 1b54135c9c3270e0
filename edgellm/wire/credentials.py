"""A side's identity, and whom it trusts: certificates from a folder, whom they name, and which are revoked."""

import contextlib
import json
import logging
import os
import ssl
import stat
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgellm.errors import ClusterError
from edgellm.plan import BOARD_NAME

log = logging.getLogger(__name__)
FILES = ("ca.pem", "cert.pem", "key.pem")
CRL_FILE = "crl.pem"  # what the CA has revoked, checked in every handshake
REVOKED_FILE = "revoked.json"  # the same serial numbers, for connections that stand
BOARD_URI = "edgellm:board:"  # and its name
MANAGER_URI = "edgellm:manager:"  # and its name: may ask
ADMIN_URI = "edgellm:admin:"  # and its name: may ask and plan
OLD_MANAGER_URI = "edgellm:manager"  # 0.1's: an admin of any name

_AGAIN = "Deploy again."
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Identity:
    """Whom a certificate names: `role` is "board" or "manager"; an `admin` is a manager that may plan as well as ask.

    `name` is None for 0.1's managers, whose certificates allow any.
    """

    role: str
    name: str | None
    admin: bool = False

    def __str__(self) -> str:
        who = "admin" if self.admin else self.role
        return f"{who} {self.name}" if self.name is not None else "manager"

    @property
    def uri(self) -> str:
        """The URI that a certificate of this identity holds."""
        if self.name is None:
            return OLD_MANAGER_URI
        return (BOARD_URI if self.role == "board" else ADMIN_URI if self.admin else MANAGER_URI) + self.name

    def called(self, name: str) -> "Identity":
        """Return this identity with the name from its hello, where the certificate allows any."""
        return replace(self, name=name) if self.name is None else self


def identity_of(uris: list[str]) -> Identity | None:
    """Return whom a certificate with these URIs names: None unless it is exactly one, and one of ours."""
    if uris == [OLD_MANAGER_URI]:
        return Identity("manager", None, admin=True)
    for prefix, role, admin in (
        (BOARD_URI, "board", False), (MANAGER_URI, "manager", False), (ADMIN_URI, "manager", True),
    ):  # fmt: skip
        match uris:
            case [uri] if uri.startswith(prefix) and BOARD_NAME.match(name := uri.removeprefix(prefix)):
                return Identity(role, name, admin)
    return None


class Credentials:
    """The certificate that one side shows, and the CA that it trusts: ca.pem, cert.pem and key.pem in a folder.

    With a crl.pem, certificates that the CA has revoked aren't trusted. Renewed files are used from the next connection
    on; if they can't be used, the earlier ones stay in use. Raises ClusterError if the files can't be used to begin
    with.
    """

    def __init__(self, folder: Path | str, server_side: bool):
        self.folder, self.server_side = Path(folder), server_side
        self.dialled: weakref.WeakSet[Any] = weakref.WeakSet()  # the Peers that were reached with these
        self._stamps = self._look()
        self._loaded = _load(self.folder, server_side)

    @property
    def context(self) -> ssl.SSLContext:
        """The SSL context for the next connection, from the files as they are now."""
        return self._now().context

    @property
    def identity(self) -> Identity | None:
        """Whom the own certificate names; None if it names nobody."""
        return self._now().identity

    @property
    def revoked(self) -> frozenset[int]:
        """The serial numbers of revoked certificates, from the files as they are now."""
        return self._now().revoked

    def _now(self) -> "_Loaded":
        stamps = self._look()
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._loaded = _load(self.folder, self.server_side)
                log.info("reads the renewed certificates in %s", self.folder)
            except ClusterError as e:
                log.warning("keeps the certificates it has: %s", e)
        return self._loaded

    def _look(self) -> list[tuple[str, int, int, int, int]]:
        stamps = []
        for name in (*FILES, CRL_FILE, REVOKED_FILE):
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


def manager_name(credentials: Credentials | None) -> str:
    """Return what a manager calls itself in its hello: the name in its certificate, if it has one that names it."""
    identity = credentials and credentials.identity
    return identity.name if identity and identity.name is not None else "edgellm"


def may_only_ask(who: str, what: str) -> str:
    """Return the sentences for an identity that wants to plan and may not."""
    return (
        f"{who} may ask, but not {what}: only an admin may. Do it on an admin's machine, or have an admin's identity "
        "made with 'edgellm manager NAME --admin'."
    )


def shown_by(tls: ssl.SSLObject) -> tuple[Identity | None, int | None]:
    """Return whom the peer's certificate names, and its serial number.

    `tls` has done its handshake: a certificate that isn't verified says nothing.
    """
    shown: Mapping[str, Any] = tls.getpeercert() or {}
    serial = shown.get("serialNumber")
    uris = [value for kind, value in shown.get("subjectAltName", ()) if kind == "URI"]
    return identity_of(uris), None if serial is None else int(serial, 16)


def read_revoked(path: Path) -> frozenset[int]:
    """Return the serial numbers in a revoked.json, none if there is no such file. Raises ClusterError."""
    try:
        with open(path, "rb") as f:
            raw = f.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return frozenset()
    except OSError as e:
        raise ClusterError(f"revocations {path}: {(e.strerror or str(e)).lower()}. {_AGAIN}") from None
    try:
        if len(raw) > _MAX_BYTES:
            raise ValueError(f"over {_MAX_BYTES} bytes")
        return frozenset(int(serial, 16) for serial in json.loads(raw)["serials"])
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise ClusterError(f"revocations {path}: not a list of serial numbers ({e!r}). {_AGAIN}") from None


@dataclass(frozen=True)
class _Loaded:
    """A folder's files, in use."""

    context: ssl.SSLContext
    identity: Identity | None
    revoked: frozenset[int]


def _load(folder: Path, server_side: bool) -> _Loaded:
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
    crl = folder / CRL_FILE
    try:
        context.load_verify_locations(crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except FileNotFoundError:
        """A folder of 0.1."""
    except (ssl.SSLError, OSError):
        raise ClusterError(f"revocations {crl}: not a list of revoked certificates. {_AGAIN}") from None
    try:
        context.load_cert_chain(cert, key, password="")  # never asks on a terminal
    except ssl.SSLError as e:
        reason = "the two belong to different certificates" if e.reason == "KEY_VALUES_MISMATCH" else "one is damaged"
        raise ClusterError(f"certificate files {cert} and {key}: {reason}. {_AGAIN}") from None
    return _Loaded(context, _own_identity(cert), read_revoked(folder / REVOKED_FILE))


def _own_identity(cert: Path) -> Identity | None:
    """Return whom our own certificate names. The ssl module parses only a peer's, and boards have no other parser."""
    try:
        der = ssl.PEM_cert_to_DER_cert(cert.read_text().split("-----END")[0].strip() + "\n-----END CERTIFICATE-----")
        return identity_of(list(_uris(der)))
    except (OSError, ValueError, IndexError):
        return None


_SUBJECT_ALT_NAME = bytes.fromhex("06 03 55 1d 11")  # its OID, 2.5.29.17
_SEQUENCE, _OCTETS, _BOOLEAN, _URI = 0x30, 0x04, 0x01, 0x86


def _uris(der: bytes) -> Iterator[str]:
    """Yield the URIs among a certificate's subject alternative names."""
    at = der.index(_SUBJECT_ALT_NAME) + len(_SUBJECT_ALT_NAME)
    tag, value, rest = _element(der[at:])
    if tag == _BOOLEAN:  # critical
        tag, value, rest = _element(rest)
    if tag != _OCTETS:
        raise ValueError("no extension")
    tag, names, rest = _element(value)
    while names and tag == _SEQUENCE:
        kind, name, names = _element(names)
        if kind == _URI:
            yield name.decode("ascii")


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Return the tag and the value of the first DER element, and what follows it."""
    tag, size, at = der[0], der[1], 2
    if size & 0x80:
        at += size & 0x7F
        size = int.from_bytes(der[2:at], "big")
    return tag, der[at : at + size], der[at + size :]
