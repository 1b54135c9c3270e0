"""Several models on the same boards: pushed beside each other, served at once, unloaded by the server, and removed when
the inventory drops one."""

import json

import pytest
from cryptography import x509

from edgellm.shards.manifest import Manifest
from tests.boards.conftest import PROMPT
from tests.boards.harness import wait_for
from tests.boards.test_server import PORT, curl, key_of
from tests.tiny import split_tiny

pytestmark = pytest.mark.boards_all
MODELS = "/var/lib/edgellm/models"


def ask(controller, *args: object) -> list[int]:
    greedy = ("--temperature", 0, "--max-tokens", 8, "--json")
    return json.loads(controller.edgellm("ask", PROMPT, *greedy, *args).text)["tokens"]


def standing(controller) -> list[str]:
    return controller.status()["standing"]


def shared(controller) -> list[str]:
    """The boards that serve two models."""
    return [row["board"] for row in controller.status()["boards"] if row["section"] and row["others"]]


@pytest.mark.timeout(1500)
def test_boards_serve_two_models_at_once_and_lose_the_one_that_is_dropped(cluster, controller, reference, tmp_path):
    other, (server, asker, _) = split_tiny(tmp_path, "beta", "qwen3"), cluster.boards
    folder = f"{MODELS}/{Manifest.read(other).sha256[:12]}"
    cluster.inventory(edgellm_models=other, edgellm_server=server.name)
    controller.deploy().good()
    assert [m["model"] for m in controller.cluster()["more"]] == ["beta"]
    for board in cluster.boards:
        assert len(board.root(f"ls {folder}").split()) == len(list(other.iterdir()))
    assert controller.deploy().good().touched(*cluster.boards) == {b.name: 0 for b in cluster.boards}

    default, first = controller.cluster()["model"], reference["tokens"][:8]
    assert ask(controller) == first
    beta = ask(controller, "--raw", "--model", "beta")
    assert standing(controller) == [default, "beta"] and shared(controller)
    assert controller.cluster()["more"][0]["plan"]["epoch"] > 0
    loads = "".join(b.journal(400) for b in cluster.boards).count("loads layers")
    running = controller.asking(PROMPT, 100)
    running.after(3)
    assert ask(controller, "--raw", "--model", "beta") == beta and running.running, "both answer at once"
    assert running.answer(120).startswith(reference["text"][:100])
    assert "".join(b.journal(400) for b in cluster.boards).count("loads layers") == loads

    # The server's identity is an admin's: it can have the boards give a model up, and load it again.
    pem = (controller.config / "ca/servers" / server.name / "cert.pem").read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"edgellm:admin:server-{server.name}"]
    url, auth = f"http://{server.host}:{PORT}", ("--header", f"Authorization: Bearer {key_of(controller)}")

    def post(path: str, **body) -> tuple[int, dict]:
        said = json.dumps({"model": "beta", "stream": False, **body})
        return curl(asker, f"{url}{path}", *auth, "--header", "Content-Type: application/json", "--data", said)

    asked = post("/api/generate", prompt="Hi", raw=True, options={"num_predict": 4, "temperature": 0})
    assert asked[0] == 200, asked
    assert post("/api/generate", prompt="", keep_alive=0)[0] == 200
    wait_for(lambda: standing(controller) == [default], 30, "beta is unloaded")
    assert ask(controller) == first and not shared(controller)
    assert post("/api/generate", prompt="Hi", raw=True, options={"num_predict": 4, "temperature": 0})[0] == 200
    assert standing(controller) == [default, "beta"]

    cluster.boards[0].flip_byte(f"{folder}/layer-0002.safetensors")  # a card that is wearing out
    played = controller.deploy().good()
    assert played.changed(*cluster.boards)[cluster.boards[0].name] > 0
    assert ask(controller, "--raw", "--model", "beta") == beta and ask(controller) == first

    cluster.inventory()
    controller.deploy().good()
    assert "more" not in controller.cluster() and ask(controller) == first
    for board in cluster.boards:
        assert not board.root(f"ls -d {folder}", check=False).strip()
