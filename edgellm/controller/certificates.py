"""The identities that the cluster's CA issues: the one that asks from this machine, the boards', and other managers'.

    CA/…                                                    see controller/authority.py
    CA/boards/NAME/ca.pem  cert.pem  key.pem  crl.pem  revoked.json   one identity each, pushed to that board
    MANAGER/ca.pem  cert.pem  key.pem  crl.pem  revoked.json           the identity of this machine, an admin

edgellm 0.1 kept all of it in one folder: MANAGER's parent. `ensure` moves the CA and the boards out of it.
"""

import contextlib
import getpass
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgellm.controller.authority import Authority, Work, has, key_pem, read, read_key, uris
from edgellm.errors import ClusterError
from edgellm.files import locked
from edgellm.plan import BOARD_NAME
from edgellm.wire.credentials import CRL_FILE, FILES, REVOKED_FILE, Identity, identity_of

IDENTITY_FILES = (*FILES, CRL_FILE, REVOKED_FILE)
RENEW_LEAF_DAYS = 30
_LOCK_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Result:
    """What `ensure` did. `boards` are the folders to push, by name; `made` and `renewed` name identities ("ca",
    "admin NAME", or "board NAME") that are new, or have a new certificate instead of an old one."""

    changed: bool
    ca: Path
    manager: Path
    boards: dict[str, Path]
    made: tuple[str, ...]
    renewed: tuple[str, ...]


@dataclass(frozen=True)
class Revoked:
    """What `revoke` did. `identities` are those whose certificates don't count any more, from now on or from before."""

    changed: bool
    identities: tuple[Identity, ...]


def ensure(
    ca: Path | str, manager: Path | str, boards: list[str], *, name: str | None = None, now: datetime | None = None
) -> Result:
    """Make sure that there are a CA, and valid identities of this machine's manager and of each of `boards`.

    The manager is an admin called `name`, by default as it was before, or USER-HOST. Valid files are left alone, so a
    second call changes nothing. What is missing, half-written, of another key or CA, revoked, or ends within 30 days is
    made again, each file whole or not at all. Folders of boards that aren't named stay as they are.

    Raises ClusterError, with the path and the way out, for a CA that can't be used.
    """
    for board in boards:
        _check_name(board, "a board name")
    _check_name(name or "x", "a manager's name")
    ca, manager = Path(ca).absolute(), Path(manager).absolute()
    folders = {board: ca / "boards" / board for board in boards}
    with _opened(ca, manager, now) as (authority, work):
        _ensure_leaf(manager, _own(manager, name), authority, work)
        for board, folder in folders.items():
            _ensure_leaf(folder, Identity("board", board), authority, work)
    return Result(work.changed, ca, manager, folders, tuple(work.made), tuple(work.renewed))


def issue(
    ca: Path | str, manager: Path | str, identity: Identity, into: Path, *, now: datetime | None = None
) -> None:
    """Make another manager's identity in the folder `into`, with a new key. Raises ClusterError."""
    if identity.name is not None:
        _check_name(identity.name, "a manager's name")
    with _opened(Path(ca).absolute(), Path(manager).absolute(), now, must_be_there=True) as (authority, work):
        _ensure_leaf(into, identity, authority, work)


@contextlib.contextmanager
def with_authority(ca: Path | str, manager: Path | str, now: datetime) -> Iterator[Authority]:
    """Open the CA, which must be there, under its lock. Raises ClusterError."""
    with _opened(Path(ca).absolute(), Path(manager).absolute(), now, must_be_there=True) as (authority, _):
        yield authority


def revoke(
    ca: Path | str, manager: Path | str, who: str, *, missing_ok: bool = False, now: datetime | None = None
) -> Revoked:
    """Revoke every certificate of `who`: a name, or board:NAME or manager:NAME where both have it.

    With a board goes the server there, because a copy of the board's disk has both keys. This machine's own identity,
    if it is that one, gets a new key at once. Raises ClusterError if there is none of that name, unless `missing_ok`,
    or a board and a manager.
    """
    kind, _, name = who.rpartition(":")
    ca, manager = Path(ca).absolute(), Path(manager).absolute()
    with _opened(ca, manager, now, must_be_there=True) as (authority, work):
        found = [one for one in authority.issued if one.name == name and kind in ("", one.identity.role)]
        roles = {one.identity.role for one in found}
        if not found and not missing_ok:
            known = sorted({one.name for one in authority.issued if one.revoked is None})
            raise ClusterError(f"nobody called {who!r} has a certificate. Those who have one: {', '.join(known)}.")
        if len(roles) > 1:
            raise ClusterError(f"{name} is a board and a manager. Say which: board:{name} or manager:{name}.")
        servers = {server_name(one.name) for one in found if one.identity.role == "board" and one.name is not None}
        found += [one for one in authority.issued if one.identity.role == "manager" and one.name in servers]
        fresh = authority.revoke(found)
        _ensure_leaf(manager, _own(manager, None), authority, work)
    return Revoked(bool(fresh), tuple({one.uri: one.identity for one in found}.values()))


def server_name(machine: str) -> str:
    """Return the name, as a manager, of the server on a board, or on the "controller"."""
    return f"server-{machine}"[:63]


