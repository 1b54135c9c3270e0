"""Action plugin edgellm_push: files of the controller to a board, over the connection that Ansible already has.

    - edgellm_push:
        src: /home/me/.cache/edgellm/models/x
        dest: /var/lib/edgellm/models/x
        files: [config.json, layer-0000.safetensors]

`files` are names relative to both folders. A file whose size and SHA-256 are right on the board stays as it is. Others
are written into DEST/.partial and moved into place as a whole, because an agent may have mapped the file they replace.
Whatever the umask, files are of mode 0644 and new folders of mode 0755.

Small files travel together in a tar stream. A large one travels in pieces, and the next run continues where an
interrupted one left off. The board needs only sh, tar, coreutils and find.
"""

import base64
import hashlib
import os
import shlex
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

PIECE_BYTES = 32 << 20  # sent by one command; a worker holds it in memory twice
SILENT_S, BETWEEN_S = 2.0, 5.0  # a push this long says how far it is, and then so often

# Prints what DEST has of the files on standard input, "SIZE NAME" each. Marked, because a login may print, too.
LOOK = r"""
cd "$1" 2>/dev/null || exit 0
while read -r size name; do
  if [ -f "$name" ] && [ "$(stat -c %s "$name")" = "$size" ]; then
    echo "edgellm_there=$(sha256sum <"$name" | cut -c -64) $name"
  fi
  if [ -f ".partial/$name" ]; then echo "edgellm_begun=$(stat -c %s ".partial/$name") $name"; fi
done
"""

# Unpacks the tar stream on standard input, and moves its files into DEST. A script that fails reads its input to the
# end, or this machine's ssh would report a broken pipe instead of what the script says.
UNPACK = r"""
umask 022
{ mkdir -p "$1/.partial" && cd "$1/.partial" && rm -rf .batch && mkdir .batch && tar -xf - --no-same-owner -C .batch
} || { cat >/dev/null; exit 1; }
cat >/dev/null
cd .batch || exit
find . -type f -exec chmod 0644 {} + && sync -f . || exit
find . -mindepth 1 -type d | while read -r name; do mkdir -p "../../$name" || exit; done || exit
find . -type f | while read -r name; do mv -f "$name" "../../$name" || exit; done || exit
cd ../.. && rm -rf .partial/.batch && { rmdir .partial 2>/dev/null; true; }
"""

# Writes standard input into DEST/.partial/NAME from OFFSET on, not at its end: after a lost connection, the last run's
# command may still write what was on its way, and so it writes the same bytes to the same place. Once the file has
# BYTES bytes, it is moved into DEST, unless SHA256 is given and differs: then what is there is removed.
APPEND = r"""
dest=$1 name=$2 offset=$3 bytes=$4 sha256=$5
umask 022
part=.partial/$name
{ mkdir -p "$dest" && cd "$dest" && mkdir -p "$(dirname "$part")" "$(dirname "$name")" && touch "$part" &&
  { [ "$(stat -c %s "$part")" -ge "$offset" ] || { echo "$part has become shorter" >&2; false; } } &&
  truncate -s "$offset" "$part" &&
  dd of="$part" oflag=seek_bytes seek="$offset" conv=notrunc iflag=fullblock bs=1M status=none
} || { cat >/dev/null; exit 1; }
[ "$(stat -c %s "$part")" = "$bytes" ] || exit 0
if [ -n "$sha256" ] && [ "$(sha256sum <"$part" | cut -c -64)" != "$sha256" ]; then
  rm "$part" && echo edgellm_differs=yes
  exit
fi
chmod 0644 "$part" && sync "$part" && mv -f "$part" "$name" && { rmdir -p "$(dirname "$part")" 2>/dev/null; true; }
"""


def command(script: str, *words: str | int) -> str:
    """Return the shell command that runs a script with arguments.

    It is one line of plain words in simple quotes, because the login shell may be any: csh would run the lines of a
    longer one as commands of its own, in the user's home.
    """
    packed = base64.b64encode(script.encode()).decode()
    return shlex.join(["/bin/sh", "-c", f'eval "$(echo {packed} | base64 -d)"', "sh", *map(str, words)])


def check_names(names: Iterable[str]) -> list[str]:
    """Return the names; raise ValueError unless each stays inside its folder and stands on a line of its own."""
    names = list(names)
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith(("/", "-")) or {"..", ".partial"} & set(parts) or name.split() != [name]:
            raise ValueError(f"{name!r} is no name of a file to push")
    return names


def parse_look(stdout: str) -> tuple[dict[str, str], dict[str, int]]:
    """Return what LOOK found: ({name: SHA-256 of a file of the right size}, {name: bytes that were begun})."""
    there, begun = {}, {}
    for line in stdout.splitlines():
        what, _, rest = line.partition("=")
        value, _, name = rest.partition(" ")
        if what == "edgellm_there":
            there[name] = value
        elif what == "edgellm_begun" and value.isdigit():
            begun[name] = int(value)
    return there, begun


def batches(sizes: dict[str, int], most: int) -> list[list[str]]:
    """Return the names in lists that one command each sends: files of at most `most` bytes together, then each larger
    one alone."""
    found, room = [], 0
    for name, size in sizes.items():
        if size > most:
            continue
        if not found or size > room:
            found.append([])
            room = most
        found[-1].append(name)
        room -= size
    return found + [[name] for name, size in sizes.items() if size > most]


