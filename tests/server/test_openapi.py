"""/openapi.json, made from the structs."""

import re

import msgspec
import pytest

from edgellm.server.openai_answers import ChatCompletion, Completion, Error, Models, ResponseObject
from tests.server.serving import user


def test_the_document_names_every_route_and_resolves(served):
    document = served.http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    routes = {r.path for r in served.app.routes} - {"/openapi.json"}
    assert {p for p in document["paths"] if p.startswith("/v1/")} <= {re.sub(r":\w+}", "}", r) for r in routes}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/embeddings", "/v1/responses"} <= set(
        document["paths"])  # fmt: skip
    text = msgspec.json.encode(document).decode()
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert names and names <= set(document["components"]["schemas"])
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "messages" in document["components"]["schemas"][body["$ref"].rpartition("/")[2]]["required"]


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/chat/completions", {"messages": user("Why?"), "logprobs": True, "n": 2}, ChatCompletion),
        ("/v1/chat/completions", {"messages": 1}, Error),
        ("/v1/completions", {"prompt": "Why?", "logprobs": 2}, Completion),
        ("/v1/responses", {"input": "Why?", "max_output_tokens": 5}, ResponseObject),
        ("/v1/models", None, Models),
    ],
)
def test_answers_are_what_the_document_says(served, path, body, kind):
    response = served.http.get(path) if body is None else served.post(path, {"max_tokens": 5, **body})
    told = msgspec.json.decode(response.content, type=kind)
    assert msgspec.to_builtins(told).keys() >= {"error"} if kind is Error else response.status_code == 200
