"""The playbooks, as far as that can be seen without a board: variables and their documents agree, ansible-lint is
content, what a board's probe finds becomes one sentence, a deploy without boards or with an unsound inventory stops."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch._dynamo")  # ansible patches sys.intern, and then torch can't be imported any more
yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parent.parent
ROLES = sorted(p.name for p in (ROOT / "ansible/roles").iterdir() if p.is_dir())
BIN = Path(sys.executable).parent
sys.path.insert(0, str(ROOT / "ansible/filter_plugins"))

import boards  # noqa: E402
import deployed  # noqa: E402
import inventory  # noqa: E402
import shards  # noqa: E402


def read(path: str):
    return yaml.safe_load((ROOT / path).read_text())


def spec(role: str) -> dict:
    """The role's only argument spec. That of the inventory isn't named main, because roles that depend on it would
    check it again, one task each."""
    [spec] = read(f"ansible/roles/{role}/meta/argument_specs.yml")["argument_specs"].values()
    return spec


def defaults(role: str) -> dict:
    path = f"ansible/roles/{role}/defaults/main.yml"
    return read(path) if (ROOT / path).exists() else {}


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
    assert told == {name: str(value) for name, value in defaults("edgellm").items()}


def test_no_role_uses_a_variable_of_the_inventory_that_is_not_there():
    known = set(defaults("edgellm")) | set(read("ansible/roles/edgellm/vars/main.yml"))
    filters = {name for module in (boards, deployed, inventory, shards) for name in module.FilterModule().filters()}
    filters |= {path.stem for path in (ROOT / "ansible/action_plugins").glob("*.py")} | {"edgellm_ending"}
    names = ("out", "running", "stocked", "removed", "changing", "short", "upgradable", "is_", "stopped")
    groups = {f"edgellm_{name}" for name in names}
    own = {"edgellm_found", "edgellm_options", "edgellm_specs", "edgellm_no_bin", "edgellm_gone",
           "edgellm_stopped", "edgellm_time_s"}  # fmt: skip
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


# The inventory

OPTIONS = spec("edgellm")["options"]
HOST = {"ansible_host": "192.0.2.1"}


def problems(hosts: dict, sources=()) -> list[str]:
    return inventory.inventory_problems(list(hosts), hosts, OPTIONS, sources)


def test_the_sample_is_sound():
    sample = re.findall(r"^(edgellm_\w+)=(.*)$", (ROOT / "inventory.ini").read_text(), re.M)
    assert problems({"pi1": {**HOST, **dict(sample)}}) == []


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("edgellm_prot", 7711, "board pi1: there is no variable edgellm_prot"),
        ("edgellm_port", "many", "board pi1: edgellm_port is 'many', expected a whole number from 1 to 65535"),
        ("edgellm_port", 70000, "expected a whole number from 1 to 65535"),
        ("edgellm_port", "", "edgellm_port is '', expected"),
        ("edgellm_slots", 0, "expected a whole number from 1 to 1024"),
        ("edgellm_threads", "all", "expected a whole number from 1 to 1024"),
        ("edgellm_kv_dtype", "int8", "expected one of float16, float32"),
        ("edgellm_objective", "speed", "expected one of latency, throughput"),
        ("edgellm_memory_max", "lots", "expected a size for systemd, such as 90% or 3G"),
        ("edgellm_cores", "big", "expected cores, such as 4-7 or 0,2"),
        ("edgellm_ram", "3", "expected a size, such as 3GB"),
        ("edgellm_model", "", "edgellm_model is '', expected a model"),
    ],
)
def test_a_wrong_variable_is_named_with_what_it_should_be(variable, value, said):
    [sentence] = problems({"pi1": {**HOST, variable: value}})
    assert said in sentence


def test_one_sentence_names_all_boards_of_a_wrong_variable():
    hosts = {f"pi{i}": {"ansible_host": f"192.0.2.{i}", "edgellm_slots": "x"} for i in (1, 2)}
    [sentence] = problems(hosts)
    assert sentence.startswith("boards pi1, pi2: edgellm_slots is 'x'")


def test_a_variable_of_the_cluster_has_one_value():
    hosts = {"pi1": {**HOST, "edgellm_slots": 2}, "pi2": {"ansible_host": "192.0.2.2", "edgellm_slots": 4}}
    assert "edgellm_slots is 2 on pi1 and 4 on pi2, but a cluster has one value" in problems(hosts)[0]


@pytest.mark.parametrize(
    ("address", "said"),
    [("fe80::1%eth0", "is a link-local address"), ("127.0.0.1", "reaches only the machine itself"), ("::1", "itself"),
     ("0.0.0.0", "is not the address of one board"), ("::", "is not the address of one board")],
)  # fmt: skip
def test_an_address_that_other_boards_cannot_use_is_named(address, said):
    hosts = {"pi1": HOST, "pi2": {"ansible_host": address}}
    [sentence] = problems(hosts)
    assert sentence.startswith(f"board pi2: {address} ") and said in sentence and "fd00::11" in sentence
    assert problems({"pi1": HOST, "pi2": {"ansible_host": address, "edgellm_address": "fd00::12"}}) == []


def test_a_board_alone_may_be_the_controller_itself():
    assert problems({"pi1": {"ansible_host": "127.0.0.1", "ansible_connection": "local"}}) == []


def test_of_a_names_addresses_one_that_other_boards_reach_is_taken(monkeypatch):
    told = ["fe80::1%eth0", "127.0.1.1", "fd00::12", "192.0.2.1"]
    monkeypatch.setattr(inventory.socket, "getaddrinfo", lambda *a, **k: [(0, 0, 0, "", (text, 0)) for text in told])
    assert inventory.resolve("pi1.local") == "fd00::12"


def test_two_boards_with_one_address_are_named():
    assert problems({"pi1": HOST, "pi2": HOST}) == [
        "boards pi1 and pi2 share the address 192.0.2.1. Correct ansible_host of one of them."
    ]
    hosts = {"pi1": HOST, "pi2": {"ansible_host": "192.0.2.2", "edgellm_address": "192.0.2.1"}}
    assert "Correct edgellm_address" in problems(hosts)[0]


def test_a_board_listed_twice_is_named(tmp_path):
    path = tmp_path / "inventory.ini"
    path.write_text("[boards]\npi1 ansible_host=a\npi[1:2]  # both\n#pi2\n[rack]\npi2\n[boards:vars]\npi2=x\n")
    [sentence] = inventory.listed_twice(path)
    assert sentence.startswith("board pi1 is listed twice in [boards] of inventory.ini.")


def test_a_name_that_cannot_be_in_a_plan_is_named():
    assert "board 'pi 1' has a name that edgellm can't use" in problems({"pi 1": HOST})[0]


def test_boards_as_the_controller_wants_them():
    values = {"ansible_host": "192.0.2.1", "ansible_user": "edge", "ansible_port": "2222", "edgellm_port": 7711}
    [board] = inventory.fleet(["pi1"], {"pi1": values}, 7710)
    ssh = {"host": "192.0.2.1", "user": "edge", "port": 2222, "key": None}
    assert board == {"name": "pi1", "host": "192.0.2.1", "port": 7711, "ssh": ssh}


def test_a_relative_key_is_one_from_where_ansible_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [board] = inventory.fleet(["pi1"], {"pi1": {**HOST, "ansible_ssh_private_key_file": "keys/board"}}, 7710)
    assert board["ssh"]["key"] == str(tmp_path / "keys/board")


def test_passwords_are_not_remembered():
    values = {**HOST, "ansible_password": "secret", "ansible_become_password": "secret", "ansible_user": "edge"}
    assert inventory.connections(["pi1"], {"pi1": values}) == {"pi1": {**HOST, "ansible_user": "edge"}}


def test_a_board_with_another_name_is_not_gone():
    known = {"pi1": {"ansible_host": "192.0.2.1"}, "pi2": {"ansible_host": "192.0.2.2"}, "pi3": {"ansible_host": "pi3"}}
    hosts = {"one": HOST, "pi2": {"ansible_host": "192.0.2.9"}}
    assert inventory.gone(known, list(hosts), hosts) == ["pi3"]


def test_what_changed_on_the_controller_is_counted_once():
    done, same = {"answers": {"model": {"changed": True}}}, {"answers": {"model": {"changed": False}}}
    assert inventory.controller_changes([{}, {"_model_command": same, "_cluster_form": {"skipped": True}}]) == []
    assert inventory.controller_changes([{"_model_command": done}, {"_model_command": done}]) == ["a model was split"]
    wheels = {"wheels aarch64 3.11 False": {"changed": False}, "wheels x86_64 3.11 False": {"changed": True}}
    assert len(inventory.controller_changes([{"_wheelhouse_command": {"answers": wheels}}])) == 1


# What a board is

GOOD = {
    "time_s": "1000000", "user": "edge", "root": "yes", "id": "debian", "id_like": "", "pretty": "Debian GNU/Linux 12",
    "machine": "aarch64", "bits": "64", "packages_for": "arm64", "systemd": "yes", "ram_kb": "4000000",
    "ram_free_kb": "3500000", "opt_free_kb": "9000000", "var_free_kb": "9000000",
    "installed": "", "python": "/usr/bin/python3", "python_version": "3.11.2", "python_whole": "yes",
}  # fmt: skip


def facts(**changes) -> dict:
    """The facts of a board with file systems for /opt, /var, /run and the rest, whose free_kb are variables."""
    values = {"run_free_kb": "200000", "root_free_kb": "9000000", "inodes": "60000", **GOOD, **changes}
    rooms = {"/opt/edgellm/versions": "/opt", "/var/lib/edgellm/wheels": "/var", "/var/lib/edgellm/models": "/var",
             "/etc/edgellm/tls": "/", "/run": "/run"}  # fmt: skip
    free = {mount: values.pop(f"{mount[1:] or 'root'}_free_kb") for mount in ("/opt", "/var", "/run", "/")}
    lines = [f"{key}={value}" for key, value in values.items() if key != "inodes"]
    lines += [f"room= {free[mount]} {values['inodes']} 65536 {mount} {folder}" for folder, mount in rooms.items()]
    return boards.board_facts("Welcome!\r\n> \r\n" + "".join(f"edgellm_{line}\r\n" for line in lines), 1000000.0)


def test_a_good_board_has_no_problem():
    assert facts()["python_minor"] == "3.11" and facts()["missing"] == []
    assert boards.board_problem(facts(), "pi1") == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": "fedora", "pretty": "Fedora Linux 40"}, "board pi1 runs Fedora Linux 40"),
        ({"machine": "armv7l", "bits": "32", "packages_for": "armhf"}, "board pi1 is armv7l"),
        ({"bits": "32", "packages_for": "armhf"}, "a 32-bit system (armhf) on a 64-bit kernel (aarch64)"),
        ({"root": "no"}, "edge can't use sudo without a password"),
        ({"systemd": ""}, "not booted with systemd"),
        ({"read_only": "/var/lib"}, "/var/lib is on a read-only file system"),
        ({"time_s": "992800"}, "its clock is 2.0 hours behind this machine's"),
        ({"unwritable": "/opt/edgellm/versions: Operation not permitted"}, "can't write to /opt/edgellm/versions"),
        ({"closed": "/opt"}, "may enter /opt, but the agent runs as the user edgellm. Run 'sudo chmod o+x /opt'"),
        ({"var_free_kb": "1500"}, "board pi1 has 1 MB free on /var, but edgellm needs 2 MB there. Free some space"),
        ({"var_free_kb": "0"}, "board pi1: /var is full, 0 MB are free, but edgellm needs 2 MB there. Free some space"),
        ({"root_free_kb": "0"}, "board pi1: / is full, 0 MB are free, but edgellm needs 1 MB there. Free some space"),
        ({"inodes": "3"}, "board pi1 has 3 inodes free on /opt, but edgellm needs 40 there, one for each file."),
        ({"full": "/run"}, "board pi1: /run is full, 0 MB are free, but edgellm needs 1 MB there."),
    ],
)
def test_a_board_that_cannot_be_used_is_named_with_the_way_out(changes, said):
    sentence = boards.board_problem(facts(**changes), "pi1")
    assert said in sentence and "pi1" in sentence and sentence.endswith(".")


@pytest.mark.parametrize("changes", [{"time_s": "1000300"}, {"id": "armbian"}, {"id": "x", "id_like": "ubuntu debian"}])
def test_what_is_tolerated(changes):
    assert boards.board_problem(facts(**changes), "pi1") == ""


def test_a_new_board_has_room_for_two_versions_of_the_software():
    new = {"id": "0.1.0-x", "libraries": "1a2b", "installed_bytes": 600_000_000, "bytes": 200_000_000}
    sentence = boards.software_problem(facts(opt_free_kb="1000000"), "pi1", new)
    assert sentence == (
        "board pi1 has 1024 MB free on /opt, but edgellm needs 1201 MB there (1201 MB in /opt/edgellm/versions). "
        "Free some space there, or use a larger card."
    )
    assert boards.software_problem(facts(opt_free_kb="1200000"), "pi1", new) == ""
    assert boards.software_problem(facts(opt_free_kb="700000", versions="0.0.9-y"), "pi1", new) == ""
    assert "needs 202 MB" in boards.software_problem(facts(var_free_kb="150000"), "pi1", new)
    assert boards.software_problem(facts(opt_free_kb="50000", libraries="1a2b"), "pi1", new) == ""
    assert boards.software_problem(facts(opt_free_kb="1000", complete="0.0.9-y 0.1.0-x"), "pi1", new) == ""


def test_a_new_board_s_disk_holds_a_version_and_then_shards():
    found = facts(var_free_kb="500000")
    assert boards.disk_estimate(found, 101_000_000) == {"disk_bytes": 512_000_000 - 200_000_000}
    found["rooms"][boards.VERSIONS] = found["rooms"][boards.MODELS]
    assert boards.disk_estimate(found, 101_000_000) == {"disk_bytes": 512_000_000 - 101_000_000 - 200_000_000}
    assert boards.disk_estimate({**found, "installed": "versions/0.1.0-x"}, 101_000_000) == {}


def test_a_file_system_that_does_not_run_out_of_inodes_has_enough():
    assert facts(inodes="0")["rooms"]["/run"]["inodes"] == 0
    btrfs = boards.rooms("edgellm_room=  100000          0          0 /mnt/my card /opt/edgellm/versions\r\n")
    assert btrfs == {"/opt/edgellm/versions": {"free_kb": 100000, "inodes": None, "mount": "/mnt/my card"}}


def test_torch_is_part_of_a_board_s_kind():
    assert boards.kind(facts(), True) == ["aarch64", "3.11", True] and boards.kind(facts(), "")[2] is False


@pytest.mark.parametrize(
    ("changes", "missing"),
    [({"python_version": "3.9.2"}, ["python3"]), ({"python_whole": ""}, ["python3"]), ({}, []),
     ({"python": "", "python_version": "", "python_whole": ""}, ["python3"])],
)  # fmt: skip
def test_missing_packages(changes, missing):
    assert facts(**changes)["missing"] == missing


MADE = {"name": "python-3.13.14-20260805", "version": "3.13.14", "minor": "3.13", "folder": "/home/me/.cache/x",
        "archive": "x.tar.gz", "sha256": "ab", "bytes": 20_000_000, "installed_bytes": 60_000_000}  # fmt: skip
NO_PYTHON = {"python": "", "python_version": "", "python_whole": ""}
OFFLINE = {"python aarch64": "Python 3.13.14 can't be fetched (dns error). Connect this machine."}


@pytest.mark.parametrize("changes", [NO_PYTHON, {"python_version": "3.9.2"}])
def test_a_board_for_which_apt_has_no_python_gets_one_from_the_controller(changes):
    board = boards.with_packages(facts(**changes), "edgellm_mirror=no\n")
    assert board["standalone"] and board["packages"] == [] and board["missing"] == ["python3"]
    hosts = [{"preflight_board": b, "preflight_reason": ""} for b in (board, board, facts())]
    hosts += [{"preflight_board": {**board, "machine": "x86_64"}, "preflight_reason": "board pi9 is off."}]
    (step,) = boards.standalone_steps(hosts)
    assert step == {"name": "python aarch64", "command": ["python", "--machine", "aarch64"], "optional": True}
    assert boards.standalone_problem(board, {}, "pi1") == ""
    board = boards.with_standalone(board, {"python aarch64": MADE})
    assert board["python"] == "/opt/edgellm/python-3.13.14-20260805/bin/python3" and board["python_minor"] == "3.13"
    assert board["standalone_lacks"] and board["standalone_archive"] == "x.tar.gz"


def test_a_python_that_deploy_brought_is_kept_until_there_is_another():
    board = facts(python="/opt/edgellm/python-3.13.14-20260805/bin/python3.13", python_version="3.13.14")
    assert board["standalone"] and board["missing"] == []
    assert boards.with_standalone(board, {"python aarch64": MADE})["standalone_lacks"] is False
    newer = {**MADE, "name": "python-3.13.15-1", "version": "3.13.15"}
    assert boards.with_standalone(board, {"python aarch64": newer})["standalone_lacks"]
    # If this machine can't get any, the board keeps what it has.
    assert boards.with_standalone(board, {}) == board and boards.standalone_problem(board, OFFLINE, "pi1") == ""
    assert not facts()["standalone"] and not facts()["standalone_lacks"]


def test_a_board_for_which_nobody_has_a_python_is_named_with_the_way_out():
    board = boards.with_packages(facts(python_version="3.9.2"), "edgellm_mirror=no\n")
    assert boards.standalone_problem(board, OFFLINE, "pi1") == (
        "board pi1 lacks Python 3.11 or newer (it has 3.9.2), its apt reaches no mirror, and this machine has none for "
        "it. Python 3.13.14 can't be fetched (dns error). Connect this machine."
    )
    none = boards.with_packages(facts(**NO_PYTHON), "")
    assert "board pi1 lacks Python 3.11 or newer, its mirror doesn't offer it, and" in (
        boards.standalone_problem(none, OFFLINE, "pi1")
    )


def test_python_that_apt_will_bring_counts():
    stdout = "edgellm_python=/usr/bin/python3.12\nedgellm_python_minor=3.12\nedgellm_packages=python3.12\n"
    found = boards.with_packages(facts(python_version="3.10.1"), stdout)
    assert (found["python"], found["python_minor"]) == ("/usr/bin/python3.12", "3.12")
    assert found["packages"] == ["python3.12"]


@pytest.mark.parametrize(
    ("memory_max", "ram", "limits"),
    [
        ("90%", "", ((4 << 30) * 9 // 10, None)),
        ("1G", None, (1 << 30, None)),
        ("1.5G", "1.5 GB", (3 << 29, 1_500_000_000)),
        ("infinity", "1GiB", (None, 1 << 30)),
        (800_000_000, "512MB", (800_000_000, 512_000_000)),
    ],
)
def test_a_board_without_an_agent_has_what_is_free_within_the_inventorys_limits(memory_max, ram, limits):
    found = boards.memory(facts(ram_kb=str(4 << 20), ram_free_kb="3502000"), memory_max, ram, "auto", "0.2.0-abc")
    assert found == {"free": 3502000 * 1024, "memory_max": limits[0], "ram": limits[1], "kept": False,
                     "stays": False}


RUNS = {"agent_kb": "500000", "agent_memory_max": "90%", "agent_ram": "3GB", "agent_path": ""}


@pytest.mark.parametrize(
    ("runs", "wanted", "kept"),
    [
        (RUNS, ("90%", "3 GB", "auto"), True),
        ({**RUNS, "agent_ram": ""}, ("90%", "", "auto"), True),
        ({**RUNS, "agent_path": "generic"}, ("90%", "3GB", "generic"), True),
        (RUNS, ("90%", "2GB", "auto"), False),
        (RUNS, ("90%", "", "auto"), False),
        (RUNS, ("80%", "3GB", "auto"), False),
        (RUNS, ("90%", "3GB", "generic"), False),
        ({**RUNS, "agent_kb": ""}, ("90%", "3GB", "auto"), False),  # it doesn't run
    ],
)
def test_what_the_running_agent_holds_would_be_free_and_it_may_keep_its_limits(runs, wanted, kept):
    found = boards.memory(facts(ram_free_kb="1000000", installed="versions/0.2.0-abc", **runs), *wanted, "0.2.0-abc")
    assert found["kept"] is found["stays"] is kept
    found = boards.memory(facts(ram_free_kb="1000000", installed="versions/0.1.0-abc", **runs), *wanted, "0.2.0-abc")
    assert found["kept"] is kept and not found["stays"]  # an upgrade starts it again
    assert found["free"] == (1000000 + int(runs["agent_kb"] or 0)) * 1024


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Failed to connect to the host via ssh: edge@x: Permission denied (publickey).", "refuses the SSH key"),
        ("ssh: connect to host 192.0.2.1 port 22: Connection timed out", "can't be reached over SSH"),
        ("ssh: connect to host 192.0.2.1 port 22: No route to host", "can't be reached over SSH"),
        ("ssh: connect to host 192.0.2.1 port 22: Connection refused", "nothing listens for SSH"),
        ("Host key verification failed.", "its SSH host key is unknown on this machine"),
        ("tar: x: Cannot write: No space left on device", "its disk is full"),
        ("cat: write error: No space left on device\nShared connection to x closed.\nBroken pipe", "its disk is full"),
        ("WARNING: Your password has expired.\nPassword change required but no TTY available.", "change its password"),
        ("Your account has expired; please contact your administrator.\nConnection closed by x", "account has expired"),
        ("Unprivileged users are not permitted to log in yet. Connection closed by x", "just starting"),
        ("sudo: sorry, you must have a tty to run sudo", "'Defaults:USER !requiretty'"),
        ("sudo: Account or password is expired, reset your password", "must change its password"),
        ("sh: 1: exec: sudo: not found", "has no sudo"),
        ("OSError: [Errno 30] Read-only file system: '/opt/x'", "its file system is read-only"),
        ("sudo: a password is required", "can't use sudo without a password"),
    ],
)
def test_what_went_wrong_becomes_a_sentence(message, said):
    sentence = boards.why({"msg": "non-zero return code", "stderr": message}, "pi1", "192.0.2.1")
    assert said in sentence and sentence.startswith("board pi1") and "\n" not in sentence


def test_a_sentence_of_ours_stays_as_it_is():
    assert boards.why({"msg": "board pi2: it has no card."}, "pi1") == "board pi2: it has no card."
    assert boards.why({"msg": "non-zero", "stderr": "note\nedgellm: 2 GB are missing. Add a board."}, "pi1") == (
        "2 GB are missing. Add a board."
    )


def test_the_status_says_whether_a_board_answers():
    told = '{"boards": [{"board": "pi1", "version": "0.1.0"}, {"board": "pi2", "version": null}]}'
    assert boards.answers(told, "pi1") and not boards.answers(told, "pi2") and not boards.answers("", "pi1")


# Shards

FILES = [{"name": f"layer-000{i}.safetensors", "bytes": 100 * 10**6, "sha256": str(i)} for i in range(4)]
DF = "/dev/x 1 1 {} 1% /\n"


def pushed(stdout: str, free_mb: int, least=("layer-0002.safetensors",)) -> dict:
    return shards.push(stdout + DF.format(free_mb * 10**6 // 1024 + 1), FILES, list(least), "pi1", 200)


def test_a_board_gets_what_it_lacks():
    push = pushed("layer-0000.safetensors: OK\nlayer-0001.safetensors: FAILED\n", 1000)
    assert push["names"] == [f["name"] for f in FILES[1:]] and push["corrupt"] == ["layer-0001.safetensors"]
    assert not push["short"] and not push["problem"]


def test_a_board_with_little_room_gets_what_it_needs():
    push = pushed("", 350)
    assert push["short"] and push["names"] == ["layer-0002.safetensors"] and not push["problem"]
    assert push["disk_bytes"] == pytest.approx(150e6, abs=2048)


def test_a_board_without_room_is_named_with_both_numbers():
    assert "has 50 MB to spare in /var/lib, but the files it must hold take 100 MB" in pushed("", 250)["problem"]


def test_corrupt_files_need_room_for_one():
    assert pushed("".join(f"{f['name']}: FAILED\n" for f in FILES), 310)["names"] == [f["name"] for f in FILES]


def test_a_section_has_its_layers_and_its_ends():
    files = [*FILES, {"name": "embedding.safetensors"}, {"name": "head.safetensors"}, {"name": "manifest.json"}]
    sections = [{"board": "pi1", "start": 0, "end": 1}, {"board": "pi2", "start": 1, "end": 4}]
    assert shards.section_files(sections, "pi1", files, ["manifest.json"]) == [
        "layer-0000.safetensors", "embedding.safetensors", "manifest.json",
    ]  # fmt: skip
    assert "head.safetensors" in shards.section_files(sections, "pi2", files, [])


# Scripts for boards, on this machine


@pytest.mark.skipif(not shutil.which("sh"), reason="there is no sh")
def test_the_probe_says_what_this_machine_is():
    script = (ROOT / "ansible/roles/preflight/files/probe.sh").read_text()
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    found = boards.board_facts(done.stdout, time.time())
    assert done.returncode == 0 and abs(found["clock_ahead_s"]) < 60
    assert found["ram_kb"] > 0 and found["opt_free_kb"] > 0


def test_a_model_with_another_tokenizer_takes_its_shards_from_the_model_before(tmp_path):
    old, new, other = (tmp_path / name for name in ("old", "new", "other"))
    for folder in (old, new, other):
        folder.mkdir()

    def entry(name: str, content: bytes) -> dict:
        return {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    held = {"layer-0000.safetensors": b"weights", "head.safetensors": b"head", "tokenizer.json": b"old words"}
    for name, content in held.items():
        (old / name).write_bytes(content)
    (old / "manifest.json").write_text(json.dumps({"files": [entry(*item) for item in held.items()]}, indent=1))
    (other / "layer-0001.safetensors").write_bytes(b"without a manifest")
    (old / "head.safetensors").write_bytes(b"h3ad")  # a bit has flipped since

    wanted = {**held, "tokenizer.json": b"new words", "layer-0001.safetensors": b"without a manifest"}
    files = [entry(*item) for item in wanted.items()]

    def run(script: str) -> str:
        text = (ROOT / "ansible/roles/shards/files" / script).read_text()
        done = subprocess.run(
            ["sh", "-c", text, "sh", new], input=shards.checksums(files), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0
        return done.stdout

    assert run("link.sh").split() == ["layer-0000.safetensors", "head.safetensors"]
    assert (new / "layer-0000.safetensors").samefile(old / "layer-0000.safetensors")
    push = shards.push(run("read.sh"), files, [], "pi1", 0)
    assert sorted(push["names"]) == ["head.safetensors", "layer-0001.safetensors", "tokenizer.json"]
    assert push["corrupt"] == ["head.safetensors"]
    assert run("link.sh") == ""


@pytest.mark.parametrize("script", sorted((ROOT / "ansible/roles").rglob("*.sh")), ids=lambda p: p.name)
def test_scripts_are_sound(script):
    subprocess.run(["sh", "-n", script], check=True, timeout=20)
