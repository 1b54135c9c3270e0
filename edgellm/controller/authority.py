"""The cluster's CA, in a folder of its own: its key, every certificate that it has issued, and those it has revoked.

    FOLDER/ca.key  ca.pem          ca.key never leaves this folder; ca.pem is not secret
    FOLDER/issued.json             serial number, identity and time of each certificate, and when it was revoked
    FOLDER/crl.pem  revoked.json   what is revoked, made from issued.json: signed, and as plain serial numbers

Keys are ECDSA P-256. A renewed CA certificate keeps its key and its name, so a side with the old one trusts what is
signed from now on, and the other way round. So boards can be updated one after another.
"""

import json
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgellm.errors import ClusterError
from edgellm.files import write_atomically
from edgellm.wire.credentials import CRL_FILE, REVOKED_FILE, Identity, identity_of

CA_DAYS, LEAF_DAYS = 3650, 365
RENEW_CA_DAYS = 400  # more than a leaf lasts: none outlives the CA it was pushed with
_DRIFT = timedelta(days=1)  # a board without a battery may think it is yesterday
_ISSUED_FILE = "issued.json"
_MAX_BYTES = 4 << 20


class Work:
    """What has been done so far: `made` and `renewed` name identities, or "ca"."""

    def __init__(self) -> None:
        self.changed = False
        self.made: list[str] = []
        self.renewed: list[str] = []

    def make_folder(self, path: Path) -> None:
        """Make sure that there is a folder, for its owner alone."""
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.changed = True
        if path.stat().st_mode & 0o077:
            path.chmod(0o700)
            self.changed = True

    def write(self, path: Path, content: bytes, mode: int) -> None:
        """Write a file whole or not at all, unless it has this content."""
        if not has(path, content):
            write_atomically(path, content, mode)
            self.changed = True


@dataclass(frozen=True)
class Issued:
    """A certificate that the CA has signed: its serial number in hex, its URI, and ISO times; `revoked` may be None."""

    serial: str
    uri: str
    made: str
    revoked: str | None = None

    @property
    def identity(self) -> Identity:
        """Whom the certificate names."""
        found = identity_of([self.uri])
        assert found is not None  # checked where it was read
        return found

    @property
    def name(self) -> str:
        """The name by which it is revoked: 0.1's manager had none."""
        return self.identity.name or "manager"


