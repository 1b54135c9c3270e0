"""One plain transformers process in bf16 over a split's weights: what the engine is compared with.

    python -m benchmarks.baseline DIR

Answers lines of JSON: {"ids": [...], "tokens": 8, "threads": 2} gives {"first_s": …, "per_token_s": …}.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

from edgellm.kernels import library
from edgellm.model.generic.build import build_empty, find_layers, read_config
from edgellm.model.generic.packed import unpack
from edgellm.model.generic.shardfile import ShardFile
from edgellm.model.generic.structure import trace
from edgellm.shards.manifest import Manifest


class Clock:
    """Stands for a streamer: notes when each token is there."""

    def __init__(self):
        self.at_s: list[float] = []
        self._saw_prompt = False

    def put(self, value) -> None:
        if self._saw_prompt:
            self.at_s.append(time.perf_counter())
        self._saw_prompt = True

    def end(self) -> None: ...


def load(folder: Path) -> nn.Module:
    """The whole model as transformers builds it, nn.Linear and all, its weights dequantized and cast to bf16."""
    manifest, config = Manifest.read(folder), read_config(folder)
    structure = trace(config)
    model = build_empty(config, real_buffers=True)
    layers = find_layers(model)[1]
    for shard in manifest.shards:
        root = model if shard.layer is None else layers[shard.layer]
        for name, stored in ShardFile(folder, shard).tensors.items():
            data = stored.data
            if stored.encoding in library.GROUP_BYTES:
                data = unpack(data, stored.encoding, stored.shape)
            if (name if shard.layer is None else (shard.layer, name)) in structure.transposed:
                data = data.T
            if data.is_floating_point():
                data = data.to(torch.bfloat16).contiguous()
            path, _, leaf = name.rpartition(".")
            module = root.get_submodule(path)
            if leaf in module._buffers:
                module._buffers[leaf] = data
            else:
                module._parameters[leaf] = nn.Parameter(data, requires_grad=False)
    model.config.dtype = torch.bfloat16
    model.generation_config.eos_token_id = None  # never ends early
    return model


@torch.inference_mode()
def answer(model: nn.Module, ids: list[int], tokens: int, threads: int) -> dict:
    """Greedy generate(): seconds to the first token, and per token after it (None for a single one)."""
    torch.set_num_threads(threads)
    prompt, clock = torch.tensor([ids]), Clock()
    began = time.perf_counter()
    model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False, pad_token_id=0,
        streamer=clock,
    )  # fmt: skip
    at = clock.at_s
    if len(at) != tokens:
        raise RuntimeError(f"generate() gave {len(at)} tokens, expected {tokens}")
    return {"first_s": at[0] - began, "per_token_s": (at[-1] - at[0]) / (tokens - 1) if tokens > 1 else None}


def main() -> None:
    """Loads the model, then answers until stdin ends."""
    model = load(Path(sys.argv[1]))
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(answer(model, **question)), flush=True)


if __name__ == "__main__":
    main()
