"""Checks that messages fit the plan that this board serves, which the wire alone can't check."""

import reprlib
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.agent.sequence import Sequence
from edgellm.errors import RemoteProtocolError, UsageError
from edgellm.limits import MAX_CACHE_NAME, MAX_LOGPROBS, MAX_STEP_BYTES, MAX_WAIT_S
from edgellm.sampling import Sampling
from edgellm.structure import POOLS, Constraint
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer

if TYPE_CHECKING:
    from edgellm.agent.stage import Stage


def parse_open(stage: "Stage", peer: Peer, message: m.Open) -> Sequence:
    """Return the sequence that `peer` opens. Raises UsageError for what the model of `stage` or its slots can't do."""
    context, vocab_size = stage.plan.context, stage.section.vocab_size
    options, length = message.options, len(message.ids)
    if not 1 <= length <= context:
        raise UsageError(f"a prompt of {length} tokens; a slot takes 1 to {context}")
    if max(message.ids) >= vocab_size:
        raise UsageError(f"token id {max(message.ids)}; the vocabulary has {vocab_size}")
    try:
        sampling = Sampling.from_dict(options.get("sampling", {}))
    except (KeyError, TypeError) as e:
        raise UsageError(f"open: bad options ({e})") from None
    strange = [token for token, _ in sampling.logit_bias if token >= vocab_size]
    if strange:
        raise UsageError(f"logit-bias of token {strange[0]}; the vocabulary has {vocab_size}")
    eos = options.get("eos", [])
    if not isinstance(eos, list) or any(type(i) is not int for i in eos):
        raise UsageError(f"open: eos is {reprlib.repr(eos)}, expected a list of token ids")
    constraint = Constraint.from_wire(options["constraint"]) if "constraint" in options else None
    if constraint is not None and not any(0 <= i < vocab_size for i in eos):
        raise UsageError("open: a constraint without eos, the tokens that end the answer")
    pool = _one_of(options, "pool", POOLS)
    began = _whole(options, "began", 1, length, default=length)
    max_tokens = _whole(options, "max_tokens", 1)
    if max_tokens <= length - began:
        raise UsageError(f"open: max_tokens is {max_tokens}, and the answer has {length - began} tokens already")
    return Sequence(
        message.seq_id, peer, list(message.ids), length, began, max_tokens, frozenset(eos), sampling,
        logits=options.get("logits") is True,
        logprobs=_whole(options, "logprobs", 0, MAX_LOGPROBS, default=0),
        constraint=constraint,
        pool=pool,
        cache=_name(options, "cache", MAX_CACHE_NAME),
        keep=options.get("keep") is not False,
        tells_progress=options.get("progress") is True,
        reuse=0 if pool else _whole(options, "reuse", 0, default=0),  # an embedding takes every token
        wait_s=_seconds(options, "wait_s"),
        slot=0 if stage.is_first else _whole(options, "slot", 0, stage.plan.slots - 1),
    )  # fmt: skip


def _whole(options: dict[str, Any], name: str, low: int, high: int | None = None, default: int | None = None) -> int:
    """Return an option that is a whole number. Raises UsageError for anything else."""
    value = options.get(name, default)
    if type(value) is not int or value < low or (high is not None and value > high):
        expected = f"a number from {low}" if high is None else f"a number from {low} to {high}"
        raise UsageError(f"open: {name} is {reprlib.repr(value)}, expected {expected}")
    return value


def _one_of(options: dict[str, Any], name: str, values: tuple[str, ...]) -> str:
    """Return an option that is one of some words, "" by default. Raises UsageError for anything else."""
    value = options.get(name, "")
    if value != "" and value not in values:
        raise UsageError(f"open: {name} is {reprlib.repr(value)}, expected one of {', '.join(values)}")
    return str(value)


