"""A generic section: consecutive layers of any decoder, run by transformers' own code over mapped shards."""

import contextlib
import inspect
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from edgellm.errors import ManifestError, ModelError
from edgellm.model.generic import assemble, rope
from edgellm.model.generic.build import build_empty, find_layers, read_config
from edgellm.model.generic.joined import read_pieces
from edgellm.model.generic.shardfile import ShardFile, map_checked
from edgellm.model.generic.slot import KVSlot
from edgellm.model.generic.structure import Structure, trace
from edgellm.model.protocols import Array, Memory, Progress, Step
from edgellm.shards.manifest import Manifest


class _Done(Exception):
    """Unwinds the model's forward once the section's last layer has run."""


class GenericSection:
    """Layers [start, end) of a decoder; the first section also embeds, the last also has the head.

    The whole model is built, without memory, and runs its own forward; stand-ins pass over the layers that other boards
    hold. So every layer keeps its true number and config, and no family needs code of its own. Not for two threads at
    once.
    """

    path = "generic"
    batches = False  # torch's results depend on what is computed together

    def __init__(self, model: nn.Module, structure: Structure, start: int, end: int, without_ends: bool = False):
        """Called by `load`; `model` holds the section's weights."""
        self.start, self.end = start, end
        self.is_first = start == 0 and not without_ends
        self.is_last = end == structure.num_layers and not without_ends
        self.structure, self.model = structure, model
        self.hidden_size, self.vocab_size = structure.hidden_size, structure.vocab_size
        self.row_size = structure.hidden_size
        self.ram_bytes = 0
        self._hidden: torch.Tensor | None = None  # into the first layer, or out of the last one
        self._stop = False
        self._pass_length = rope.follow_pass_length(model)
        self.reuses = not rope.is_dynamic(model)  # else K and V depend on how long the sequence was by then
        self.reuses_any = True
        self.page_layout = f"generic {torch.__version__} {transformers.__version__}" if self.reuses else ""
        self.memories = (Memory(),) * (end - start)
        self._takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
        layers, own = find_layers(model)[1], weakref.proxy(self)  # no cycle: dropping it frees its memory at once
        if not self.is_first:
            layers[start].register_forward_pre_hook(lambda *args: own._enter(*args), with_kwargs=True)
        layers[end - 1].register_forward_hook(lambda *args: own._leave(*args))

    @classmethod
    def load(
        cls,
        manifest: Manifest,
        folder: Path | str,
        start: int,
        end: int,
        *,
        verify_sha256: bool = True,
        without_ends: bool = False,
        progress: Progress | None = None,
    ) -> "GenericSection":
        """Map the shards of layers [start, end) in `folder` and build the section over them.

        `progress(shard_name, bytes_done, bytes_total)` is called after each shard. `without_ends` leaves embedding and
        head out even where the section is first or last: it then takes and returns hidden states. Raises ManifestError
        naming the file that is missing, corrupt or of another shape, ModelError if the architecture can't be split.
        """
        folder = Path(folder)
        if not 0 <= start < end <= manifest.num_layers:
            raise ModelError(f"section {start}-{end} is not within the model's {manifest.num_layers} layers")
        entry = next((f for f in manifest.files if f.name == "config.json"), None)
        if entry is None:
            raise ManifestError(f"{folder}: the manifest lists no config.json; split the model again")
        map_checked(folder / entry.name, entry, verify_sha256)
        config = read_config(folder)
        structure, pieces = _matching(trace(config), manifest, folder), read_pieces(folder)
        model = build_empty(config, real_buffers=True)
        assemble.pass_over(find_layers(model)[1], structure, start, end)
        section = cls(model, structure, start, end, without_ends)
        shards = [s for s in manifest.section_shards(start, end) if s.kind == "layer" or not without_ends]
        done, total = 0, sum(s.bytes for s in shards)
        for shard in shards:
            file = ShardFile(folder, shard, verify_sha256)
            of_layer = pieces[shard.layer] if pieces and shard.layer is not None else ()
            section.ram_bytes += assemble.fill(model, structure, file, shard, of_layer)
            done += shard.bytes
            if progress:
                progress(shard.name, done, total)
        if not section.is_first:
            assemble.leave_out(model, structure.embedding_names)
        section.ram_bytes += assemble.check_complete(model, structure, section)
        return section

    def new_slot(self, max_seq_len: int, kv_dtype: str = "float32") -> KVSlot:
        """Return a slot for one sequence of up to `max_seq_len` tokens, reserved at once; kv_dtype float32 or float16.

        Raises ModelError for more tokens than the model is made for.
        """
        if max_seq_len > self.structure.max_seq_len:
            raise ModelError(f"a slot of {max_seq_len} tokens; the model is made for {self.structure.max_seq_len}")
        held = {i: self.structure.kv_shapes[i] for i in range(self.start, self.end)}
        return KVSlot(self.structure.num_layers, held, max_seq_len, kv_dtype)

    def example(self) -> Array:
        """Return an x of one token, to time a step with."""
        if self.is_first:
            return np.zeros(1, np.int64)
        return np.linspace(-1.0, 1.0, self.hidden_size, dtype=np.float32)[None, :]

    def forward_many(self, steps: Sequence[Step[KVSlot]]) -> list[Array | None]:
        """Run steps one after the other; see `forward`."""
        return [self.forward(s.x, s.position, s.slot, s.pass_len, s.logits) for s in steps]

    def forward(self, x: Array, position: int, slot: KVSlot, pass_len: int, logits: int) -> Array | None:
        """Run positions [position, position + tokens) of a sequence whose pass ends at `pass_len` tokens.

        x: int64 [tokens] in the first section, else float32 [tokens, hidden_size]. Returns float32
        [tokens, hidden_size]; in the last section the last token's logits, float32 [1, vocab_size], or None for
        `logits` 0. Feeding a position again overwrites it, with the same result. Raises ModelError if x, its place in
        the slot, or more than one token's logits don't fit.
        """
        if self.is_last and not 0 <= logits <= 1:
            raise ModelError(f"logits of {logits} tokens; a generic section gives those of a step's last token")
        out = self._forward(torch.tensor(x), position, slot, pass_len, self.is_last and logits == 1)
        return None if out is None else out.numpy()

    @torch.inference_mode()
    def _forward(
        self, x: torch.Tensor, position: int, slot: KVSlot, pass_len: int, want_logits: bool
    ) -> torch.Tensor | None:
        self._stop = not want_logits
        try:
            with self._pass(x, position, slot, pass_len) as inputs:
                if want_logits:
                    return self.model(**inputs, logits_to_keep=1).logits[0]
                self.model.base_model(**inputs)
        except _Done:
            return None if self.is_last or self._hidden is None else self._hidden[0]
        finally:
            self._hidden = None
        raise ModelError(f"{self.structure.model_type}: the forward pass ended before layer {self.end - 1}")

    @torch.inference_mode()
    def embed(self, x: Array, position: int, slot: KVSlot, pass_len: int) -> Array:
        """Run one step on the last section as `forward` does. Return what its head would take, float32 [tokens,
        hidden_size]. Raises ModelError too for a model that doesn't tell."""
        if not self.is_last:
            raise ModelError(f"section {self.start}-{self.end} isn't the last one, which embeddings come from")
        self._stop = False
        try:
            with self._pass(torch.tensor(x), position, slot, pass_len) as inputs:
                found = getattr(self.model.base_model(**inputs), "last_hidden_state", None)
        finally:
            self._hidden = None
        if found is None or found.shape != (1, len(x), self.hidden_size):
            raise ModelError(f"{self.structure.model_type} has no hidden states behind its last layer for embeddings")
        return found[0].float().numpy()

    @contextlib.contextmanager
    def _pass(self, x: torch.Tensor, position: int, slot: KVSlot, pass_len: int) -> Iterator[dict[str, Any]]:
        """Have a step's inputs for the model's forward, and count its tokens to the slot at the end."""
        tokens = self._check(x)
        slot.seek(position, tokens)
        self._pass_length.tokens = max(pass_len, position + tokens)
        inputs: dict[str, Any] = {"past_key_values": slot, "use_cache": True}
        if self._takes_positions:
            inputs["position_ids"] = torch.arange(position, position + tokens).unsqueeze(0)
        if self.is_first:
            inputs["input_ids"] = x.unsqueeze(0)
        else:
            self._hidden = inputs["inputs_embeds"] = x.unsqueeze(0)
        try:
            yield inputs
        finally:
            slot.filled = max(slot.filled, position + tokens)

    def trace(self, x: Array, position: int, slot: KVSlot, pass_len: int) -> Array:
        """Run one step as `forward` does. Return what each layer makes of it: float32 [layers, tokens, hidden_size]."""
        modules, outputs = find_layers(self.model)[1], []

        def note(layer, args, out):
            outputs.append((out[0] if isinstance(out, tuple) else out)[0].clone())

        hooks = [modules[i].register_forward_hook(note, prepend=True) for i in range(self.start, self.end)]
        try:
            self.forward(x, position, slot, pass_len, 0)
            return torch.stack(outputs).numpy()
        finally:
            for hook in hooks:
                hook.remove()

    def _check(self, x: torch.Tensor) -> int:
        """Return the number of tokens in x. Raises ModelError unless x is what this section takes."""
        if self.is_first:
            if x.dtype != torch.int64 or x.dim() != 1 or not len(x):
                raise ModelError(f"the first section takes int64 [tokens], not {_dtype(x)} {list(x.shape)}")
            low, high = int(x.min()), int(x.max())
            if low < 0 or high >= self.structure.vocab_size:
                size = self.structure.vocab_size
                raise ModelError(f"token ids {low} to {high} are not within the vocabulary of {size}")
        elif x.dtype != torch.float32 or x.dim() != 2 or not len(x) or x.shape[1] != self.structure.hidden_size:
            raise ModelError(
                f"section {self.start}-{self.end} takes float32 [tokens, {self.structure.hidden_size}], "
                f"not {_dtype(x)} {list(x.shape)}"
            )
        return x.shape[0]

    def _enter(self, layer, args, kwargs):
        if args:
            return (self._hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._hidden}

    def _leave(self, layer, args, out):
        if self._stop:
            self._hidden = out[0] if isinstance(out, tuple) else out
            raise _Done


def _matching(structure: Structure, manifest: Manifest, folder: Path) -> Structure:
    """Return `structure` if the manifest describes the same model. Raises ManifestError with both numbers."""
    for name in ("num_layers", "hidden_size", "vocab_size", "kv_elements_per_token"):
        found, said = getattr(structure, name), getattr(manifest, name)
        if found != said:
            path = folder / "config.json"
            raise ManifestError(f"{path}: {name} is {found}, the manifest says {said}; split it again")
    return structure


def _dtype(x: torch.Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
