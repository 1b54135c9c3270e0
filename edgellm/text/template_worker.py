"""The process that renders a model's chat template, so that a hostile one can be stopped; imports no other module here.

A template comes with the model, from a stranger. Jinja's sandbox keeps it from Python's insides, but not from an
endless loop, from `9**9**9`, or from gigabytes of text, and no thread can be stopped in the middle of those. A process
can: the kernel ends it after its CPU seconds, and denies it memory. It reads one JSON object per line on stdin
(`template`, `values`, `cpu_s`, `memory_bytes`) and answers each with one on stdout: `text`, or `error` and `message`.
"""

import json
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

REFUSED = "refused"  # the template itself refuses the chat, by raise_exception
FAILED = "failed"  # it raises something else
TOO_LARGE = "too large"  # it needs more memory than it may have
_BYTES_A_CHARACTER = 40  # of the request: its JSON, its strings, and copies of them that an honest template makes


class _Refusal(jinja2.TemplateError):
    """What raise_exception raises."""


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}`, which marks what an assistant said; here it only renders its body."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


def make_environment() -> ImmutableSandboxedEnvironment:
    """Return an environment with what transformers' environment for chat templates offers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise _Refusal(str(message))


def answer(environment: ImmutableSandboxedEnvironment, request: dict[str, Any]) -> dict[str, str]:
    """Return the rendered text, or the kind of error. Never raises an Exception."""
    try:
        pieces, size = [], 0
        for piece in environment.from_string(request["template"]).generate(**request["values"]):
            pieces.append(piece)
            size += len(piece)
            if size > request["memory_bytes"]:  # where the kernel doesn't limit memory
                raise MemoryError
        return {"text": "".join(pieces)}
    except _Refusal as e:
        return {"error": REFUSED, "message": str(e)[:1000]}
    except MemoryError:
        return {"error": TOO_LARGE}
    except Exception as e:  # a template can raise anything that Python can
        try:
            message = f"{type(e).__name__}: {e}"
        except Exception:
            message = type(e).__name__
        return {"error": FAILED, "message": message[:1000]}


def main() -> None:
    """Answer requests until stdin ends."""
    environment = make_environment()
    try:
        import resource
    except ImportError:  # Windows
        resource = None  # type: ignore[assignment]
    if resource is not None:
        for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
            resource.setrlimit(limit, (0, resource.getrlimit(limit)[1]))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        limited = _limit_memory(resource, request["memory_bytes"] + _BYTES_A_CHARACTER * len(line))
        signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])  # without a handler, SIGPROF ends us
        reply = answer(environment, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if limited:
            resource.setrlimit(resource.RLIMIT_AS, limited)
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


def _limit_memory(resource: Any, more_bytes: int) -> tuple[int, int] | None:
    """Let this process grow by `more_bytes` at most; return the limits to restore, None where the system has no way."""
    try:
        with open("/proc/self/statm") as f:
            now_bytes = int(f.read().split()[0]) * resource.getpagesize()
        before: tuple[int, int] = resource.getrlimit(resource.RLIMIT_AS)
        most = now_bytes + more_bytes
        if before[1] != resource.RLIM_INFINITY:
            most = min(most, before[1])
        resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
        return before
    except (OSError, ValueError, AttributeError):
        return None


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the manager, which ends this process
    main()
