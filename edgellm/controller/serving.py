"""What the machine that runs `edgellm serve` gets: an ask-only identity, API keys, and a certificate for HTTPS.

    CA/servers/NAME/ca.pem  cert.pem  key.pem  crl.pem  revoked.json   the server's own identity, manager:server-NAME
    CA/servers/NAME/server.edgellm             that identity as one file, with the cluster file and the tokenizer
    CA/servers/NAME/api-keys.json              the SHA-256 of each API key
    CA/servers/NAME/https-cert.pem  https-key.pem
    CONFIG/api-keys/KEY                        an API key, for its owner alone

NAME is the board, or "controller". The last three files of the folder and server.edgellm are what is pushed.
"""

import hashlib
import ipaddress
import json
import re
import secrets
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgellm.controller.authority import has, key_pem, read, read_key
from edgellm.controller.certificates import RENEW_LEAF_DAYS, issue, server_name, with_authority
from edgellm.errors import ClusterError, UsageError
from edgellm.files import write_atomically
from edgellm.manager.cluster_file import ClusterFile
from edgellm.manager.identity_file import pack
from edgellm.wire.credentials import Identity

JOINED, HASHES, CERT, KEY = "server.edgellm", "api-keys.json", "https-cert.pem", "https-key.pem"
FIRST_KEY = "default"  # the name of the key that a deploy makes
_PREFIX = "edgellm-"
_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,47}\Z")
_ONLY_NOW = ("plan", "tag", "created")  # of a cluster file: the server follows changes of these by itself


@dataclass(frozen=True)
class Prepared:
    """The files to push, and what the server is compared by: `stamp` changes with all in its identity file but the
    plan, and its first half only with what a server that runs can't follow. `key_file` holds an API key."""

    changed: bool
    files: tuple[Path, ...]
    stamp: str
    key_file: Path
    keys: tuple[str, ...]


def identity_of_server(name: str, several: bool = False) -> Identity:
    """Return the identity of the server on a board, or on the "controller". It may plan if there are several models,
    because it has the boards change over from one to another."""
    return Identity("manager", server_name(name), admin=several)


def prepare(
    config: Path, ca: Path, manager: Path, cluster: Path, name: str, *, tls: str = "", names: tuple[str, ...] = (),
    now: datetime | None = None,
) -> Prepared:  # fmt: skip
    """Make what the server called `name` needs, as far as it isn't there, and return it.

    `tls` is "" for plain HTTP, "cluster" for a certificate of the cluster's CA for `names` (addresses and host names),
    or a folder with cert.pem and key.pem. Makes an API key if there is none. Raises ClusterError and UsageError.
    """
    folder = ca / "servers" / name
    before = _content(folder)
    issue(ca, manager, identity_of_server(name, len(ClusterFile.read(cluster).models) > 1), folder, now=now)
    packed = pack(folder, cluster)
    _write(folder / JOINED, packed, 0o600)
    files = [folder / JOINED, folder / HASHES]
    keys_changed = ensure_first_key(config)
    _write(folder / HASHES, hashes(config), 0o600)
    if tls:
        cert, key = _own_pair(ca, manager, folder, names, now) if tls == "cluster" else _given_pair(Path(tls))
        _write(folder / CERT, cert, 0o600)
        _write(folder / KEY, key, 0o600)
        files += [folder / CERT, folder / KEY]
    names_of_keys = tuple(sorted(keys_in(config)))
    shown = FIRST_KEY if FIRST_KEY in names_of_keys else names_of_keys[0]
    changed = keys_changed or _content(folder) != before
    return Prepared(changed, tuple(files), stamp(packed), config / "api-keys" / shown, names_of_keys)


def stamp(packed: bytes) -> str:
    """Return 64 hex digits that tell what an identity file says, but for the plan. The first 32 tell the models: a
    server that runs reads all else again when it changes."""
    content = json.loads(packed)
    cluster = content["cluster"]
    more = [{key: value for key, value in one.items() if key not in _ONLY_NOW} for one in cluster.get("more", [])]
    content["cluster"] = {**{key: value for key, value in cluster.items() if key not in _ONLY_NOW}, "more": more}
    models = [content["model"], content.get("more"), cluster["model"], [one["model"] for one in more]]
    return "".join(hashlib.sha256(json.dumps(s, sort_keys=True).encode()).hexdigest()[:32] for s in (models, content))


