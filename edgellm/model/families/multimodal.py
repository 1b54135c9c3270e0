"""Models for text and images of which the text model alone is run: its config, and its tensors' names. Pure."""

from collections.abc import Mapping
from typing import Any

# model_type → that of its text model where text_config doesn't say it, and whether the head is tied where nothing does.
_TEXT = {
    "gemma3": ("gemma3_text", True), "gemma4": ("gemma4_text", True), "mistral3": ("mistral", True),
    "qwen3_5": ("qwen3_5_text", False), "qwen3_5_moe": ("qwen3_5_moe_text", False),
}  # fmt: skip
# How names begin, in checkpoints of today and of before, and what the text model has in place of that.
_RENAMED = (
    ("model.language_model.", "model."), ("language_model.model.", "model."), ("language_model.lm_head.", "lm_head."),
)  # fmt: skip
_OTHERS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.",
           "model.visual.", "visual.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio.")  # fmt: skip


def text_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the config of the text model in that of a model for images too; None if it is no such config."""
    model_type, text = config.get("model_type"), config.get("text_config")
    if not isinstance(model_type, str) or model_type not in _TEXT or not isinstance(text, dict):
        return None
    # What counts for the whole model is said beside text_config, in it, or is transformers' default for these models.
    outer = {name: config[name] for name in ("tie_word_embeddings", "eos_token_id") if config.get(name) is not None}
    text_type, tied = _TEXT[model_type]
    return {"model_type": text_type, "tie_word_embeddings": tied, **text, **outer}


def text_tensor(name: str) -> str | None:
    """Return what the text model calls a tensor of the whole one; None for a tensor that it doesn't have."""
    if name.startswith(_OTHERS):
        return None
    return next((new + name[len(old) :] for old, new in _RENAMED if name.startswith(old)), name)
