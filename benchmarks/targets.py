"""What edgellm has to reach beside llama.cpp, and what it did: rows, ratios, verdicts. Nothing is measured here."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.report import median, number, ratio


@dataclass(frozen=True)
class Target:
    """A row: what is measured of which model, and what it must reach. `times` is against the base, which is llama.cpp
    over RPC, or edgellm itself without speculation, and None in a row that is there to compare with; `share` is of what
    one core reads. `earlier` is what the base reached when the target was set, on another machine."""

    key: str
    title: str
    model: str
    measure: str  # decode, prefill, pipelined (a prefill too), streams, repeated
    times: float | None
    share: float | None = None
    earlier: str = "–"


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
    shares = [(None, None)]
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
        target.title, f"{base} (own)" if target.measure == "repeated" and result.base else base, target.earlier,
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
