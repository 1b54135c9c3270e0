"""The cluster's CA on the controller, and the certificates it signs: one for the manager and one per board.

    FOLDER/ca.key  ca.pem                            ca.key never leaves this machine; ca.pem is not secret
    FOLDER/manager/ca.pem  cert.pem  key.pem         one identity
    FOLDER/boards/NAME/ca.pem  cert.pem  key.pem     one identity each, pushed to that board

Keys are ECDSA P-256. A renewed CA certificate keeps its key and its name, so a side with the old one trusts what is
signed from now on, and the other way round. So boards can be updated one after another.
"""

import contextlib
import getpass
import os
import re
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgellm.errors import ClusterError
from edgellm.files import locked, write_atomically
from edgellm.plan import BOARD_NAME
from edgellm.wire.credentials import Identity

CA_DAYS, LEAF_DAYS = 3650, 365
RENEW_CA_DAYS = 400  # more than a leaf lasts: none outlives the CA it was pushed with
RENEW_LEAF_DAYS = 30
_DRIFT = timedelta(days=1)  # a board without a battery may think it is yesterday
_LOCK_TIMEOUT_S = 10.0
_MAX_BYTES = 64 << 10


@dataclass(frozen=True)
class Result:
    """What `ensure` did. `boards` are the folders to push, by name; `made` and `renewed` name identities ("ca",
    "manager", or "board NAME") that are new, or have a new certificate instead of an old one."""

    changed: bool
    folder: Path
    boards: dict[str, Path]
    made: tuple[str, ...]
    renewed: tuple[str, ...]


@dataclass(frozen=True)
class _CA:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    pem: bytes


def ensure(
    folder: Path | str, boards: list[str], now: datetime | None = None, manager: str | None = None
) -> Result:
    """Make sure that FOLDER has a CA, and valid identities of the manager and of each of `boards`.

    Valid files are left alone, so a second call changes nothing. What is missing, half-written, of another key
    or CA, or ends within 30 days is made again, each file whole or not at all. Folders of boards that aren't named
    stay as they are. Raises ClusterError, with the path and the way out, for a CA that can't be used: a new one would
    lock all boards out that aren't deployed at once.
    """
    folder, now = Path(folder).absolute(), (now or datetime.now(UTC)).replace(microsecond=0)
    for name in boards:
        if not BOARD_NAME.match(name):
            raise ClusterError(f"{name!r} is not a board name, expected letters, digits, '.', '_' or '-'")
    folders = {name: folder / "boards" / name for name in boards}
    work = _Work()
    try:
        with _locked(folder, work):
            _make_folder(folder / "boards", work)
            ca = _ensure_ca(folder, now, work)
            _ensure_leaf(folder / "manager", Identity("manager", manager or default_name(), admin=True), ca, now, work)
            for name, at in folders.items():
                _ensure_leaf(at, Identity("board", name), ca, now, work)
    except OSError as e:
        raise ClusterError(f"certificates in {folder}: {e.filename or ''}: {(e.strerror or str(e)).lower()}") from None
    return Result(work.changed, folder, folders, tuple(work.made), tuple(work.renewed))


def issue(folder: Path | str, identity: Identity, into: Path, now: datetime | None = None) -> None:
    """Make an identity in the folder `into`, signed by the CA in FOLDER."""
    folder, now = Path(folder).absolute(), (now or datetime.now(UTC)).replace(microsecond=0)
    work = _Work()
    with _locked(folder, work):
        _ensure_leaf(into, identity, _ensure_ca(folder, now, work), now, work)


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
        certificate = x509.load_pem_x509_certificate(_read(path))
    except OSError as e:
        raise ClusterError(f"certificate file {path}: {(e.strerror or str(e)).lower()}. Deploy again.") from None
    except ValueError:
        raise ClusterError(f"certificate file {path}: no certificate. Deploy again.") from None
    return (certificate.not_valid_after_utc - (now or datetime.now(UTC))) / timedelta(days=1)


class _Work:
    """What has been done so far."""

    def __init__(self) -> None:
        self.changed = False
        self.made: list[str] = []
        self.renewed: list[str] = []


@contextlib.contextmanager
def _locked(folder: Path, work: _Work) -> Iterator[None]:
    """Hold the lock, because two deploys that start together must not make two CAs."""
    _make_folder(folder, work)
    try:
        with locked(folder, _LOCK_TIMEOUT_S):
            yield
    except TimeoutError:
        raise ClusterError(
            f"certificates in {folder}: another deploy has been at them for {_LOCK_TIMEOUT_S:g} s"
        ) from None


# The CA


