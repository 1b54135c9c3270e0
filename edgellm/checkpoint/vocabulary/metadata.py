"""A GGUF's vocabulary as its metadata has it, checked: token texts, kinds, scores, merges, and which id means what."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgellm.errors import CheckpointError

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_MAX_CHARACTERS = 1024  # of a token; the longest of real ones are runs of 512 spaces
END_NAMES = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
_SENTENCEPIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}  # of a file that names none


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a GGUF. `texts[i]` is the text of token i, no two alike; `kinds[i]` is its token_type."""

    metadata: Mapping[str, object]
    where: str
    texts: tuple[str, ...]
    kinds: tuple[int, ...]

    @classmethod
    def parse(cls, metadata: Mapping[str, object], where: str) -> "Vocabulary | None":
        """Return the vocabulary in the metadata of the file `where`, None if it has none; raises CheckpointError."""
        if not has_vocabulary(metadata):
            return None
        texts = metadata["tokenizer.ggml.tokens"]
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise CheckpointError(f"{where}: tokenizer.ggml.tokens is not a list of texts")
        if (longest := max(map(len, texts))) > _MAX_CHARACTERS:
            raise CheckpointError(f"{where}: a token has {longest} characters, at most {_MAX_CHARACTERS} are read")
        kinds = _numbers(metadata, "token_type", len(texts), where) or [NORMAL] * len(texts)
        return cls(metadata, where, tuple(_unique(texts)), tuple(int(k) for k in kinds))

    @property
    def model(self) -> str:
        """How texts become tokens: "llama" is SentencePiece, "gpt2" byte-level pairs."""
        return str(self.metadata.get("tokenizer.ggml.model"))

    @property
    def pre(self) -> str:
        """How a text is cut before byte pairs are merged."""
        return str(self.metadata.get("tokenizer.ggml.pre") or "default")

    def ids(self) -> dict[str, int]:
        """Return each token's id by its text."""
        return {text: i for i, text in enumerate(self.texts)}

    def of_kind(self, *kinds: int) -> dict[str, int]:
        """Return the ids of the tokens of these kinds by their text."""
        return {text: i for i, (text, kind) in enumerate(zip(self.texts, self.kinds, strict=True)) if kind in kinds}

    def named_id(self, name: str) -> int | None:
        """Return the id that the metadata names as bos, eos, …, or that such vocabularies have there if it names none;
        None if neither is within the vocabulary."""
        i = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if type(i) is int and 0 <= i < len(self.texts):
            return i
        default = _SENTENCEPIECE_IDS.get(name) if self.model == "llama" else None
        return default if default is not None and default < len(self.texts) else None

    def named_end_ids(self) -> list[int]:
        """Return the ids that the metadata names as the end of an answer, a turn, a message, or a file."""
        return [i for name in END_NAMES if (i := self.named_id(name)) is not None]

    def flag(self, name: str, default: bool) -> bool:
        """Return a setting such as add_bos_token; raises CheckpointError for one that is neither true nor false."""
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.where}: tokenizer.ggml.{name} is {str(value)[:40]}, expected true or false")
        return value

    def scores(self) -> list[float]:
        """Return each token's score; raises CheckpointError if there are none."""
        scores = _numbers(self.metadata, "scores", len(self.texts), self.where)
        if scores is None:
            raise CheckpointError(f"{self.where}: the vocabulary has no tokenizer.ggml.scores, so its order is unknown")
        return scores

    def merges(self) -> list[tuple[str, str]]:
        """Return the pairs to merge, first ones first, each once; raises CheckpointError for a pair that is no part of
        the vocabulary."""
        lines = self.metadata.get("tokenizer.ggml.merges")
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise CheckpointError(f"{self.where}: the vocabulary has no tokenizer.ggml.merges")
        known = frozenset(self.texts)
        pairs: dict[tuple[str, str], None] = {}
        for line in lines:
            at = line.find(" ", 1)  # the first half may begin with a space
            left, right = (line[:at], line[at + 1 :]) if at > 0 else (line, "")
            if not {left, right, left + right} <= known:
                raise CheckpointError(
                    f"{self.where}: the vocabulary contradicts itself: it merges {line[:80]!r}, and "
                    f"{next(t for t in (left, right, left + right) if t not in known)[:80]!r} is none of its "
                    f"{len(self.texts)} tokens"
                )
            pairs[left, right] = None
        return list(pairs)


def has_vocabulary(metadata: Mapping[str, object]) -> bool:
    """Return whether a GGUF with this metadata says how texts become tokens."""
    model = metadata.get("tokenizer.ggml.model")
    return model not in (None, "none", "no_vocab") and bool(metadata.get("tokenizer.ggml.tokens"))


def _numbers(metadata: Mapping[str, object], name: str, expected: int, where: str) -> list | None:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if values is None:
        return None
    if not isinstance(values, list):
        raise CheckpointError(f"{where}: tokenizer.ggml.{name} is not a list, expected {expected} numbers")
    if len(values) < expected:
        raise CheckpointError(f"{where}: tokenizer.ggml.{name} has {len(values)} entries, expected {expected}")
    if not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        raise CheckpointError(f"{where}: tokenizer.ggml.{name} has an entry that is not a finite number")
    return values[:expected]


def _unique(texts: list[str]) -> Iterator[str]:
    """Give an empty text, and one that is there before, a name of its own: no text leads to it, but an answer may hold
    it."""
    seen: set[str] = set()
    for i, text in enumerate(texts):
        if not text or text in seen:
            text = f"[EMPTY_{i}]" if not text else f"[DUPLICATE_{i}]"
            while text in seen:
                text += "_"
        seen.add(text)
        yield text
