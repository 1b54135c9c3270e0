"""One file to copy: who joins with it may ask, and whatever else comes in its place is one sentence and changes
nothing."""

import base64
import hashlib
import json
import os
import shutil
import stat
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.cli import main
from edgellm.errors import ClusterError, EdgellmError, UsageError
from edgellm.manager.cluster_file import ClusterFile, SshAccess
from edgellm.manager.identity_file import join, pack
from edgellm.manager.session import Session
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest, ModelFile
from edgellm.wire.credentials import Identity
from tests.certificates import make_cluster
from tests.fakes import Boards, generate, make_manifest, make_plan, run

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cluster file with a model and its tokenizer's files beside it, and certificates; nobody listens."""
    root = tmp_path_factory.mktemp("home")
    tls = make_cluster(root / "tls", ["b0", "b1"])
    (root / "model").mkdir()
    contents = {"tokenizer.json": b'{"version": "1.0"}', "tokenizer_config.json": b"{}"}
    for name, content in contents.items():
        (root / "model" / name).write_bytes(content)
    files = tuple(ModelFile(n, len(c), hashlib.sha256(c).hexdigest()) for n, c in contents.items())
    replace(make_manifest(), files=files).write(root / "model")
    (root / "model/layer-0000.safetensors").write_bytes(b"weights")
    plan = make_plan(Manifest.read(root / "model"), (0, 1, 6))
    addresses = {"b0": ("10.0.0.1", 7710), "b1": ("10.0.0.2", 7710)}
    access = SshAccess("10.0.0.1", "pi", 22, "/home/me/.ssh/id_ed25519")
    file = ClusterFile.make(root / "model", addresses, plan, tls=tls / "manager", ssh={"b0": access})
    file.write(root / "cluster.json")
    return root


@pytest.fixture(scope="module")
def raw(made):
    return pack(made / "tls/asker", made / "cluster.json")


@pytest.fixture
def file(raw, tmp_path):
    path = tmp_path / "anna.edgellm"
    path.write_bytes(raw)
    return path


def test_who_joins_has_a_cluster_file_certificates_and_a_tokenizer(made, file, tmp_path):
    done = join(file, tmp_path / "config")
    assert done.identity == Identity("manager", "anna") and done.boards == ("b0", "b1")
    assert done.cluster_file == tmp_path / "config/cluster.json"
    read = ClusterFile.read(done.cluster_file)
    there = ClusterFile.read(made / "cluster.json")
    assert (read.plan, read.addresses()) == (there.plan, there.addresses())
    assert read.client_tls(done.cluster_file).identity == Identity("manager", "anna")
    folder = read.model_dir_path(done.cluster_file)
    shared = ("manifest.json", "tokenizer.json", "tokenizer_config.json")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {n: (made / "model" / n).read_bytes() for n in shared}
    assert json.loads(done.cluster_file.read_text())["tls"] == "tls/manager"  # the folder can be moved
    keys = [p for p in (tmp_path / "config").rglob("*") if p.is_file() and b"PRIVATE" in p.read_bytes()]
    assert [p.relative_to(tmp_path).as_posix() for p in keys] == ["config/tls/manager/key.pem"]
    assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600 and stat.S_IMODE(keys[0].parent.stat().st_mode) == 0o700


def test_the_file_doesn_t_tell_how_to_log_in_on_the_boards(raw):
    assert b"id_ed25519" not in raw and b'"ssh": null' in raw


def test_a_board_s_identity_is_not_packed(made):
    with pytest.raises(ClusterError, match="holds the certificate of board b0, expected a manager's"):
        pack(made / "tls/boards/b0", made / "cluster.json")


def test_an_answer_with_what_was_joined(tmp_path):
    tls = make_cluster(tmp_path / "tls", ["b0", "b1"])

    async def go():
        async with Boards(tmp_path, 2, tls=tls) as boards:
            plan = await boards.form((0, 3, 6))
            ClusterFile.make(tmp_path, boards.addresses, plan, tls=tls / "manager").write(tmp_path / "cluster.json")
            (tmp_path / "anna.edgellm").write_bytes(pack(tls / "asker", tmp_path / "cluster.json"))
            done = join(tmp_path / "anna.edgellm", tmp_path / "hers")
            file = ClusterFile.read(done.cluster_file)
            manifest = Manifest.read(file.model_dir_path(done.cluster_file))
            session = Session(manifest, file.plan, file.addresses(), tls=file.client_tls(done.cluster_file))
            async with session:
                return [t.token async for t in session.generate(PROMPT, sampling=Sampling(), max_tokens=10, eos=())]

    assert run(go()) == generate(PROMPT, 10)


