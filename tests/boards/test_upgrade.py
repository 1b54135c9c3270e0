"""Another version, another model, and the end: upgrade, model and reset."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.boards.conftest import PROMPT, Answers
from tests.boards.harness import HOME, ROOT, figure


def copy_of_the_project(name: str, version: str, *, broken: bool) -> Path:
    """A clone with the work tree's files, another version, and if `broken` an agent that can't start."""
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
        agent = folder / "edgellm/cli/agent.py"
        agent.write_text(agent.read_text() + '\n\nraise RuntimeError("this version is broken")\n')
    return folder


def versions(cluster) -> list[str]:
    return [b.root("readlink /opt/edgellm/current").strip() for b in cluster.boards]


@pytest.mark.timeout(1200)
def test_an_upgrade_to_a_broken_version_rolls_back(cluster, controller, reference):
    before = versions(cluster)
    started = [b.agent_started() for b in cluster.boards]
    copy = copy_of_the_project("broken", "99.0.0", broken=True)
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
    copy = copy_of_the_project("next", "99.0.1", broken=False)
    upgrade = controller.playing("playbooks/upgrade.yml", root=copy)
    with Answers(controller, reference) as answers:
        played = controller.finish(upgrade).good()
    assert answers.count > 1
    assert not set(versions(cluster)) & set(before) and len(set(versions(cluster))) == 1
    assert "99.0.1" in versions(cluster)[0]
    figure(f"upgrade of three boards, {answers.count} answers meanwhile", played.seconds)


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
