"""Wheelhouses: when they are made, their names, what is said when they can't be; pip, uv and CMake are faked."""

import json
import os
import platform
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from edgellm import __version__
from edgellm.controller import installed, wheelhouse, wheels
from edgellm.controller.wheels import Target, check_library, why
from edgellm.errors import UsageError, WheelhouseError

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER = "aarch64" if platform.machine() == "x86_64" else "x86_64"
PYPROJECT = """
[project]
name = "edgellm"
requires-python = ">=3.11"
dependencies = ["click>=8.1,<9"]
[project.optional-dependencies]
generic = ["torch==2.13.0; platform_machine == 'x86_64'"]
"""


def library(machine: str, glibc: str = "2.17") -> bytes:
    """As much of a shared library as is looked at."""
    return b"\x7fELF".ljust(18, b"\0") + wheels.ELF_MACHINES[machine].to_bytes(2, "little") + f"GLIBC_{glibc}".encode()


class Tools:
    """pip and uv, as far as they are used; keeps the commands. `fails` is (word in a command, stderr)."""

    def __init__(self):
        self.commands, self.fails, self.pins, self.glibc = [], None, ["torch==2.13.0+cpu", "click==8.5.1"], "2.17"
        self.wanted, self.constraints = "", ""  # what was resolved last, and under which constraints
        self.machine = None  # of the built library, if not the asked one
        self.own = {}  # the modules of edgellm's own wheel in the index, with their hashes

    def __call__(self, command, env, cwd, timeout_s):
        words = [Path(command[0]).name, *command[1:]]
        self.commands.append(words)
        line = " ".join(words)
        if self.fails and self.fails[0] in line:
            return subprocess.CompletedProcess(command, 1, "", self.fails[1])
        told = ""
        if "-c" in words:
            self.constraints = Path(words[words.index("-c") + 1]).read_text()
            self.wanted = Path(words[-1]).read_text()
        if words[0] == "uv":
            told = "\n".join([*self.pins, "pip==26.3"])
        elif words[3] == "install" and "--report" in words:
            found = [dict(zip(("name", "version"), p.split("=="), strict=True)) for p in [*self.pins, "pip==26.3"]]
            report = json.dumps({"install": [{"metadata": m} for m in found]})
            Path(words[words.index("--report") + 1]).write_text(report)
        elif words[3] == "install":  # a tool
            Path(words[words.index("--target") + 1]).mkdir()
        elif words[3] == "download":
            into = Path(words[words.index("--dest") + 1])
            for pin in Path(words[words.index("-r") + 1]).read_text().split():
                if pin.startswith("edgellm=="):
                    self.fetch_own(into, words[words.index("--platform") + 1].partition("_2_28_")[2])
                    continue
                with zipfile.ZipFile(into / f"{pin.replace('==', '-')}-py3-none-any.whl", "w") as archive:
                    archive.writestr(zipfile.ZipInfo(f"{pin}.py"), pin.encode())
        elif words[3] == "wheel":
            tag = env["_PYTHON_HOST_PLATFORM"]
            made = Path(words[words.index("--wheel-dir") + 1]) / f"edgellm-0.1.0-py3-none-{tag}.whl"
            with zipfile.ZipFile(made, "w") as archive:
                for path in sorted((Path(words[-1]) / "edgellm").glob("*.py")):
                    archive.writestr(zipfile.ZipInfo(f"edgellm/{path.name}"), path.read_bytes())
                built = library(self.machine or tag.partition("2_28_")[2], self.glibc)
                archive.writestr(zipfile.ZipInfo("edgellm/kernels/libedgellm.so"), built)
        return subprocess.CompletedProcess(command, 0, told, "")

    def fetch_own(self, into: Path, machine: str) -> None:
        with zipfile.ZipFile(into / f"edgellm-{__version__}-py3-none-linux_{machine}.whl", "w") as archive:
            archive.writestr(zipfile.ZipInfo("edgellm/kernels/libedgellm.so"), library(machine))
            record = "".join(f"{name},{sha256},1\n" for name, sha256 in self.own.items())
            archive.writestr(zipfile.ZipInfo(f"edgellm-{__version__}.dist-info/RECORD"), record)

    def ran(self, word: str) -> int:
        return sum(word in " ".join(command) for command in self.commands)


