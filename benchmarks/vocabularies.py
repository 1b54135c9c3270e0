"""Token ids of every GGUF vocabulary in llama.cpp's source, beside llama.cpp's own. `make vocabularies`

Its source has vocabularies of real models, each with texts (.inp) and the ids that llama.cpp gives for them (.out). It
comes out of the same PyPI sdist that `make bench` builds; nothing is built here.
"""

import json
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.peer_build import VERSION, fetch, unpack
from edgellm.checkpoint.gguf.file import GGUFFile
from edgellm.checkpoint.gguf_tokenizer import tokenizer_json
from edgellm.checkpoint.vocabulary.metadata import Vocabulary
from edgellm.errors import CheckpointError

_BETWEEN_TEXTS = "\n__ggml_vocab_test__\n"


def main() -> int:
    """Print a line a vocabulary; returns 1 if any text got other ids than llama.cpp's."""
    differ = 0
    with tempfile.TemporaryDirectory() as temporary:
        work, log = Path(temporary), Path(temporary) / "pip.log"
        with open(log, "wb") as said:
            models = unpack(fetch(work, said, log), work) / "models"
        print(f"llama.cpp of llama-cpp-python {VERSION}")
        for path in sorted(models.glob("ggml-vocab-*.gguf")):
            texts, expected = path.with_name(path.name + ".inp"), path.with_name(path.name + ".out")
            if texts.is_file() and expected.is_file():
                found = _compare(path, texts.read_text(encoding="utf-8"), expected.read_text(encoding="utf-8"))
                print(f"{path.stem.removeprefix('ggml-vocab-'):18} {found}")
                differ += found.startswith("DIFFERS")
    return 1 if differ else 0


def _compare(path: Path, texts: str, expected: str) -> str:
    try:
        vocabulary = Vocabulary.parse(GGUFFile.open(path).metadata, path.name)
        tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json(vocabulary)))
    except CheckpointError as e:
        return f"refused: {e}"
    tokenizer.encode_special_tokens = True  # as llama.cpp's test does: special tokens are text
    pairs = list(zip(texts.split(_BETWEEN_TEXTS), expected.splitlines(), strict=False))
    wrong = [text for text, ids in pairs if tokenizer.encode(text, add_special_tokens=False).ids != _ids(ids)]
    if wrong:
        return f"DIFFERS for {len(wrong)} of {len(pairs)} texts, as {wrong[0]!r}"
    return f"equal for {len(pairs)} texts"


def _ids(line: str) -> list[int]:
    return [int(i) for i in line.split()]


if __name__ == "__main__":
    sys.exit(main())
