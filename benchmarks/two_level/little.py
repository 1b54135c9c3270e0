"""A little Llama of bytes, trained here in float32: a source of weights that nobody has quantized before.

Its text is what any machine with Python has: the standard library's sources, beside this project's pages and a piece of
Alice in Wonderland. One file in eight, and the last third of Alice, are held out.
"""

import hashlib
import math
import os
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
ALICE = ROOT / "tests/texts/alice.txt"
HIDDEN, INNER, LAYERS, HEADS = 256, 768, 4, 4  # rows are multiples of 256
LENGTH, BATCH = 256, 16  # bytes of a sequence, sequences of a step


def texts() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Bytes, uint8, to train with; and those held out, of code and of English."""
    library = Path(os.__file__).parent
    train, code, english = [], [], []
    alice = ALICE.read_bytes()
    train.append(alice[: len(alice) * 2 // 3])
    english.append(alice[len(alice) * 2 // 3 :])
    files = [p for p in sorted(library.rglob("*.py")) if not {"site-packages", "test", "tests"} & set(p.parts)]
    for path in [*files, *sorted(ROOT.glob("docs/*.md"))]:
        held = hashlib.sha256(path.name.encode()).digest()[0] % 8 == 0
        target = (english if path.suffix == ".md" else code) if held else train
        target.append(path.read_bytes())

    def joined(parts: list[bytes]) -> torch.Tensor:
        return torch.frombuffer(bytearray(b"\n".join(parts)), dtype=torch.uint8)

    return joined(train), {"code": joined(code), "english": joined(english)}


def build(seed: int = 0):
    """The model with random weights: transformers' Llama, 3.5 million parameters, 3.4 in the layers' linears."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=256, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=LENGTH, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, use_cache=False,
    ))  # fmt: skip


def windows(text: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """int64 [count, LENGTH]: pieces of a text from random places."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - LENGTH, (count, 1), generator=generator)
    return text[starts + torch.arange(LENGTH)].long()


def trained(steps: int, learning_rate: float = 2e-3):
    """The model after `steps` of AdamW: warmed up over a tenth of them, then down to nothing by a half cosine."""
    model, (text, _) = build(), texts()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))
    began = time.monotonic()
    for step in range(steps):
        share = step / steps
        factor = min(1.0, 10 * (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor
        ids = windows(text, BATCH, step)
        with torch.autocast("cpu", torch.bfloat16):  # weights, gradients and optimizer stay float32
            loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: {loss.item():.3f} nats a byte, {time.monotonic() - began:.0f} s", file=sys.stderr,
                  flush=True)
    return model.eval()


@torch.no_grad()
def perplexity(model, ids: torch.Tensor) -> float:
    """Of a byte, over windows int64 [windows, LENGTH]."""
    losses = [float(model(input_ids=part, labels=part).loss) for part in ids.split(8)]
    return math.exp(sum(losses) / len(losses))