@pytest.fixture
def source(tmp_path):
    repository = tmp_path / "repository"
    (repository / "edgellm").mkdir(parents=True)
    (repository / "edgellm" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    (repository / "pyproject.toml").write_text(PYPROJECT)
    (repository / "constraints.txt").write_text("# exact\nclick==8.5.1\n")
    return repository


@pytest.fixture
def tools():
    return Tools()


@pytest.fixture
def make(source, tools, tmp_path):
    def make(machine=None, python=HERE, source=source, cache=tmp_path / "cache", **more):
        return wheelhouse.make(source, machine or platform.machine(), python, cache=cache, run=tools, **more)

    return make


def test_a_wheelhouse_has_every_wheel_and_pip_and_hashes_of_all_but_pip(make):
    house = make()
    names = {p.name.split("-")[0] for p in house.folder.glob("*.whl")}
    assert names == {"edgellm", "torch", "click", "pip"}
    lines = (house.folder / "requirements.txt").read_text().splitlines()
    assert [line.split("==")[0] for line in lines] == ["click", "edgellm", "torch"]
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}$", line) for line in lines)
    assert lines[2].startswith("torch==2.13.0+cpu ")
    assert house.changed and house.folder.name == house.id and re.fullmatch(r"0\.1\.0-[0-9a-f]{8}", house.id)
    assert house.to_dict()["wheels"] == 4 and house.to_dict()["pip"] == "pip-26.3-py3-none-any.whl"


def test_torch_is_for_generic_sections_only(make, tools):
    native = make()
    assert tools.wanted == f"click>=8.1,<9\n{wheelhouse.PIP}\n"
    generic = make(generic=True)
    assert tools.wanted == f"click>=8.1,<9\ntorch==2.13.0; platform_machine == 'x86_64'\n{wheelhouse.PIP}\n"
    assert generic.folder.parent.name == f"{native.folder.parent.name}-generic"
    assert generic.libraries() != native.libraries()


@pytest.mark.parametrize("machine", [platform.machine(), OTHER])
def test_boards_install_the_exact_versions_of_the_constraints(make, tools, source, machine):
    first = make(machine)
    assert tools.constraints == "click==8.5.1\n"
    (source / "constraints.txt").write_text("click==8.4.0\n")
    tools.pins = ["torch==2.13.0+cpu", "click==8.4.0"]
    assert make(machine).libraries() != first.libraries() and tools.constraints == "click==8.4.0\n"
    (source / "constraints.txt").unlink()
    with pytest.raises(UsageError, match="has no constraints.txt"):
        make(machine)


def test_what_a_wheelhouse_takes_on_a_board_is_known(make):
    unpacked = {}
    for wheel in make().folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            unpacked[wheel.name.split("-")[0]] = sum(len(archive.read(name)) for name in archive.namelist())
    assert make().installed_bytes == sum(unpacked.values()) - unpacked["pip"] > 0


def test_a_second_call_runs_nothing(make, tools):
    first = make()
    ran = len(tools.commands)
    second = make()
    assert (second.id, second.folder, second.wheels) == (first.id, first.folder, first.wheels)
    assert not second.changed and len(tools.commands) == ran


def test_the_same_sources_in_another_folder_and_cache_have_the_same_id(make, source, tmp_path):
    copy = tmp_path / "elsewhere"
    source.rename(copy)
    first = make(source=copy)
    copy.rename(source)
    assert make(cache=tmp_path / "other").id == first.id


def test_a_changed_source_has_another_id_and_keeps_the_dependencies(make, source, tools):
    first = make()
    (source / "edgellm" / "new.py").write_text("pass\n")
    second = make()
    assert second.changed and second.id != first.id
    assert (tools.ran("pip wheel"), tools.ran("pip download"), tools.ran("--report")) == (2, 1, 1)
    assert second.libraries() == first.libraries()
    assert {n for n in second.wheels if not n.startswith("edgellm")} == {n for n in first.wheels if "edgellm" not in n}


def test_changed_dependencies_are_resolved_anew(make, source, tools):
    first = make()
    (source / "pyproject.toml").write_text(PYPROJECT.replace("<9", "<8.5"))
    tools.pins = ["torch==2.13.0+cpu", "click==8.4.0"]
    second = make()
    assert tools.ran("pip download") == 2
    assert second.libraries() != first.libraries()