def pieces(size: int, begun: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, bytes) of the pieces of a file of which `begun` bytes are there. If that is all of it, or more
    than it has, the last piece is sent again."""
    offset = begun if begun < size else max(0, size - most)
    while offset < size:
        yield offset, min(most, size - offset)
        offset += most


def tar_stream(folder: Path, sizes: dict[str, int]) -> bytes:
    """Return a tar archive of these files of `folder`; raise OSError if one can't be read or has another size."""
    parts = []
    for name, size in sizes.items():
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        parts += [info.tobuf(tarfile.PAX_FORMAT), read(folder / name, 0, size), bytes(-size % tarfile.BLOCKSIZE)]
    return b"".join([*parts, bytes(2 * tarfile.BLOCKSIZE)])


def read(path: Path, offset: int, count: int) -> bytes:
    """Return `count` bytes of a file from `offset` on; raise OSError if it has fewer."""
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(count)
    if len(data) != count:
        raise OSError(f"{path} has become shorter while it was pushed")
    return data


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hex; raise OSError if it can't be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def failure(board: str, said: str, done: int, total: int) -> str:
    """Return in a sentence or two why a push failed on a board, from what its command said."""
    far = f"after {done / 1e6:.0f} of {total / 1e6:.0f} MB"
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return f"board {board}: its disk was full {far} were pushed. Free some space, or use a larger card."
    if "Read-only file system" in said or "Input/output error" in said:
        return f"board {board}: its disk failed {far} were pushed. Check 'dmesg' there, and replace the card."
    last = [line.strip() for line in said.splitlines() if line.strip()] or ["it said nothing"]
    return f"board {board}: the push stopped {far}: {last[-1][:300]}. Fix that, then run this again."


def lost(board: str, done: int, total: int) -> str:
    """Return the sentences for a connection that broke during a push."""
    return (
        f"board {board} was lost after {done / 1e6:.0f} of {total / 1e6:.0f} MB were pushed. Check its power and "
        "cable, then run this again: it continues there."
    )


class PushError(Exception):
    """Why a push failed, in a sentence."""


class ActionModule(ActionBase):
    """What Ansible runs."""

    TRANSFERS_FILES = False  # needs no temporary folder on the board

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec({
            "src": {"type": "path", "required": True},
            "dest": {"type": "path", "required": True},
            "files": {"type": "list", "elements": "str", "required": True},
        })  # fmt: skip
        self._board = task_vars["inventory_hostname"]
        self._folder, self._dest = Path(args["src"]), args["dest"]
        self._began_s = self._told_s = time.monotonic()
        self._done = self._total = 0
        try:
            sizes = {name: os.path.getsize(self._folder / name) for name in check_names(args["files"])}
            lacking, begun = self._look(sizes)
            self._total = sum(lacking.values())
            if not self._task.check_mode:
                self._push(lacking, begun)
        except AnsibleConnectionFailure:
            return {**result, "failed": True, "msg": lost(self._board, self._done, self._total)}
        except OSError as e:
            why = f"this machine can't read {e.filename}: {e.strerror}" if e.filename else str(e)
            return {**result, "failed": True, "msg": f"board {self._board}: {why}"}
        except (PushError, ValueError) as e:
            return {**result, "failed": True, "msg": str(e)}
        seconds = round(time.monotonic() - self._began_s, 3)
        return {**result, "changed": bool(lacking), "pushed": list(lacking), "bytes": self._total, "seconds": seconds}

    def _look(self, sizes: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
        """Return the files that the board lacks, with their sizes, and what it has of them already."""
        asked = "".join(f"{size} {name}\n" for name, size in sizes.items())
        there, begun = parse_look(self._command(LOOK, self._dest, data=asked.encode()))
        lacking = {n: s for n, s in sizes.items() if n not in there or there[n] != sha256_of(self._folder / n)}
        return lacking, begun

    def _push(self, sizes: dict[str, int], begun: dict[str, int]) -> None:
        for names in batches(sizes, PIECE_BYTES):
            if sizes[names[0]] > PIECE_BYTES:
                self._push_large(names[0], sizes[names[0]], begun.get(names[0], 0))
            else:
                some = {name: sizes[name] for name in names}
                self._command(UNPACK, self._dest, data=tar_stream(self._folder, some))
                self._count(sum(some.values()))

    def _push_large(self, name: str, size: int, begun: int) -> None:
        # What an earlier run has pushed is checked with the rest.
        sha256 = sha256_of(self._folder / name) if begun else ""
        before, first = self._done, True
        for offset, count in pieces(size, begun, PIECE_BYTES):
            if first:
                self._done, first = before + offset, False
            data = read(self._folder / name, offset, count)
            said = self._command(APPEND, self._dest, name, offset, size, sha256, data=data)
            self._count(count)
            if "edgellm_differs=yes" in said:
                self._done = before
                self._push_large(name, size, 0)

    def _count(self, pushed: int) -> None:
        """Count bytes as pushed; a push that takes long says how far it is."""
        self._done += pushed
        now = time.monotonic()
        if self._done < self._total and now - self._began_s > SILENT_S and now - self._told_s > BETWEEN_S:
            self._told_s = now
            Display().display(f"{self._board}: {self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB")

    def _command(self, script: str, *words: str | int, data: bytes) -> str:
        """Run a script on the board with `data` as its standard input, and return its output."""
        done = self._low_level_execute_command(command(script, *words), in_data=data, sudoable=True)
        if done["rc"] != 0:
            raise PushError(failure(self._board, done["stderr"] or done["stdout"], self._done, self._total))
        return done["stdout"]
