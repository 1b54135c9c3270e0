"""What the next token of an answer may be, on the last board, where the answer must match a constraint."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.errors import BusyError, ManifestError, ModelError, UsageError
from edgellm.model.protocols import Array
from edgellm.shards.manifest import Manifest
from edgellm.shards.mapped import map_checked
from edgellm.structure import Constraint
from edgellm.text.grammars import MEMORY_BYTES, GrammarProcess, Reply, WorkerEnded, refusal, too_much

WAIT_S = 15.0  # for an answer of the process, behind those to others; less than until a step counts as lost
_THREADS = 8  # that wait for the process
_TRIES = 3
_IDLE_S = 300.0  # without a constraint, after which the process and its memory are given back
_MAX_TOKENIZER_BYTES = 64 << 20
# What the process needs before it was measured: a vocabulary of 49k tokens took 68 MB, one of 262k 352 MB. It has the
# tokenizer's file in several forms at once while it reads it.
_PROCESS_BYTES, _TOKEN_BYTES, _COPIES = 20 << 20, 1260, 3
_LEAST_BYTES = 32 << 20  # for grammars
_FILE = "tokenizer.json"
_AGAIN = "the process that follows constraints ends again and again"


class Grammars:
    """Compiles and follows the constraints of one model's answers; `folder` has its files. Its process starts with the
    first constraint, if `spare_bytes()` of RAM are enough for it; None: they always are. `ready` and `send` wait, so
    they aren't for an event loop."""

    def __init__(self, manifest: Manifest, folder: Path, spare_bytes: Callable[[], int] | None = None):
        self._manifest, self._folder, self.spare_bytes = manifest, folder, spare_bytes
        file_bytes = sum(f.bytes for f in manifest.files if f.name == _FILE)
        # Until it is measured:
        self.need_bytes = _PROCESS_BYTES + _TOKEN_BYTES * manifest.vocab_size + _COPIES * file_bytes
        self._process = GrammarProcess()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="constraint")
        self._loading = threading.Lock()
        self._reader: object = None  # the process that reads the tokenizer, or has read it
        self._reading: Future[Reply] | None = None
        self._numbers = itertools.count()
        self._open: set[int] = set()
        self._used_s = 0.0

    def match(self, constraint: Constraint, eos: Collection[int], vocab_size: int) -> "Matching":
        """Return how an answer follows `constraint`; one of the tokens `eos` ends it."""
        number = next(self._numbers)
        self._open.add(number)
        return Matching(self, number, constraint, eos, vocab_size)

    def submit(self, work: Callable[..., None], *args: object) -> None:
        """Have a thread that may wait for the process do some work, which raises nothing."""
        with contextlib.suppress(RuntimeError):  # closed: the agent ends
            self._threads.submit(work, *args)

    def forget(self, number: int) -> None:
        """Forget an answer. Doesn't wait."""
        self._open.discard(number)
        self._used_s = time.monotonic()
        self._process.forget(number)

    def sweep(self, now_s: float) -> None:
        """End the process if nothing has needed it for some minutes; `now_s` is time.monotonic(). Call it now and
        then."""
        if not self._open and self._process.running is not None and now_s - self._used_s > _IDLE_S:
            self._process.close()

    @property
    def growing_bytes(self) -> int:
        """The RAM that the process is about to take, because it reads the tokenizer."""
        reading = self._reading
        return self.need_bytes if reading is not None and not reading.done() else 0

    def close(self) -> None:
        """End the process, and fail whatever waits for it."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._process.close()

    # For Matching

    @property
    def running(self) -> object:
        """The process that runs. Another one knows nothing of what this one was told."""
        return self._process.running

    @property
    def memory_bytes(self) -> int:
        """What the process has for grammars."""
        return self._process.memory_bytes

    def ready(self, eos: int) -> object:
        """Return the process, started and with the tokenizer. Raises BusyError while it reads a large one, or if there
        isn't enough RAM for it, ManifestError or ModelError if that can't be."""
        with self._loading:
            process = self._process.running or self._process.start(self._bytes_for_grammars())
            if process is not self._reader:
                manifest = self._manifest
                text, size = _read_tokenizer(manifest, self._folder), manifest.vocab_size
                eos = next((i for i in manifest.eos_token_ids if i < size), eos)
                request = {"op": "tokenizer", "text": text, "vocab_size": size, "eos": eos}
                self._reading, self._reader = self._process.send(request), process
            reading = self._reading
        assert reading is not None
        try:
            reply = reading.result(WAIT_S)
        except TimeoutError:
            raise BusyError("it still reads the model's tokenizer, for constraints. Ask again in a moment.") from None
        except WorkerEnded:
            raise ModelError(f"{self._manifest.model}: its tokenizer can't be read for constraints") from None
        if "error" in reply.fields:
            raise ModelError(f"{self._manifest.model} takes no constraints: {reply.fields['error']}")
        self.need_bytes = reply.fields.get("peak_bytes") or self.need_bytes
        return process

    def _bytes_for_grammars(self) -> int:
        """Return how much RAM a process may take for grammars, beside the tokenizer. Raises BusyError for too little.
        """
        spare = MEMORY_BYTES + self.need_bytes if self.spare_bytes is None else self.spare_bytes()
        if spare < self.need_bytes + _LEAST_BYTES:
            raise BusyError(
                f"{spare >> 20} MB of RAM are left beside the plan, and constraints of {self._manifest.model} take "
                f"{(self.need_bytes + _LEAST_BYTES) >> 20} MB. Plan with a smaller context or fewer slots."
            )
        return min(MEMORY_BYTES, spare - self.need_bytes)

    def send(self, request: dict[str, Any]) -> "Future[Reply]":
        """Send a request to the process, if it runs."""
        return self._process.send(request)

    def restart(self) -> None:
        """End a process that doesn't answer."""
        self._process.close()


