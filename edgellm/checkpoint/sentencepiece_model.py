"""SentencePiece's tokenizer.model as the metadata that a GGUF has of the same vocabulary, so both give the same ids."""

import math
from pathlib import Path

from edgellm.checkpoint.json_file import read_limited
from edgellm.checkpoint.vocabulary.metadata import UNKNOWN, USER_DEFINED
from edgellm.errors import CheckpointError

SPACE = "\u2581"


def read_metadata(path: Path) -> dict[str, object] | None:
    """Return `tokenizer.ggml.*` for a vocabulary of byte pairs that leaves texts as they are, such as Llama's and
    Mistral's; None for one of another kind. Raises CheckpointError for a file that isn't SentencePiece's.

    Needs sentencepiece and protobuf.
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    content = read_limited(path)
    try:
        SentencePieceProcessor(model_proto=content)  # refuses a vocabulary that contradicts itself
        model = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]  # made on import
        pieces = [(p.piece, p.type, p.score) for p in model.pieces]
        unknown = next(i for i, (_, kind, _) in enumerate(pieces) if kind == UNKNOWN)
    except Exception:  # whose text names lines of C++
        raise CheckpointError(f"{path} is no vocabulary of SentencePiece's. Fetch it again.") from None
    trained, normalizer = model.trainer_spec, model.normalizer_spec
    leaves_texts = not normalizer.precompiled_charsmap and not normalizer.remove_extra_whitespaces
    marks_spaces = normalizer.escape_whitespaces and not trained.treat_whitespace_as_suffix
    if trained.model_type != trained.BPE or not (trained.byte_fallback and leaves_texts and marks_spaces):
        return None
    for i, (_, _, score) in enumerate(pieces):
        if not math.isfinite(score):
            raise CheckpointError(f"{path}: piece {i} has the score {score}, expected a finite number")
    gguf = {
        "model": "llama",
        # User-defined pieces are looked for in the text itself, where a space is a space.
        "tokens": [text.replace(SPACE, " ") if kind == USER_DEFINED else text for text, kind, _ in pieces],
        "token_type": [kind for _, kind, _ in pieces],
        "scores": [score for _, _, score in pieces],
        "add_space_prefix": normalizer.add_dummy_prefix,
        "unknown_token_id": unknown,
        "bos_token_id": trained.bos_id,
        "eos_token_id": trained.eos_id,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in gguf.items()}
