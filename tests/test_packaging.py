"""The wheel carries the playbooks, and boards' wheels don't."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from edgellm.controller import wheelhouse

ROOT = Path(__file__).parent.parent
CMAKE = shutil.which("cmake") or pytest.importorskip("cmake").CMAKE_BIN_DIR + "/cmake"
TOP = {"ansible.cfg", "constraints.txt", "deploy.yml", "inventory.ini", "pyproject.toml"}


def installed(folder: Path, *defines: str) -> set[str]:
    """The files that the component of playbooks puts into the package."""
    configure = [CMAKE, "-S", ROOT, "-B", folder / "build", *defines]
    install = [CMAKE, "--install", folder / "build", "--component", "playbooks", "--prefix", folder / "out"]
    for command in (configure, install):
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    project = folder / "out" / "edgellm" / "ansible_project"
    return {p.relative_to(project).as_posix() for p in project.rglob("*") if p.is_file()}


def test_the_wheel_carries_the_playbooks(tmp_path):
    here = {p.relative_to(ROOT).as_posix() for folder in ("ansible", "playbooks") for p in (ROOT / folder).rglob("*")
            if p.is_file() and "__pycache__" not in p.parts}  # fmt: skip
    assert installed(tmp_path) == here | TOP
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    assert settings["install"]["components"] == ["edgellm", "playbooks"]


@pytest.mark.parametrize("define", ["-DEDGELLM_PLAYBOOKS=OFF", "-DSKBUILD_STATE=editable"])
def test_neither_a_boards_wheel_nor_an_editable_install_has_them(tmp_path, define):
    assert installed(tmp_path, define) == set()


@pytest.mark.parametrize("extras", [[], ["generic"]])
def test_managers_sign_and_check_plans_and_boards_need_nothing_for_it(extras):
    """What boards install is resolved from these requirements."""
    wanted, _ = wheelhouse._project(ROOT, extras)
    assert not [one for one in wanted if one.startswith("starlette")]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert not [one for one in wanted if one.startswith("cryptography")]
    assert [one.startswith("cryptography>=") for one in extras["manager"]] == [True]
    assert "edgellm[manager]" in extras["controller"]
    assert "-e '.[manager]'" in (ROOT / "Makefile").read_text()


def test_the_server_signs_and_checks_plans_as_a_manager_does():
    wanted, _ = wheelhouse._project(ROOT, ["serving"])
    names = {one.split(">")[0].split("=")[0] for one in wanted}
    assert {"cryptography", "starlette", "uvicorn", "numpy"} <= names
    assert not [one for one in wanted if one.startswith("edgellm")]
