"""The CPython for boards that have none: which archive, fetched by the real uv from a mirror, and what is trimmed."""

import gzip
import io
import json
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest

from edgellm.controller import standalone, wheels
from edgellm.controller.standalone import Pin, is_trimmed, make, pinned, why
from edgellm.errors import UsageError, WheelhouseError
from edgellm.files import sha256_of

pytest.importorskip("uv")
URL = "https://github.com/astral-sh/python-build-standalone/releases/download"
FILES = {
    "bin/python3.13": b"an executable", "lib/python3.13/os.py": b"", "lib/python3.13/ssl.py": b"# ssl",
    "lib/python3.13/_sysconfigdata__linux_.py": b"build_time_vars = {}", "lib/libpython3.13.so.1.0": b"x" * 1000,
    "lib/python3.13/test/test_ssl.py": b"", "lib/python3.13/__pycache__/os.pyc": b"", "include/Python.h": b"",
    "lib/python3.13/site-packages/pip/__init__.py": b"", "lib/python3.13/tkinter/__init__.py": b"",
}  # fmt: skip


class Mirror:
    """A mirror of python-build-standalone in a folder, and the file that names its archives with their SHA-256."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.pins = folder / "mirror", folder / "pins.json"
        monkeypatch.setenv("UV_PYTHON_INSTALL_MIRROR", self.folder.as_uri())
        monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", self.pins.as_uri())
        monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")  # a setting of the owner's, for other things

    def put(self, machine="aarch64", version="3.13.14", build="20260805", sha256=None, members=(), files=FILES):
        release = self.folder / build
        release.mkdir(parents=True, exist_ok=True)
        path = release / f"cpython-{version}+{build}-{machine}-unknown-linux-gnu-install_only_stripped.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(f"python/{name}")
                info.size, info.mode, info.uid = len(data), 0o775 if name.startswith("bin/") else 0o664, 1000
                archive.addfile(info, io.BytesIO(data))
            for name, to in {"bin/python3": "python3.13", "lib/libpython3.13.so": "libpython3.13.so.1.0"}.items():
                info = tarfile.TarInfo(f"python/{name}")
                info.type, info.linkname = tarfile.SYMTYPE, to
                archive.addfile(info)
            for info in members:
                archive.addfile(info)
        major, minor, patch = map(int, version.split("."))
        key = f"cpython-{version}-linux-{machine}-gnu"
        entries = json.loads(self.pins.read_text()) if self.pins.exists() else {}
        entries[key] = {
            "name": "cpython", "arch": {"family": machine, "variant": None}, "os": "linux", "libc": "gnu",
            "major": major, "minor": minor, "patch": patch, "prerelease": "", "variant": None, "build": build,
            "url": f"{URL}/{build}/{path.name.replace('+', '%2B')}", "sha256": sha256 or sha256_of(path),
        }  # fmt: skip
        self.pins.write_text(json.dumps(entries))
        return path


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    return Mirror(tmp_path, monkeypatch)


def unpacked(made) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(made.folder / made.archive) as archive:
        return {info.name: info for info in archive}


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_uv_fetches_it_for_any_machine_and_it_is_trimmed(mirror, tmp_path, machine):
    mirror.put(machine)
    made = make(machine, cache=tmp_path)
    assert made.changed and (made.name, made.version) == ("python-3.13.14-20260805", "3.13.14")
    found = unpacked(made)
    assert set(found) == {
        f"python/{name}" for name in ("bin/python3.13", "bin/python3", "lib/python3.13/os.py", "lib/python3.13/ssl.py",
                                      "lib/python3.13/_sysconfigdata__linux_.py")
    }  # fmt: skip
    assert {(i.uid, i.uname, i.mode) for i in found.values() if i.isreg()} == {(0, "root", 0o755), (0, "root", 0o644)}
    assert found["python/bin/python3"].linkname == "python3.13"
    assert made.sha256 == sha256_of(made.folder / made.archive) and made.installed_bytes == 38
    assert made.bytes == (made.folder / made.archive).stat().st_size
    told = made.to_dict()
    assert told["minor"] == "3.13" and told["folder"] == str(made.folder) and json.dumps(told)
    assert [p.name for p in made.folder.parent.iterdir() if p.is_dir()] == [made.folder.name]


def test_an_executable_that_loads_libpython_keeps_it(mirror, tmp_path):
    mirror.put(files={**FILES, "bin/python3.13": b"...libpython3.13.so.1.0..."})
    found = set(unpacked(make("aarch64", cache=tmp_path)))
    assert {"python/lib/libpython3.13.so.1.0", "python/lib/libpython3.13.so"} < found


def test_it_is_fetched_once_and_made_again_if_it_was_damaged(mirror, tmp_path):
    archive = mirror.put()
    first = make("aarch64", cache=tmp_path)
    data = (first.folder / first.archive).read_bytes()
    archive.rename(archive.with_suffix(".away"))
    assert make("aarch64", cache=tmp_path).changed is False
    archive.with_suffix(".away").rename(archive)
    (first.folder / first.archive).write_bytes(b"short")
    again = make("aarch64", cache=tmp_path)
    assert again.changed and (again.folder / again.archive).read_bytes() == data  # the same bytes


def test_another_pin_replaces_it(mirror, tmp_path):
    mirror.put()
    old = make("aarch64", cache=tmp_path)
    mirror.put(version="3.13.15")
    new = make("aarch64", cache=tmp_path)
    assert new.version == "3.13.15" and not old.folder.exists()


def test_an_archive_with_another_sha256_is_refused(mirror, tmp_path):
    mirror.put(sha256="0" * 64)
    with pytest.raises(WheelhouseError, match="doesn't have the SHA-256 000000000000…. Correct the mirror"):
        make("aarch64", cache=tmp_path)
    assert not list((tmp_path / "pythons/aarch64").glob("*/"))


def test_a_mirror_without_it_is_named(mirror, tmp_path):
    mirror.put().unlink()
    with pytest.raises(WheelhouseError, match=r"Python 3.13.14 can't be fetched \(failed to query metadata of file\b.*"
                                              r"Connect this machine to the internet"):  # fmt: skip
        make("aarch64", cache=tmp_path)


def member(name: str, kind=tarfile.REGTYPE, to="") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (member("python/lib/../../../x"), "a path outside of python/"),
        (member("other/x"), "a path outside of python/"),
        (member("python/lib/x", tarfile.SYMTYPE, "/etc/passwd"), "a path outside of python/"),
        (member("python/lib/x", tarfile.SYMTYPE, "../../x"), "a path outside of python/"),
        (member("python/lib/x", tarfile.CHRTYPE), "is no file, folder or symbolic link"),
        (member("python/lib/x", tarfile.LNKTYPE, "python/bin/python3.13"), "is no file, folder or symbolic link"),
    ],
)  # fmt: skip
def test_an_archive_that_reaches_elsewhere_is_refused(tmp_path, bad, said):
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(member("python/bin/python3.13"), io.BytesIO())
        archive.addfile(bad)
    with pytest.raises(WheelhouseError, match=said):
        standalone._trim(path, PIN, tmp_path)


# Names, because gzip writes the time into its bytes, and all workers must find tests of the same names.
@pytest.mark.parametrize(
    "data",
    [b"", b"no archive", gzip.compress(b"no tar"), gzip.compress(bytes(10240))],
    ids=["nothing", "no gzip", "no tar", "an empty tar"],
)
def test_what_is_no_archive_is_refused(tmp_path, data):
    (tmp_path / "x.tar.gz").write_bytes(data)
    with pytest.raises(WheelhouseError, match="x.tar.gz is no archive of python-build-standalone"):
        standalone._trim(tmp_path / "x.tar.gz", PIN, tmp_path)


PIN = Pin("cpython-3.13.14-linux-aarch64-gnu", "3.13.14", "20260805", "f" * 64)


def test_machines_and_lists_that_cannot_be_used_are_named(mirror, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="the machine is 'armv7l', edgellm runs on x86_64 and aarch64"):
        make("armv7l", cache=tmp_path)
    mirror.put("x86_64")
    with pytest.raises(WheelhouseError, match="names no CPython 3.11 or newer for aarch64 and glibc"):
        make("aarch64", cache=tmp_path)
    for text in ("", "[]", '{"x": {}}', '{"x": 3}'):
        mirror.pins.write_text(text)
        with pytest.raises(WheelhouseError, match="expected a list of Pythons in uv's format"):
            make("aarch64", cache=tmp_path)
    for url in ("https://example.com/x.json", "/nowhere.json"):
        monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", url)
        with pytest.raises(UsageError, match="expected a file on this machine"):
            make("aarch64", cache=tmp_path)


def test_the_newest_that_suits_is_chosen(mirror):
    for version in ("3.10.99", "3.13.9", "3.13.14", "3.11.2"):
        mirror.put(version=version)
    assert pinned(mirror.pins, "aarch64").version == "3.13.14"


@pytest.mark.parametrize("change", [{"sha256": "12"}, {"sha256": None}, {"build": "../x"}, {"major": "x"}])
def test_a_pin_that_is_damaged_is_refused(mirror, change):
    mirror.put()
    entries = json.loads(mirror.pins.read_text())
    mirror.pins.write_text(json.dumps({key: {**entry, **change} for key, entry in entries.items()}))
    with pytest.raises(WheelhouseError, match="expected a list of Pythons"):
        pinned(mirror.pins, "aarch64")


def test_our_own_pins_are_one_release_of_python_build_standalone():
    pins = [pinned(standalone.PINS, machine) for machine in standalone.MACHINES]
    assert len({pin.name for pin in pins}) == 1 and len({pin.sha256 for pin in pins}) == 2
    for key, entry in json.loads(standalone.PINS.read_text()).items():
        pin = next(pin for pin in pins if pin.key == key)
        assert entry["url"] == (
            f"{URL}/{pin.build}/cpython-{pin.version}%2B{pin.build}-{entry['arch']['family']}-unknown-linux-gnu-"
            "install_only_stripped.tar.gz"
        )


def test_uv_knows_our_pins_under_the_same_addresses(tmp_path):
    """uv has its own SHA-256 of each of these addresses, but doesn't tell it."""
    command = [wheels.uv(), "python", "list", "--all-versions", "--all-platforms", "--all-arches", "--only-downloads",
               "--no-config", "--output-format", "json", "--show-urls"]  # fmt: skip
    env = {"HOME": str(tmp_path), "UV_PYTHON_INSTALL_DIR": str(tmp_path), "UV_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env)
    known = {entry["key"]: entry["url"] for entry in json.loads(done.stdout)}
    for key, entry in json.loads(standalone.PINS.read_text()).items():
        assert known[key].partition("/releases/download/")[2] == entry["url"].partition("/releases/download/")[2]


def test_the_controller_extra_has_the_uv_that_was_tried():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert wheels.UV in project["optional-dependencies"]["controller"]


def test_no_uv_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "uv", None)
    with pytest.raises(WheelhouseError, match="has no uv. Install it: .* -m pip install 'uv=="):
        wheels.uv()