def test_what_is_not_in_the_wheel_changes_nothing(make, source, tools):
    first = make()
    (source / "edgellm" / "__pycache__").mkdir()
    (source / "edgellm" / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert not make().changed
    (source / "CMakeLists.txt").write_text("# a comment\n")  # built again, into the same bytes
    again = make()
    assert not again.changed and again.id == first.id and tools.ran("pip wheel") == 2
    assert not make().changed and tools.ran("pip wheel") == 2


def test_every_machine_and_python_has_wheels_of_its_own(make):
    kinds = [(machine, python) for machine in wheelhouse.MACHINES for python in ("3.11", "3.12")]
    houses = [make(*kind) for kind in kinds]
    assert len({h.libraries() for h in houses}) == 4
    folders = {h.folder.parent.name for h in houses}
    assert folders == {"x86_64-py3.11", "x86_64-py3.12", "aarch64-py3.11", "aarch64-py3.12"}


def test_only_this_very_machine_and_python_is_resolved_by_pip_and_built_without_zig(make, tools):
    make()
    assert tools.ran("uv pip compile") == tools.ran("ziglang") == 0
    make(python="3.13")
    assert tools.ran("uv pip compile") == 1 and tools.ran("ziglang") == 0
    make(machine=OTHER)
    assert tools.ran("uv pip compile") == 2 and tools.ran("ziglang==") == 1
    built = [" ".join(c) for c in tools.commands if c[3:4] == ["wheel"]][-1]
    assert f"-target;{OTHER}-linux-gnu.2.28" in built and f"CMAKE_SYSTEM_PROCESSOR={OTHER}" in built


def test_flags_for_this_machine_do_not_reach_the_boards(source, tmp_path, monkeypatch):
    monkeypatch.setenv("CXXFLAGS", "-march=native")
    seen = []

    def run(command, env, cwd, timeout_s):
        seen.append(env)
        return Tools()(command, env, cwd, timeout_s)

    wheelhouse.make(source, platform.machine(), HERE, cache=tmp_path / "cache", run=run)
    assert seen and not any("CXXFLAGS" in env for env in seen)


@pytest.mark.parametrize("step", ["pip wheel", "--report", "pip download"])
def test_a_failed_step_leaves_nothing_and_the_next_call_makes_it(make, tools, tmp_path, step):
    tools.fails = (step, "ERROR: something odd")
    with pytest.raises(WheelhouseError, match="something odd"):
        make()
    assert list((tmp_path / "cache" / "wheels").glob("*/*")) == []
    tools.fails = None
    assert make().changed


def test_an_interrupted_one_leaves_no_half_made_wheelhouse(source, tools, tmp_path):
    def killed(command, env, cwd, timeout_s):
        if "download" in command:
            raise KeyboardInterrupt
        return tools(command, env, cwd, timeout_s)

    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        wheelhouse.make(source, platform.machine(), HERE, cache=cache, run=killed)
    kind = cache / "wheels" / f"{platform.machine()}-py{HERE}"
    (kind / "new.part").mkdir()  # as after a power loss
    (kind / "new.part" / "torch-2.13.0-py3-none-any.whl").write_bytes(b"half")
    house = wheelhouse.make(source, platform.machine(), HERE, cache=cache, run=tools)
    assert [p.name for p in kind.iterdir()] == [house.id]


@pytest.mark.parametrize("name", ["torch-2.13.0+cpu-py3-none-any.whl", "requirements.txt", "wheelhouse.json"])
def test_a_damaged_wheelhouse_is_made_again(make, name):
    first = make()
    content = (first.folder / name).read_bytes()
    (first.folder / name).write_bytes(b"")
    again = make()
    assert again.changed == (name != "wheelhouse.json") and again.id == first.id
    assert again.wheels == first.wheels and (first.folder / name).read_bytes() == content
    assert not make().changed


def test_old_ones_go_and_others_of_the_kind_stay(make, source):
    houses = []
    for n in range(6):
        (source / "edgellm" / "__init__.py").write_text(f"n = {n}\n")
        houses.append(make())
        os.utime(houses[-1].folder / "wheelhouse.json", (n, n))
    assert sorted(p.name for p in houses[-1].folder.parent.iterdir()) == sorted(h.id for h in houses[-4:])


def test_cuda_is_refused_before_anything_is_fetched(make, tools):
    tools.pins = ["torch==2.13.0", "nvidia-cublas==13.1", "triton==3.7.1", "cuda-toolkit==13.0"]
    with pytest.raises(WheelhouseError, match=r"CUDA here: 3 packages such as nvidia-cublas.* PIP_EXTRA_INDEX_URL"):
        make()
    assert tools.ran("pip download") == 0


def test_a_library_for_another_machine_is_refused(make, tools):
    tools.machine = OTHER
    with pytest.raises(WheelhouseError, match=f"{platform.machine()} is {wheels.ELF_MACHINES[platform.machine()]}"):
        make()


def test_a_library_for_a_newer_glibc_is_refused(make, tools):
    tools.glibc = "2.38"
    with pytest.raises(WheelhouseError, match="needs glibc 2.38, boards are promised 2.28"):
        make()
    check_library(library("aarch64", "2.28") + b"GLIBC_2.4", "aarch64")


def test_sources_that_change_while_they_are_built_are_not_passed_off_as_either(make, source, tools, tmp_path):
    def edited(command, env, cwd, timeout_s):
        done = tools(command, env, cwd, timeout_s)
        if "wheel" in command:
            (source / "edgellm" / "late.py").write_text("pass\n")
        return done

    with pytest.raises(WheelhouseError, match="changed while edgellm was built"):
        wheelhouse.make(source, platform.machine(), HERE, cache=tmp_path / "cache", run=edited)


def test_a_package_that_was_not_fetched_is_named(make, tools, monkeypatch):
    monkeypatch.setattr(Tools, "__call__", _without_downloads(Tools.__call__))
    with pytest.raises(WheelhouseError, match=r"no wheel of torch==2.13.0\+cpu \(3 of 3 are missing\)"):
        make()


def _without_downloads(call):
    def run(self, command, env, cwd, timeout_s):
        if "download" in command:
            return subprocess.CompletedProcess(command, 0, "", "")
        return call(self, command, env, cwd, timeout_s)

    return run


def test_a_full_disk_is_told_before_anything_is_fetched(make, tools, monkeypatch):
    monkeypatch.setattr(wheelhouse, "_LEAST_BYTES", 1 << 60)
    with pytest.raises(WheelhouseError, match="MB free.*XDG_CACHE_HOME"):
        make()
    assert tools.ran("pip download") == 0


def test_two_at_once_make_one(make, tools):
    houses = []
    threads = [threading.Thread(target=lambda: houses.append(make())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(h.changed for h in houses) == [False, True] and tools.ran("pip download") == 1


def test_a_command_that_hangs_is_given_up(source, tmp_path):
    def hangs(command, env, cwd, timeout_s):
        raise subprocess.TimeoutExpired(command, timeout_s)

    with pytest.raises(WheelhouseError, match=r"pip wheel' took more than \d+ s"):
        wheelhouse.make(source, platform.machine(), HERE, cache=tmp_path / "cache", run=hangs)


NO_WHEEL = """error: No solution found when resolving dependencies
  cause: Because torch==2.10.0 has no wheels with a matching Python ABI tag (e.g., `cp315`) and you require it ...
hint: You require CPython 3.15 (`cp315`), but we only found wheels for `torch` (v2.10.0) with the following Python \
ABI tags: `cp310`, `cp311`, `cp312`, `cp313`, `cp313t`, `cp314`"""
UV_OFFLINE = """error: Request failed after 3 retries in 5.4s
  cause: Failed to fetch: an address
  cause: tcp connect error"""
PIP_OFFLINE = """WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)': /simple/rich/
ERROR: No matching distribution found for rich==14.3.1"""


@pytest.mark.parametrize(
    "output, said",
    [
        (NO_WHEEL, "there is no torch wheel for aarch64 and Python 3.15; use an image with Python 3.11 to 3.14"),
        (UV_OFFLINE, "can't be reached .Failed to fetch.*aarch64 and Python 3.15 are not in the cache yet. Connect"),
        (PIP_OFFLINE, "the package index can't be reached.*the boards need none"),
        ("OSError: [Errno 28] No space left on device: '/x'", "the disk is full .*XDG_CACHE_HOME"),
        ("/usr/bin/python3: No module named pip", "has no pip. Install it: .* -m ensurepip"),
        ("a\nb\nERROR: c\n", "'pip x' failed for aarch64 and Python 3.15: ERROR: c$"),
        ("", "it said nothing"),
    ],
)
def test_why_a_tool_failed_is_one_sentence(output, said):
    text = why(output, "pip x", Target("aarch64", "3.15"))
    assert re.search(said, text) and "\n" not in text


@pytest.mark.parametrize(
    "machine, python, said",
    [
        ("armv7l", "3.11", "the machine is 'armv7l', edgellm runs on x86_64 and aarch64"),
        ("aarch64", "3.9", "Python 3.9 is older than edgellm's oldest, 3.11"),
        ("aarch64", "python3.11", "Python is 'python3.11', expected two numbers such as 3.11"),
        ("aarch64", "3.11.2", "Python is '3.11.2'"),
    ],
)
def test_targets_that_edgellm_does_not_have(make, tools, machine, python, said):
    with pytest.raises(UsageError, match=said):
        make(machine, python)
    assert not tools.commands


def test_a_source_that_is_not_edgellm(make, tmp_path):
    with pytest.raises(UsageError, match="has no pyproject.toml"):
        make(source=tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    with pytest.raises(UsageError, match="is another's"):
        make(source=tmp_path)


# Without a checkout


@pytest.fixture
def packaged(source, tools, monkeypatch):
    """The folder that an installed wheel carries in place of a repository; what runs has two modules."""
    (source / "edgellm" / "__init__.py").unlink()
    (source / "edgellm").rmdir()
    tools.own = {"edgellm/a.py": "sha256=1", "edgellm/b.py": "sha256=2"}
    installed_ = dict(tools.own)
    real = installed.modules
    monkeypatch.setattr(installed, "modules", lambda record=None: installed_ if record is None else real(record))
    return installed_


def test_without_a_repository_the_index_has_edgellms_own_wheel(make, tools, packaged):
    house = make(machine=OTHER, python="3.12")
    assert {p.name.split("-")[0] for p in house.folder.glob("*.whl")} == {"edgellm", "torch", "click", "pip"}
    assert tools.ran("pip wheel") == tools.ran("ziglang") == 0
    asked = [" ".join(c) for c in tools.commands if c[3:4] == ["download"]][0]
    assert f"--platform linux_{OTHER}" in asked and "--python-version 3.12" in asked
    assert not make(machine=OTHER, python="3.12").changed


def test_another_build_of_the_same_version_is_another_wheelhouse(make, tools, packaged):
    first = make()
    packaged["edgellm/a.py"] = tools.own["edgellm/a.py"] = "sha256=3"
    second = make()
    assert second.changed and second.id != first.id and second.libraries() == first.libraries()


def test_an_index_with_another_build_than_the_installed_one_is_refused(make, tools, packaged):
    tools.own["edgellm/b.py"] = "sha256=9"
    with pytest.raises(WheelhouseError, match=r"another build of edgellm .*: edgellm/b.py differs \(1 of 2 files\)"):
        make()


def test_an_index_without_edgellm_is_said(make, tools, packaged):
    tools.fails = ("download", "ERROR: No matching distribution found for edgellm==0.1.0")
    with pytest.raises(WheelhouseError, match="No matching distribution found for edgellm"):
        make()


def test_modules_of_a_record_without_the_playbooks():
    record = "edgellm/a.py,sha256=x,12\nedgellm/ansible_project/ansible/b.py,sha256=y,1\nedgellm/c.so,sha256=z,1\n"
    assert installed.modules(record) == {"edgellm/a.py": "sha256=x"}


def test_the_playbooks_of_an_editable_install_are_the_repositorys():
    folder = installed.project()
    assert (folder / "deploy.yml").is_file() and (folder / "edgellm" / "controller").is_dir()


def test_an_install_without_playbooks_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(installed, "_repository", lambda: tmp_path)
    with pytest.raises(UsageError, match="this edgellm has no playbooks at"):
        installed.project()
