"""Text to token ids and back: the tokenizers library, the model's chat template, stop strings. No torch."""

import json
from datetime import datetime
from pathlib import Path

import tokenizers
from tokenizers.decoders import DecodeStream

from edgellm.errors import ClusterError, ManifestError, UsageError


class Tokenizer:
    """The tokenizer of a split model, from `tokenizer.json` and `tokenizer_config.json` in its folder."""

    def __init__(self, folder: Path):
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ClusterError(f"{path} is missing: the model was split without one. Split a source that has one.")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as e:  # the library raises plain Exception for whatever it can't parse
            raise ManifestError(f"{path}: {e}") from None
        self._tokenizer.no_truncation()  # what training left there; splits made by 0.1 still have it
        self._tokenizer.no_padding()
        self._config = _read_json(folder / "tokenizer_config.json")
        self._template = self._find_template(folder)

    @property
    def has_template(self) -> bool:
        """True if the model says how a chat is to be written."""
        return self._template is not None

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain text, with what the model puts around every text (a BOS token, if any)."""
        return self._tokenizer.encode(text).ids

    def encode_chat(self, prompt: str, system: str | None) -> list[int]:
        """Token ids of a chat with one question. Raises UsageError if the template refuses, as for a system prompt
        that the model doesn't know."""
        import jinja2
        import jinja2.sandbox

        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": prompt})
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            text = environment.from_string(self._template).render(
                messages=messages, add_generation_prompt=True, tools=None, documents=None, **self._special_tokens()
            )
        except jinja2.TemplateError as e:
            reason = f"the model's chat template refuses this prompt: {e}"
            raise UsageError(f"{reason}. Try it without --system or with --raw.") from None
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decoder(self) -> "TextStream":
        """A new stream from token ids to text."""
        return TextStream(self._tokenizer)

    def _special_tokens(self) -> dict[str, str]:
        tokens = {}
        for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
            value = self._config.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                tokens[name] = value
        return tokens

    def _find_template(self, folder: Path) -> str | None:
        path = folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text()
        template = self._config.get("chat_template")
        if isinstance(template, list):  # several named ones
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default")
        return template if isinstance(template, str) else None


class TextStream:
    """Token ids in, text out, as soon as it is whole: half a UTF-8 character waits for its other half."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def feed(self, token: int) -> str:
        """The text that this token completes, often a word, sometimes nothing."""
        return self._stream.step(self._tokenizer, token) or ""


class StopStrings:
    """Ends a text before the first of some strings, and holds back what may be the beginning of one."""

    def __init__(self, strings: tuple[str, ...] = ()):
        self._strings = tuple(s for s in strings if s)
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """What may be shown now."""
        if self.found or not self._strings:
            return "" if self.found else text
        self._held += text
        starts = [i for s in self._strings if (i := self._held.find(s)) >= 0]
        if starts:
            self.found = True
            shown, self._held = self._held[: min(starts)], ""
            return shown
        keep = max(self._overlap(s) for s in self._strings)
        split = len(self._held) - keep
        shown, self._held = self._held[:split], self._held[split:]
        return shown

    def flush(self) -> str:
        """The text has ended: what was held back was no stop string."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, string: str) -> int:
        """Length of the longest end of the held text that begins `string`."""
        longest = min(len(string) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(string[:n])), 0)


def _raise(message: str):
    import jinja2

    raise jinja2.TemplateError(message)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise ManifestError(f"{path}: {e}") from None
    return content if isinstance(content, dict) else {}
