"""Signed plans: which manager made a plan, provably for every other manager of the cluster.

    content = sign(plan, addresses, Path("~/.config/edgellm/tls"))
    plan, addresses = Trust(other_folder).plan(content)

Boards store what an admin gave them and report it; they never verify it. Needs the package cryptography, which is
imported at the first call only.
"""

import base64
import binascii
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.errors import ClusterError, PlanError, TagError
from edgellm.files import stamp_of
from edgellm.plan import BOARD_NAME, Plan
from edgellm.wire.addresses import Address, parse_address
from edgellm.wire.credentials import (
    CRL_FILE,
    FILES,
    REVOKED_FILE,
    Identity,
    identity_of,
    may_only_ask,
    read_revoked,
)

if TYPE_CHECKING:
    from cryptography import x509

MAX_BOARDS = 64  # addresses in a signed plan
_CONTEXT = b"edgellm plan 4\n"  # so that no signature made for something else counts
_FIELDS = {"plan", "addresses", "certificate", "signature"}
_MAX_CERTIFICATE_CHARS = 8192
_MAX_SIGNATURE_CHARS = 256
_MAX_FILE_BYTES = 1 << 20
_NEEDS = "signed plans need the package cryptography. Install it with pip install 'edgellm[manager]'."


def sign(plan: Plan, addresses: Mapping[str, Address], identity_folder: Path | None) -> dict[str, Any]:
    """Return {"plan", "addresses", "certificate", "signature"}, signed with the key in `identity_folder`.

    `addresses` are host and port by board name, of at least the plan's boards. Without a folder, certificate and
    signature are None. Raises ClusterError if the folder can't be used or its identity may not plan, and PlanError for
    addresses that no manager would accept.
    """
    content: dict[str, Any] = {"plan": plan.to_dict(), "addresses": {b: [h, p] for b, (h, p) in addresses.items()}}
    _parse_addresses(content["addresses"], plan, PlanError)
    if identity_folder is None:
        return {**content, "certificate": None, "signature": None}
    try:
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise ClusterError(_NEEDS) from None
    _, cert_path, key_path = (identity_folder / name for name in FILES)
    raw = _read(cert_path)
    try:
        certificate = _parse_certificate(raw)
        key = serialization.load_pem_private_key(_read(key_path), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ValueError("the two don't belong together")
        signer = _identity(certificate)
    except Exception as e:  # whatever a parser makes of files that aren't what they should be
        raise ClusterError(f"certificate files {cert_path} and {key_path}: {e}. Deploy again.") from None
    if signer is None or not signer.admin:
        raise ClusterError(may_only_ask(str(signer or "whoever has this certificate"), "make a plan"))
    signature = key.sign(_signed_bytes(content), ec.ECDSA(hashes.SHA256()))
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    return {**content, "certificate": pem, "signature": base64.b64encode(signature).decode()}


def unverified(content: Mapping[str, Any]) -> tuple[Plan, dict[str, Address], dict[str, Any]]:
    """Return the plan, the addresses and the whole of a signed plan in an Assign, well-formed but not verified: for a
    board, which reports it to managers. Raises PlanError for anything else."""
    plan = Plan.from_dict(content.get("plan"))
    addresses = _parse_addresses(content.get("addresses"), plan, PlanError)
    tag: dict[str, Any] = {"plan": plan.to_dict(), "addresses": {b: list(a) for b, a in addresses.items()}}
    for name, most in (("certificate", _MAX_CERTIFICATE_CHARS), ("signature", _MAX_SIGNATURE_CHARS)):
        value = tag[name] = content.get(name)
        if value is not None and not (isinstance(value, str) and len(value) <= most and value.isascii()):
            raise PlanError(f"the plan of epoch {plan.epoch} came with {reprlib.repr(value)} as its {name}")
    return plan, addresses, tag


class Trust:
    """Tells plans that a manager of this cluster made from all others, by the CA in `identity_folder`.

    Without a folder, which is a cluster on loopback without TLS, only unsigned plans are accepted. Changed files count
    from the next call on. Raises ClusterError if the folder can't be used to begin with.
    """

    def __init__(self, identity_folder: Path | None):
        self._folder = identity_folder
        self._stamps: list[tuple[int, int]] | None = None
        self._ca: x509.Certificate
        self._revoked: frozenset[int] = frozenset()
        self._refresh()

    def plan(self, content: object) -> tuple[Plan, dict[str, Address]]:
        """Return the plan and the addresses of its boards, and maybe of more, in an object that `sign` made.

        Raises TagError, in a sentence that can follow "board b1: ", if an admin of this cluster didn't sign exactly
        this, or its certificate was revoked since. Whether the certificate has expired doesn't matter: a cluster goes
        on for years.
        """
        self._refresh()
        if not isinstance(content, dict):
            raise TagError(f"a signed plan is {reprlib.repr(content)}, expected an object")
        if content.keys() != _FIELDS:
            odd = sorted(str(k) for k in content.keys() ^ _FIELDS)[0]
            raise TagError(f"a signed plan {'lacks' if odd in _FIELDS else 'has an unknown field'} {reprlib.repr(odd)}")
        try:
            plan = Plan.from_dict(content["plan"])
        except PlanError as e:
            raise TagError(f"a signed plan can't be read: {e}") from None
        addresses = _parse_addresses(content["addresses"], plan, TagError)
        if self._folder is None:
            if content["certificate"] is not None or content["signature"] is not None:
                raise TagError(
                    f"the plan of epoch {plan.epoch} is signed, and this manager has no certificates to check it with. "
                    "Name the right cluster file with --cluster."
                )
        else:
            signed = {"plan": plan.to_dict(), "addresses": {b: list(a) for b, a in addresses.items()}}
            self._check(plan.epoch, _signed_bytes(signed), content["certificate"], content["signature"])
        return plan, addresses

    def _check(self, epoch: int, signed: bytes, certificate: object, signature: object) -> None:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        what = f"the plan of epoch {epoch}"
        if certificate is None or signature is None:
            raise TagError(f"{what} is not signed")
        if not (isinstance(certificate, str) and 0 < len(certificate) <= _MAX_CERTIFICATE_CHARS):
            raise TagError(f"{what} comes with {reprlib.repr(certificate)} in place of its signer's certificate")
        if not (isinstance(signature, str) and 0 < len(signature) <= _MAX_SIGNATURE_CHARS):
            raise TagError(f"{what} comes with {reprlib.repr(signature)} in place of a signature")
        try:
            raw = base64.b64decode(signature, validate=True)
            shown = _parse_certificate(certificate.encode("ascii"))
            key = shown.public_key()
            signer = _identity(shown)
        except (ValueError, binascii.Error):
            raise TagError(f"{what} comes with a certificate or a signature that is damaged") from None
        except Exception as e:  # cryptography's own kinds for certificates that it doesn't understand
            raise TagError(f"{what} comes with a certificate that can't be read ({type(e).__name__})") from None
        try:
            shown.verify_directly_issued_by(self._ca)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            raise TagError(f"{what} is signed by someone whom this cluster's CA doesn't know") from None
        if signer is None or not signer.admin:
            raise TagError(f"{what} is signed by {signer or 'nobody in particular'}, expected an admin")
        if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
            raise TagError(f"{what} is signed with a key of another kind than ECDSA P-256")
        if shown.serial_number in self._revoked:
            raise TagError(f"{what} is signed by {signer}, whose certificate has been revoked")
        try:
            key.verify(raw, signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise TagError(f"{what} is not what {signer} signed") from None

    def _refresh(self) -> None:
        """Read the CA and the revocations again if their files have changed."""
        if self._folder is None:
            return
        ca, crl, revoked = (self._folder / name for name in (FILES[0], CRL_FILE, REVOKED_FILE))
        stamps = [stamp_of(path) for path in (ca, crl, revoked)]
        if stamps == self._stamps:
            return
        try:
            from cryptography import x509
        except ImportError:
            raise ClusterError(_NEEDS) from None
        try:
            found = x509.load_pem_x509_certificate(_read(ca))
            serials = set(read_revoked(revoked))
            if crl.exists():
                listed = x509.load_pem_x509_crl(_read(crl))
                key = found.public_key()
                if not listed.is_signature_valid(key):  # type: ignore[arg-type]
                    raise ValueError(f"{crl.name} is not signed by the CA")
                serials |= {one.serial_number for one in listed}
        except (ValueError, TypeError) as e:
            if self._stamps is None:
                raise ClusterError(f"certificates in {self._folder}: {e}. Deploy again.") from None
            return  # half renewed: the earlier ones stay in use
        except ClusterError:
            if self._stamps is None:
                raise
            return
        self._ca, self._revoked, self._stamps = found, frozenset(serials), stamps


def _signed_bytes(content: Mapping[str, Any]) -> bytes:
    """Return what is signed: JSON with sorted keys, without spaces, in ASCII, after a line that says what it is."""
    text = json.dumps(
        {"addresses": content["addresses"], "plan": content["plan"]},
        sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False,
    )  # fmt: skip
    return _CONTEXT + text.encode("ascii")


def _parse_addresses(content: object, plan: Plan, error: type[PlanError] | type[TagError]) -> dict[str, Address]:
    """Return host and port by board name. Raises `error` for anything else, for more boards than a cluster has, and if
    a board of the plan is missing."""
    if not isinstance(content, dict) or len(content) > MAX_BOARDS:
        count = f"{len(content)} addresses" if isinstance(content, dict) else reprlib.repr(content)
        raise error(f"the plan of epoch {plan.epoch} came with {count}, expected those of at most {MAX_BOARDS} boards")
    found = {}
    for board, place in content.items():
        address = parse_address(list(place) if isinstance(place, list | tuple) else place)
        if not (isinstance(board, str) and BOARD_NAME.match(board)) or address is None:
            raise error(
                f"the plan of epoch {plan.epoch} came with address {reprlib.repr(place)} for board "
                f"{reprlib.repr(board)}, expected [host, port]"
            )
        found[board] = address
    if missing := [b for b in plan.boards if b not in found]:
        raise error(f"the plan of epoch {plan.epoch} came without an address for board {missing[0]}")
    return found


def _parse_certificate(pem: bytes) -> "x509.Certificate":
    """Return the one certificate in `pem`. Raises ValueError if there is none, or more."""
    from cryptography import x509

    found = x509.load_pem_x509_certificates(pem)
    if len(found) != 1:
        raise ValueError(f"{len(found)} certificates, expected one")
    return found[0]


def _identity(certificate: "x509.Certificate") -> Identity | None:
    """Return whom a certificate names, which is nobody for one that may sign others."""
    from cryptography import x509

    extensions = certificate.extensions
    if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        return None
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return identity_of(names.get_values_for_type(x509.UniformResourceIdentifier))


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as f:
            return f.read(_MAX_FILE_BYTES)
    except OSError as e:
        raise ClusterError(f"certificate file {path}: {(e.strerror or str(e)).lower()}. Deploy again.") from None
