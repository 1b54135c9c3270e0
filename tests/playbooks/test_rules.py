"""Variables and their documents agree, ansible-lint is content, and runs that can't begin ask no board."""

import os
import re
import subprocess

import pytest

from tests.playbooks.plugins import BIN, ROLES, ROOT, defaults, plugin, read, spec

yaml = pytest.importorskip("yaml")
FILTERS = [plugin("filter", path.stem) for path in sorted((ROOT / "ansible/filter_plugins").glob("*.py"))]


@pytest.mark.parametrize("role", ROLES)
def test_argument_specs_agree_with_defaults(role):
    options = spec(role)["options"]
    assert {name: option["default"] for name, option in options.items()} == defaults(role)
    for name, option in options.items():
        assert name.startswith(f"{role}_")
        assert option["description"] and option["type"]


def test_every_variable_of_the_inventory_is_in_the_sample_with_its_default():
    sample = (ROOT / "inventory.ini").read_text()
    told = dict(re.findall(r"^(edgellm_\w+)=(.*)$", sample, re.M))
    given = defaults("edgellm").items()
    assert told == {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given}


def test_no_role_uses_a_variable_of_the_inventory_that_is_not_there():
    known = set(defaults("edgellm")) | set(read("ansible/roles/edgellm/vars/main.yml"))
    filters = {name for module in FILTERS for name in module.FilterModule().filters()}
    filters |= {path.stem for path in (ROOT / "ansible/action_plugins").glob("*.py")} | {"edgellm_ending"}
    names = ("out", "running", "stocked", "removed", "changing", "short", "upgradable", "is_", "stopped", "serving",
             "unserved")
    groups = {f"edgellm_{name}" for name in names}
    own = {"edgellm_found", "edgellm_options", "edgellm_specs", "edgellm_no_bin", "edgellm_gone",
           "edgellm_stopped", "edgellm_time_s", "edgellm_told"}  # fmt: skip
    for path in [*(ROOT / "ansible/roles").rglob("*.yml"), *(ROOT / "playbooks").rglob("*.yml")]:
        used = set(re.findall(r"\bedgellm_\w+", path.read_text()))
        assert used - known - filters - groups - own - {"edgellm_"} == set(), path


def test_the_roles_are_those_that_playbooks_use():
    used = set()
    for path in (ROOT / "playbooks").rglob("*.yml"):
        used |= set(re.findall(r"(?:name|role): (\w+)$", path.read_text(), re.M)) & set(ROLES)
    assert used | {"edgellm"} == set(ROLES)


def test_ansible_lint_at_its_production_profile():
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "NO_COLOR": "1"}
    done = subprocess.run(
        [BIN / "ansible-lint", "-q"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Deploys that stop before any board is asked


def deploy(tmp_path, lines: str, *arguments: str) -> str:
    """What ansible-playbook says of an inventory with these lines under [boards]; it must fail."""
    path = tmp_path / "inventory.ini"
    path.write_text(f"[boards]\n{lines}\n[boards:vars]\nansible_connection=ssh\nansible_user=nobody\n")
    done = subprocess.run(
        [BIN / "ansible-playbook", "-i", path, "deploy.yml", *arguments], cwd=ROOT, capture_output=True, text=True,
        timeout=120, env={**os.environ, "HOME": str(tmp_path), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "1000"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "preflight :" not in done.stdout
    return " ".join((done.stdout + done.stderr).split())


def test_deploy_says_that_there_are_no_boards(tmp_path):
    assert "There are no boards in inventory.ini. Add a line under [boards]" in deploy(tmp_path, "")


def test_a_run_from_another_folder_is_refused_in_a_sentence(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "ANSIBLE_CONFIG"} | {"ANSIBLE_NOCOLOR": "1"}
    for playbook in ("deploy.yml", "playbooks/reset.yml"):
        done = subprocess.run(
            [BIN / "ansible-playbook", "-i", "pi1,", ROOT / playbook], cwd=tmp_path, capture_output=True, text=True,
            timeout=120, env={**environment, "HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode != 0
        said = " ".join((done.stdout + done.stderr).split())
        assert f"Ansible does not read the ansible.cfg of these playbooks. Run it in {ROOT}, or set" in said


def test_deploy_names_an_unknown_variable(tmp_path):
    assert "there is no variable edgellm_prot" in deploy(tmp_path, "pi1 ansible_host=192.0.2.1 edgellm_prot=7711")


@pytest.mark.parametrize("stale", [False, True])
def test_a_relative_model_is_one_from_where_ansible_was_started(tmp_path, stale):
    """With the playbook elsewhere, and with a PWD that is not the folder, as subprocess and make -C leave it."""
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "phi3").mkdir()
    command, playbook = tmp_path / "edgellm", tmp_path / "playbooks/model.yml"
    command.write_text(
        """#!/bin/sh\nprintf '{"answers": {"model": {"manifest_sha256": "%s"}}, "problems": {}, "problem": ""}' """
        """"$(realpath "$(grep -o '[.]/phi3')")"\n"""
    )
    command.chmod(0o755)
    play = {"hosts": "boards", "gather_facts": False, "tasks": [
        {"ansible.builtin.import_role": {"name": "model"}},
        {"ansible.builtin.debug": {"msg": "it is {{ model_split.manifest_sha256 }} here"}},
    ]}  # fmt: skip
    playbook.write_text(yaml.safe_dump([play]))
    (tmp_path / "inventory.ini").write_text("[boards]\npi1 ansible_host=192.0.2.1\n")
    done = subprocess.run(
        [BIN / "ansible-playbook", "-i", tmp_path / "inventory.ini", playbook, "-e", "edgellm_model=./phi3",
         "-e", f"edgellm_bin={command}", "-e", "edgellm_quantize=none"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "HOME": str(tmp_path), "PWD": "/" if stale else str(tmp_path), "ANSIBLE_NOCOLOR": "1",
             "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())  # ansible wraps long lines
    assert f"it is {(tmp_path / 'phi3').resolve()} here" in said