# API keys


def keys_in(config: Path) -> dict[str, Path]:
    """Return the files of all API keys, by name."""
    folder = config / "api-keys"
    if not folder.is_dir():
        return {}
    return {p.name: p for p in folder.iterdir() if _KEY_NAME.match(p.name) and not p.name.endswith(".part")}


def ensure_first_key(config: Path) -> bool:
    """Make an API key if there is none; return whether one was made."""
    if keys_in(config):
        return False
    make_key(config, FIRST_KEY)
    return True


def make_key(config: Path, name: str) -> Path:
    """Make an API key, which replaces the one of this name; return its file. Raises UsageError for a name that can't
    be one."""
    if not _KEY_NAME.match(name):
        raise UsageError(f"{name[:60]!r} can't name an API key. Use up to 48 letters, digits and . _ @ -")
    folder = config / "api-keys"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(folder / name, f"{_PREFIX}{secrets.token_urlsafe(32)}\n".encode(), 0o600)
    return folder / name


def remove_key(config: Path, name: str) -> None:
    """Remove an API key. Raises UsageError if there is none of this name, or it is the only one."""
    known = keys_in(config)
    if name not in known:
        raise UsageError(f"there is no API key {name[:60]!r}. There are: {', '.join(sorted(known)) or 'none'}.")
    if len(known) == 1:
        raise UsageError(f"{name} is the only API key, and a server that others reach needs one. Make another first.")
    known[name].unlink()


def hashes(config: Path) -> bytes:
    """Return what the server reads: each key's name, its SHA-256, and when it was made. Raises ClusterError."""
    entries = []
    for name, path in sorted(keys_in(config).items()):
        key = read(path).decode(errors="replace").strip()
        if not key.startswith(_PREFIX) or len(key) < len(_PREFIX) + 32:
            raise ClusterError(f"{path} holds no API key. Make it again with 'edgellm key {name}'.")
        made_s = int(path.stat().st_mtime)
        entries.append({"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), "created_s": made_s})
    return json.dumps({"keys": entries}, indent=2).encode() + b"\n"


# HTTPS


def _own_pair(
    ca: Path, manager: Path, folder: Path, names: tuple[str, ...], now: datetime | None
) -> tuple[bytes, bytes]:
    """Return a certificate of the cluster's CA for these names, with the CA's own after it, and its key: those that are
    there if they are good for 30 more days."""
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    with with_authority(ca, manager, now) as authority:
        wanted = x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys(names)])
        try:
            there, key = x509.load_pem_x509_certificates(read(folder / CERT))[0], read_key(folder / KEY)
            named = there.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            lasts = there.not_valid_after_utc - now >= timedelta(days=RENEW_LEAF_DAYS)
            paired = key is not None and key.public_key() == there.public_key()
            if paired and lasts and named == wanted and authority.has_signed(there):
                return read(folder / CERT), read(folder / KEY)
        except (OSError, ValueError, x509.ExtensionNotFound):
            pass  # none yet, or damaged: made anew
        fresh = ec.generate_private_key(ec.SECP256R1())
        signed = authority.sign_for_https(wanted, fresh.public_key())
        return signed.public_bytes(serialization.Encoding.PEM) + authority.pem, key_pem(fresh)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _given_pair(folder: Path) -> tuple[bytes, bytes]:
    """Return cert.pem and key.pem of a folder, which must belong together."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
        return read(cert), read(key)
    except FileNotFoundError as e:
        raise UsageError(f"edgellm_server_tls is {folder}: {e.filename or 'cert.pem or key.pem'} is missing there."
                         ) from None  # fmt: skip
    except (OSError, ValueError) as e:
        raise UsageError(f"edgellm_server_tls is {folder}: cert.pem and key.pem there can't be used: {e}.") from None


def _content(folder: Path) -> dict[str, bytes]:
    names = (HASHES, CERT, KEY, "cert.pem", "crl.pem")
    return {name: read(folder / name) for name in names if (folder / name).is_file()}


def _write(path: Path, content: bytes, mode: int) -> None:
    if not has(path, content):
        write_atomically(path, content, mode)
