"""An identity as one file to copy, such as anna.edgellm: all that another machine needs to ask a cluster.

A JSON object: `edgellm` ("identity"), `format`, `name`, `admin`, `cluster` (a cluster file), `identity` (the files of a
folder with certificates), `model` (the manifest and the files beside the shards, in base64) and, if there are further
models, `more` (a list of the same). It holds a private key, so it is as secret as one. Whoever opens it has it from
elsewhere: it is hostile until parsed.
"""

import base64
import binascii
import contextlib
import hashlib
import json
import os
import reprlib
import shutil
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgellm.errors import ClusterError, EdgellmError, UsageError
from edgellm.files import write_atomically
from edgellm.manager.cluster_file import FILE_NAME, ClusterFile
from edgellm.shards.manifest import MANIFEST_NAME, Manifest
from edgellm.wire.credentials import CRL_FILE, FILES, REVOKED_FILE, Identity, client_credentials

SUFFIX = ".edgellm"
FORMAT = 1
MAX_BYTES = 128 << 20
_IDENTITY_FILES = (*FILES, CRL_FILE, REVOKED_FILE)
_MAX_PEM_CHARS = 1 << 20
_FIELDS = {"edgellm", "format", "name", "admin", "cluster", "identity", "model"}
_TLS, _MODELS = Path("tls") / "manager", Path("models")


@dataclass(frozen=True)
class Joined:
    """What `join` wrote: whose identity it is, the cluster file, and the boards' names."""

    identity: Identity
    cluster_file: Path
    boards: tuple[str, ...]


def pack(identity_folder: Path, cluster_path: Path) -> bytes:
    """Return the file for the identity in a folder, which may ask the cluster of the cluster file at `cluster_path`.

    How this machine logs in on the boards stays here. Raises ClusterError if something can't be read.
    """
    identity = client_credentials(identity_folder).identity
    if identity is None or identity.role != "manager":
        raise ClusterError(f"{identity_folder} holds the certificate of {identity or 'nobody'}, expected a manager's")
    cluster = ClusterFile.read(cluster_path)
    model, *more = [_packed(cluster.model_dir_path(cluster_path, name)) for name in cluster.models]
    content = {
        "edgellm": "identity", "format": FORMAT, "name": identity.name, "admin": identity.admin,
        "cluster": replace(cluster, boards=tuple(replace(b, ssh=None) for b in cluster.boards)).to_dict(),
        "identity": {name: _read(identity_folder / name).decode() for name in _IDENTITY_FILES},
        "model": model,
        **({"more": more} if more else {}),
    }  # fmt: skip
    raw = (json.dumps(content, indent=1) + "\n").encode()
    if len(raw) > MAX_BYTES:
        names = " and ".join(cluster.models)
        raise ClusterError(f"the files beside the shards of {names} take {len(raw)} bytes, at most {MAX_BYTES}")
    return raw


def _packed(model_dir: Path) -> dict[str, str]:
    """Return a model's manifest and the files beside its shards, in base64."""
    names = (MANIFEST_NAME, *(f.name for f in Manifest.read(model_dir).files))
    return {name: base64.b64encode(_read(model_dir / name)).decode() for name in names}


