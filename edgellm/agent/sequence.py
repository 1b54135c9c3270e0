"""A sequence as a stage knows it: what was asked, what was said, and what may be chosen next."""

import reprlib
from collections.abc import Sequence as Ids
from dataclasses import dataclass

import numpy as np

from edgellm.agent.draft import Drafter
from edgellm.errors import UsageError
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer


@dataclass
class Sequence:
    """An answer in the making. `ids` only grows on the first and the last board; only the first one drafts."""

    seq_id: int
    owner: Peer
    ids: list[int]
    prompt_len: int
    max_tokens: int
    eos: frozenset[int]
    sampling: Sampling
    logits: bool
    reuse: int = 0  # at most so many tokens of the prompt
    speculate: bool = False
    drafter: Drafter | None = None
    drafts: tuple[int, ...] = ()  # under way
    sent_bytes: int = 0  # of decode steps, to other boards
    accepted: int = 0  # drafts that were chosen, as the last board knows
    ended: bool = False


def parse_open(peer: Peer, message: m.Open, context: int, vocab_size: int) -> Sequence:
    """What an open asks for; raises UsageError for what this model or its slots of `context` tokens can't do."""
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


def most_drafts(sequence: Sequence, context: int, rope_switch_len: int | None, running: int) -> int:
    """How many drafts the next step may carry: within the answer, the slot and one set of rotary factors, and so that
    the steps of `running` sequences together stay as small as one alone may be."""
    length = len(sequence.ids)
    most = min(
        m.MAX_CHOICES // max(1, running) - 1,
        sequence.max_tokens - (length - sequence.prompt_len) - 1,
        context - length,
    )
    if rope_switch_len is not None and length <= rope_switch_len:
        most = min(most, rope_switch_len - length)
    return max(0, most)


def choose(logits: np.ndarray, ids: Ids[int], history: Ids[int], sampling: Sampling, end: int) -> list[int]:
    """The tokens that a step chooses, from `logits` [choices, vocab_size] after each of its last tokens.

    `ids` are the step's tokens, `end` is the position after them, and `history` the sequence up to the first choice's
    position, where the repeat penalty needs it. A row counts as long as the drafts before it were chosen. Raises
    ModelError for logits that are not finite.
    """
    from edgellm.model.sampler import sample

    drafts = ids[len(ids) - len(logits) + 1 :]
    said, chosen, position = list(history), [], end - len(drafts)
    for row, draft in zip(logits, (*drafts, None), strict=True):
        token = sample(row, said, sampling, position)
        chosen.append(token)
        if token != draft:
            break
        said.append(token)
        position += 1
    return chosen


def finish_of(sequence: Sequence, position: int, token: int, context: int) -> str:
    """Why the answer ends with `token` at `position`; "" if it goes on."""
    if token in sequence.eos:
        return "eos"
    if position - sequence.prompt_len + 1 >= sequence.max_tokens:
        return "length"
    return "context" if position >= context else ""