class Authority:
    """The CA in `folder`, made if there is none and nobody has a certificate of an earlier one.

    `holders` are folders with identities that this CA may have issued, first the one that isn't in `folder`. The caller
    holds a lock on `folder`. Raises ClusterError, with the path and the way out, for a CA that can't be used: a new one
    would lock all boards out that aren't deployed at once.
    """

    def __init__(self, folder: Path, holders: Iterable[Path], now: datetime, work: Work):
        self.folder, self.now, self._work = folder, now, work
        holders = list(holders)
        self._whole = [folder, *holders[:1]]  # what to remove for a new CA
        self.key = self._ensure_key(holders)
        self.certificate = self._ensure_certificate()
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)
        self.issued = self._read_issued()
        self._adopt(holders)
        self._write_revocations()

    @property
    def revoked(self) -> set[int]:
        """The serial numbers of revoked certificates."""
        return {int(one.serial, 16) for one in self.issued if one.revoked is not None}

    def sign(self, identity: Identity, public: ec.EllipticCurvePublicKey) -> x509.Certificate:
        """Return a certificate of this identity, on record before anybody has it."""
        # Boards dial each other; nothing dials a manager.
        sides = [ExtendedKeyUsageOID.CLIENT_AUTH]
        sides += [ExtendedKeyUsageOID.SERVER_AUTH] if identity.role == "board" else []
        named = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)])
        certificate = self._sign(identity.name or "manager", named, sides, public)
        self._record([*self.issued, Issued(f"{certificate.serial_number:x}", identity.uri, self.now.isoformat())])
        return certificate

    def sign_for_https(
        self, named: x509.SubjectAlternativeName, public: ec.EllipticCurvePublicKey
    ) -> x509.Certificate:
        """Return a certificate for an HTTPS server of these names. It names nobody of the cluster, and is no client's,
        so it opens nothing on boards, and isn't on record."""
        return self._sign("edgellm serve", named, [ExtendedKeyUsageOID.SERVER_AUTH], public)

    def _sign(
        self, common: str, named: x509.SubjectAlternativeName, sides: list[x509.ObjectIdentifier],
        public: ec.EllipticCurvePublicKey,
    ) -> x509.Certificate:  # fmt: skip
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        builder = _builder(name, self.certificate.subject, public, self.now, LEAF_DAYS)
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(digital_signature=True), True),
            (x509.ExtendedKeyUsage(sides), False),
            (named, False),
            (x509.SubjectKeyIdentifier.from_public_key(public), False),
            (self._key_id(), False),
        ):
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256())

    def revoke(self, certificates: list[Issued]) -> list[Issued]:
        """Revoke certificates from `issued`; return those that weren't revoked before."""
        fresh = [one for one in certificates if one.revoked is None]
        if fresh:
            now = self.now.isoformat()
            self._record([replace(one, revoked=now) if one in fresh else one for one in self.issued])
            self._write_revocations()
        return fresh

    def has_signed(self, certificate: x509.Certificate) -> bool:
        """Return whether this CA has signed a certificate."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
            return True
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            return False

    def _key_id(self) -> x509.AuthorityKeyIdentifier:
        found = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found)

    # The CA's own files

    def _ensure_key(self, holders: list[Path]) -> ec.EllipticCurvePrivateKey:
        path = self.folder / "ca.key"
        if not path.exists():
            having = [f for f in (self.folder, *holders) if any(f.glob("*.pem"))]
            if having:
                raise ClusterError(
                    f"CA of the cluster: {path} is missing, and {having[0]} has a certificate of it. Attach the disk "
                    "that has it, or put it back from a backup. If it is lost, remove "
                    f"{' and '.join(map(str, self._whole))}, and deploy to all boards for a new CA. Until then asking "
                    "goes on."
                )
            # First the key: what is signed with it can be made again.
            self._work.write(path, key_pem(ec.generate_private_key(ec.SECP256R1())), 0o600)
            self._work.made.append("ca")
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise ClusterError(
                f"CA of the cluster: others may read {path} (mode {mode:04o}). Run 'chmod 600 {path}' if nobody "
                f"has read it, else remove {self.folder} and deploy to all boards."
            )
        key = read_key(path)
        if key is None:
            raise ClusterError(f"CA of the cluster: {path} is damaged. {self._again()}")
        return key

    def _ensure_certificate(self) -> x509.Certificate:
        path, now = self.folder / "ca.pem", self.now
        if path.exists():
            key_path = self.folder / "ca.key"
            keep = f"If you can't restore it, remove it and deploy: it is remade from {key_path}, and boards trust it."
            try:
                certificate = x509.load_pem_x509_certificate(read(path))
            except ValueError:
                raise ClusterError(f"CA of the cluster: {path} is damaged. {keep}") from None
            if certificate.public_key() != self.key.public_key():
                raise ClusterError(f"CA of the cluster: {path} and {key_path} belong to different CAs. {self._again()}")
            if certificate.not_valid_before_utc > now:
                raise ClusterError(
                    f"CA of the cluster: {path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d}, this "
                    f"machine's clock says {now:%Y-%m-%d}. Set the clock; if it is right, remove the file and deploy."
                )
            if certificate.not_valid_after_utc - now >= timedelta(days=RENEW_CA_DAYS):
                return certificate
            self._work.renewed.append("ca")
        certificate = _make_ca(self.key, now)
        self._work.write(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return certificate

    def _again(self) -> str:
        files = f"{self.folder / 'ca.key'} and {self.folder / 'ca.pem'}"
        return f"Put {files} back from a backup, or remove {self.folder} and deploy to all boards for new ones."

    # What it has issued, and revoked

    def _read_issued(self) -> list[Issued]:
        path = self.folder / _ISSUED_FILE
        try:
            found = [Issued(**one) for one in json.loads(read(path))["issued"]]
            for one in found:
                int(one.serial, 16)
                for when in (one.made, one.revoked or one.made):
                    datetime.fromisoformat(when)
                if identity_of([one.uri]) is None:
                    raise ValueError(f"{one.uri!r} names nobody")
            return found
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError, RecursionError) as e:
            raise ClusterError(
                f"CA of the cluster: {path} is damaged ({e}). Put it back from a backup. Without it, certificates of "
                "managers can't be revoked by name any more: then remove it, and make a new CA if one may be stolen."
            ) from None

    def _adopt(self, holders: list[Path]) -> None:
        """Record certificates that 0.1 has issued, or whose record was lost."""
        known, added = {int(one.serial, 16) for one in self.issued}, []
        for holder in holders:
            try:
                certificate = x509.load_pem_x509_certificate(read(holder / "cert.pem"))
                identity = identity_of(uris(certificate))
            except (OSError, ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
                continue
            if identity and certificate.serial_number not in known and self.has_signed(certificate):
                made = (certificate.not_valid_before_utc + _DRIFT).isoformat()
                added.append(Issued(f"{certificate.serial_number:x}", identity.uri, made))
        if added:
            self._record([*self.issued, *added])

    def _record(self, issued: list[Issued]) -> None:
        self.issued = issued
        text = json.dumps({"issued": [asdict(one) for one in issued]}, indent=1) + "\n"
        self._work.write(self.folder / _ISSUED_FILE, text.encode(), 0o644)

    def _write_revocations(self) -> None:
        """Make sure that crl.pem and revoked.json say what issued.json says."""
        path, revoked = self.folder / CRL_FILE, self.revoked
        try:
            there = x509.load_pem_x509_crl(read(path))
            right = (
                there.is_signature_valid(self.key.public_key())
                and there.next_update_utc == self.certificate.not_valid_after_utc
                and {one.serial_number for one in there} == revoked
            )
        except (FileNotFoundError, ValueError, TypeError):
            right = False
        if not right:
            self._work.write(path, self._make_crl().public_bytes(serialization.Encoding.PEM), 0o644)
        text = json.dumps({"serials": sorted(f"{serial:x}" for serial in revoked)}, indent=1) + "\n"
        self._work.write(self.folder / REVOKED_FILE, text.encode(), 0o644)

    def _make_crl(self) -> x509.CertificateRevocationList:
        """Return a list that counts from the CA's first day to its last, because a cluster that is left alone for a
        year must go on, and so must a board whose clock is behind."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(self.certificate.not_valid_before_utc)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(self._key_id(), critical=False)
            .add_extension(x509.CRLNumber(int(self.now.timestamp())), critical=False)
        )
        for one in self.issued:
            if one.revoked is not None:
                entry = x509.RevokedCertificateBuilder().serial_number(int(one.serial, 16))
                builder = builder.add_revoked_certificate(
                    entry.revocation_date(datetime.fromisoformat(one.revoked)).build()
                )
        return builder.sign(self.key, hashes.SHA256())


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


def uris(certificate: x509.Certificate) -> list[str]:
    """Return the URIs among a certificate's names. Raises what cryptography raises for one without."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as a file holds it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read(path: Path) -> bytes:
    """Return a small file's content."""
    with open(path, "rb") as f:
        return f.read(_MAX_BYTES)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    """Return the private key in a file; None for a file that holds no such key."""
    try:
        key = serialization.load_pem_private_key(read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def has(path: Path, content: bytes) -> bool:
    """Return whether a file is there with this content."""
    try:
        return read(path) == content
    except FileNotFoundError:
        return False
