"""Tiny random models with heads for multi-token prediction, and transformers' own way to run these."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers.modeling_layers import MtpModel

from edgellm.agent.drafters import Ask
from edgellm.agent.mtp import mtp_drafter
from edgellm.agent.slots import ids_of
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from tests.model.expert_models import expert_model
from tests.model.native_sections import load
from tests.model.recurrent_models import recurrent_model

CONTEXT = 96
# What a checkpoint calls a head's tensors, and what transformers does.
_QWEN = {
    "layers.0.eh_proj.": "mtp.fc.", "layers.0.enorm.": "mtp.pre_fc_norm_embedding.",
    "layers.0.hnorm.": "mtp.pre_fc_norm_hidden.", "layers.0.post_norm.": "mtp.norm.",
    "layers.0.mtp_block.": "mtp.layers.0.",
}  # fmt: skip


def _names(model) -> dict[str, str]:
    if model.config.model_type != "glm4_moe":
        return _QWEN
    at = f"model.layers.{model.config.num_hidden_layers}."
    names = dict(eh_proj="eh_proj", enorm="enorm", hnorm="hnorm", post_norm="shared_head.norm")
    return {f"layers.0.{ours}.": f"{at}{theirs}." for ours, theirs in names.items()} | {"layers.0.mtp_block.": at}


def mtp_model(name: str, tied: bool = False):
    """Return a random model, and its head as transformers has it."""
    model = expert_model(name) if name.startswith("glm") else recurrent_model(name)
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
    model.config.num_mtp_layers = 1
    if getattr(model.config, "layer_types", None) is not None:
        model.config.mtp_layer_types = ["full_attention"]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        head = MtpModel(model, 1).eval().requires_grad_(False)
        for parameter in head.layers.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for buffer_name, buffer in head.layers.named_buffers():
            if buffer_name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.1)
    return model, head


def head_tensors(model, head) -> dict[str, torch.Tensor]:
    """Return the head's tensors by the names of a checkpoint."""
    found = {}
    for name, tensor in head.layers.state_dict(prefix="layers.").items():
        ours, theirs = next((o, t) for o, t in _names(model).items() if name.startswith(o))
        found[theirs + name[len(ours) :]] = tensor.clone()
    return found


def save(model, head, folder: Path, **more: torch.Tensor) -> None:
    """Write a checkpoint with the head in it, and with `more` tensors."""
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file(load_file(path) | head_tensors(model, head) | more, path, {"format": "pt"})


@torch.inference_mode()
def reference_drafts(model, head, ids: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    """Return `count` drafts behind `ids`, of which all but the last are in the model's hands, and the logits of the
    first: plainly, without keys and values that were kept."""
    hidden = model.model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).last_hidden_state
    follows, drafts, first = list(ids[1:]), [], None
    for _ in range(count):
        states = head.forward_layer(
            0, hidden, torch.arange(1, len(follows) + 1)[None], None, input_ids=torch.tensor([follows])
        )
        logits = model.lm_head(states[0, -1])
        first = logits if first is None else first
        drafts.append(int(logits.argmax()))
        follows.append(drafts[-1])
        hidden = torch.cat([hidden, states[:, -1:]], dim=1)
    return drafts, first


class Drafting:
    """The last section of a model that is split, and sequences in its slots."""

    def __init__(self, tmp_path: Path, name: str, quantize: str = "none", tied: bool = False, slots: int = 1, of=None):
        """`of` is another source than a folder: what gives one for the model, its head and a path."""
        self.model, self.head = mtp_model(name, tied)
        if of is None:
            save(self.model, self.head, tmp_path / "checkpoint")
        source = of(self.model, self.head, tmp_path) if of else open_source(str(tmp_path / "checkpoint"))
        self.manifest = split(source, tmp_path / "split", quantize)
        (self.section,) = load(self.manifest, tmp_path / "split", (0, self.manifest.num_layers))
        self.slots = [self.section.new_slot(CONTEXT, "float32") for _ in range(slots)]
        self.drafter = mtp_drafter(self.section, self.slots)

    def compute(self, ids: list[int], position: int, slot: int = 0) -> None:
        """Run a step, and tell the drafter of it."""
        self.section.forward(np.array(ids), position, self.slots[slot], position + len(ids), 1)
        self.drafter.computed(slot, position, ids, self.section.hidden_of(self.slots[slot]))

    def drafts(self, ids: list[int], most: int = 3, slot: int = 0) -> list[int]:
        return list(self.drafter.drafts([ask(ids, most, slot)])[0])

    def expected(self, ids: list[int], most: int = 3) -> list[int]:
        return reference_drafts(self.model, self.head, ids, most)[0]


def ask(ids: list[int], most: int = 3, slot: int = 0) -> Ask:
    return Ask(slot, ids_of(ids), most)