def test_joining_again_renews_and_another_cluster_stays_unless_forced(made, file, raw, tmp_path):
    join(file, tmp_path / "config")
    join(file, tmp_path / "config")  # the same cluster: for a new key, or what was revoked since
    other = make_cluster(tmp_path / "other", ["b0", "b1"])
    another = tmp_path / "ben.edgellm"
    another.write_bytes(pack(other / "manager", made / "cluster.json"))
    before = snapshot(tmp_path / "config")
    with pytest.raises(UsageError, match=r"/cluster.json is already the file of another cluster\. Join into .*--to"):
        join(another, tmp_path / "config")
    assert snapshot(tmp_path / "config") == before
    assert join(another, tmp_path / "config", force=True).identity == Identity("manager", "pc", admin=True)


def test_a_controller_s_own_folder_is_not_joined_over(file, tmp_path):
    (tmp_path / "config/ca").mkdir(parents=True)
    (tmp_path / "config/ca/ca.key").write_text("x")
    with pytest.raises(UsageError, match="has the CA of a cluster that is deployed from here"):
        join(file, tmp_path / "config")
    assert not (tmp_path / "config/cluster.json").exists()


def snapshot(folder) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def changed(raw: bytes, *path, to) -> bytes:
    content = json.loads(raw)
    at = content
    for key in path[:-1]:
        at = at[key]
    if to is None:
        del at[path[-1]]
    else:
        at[path[-1]] = to
    return json.dumps(content).encode()


