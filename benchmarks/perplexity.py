"""What integer activations, and formats of keys and values, cost: a text's perplexity in a native section, beside
transformers on the same weights, and how far the probabilities of its next tokens are from transformers'.

    python -m benchmarks.perplexity SPLIT
    python -m benchmarks.perplexity SPLIT --text book.txt --tokens 512 --json

The reference multiplies the dequantized weights with float32 activations, so the difference is that of the arithmetic
and not of quantized weights. Perplexity is exp of the mean negative log likelihood of each token after those before it.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.report import Row, at_most
from edgellm.shards.manifest import Manifest
from edgellm.shards.slot_memory import KV_BYTES
from edgellm.text.tokenizer import Tokenizer

TEXT = Path(__file__).parent.parent / "tests/texts/alice.txt"  # Lewis Carroll, 1865
TOKENS = 512
LIMITS = {"int8": 0.01, "int4": 0.04, "int4s": 0.04}  # of the reference's perplexity
_CHUNK, _ROWS_AT_ONCE = 128, 64  # tokens


def perplexity(logits: np.ndarray, ids: list[int]) -> float:
    """Of `ids` under logits float [len(ids), vocab_size], those of the token after each; the last ones are unused."""
    rows = logits[:-1].astype(np.float64)
    best = rows.max(axis=1)
    log_sums = best + np.log(np.exp(rows - best[:, None]).sum(axis=1))
    return math.exp(float(np.mean(log_sums - rows[np.arange(len(rows)), ids[1:]])))


def divergence(expected: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """The mean Kullback-Leibler divergence of `logits` from those `expected`, float [tokens, vocab_size] both, and the
    share of tokens after which both choose the same."""
    total, same = 0.0, 0
    for start in range(0, len(expected), _ROWS_AT_ONCE):  # a large vocabulary in float64 is large
        part = slice(start, start + _ROWS_AT_ONCE)
        p, q = (_log_softmax(rows[part].astype(np.float64)) for rows in (expected, logits))
        total += float((np.exp(p) * (p - q)).sum())
        same += int((p.argmax(1) == q.argmax(1)).sum())
    return total / len(expected), same / len(expected)


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def native_logits(
    manifest: Manifest, folder: Path, ids: list[int], chunk: int = _CHUNK, kv_dtype: str = "float16"
) -> np.ndarray:
    """Logits float32 [len(ids), vocab_size] of one native section with all layers, the text in chunks."""
    from edgellm.agent.load import load_section

    section = load_section(manifest, folder, 0, manifest.num_layers)
    if section.path != "native":
        raise ValueError(f"{folder}: {manifest.model} takes the {section.path} path, there is nothing to compare")
    slot, x, found = section.new_slot(len(ids), kv_dtype), np.array(ids, np.int64), []
    for start in range(0, len(ids), chunk):
        part = x[start : start + chunk]
        found.append(section.forward(part, start, slot, len(ids), len(part)))
    return np.concatenate(found)


def reference_logits(manifest: Manifest, folder: Path, ids: list[int]) -> np.ndarray:
    """Logits float32 [len(ids), vocab_size] of transformers over the dequantized weights."""
    from edgellm.check.reference import Reference

    return Reference(manifest, folder).run(ids, len(ids))[0].numpy()


def text_ids(folder: Path, text: str, tokens: int) -> list[int]:
    """The first tokens of a text; ValueError if it has fewer."""
    ids = Tokenizer(folder).encode(text)
    if len(ids) < tokens:
        raise ValueError(f"the text has {len(ids)} tokens, {tokens} were asked for")
    return ids[:tokens]


def encoding_of(manifest: Manifest, folder: Path) -> str:
    """What most of a layer is packed as."""
    from edgellm.shards.mapped import MappedShard

    tensors = MappedShard(folder, manifest.layer(0), False).tensors.values()
    return max(tensors, key=lambda t: t.data.nbytes).encoding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path, help="a split model's folder, with its tokenizer")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    machine, folder = report.machine(), arguments.split
    manifest, ids = Manifest.read(folder), text_ids(folder, arguments.text.read_text(), arguments.tokens)
    encoding = encoding_of(manifest, folder)
    began = time.perf_counter()
    ours = perplexity(native_logits(manifest, folder, ids), ids)
    middle = time.perf_counter()
    expected = reference_logits(manifest, folder, ids)
    theirs, ended = perplexity(expected, ids), time.perf_counter()
    difference = 100 * (ours / theirs - 1)
    rows = [
        Row("weights", encoding), Row("tokens", len(ids)), Row("native section", ours, "perplexity"),
        Row("transformers, dequantized weights", theirs, "perplexity"),
        at_most("difference", difference, "%", 100 * LIMITS[encoding]) if encoding in LIMITS else
        Row("difference", difference, "%"),
        Row("seconds, native", middle - began, "s"), Row("seconds, reference", ended - middle, "s"),
    ]  # fmt: skip
    for kv_dtype in KV_BYTES:
        mean, same = divergence(expected, native_logits(manifest, folder, ids, kv_dtype=kv_dtype))
        rows.append(Row(f"KV {kv_dtype}: divergence from the reference", 1000 * mean, "/ 1000"))
        rows.append(Row(f"KV {kv_dtype}: same first choice", 100 * same, "%"))
    print(report.text("perplexity", machine, rows, arguments.json))


if __name__ == "__main__":
    main()
