"""The chat templates of a Hugging Face folder, from any of the files that may hold them."""

from pathlib import Path

from edgellm.checkpoint.json_file import read_json_if_there, read_text

_MOST = 64  # templates of one model


def chat_templates(folder: Path, tokenizer_config: dict) -> dict[str, str]:
    """Return a model's chat templates by name; the one that a plain chat takes is "default".

    As in transformers, files of their own count more than chat_template.json, and that one more than
    tokenizer_config.json.
    """
    found = _named(tokenizer_config.get("chat_template"))
    found |= _named(read_json_if_there(folder / "chat_template.json").get("chat_template"))
    if (folder / "chat_template.jinja").is_file():
        found["default"] = read_text(folder / "chat_template.jinja")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))[:_MOST]:
        found[path.stem] = read_text(path)
    if "default" not in found and len(found) == 1:
        found = {"default": next(iter(found.values()))}
    return found


def _named(value) -> dict[str, str]:
    """Return templates by name from a chat_template entry: a text, a list of named texts, or an object of them."""
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        pairs = [(t.get("name"), t.get("template")) for t in value[:_MOST] if isinstance(t, dict)]
    elif isinstance(value, dict):
        pairs = list(value.items())[:_MOST]
    else:
        return {}
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
