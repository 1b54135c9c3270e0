"""Checks that messages fit the plan that this board serves, which the wire alone can't check."""

import reprlib
from typing import TYPE_CHECKING

import numpy as np

from edgellm.agent.sequence import Sequence
from edgellm.errors import RemoteProtocolError, UsageError
from edgellm.limits import MAX_STEP_BYTES
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer

if TYPE_CHECKING:
    from edgellm.agent.stage import Stage


def parse_open(stage: "Stage", peer: Peer, message: m.Open) -> Sequence:
    """Return the sequence that `peer` opens. Raises UsageError for what the model of `stage` or its slots can't do."""
    context, vocab_size = stage.plan.context, stage.section.vocab_size
    options = message.options
    try:
        sampling = Sampling.from_dict(options.get("sampling", {}))
    except (KeyError, TypeError) as e:
        raise UsageError(f"open: bad options ({e})") from None
    max_tokens, eos, reuse = options.get("max_tokens"), options.get("eos", []), options.get("reuse", 0)
    if type(max_tokens) is not int or max_tokens < 1:
        raise UsageError(f"open: max_tokens is {reprlib.repr(max_tokens)}, expected a number from 1")
    if type(reuse) is not int or reuse < 0:
        raise UsageError(f"open: reuse is {reprlib.repr(reuse)}, expected a number from 0")
    if not isinstance(eos, list) or any(type(i) is not int for i in eos):
        raise UsageError(f"open: eos is {reprlib.repr(eos)}, expected a list of token ids")
    if not 1 <= len(message.ids) <= context:
        raise UsageError(f"a prompt of {len(message.ids)} tokens; a slot takes 1 to {context}")
    if max(message.ids) >= vocab_size:
        raise UsageError(f"token id {max(message.ids)}; the vocabulary has {vocab_size}")
    return Sequence(
        message.seq_id, peer, list(message.ids), len(message.ids), max_tokens, frozenset(eos), sampling,
        options.get("logits") is True, reuse, options.get("speculate") is True,
    )  # fmt: skip


def check_hidden(stage: "Stage", sender: str, message: m.Hidden) -> None:
    """Raise RemoteProtocolError unless `sender` may send hidden states to `stage`, and these fit its model and plan."""
    expected = stage.hidden_from
    if sender != expected:
        raise RemoteProtocolError(
            f"hidden states from {sender}; board {stage.board} takes them from {expected or 'nobody'}"
        )
    count, section = len(message.ids), stage.section
    if len(message.data) != 4 * count * section.hidden_size or message.pass_len > stage.plan.context:
        raise RemoteProtocolError(
            f"hidden states of size {len(message.data) // (4 * count)} up to position {message.pass_len}; "
            f"expected size {section.hidden_size} and at most {stage.plan.context}"
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
    if max(message.ids) >= stage.section.vocab_size:
        raise RemoteProtocolError(f"token id {max(message.ids)}; the vocabulary has {stage.section.vocab_size}")


def parse_trace(stage: "Stage", message: m.Trace) -> np.ndarray:
    """Return what the section of `stage` takes for a trace: int64 [tokens] or float32 [tokens, hidden_size]. Raises
    UsageError for anything else."""
    own, section, count = stage.plan.section_of(stage.board), stage.section, message.count
    width = 1 if stage.is_first else section.hidden_size
    if len(message.data) != 4 * width * count:
        raise UsageError(f"trace of {count} tokens with {len(message.data)} bytes; expected {4 * width} a token")
    if count > stage.plan.context or message.layer != own.start:
        raise UsageError(
            f"trace of {count} tokens from layer {message.layer}; "
            f"a slot holds {stage.plan.context}, the section starts at layer {own.start}"
        )
    answer_bytes = 4 * own.num_layers * count * section.hidden_size
    if answer_bytes > MAX_STEP_BYTES:
        raise UsageError(f"trace of {count} tokens: {answer_bytes} bytes to answer, at most {MAX_STEP_BYTES}")
    if not stage.is_first:
        return np.frombuffer(message.data, "<f4").reshape(count, width).astype(np.float32)
    ids = np.frombuffer(message.data, "<u4").astype(np.int64)
    if int(ids.max()) >= section.vocab_size:
        raise UsageError(f"trace of token id {int(ids.max())}; the vocabulary has {section.vocab_size}")
    return ids
