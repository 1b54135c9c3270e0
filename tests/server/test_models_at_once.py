"""A server whose boards hold two models at once: both answer, and one is unloaded."""

import json
import re
import threading
from dataclasses import replace

import pytest

from tests.cli.commands import TEXT, answer_to, ids_of
from tests.fakes import VOCAB, make_manifest
from tests.server.serving import Serving

LAYERS = 4


@pytest.fixture
def serving(tmp_path):
    serving = Serving(tmp_path, other=replace(make_manifest(LAYERS), model="other"))
    yield serving
    serving.stop()


def answer_of_other(prompt: str, count: int) -> str:
    """What the fake model of fewer layers answers."""
    ids = ids_of(prompt)
    for _ in range(count):
        ids.append((sum((i + 1) * (k + 1) for k, i in enumerate(ids)) + len(ids) * sum(range(LAYERS))) % VOCAB)
    return "".join(TEXT[i] for i in ids[len(prompt) :])


def text(response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def loaded(serving) -> dict[str, str]:
    return {m["name"]: m["expires_at"] for m in serving.http.get("/api/ps").json()["models"]}


def test_two_models_answer_at_once_and_one_that_is_unloaded_leaves_the_other_alone(serving):
    greedy = {"max_tokens": 12, "temperature": 0}
    assert list(loaded(serving)) == ["fake:latest"]
    assert text(serving.chat(model="other", **greedy)) == answer_of_other("Why?", 12)
    assert list(loaded(serving)) == ["fake:latest", "other:latest"]

    taken = re.compile(r"edgellm_board_section_bytes{.*} [1-9]")
    serving.wait(lambda: len(taken.findall(serving.http.get("/metrics").text)) == 4)  # two models on two boards

    serving.cluster.pace.delay_s = 0.01
    first: list[str] = []
    running = threading.Thread(target=lambda: first.append(text(serving.chat(max_tokens=150, temperature=0))))
    running.start()
    serving.wait(lambda: serving.cluster.boards.agents[0].holding.running)
    others = [text(serving.chat(word, model="other", **greedy)) for word in ("Why?", "How?")]
    assert running.is_alive(), "the first answer went on meanwhile"
    assert others == [answer_of_other(word, 12) for word in ("Why?", "How?")]
    state = serving.http.get("/page/api/boards", params={"model": "other"}).json()
    assert (state["model"], state["serving"], state["standing"]) == ("other", True, ["other", "fake"])
    assert {o["model"] for row in state["boards"] for o in row["others"]} == {"fake"}

    assert json.loads(serving.post("/api/chat", {"model": "other", "messages": [], "keep_alive": 0}).text)["done"]
    serving.wait(lambda: list(loaded(serving)) == ["fake:latest"])
    running.join(60)
    assert first == [answer_to("Why?", 150)]
    held = [[one.plan.model for one in a.holding.held.served] for a in serving.cluster.boards.agents]
    assert held == [["fake"], ["fake"]]
    assert serving.http.get("/ready").status_code == 200
