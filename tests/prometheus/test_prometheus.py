"""Debian's Prometheus scrapes a running server, and has an answer to every query of the dashboard."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
EDGELLM = Path(sys.executable).with_name("edgellm")
DASHBOARD = json.loads((ROOT / "grafana/edgellm.json").read_text())
# What this machine needn't have: sensors, and a link with a speed; and what only boards with a cache on disk tell.
NOT_EVERYWHERE = ("temperature", "throttled", "undervoltage", "link_speed", "cache_written")
CHAT = {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "temperature": 0}

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(300)]


def wait_for(condition, timeout_s: float, what: str):
    """Return the first true value of condition(), tried five times a second."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(httpx.TransportError):
            if value := condition():
                return value
        assert time.monotonic() < deadline, f"no {what} in {timeout_s:g} s"
        time.sleep(0.2)


def ran(command: list, **options) -> subprocess.CompletedProcess:
    """A program's end, within a minute."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@contextlib.contextmanager
def running(command: list, log: Path, **options):
    """A program that ends with the block."""
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server on this machine that answers with the built-in model, and wants a key: its client."""
    folder = tmp_path_factory.mktemp("server")
    env = {k: v for k, v in os.environ.items() if not k.startswith("EDGELLM_")}
    env |= {"EDGELLM_CONFIG": str(folder), "EDGELLM_STATE": str(folder), "XDG_CONFIG_HOME": str(folder)}
    key = ran([EDGELLM, "serve", "--new-key", "prometheus"], env=env).stdout.strip()
    log = folder / "log"
    with running([EDGELLM, "serve", "--port", "0"], log, env=env, cwd=folder) as process:
        def address():
            assert process.poll() is None, log.read_text()
            return re.search(r"open (http://\S+?)/?$", log.read_text(), re.M)

        url = wait_for(address, 120, "address")[1].replace("localhost", "127.0.0.1")
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            wait_for(lambda: client.get("/ready").status_code == 200, 60, "server that is ready")
            yield client


@pytest.fixture(scope="module")
def prometheus(server, tmp_path_factory):
    """A Prometheus that scrapes it with the file of the repository, five times a second: its client."""
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    if missing:
        pytest.fail(f"{missing[0]} is missing: tests/prometheus/install gets it")
    folder = tmp_path_factory.mktemp("prometheus")
    text = (ROOT / "grafana/prometheus.yml").read_text()
    text = text.replace("scrape_interval: 15s", "scrape_interval: 200ms")
    text = text.replace("127.0.0.1:8080", server.base_url.netloc.decode())
    (folder / "prometheus.yml").write_text(text)
    (folder / "api-key").write_text(server.headers["authorization"].removeprefix("Bearer "))
    checked = ran(["promtool", "check", "config", folder / "prometheus.yml"])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
               f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]  # fmt: skip
    api = f"http://127.0.0.1:{port}/api/v1"
    with running(command, folder / "log"), httpx.Client(base_url=api, timeout=10) as client:
        ready = api.replace("/api/v1", "/-/ready")
        wait_for(lambda: client.get(ready).status_code == 200, 60, "Prometheus that is ready")
        wait_for(lambda: results(client, 'up{job="edgellm"} == 1'), 60, "scrape")
        server.used = [chat(server, 8)]  # once before the first scrape of its numbers, and once after
        wait_for(lambda: results(client, "edgellm_answers_total > 0"), 30, "answer in Prometheus")
        server.used.append(chat(server, 120))
        assert server.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        wait_for(lambda: results(client, "sum(edgellm_answers_total) > 1"), 30, "second answer in Prometheus")
        wait_for(lambda: results(client, 'edgellm_requests_total{status="401"} > 0'), 30, "refusal in Prometheus")
        wait_for(lambda: results(client, "count(edgellm_board_token_seconds) == 2"), 30, "boards' times in Prometheus")
        wait_for(lambda: results(client, "rate(edgellm_requests_total[1m])"), 30, "rates in Prometheus")
        yield client


def chat(server: httpx.Client, tokens: int) -> dict:
    """What an answer of at most so many tokens used."""
    answer = server.post("/v1/chat/completions", json={**CHAT, "max_tokens": tokens})
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]


def results(client: httpx.Client, query: str) -> list:
    """What Prometheus answers to a query."""
    answer = client.get("/query", params={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    return answer["data"]["result"]


def queries() -> list[tuple[str, str]]:
    """Every query of the dashboard, with its panel's title, as Grafana would ask it."""
    found = []
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$job", "edgellm")
            found.append((panel["title"], re.sub(r"\$(model|board)\b", ".*", query)))
    assert len(found) > 25 and not [query for _, query in found if "$" in query]
    return found


def test_every_query_of_the_dashboard_has_an_answer(prometheus, server):
    exported = set(re.findall(r"^# TYPE (\S+)", server.get("/metrics").text, re.M))
    empty = []
    for title, query in queries():
        for name in re.findall(r"\b(?:edgellm|process)_\w+", query):
            assert {name, re.sub(r"_(bucket|total)$", "", name)} & exported, f"{title}: nothing exports {name}"
        found = results(prometheus, query)
        if not found and not any(word in query for word in NOT_EVERYWHERE):
            empty.append((title, query))
    assert not empty


def test_the_numbers_are_those_of_the_answers(prometheus, server):
    def value(query: str) -> float:
        [only] = results(prometheus, query)
        return float(only["value"][1])

    cached = sum(used["prompt_tokens_details"]["cached_tokens"] for used in server.used)
    assert value('sum(edgellm_tokens_total{kind="cached"})') == cached > 0
    for kind in ("prompt", "completion"):
        used = sum(used[f"{kind}_tokens"] for used in server.used)
        assert value(f'sum(edgellm_tokens_total{{kind="{kind}", key="prometheus"}})') == used > 0
    assert value("sum(edgellm_first_token_seconds_count)") == 2
    assert value('sum(edgellm_answers_total{outcome=~"stop|length"})') == 2
    assert value("sum(edgellm_answers_running)") == value("sum(edgellm_answers_waiting)") == 0
    assert value("sum(edgellm_board_layers)") == 30 and value("sum(edgellm_board_up)") == 2


def test_the_dashboard_offers_models_and_boards_to_choose_from(prometheus):
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
            assert prometheus.get(f"/label/{label}/values", params={"match[]": metric}).json()["data"], variable["name"]


def test_promtool_finds_no_fault(prometheus, server):
    text = server.get("/metrics").text
    checked = ran(["promtool", "check", "metrics"], input=text)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_labels_are_few_whatever_clients_ask_for(prometheus, server):
    before = server.get("/metrics").text.count("\n")
    for i in range(50):
        server.get(f"/nothing-{i}/{i}")
    assert server.get("/metrics").text.count("\n") < before + 40
