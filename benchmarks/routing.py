"""How tokens spread over the experts of a split model: of models with random weights, whether a benchmark of them reads
what one of a real model would.

    python -m benchmarks.routing SPLIT
    python -m benchmarks.routing SPLIT --tokens 512

Each layer's router is applied to the states that enter the layer, for random tokens. That leaves out what the layer's
own mixer adds, which changes who is chosen, but not how evenly.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.report import Row
from edgellm.agent.load import load_section
from edgellm.model.families.feed_forwards import Experts
from edgellm.model.families.find import find_spec
from edgellm.shards.manifest import Manifest
from edgellm.shards.mapped import MappedShard

TOKENS = 512


def spread(states: np.ndarray, norm: np.ndarray, router: np.ndarray, chosen: int) -> np.ndarray:
    """Return how many of the tokens choose each expert: [experts]. `states` float32 [tokens, hidden], `norm` [hidden],
    `router` [experts, hidden]."""
    rms = np.sqrt((states.astype(np.float64) ** 2).mean(axis=1, keepdims=True))
    scores = (states / rms * norm) @ router.T
    best = np.argpartition(-scores, chosen - 1, axis=1)[:, :chosen]
    return np.bincount(best.ravel(), minlength=len(router))


def rows_of(folder: Path, tokens: int) -> list[Row]:
    """Return the rows of a split model's layers with experts. Raises ValueError for a model without any."""
    manifest = Manifest.read(folder)
    spec, reason = find_spec(json.loads((folder / "config.json").read_text()))
    if spec is None:
        raise ValueError(f"{folder}: {reason}")
    states, found = np.random.default_rng(0).integers(0, manifest.vocab_size, tokens), []
    for i, layer in enumerate(spec.layers):
        if isinstance(layer.feed_forward, Experts) and i:
            stored = MappedShard(folder, manifest.layer(i), False).tensors
            router = layer.feed_forward.router
            names = layer.before_feed_forward.weight.name, router.weight.weight.name
            norm, weight = (stored[name].data.view(np.float32).reshape(stored[name].shape) for name in names)
            counts = spread(states, norm, weight, router.top_k)
            found.append(Row(f"layer {i}: experts chosen by {tokens} tokens", f"{(counts > 0).sum()} of {len(counts)}"))
            found.append(Row("  the most popular one, of an even share", float(counts.max() / counts.mean()), "times"))
        section = load_section(manifest, folder, i, i + 1)
        if i + 1 < manifest.num_layers:
            states = section.forward(states, 0, section.new_slot(tokens, "float16"), tokens, 0)
    if not found:
        raise ValueError(f"{folder}: {manifest.model} has no layers with experts after the first")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path, help="a split model's folder")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    print(report.text("routing", report.machine(), rows_of(options.split, options.tokens), options.json))


if __name__ == "__main__":
    main()
