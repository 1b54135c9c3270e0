"""What rounding to int4 costs: squared error of the weights and perplexity of held-out text, affine beside two-level.

The little model's weights were never quantized before. SmolLM2's only source here is a Q4_1 file, which affine groups
of 32 hold without any loss: that favours affine. So it is also measured with each weight moved by a random part of half
a step, so that none lies on the file's grid; and with groups that begin in the middle of the file's, for an aligned one
by minimum and maximum finds nearly the same grid again, and takes the random part back.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.two_level import little, quantize
from edgellm.model.generic.packed import pack, unpack

TOKENS = 512  # of a window of SmolLM2


def as_packed(groups: torch.Tensor) -> torch.Tensor:
    """What the splitter's int4 makes of float32 [groups, 32]."""
    return unpack(pack(groups, "int4"), "int4", tuple(groups.shape))


WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "affine, edgellm's": as_packed,
    "affine, searched": quantize.affine_searched,
    "affine, searched with weights": quantize.affine_weighted,
    "two-level, minimum and maximum": quantize.two_level,
    "two-level, searched": quantize.two_level_searched,
    "two-level, searched with weights": quantize.two_level_weighted,
}


def layer_linears(model) -> list[torch.nn.Linear]:
    """Those that int4 is for: all of the layers."""
    return [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]


@torch.no_grad()
def compare(model, score: Callable[[], list[float]], moved: int = 0) -> list[dict]:
    """For each way the relative squared error, and the perplexities that `score` gives of several windows. Groups begin
    `moved` columns later than they would."""
    linears = layer_linears(model)
    originals = [linear.weight.detach().clone() for linear in linears]
    base, found = score(), []
    found.append({"way": "unquantized", "error": 0.0, "perplexities": base})
    for way, function in WAYS.items():
        error = power = 0.0
        for linear, weight in zip(linears, originals, strict=True):
            # SmolLM2's rows of 576 are not a multiple of 256: blocks may reach over a row's end here
            groups = weight.roll(-moved, dims=1).reshape(-1, 32)
            parts = [function(part) for part in groups.split(3 << 13)]
            linear.weight.copy_(torch.cat(parts).view_as(weight).roll(moved, dims=1))
            error += float((linear.weight - weight).double().square().sum())
            power += float(weight.double().square().sum())
        found.append({"way": way, "error": error / power, "perplexities": score()})
    for linear, weight in zip(linears, originals, strict=True):
        linear.weight.copy_(weight)
    return found


def of_little_model(steps: int, seeds: int) -> dict[str, list[dict]]:
    """The table for code and for English, both held out."""
    model, (_, held) = little.trained(steps), little.texts()
    return {name: compare(model, lambda text=text: little_scores(model, text, seeds)) for name, text in held.items()}


def little_scores(model, text: torch.Tensor, seeds: int) -> list[float]:
    """Perplexities of a byte, 16 windows a seed."""
    return [little.perplexity(model, little.windows(text, 16, seed)) for seed in range(seeds)]


def of_gguf(path: Path, windows: int, dithered: bool, moved: int) -> list[dict]:
    """The table for a GGUF model of transformers' Llama family, over windows of this project's pages."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    text = "\n".join(p.read_text() for p in [little.ALICE, *sorted(little.ROOT.glob("docs/*.md"))])
    ids = torch.tensor(tokenizer(text)["input_ids"])
    if dithered:
        torch.manual_seed(0)
        for linear in layer_linears(model):
            dither(linear.weight)

    @torch.no_grad()
    def score() -> list[float]:
        starts = [(len(ids) - TOKENS) * i // windows for i in range(windows)]
        parts = [ids[None, start : start + TOKENS] for start in starts]
        return [math.exp(float(model(input_ids=part, labels=part).loss)) for part in parts]

    return compare(model, score, moved)


@torch.no_grad()
def dither(weight: torch.Tensor) -> None:
    """Moves each weight by up to half a step of its Q4_1 group, where a step is the least distance of two values."""
    groups = weight.view(-1, 32)
    ordered = groups.sort(dim=1).values
    gaps = ordered.diff(dim=1)
    least = (ordered[:, -1:] - ordered[:, :1]) / 32  # equal values may differ by rounding; a step is 1/15 at least
    steps = torch.where(gaps > least, gaps, math.inf).amin(dim=1, keepdim=True)
    steps = torch.where(steps.isfinite(), steps, 0.0)
    groups += (torch.rand_like(groups) - 0.5) * steps
