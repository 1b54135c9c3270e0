"""rebalance as a user sees it."""

import json

from edgellm.manager.cluster_file import ClusterFile
from tests.cli.commands import CONTEXT, answer_to, call, fails
from tests.fakes import claim, unclaim


def test_rebalance_says_what_would_move_and_then_moves_it(own):
    own.call(own.boards.form((0, 5, 6), epoch=4, context=CONTEXT, slots=2, chunk=16))
    rebalance = ("rebalance", "--cluster", own.file)
    dry = call(*rebalance, "--dry-run", "--json")
    assert (dry.exit_code, dry.stderr) == (0, ""), dry.output
    said = json.loads(dry.stdout)
    assert said["changed"] and said["dry_run"] and (said["epoch_before"], said["epoch"]) == (4, 5)
    assert own.boards.agents[0].stage.epoch == 4 and ClusterFile.read(own.file).plan.epoch == 1
    text = call(*rebalance, "--dry-run").stdout
    assert "epoch 5 instead of 4" in text and "b0" in text and "to load" in text
    done = json.loads(call(*rebalance, "--json").stdout)
    assert done["changed"] and not done["dry_run"] and done["boards"] == said["boards"]
    assert sum(done["loaded_bytes"].values()) == done["moved_bytes"] == said["moved_bytes"] > 0
    plan = ClusterFile.read(own.file).plan
    assert plan.epoch == 5 == own.boards.agents[0].stage.epoch and plan.sections[0].end == 4
    again = json.loads(call(*rebalance, "--json").stdout)
    assert (again["changed"], again["epoch"], again["loaded_bytes"]) == (False, 5, {})
    assert "epoch 5 stays" in call(*rebalance).stdout
    result = call("ask", "Why?", "--cluster", own.file, "--max-tokens", 20)
    assert (result.stdout, result.stderr) == (answer_to("Why?", 20) + "\n", "")


def test_rebalance_names_boards_that_do_not_answer_and_waits_for_no_other_manager(own):
    claim(own.boards.agents[1].holding)
    assert "another manager is giving the boards a plan. Try again" in fails(1, "rebalance", "--cluster", own.file)
    unclaim(own.boards.agents[1].holding)
    own.call(own.boards.stop(1))
    result = call("rebalance", "--cluster", own.file, "--dry-run")
    assert result.exit_code == 0 and "board b1 is gone" in result.stdout
    assert result.stderr.startswith("board b1 (127.0.0.1:") and result.stderr.count("\n") == 1
    own.call(own.boards.stop(0))
    assert "no board answers" in call("rebalance", "--cluster", own.file).stderr.splitlines()[-1]
    assert "no cluster file" in fails(2, "rebalance")
