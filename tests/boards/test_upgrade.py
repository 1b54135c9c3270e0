"""Another version, another model, and the end: upgrade, model and reset."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.boards.conftest import PROMPT, Answers
from tests.boards.harness import HOME, ROOT, figure
from tests.boards.test_server import PORT, answers, key_of, left_of_a_server


def copy_of_the_project(name: str, version: str, *, broken: str = "") -> Path:
    """A clone with the work tree's files, another version, and a `broken` module, which can't be imported."""
    folder = HOME / "copies" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                           capture_output=True, check=True, timeout=20).stdout.split(b"\0")  # fmt: skip
    for file in filter(None, files):
        source, target = ROOT / file.decode(), folder / file.decode()
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    init = folder / "edgellm/__init__.py"
    text, count = re.subn(r'__version__ = ".*?"', f'__version__ = "{version}"', init.read_text())
    assert count == 1
    init.write_text(text)
    if broken:
        module = folder / f"edgellm/{broken}.py"
        module.write_text(module.read_text() + '\n\nraise RuntimeError("this version is broken")\n')
    return folder


def versions(cluster) -> list[str]:
    return [b.root("readlink /opt/edgellm/current").strip() for b in cluster.boards]


@pytest.mark.timeout(1200)
def test_an_upgrade_to_a_broken_version_rolls_back(cluster, controller, reference):
    before = versions(cluster)
    started = [b.agent_started() for b in cluster.boards]
    copy = copy_of_the_project("broken", "99.0.0", broken="cli/agent")
    played = controller.ansible("playbooks/upgrade.yml", root=copy, timeout=700)
    assert played.rc != 0
    assert "board1" in played.text and "this version is broken" in played.text
    assert versions(cluster) == before
    assert [b.agent_started() for b in cluster.boards][1:] == started[1:], "the run stops at the first board"
    answer = controller.ask(PROMPT, 30)
    assert answer["tokens"] == reference["tokens"][:30]
    figure("upgrade to a broken version, back by itself", played.seconds)


@pytest.mark.timeout(1500)
def test_an_upgrade_goes_board_by_board_while_answers_are_made(cluster, controller, reference):
    before = versions(cluster)
    copy = copy_of_the_project("next", "99.0.1")
    upgrade = controller.playing("playbooks/upgrade.yml", root=copy)
    with Answers(controller, reference) as answers:
        played = controller.finish(upgrade).good()
    assert answers.count > 1
    assert not set(versions(cluster)) & set(before) and len(set(versions(cluster))) == 1
    assert "99.0.1" in versions(cluster)[0]
    figure(f"upgrade of three boards, {answers.count} answers meanwhile", played.seconds)


@pytest.mark.boards_all
@pytest.mark.timeout(1800)
def test_an_upgrade_takes_the_server_along_and_one_that_does_not_start_goes_back(cluster, controller):
    board, asker = cluster.boards[:2]
    url = f"http://{board.host}:{PORT}"
    cluster.inventory(edgellm_server=board.name)
    controller.deploy().good()
    key, conversations = key_of(controller), "/var/lib/edgellm-server/conversations.db"
    made = board.root(f"stat -c %W {conversations}")
    copy = copy_of_the_project("served", "99.0.2")
    controller.ansible("playbooks/upgrade.yml", root=copy, timeout=700).good()
    assert "99.0.2" in board.root("readlink /opt/edgellm/server/current")
    assert answers(asker, url, controller) and key_of(controller) == key
    assert board.root(f"stat -c %W {conversations}") == made, "what it keeps is still there"

    copy = copy_of_the_project("unserved", "99.0.3", broken="server/listen")
    played = controller.ansible("playbooks/upgrade.yml", root=copy, timeout=700)
    back = r"the server of edgellm 99\.0\.3\S* doesn't answer .* 99\.0\.2\S* runs again"
    assert played.rc != 0 and re.search(back, played.text)
    assert "this version is broken" in played.text
    assert "99.0.2" in board.root("readlink /opt/edgellm/server/current") and answers(asker, url, controller)
    assert all("99.0.3" in version for version in versions(cluster)), "the boards themselves are upgraded"
    cluster.inventory()
    controller.deploy().good()
    assert left_of_a_server(board) == []


@pytest.mark.timeout(1200)
def test_another_model(cluster, controller):
    """The same weights at fewer bits are another model."""
    before = controller.cluster()
    played = controller.ansible("playbooks/model.yml", "-e", "edgellm_quantize=int4", timeout=700).good()
    figure("another model", played.seconds)
    after = controller.cluster()
    assert after["plan"]["manifest_sha256"] != before["plan"]["manifest_sha256"]
    assert len(controller.ask(PROMPT, 20)["tokens"]) == 20


@pytest.mark.timeout(600)
def test_reset_leaves_no_file_no_user_no_unit(cluster, controller):
    played = controller.ansible("playbooks/reset.yml").good()
    figure("reset", played.seconds)
    for board in cluster.boards:
        assert board.ours() == set()
        if board in cluster.blank_files:
            assert board.files() - cluster.blank_files[board] == set()
        assert board.ssh("getent passwd edgellm; getent group edgellm", check=False) == ""
        assert board.ssh("systemctl list-unit-files 'edgellm*' --no-legend", check=False) == ""
        assert board.pids() == []
    assert not (controller.config / "cluster.json").exists()
    again = controller.ansible("playbooks/reset.yml").good()
    assert again.changed(*cluster.boards) == {"board1": 0, "board2": 0, "board3": 0}
