"""The process that runs llguidance, so that a hostile schema can be stopped; see grammars.py, which starts it.

Some schemas make a compiler take gigabytes or hours, and reading a large tokenizer holds up every thread of a process
for seconds. Here the kernel ends what takes too much. Requests come on stdin, one JSON object a line, and are answered
in order on stdout: a line of JSON, in which `mask_bytes` says how many bytes of a mask follow. `op` is one of

- `tokenizer`: `text` (a tokenizer.json), `vocab_size`, `eos`; answered with `peak_bytes`, the RAM that it took
- `check`: whether a grammar compiles (`kind`, `source`)
- `open`: compile one for the answer `id`
- `set`: its answer is `ids` from the start · `add`: it goes on with `ids`. Both are answered with the tokens that are
  `forced` next, which count as part of the answer then
- `mask`: which tokens may come next

Any of them may have a list of ids to `forget` first.
"""

import contextlib
import json
import signal
import sys
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_MAX_FORCED = 64  # at once; the rest with the next request
# Python's own separators, which models know. Free white space would let a small model write it for ever, and would
# leave few tokens that are forced.
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_LIMITS = LLParserLimits(
    max_items_in_row=2000, initial_lexer_fuel=1_000_000, step_lexer_fuel=200_000, step_max_items=50_000,
    max_lexer_states=50_000, max_grammar_size=200_000, verbose_errors=False,
)  # fmt: skip


class Refusal(Exception):
    """A grammar, or an answer, that can't be."""


def grammar_of(kind: str, source: str) -> str:
    """Return a constraint as llguidance takes it."""
    if kind == "lark":
        return LLMatcher.grammar_from_lark(source)
    if kind == "regex":
        return LLMatcher.grammar_from_regex(source)
    try:
        schema = json.loads(source) if kind == "json_schema" else {"type": "object"}
    except (ValueError, RecursionError) as e:
        raise Refusal(str(e)) from None
    if not isinstance(schema, dict):
        raise Refusal("it must be an object")
    return LLMatcher.grammar_from_json_schema(schema, defaults=_JSON)  # type: ignore[arg-type]


class Worker:
    """The tokenizer, and a matcher for each answer."""

    def __init__(self) -> None:
        self._tokenizer: LLTokenizer | None = None
        self._matchers: dict[int, LLMatcher] = {}

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Return what a request is answered with, and a mask or nothing. Raises Refusal."""
        for number in request.get("forget", ()):
            self._matchers.pop(number, None)
        match request["op"]:
            case "tokenizer":
                size, eos = request["vocab_size"], request["eos"]
                try:
                    self._tokenizer = LLTokenizer(request["text"], n_vocab=size, eos_token=eos)
                except ValueError as e:
                    raise Refusal(str(e)) from None
                return {"peak_bytes": _peak_bytes()}, b""
            case "check":
                grammar = grammar_of(request["kind"], request["source"])
                if error := LLMatcher.validate_grammar(grammar, None, limits=_LIMITS):
                    raise Refusal(error)
            case "open":
                assert self._tokenizer is not None
                grammar = grammar_of(request["kind"], request["source"])
                matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
                if matcher.is_error():
                    raise Refusal(matcher.get_error())
                self._matchers[request["id"]] = matcher
            case "set" | "add":
                matcher = self._matchers[request["id"]]
                if request["op"] == "set":
                    matcher.reset()
                return _advance(matcher, request["ids"]), b""
            case "mask":
                matcher = self._matchers[request["id"]]
                mask = matcher.compute_bitmask()
                if matcher.is_error():
                    raise Refusal(matcher.get_error())
                return {"accepting": matcher.is_accepting(), "mask_bytes": len(mask)}, mask
        return {}, b""


def _advance(matcher: LLMatcher, ids: list[int]) -> dict[str, Any]:
    """Have the answer go on with `ids` and with what is forced then.

    One forced token is taken at a time, so that each depends on nothing but the tokens before it: a replay, which
    begins anywhere among them, comes to the same ones.
    """
    for count, token in enumerate(ids):
        if matcher.try_consume_tokens([token]) != 1:
            raise Refusal(matcher.get_error() or f"token {token}, number {count} of the answer, doesn't match it")
    forced: list[int] = []
    while len(forced) < _MAX_FORCED and not matcher.is_stopped() and (next_ids := matcher.compute_ff_tokens()):
        if not matcher.consume_token(next_ids[0]):
            raise Refusal(matcher.get_error())
        forced.append(next_ids[0])
    if matcher.is_error():
        raise Refusal(matcher.get_error())
    return {"forced": forced, "more": len(forced) == _MAX_FORCED, "complete": matcher.is_stopped()}


def main(cpu_s: float, memory_bytes: int) -> None:
    """Answer requests until stdin ends, each within `cpu_s`, all with `memory_bytes` beside the tokenizer."""
    try:
        import resource
    except ImportError:  # Windows
        resource = None  # type: ignore[assignment]
    if resource is not None:
        for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
            resource.setrlimit(limit, (0, resource.getrlimit(limit)[1]))
        _limit_memory(resource, memory_bytes)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as f:
        f.write("1000")  # if memory gets short, this process is the one to end
    worker = Worker()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        reading = request["op"] == "tokenizer"
        if resource is not None and reading:
            _limit_memory(resource, None)
        signal.setitimer(signal.ITIMER_PROF, 120.0 if reading else cpu_s)  # without a handler, SIGPROF ends us
        mask = b""
        try:
            reply, mask = worker.answer(request)
        except Refusal as e:
            reply = {"error": str(e)}
        except Exception as e:  # of the library
            reply = {"error": f"{type(e).__name__}: {e}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        if resource is not None and reading:
            _limit_memory(resource, memory_bytes)
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n" + mask)
        sys.stdout.buffer.flush()


def _peak_bytes() -> int | None:
    """Return the most RAM that this process has had; None if the system doesn't tell. (What getrusage tells may be of
    the process that started this one.)"""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status") as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return None


def _limit_memory(resource: Any, more_bytes: int | None) -> None:
    """Let this process grow by `more_bytes` at most, where the system has a way; None: as far as it may."""
    try:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = hard
        if more_bytes is not None:
            with open("/proc/self/statm") as f:
                most = int(f.read().split()[0]) * resource.getpagesize() + more_bytes
        if hard != resource.RLIM_INFINITY and (most == resource.RLIM_INFINITY or most > hard):
            most = hard
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    except (OSError, ValueError, AttributeError):
        pass


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this process, and ends it
    main(float(sys.argv[1]), int(sys.argv[2]))
