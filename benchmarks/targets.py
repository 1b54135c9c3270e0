"""What edgellm has to reach beside llama.cpp, and what it did: rows, ratios, verdicts. Nothing is measured here."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.report import median, number, ratio


@dataclass(frozen=True)
class Target:
    """A row: what is measured of which model, and what it must reach. `times` is against the base, which is llama.cpp
    beside it, or edgellm itself in another way, and None in a row that is there to compare with; `share` is of what
    one core reads. `earlier` is what the base reached when the target was set, on another machine. `beside` is the
    model that edgellm is compared with where the base is edgellm with another model."""

    key: str
    title: str
    model: str
    measure: str  # decode, prefill, pipelined (a prefill too), streams, repeated, bytes, threads
    times: float | None
    share: float | None = None
    earlier: str = "–"
    beside: str = ""

    @property
    def own(self) -> bool:
        """Whether the base is edgellm itself."""
        return self.measure in ("repeated", "bytes", "threads")


TARGETS = (
    Target("phi3-int4", "Phi-3-mini shape, int4, 1 stream decode", "phi3-int4", "decode", 3.0, 0.85, "1.87"),
    Target("phi3-int8", "Phi-3-mini shape, int8, 1 stream decode", "phi3-int8", "decode", 1.5, 0.90, "2.25"),
    Target("1b-int4", "Llama-3.2-1B shape, int4, 1 stream decode", "1b-int4", "decode", 2.2, 0.80, "5.8–7.0"),
    Target("smollm2", "SmolLM2-135M real, 1 stream decode", "smollm2", "decode", 2.8, None, "52.8"),
    Target("phi3-prefill", "Phi-3-mini shape, int4, prefill of 512 tokens", "phi3-int4", "prefill", 6.0, None, "11.5"),
    Target("phi3-pipelined", "the same, llama.cpp in micro-batches of 64", "phi3-int4", "pipelined", None),
    Target("1b-streams", "Llama-3.2-1B shape, int4, 4 streams together", "1b-int4", "streams", 4.0, None, "13.6"),
    Target("repeated", "repeated text, SmolLM2, against no speculation", "smollm2", "repeated", 1.5),
)

# Two workers with a core each, beside llama.cpp over RPC in its best micro-batch.
PIPELINE = (
    Target("qwen3-30b-decode", "Qwen3-30B-A3B shape, 12 layers, int4s, decode", "qwen3-30b", "decode", 2.2, 0.75),
    Target("qwen3-30b-prefill", "the same, prefill of 512", "qwen3-30b", "prefill", 3.0),
    Target("gpt-oss-20b-decode", "gpt-oss-20b shape, 8 layers, MXFP4, decode", "gpt-oss-20b", "decode", 2.0, 0.70),
    Target("qwen3.5-4b-decode", "Qwen3.5-4B shape, Q4_K_M, decode", "qwen3.5-4b", "decode", 2.0, 0.75),
    Target("qwen3.5-4b-prefill", "the same, prefill of 512", "qwen3.5-4b", "prefill", 2.5),
    Target("gemma3-1b-decode", "Gemma-3-1B shape, Q4_K_M, decode", "gemma3-1b", "decode", 2.0, 0.75),
    Target("lfm2-8b-decode", "LFM2-8B-A1B shape, 12 layers, Q4_0, decode", "lfm2-8b", "decode", 2.0, 0.70),
    Target("phi3-q4_k-bytes", "Phi-3-mini shape, Q4_K_M against int4, per byte", "phi3-q4_k", "bytes", 0.9,
           beside="phi3-int4"),
)  # fmt: skip
# One board: two threads each, and llama.cpp without a network.
BOARD = tuple(
    Target(f"{model}-{measure}", f"{title}, {measure}{' of 128' * (measure == 'prefill')}", model, measure, times)
    for model, title, decode, prefill in (
        ("phi3-int4", "Phi-3-mini shape, Q4_0", 1.05, 2.0),
        ("phi3-q4_k", "Phi-3-mini shape, Q4_K_M", 1.05, 2.0),
        ("1b-int4", "Llama-3.2-1B shape, Q4_0", 1.1, 2.0),
        ("1b-q4_k", "Llama-3.2-1B shape, Q4_K_M", 1.1, 2.0),
        ("qwen3-0.6b", "Qwen3-0.6B shape, Q4_K_M", 1.3, 3.0),
        ("smollm2", "SmolLM2-135M real, Q4_1", 2.0, 3.0),
        ("qwen3-30b-q4_k", "Qwen3-30B-A3B shape, 12 layers, Q4_K_M", 1.1, 2.0),
    )
    for measure, times in (("decode", decode), ("prefill", prefill))
) + (Target("smollm2-threads", "SmolLM2, two threads against one, decode", "smollm2", "threads", 1.25),)


@dataclass(frozen=True)
class Run:
    """One run of a row, in tokens a second, with what one core read in bytes a second at the same time. `same` is for
    repeated text: whether the tokens were those without speculation. `reason` says why a run has no figures."""

    ours: float | None = None
    base: float | None = None
    read: float | None = None
    same: bool | None = None
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """A row as it came out: medians over its runs, ratios taken within each run first. `reason` says why a figure is
    missing."""

    target: Target
    ours: float | None
    base: float | None
    times: float | None
    share: float | None
    base_share: float | None
    same: bool | None
    reason: str = ""
    paths: tuple[str, ...] = ()
    runs: tuple[Run, ...] = field(default=(), repr=False)

    @property
    def ok(self) -> bool | None:
        """Whether all that is asked is reached; None if something of it wasn't measured."""
        wanted = [(self.times, self.target.times), (self.share, self.target.share)]
        if self.target.measure == "repeated" and self.same is False:
            return False
        checks = [None if value is None else value >= limit for value, limit in wanted if limit is not None]
        return False if False in checks else None if None in checks else True

    @property
    def verdict(self) -> str:
        if self.target.times is None and self.times is not None:
            return ""  # only to compare
        if self.ok is None or self.times is None:
            return self.reason or "not measured"
        if self.same is False:
            return "falls short: other tokens"
        return "reached" if self.ok else "falls short"


