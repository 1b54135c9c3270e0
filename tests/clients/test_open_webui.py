"""What Open WebUI sends to a connection of either kind, one after the other, and what it reads of the replies."""

import json
from datetime import datetime

import httpx
import pytest

from tests.clients.asked import MODEL, WEATHER, user

FORWARDED = {"X-OpenWebUI-User-Name": "Ada", "X-OpenWebUI-User-Id": "1", "X-OpenWebUI-Chat-Id": "2"}


@pytest.fixture(scope="module")
def client(served):
    headers = {"Authorization": f"Bearer {served.key}", "Content-Type": "application/json", **FORWARDED}
    with httpx.Client(base_url=served.url, headers=headers, timeout=60) as client:
        yield client


def test_an_ollama_connection(client):
    assert client.get("/api/version").json()["version"]
    models = {model["model"]: model for model in client.get("/api/tags", timeout=10).json()["models"]}
    expires = {model["name"]: model["expires_at"] for model in client.get("/api/ps").json()["models"]}
    model = f"{MODEL}:latest"  # it adds the tag to a name without one, and looks for that
    assert models[model]["name"] in expires and datetime.fromisoformat(expires[model]).tzinfo is not None

    body = {"model": model, "messages": user("Hi"), "options": {"num_predict": 8}, "stream": True, "tools": [WEATHER]}
    with client.stream("POST", "/api/chat", content=json.dumps(body)) as reply:
        told = [json.loads(line) for line in reply.iter_lines()]
    assert told[-1]["done"] and told[-1]["eval_count"] == 8 and told[-1]["eval_duration"] > 0
    title = client.post("/api/chat", content=json.dumps({**body, "stream": False, "tools": None}))
    assert title.json()["message"]["content"]
    assert client.post("/api/generate", content=json.dumps({"model": model, "keep_alive": 0})).json()["done"]  # unload
    assert client.post("/api/chat", content=json.dumps({**body, "model": "gone"})).json()["error"]


def test_an_openai_connection(client):
    assert MODEL in [model["id"] for model in client.get("/v1/models", timeout=10).json()["data"]]
    body = {"model": MODEL, "messages": user("Hi"), "max_tokens": 8, "stream": True, "tools": [WEATHER],
            "stream_options": {"include_usage": True}}  # fmt: skip
    with client.stream("POST", "/v1/chat/completions", content=json.dumps(body)) as reply:
        assert "text/event-stream" in reply.headers["content-type"]
        data = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
    *chunks, last = data
    told = [json.loads(chunk) for chunk in chunks]
    assert last == "[DONE]" and told[-1]["usage"]["completion_tokens"] == 8 and told[-1]["choices"] == []
    for chunk in told[:-1]:
        assert None not in chunk["choices"][0]["delta"].values()
        assert all("index" in call for call in chunk["choices"][0]["delta"].get("tool_calls", ()))
    title = {"model": MODEL, "messages": user("Title?"), "stream": False, "max_completion_tokens": 8}
    assert client.post("/v1/chat/completions", content=json.dumps(title)).json()["choices"][0]["message"]["content"]