def default_name() -> str:
    """Return this machine's name as a manager: USER-HOST, as far as a name may hold it."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        user = f"user{os.getuid()}"
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{user}-{socket.gethostname().split('.')[0]}").lstrip("._-")[:63]
    return found or "manager"


def remaining_days(path: Path | str, now: datetime | None = None) -> float:
    """Days until the first certificate in the file at `path` ends, negative after that; raises ClusterError."""
    path = Path(path)
    try:
        certificate = x509.load_pem_x509_certificate(read(path))
    except OSError as e:
        raise ClusterError(f"certificate file {path}: {(e.strerror or str(e)).lower()}. Deploy again.") from None
    except ValueError:
        raise ClusterError(f"certificate file {path}: no certificate. Deploy again.") from None
    return (certificate.not_valid_after_utc - (now or datetime.now(UTC))) / timedelta(days=1)


def _check_name(name: str, what: str) -> None:
    if not BOARD_NAME.match(name):
        raise ClusterError(f"{name!r} is not {what}, expected letters, digits, '.', '_' or '-', at most 63")


@contextlib.contextmanager
def _opened(
    ca: Path, manager: Path, now: datetime | None, must_be_there: bool = False
) -> Iterator[tuple[Authority, Work]]:
    """Open the CA under its lock, because two deploys that start together must not make two CAs."""
    now, work = (now or datetime.now(UTC)).replace(microsecond=0), Work()
    old = manager.parent
    try:
        if must_be_there and not (ca / "ca.key").exists() and not (old / "ca.key").exists():
            raise ClusterError(f"CA of the cluster: {ca} has no ca.key. Deploy first, or attach the disk that has it.")
        if not ca.is_dir() and (manager / "cert.pem").exists() and not (old / "ca.key").exists():
            raise ClusterError(
                f"CA of the cluster: there is no folder {ca}, and {manager} has a certificate of it. Attach its disk, "
                f"put it back from a backup, or set edgellm_ca to where it is. If it is lost, remove {manager}, and "
                "deploy to all boards for a new CA. Until then asking goes on."
            )
        work.make_folder(ca)
        with locked(ca, _LOCK_TIMEOUT_S):
            if old != ca:
                _move_over(old, ca, work)
            work.make_folder(ca / "boards")
            holders = [manager, *sorted(p for p in (ca / "boards").iterdir() if p.is_dir())]
            yield Authority(ca, holders, now, work), work
    except TimeoutError:
        raise ClusterError(f"certificates in {ca}: another deploy has been at them for {_LOCK_TIMEOUT_S:g} s") from None
    except PermissionError as e:
        raise ClusterError(
            f"certificates in {ca}: {e.filename or ''}: permission denied. Deploy as the user who owns the CA; asking "
            f"needs only {manager}."
        ) from None
    except OSError as e:
        raise ClusterError(f"certificates in {ca}: {e.filename or ''}: {(e.strerror or str(e)).lower()}") from None


def _move_over(old: Path, ca: Path, work: Work) -> None:
    """Move a CA of 0.1, and its boards, from `old` into `ca`. ca.key is copied last: with it, the new place counts."""
    if not (old / "ca.key").exists():
        return
    if not (ca / "ca.key").exists():
        for path in sorted((old / "boards").glob("*/*.pem")):
            target = ca / path.relative_to(old)
            work.make_folder(ca / "boards")
            work.make_folder(target.parent)
            work.write(target, read(path), 0o600 if path.name == "key.pem" else 0o644)
        if (old / "ca.pem").exists():
            work.write(ca / "ca.pem", read(old / "ca.pem"), 0o644)
        mode = (old / "ca.key").stat().st_mode & 0o777  # one that others may read is to be an error, as it was
        work.write(ca / "ca.key", read(old / "ca.key"), mode)
    if not has(ca / "ca.key", read(old / "ca.key")):
        raise ClusterError(
            f"CA of the cluster: {ca} and {old} each have a ca.key, and they differ. Move the one away that isn't "
            "this cluster's."
        )
    shutil.rmtree(old / "boards", ignore_errors=True)
    for name in ("ca.pem", "ca.key"):
        (old / name).unlink(missing_ok=True)
    work.changed = True


def _own(manager: Path, name: str | None) -> Identity:
    """Return the identity of this machine: its name stays as it is unless another is wanted."""
    if name is None:
        with contextlib.suppress(OSError, ValueError, x509.ExtensionNotFound):
            there = identity_of(uris(x509.load_pem_x509_certificate(read(manager / "cert.pem"))))
            name = there.name if there and there.role == "manager" else None
    return Identity("manager", name or default_name(), admin=True)


def _ensure_leaf(folder: Path, identity: Identity, authority: Authority, work: Work) -> None:
    work.make_folder(folder)
    if not _is_good(folder, identity, authority):
        new = not (folder / "cert.pem").exists()
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = authority.sign(identity, key.public_key())
        work.write(folder / "key.pem", key_pem(key), 0o600)
        work.write(folder / "cert.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        (work.made if new else work.renewed).append(str(identity))
    work.write(folder / "ca.pem", authority.pem, 0o644)
    for name in (CRL_FILE, REVOKED_FILE):
        work.write(folder / name, read(authority.folder / name), 0o644)


def _is_good(folder: Path, identity: Identity, authority: Authority) -> bool:
    """Whether key and certificate belong together, are this identity's, of this CA, not revoked, and last a while."""
    now = authority.now
    try:
        key = read_key(folder / "key.pem")
        private = not (folder / "key.pem").stat().st_mode & 0o077  # who could read it may have it
        certificate = x509.load_pem_x509_certificate(read(folder / "cert.pem"))
        if key is None or not private or certificate.public_key() != key.public_key():
            return False
        named = uris(certificate)
    except (FileNotFoundError, ValueError, TypeError, x509.ExtensionNotFound, UnsupportedAlgorithm):
        return False
    if named != [identity.uri] or not authority.has_signed(certificate):
        return False
    if certificate.serial_number in authority.revoked:
        return False
    lasts = certificate.not_valid_after_utc - now >= timedelta(days=RENEW_LEAF_DAYS)
    return lasts and certificate.not_valid_before_utc <= now
