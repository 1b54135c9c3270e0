"""What /metrics counts, and what /health and /ready say, over boards of the fake model."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgellm.server.health import State, state_of
from edgellm.server.keys import Keys
from tests.server.serving import Serving, user
from tests.server.test_under_load import LONG


@pytest.fixture
def serving(tmp_path):
    """A server of this test's own, whose counters begin at zero."""
    serving = Serving(tmp_path)
    yield serving
    serving.stop()


def metrics(serving) -> dict[tuple, float]:
    """The value of each sample, by its name and the values of its labels, whose names are in alphabetical order."""
    text = serving.http.get("/metrics").text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }  # fmt: skip


def test_answers_and_their_tokens_are_counted_by_model_and_key(serving):
    key = Keys(serving.settings.keys).make("kitchen")
    serving.wait(lambda: serving.http.get("/v1/models").status_code == 401)  # it reads new keys once a second
    serving.http.headers["authorization"] = f"Bearer {key}"
    assert serving.chat("abcd", max_tokens=5).status_code == 200
    serving.events("/v1/chat/completions", {"messages": user("abcd"), "max_tokens": 7})
    found = metrics(serving)
    [model] = serving.models.names()
    tokens = {kind: found["edgellm_tokens_total", "kitchen", kind, model] for kind in ("prompt", "completion")}
    assert tokens == {"prompt": 8, "completion": 12}
    assert found["edgellm_answers_total", model, "length"] == 2
    assert found["edgellm_first_token_seconds_count", model] == 2
    assert found["edgellm_inter_token_seconds_count", model] == 10
    assert found["edgellm_answers_running", model] == found["edgellm_answers_waiting", model] == 0
    assert found["edgellm_requests_total", "kitchen", "/v1/chat/completions", "200"] == 2
    assert found["edgellm_requests_total", "", "/v1/models", "401"] >= 1


def test_a_client_that_goes_away_is_counted_and_no_longer_running(serving):
    serving.cluster.pace.delay_s = 0.05
    with serving.http.stream("POST", "/v1/chat/completions", json=LONG) as response:
        lines = response.iter_lines()  # which hangs up when it is let go
        next(lines)
        [model] = serving.models.names()
        assert metrics(serving)["edgellm_answers_running", model] == 1
    serving.wait_free()
    serving.wait(lambda: metrics(serving).get(("edgellm_answers_total", model, "cancelled")) == 1)
    assert metrics(serving)["edgellm_answers_running", model] == 0


def test_labels_do_not_grow_with_what_clients_make_up(serving):
    for i in range(20):
        serving.http.get(f"/made/up/{i}")
        serving.http.get("/v1/models", headers={"Authorization": f"Bearer {i}"})
        serving.chat(model=f"made-up-{i}")
    found = metrics(serving)
    assert found["edgellm_requests_total", "", "other", "404"] == 20
    assert not [key for key in found if re.search("made|up/", "".join(key[1:]))]


def test_boards_stand_there_as_they_were_surveyed(serving):
    serving.wait(lambda: metrics(serving).get(("edgellm_board_up", "b1")) == 1)
    found = metrics(serving)
    layers = {key[1]: value for key, value in found.items() if key[0] == "edgellm_board_layers"}
    assert sum(layers.values()) == serving.cluster.plan.num_layers and len(layers) == 2
    assert found["edgellm_board_slots", "b1"] == found["edgellm_board_free_slots", "b1"] == 2
    [model] = serving.models.names()
    epochs = serving.cluster.plan.epoch, serving.models.clients[model].plan.epoch  # a busy machine makes another plan
    assert epochs[0] <= found["edgellm_plan_epoch", model] <= epochs[1]
    assert found["edgellm_recoveries_total", model] == 0


def test_health_names_boards_only_to_who_has_a_key(serving):
    told = {"status": "ok", "ready": True, "boards": {"known": 2, "answering": 2}}
    # On loopback without keys, to anybody.
    serving.wait(lambda: serving.http.get("/health").json() == {**told, "missing": {}})
    key = Keys(serving.settings.keys).make("kitchen")
    serving.wait(lambda: serving.http.get("/v1/models").status_code == 401)
    serving.wait(lambda: serving.http.get("/health").json() == told)
    assert "missing" in serving.http.get("/health", headers={"Authorization": f"Bearer {key}"}).json()


class Client:
    """A client whose boards say what a test wants."""

    def __init__(self, plan, serving: set[str], idle: set[str] = frozenset(), missing: set[str] = frozenset()):
        self.plan = plan
        self.boards = {b: _Status(plan) for b in serving} | {b: _Status(None) for b in idle}
        self.missing = {b: f"board {b} does not answer" for b in missing}


class _Status:
    def __init__(self, plan):
        self.plan = plan

    def serves(self, plan):
        return self.plan == plan


class _Plan:
    boards = ("b0", "b1")


@pytest.mark.parametrize(
    ("given", "status", "ready"),
    [
        ({"serving": {"b0", "b1"}}, "ok", True),
        ({"serving": {"b0", "b1"}, "missing": {"b2"}}, "degraded", True),
        ({"serving": {"b0"}, "missing": {"b1"}}, "degraded", False),
        ({"serving": {"b0"}, "idle": {"b1"}}, "loading", False),
        ({"serving": set()}, "loading", False),
        ({"serving": set(), "missing": {"b0", "b1"}}, "no cluster", False),
    ],
)
def test_states(given, status, ready):
    state = state_of([Client(_Plan(), **given)])
    assert (state.status, state.ready) == (status, ready)
    assert set(dict(state.missing)) == given.get("missing", set())


def test_of_several_models_the_one_that_is_best_off_counts():
    good, bad = Client(_Plan(), {"b0", "b1"}), Client(_Plan(), set(), missing={"b0", "b1"})
    assert state_of([bad, good]).status == "ok"
    assert state_of([]) == State("loading", False)


def test_who_does_not_know_yet_says_when_to_come_again(tmp_path):
    serving = Serving(tmp_path)
    try:
        first = serving.http.get("/ready")  # nobody has been asked yet
        assert first.status_code == 503 and first.headers["retry-after"] == "5" and first.json()["status"] == "loading"
        assert serving.http.get("/health").status_code == 200
    finally:
        serving.stop()
