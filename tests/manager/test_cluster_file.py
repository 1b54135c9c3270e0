"""The cluster file: written whole, found in the right place, and refused with what is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest

from edgellm.errors import ClusterError, UsageError
from edgellm.manager.cluster_file import Board, ClusterFile, SshAccess, default_path, find
from edgellm.plan import Plan, Section

PLAN = Plan(
    epoch=1,
    model="tiny",
    manifest_sha256="ab" * 32,
    num_layers=4,
    objective="latency",
    context=64,
    slots=1,
    chunk=16,
    kv_dtype="float32",
    sections=(Section("pi1", 0, 2), Section("pi2", 2, 4)),
)
ADDRESSES = {"pi1": ("192.168.0.11", 7710), "pi2": ("pi2.local", 7710), "spare": ("fe80::1", 7711)}


@pytest.fixture
def content(tmp_path):
    return ClusterFile.make(tmp_path / "model", ADDRESSES, PLAN).to_dict()


def test_it_reads_what_it_wrote(tmp_path):
    path = tmp_path / "cluster.json"
    made = ClusterFile.make(tmp_path / "model", ADDRESSES, PLAN)
    made.write(path)
    read = ClusterFile.read(path)
    assert (read.plan, read.boards, read.created, read.model) == (PLAN, made.boards, made.created, "tiny")
    assert read.addresses() == ADDRESSES
    assert read.model_dir_path(path) == tmp_path / "model"
    assert [p.name for p in tmp_path.iterdir()] == ["cluster.json"]
    read.write(path)
    assert ClusterFile.read(path) == read


@pytest.mark.parametrize(
    ("model_dir", "stored"),
    [("here/models/phi3", "models/phi3"), ("models/phi3", "../models/phi3"), ("here", "."), ("../far/phi3", None)],
)
def test_model_dir_is_relative_if_near(tmp_path, model_dir, stored):
    root = tmp_path / "root"
    path = root / "here" / "cluster.json"
    path.parent.mkdir(parents=True)
    ClusterFile.make(root / model_dir, ADDRESSES, PLAN).write(path)
    resolved = (root / model_dir).resolve()
    assert json.loads(path.read_text())["model_dir"] == (stored or str(resolved))
    assert ClusterFile.read(path).model_dir_path(path) == resolved


def test_a_moved_folder_still_works(tmp_path, monkeypatch):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    ClusterFile.make(before / "model", ADDRESSES, PLAN).write(before / "cluster.json")
    before.rename(after)
    monkeypatch.chdir(after)
    assert ClusterFile.read("cluster.json").model_dir_path("cluster.json") == after / "model"


@pytest.mark.parametrize("tls, stored", [("tls/manager", "tls/manager"), ("../keys", "../keys"), (None, None)])
def test_the_certificate_s_folder_is_relative_if_near(tmp_path, tls, stored):
    root = tmp_path / "root"
    root.mkdir()
    folder = None if tls is None else (root / tls).resolve()
    ClusterFile.make(root / "model", ADDRESSES, PLAN, tls=folder).write(root / "cluster.json")
    assert json.loads((root / "cluster.json").read_text())["tls"] == stored
    read = ClusterFile.read(root / "cluster.json")
    assert read.tls_path(root / "cluster.json") == folder
    if tls is None:
        assert read.client_tls(root / "cluster.json") is None
    else:
        with pytest.raises(ClusterError, match="ca.pem"):
            read.client_tls(root / "cluster.json")


def test_how_to_log_in_is_kept_by_board(tmp_path):
    ssh = {"pi1": SshAccess("192.168.0.11", "pi", 2222, "/home/me/.ssh/key"), "spare": SshAccess("spare.local")}
    ClusterFile.make(tmp_path, ADDRESSES, PLAN, ssh=ssh).write(tmp_path / "cluster.json")
    assert {b.name: b.ssh for b in ClusterFile.read(tmp_path / "cluster.json").boards} == {**ssh, "pi2": None}


@pytest.mark.parametrize(
    ("ssh", "message"),
    [
        ("pi@pi1", "ssh is 'pi@pi1', expected an object or null"),
        ({}, "boards: ssh lacks host"),
        ({"host": "pi1", "user": None, "port": None, "key": None, "shell": "sh"}, "unknown field 'shell'"),
        ({"host": "-oProxyCommand=x", "user": None, "port": None, "key": None}, "is not a host name"),
        ({"host": "pi1", "user": "-oX", "port": None, "key": None}, "user is '-oX'"),
        ({"host": "pi1", "user": "", "port": None, "key": None}, "user is ''"),
        ({"host": "pi1", "user": "a\nb", "port": None, "key": None}, "user is"),
        ({"host": "pi1", "user": None, "port": 0, "key": None}, "port is 0, expected 1 to 65535"),
        ({"host": "pi1", "user": None, "port": True, "key": None}, "port is True"),
        ({"host": "pi1", "user": None, "port": None, "key": 5}, "key is 5"),
    ],
)
def test_bad_ways_to_log_in_are_named(content, ssh, message):
    first, *rest = content["boards"]
    with pytest.raises(ClusterError) as e:
        ClusterFile.from_dict({**content, "boards": [{**first, "ssh": ssh}, *rest]})
    assert message in str(e.value)


def test_a_new_plan_is_written_only_over_an_older_one_of_the_same_model(tmp_path):
    path = tmp_path / "cluster.json"
    file = ClusterFile.make(tmp_path / "model", ADDRESSES, PLAN, ssh={"pi1": SshAccess("pi1")})
    newer = replace(PLAN, epoch=5, sections=(Section("pi1", 0, 2), Section("pi9", 2, 4)))
    made = file.with_plan(newer, {**ADDRESSES, "pi1": ("10.9.9.9", 1), "pi9": ("10.0.0.9", 7710)})
    assert made.addresses() == {**ADDRESSES, "pi1": ("10.9.9.9", 1), "pi9": ("10.0.0.9", 7710)}
    assert made.boards[0].ssh == SshAccess("pi1") and made.plan == newer
    assert file.write_if_newer(path) and made.write_if_newer(path)  # nothing there; an older one
    assert not file.write_if_newer(path) and not made.write_if_newer(path)
    assert ClusterFile.read(path).plan == newer
    moved = made.with_plan(newer, {"pi1": ("10.9.9.8", 1)})  # a board was found at another address
    assert moved.write_if_newer(path) and not moved.write_if_newer(path)
    assert ClusterFile.read(path).addresses()["pi1"] == ("10.9.9.8", 1)
    twin = made.with_plan(replace(newer, context=32), {})  # another plan of this epoch
    assert not twin.write_if_newer(path)
    other = ClusterFile.make(tmp_path / "model", ADDRESSES, replace(PLAN, manifest_sha256="cd" * 32))
    assert other.write_if_newer(path) and ClusterFile.read(path).plan == other.plan
    path.write_text("{")
    assert file.write_if_newer(path) and ClusterFile.read(path).plan == PLAN


OTHER = replace(PLAN, model="Other", manifest_sha256="ef" * 32, num_layers=2, epoch=0, sections=(Section("pi2", 0, 2),))


def test_further_models_are_kept_each_with_its_plan(tmp_path):
    path, one = tmp_path / "cluster.json", ClusterFile.make(tmp_path / "model", ADDRESSES, PLAN)
    one.write(path)
    assert json.loads(path.read_text())["format"] == 2  # as before there were several
    two = one.adding(tmp_path / "models" / "other", OTHER)
    two.write(path)
    stored = json.loads(path.read_text())
    assert stored["format"] == 3 and stored["more"][0]["model_dir"] == "models/other"
    read = ClusterFile.read(path)
    assert read.models == ["tiny", "Other"] and read.plan == PLAN and list(read.plans().values()) == [PLAN, OTHER]
    assert read.model_dir_path(path) == tmp_path / "model"
    assert read.model_dir_path(path, "other") == tmp_path / "models" / "other"
    assert read.choose(None).plan == PLAN and read.choose("Other").plan == read.choose("OTHER").plan == OTHER
    with pytest.raises(UsageError, match="no model 'phi'. It has tiny, Other."):
        read.choose("phi")
    with pytest.raises(ClusterError, match="two models 'Other'"):
        two.adding(tmp_path / "b", replace(OTHER, manifest_sha256="aa" * 32))


def test_a_newer_plan_of_one_model_keeps_the_newer_one_of_another(tmp_path):
    path = tmp_path / "cluster.json"
    file = ClusterFile.make(tmp_path / "model", ADDRESSES, PLAN).adding(tmp_path / "other", OTHER)
    file.write(path)
    tag = {"certificate": "c", "signature": "s"}
    second, first = replace(OTHER, epoch=7), replace(PLAN, epoch=8)
    assert file.with_plan(second, {}, tag).write_if_newer(path)
    assert file.with_plan(first, {}).write_if_newer(path)  # this program knows nothing of epoch 7
    read = ClusterFile.read(path)
    assert read.plan == first and read.choose("Other").plan == second and read.choose("Other").tag == tag
    assert not file.write_if_newer(path)
    assert ClusterFile.make(tmp_path / "model", ADDRESSES, PLAN).write_if_newer(path)  # other models: another cluster


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (None, "more is None, expected a list"),
        ([3], "more: 3 is not an object"),
        ([{}], "more: one lacks model, model_dir, plan, tag"),
        ([{"model_dir": ""}], "model_dir is '', expected a folder"),
        ([{"model": "x"}], "model is 'x', the plan's is 'Other'"),
        ([{"tag": 5}], "tag is 5"),
        ([{"surprise": 1}], "unknown field 'surprise'"),
        ([{}] * 16, "more has 16 models, expected at most 15"),
    ],
)
def test_bad_further_models_are_named(tmp_path, content, more, message):
    good = ClusterFile.make(tmp_path / "model", ADDRESSES, PLAN).adding(tmp_path / "o", OTHER).to_dict()["more"][0]
    if isinstance(more, list) and (len(more) > 1 or (isinstance(more[0], dict) and more[0])):
        more = [{**good, **one} for one in more]
    with pytest.raises(ClusterError) as e:
        ClusterFile.from_dict({**content, "format": 3, "more": more})
    assert message in str(e.value)
    with pytest.raises(ClusterError, match="unknown field 'more'"):
        ClusterFile.from_dict({**content, "more": []})


def test_local_means_loopback_only(tmp_path):
    def made(second):
        return ClusterFile.make(tmp_path, {"pi1": ("127.0.0.1", 1), "pi2": (second, 2)}, PLAN)

    assert made("127.0.0.9").is_local() and made("localhost").is_local() and made("::1").is_local()
    assert not made("192.168.0.2").is_local() and not made("pi2").is_local()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "format is 1, this edgellm reads 2 and 3"),
        ({"format": None}, "format is None"),
        ({"model": "other"}, "model is 'other', the plan's is 'tiny'"),
        ({"model_dir": ""}, "model_dir"),
        ({"model_dir": 3}, "model_dir is 3"),
        ({"model_dir": "a\0b"}, "model_dir"),
        ({"tls": ""}, "tls is '', expected a folder"),
        ({"tls": 5}, "tls is 5"),
        ({"boards": {}}, "boards is not a list"),
        ({"boards": [3]}, "boards: 3 is not an object"),
        ({"boards": []}, "plan: it uses board pi1, which is not among the 0 boards"),
        ({"plan": None}, "plan is None"),
        ({"plan": {}}, "plan lacks"),
        ({"created": "yesterday"}, "created is 'yesterday'"),
        ({"created": "2026-01-01T00:00:00"}, "created"),
        ({"created": 5}, "created is 5"),
        ({"surprise": 1}, "unknown field 'surprise'"),
    ],
)
def test_bad_content_is_named(tmp_path, content, change, message):
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({**content, **change}))
    with pytest.raises(ClusterError) as e:
        ClusterFile.read(path)
    assert str(e.value).startswith(f"cluster file {path}: ")
    assert message in str(e.value)
    assert str(e.value).endswith("Deploy again, or remove the file.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"port": 0}, "pi1: port is 0, expected 1 to 65535"),
        ({"port": 65536}, "port is 65536"),
        ({"port": "7710"}, "port is '7710'"),
        ({"port": True}, "port is True"),
        ({"host": ""}, "pi1: '' is not a host name or IP address"),
        ({"host": "300.1.1.1"}, "'300.1.1.1' is not a host"),
        ({"host": "a b"}, "is not a host"),
        ({"host": "-oProxyCommand=x"}, "is not a host"),
        ({"host": "a..b"}, "is not a host"),
        ({"host": None}, "None is not a host"),
        ({"host": "pi2.local"}, "pi2.local:7710 of pi1 is also another board's"),
        ({"name": "pi2"}, "pi2 is there 2 times"),
        ({"name": "../pi"}, "'../pi' is not a board name"),
        ({"name": "pi9"}, "uses board pi1"),
        ({"key": 1}, "unknown field 'key'"),
    ],
)
def test_bad_boards_are_named(content, change, message):
    first, *rest = content["boards"]
    with pytest.raises(ClusterError) as e:
        ClusterFile.from_dict({**content, "boards": [{**first, **change}, *rest]})
    assert message in str(e.value)


def test_a_missing_field_is_named(content):
    for name in sorted(set(content) - {"format"}):
        with pytest.raises(ClusterError, match=f"lacks {name}"):
            ClusterFile.from_dict({k: v for k, v in content.items() if k != name})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "it is not a JSON object"),
        (b"9" * 10_000, "not JSON"),
        (b" " * (5 << 20), "over 4194304 bytes"),
    ],
)
def test_what_is_no_cluster_file_is_refused(tmp_path, raw, message):
    path = tmp_path / "cluster.json"
    path.write_bytes(raw)
    with pytest.raises(ClusterError, match=message):
        ClusterFile.read(path)


def test_unreadable_files_say_what_to_do(tmp_path, content):
    with pytest.raises(ClusterError, match=r"absent.json: No such file or directory. Make it with 'edgellm local up'"):
        ClusterFile.read(tmp_path / "absent.json")
    with pytest.raises(ClusterError, match="Is a directory"):
        ClusterFile.read(tmp_path)
    with pytest.raises(ClusterError, match="No such file or directory. Give another path"):
        ClusterFile.from_dict(content).write(tmp_path / "absent" / "cluster.json")


def test_a_failed_write_keeps_the_old_file(tmp_path, content, monkeypatch):
    path = tmp_path / "cluster.json"
    ClusterFile.from_dict(content).write(path)
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ClusterError, match="No space left on device"):
        ClusterFile.from_dict({**content, "created": "2020-01-01T00:00:00+00:00"}).write(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["cluster.json"]


def test_the_file_is_found_in_order(tmp_path, monkeypatch):
    work, user = tmp_path / "work", tmp_path / "user"
    work.mkdir()
    user.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("EDGELLM_CLUSTER", raising=False)
    monkeypatch.setattr(platformdirs, "user_config_dir", lambda name: str(user))
    assert find() is None
    default_path().write_text("{}")
    assert find() == user / "cluster.json"
    (work / "cluster.json").write_text("{}")
    assert find() == Path("cluster.json")
    monkeypatch.setenv("EDGELLM_CLUSTER", "/named/by/variable.json")
    assert find() == Path("/named/by/variable.json")
    assert find("mine.json") == Path("mine.json")
    monkeypatch.setenv("EDGELLM_CLUSTER", "")
    assert find(None) == Path("cluster.json")


def test_boards_take_names_and_addresses():
    for host in ("pi1", "pi1.local.", "10.0.0.1", "::1", "fe80::1%eth0", "orange_pi", "a-b.example"):
        assert Board("pi1", host, 65535).host == host