def test_what_uv_says_becomes_a_sentence():
    offline = "error: Failed to install x\n  cause: Request failed after 3 retries in 11.4s\n  cause: dns error\n"
    assert why(offline, PIN) == (
        "Python 3.13.14 can't be fetched (dns error). Connect this machine to the internet (boards need none), or set "
        "UV_PYTHON_INSTALL_MIRROR to a mirror of python-build-standalone."
    )
    assert why("error: No space left on device", PIN).startswith("the disk is full")
    assert "(uv said nothing)" in why("", PIN)


def test_a_disk_without_room_is_named(mirror, tmp_path, monkeypatch):
    mirror.put()
    monkeypatch.setattr(standalone.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**6}))
    with pytest.raises(WheelhouseError, match="has 1 MB free, fetching a Python takes 315 MB"):
        make("aarch64", cache=tmp_path)


@pytest.mark.parametrize(
    "path",
    ["bin/python3.13", "bin/python3", "bin/python", "lib/python3.13/unittest/case.py", "lib/python3.13/tomllib/x.py",
     "lib/python3.13/lib-dynload/_ssl.cpython-313-aarch64-linux-gnu.so", "lib/python3.13/venv/__init__.py", "lib",
     "lib/libsqlite3.so.0", "share/terminfo/x/xterm", "lib/python3.13/encodings/utf_8.py",
     "lib/python3.13/site-packages"],
)  # fmt: skip
def test_what_boards_need_stays(path):
    assert not is_trimmed(path)


@pytest.mark.parametrize(
    "path",
    ["bin/pip3", "bin/idle3.13", "bin/python3-config", "lib/python3.13/test", "lib/python3.13/test/support/__init__.py",
     "lib/python3.13/ensurepip/_bundled/pip.whl", "lib/tcl8.6/init.tcl", "lib/libtk8.6.so", "lib/itcl4.2.2/itcl.tcl",
     "lib/thread2.8.7/x", "include/python3.13/Python.h", "lib/python3.13/config-3.13-aarch64-linux-gnu/Makefile",
     "lib/python3.13/site-packages/pip/__init__.py", "lib/python3.13/lib-dynload/_tkinter.so", "lib/pkgconfig/x.pc",
     "lib/python3.13/json/__pycache__/decoder.pyc", "share/man/man1/python3.1", "lib/libpython3.13.a"],
)  # fmt: skip
def test_what_boards_do_not_need_goes(path):
    assert is_trimmed(path)
