"""Named API keys. The file beside the cluster file holds their SHA-256, never a key itself."""

import hashlib
import json
import logging
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import UsageError
from edgellm.files import stamp_of, write_atomically

log = logging.getLogger(__name__)
FILE_NAME = "api-keys.json"
PREFIX = "edgellm-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,47}\Z")
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class _Key:
    name: str
    sha256: str
    created_s: int


class Keys:
    """The keys in a file, which is read again when it changes. Once there was a key, nobody gets in without one, even
    if the file goes away."""

    def __init__(self, path: Path):
        """Raises UsageError for a file that can't be read."""
        self.path = path
        self._stamp = stamp_of(path)
        self._keys = _read(path)
        self._looked_s = time.monotonic()
        self._were_any = bool(self._keys)

    @property
    def needed(self) -> bool:
        """Whether one must show a key."""
        self._look()
        return self._were_any

    def __len__(self) -> int:
        self._look()
        return len(self._keys)

    def name_of(self, key: str) -> str | None:
        """Return whose key this is; None if it is nobody's."""
        self._look()
        digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
        found = [k.name for k in self._keys if secrets.compare_digest(k.sha256, digest)]
        return found[0] if found else None

    def make(self, name: str) -> str:
        """Return a new key, which replaces the one of this name. Raises UsageError for a name that can't be one."""
        if not _NAME.match(name):
            raise UsageError(f"{name[:60]!r} can't name a key. Use up to 48 letters, digits and . _ @ -")
        key = PREFIX + secrets.token_urlsafe(32)
        made = _Key(name, hashlib.sha256(key.encode()).hexdigest(), int(time.time()))
        self._write([*(k for k in _read(self.path) if k.name != name), made])
        return key

    def remove(self, name: str) -> bool:
        """Remove a key; return whether there was one of this name."""
        keys = _read(self.path)
        self._write([k for k in keys if k.name != name])
        return any(k.name == name for k in keys)

    def _write(self, keys: list[_Key]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"keys": [vars(k) for k in keys]}
        write_atomically(self.path, json.dumps(content, indent=2).encode() + b"\n", 0o600)
        self._keys, self._stamp = keys, stamp_of(self.path)
        self._were_any = self._were_any or bool(keys)

    def _look(self) -> None:
        """Read the file again if it has changed; not at each request."""
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        if (stamp := stamp_of(self.path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = _read(self.path)
            self._were_any = self._were_any or bool(self._keys)
        except UsageError as e:  # the keys before go on
            log.error("%s", e)


def _read(path: Path) -> list[_Key]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"{path}: {e}. Make a key with 'edgellm serve --new-key NAME' after removing it.") from None
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UsageError(f"{path} has no list of keys. Remove it, and make a key with 'edgellm serve --new-key NAME'.")
    keys = []
    for entry in entries:
        given = entry if isinstance(entry, dict) else {}
        name, sha256, created_s = given.get("name"), given.get("sha256"), given.get("created_s", 0)
        if not isinstance(name, str) or not _NAME.match(name) or not isinstance(sha256, str) or len(sha256) != 64:
            raise UsageError(f"{path}: a key has no name or no SHA-256. Remove that entry.")
        keys.append(_Key(name, sha256, created_s if isinstance(created_s, int) else 0))
    return keys
