"""What the server's machine gets: an identity that only asks, keys, certificates for HTTPS; and nothing twice."""

import hashlib
import json
import shutil
import socket
import ssl
import threading
from datetime import timedelta

import pytest
from click.testing import CliRunner

from edgellm.cli import main
from edgellm.controller import serving
from edgellm.errors import ClusterError, UsageError
from edgellm.manager.identity_file import join
from edgellm.server.keys import Keys
from edgellm.wire.credentials import client_credentials
from tests.cli.commands import Cluster
from tests.controller.test_revoking import handshake

from tests.certificates import NOW, ensure  # isort: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A cluster file of boards of the fake model."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster.file
    cluster.stop()


@pytest.fixture
def home(tmp_path, model):
    """A config folder with a CA, and a cluster file that names the folder's identity."""
    ensure(tmp_path / "ca", ["pi1"])
    (tmp_path / "tls").mkdir()
    shutil.move(tmp_path / "ca/manager", tmp_path / "tls/manager")
    return tmp_path


def prepare(home, model, **options) -> serving.Prepared:
    return serving.prepare(home, home / "ca", home / "tls/manager", model, "pi1", **{"now": NOW, **options})


def test_a_server_may_ask_and_not_plan_and_a_second_time_changes_nothing(home, model):
    made = prepare(home, model)
    assert made.changed and made.keys == ("default",)
    assert [path.name for path in made.files] == ["server.edgellm", "api-keys.json"]
    assert not [path for path in made.files if path.stat().st_mode & 0o077]
    joined = join(made.files[0], home / "there")
    assert str(joined.identity) == "manager server-pi1" and not joined.identity.admin
    assert not list((home / "there").rglob("ca.key"))
    assert handshake(home / "there/tls/manager", home / "ca/boards/pi1") == [None, None]
    again = prepare(home, model)
    assert (again.changed, again.stamp, again.files) == (False, made.stamp, made.files)


def test_the_stamp_is_the_same_under_another_plan_and_its_first_half_with_other_boards_and_keys(home, model):
    packed = json.loads((prepare(home, model).files[0]).read_bytes())
    same = {**packed, "cluster": {**packed["cluster"], "created": "2030-01-01T00:00:00+00:00", "plan": {"epoch": 99}}}
    followed = (
        {**packed, "cluster": {**packed["cluster"], "boards": []}},
        {**packed, "identity": {**packed["identity"], "crl.pem": "another"}},
    )
    other = {**packed, "model": {**packed["model"], "tokenizer.json": "another"}}
    first, *stamps = [serving.stamp(json.dumps(content).encode()) for content in (packed, same, *followed, other)]
    assert len(first) == 64 and stamps[0] == first and len({first, *stamps}) == 4
    assert [stamp[:32] == first[:32] for stamp in stamps] == [True, True, True, False]


def test_the_server_reads_the_keys_that_are_made_here(home, model):
    made = prepare(home, model)
    key = made.key_file.read_text().strip()
    assert made.key_file.stat().st_mode & 0o777 == 0o600
    keys = Keys(made.files[1])
    assert keys.name_of(key) == "default" and keys.name_of(key + "x") is None
    assert key not in made.files[1].read_text()
    serving.make_key(home, "kitchen")
    fresh = serving.make_key(home, "default").read_text().strip()
    keys = Keys(prepare(home, model).files[1])
    assert (keys.name_of(key), keys.name_of(fresh), len(keys)) == (None, "default", 2)
    serving.remove_key(home, "kitchen")
    assert prepare(home, model).keys == ("default",)


def test_keys_that_cannot_be(home):
    for name in ("", "a b", "../up", "x" * 49):
        with pytest.raises(UsageError, match="can't name an API key"):
            serving.make_key(home, name)
    with pytest.raises(UsageError, match="no API key 'nobody'. There are: none"):
        serving.remove_key(home, "nobody")
    path = serving.make_key(home, "only")
    with pytest.raises(UsageError, match="only is the only API key"):
        serving.remove_key(home, "only")
    path.write_text("secret\n")
    with pytest.raises(ClusterError, match="holds no API key. Make it again with 'edgellm key only'"):
        serving.hashes(home)


