"""The inventory, checked before any board is touched."""

import re

import pytest

from tests.playbooks.plugins import ROOT, plugin, spec

inventory = plugin("filter", "inventory")


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
        ("edgellm_kv_dtype", "int4", "expected one of float16, float32, int8"),
        ("edgellm_objective", "speed", "expected one of latency, throughput"),
        ("edgellm_memory_max", "lots", "expected a size for systemd, such as 90% or 3G"),
        ("edgellm_cores", "big", "expected cores, such as 4-7 or 0,2"),
        ("edgellm_ram", "3", "expected a size, such as 3GB"),
        ("edgellm_model", "", "edgellm_model is '', expected a model"),
        ("edgellm_models", "['phi3']", "expected models with commas between them"),
        ("edgellm_draft_model", "['phi3']", "expected a model"),
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
