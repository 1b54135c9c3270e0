"""Real sections, too, tell the board's speed by their steps."""

import pytest

from edgellm.agent.measure import measure_decode
from edgellm.agent.pace import Pace, Speed
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.manager.client import ClusterClient
from tests.fakes import Boards, ask, connect_all, run
from tests.model.families import CONFIGS, random_model

pytestmark = pytest.mark.native


def test_steps_of_real_sections_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.settled.HOLD_S", 0.0)
    random_model(CONFIGS["smollm"]()).save_pretrained(tmp_path / "checkpoint")
    split(open_source(str(tmp_path / "checkpoint")), tmp_path / "split", "int4")

    async def go():
        async with Boards(tmp_path / "split", 2, real=True) as boards:
            for agent in boards.agents:
                agent.holding.model.pace = Pace(Speed(*measure_decode(boards.manifest, boards.folder)))
            plan = await boards.form((0, 2, 5), chunk=32, context=256)
            clients = await connect_all(boards.addresses)
            await ask(ClusterClient(plan, clients), list(range(1, 200)), 40, speculate=False)
            statuses = [await client.status() for client in clients]
            for client in clients:
                client.close()
            return statuses, [agent.holding.model.pace.start for agent in boards.agents]

    statuses, starts = run(go(), 60)
    for status, start in zip(statuses, starts, strict=True):
        capacity, section = status.capacity, status.section
        assert start.layer_s / 16 <= capacity.layer_s <= start.layer_s * 16 and capacity.layer_s != start.layer_s
        assert capacity.prefill_layer_s > 0 and section.token_s > 0 and section.predicted_s > 0
