"""Models as Ollama describes them. Pure.

Every model has the tag "latest": clients add it to a name without a tag, and look for that.
"""

from typing import Any

from edgellm.server.models import Model
from edgellm.server.ollama_answer import timestamp
from edgellm.server.ollama_ask import DEFAULT_TAG
from edgellm.structure import POOLS

NEVER = "9999-12-31T23:59:59Z"  # when a model goes that stays
_THINKING = ("enable_thinking", "reasoning_content", "reasoning_effort", "<think>")  # what templates that know it say


def listed(model: Model) -> dict[str, Any]:
    """Return an entry of /api/tags."""
    return {
        **_named(model), "modified_at": timestamp(model.created_s), "size": model.size, "digest": model.digest,
        "details": _details(model),
    }  # fmt: skip


def running(model: Model, expires_s: float | None = None) -> dict[str, Any]:
    """Return an entry of /api/ps. `expires_s` is the time of day when the model goes, None if it stays. One that is
    being loaded has `loading`: bytes that boards have read, and of how many, as /api/pull tells it."""
    told = model.loading
    loading = {} if told is None else {"loading": {"completed": told.read_bytes, "total": told.total_bytes}}
    return {
        **_named(model), "size": model.size, "digest": model.digest, "details": _details(model),
        "expires_at": NEVER if expires_s is None else timestamp(expires_s), "size_vram": 0,
        "context_length": model.context, **loading,
    }  # fmt: skip


def shown(model: Model, template: str) -> dict[str, Any]:
    """Return the answer of /api/show. `template` is the model's chat template, "" for none."""
    family = model.family
    return {
        "modelfile": f"FROM {model.name}\n", "parameters": f"num_ctx {model.context}", "template": template,
        "details": _details(model), "modified_at": timestamp(model.created_s),
        "capabilities": capabilities(template, model.pooling),
        "model_info": {
            "general.architecture": family, "general.basename": model.name, "general.name": model.name,
            f"{family}.block_count": model.num_layers, f"{family}.context_length": model.context,
            f"{family}.embedding_length": model.hidden_size, f"{family}.vocab_size": model.vocab_size,
        },
    }  # fmt: skip


def capabilities(template: str, pooling: str = "") -> list[str]:
    """Return what a model can do that has this chat template, and whose authors `pooling` make embeddings of it."""
    result = ["completion"]
    if pooling in POOLS:
        result.append("embedding")
    if "tools" in template:
        result.append("tools")
    if any(word in template for word in _THINKING):
        result.append("thinking")
    return result


def _named(model: Model) -> dict[str, str]:
    name = model.name if ":" in model.name else f"{model.name}:{DEFAULT_TAG}"
    return {"name": name, "model": name}


def _details(model: Model) -> dict[str, Any]:
    return {
        "parent_model": "", "format": "edgellm", "family": model.family, "families": [model.family],
        "parameter_size": "", "quantization_level": model.quantization,
    }  # fmt: skip