def join(path: Path, config: Path, *, force: bool = False) -> Joined:
    """Write what is in the identity file at `path` into the folder `config`, the cluster file last.

    Raises UsageError if `config` has another cluster, unless `force` is set, and ClusterError with the path for a file
    that isn't what it should be; then nothing has been changed.
    """
    content = _parse(path)
    try:
        cluster = ClusterFile.from_dict(content["cluster"])
        models = [_model_files(said) for said in (content["model"], *content.get("more", ()))]
        digests = []
        for files in models:
            manifest = Manifest.from_json(files[MANIFEST_NAME])
            _check_files(manifest, files)
            digests.append(manifest.sha256)
        if list(cluster.plans()) != digests:
            raise ClusterError(f"its plan is for other shards than those of its {MANIFEST_NAME}")
    except EdgellmError as e:
        raise ClusterError(f"identity file {path}: {e}. {_AGAIN}") from None
    cluster_path = config / FILE_NAME
    part = config / "tls" / ".joining"
    try:
        part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        identity = _write_identity(content, part, path)
        if not force:
            _refuse_to_replace(config, part)
        folders = [config / _MODELS / digest[:16] for digest in digests]
        for model_dir, files in zip(folders, models, strict=True):
            model_dir.mkdir(parents=True, exist_ok=True)
            for name in sorted(files, key=lambda name: name == MANIFEST_NAME):  # the manifest last
                write_atomically(model_dir / name, files[name])
        _swap(part, config / _TLS)
        more = tuple(replace(m, model_dir=str(at)) for m, at in zip(cluster.more, folders[1:], strict=True))
        replace(cluster, model_dir=str(folders[0]), tls=str(config / _TLS), more=more).write(cluster_path)
    except OSError as e:
        where = e.filename or config
        raise ClusterError(f"can't join in {config}: {where}: {(e.strerror or str(e)).lower()}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Joined(identity, cluster_path, tuple(b.name for b in cluster.boards))


_AGAIN = "Have it made again with 'edgellm manager NAME'."


def _parse(path: Path) -> dict[str, Any]:
    """Return the JSON object in an identity file, with the types of its fields checked."""
    try:
        with open(path, "rb") as f:
            raw = f.read(MAX_BYTES + 1)
    except OSError as e:
        raise ClusterError(f"identity file {path}: {(e.strerror or str(e)).lower()}") from None
    if len(raw) > MAX_BYTES:
        raise ClusterError(f"identity file {path}: over {MAX_BYTES} bytes, expected at most that. {_AGAIN}")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise ClusterError(f"identity file {path}: not one that 'edgellm manager' made") from None
    if not isinstance(content, dict) or content.get("edgellm") != "identity":
        raise ClusterError(f"identity file {path}: not one that 'edgellm manager' made")
    if content.get("format") != FORMAT:
        raise ClusterError(
            f"identity file {path}: format is {reprlib.repr(content.get('format'))}, this edgellm reads {FORMAT}. Run "
            "the same edgellm on both machines."
        )
    if content.keys() - {"more"} != _FIELDS:
        odd = sorted((content.keys() - {"more"}) ^ _FIELDS)[0]
        raise ClusterError(f"identity file {path}: {reprlib.repr(odd)} is missing or unknown. {_AGAIN}")
    more = content.get("more", [])
    if not isinstance(more, list):
        raise ClusterError(f"identity file {path}: more is {reprlib.repr(more)}, expected a list. {_AGAIN}")
    for field, found, names in (
        ("identity", content["identity"], set(_IDENTITY_FILES)), ("model", content["model"], None),
        *(("more", one, None) for one in more),
    ):  # fmt: skip
        texts = isinstance(found, dict) and all(isinstance(text, str) for text in found.values())
        if not texts or (names is not None and found.keys() != names):
            raise ClusterError(f"identity file {path}: {field} is not an object of files. {_AGAIN}")
    if any(len(text) > _MAX_PEM_CHARS for text in content["identity"].values()):
        raise ClusterError(f"identity file {path}: a certificate of over {_MAX_PEM_CHARS} characters. {_AGAIN}")
    return content


def _model_files(said: dict[str, str]) -> dict[str, bytes]:
    if MANIFEST_NAME not in said:
        raise ClusterError(f"it has no {MANIFEST_NAME}")
    try:
        return {name: base64.b64decode(text, validate=True) for name, text in said.items()}
    except (ValueError, binascii.Error):
        raise ClusterError("a file of the model is damaged") from None


def _check_files(manifest: Manifest, files: dict[str, bytes]) -> None:
    """Raise ClusterError unless `files` are exactly those that the manifest names, which are plain names."""
    wanted = {f.name: f.sha256 for f in manifest.files}
    if odd := sorted((files.keys() - {MANIFEST_NAME}) ^ wanted.keys()):
        raise ClusterError(f"file {reprlib.repr(odd[0])} of the model is missing, or not in its {MANIFEST_NAME}")
    for name, sha256 in wanted.items():
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise ClusterError(f"the SHA-256 of {name} differs")


def _write_identity(content: dict[str, Any], part: Path, path: Path) -> Identity:
    """Write the certificates into the folder `part`, and return whom they name: they must be usable."""
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    for name in _IDENTITY_FILES:
        mode = 0o600 if name == "key.pem" else 0o644
        write_atomically(part / name, content["identity"][name].encode(errors="replace"), mode)
    try:
        identity = client_credentials(part).identity
    except ClusterError as e:
        raise ClusterError(f"identity file {path}: {_without_path(str(e), part)} {_AGAIN}") from None
    if identity is None or identity.role != "manager" or (identity.name, identity.admin) != (
        content["name"], content["admin"],
    ):  # fmt: skip
        who = identity or "nobody"
        raise ClusterError(f"identity file {path}: its certificate names {who}, the file another. {_AGAIN}")
    return identity


def _without_path(text: str, part: Path) -> str:
    return text.replace(f"{part}/", "").removesuffix(" Deploy again.")


def _refuse_to_replace(config: Path, part: Path) -> None:
    """Raise UsageError if `config` has another cluster than the identity in `part`, or is a controller's."""
    there = config / FILE_NAME
    way_out = "Join into another folder with --to, or add --force to replace it."
    if (config / "ca" / "ca.key").exists():
        raise UsageError(f"{config} has the CA of a cluster that is deployed from here. {way_out}")
    known = _ca_name(config / _TLS / "ca.pem")
    if there.exists() and known != _ca_name(part / "ca.pem"):
        raise UsageError(f"{there} is already the file of another cluster. {way_out}")


def _ca_name(path: Path) -> object:
    """Return the name in a CA's certificate, which tells it from any other and stays when it is renewed."""
    with contextlib.suppress(OSError, ssl.SSLError):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(path)
        return [ca.get("subject") for ca in context.get_ca_certs()]
    return None


def _swap(part: Path, target: Path) -> None:
    """Put the folder `part` in the place of `target`."""
    old = target.with_name(f".{target.name}-before")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(part, target)
    shutil.rmtree(old, ignore_errors=True)


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as f:
            return f.read(MAX_BYTES)
    except OSError as e:
        raise ClusterError(f"{path}: {(e.strerror or str(e)).lower()}. Deploy again.") from None