TEXT = base64.b64encode(b"x").decode()
HOSTILE = {
    "no JSON": (lambda raw: b"PK\x03\x04", "not one that 'edgellm manager' made"),
    "another JSON": (lambda raw: b"[]", "not one that 'edgellm manager' made"),
    "deep JSON": (lambda raw: b"[" * 100_000, "not one that 'edgellm manager' made"),
    "cut": (lambda raw: raw[: len(raw) // 2], "not one that 'edgellm manager' made"),
    "newer": (lambda raw: changed(raw, "format", to=2), "format is 2, this edgellm reads 1. Run the same edgellm"),
    "one field more": (lambda raw: changed(raw, "x", to=1), "'x' is missing or unknown"),
    "no cluster": (lambda raw: changed(raw, "cluster", to=None), "'cluster' is missing or unknown"),
    "bad cluster": (lambda raw: changed(raw, "cluster", to=[]), "it is not a JSON object"),
    "bad host": (lambda raw: changed(raw, "cluster", "boards", 0, "host", to="a b"), "is not a host name"),
    "a path up": (lambda raw: changed(raw, "model", "../../.bashrc", to=TEXT), "bashrc' of the model"),
    "a whole path": (lambda raw: changed(raw, "model", "/etc/passwd", to=TEXT), "'/etc/passwd' of the model"),
    "a path for a key": (lambda raw: changed(raw, "identity", "../x", to="x"), "identity is not an object of f"),
    "no key": (lambda raw: changed(raw, "identity", "key.pem", to=None), "identity is not an object of f"),
    "numbers for files": (lambda raw: changed(raw, "model", "x", to=5), "model is not an object of files"),
    "no manifest": (lambda raw: changed(raw, "model", "manifest.json", to=None), "it has no manifest.json"),
    "no base64": (lambda raw: changed(raw, "model", "tokenizer.json", to="%"), "a file of the model is damaged"),
    "other content": (lambda raw: changed(raw, "model", "tokenizer.json", to=TEXT), "256 of tokenizer.json differs"),
    "other manifest": (lambda raw: changed(raw, "model", "manifest.json", to=TEXT), "manifest is not JSON"),
    "a missing file": (lambda raw: changed(raw, "model", "tokenizer.json", to=None), "'tokenizer.json' of the m"),
    "no certificate": (lambda raw: changed(raw, "identity", "cert.pem", to="x"), "and key.pem: one is damaged"),
    "a huge one": (lambda raw: changed(raw, "identity", "crl.pem", to="x" * (2 << 20)), "of over 1048576 characters"),
    "a surrogate": (lambda raw: changed(raw, "identity", "key.pem", to="\ud800"), "one is damaged"),
    "another name": (lambda raw: changed(raw, "name", to="ben"), "certificate names manager anna, the file another"),
    "more rights": (lambda raw: changed(raw, "admin", to=True), "certificate names manager anna, the file another"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_sentence_and_changes_nothing(raw, tmp_path, name):
    spoil, message = HOSTILE[name]
    path = tmp_path / "evil.edgellm"
    path.write_bytes(spoil(raw))
    (tmp_path / "config").mkdir()
    with pytest.raises(ClusterError, match=message) as e:
        join(path, tmp_path / "config")
    assert str(path) in str(e.value) and "\n" not in str(e.value) and "PRIVATE" not in str(e.value)
    assert snapshot(tmp_path) == {"evil.edgellm": path.read_bytes()}


def test_a_link_in_the_way_is_replaced_and_not_followed(file, tmp_path):
    """Of an earlier user of the folder: the key must not be written through it."""
    (tmp_path / "config/tls").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "config/tls/.joining").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EdgellmError, match="can't join in"):
        join(file, tmp_path / "config")
    assert snapshot(tmp_path / "elsewhere") == {}


def test_a_missing_file_and_a_place_that_can_t_be_written_are_named(file, tmp_path):
    with pytest.raises(ClusterError, match="nothing.edgellm: no such file or directory"):
        join(tmp_path / "nothing.edgellm", tmp_path / "config")
    (tmp_path / "config").write_text("")
    with pytest.raises(ClusterError, match="can't join in .*config"):
        join(file, tmp_path / "config")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_comes_is_an_error_of_ours_or_a_join(raw, tmp_path, data):
    content = json.loads(raw)
    place = content
    while isinstance(place, dict | list) and place and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key]:
            place[key] = data.draw(st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just([]))
            break
        place = place[key]
    path = tmp_path / "evil.edgellm"
    path.write_text(json.dumps(content))
    shutil.rmtree(tmp_path / "config", ignore_errors=True)
    try:
        join(path, tmp_path / "config")
    except EdgellmError as e:
        assert "\n" not in str(e)
    assert {p.name for p in tmp_path.iterdir()} <= {"config", "evil.edgellm"}


def test_the_commands_on_both_sides(made, tmp_path):
    anna = tmp_path / "anna.edgellm"
    ca = made / "tls"
    places = ["--cluster", str(made / "cluster.json"), "--ca", str(ca), "--manager", str(ca / "manager")]
    before = os.umask(0)
    try:
        said = CliRunner().invoke(main, ["controller", "manager", "anna", "--to", str(anna), *places])
    finally:
        os.umask(before)
    assert json.loads(said.stdout) == {"changed": True, "name": "anna", "admin": False, "file": str(anna)}
    assert stat.S_IMODE(anna.stat().st_mode) == 0o600 and "PRIVATE" not in said.output
    again = CliRunner().invoke(main, ["controller", "manager", "anna", "--to", str(anna), *places])
    assert again.exit_code == 2 and "anna.edgellm is there already. Remove it, or name another" in again.stderr
    said = CliRunner().invoke(main, ["join", str(anna), "--to", str(tmp_path / "hers"), "--json"])
    assert json.loads(said.stdout) == {
        "name": "anna", "admin": False, "cluster_file": str(tmp_path / "hers/cluster.json"), "boards": ["b0", "b1"],
    }  # fmt: skip
    said = CliRunner().invoke(main, ["join", str(anna), "--to", str(tmp_path / "hers")])
    assert "anna may ask the cluster of b0, b1. Remove" in said.stdout and "ready: edgellm ask --cluster" in said.stdout


def test_further_models_go_along_each_into_a_folder_of_its_own(made, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/tokenizer.json").write_bytes(b"{}")
    files = (ModelFile("tokenizer.json", 2, hashlib.sha256(b"{}").hexdigest()),)
    replace(make_manifest(4), model="other", files=files).write(tmp_path / "other")
    plan = make_plan(Manifest.read(tmp_path / "other"), (0, 2, 4), epoch=0)
    two = tmp_path / "two.json"
    ClusterFile.read(made / "cluster.json").adding(tmp_path / "other", plan).write(two)
    stored = json.loads(two.read_text())
    two.write_text(json.dumps({**stored, "model_dir": str(made / "model"), "tls": str(made / "tls/manager")}))
    path = tmp_path / "anna.edgellm"
    path.write_bytes(pack(made / "tls/asker", two))

    joined = join(path, tmp_path / "config")
    cluster = ClusterFile.read(joined.cluster_file)
    assert cluster.models == ["fake", "other"] and cluster.choose("other").plan == plan
    folders = [cluster.model_dir_path(joined.cluster_file, name) for name in cluster.models]
    assert folders[0] != folders[1] and all(tmp_path / "config" in folder.parents for folder in folders)
    assert (folders[1] / "tokenizer.json").read_bytes() == b"{}" and Manifest.read(folders[1]).model == "other"

    content = json.loads(path.read_text())
    for more, message in ((3, "more is 3"), ([3], "not an object of files"), ([], "its plan is for other shards")):
        path.write_text(json.dumps({**content, "more": more}))
        with pytest.raises(ClusterError, match=message):
            join(path, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / "cluster.json").exists()