def _ensure_ca(folder: Path, now: datetime, work: _Work) -> _CA:
    path, key_path = folder / "ca.pem", folder / "ca.key"
    again = f"Put {key_path} and {path} back from a backup, or remove {folder} and deploy to all boards for new ones."
    if not key_path.exists():
        if path.exists() or any(folder.glob("*/*.pem")) or any(folder.glob("boards/*/*.pem")):
            raise ClusterError(f"CA of the cluster: {key_path} is missing. {again}")
        # First the key: what is signed with it can be made again.
        _write(key_path, _key_pem(ec.generate_private_key(ec.SECP256R1())), 0o600, work)
        work.made.append("ca")
    mode = stat.S_IMODE(key_path.stat().st_mode)
    if mode & 0o077:
        raise ClusterError(
            f"CA of the cluster: others may read {key_path} (mode {mode:04o}). Run 'chmod 600 {key_path}' if nobody "
            f"has read it, else remove {folder} and deploy to all boards."
        )
    key = _read_key(key_path)
    if key is None:
        raise ClusterError(f"CA of the cluster: {key_path} is damaged. {again}")
    if path.exists():
        keep = f"If you can't restore it, remove it and deploy: it is remade from {key_path}, and boards trust it."
        try:
            certificate = x509.load_pem_x509_certificate(_read(path))
        except ValueError:
            raise ClusterError(f"CA of the cluster: {path} is damaged. {keep}") from None
        if certificate.public_key() != key.public_key():
            raise ClusterError(f"CA of the cluster: {path} and {key_path} belong to different CAs. {again}")
        if certificate.not_valid_before_utc > now:
            raise ClusterError(
                f"CA of the cluster: {path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d}, this machine's "
                f"clock says {now:%Y-%m-%d}. Set the clock; if it is right, remove the file and deploy."
            )
        if certificate.not_valid_after_utc - now >= timedelta(days=RENEW_CA_DAYS):
            return _CA(certificate, key, _pem(certificate))
        work.renewed.append("ca")
    certificate = _make_ca(key, now)
    _write(path, _pem(certificate), 0o644, work)
    return _CA(certificate, key, _pem(certificate))


def _make_ca(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    public = key.public_key()
    key_id = x509.SubjectKeyIdentifier.from_public_key(public)
    # Named for the key: the same again when it is renewed, another in another cluster.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edgellm cluster CA {key_id.digest.hex()[:12]}")])
    builder = _builder(name, name, public, now, CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    builder = builder.add_extension(key_id, critical=False)
    return builder.sign(key, hashes.SHA256())


# What it signs


def _ensure_leaf(folder: Path, identity: Identity, ca: _CA, now: datetime, work: _Work) -> None:
    _make_folder(folder, work)
    who = str(identity)
    if not _is_good(folder, identity.uri, ca, now):
        new = not (folder / "cert.pem").exists()
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _make_leaf(key.public_key(), identity, ca, now)
        _write(folder / "key.pem", _key_pem(key), 0o600, work)
        _write(folder / "cert.pem", _pem(certificate), 0o644, work)
        (work.made if new else work.renewed).append(who)
    if not _has(folder / "ca.pem", ca.pem):
        _write(folder / "ca.pem", ca.pem, 0o644, work)


def _is_good(folder: Path, uri: str, ca: _CA, now: datetime) -> bool:
    """Whether key and certificate belong together, are this identity's, of this CA, and last for a while."""
    try:
        key = _read_key(folder / "key.pem")
        private = not (folder / "key.pem").stat().st_mode & 0o077  # who could read it may have it
        certificate = x509.load_pem_x509_certificate(_read(folder / "cert.pem"))
        if key is None or not private or certificate.public_key() != key.public_key():
            return False
        certificate.verify_directly_issued_by(ca.certificate)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (FileNotFoundError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound, UnsupportedAlgorithm):
        return False
    if names.get_values_for_type(x509.UniformResourceIdentifier) != [uri]:
        return False
    lasts = certificate.not_valid_after_utc - now >= timedelta(days=RENEW_LEAF_DAYS)
    return lasts and certificate.not_valid_before_utc <= now


def _make_leaf(public: ec.EllipticCurvePublicKey, identity: Identity, ca: _CA, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name or "manager")])
    builder = _builder(name, ca.certificate.subject, public, now, LEAF_DAYS)
    # Boards dial each other; nothing dials a manager.
    sides = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH][: 1 if identity.role == "manager" else 2]
    ca_key_id = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage(sides), False),
        (x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)]), False),
        (x509.SubjectKeyIdentifier.from_public_key(public), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_key_id), False),
    ):
        builder = builder.add_extension(extension, critical)
    return builder.sign(ca.key, hashes.SHA256())


def _builder(subject, issuer, public, now: datetime, days: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DRIFT)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(**allowed: bool) -> x509.KeyUsage:
    every = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in every})


# Files


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read(path: Path) -> bytes:
    with open(path, "rb") as f:
        return f.read(_MAX_BYTES)


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    """None for a file that holds no such key."""
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _has(path: Path, content: bytes) -> bool:
    try:
        return _read(path) == content
    except FileNotFoundError:
        return False


def _make_folder(path: Path, work: _Work) -> None:
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        work.changed = True
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)
        work.changed = True


def _write(path: Path, content: bytes, mode: int, work: _Work) -> None:
    write_atomically(path, content, mode)
    work.changed = True
