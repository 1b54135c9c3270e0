"""A mirror of python-build-standalone in a folder, with a CPython made from Debian's: on its own in any folder."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.boards.harness import HOME, LAB

BUILD = "20990101"
VERSION = "3.11.2"  # Debian 12's
_OF_GLIBC = re.compile(r"(ld-linux.*|lib(c|m|dl|pthread|rt|util|resolv|nsl|crypt))\.so")


def images() -> Path:
    """Return the lab's folder of images."""
    return HOME / "images" / hashlib.sha256(LAB.with_name("images.sh").read_bytes()).hexdigest()[:8]


def mirror(kind: str) -> dict[str, str]:
    """Return uv's variables for a mirror that has a CPython of one of the lab's images, which it makes once: of "full",
    Debian 12's own, or of "cpython", compiled for the glibc of Debian 11."""
    folder = HOME / "pythons" / f"{images().name}-{kind}"
    if not folder.exists():
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        roots = [images() / kind, images() / "bare"] if kind == "full" else [images() / kind]
        gather(roots, new / "tree/python")
        _pack(new / "tree", new)
        shutil.rmtree(new / "tree")
        new.rename(folder)
    pins = folder / "pins.json"
    return {"UV_PYTHON_INSTALL_MIRROR": folder.as_uri(), "UV_PYTHON_DOWNLOADS_JSON_URL": pins.as_uri()}


def gather(roots: list[Path], into: Path) -> None:
    """Put the Python 3.11 of these folders of a Debian, an upper one first, into a folder laid out as
    python-build-standalone's, with every library that it needs but glibc, found by relative paths."""
    binary = into / "bin/python3.11"
    binary.parent.mkdir(parents=True)
    (into / "lib").mkdir()
    source = next(path for root in roots if (path := root / "usr/bin/python3.11").exists())
    shutil.copy(source, binary)
    (into / "bin/python3").symlink_to("python3.11")
    library = source.parents[1] / "lib/python3.11"
    shutil.copytree(library, into / "lib/python3.11", symlinks=False, ignore_dangling_symlinks=True,
                    ignore=shutil.ignore_patterns("__pycache__", "config-*"))  # fmt: skip
    _patch(binary, "$ORIGIN/../lib", roots, into)
    for module in (into / "lib/python3.11/lib-dynload").glob("*.so"):
        _patch(module, "$ORIGIN/../..", roots, into)


def _patch(file: Path, rpath: str, roots: list[Path], into: Path) -> None:
    """Let a program or library look for its libraries there, and put them there."""
    file.chmod(0o755)
    subprocess.run(["patchelf", "--set-rpath", rpath, file], check=True, timeout=30)
    for name in subprocess.check_output(["patchelf", "--print-needed", file], timeout=30, text=True).split():
        if _OF_GLIBC.match(name) or (into / "lib" / name).exists():
            continue
        shutil.copy(_find(name, roots), into / "lib" / name)
        _patch(into / "lib" / name, "$ORIGIN", roots, into)


def _find(name: str, roots: list[Path]) -> Path:
    for root in roots:
        for folder in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"):
            path = root / folder / name
            if path.is_symlink():
                path = path.parent / os.readlink(path)
            if path.exists():
                return path
    raise FileNotFoundError(f"no {name} in {roots}")


def _pack(tree: Path, folder: Path) -> None:
    """Write the archive, and the file that names it, as uv expects them."""
    assert platform.machine() == "x86_64"
    name = f"cpython-{VERSION}+{BUILD}-x86_64-unknown-linux-gnu-install_only_stripped.tar.gz"
    (folder / BUILD).mkdir()
    with tarfile.open(folder / BUILD / name, "w:gz", compresslevel=1) as archive:
        archive.add(tree / "python", "python")
    major, minor, patch = map(int, VERSION.split("."))
    url = f"https://github.com/astral-sh/python-build-standalone/releases/download/{BUILD}/{name.replace('+', '%2B')}"
    entry = {
        "name": "cpython", "arch": {"family": "x86_64", "variant": None}, "os": "linux", "libc": "gnu", "major": major,
        "minor": minor, "patch": patch, "prerelease": "", "variant": None, "build": BUILD, "url": url,
        "sha256": hashlib.sha256((folder / BUILD / name).read_bytes()).hexdigest(),
    }  # fmt: skip
    (folder / "pins.json").write_text(json.dumps({f"cpython-{VERSION}-linux-x86_64-gnu": entry}))
