"""A draft model on boards: pushed to all of them, held by the last one, and it changes no answer."""

import json

import pytest

from tests.boards.conftest import PROMPT
from tests.tiny import split_tiny

pytestmark = pytest.mark.boards_all


@pytest.mark.timeout(1200)
def test_the_last_board_drafts_and_a_model_with_other_tokens_is_refused(cluster, controller, reference, tmp_path):
    other = split_tiny(tmp_path, "beta", "qwen3")
    cluster.inventory(edgellm_draft_model=other)
    refused = controller.deploy()
    assert refused.rc and "beta can't draft for " in refused.text, "its tokens are others"

    own = controller.cluster()
    cluster.inventory(edgellm_draft_model="smollm2-135m")  # the model itself
    controller.deploy().good()
    plan = controller.cluster()["plan"]
    assert plan["draft"]["model"] == own["model"] and plan["epoch"] > own["plan"]["epoch"]
    assert plan["draft"]["manifest_sha256"] == plan["manifest_sha256"]
    last = plan["sections"][-1]["board"]
    rows = {row["board"]: row for row in controller.status()["boards"]}
    assert [name for name, row in rows.items() if row["draft_model"]] == [last]
    said = json.loads(controller.edgellm("ask", PROMPT, "--temperature", 0, "--max-tokens", 8, "--json").text)
    assert said["tokens"] == reference["tokens"][:8]

    cluster.inventory()
    controller.deploy().good()
    assert "draft" not in controller.cluster()["plan"]