def _name(options: dict[str, Any], name: str, most: int) -> str:
    """Return an option that is a text of at most `most` letters, "" by default. Raises UsageError for anything else."""
    value = options.get(name, "")
    if not isinstance(value, str) or len(value) > most:
        raise UsageError(f"open: {name} is {reprlib.repr(value)}, expected a text of at most {most} letters")
    return value


def _seconds(options: dict[str, Any], name: str) -> float:
    """Return an option that is a time, 0 by default. Raises UsageError for anything else."""
    value = options.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_WAIT_S:
        raise UsageError(f"open: {name} is {reprlib.repr(value)}, expected seconds from 0 to {MAX_WAIT_S:g}")
    return float(value)


def check_start(stage: "Stage", message: m.Start) -> None:
    """Raise RemoteProtocolError unless a sequence may be started on the board of `stage`."""
    if not stage.is_first:
        raise RemoteProtocolError(f"a start; board {stage.board} isn't the first, {stage.plan.boards[0]} is")


def check_hidden(stage: "Stage", sender: str, message: m.Hidden) -> None:
    """Raise RemoteProtocolError unless `sender` may send hidden states to `stage`, and these fit its model and plan."""
    expected = stage.hidden_from
    if sender != expected:
        raise RemoteProtocolError(
            f"hidden states from {sender}; board {stage.board} takes them from {expected or 'nobody'}"
        )
    count, section = len(message.ids), stage.section
    if len(message.data) != 4 * count * section.row_size or message.pass_len > stage.plan.context:
        raise RemoteProtocolError(
            f"hidden states of size {len(message.data) // (4 * count)} up to position {message.pass_len}; "
            f"expected size {section.row_size} and at most {stage.plan.context}"
        )
    if max(message.ids) >= section.vocab_size:
        raise RemoteProtocolError(
            f"hidden states of token id {max(message.ids)}; the vocabulary has {section.vocab_size}"
        )
    if message.logits > 1 and not stage.engine.batches:
        raise RemoteProtocolError(
            f"hidden states of {message.logits - 1} drafts; board {stage.board} can't verify any"
        )


def check_tokens(stage: "Stage", sender: str, message: m.Tokens) -> None:
    """Raise RemoteProtocolError unless `sender` may tell `stage` which tokens were chosen, and the tokens exist."""
    if sender != stage.tokens_from:
        raise RemoteProtocolError(f"tokens from {sender}; board {stage.board} takes none from it")
    highest = max(*message.ids, *message.drafts, 0)
    if highest >= stage.section.vocab_size:
        raise RemoteProtocolError(f"token id {highest}; the vocabulary has {stage.section.vocab_size}")


def parse_trace(stage: "Stage", message: m.Trace) -> np.ndarray:
    """Return what the section of `stage` takes for a piece of a trace: int64 [tokens] or float32 [tokens, row_size].
    Raises UsageError for anything else."""
    own, section, count = stage.plan.section_of(stage.board), stage.section, message.count
    width = 1 if stage.is_first else section.row_size
    if len(message.data) != 4 * width * count:
        raise UsageError(f"trace of {count} tokens with {len(message.data)} bytes; expected {4 * width} a token")
    if message.layer != own.start:
        raise UsageError(f"trace from layer {message.layer}; the section starts at layer {own.start}")
    most = min(stage.plan.chunk, MAX_STEP_BYTES // (4 * own.num_layers * section.hidden_size))
    if count > most:
        raise UsageError(f"trace of {count} tokens at once, at most {most} of them")
    end = message.position + count
    if not end <= message.pass_len <= stage.plan.context:
        raise UsageError(
            f"trace up to position {end} of {message.pass_len}; a slot holds {stage.plan.context} tokens"
        )
    if not stage.is_first:
        return np.frombuffer(message.data, "<f4").reshape(count, width).astype(np.float32)
    ids = np.frombuffer(message.data, "<u4").astype(np.int64)
    if int(ids.max()) >= section.vocab_size:
        raise UsageError(f"trace of token id {int(ids.max())}; the vocabulary has {section.vocab_size}")
    return ids