class Matching:
    """One answer and its constraint: which token is forced, and which ones may come next.

    For each choice: `follow`, `forced`, `allowed`, `append`. The mask of the next token is computed ahead, while other
    boards work. If the process ends because of another answer, this one goes on in the next process. Hold `lock` in
    the meantime, in a thread that may wait.
    """

    def __init__(self, grammars: Grammars, number: int, constraint: Constraint, eos: Collection[int], vocab_size: int):
        self.lock = threading.Lock()
        self._grammars, self._number, self._constraint = grammars, number, constraint
        self._eos, self._vocab_size = sorted(i for i in eos if 0 <= i < vocab_size), vocab_size
        self._process: object = None  # the one that knows this answer
        self._text: list[int] = []  # the answer
        self._forced: list[int] = []  # what is forced behind it, as the process knows already
        self.ended = False  # by one of `eos`
        self._complete = self._closed = False
        self._mask: Future[Reply] | None = None  # behind what is forced

    def close(self) -> None:
        """Forget it, from any thread. Doesn't wait."""
        self._closed = True
        self._grammars.forget(self._number)

    def follow(self, text: Sequence[int], start: int, end: int) -> None:
        """Have the answer be text[start:end].

        Raises UsageError for a constraint that can't be compiled, or an answer that doesn't match it, ManifestError
        without the tokenizer's file, ModelError if the process can't be used.
        """
        wanted, known, self.ended = list(text[start:end]), [*self._text, *self._forced], False
        if self._process is not None and len(self._text) <= len(wanted) and wanted == known[: len(wanted)]:
            self._text, self._forced = wanted, known[len(wanted) :]
        else:
            self._learn(wanted)

    def forced(self) -> int | None:
        """Return the token that must come next, if it is only one: the answer's end, too."""
        if self._forced:
            return self._forced[0]
        return self._eos[0] if self._complete else None

    def append(self, token: int) -> None:
        """Have the answer be one token longer. Raises UsageError if it doesn't match the constraint then."""
        if self._forced and self._forced[0] == token:
            self._text.append(self._forced.pop(0))
        elif token in self._eos:
            self.ended = True
        else:
            self._learn([*self._text, token])

    def allowed(self) -> Array:
        """Return whether each token may come next, bool [vocab_size], where none is forced. Raises UsageError for a
        constraint that takes too much to tell."""
        reply = self._reply_to_mask()
        allowed = np.unpackbits(np.frombuffer(reply.mask, np.uint8), bitorder="little").view(np.bool_)
        if len(allowed) < self._vocab_size:
            allowed = np.concatenate([allowed, np.zeros(self._vocab_size - len(allowed), np.bool_)])
        allowed = allowed[: self._vocab_size]
        allowed[self._eos] = reply.fields["accepting"]
        return allowed

    # Inside

    def _reply_to_mask(self) -> Reply:
        for _ in range(_TRIES):
            if self._mask is None:
                self._learn(self._text)
            assert self._mask is not None
            try:
                reply = self._mask.result(WAIT_S)
            except (WorkerEnded, TimeoutError) as e:
                self._ended(e)
                continue
            if "error" in reply.fields:
                raise self._unmatched(reply)
            return reply
        raise ModelError(_AGAIN)

    def _learn(self, text: list[int]) -> None:
        """Have the process know that `text` is the answer, and learn what is forced behind it."""
        known = [*self._text, *self._forced]
        self._mask = None
        for _ in range(_TRIES):
            if self._closed:
                raise ModelError("the answer has been closed")
            try:
                if self._process is None or self._process is not self._grammars.running:
                    self._compile()
                    known = []
                if known and text[: len(known)] == known:
                    self._advance("add", text, text[len(known) :])
                else:
                    self._advance("set", text, text)
                return
            except (WorkerEnded, TimeoutError) as e:
                self._ended(e)
        raise ModelError(_AGAIN)

    def _ended(self, error: WorkerEnded | TimeoutError) -> None:
        """Prepare to go on in another process. Raises UsageError if it is due to this constraint."""
        self._process = self._mask = None
        if isinstance(error, TimeoutError):
            self._grammars.restart()
        if not isinstance(error, WorkerEnded) or error.culprit:
            raise too_much(self._constraint, self._grammars.memory_bytes) from None

    def _compile(self) -> None:
        process = self._grammars.ready(self._eos[0])
        opening = {"op": "open", "id": self._number, **self._constraint.to_wire()}
        reply = self._grammars.send(opening).result(WAIT_S)
        if "error" in reply.fields:
            raise refusal(self._constraint, reply.fields["error"])
        self._process = process

    def _advance(self, op: str, text: list[int], ids: list[int]) -> None:
        forced: list[int] = []
        while True:
            reply = self._grammars.send({"op": op, "id": self._number, "ids": ids}).result(WAIT_S)
            if "error" in reply.fields:
                raise self._unmatched(reply)
            forced += reply.fields["forced"]
            if not reply.fields["more"]:
                break
            op, ids = "add", []
        self._text, self._forced, self._complete = list(text), forced, reply.fields["complete"]
        if not self._complete:
            self._mask = self._grammars.send({"op": "mask", "id": self._number})

    def _unmatched(self, reply: Reply) -> UsageError:
        self._process = None
        reason = " ".join(str(reply.fields["error"]).replace("<non-verbose/>", "").split())[:200].rstrip(".")
        return UsageError(f"the answer can't go on by its constraint ({self._constraint.kind}): {reason}")


def _read_tokenizer(manifest: Manifest, folder: Path) -> str:
    entry = next((f for f in manifest.files if f.name == _FILE), None)
    if entry is None:
        raise UsageError(f"{manifest.model} was split without a tokenizer.json, which a constraint needs")
    path = folder / entry.name
    if not path.is_file():
        raise ManifestError(f"{path} is missing, which a constraint needs. Deploy again.")
    if entry.bytes > _MAX_TOKENIZER_BYTES:
        raise ManifestError(f"{path}: {entry.bytes} bytes, a constraint takes at most {_MAX_TOKENIZER_BYTES}")
    try:
        return bytes(map_checked(path, entry, True)[:]).decode()
    except UnicodeDecodeError as e:
        raise ManifestError(f"{path}: {e}") from None
