"""From bare boards to a cluster that answers, and what a second deploy, --check and --limit do."""

import json
import stat

import pytest

from tests.boards.conftest import MAX_TOKENS, PROMPT, Answers, new_controller
from tests.boards.harness import PORT, assert_at_rest, figure, wait_for


def test_three_blank_boards_without_any_uplink(deployed, reference):
    cluster, played = deployed
    played.good()
    if max(played.changed(*cluster.boards).values()):  # 0 if EDGELLM_BOARDS_KEEP kept a deployed cluster
        figure("deploy: three blank boards, no uplink", played.seconds)
        for board in cluster.boards:
            weighs = board.weighs()
            figure(f"pushed to {board}, besides shards", weighs["pushed"], "MB")
            figure(f"on {board}'s disk, besides shards", weighs["software"], "MB")
            assert weighs["pushed"] < 60 and weighs["software"] < 150, weighs
    assert set(cluster.controller.plan()) == {"board1", "board2", "board3"}
    answer = cluster.controller.ask(PROMPT, MAX_TOKENS)
    assert answer["tokens"] == reference["tokens"]
    assert answer["text"] == reference["text"]
    assert {(s["board"], s["path"]) for s in answer["stages"]} == {(f"board{n}", "native") for n in (1, 2, 3)}
    figure("three boards on this machine's cores, decode", answer["timings"]["decode_tokens_per_s"], "tok/s")


def test_a_second_deploy_changes_nothing_and_disturbs_nothing(cluster, controller, reference):
    before = controller.cluster(), [b.agent_started() for b in cluster.boards]
    with Answers(controller, reference):
        played = controller.deploy().good()
    assert played.changed(*cluster.boards) == {"board1": 0, "board2": 0, "board3": 0}
    assert [counts["changed"] for counts in played.recap.values()] == [0] * len(played.recap)
    assert (controller.cluster(), [b.agent_started() for b in cluster.boards]) == before
    figure("deploy: the second, nothing to do", played.seconds)


def test_check_of_a_deployed_cluster_finds_nothing_to_change(cluster, controller):
    played = controller.deploy("--check").good()
    assert played.changed(*cluster.boards) == {"board1": 0, "board2": 0, "board3": 0}


def test_limit_deploys_one_board_and_leaves_the_cluster_whole(cluster, controller):
    before = controller.cluster()
    played = controller.deploy("--limit", "board1").good()
    assert played.changed(cluster.boards[0]) == {"board1": 0}
    assert "board2" not in played.recap and "board3" not in played.recap
    assert controller.cluster() == before


def test_private_keys_are_their_owners_alone(cluster, controller):
    keys = set()
    for board in cluster.boards:
        assert board.root("stat -c '%a %U' /etc/edgellm/tls/key.pem") == "600 edgellm\n"
        keys.add(board.root("sha256sum < /etc/edgellm/tls/key.pem"))
        assert board.root("grep -rlE 'BEGIN[ ]([A-Z]+ )?PRIVATE KEY' /etc/edgellm /var/lib/edgellm /opt/edgellm/*.* "
                          "/home/edge/.ansible /root/.ansible /var/log 2>/dev/null",
                          check=False).split() == ["/etc/edgellm/tls/key.pem"]  # fmt: skip
    assert len(keys) == 3
    private = [p for p in controller.config.rglob("*") if p.is_file() and b"PRIVATE KEY" in p.read_bytes()]
    assert len(private) >= 5  # the CA's, the manager's, three boards'
    assert {stat.S_IMODE(p.stat().st_mode) for p in private} == {0o600}


def test_the_agent_is_a_hardened_service_of_a_user_of_its_own(cluster):
    for board in cluster.boards:
        lines = board.ssh("systemctl show edgellm-agent").splitlines()
        shown = dict(line.split("=", 1) for line in lines if "=" in line)
        expected = {"User": "edgellm", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "Restart": "always",
                    "Type": "notify", "UnitFileState": "enabled", "ActiveState": "active", "ProtectHome": "yes",
                    "PrivateTmp": "yes"}  # fmt: skip
        assert {k: shown[k] for k in expected} == expected
        assert shown["MemoryMax"].isdigit() and 0 < int(shown["MemoryMax"]) < 4096 << 20
        assert shown["WatchdogUSec"] == "30s"
        assert board.ssh("getent passwd edgellm").strip().endswith(("/nologin", "/false"))


