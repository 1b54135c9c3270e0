"""A fake model that has a tokenizer, and what it must answer under a constraint: one token at a time, by a matcher that
is new for each, so that nothing counts but the tokens before."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgellm.model.sampler import sample
from edgellm.shards.manifest import Manifest, ModelFile
from edgellm.structure import Constraint
from edgellm.text.grammar_worker import grammar_of
from tests.fakes import GREEDY, LAYERS, VOCAB, make_manifest

EOS = VOCAB - 1
_MERGES = ["{ \"", "\" :", "\" ,", "Ġ \"", "\" }", "a m", "am e", "n ame", "t r", "u e", "a g", "ag e", "Ġ {", "Ġ ["]
SCHEMA = Constraint("json_schema", json.dumps({
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 999}, "maxItems": 5},
        "true": {"enum": ["name", "age", "tree"]},
    },
    "required": ["name", "ages", "true"],
    "additionalProperties": False,
}))  # fmt: skip


def constrained_manifest(folder: Path, ram_bytes: int = 8) -> Manifest:
    """Write a tokenizer of VOCAB tokens into `folder`; return the manifest of a fake model that has it."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789{}[]\":,.-_TFNĠ\\"]
    vocab = [*letters, *(merge.replace(" ", "") for merge in _MERGES)]
    vocab += [f"w{i:02}" for i in range(len(vocab), EOS)]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in _MERGES)]
    library = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken("<end>", special=True)])
    assert library.get_vocab_size() == VOCAB and library.token_to_id("<end>") == EOS
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    raw = (folder / "tokenizer.json").read_bytes()
    file = ModelFile("tokenizer.json", len(raw), hashlib.sha256(raw).hexdigest())
    return replace(make_manifest(ram_bytes=ram_bytes), files=(file,), eos_token_ids=(EOS,))


def wild_logits(ids: list[int], total: float) -> np.ndarray:
    """A model that says anything, but likes what followed the last token before: drafts come true now and then."""
    mixed = sum((i + 1) * (k + 1) for k, i in enumerate(ids)) + int(total)
    logits = np.random.default_rng(mixed).normal(size=VOCAB).astype(np.float32)
    before = [k for k in range(len(ids) - 1) if ids[k] == ids[-1]]
    if before:
        logits[ids[before[-1] + 1]] += 4.0
    return logits


def be_wild(monkeypatch) -> None:
    """Have fake boards hold that model."""
    from tests.fakes import FakeSection

    monkeypatch.setattr(
        FakeSection, "_logits",
        lambda section, held: wild_logits([int(i) for i in held[:, 0]], held[:, 1].sum()),
    )  # fmt: skip


class Oracle:
    """What the wild model must answer."""

    def __init__(self, folder: Path):
        self.tokenizer = LLTokenizer((folder / "tokenizer.json").read_text(), n_vocab=VOCAB, eos_token=EOS)

    def answer(self, prompt: list[int], constraint: Constraint, count: int, sampling=GREEDY) -> list[int]:
        ids = list(prompt)
        while len(ids) < len(prompt) + count and ids[-1] != EOS:
            ids.append(self._next(ids, len(prompt), constraint, sampling))
        return ids[len(prompt) :]

    def text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode_str([token for token in tokens if token != EOS])

    def _next(self, ids: list[int], began: int, constraint: Constraint, sampling) -> int:
        matcher = LLMatcher(self.tokenizer, grammar_of(constraint.kind, constraint.source))
        assert matcher.consume_tokens(ids[began:]) and not matcher.is_error()
        if matcher.is_stopped():
            return EOS
        if forced := matcher.compute_ff_tokens():
            return forced[0]
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[:VOCAB].astype(bool)
        logits = wild_logits(ids, len(ids) * sum(range(LAYERS)))
        if sampling is GREEDY:
            return int(np.where(allowed, logits, -np.inf).argmax())
        (among,) = np.nonzero(allowed)
        return int(among[sample(logits[among], ids, sampling, len(ids), began)])