def served_names(cert, key, ca, name: str) -> str:
    """What a client that trusts `ca` says of an HTTPS server with this certificate: "" if nothing is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def serve():
            try:
                with context.wrap_socket(listener.accept()[0], server_side=True) as connection:
                    connection.recv(1)
            except OSError:
                """The client hung up."""

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            trusting = ssl.create_default_context(cafile=ca)
            with socket.create_connection(listener.getsockname(), 10) as sock:
                trusting.wrap_socket(sock, server_hostname=name).close()
            return ""
        except ssl.SSLError as e:
            return str(e)
        finally:
            thread.join(10)


def test_the_cluster_s_ca_vouches_for_the_server_s_names_and_for_nothing_on_boards(home, model):
    made = prepare(home, model, tls="cluster", names=("192.0.2.1", "pi1.local"))
    cert, key = made.files[2:]
    for name in ("192.0.2.1", "pi1.local"):
        assert served_names(cert, key, home / "ca/ca.pem", name) == ""
    assert "mismatch" in served_names(cert, key, home / "ca/ca.pem", "pi2.local")

    pair = home / "pair"  # as an identity, to boards and for one
    shutil.copytree(home / "ca/boards/pi1", pair)
    shutil.copy(cert, pair / "cert.pem")
    shutil.copy(key, pair / "key.pem")
    assert client_credentials(pair).identity is None
    assert handshake(pair, home / "ca/boards/pi1") != [None, None]

    assert not prepare(home, model, tls="cluster", names=("192.0.2.1", "pi1.local")).changed
    before = hashlib.sha256(cert.read_bytes()).hexdigest()
    later = prepare(home, model, tls="cluster", names=("192.0.2.1", "pi1.local"), now=NOW + timedelta(days=340))
    assert later.changed and hashlib.sha256(cert.read_bytes()).hexdigest() != before
    assert prepare(home, model, tls="cluster", names=("192.0.2.2",)).changed


def test_a_pair_of_files_of_the_user_s_own(home, model):
    made = prepare(home, model, tls="cluster", names=("192.0.2.1",))
    own = home / "own"
    own.mkdir()
    with pytest.raises(UsageError, match=r"edgellm_server_tls is .*own: .* is missing there"):
        prepare(home, model, tls=str(own))
    shutil.copy(made.files[2], own / "cert.pem")
    shutil.copy(home / "ca/boards/pi1/key.pem", own / "key.pem")
    with pytest.raises(UsageError, match="can't be used"):
        prepare(home, model, tls=str(own))
    shutil.copy(made.files[3], own / "key.pem")
    assert [path.read_bytes() for path in prepare(home, model, tls=str(own)).files[2:]] == [
        (own / "cert.pem").read_bytes(), (own / "key.pem").read_bytes(),
    ]  # fmt: skip


def test_the_commands_of_the_playbooks(home, model, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home.parent))
    config = home.parent / "edgellm"
    home.rename(config)
    shutil.copy(model, config / "cluster.json")
    content = json.loads((config / "cluster.json").read_text())
    content["model_dir"] = str(model.parent / content["model_dir"])
    (config / "cluster.json").write_text(json.dumps(content))

    def run(*words: str) -> dict:
        done = CliRunner().invoke(main, ["controller", *words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    told = run("server", "pi1", "--tls", "cluster", "--for", "192.0.2.1")
    assert told["keys"] == ["default"] and told["ca"] == str(config / "ca/ca.pem") and len(told["files"]) == 4
    assert run("key", "kitchen") == {
        "changed": True, "name": "kitchen", "file": str(config / "api-keys/kitchen"), "keys": ["default", "kitchen"],
    }  # fmt: skip
    assert run("key", "kitchen", "--remove")["keys"] == ["default"]
