"""Comparing a cluster with one process: tokens, logits, and every layer's output."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgellm.errors import ClusterError, UsageError
from edgellm.manager.client import ClusterClient
from edgellm.manager.survey import Fleet, standing_plan
from edgellm.plan import Plan
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from edgellm.text.tokenizer import Tokenizer
from edgellm.wire.credentials import Credentials
from edgellm.wire.status import SequenceStats

Addresses = dict[str, tuple[str, int]]  # board → host, port
Progress = Callable[[str, int, int], None]  # what is done, how far, of how much

# The largest difference, relative to the norm of what is compared, that the order of summation explains, by the dtype
# of keys and values.
_TOLERANCE = {"float32": 1e-3, "float16": 1e-2}
# The same where a native section rounds activations to 8 bits. A wrong layer differs by a half or more.
_NATIVE_TOLERANCE = 0.1
_PIECE_BYTES = 16 << 20  # of what all layers give
_MOST_SINGLE = 64  # tokens, because each takes a question and an answer


@dataclass(frozen=True)
class LayerDifference:
    """Relative difference of a layer's output, given the reference's input to its section."""

    layer: int
    board: str
    difference: float


@dataclass(frozen=True)
class Result:
    """The differences between a cluster and one process; `equal` if the tokens are the same and no logits or layer
    differ by more than their tolerance.

    The reference for layers is transformers' model. It is the reference for tokens and logits too, unless all boards
    computed native sections: then one process that computes as they do is, and no bit may differ (`logits_tolerance`
    0).
    """

    model: str
    prompt_tokens: int
    tokens: list[int]
    reference_tokens: list[int]
    logits_difference: float
    layers: list[LayerDifference]
    tolerance: float
    logits_tolerance: float

    @property
    def first_token_that_differs(self) -> int | None:
        pairs = enumerate(zip(self.tokens, self.reference_tokens, strict=True))
        return next((i for i, (a, b) in pairs if a != b), None)

    @property
    def first_layer_that_differs(self) -> LayerDifference | None:
        return next((x for x in self.layers if not x.difference <= self.tolerance), None)

    @property
    def equal(self) -> bool:
        return (
            self.first_token_that_differs is None
            and self.first_layer_that_differs is None
            and self.logits_difference <= self.logits_tolerance
        )

    def to_dict(self) -> dict:
        first = self.first_layer_that_differs
        return {
            "equal": self.equal,
            "first_token_that_differs": self.first_token_that_differs,
            "first_layer_that_differs": asdict(first) if first else None,
            **asdict(self),
        }

    def to_text(self) -> str:
        count, token, layer = len(self.tokens), self.first_token_that_differs, self.first_layer_that_differs
        lines = [f"{self.model}: {count} greedy tokens after a prompt of {self.prompt_tokens}"]
        if token is None:
            lines.append(f"tokens   equal, all {count}")
        else:
            lines.append(
                f"tokens   differ from token {token} on: the split gives {self.tokens[token]}, "
                f"one process {self.reference_tokens[token]}"
            )
        allowed = f"{self.logits_tolerance:.0e} is allowed" if self.logits_tolerance else "no bit may differ"
        lines.append(f"logits   differ by {self.logits_difference:.1e} of their norm; {allowed}")
        if layer is None:
            worst = max(self.layers, key=lambda x: x.difference)
            most = f"at most {worst.difference:.1e} apart, at {worst.layer}; {self.tolerance:.0e} is allowed"
            lines.append(f"layers   equal to transformers', all {len(self.layers)}; {most}")
        else:
            where = f"{layer.layer} on board {layer.board}"
            lines.append(f"layers   the first that differs is {where}, by {layer.difference:.1e} of its norm")
        return "\n".join(lines)


def verify(
    model_dir: Path, plan: Plan, addresses: Addresses, prompt: str | list[int], count: int, progress: Progress,
    *, tls: Credentials | None = None,
) -> Result:  # fmt: skip
    """Have the cluster answer `prompt` (a text, or token ids) with `count` greedy tokens, and compare.

    Raises UsageError if they don't fit in a slot, BoardError for a board that fails, ClusterError if the cluster serves
    another model.
    """
    manifest = Manifest.read(model_dir)
    if manifest.sha256 != plan.manifest_sha256:
        raise ClusterError(f"{model_dir} is not the model that the cluster serves. Deploy again.")
    ids = Tokenizer(model_dir).encode(prompt) if isinstance(prompt, str) else list(prompt)
    if len(ids) + count > plan.context:
        raise UsageError(f"{len(ids)} prompt tokens and {count} more; a slot of this cluster holds {plan.context}")
    progress("asking the cluster", 0, 0)
    plan, addresses = asyncio.run(_standing(manifest, plan, addresses, tls))
    tokens, logits, paths = asyncio.run(_ask(plan, addresses, tls, ids, count))
    sequence = ids + tokens[:-1]
    expected, outputs = _reference(manifest, model_dir, sequence, len(ids), progress)
    tolerance = logits_tolerance = _NATIVE_TOLERANCE if "native" in paths else _TOLERANCE[plan.kv_dtype]
    if paths == {"native"}:
        expected, logits_tolerance = _one_process(manifest, model_dir, sequence, len(ids), plan, progress), 0.0
    if manifest.row_elements:  # boards need more than what layers give
        from edgellm.check.one_process import rows_into

        starts = {section.start for section in plan.sections}
        rows = rows_into(manifest, model_dir, sequence, plan.kv_dtype, starts)
    else:
        rows = {}
    progress("tracing the boards", 0, 0)
    layers = asyncio.run(_compare_layers(plan, addresses, tls, manifest, sequence, outputs, rows))
    return Result(
        manifest.model, len(ids), tokens, [int(row.argmax()) for row in expected],
        max(_difference(a, b) for a, b in zip(logits, expected, strict=True)), layers, tolerance, logits_tolerance,
    )  # fmt: skip


async def _standing(
    manifest: Manifest, plan: Plan, addresses: Addresses, tls: Credentials | None
) -> tuple[Plan, Addresses]:
    """Return the plan that the boards hold by now, and where they are."""
    async with Fleet(manifest, addresses, tls) as fleet:
        await fleet.survey(needed=plan.boards)
        return standing_plan(fleet.reports) or plan, dict(fleet.addresses)


async def _ask(
    plan: Plan, addresses: Addresses, tls: Credentials | None, ids: list[int], count: int
) -> tuple[list[int], list[np.ndarray], set[str]]:
    """Return tokens, the logits they were chosen from, and the paths on which boards computed."""
    stats: dict[str, SequenceStats] = {}
    async with ClusterClient.dial(plan, addresses, tls) as cluster:
        stream = cluster.generate(
            ids, sampling=Sampling(), max_tokens=count, eos=(), logits=True, reuse=False, stats=stats
        )
        chosen = [c async for c in stream]
    paths = {str(stats[board].path) if board in stats else "None" for board in plan.boards}
    return [c.token for c in chosen], [np.frombuffer(c.logits or b"", "<f4") for c in chosen], paths


def _reference(
    manifest: Manifest, model_dir: Path, sequence: list[int], prompt_len: int, progress: Progress
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return transformers' logits [vocab_size] for the prompt's last token and every one after it, and what each layer
    gives for the whole sequence, [tokens, hidden_size].

    The sequence's own tokens are fed: if each is the most likely one after those before it, greedy decoding gives just
    them. A sequence that crosses a LongRoPE switch is run twice, because the tokens before it were chosen with other
    factors.
    """
    from edgellm.check.reference import Reference

    reference = Reference(manifest, model_dir)

    def run(ids: list[int], last: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        logits, outputs = reference.run(
            ids, last, lambda layer: progress("reference, layer by layer", layer, manifest.num_layers)
        )
        return [row.numpy() for row in logits], [x.numpy() for x in outputs]

    before = _before_switch(manifest, sequence, prompt_len)
    early = run(sequence[: manifest.rope_switch_len], before)[0] if before else []
    logits, outputs = run(sequence, len(sequence) - prompt_len + 1 - before)
    return early + logits, outputs


def _one_process(
    manifest: Manifest, model_dir: Path, sequence: list[int], prompt_len: int, plan: Plan, progress: Progress
) -> list[np.ndarray]:
    """Return the same logits as native sections on this machine compute them, one layer in memory at a time."""
    from edgellm.check.one_process import run_whole

    def run(ids: list[int], last: int) -> list[np.ndarray]:
        def tell(layer: int) -> None:
            progress("one process, layer by layer", layer, manifest.num_layers)

        return list(run_whole(manifest, model_dir, ids, last, plan.kv_dtype, tell))

    before = _before_switch(manifest, sequence, prompt_len)
    early = run(sequence[: manifest.rope_switch_len], before) if before else []
    return early + run(sequence, len(sequence) - prompt_len + 1 - before)


def _before_switch(manifest: Manifest, sequence: list[int], prompt_len: int) -> int:
    """Return how many tokens were chosen with LongRoPE's short factors, though the whole sequence has the long ones."""
    switch = manifest.rope_switch_len
    return switch - prompt_len + 1 if switch is not None and prompt_len <= switch < len(sequence) else 0


async def _compare_layers(
    plan: Plan, addresses: Addresses, tls: Credentials | None, manifest: Manifest, sequence: list[int],
    outputs: list[np.ndarray], rows: dict[int, np.ndarray],
) -> list[LayerDifference]:  # fmt: skip
    """Give each board the reference's input to its section, and compare what its layers make of it. `rows` have what
    boards need besides hidden states, by the layer that they come into."""
    found = []
    async with ClusterClient.dial(plan, addresses, tls) as cluster, cluster.hold(sequence) as held:
        for section, board in zip(plan.sections, cluster.boards, strict=True):
            whole = _input_of(section.start, sequence, outputs, rows)
            given: list[list[np.ndarray]] = [[] for _ in range(section.num_layers)]
            for start, end in _pieces(len(sequence), plan, manifest, section.num_layers):
                layers = await held.trace(
                    board, (section.start, section.end), start, len(sequence), end - start, whole[start:end].tobytes()
                )
                size = 4 * (end - start) * manifest.hidden_size
                for traced, data in zip(given, layers, strict=True):
                    if len(data) != size:
                        raise board.error(f"traced {len(data)} bytes for {end - start} tokens, expected {size}")
                    traced.append(np.frombuffer(data, "<f4").reshape(end - start, manifest.hidden_size))
            for layer, traced in enumerate(given, section.start):
                difference = _difference(np.concatenate(traced), outputs[layer])
                found.append(LayerDifference(layer, section.board, difference))
    return found


def _input_of(
    layer: int, sequence: list[int], outputs: list[np.ndarray], rows: dict[int, np.ndarray]
) -> np.ndarray:
    """Return what a board takes whose section begins with this layer."""
    if layer == 0:
        return np.asarray(sequence, "<u4")
    hidden = outputs[layer - 1].astype("<f4")
    return np.hstack((hidden, rows[layer][:, hidden.shape[1] :])).astype("<f4") if layer in rows else hidden


def _pieces(tokens: int, plan: Plan, manifest: Manifest, num_layers: int) -> list[tuple[int, int]]:
    """Return in which pieces [start, end) a board with so many layers traces a sequence: the first half in chunks, the
    rest token by token, but at most some tokens of it, so that both ways of computing show in the result."""
    most = max(1, min(plan.chunk, _PIECE_BYTES // (4 * max(manifest.hidden_size * num_layers, manifest.widest_row))))
    single = tokens - min(tokens // 2, _MOST_SINGLE)
    starts = [*range(0, single, most), *range(single, tokens)]
    return list(zip(starts, [*starts[1:], tokens], strict=True))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the norm of the difference relative to the norm of `b`; infinite for what isn't finite."""
    value = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))
    return value if math.isfinite(value) else math.inf
