"""What schemathesis changes in the requests that it makes up: most name our model, and ask for one token."""

import schemathesis

from tests.clients.asked import MODEL

MOST = 1  # tokens of an answer
_LIMITS = {"/v1/responses": "max_output_tokens", "/api/chat": "num_predict", "/api/generate": "num_predict"}


@schemathesis.hook
def before_call(context, case, kwargs):
    """Change a request where it would be right, and leave it as it is where it is wrong."""
    body = case.body
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str) and len(body["model"]) % 4:
        body["model"] = MODEL
    limit = _LIMITS.get(case.operation.path, "max_tokens")
    given = body.setdefault("options", {}) if limit == "num_predict" else body
    if isinstance(given, dict) and (given.get(limit) is None or _is_large(given[limit])):
        given[limit] = MOST
    if _is_large(body.get("max_completion_tokens")):
        body["max_completion_tokens"] = MOST


def _is_large(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > MOST