CONSTRAINED = """
import json, sys
from edgellm import Client
from edgellm.structure import Constraint

schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
schema["additionalProperties"] = False
with Client() as client:
    options = {"temperature": 0, "max_tokens": 30, "constraint": Constraint("json_schema", json.dumps(schema))}
    answer = client.chat([{"role": "user", "content": "Is the lamp on?"}], **options).read()
    vector, tokens = client.embed(["A lamp."])[0]
print(json.dumps([answer.text, answer.finish, len(vector), tokens]))
"""


def test_the_service_follows_a_constraint_and_makes_embeddings(cluster, controller):
    text, finish, size, tokens = json.loads(controller.python("-c", CONSTRAINED).text)
    assert text in ('{"on": true}', '{"on": false}') and finish == "eos" and (size, tokens > 1) == (576, True)
    last = max(cluster.boards, key=lambda board: controller.plan().get(board.name, (0, 0))[1])
    assert "grammar_worker" in last.root("ps ax -o args")


def test_agents_listen_on_the_inventorys_address_only(cluster):
    for board in cluster.boards:
        listening = {line.split()[3] for line in board.root("ss -Hltn").splitlines()} - {"0.0.0.0:22", "[::]:22"}
        assert listening == {f"{board.host}:{PORT}"}


def test_an_agent_starts_by_itself_after_a_reboot(cluster, controller, reference):
    board = cluster.boards[2]
    board.reboot()
    wait_for(lambda: controller.row(board)["version"], 60, f"agent of {board}")
    start, end = controller.plan()[board.name]
    row = controller.row(board)  # nobody has asked yet, and all is well
    assert (row["state"], row["ready"]) == (f"ready: loads layers {start}-{end} at the next question", True)
    doctor = json.loads(controller.edgellm("doctor", board.name, "--quick", "--json", check=False).text)
    found = next(b for b in doctor["boards"] if b["board"] == board.name)
    assert controller.status()["ready"] and found["facts"]["ready"]
    assert "plan" not in [f["about"] for f in found["findings"]]
    answer = controller.ask(PROMPT, 20)
    assert answer["tokens"] == reference["tokens"][:20]
    assert controller.row(board)["serving"]


@pytest.mark.timeout(1500)
def test_three_blank_boards_with_a_mirror_and_without_python(extra, references):
    """These compute as transformers does, in float32: the very same tokens."""
    boards = [extra(n, memory=memory, image="bare") for n, memory in ((4, 4096), (5, 4096), (6, 2048))]
    for board in boards:
        board.uplink(True)
    controller = new_controller("mirror")
    exact = {"edgellm_path": "generic", "edgellm_kv_dtype": "float32"}
    controller.inventory(boards, edgellm_objective="throughput", edgellm_threads=1, **exact)

    blank = [board.files() for board in boards]
    controller.deploy("--check").good()
    assert [board.files() - was for board, was in zip(boards, blank, strict=True)] == [set()] * 3

    played = controller.deploy(timeout=900).good()
    figure("deploy: three blank boards with a mirror, lacking Python", played.seconds)
    answer = controller.ask(PROMPT, MAX_TOKENS)
    assert answer["tokens"] == references["transformers"]["tokens"]
    assert answer["text"] == references["transformers"]["text"]
    assert {(s["board"], s["path"]) for s in answer["stages"]} == {(b.name, "generic") for b in boards}

    # A line is gone from the inventory: its board leaves the cluster, during an answer.
    controller.inventory(boards[:2], edgellm_objective="throughput", edgellm_threads=1, **exact)
    with Answers(controller, references["transformers"]):
        played = controller.deploy().good()
    assert played.touched(*boards[:2]) == {b.name: 0 for b in boards[:2]}
    assert set(controller.plan()) == {b.name for b in boards[:2]}
    assert_at_rest(boards[2])