def make_result(
    target: Target, runs: Iterable[Run], bytes_a_token: tuple[int, int], paths: Iterable[str] = ()
) -> Result:
    """A row's medians. `bytes_a_token` are the weights' bytes that decoding a token reads: (edgellm's, the base's).

    A stream's share of the memory is only what it reads for every token, so it is there for decode alone.
    """
    runs = tuple(runs)
    shares: list[tuple[float | None, float | None]] = [(None, None)]
    if target.measure == "decode":
        shares = [tuple(_times(side, r.read, b) for side, b in zip((r.ours, r.base), bytes_a_token, strict=True))
                  for r in runs]  # fmt: skip
    same = [r.same for r in runs if r.same is not None]
    return Result(
        target, median(r.ours for r in runs), median(r.base for r in runs), median(ratio(r.ours, r.base) for r in runs),
        median(s[0] for s in shares), median(s[1] for s in shares), all(same) if same else None,
        next((r.reason for r in runs if r.reason), ""), tuple(sorted(paths)), runs,
    )  # fmt: skip


def _times(tokens_per_s: float | None, read: float | None, bytes_a_token: int) -> float | None:
    return ratio(tokens_per_s * bytes_a_token, read) if tokens_per_s is not None else None


COLUMNS = (
    "", "llama.cpp RPC, tok/s", "when the target was set", "edgellm, tok/s", "times", "to reach", "of one core's reads",
    "to reach", "llama.cpp's share", "",
)  # fmt: skip


def cells(result: Result) -> tuple[str, ...]:
    """A row of the table, as text."""
    target = result.target
    base = number(result.base)
    return (
        target.title, f"{base} (own)" if target.own and result.base else base, target.earlier,
        number(result.ours), number(result.times), f"≥ {number(target.times)}" if target.times else "",
        percent(result.share), f"≥ {percent(target.share)}" if target.share else "", percent(result.base_share),
        result.verdict,
    )  # fmt: skip


def percent(share: float | None) -> str:
    """87 %, or nothing."""
    return "" if share is None else f"{share * 100:.0f} %"


def markdown(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    lines = [tuple(columns), *(tuple(r) for r in rows)]
    widths = [max(1, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    text = ["| " + " | ".join(f"{c:{w}}" for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)
