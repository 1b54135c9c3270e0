"""A model's chat template, rendered with limits on time and memory in a process of its own."""

import json
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from edgellm.errors import ManifestError, UsageError
from edgellm.text.json_file import read_json, read_text

CPU_S = 2.0  # computing, so that a busy machine changes nothing
MEMORY_BYTES = 64 << 20  # beyond what the chat itself takes
_WALL_S = 60.0  # should the kernel's clock not end it
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_WORKER = Path(__file__).with_name("template_worker.py")


class ChatTemplate:
    """The template of a model. Its process starts with `start`, or with the first chat, and ends with this object.

    A process costs a question about 60 ms, which pass while the tokenizer is loaded, and then a fraction of a
    millisecond a chat. In exchange nothing that a template does can hang or crash the manager, whichever thread asks.
    """

    def __init__(self, source: str, where: str = "the model"):
        """`where` names the template's origin in errors."""
        self.source = source
        self._where = where
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    def start(self) -> None:
        """Start the process, unless it runs. Raises OSError if none can be started."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
        )  # fmt: skip
        self._end = weakref.finalize(self, _end_process, self._process)

    def close(self) -> None:
        """End the process, if there is one."""
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def render(self, values: dict[str, Any]) -> str:
        """Return the text of a chat; `values` are the template's variables, of what JSON has.

        Raises UsageError if the template refuses the chat, ManifestError if it fails, or exceeds CPU_S or MEMORY_BYTES.
        """
        request = {"template": self.source, "values": values, "cpu_s": CPU_S, "memory_bytes": MEMORY_BYTES}
        with self._lock:
            reply = self._ask(json.dumps(request).encode() + b"\n")
        if "text" in reply:
            return str(reply["text"])
        reason = " ".join(str(reply.get("message", "")).split())[:300].rstrip(".")
        if reply["error"] == "refused":
            raise UsageError(
                f"the model's chat template refuses this prompt: {reason}. Try it without --system or with --raw."
            )
        if reply["error"] == "too large":
            reason = f"it needs more than {MEMORY_BYTES >> 20} MB"
        raise ManifestError(f"the chat template of {self._where} fails: {reason}. Mend it, or ask with --raw.")

    def _ask(self, request: bytes) -> dict[str, Any]:
        self.start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            _write(process.stdin, request)
            line = _read_line(process.stdout, time.monotonic() + _WALL_S)
        except BrokenPipeError:
            line = b""
        except BaseException:  # half an exchange: the next answer would be this chat's
            self.close()
            raise
        if line:
            reply: dict[str, Any] = json.loads(line)
            return reply
        ended_in_time = process.poll() is not None or _wait(process)
        code = process.returncode
        self.close()
        if not ended_in_time or code in (-signal.SIGPROF, -signal.SIGXCPU):
            return {"error": "failed", "message": f"it doesn't end within {CPU_S:g} s"}
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return {"error": "failed", "message": f"the process that renders it ended ({how})"}


def find_template(folder: Path) -> str | None:
    """Return the chat template in a split's folder, None if there is none; raises ManifestError for broken files."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def named_tokens(tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """Return the tokens that templates know by name, bos_token and its kin, from a tokenizer_config.json."""
    extra = tokenizer_config.get("extra_special_tokens")
    named = dict(extra) if isinstance(extra, dict) else {}
    named |= {name: tokenizer_config[name] for name in _NAMED if name in tokenizer_config}
    texts = {name: t.get("content") if isinstance(t, dict) else t for name, t in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def check_template(folder: Path, where: str) -> str | None:
    """Return why the chat template in a split's folder fails for every prompt; None if it works or there is none.

    `where` names its origin. A template that refuses a chat without a system prompt, or one with it, works.
    """
    question = {"role": "user", "content": "Why is the sky blue?"}
    reason = None
    try:
        source = find_template(folder)
        if source is None:
            return None
        template = ChatTemplate(source, where)
        values: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": True}
        values |= named_tokens(read_json(folder / "tokenizer_config.json"))
        for messages in ([question], [{"role": "system", "content": "Be brief."}, question]):
            try:
                template.render({**values, "messages": messages})
                return None
            except UsageError as e:
                reason = str(e)
    except ManifestError as e:
        reason = str(e)
    return reason


def _write(pipe: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[pipe.write(view) :]


def _read_line(pipe: Any, deadline: float) -> bytes:
    """Return a line, empty if the pipe ends before its end, or at the deadline (of time.monotonic)."""
    pieces: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not (pieces and pieces[-1].endswith(b"\n")):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return b""
            piece = pipe.read(1 << 20)
            if not piece:
                return b""
            pieces.append(piece)
    return b"".join(pieces)


def _wait(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(1.0)  # it has closed its stdout: it is ending
    except subprocess.TimeoutExpired:
        return False
    return True


def _end_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
