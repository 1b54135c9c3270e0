"""A native section: mapped shards of a family that the native path knows, and steps run by the native library."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgellm.errors import ManifestError, ModelError
from edgellm.kernels import library
from edgellm.model.families.find import find_spec
from edgellm.model.families.mixers import Attention
from edgellm.model.families.spec import Layer, Spec
from edgellm.model.native.abi import MOST_STEPS, MOST_TOKENS, SectionHandle, new_steps
from edgellm.model.native.load import load
from edgellm.model.native.mtp import MtpHead
from edgellm.model.native.norm import normed
from edgellm.model.native.slot import NativeSlot
from edgellm.model.protocols import Array, Memory, Progress, Step
from edgellm.shards.manifest import Manifest
from edgellm.shards.mapped import map_checked

_MAX_CONFIG_BYTES = 4 << 20
_TRACED_TOKENS = 32  # at once: for more the native section would keep more memory than prompts need


def read_spec(manifest: Manifest, folder: Path | str, verify_sha256: bool = True) -> tuple[Spec | None, str]:
    """Return the Spec of the split model in `folder`, or None and why the generic path has to take it.

    Raises ManifestError for a config.json that is missing, changed or no JSON, or that describes another model than the
    manifest.
    """
    folder = Path(folder)
    entry = next((f for f in manifest.files if f.name == "config.json"), None)
    if entry is None:
        raise ManifestError(f"{folder}: the manifest lists no config.json; split the model again")
    path = folder / entry.name
    if entry.bytes > _MAX_CONFIG_BYTES:
        raise ManifestError(f"{path}: {entry.bytes} bytes, a config has at most {_MAX_CONFIG_BYTES}")
    raw = map_checked(path, entry, verify_sha256)[:]
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise ManifestError(f"{path} is not JSON: {e}") from None
    spec, reason = find_spec(config)
    if spec is None:
        return None, reason
    for name, found, said in (
        ("num_layers", spec.num_layers, manifest.num_layers),
        ("hidden_size", spec.hidden_size, manifest.hidden_size),
        ("vocab_size", spec.vocab_size, manifest.vocab_size),
        ("kv_elements_per_token", spec.kv_elements_per_token, manifest.kv_elements_per_token),
        ("kv_sources", spec.kv_sources, manifest.kv_sources),
        ("row_elements", spec.row_elements, manifest.row_elements),
    ):
        if found != said:
            raise ManifestError(f"{path}: {name} is {found}, the manifest says {said}; split it again")
    for i, layer in enumerate(spec.layers):  # plans have reserved what the manifest says, so slots must not need more
        window, state_bytes = manifest.kv_window_tokens[i], manifest.state_bytes[i]
        if layer.state_bytes > state_bytes or (window and not 0 < layer.kv_window_tokens <= window):
            raise ManifestError(
                f"{path}: layer {i} has a window of {layer.kv_window_tokens} tokens and {layer.state_bytes} bytes of "
                f"state, the manifest says {window} and {state_bytes}; split it again"
            )
    return spec if manifest.mtp else replace(spec, mtp=None), ""


class _Step(NamedTuple):
    """A step of this module's own making."""

    x: Array
    position: int
    slot: NativeSlot
    pass_len: int
    logits: int


class NativeSection:
    """Layers [start, end) of a decoder in one native call per step; the first section also embeds, the last also has
    the head. A token's result is the same bit for bit in any chunk or batch. Not thread-safe.
    """

    path = "native"
    batches = True  # forward_many gives what forward gives one by one, and reads the weights once
    reuses = True  # keys and values depend on the tokens before them, and on nothing else

    def __init__(self, spec: Spec, manifest: Manifest, folder: Path | str, start: int, end: int, *,
                 without_ends: bool = False, swaps: bool = False, verify_sha256: bool = True,
                 progress: Progress | None = None):  # fmt: skip
        """Map and check the shards. `without_ends` leaves embedding and head out: the section then takes and returns
        hidden states. `swaps`: experts don't all fit into RAM. Raises ManifestError naming the file, ModelError for
        layers that the model doesn't have."""
        if not 0 <= start < end <= manifest.num_layers:
            raise ModelError(f"section {start}-{end} is not within the model's {manifest.num_layers} layers")
        self.spec, self.start, self.end = spec, start, end
        self.hidden_size, self.vocab_size = spec.hidden_size, spec.vocab_size
        self.is_first = start == 0 and not without_ends
        self.is_last = end == spec.num_layers and not without_ends
        self.row_size = spec.hidden_size if self.is_first else spec.row_size(start)
        self._row_out = spec.hidden_size if self.is_last else spec.row_size(end)
        self._takes_ids = spec.embeds_per_layer
        self._passed = _passed(spec, start, end)
        self._layers = spec.within(start, end)
        self._loaded = load(spec, manifest, Path(folder), start, end, ends=not without_ends, swaps=swaps,
                            verify_sha256=verify_sha256, progress=progress)  # fmt: skip
        self.ram_bytes = self._loaded.ram_bytes
        self.mtp = MtpHead(spec, self._loaded.mtp) if self._loaded.mtp else None
        self.keeps_hidden = False  # whether something drafts from it
        self._hidden: dict[int, list[Array]] = {}  # by slot, of the steps that ran last
        self.page_layout = f"native {library.digest()}" + _received(self._layers, start)
        self.memories = tuple(_memory(layer) for layer in self._layers)
        self.reuses_any = all(memory.reach is None for memory in self.memories)
        self._native = SectionHandle(self._loaded.spec)
        self._steps = new_steps()
        self._tables: list[tuple[np.ndarray, np.ndarray]] = []

    def new_slot(self, max_seq_len: int, kv_dtype: str = "float16") -> NativeSlot:
        """Return a slot for one sequence of up to `max_seq_len` tokens, reserved at once; kv_dtype float16, float32
        or int8.

        Raises ModelError for more tokens than the model is made for.
        """
        if max_seq_len > self.spec.max_seq_len:
            raise ModelError(f"a slot of {max_seq_len} tokens; the model is made for {self.spec.max_seq_len}")
        slot = NativeSlot(self._layers, max_seq_len, kv_dtype)
        if self.mtp:
            slot.mtp = self.mtp.new_slot(max_seq_len, kv_dtype)
        self._reach(max_seq_len)
        return slot

    def example(self) -> Array:
        """Return an x of one token, to time a step with."""
        if self.is_first:
            return np.zeros(1, np.int64)
        x = np.linspace(-1.0, 1.0, self.row_size, dtype=np.float32)[None, :]
        if self._takes_ids:
            x[:, -1] = 0
        return x

    def forward(self, x: Array, position: int, slot: NativeSlot, pass_len: int, logits: int) -> Array | None:
        """Run one step: `forward_many` of it."""
        return self.forward_many([_Step(x, position, slot, pass_len, logits)])[0]

    def forward_many(self, steps: Sequence[Step[NativeSlot]]) -> list[Array | None]:
        """Run steps, each with x, position, slot, pass_len and logits.

        x: int64 [tokens] in the first section, else float32 [tokens, row_size], for positions [position, position +
        tokens) of the sequence in `slot`, in a pass that ends at `pass_len` tokens. Results in the same order: what the
        next section takes; from the last section logits after the last `logits` tokens, float32 [logits, vocab], or
        None for 0. Feeding a position again overwrites it, with the same result. Raises ModelError if an x or its
        place in the slot is off; then nothing was computed.
        """
        filled: dict[int, int] = {}  # by slot, where a sequence has several steps
        for step in steps:
            tokens, before = self._check(step.x), filled.get(id(step.slot), step.slot.filled)
            filled[id(step.slot)] = step.slot.check(step.position, tokens, before)
            if not 0 <= step.logits <= tokens:
                raise ModelError(f"logits of {step.logits} tokens of a step of {tokens}")
        results: list[Array | None] = []
        self._hidden = {}
        for batch in _batches(steps):
            if len(batch) == 1 and len(batch[0].x) > MOST_TOKENS:
                results.append(self._run_long(batch[0]))
            else:
                results += self._run_batch(batch)
        return results

    def hidden_of(self, slot: NativeSlot) -> Array | None:
        """Return what the head takes at the positions that the last call of `forward_many` has computed in a slot,
        float32 [tokens, hidden_size]; None if there are none, or nothing drafts from them."""
        rows = self._hidden.get(id(slot))
        if not rows or self._loaded.final_norm is None:
            return None
        return normed(np.concatenate(rows), *self._loaded.final_norm, self.spec.eps)

    def embed(self, x: Array, position: int, slot: NativeSlot, pass_len: int) -> Array:
        """Run one step on the last section. Return what its head would take, float32 [tokens, hidden_size].

        x, `position`, `slot` and `pass_len` as in `forward_many`. Raises ModelError if they are off.
        """
        tokens = self._check(x)
        slot.check(position, tokens, slot.filled)
        if not self.is_last or self._loaded.final_norm is None:
            raise ModelError(f"section {self.start}-{self.end} isn't the last one, which embeddings come from")
        x, out = np.ascontiguousarray(x), np.empty((tokens, self.hidden_size), np.float32)
        slot.begin(position, tokens)
        for a in range(0, tokens, MOST_TOKENS):
            b = min(tokens, a + MOST_TOKENS)
            self._set_step(0, b - a, position + a, slot, max(pass_len, position + tokens), 0)
            self._native.run(self._steps, 1, (0, self.end - self.start), x[a:b], out[a:b], None, self._ids(x[a:b]))
        slot.reach(position, tokens)
        return normed(out, *self._loaded.final_norm, self.spec.eps)

    def trace(self, x: Array, position: int, slot: NativeSlot, pass_len: int) -> Array:
        """Run one step layer by layer. Return what each layer makes of it: float32 [layers, tokens, hidden_size].

        x, `position`, `slot` and `pass_len` as in `forward_many`. Raises ModelError if they are off.
        """
        tokens = self._check(x)
        slot.check(position, tokens, slot.filled)
        x = np.ascontiguousarray(x)
        count = self.end - self.start
        outputs = np.empty((count, tokens, self.hidden_size), np.float32)
        slot.begin(position, tokens)
        for a in range(0, tokens, _TRACED_TOKENS):
            b = min(tokens, a + _TRACED_TOKENS)
            self._set_step(0, b - a, position + a, slot, pass_len, 0)
            rows, ids = x[a:b], self._ids(x[a:b])
            for layer, output in enumerate(outputs):
                out = np.empty((b - a, self._row_out if layer + 1 == count else self.hidden_size), np.float32)
                self._native.run(self._steps, 1, (layer, layer + 1), rows, out, None, ids)
                output[a:b] = out[:, : self.hidden_size]
                rows = out if self.is_first else np.hstack((output[a:b], x[a:b, self.hidden_size :]))
        slot.reach(position, tokens)
        return outputs

    def _run_long(self, step: Step[NativeSlot]) -> Array | None:
        """Run a step of more tokens than a call takes."""
        tokens, found = len(step.x), []
        pass_len = max(step.pass_len, step.position + tokens)
        for start in range(0, tokens, MOST_TOKENS):
            end = min(tokens, start + MOST_TOKENS)
            wanted = max(0, end - max(start, tokens - step.logits))
            part = _Step(step.x[start:end], step.position + start, step.slot, pass_len, wanted)
            found += [result for result in self._run_batch([part]) if result is not None]
        return np.concatenate(found) if found else None

    def _run_batch(self, steps: list[Step[NativeSlot]] | list[_Step]) -> list[Array | None]:
        total = wanted = 0
        for i, step in enumerate(steps):
            step.slot.begin(step.position, len(step.x))
            logits = step.logits if self.is_last else 0
            self._set_step(i, len(step.x), step.position, step.slot, step.pass_len, logits)
            total += len(step.x)
            wanted += logits
        x = steps[0].x if len(steps) == 1 else np.concatenate([step.x for step in steps])
        if not x.flags.c_contiguous:
            x = np.ascontiguousarray(x)
        layers, ids = (0, self.end - self.start), self._ids(x)
        if self.is_last:
            out = np.empty((wanted, self.vocab_size), np.float32)
            hidden = np.empty((total, self.hidden_size), np.float32) if self.keeps_hidden else None
            self._native.run(self._steps, len(steps), layers, x, hidden, out if wanted else None, ids)
            if hidden is not None:
                self._keep_hidden(steps, hidden)
        else:
            out = np.empty((total, self._row_out), np.float32)
            self._native.run(self._steps, len(steps), layers, x, out, None, ids)
            if ids is not None:
                out[:, -1] = ids
            for at, to, size in self._passed:
                out[:, to : to + size] = x[:, at : at + size]
        results: list[Array | None] = []
        at = 0
        for step in steps:
            step.slot.reach(step.position, len(step.x))
            count = step.logits if self.is_last else len(step.x)
            results.append(out[at : at + count] if count else None)
            at += count
        return results

    def _keep_hidden(self, steps: list[Step[NativeSlot]] | list[_Step], hidden: Array) -> None:
        """Keep what the last layer gave for each step, until others run: drafts are made from it."""
        at = 0
        for step in steps:
            self._hidden.setdefault(id(step.slot), []).append(hidden[at : at + len(step.x)])
            at += len(step.x)
            if step.slot.mtp:
                step.slot.mtp.cut(step.position)

    def _set_step(self, i: int, tokens: int, position: int, slot: NativeSlot, pass_len: int, logits: int) -> None:
        step = self._steps[i]
        step.tokens, step.position, step.logits = tokens, position, logits
        step.long_rope = self.spec.takes_long(max(pass_len, position + tokens))
        step.slot, step.slot_bytes = slot.address, slot.ram_bytes
        step.context, step.kv_encoding = slot.max_seq_len, slot.encoding

    def _check(self, x: Array) -> int:
        """Return the number of tokens in x. Raises ModelError unless x is what this section takes."""
        if self.is_first:
            if x.dtype != np.int64 or x.ndim != 1 or not len(x):
                raise ModelError(f"the first section takes int64 [tokens], not {x.dtype} {list(x.shape)}")
            low, high = int(x.min()), int(x.max())
            if low < 0 or high >= self.vocab_size:
                raise ModelError(f"token ids {low} to {high} are not within the vocabulary of {self.vocab_size}")
        elif x.dtype != np.float32 or x.ndim != 2 or not len(x) or x.shape[1] != self.row_size:
            raise ModelError(
                f"section {self.start}-{self.end} takes float32 [tokens, {self.row_size}], "
                f"not {x.dtype} {list(x.shape)}"
            )
        elif self._takes_ids:
            ids = x[:, -1]
            if not ((ids >= 0) & (ids < self.vocab_size) & (ids == np.floor(ids))).all():
                raise ModelError(f"rows end in what are no token ids of a vocabulary of {self.vocab_size}")
        return len(x)

    def _ids(self, x: Array) -> Array | None:
        """Return the token ids of what `_check` has passed, int64 [tokens], if layers have something of them."""
        if not self._takes_ids:
            return None
        return x if self.is_first else x[:, -1].astype(np.int64)

    def _reach(self, positions: int) -> None:
        """Give the library rotary factors for so many positions, unless it has them."""
        if self._tables and len(self._tables[0][0]) >= positions:
            return
        tables: list[tuple[np.ndarray, np.ndarray]] = []
        for i, rotary in enumerate(self.spec.rotaries):
            sets = [rotary.tables(which, positions) for which in range(len(rotary.frequencies))]
            for long_rope in (0, 1):
                which, factors = 2 * i + long_rope, sets[long_rope if len(sets) > 1 else 0]
                self._native.set_rope(which, *factors)
                if self.mtp:
                    self.mtp.set_rope(which, *factors)
            tables += sets
        self._tables = tables


def _passed(spec: Spec, start: int, end: int) -> list[tuple[int, int, int]]:
    """Return what goes from a row that comes in to the one that goes out, as (from, to, size) in floats: keys and
    values of layers before the section that layers behind it see."""
    came, go = spec.kv_offsets(start), spec.kv_offsets(end)
    return [(came[source], go[source], spec.layers[source].kv_elements_per_token) for source in came.keys() & go.keys()]


def _received(layers: Sequence[Layer], start: int) -> str:
    """Return which layers keep keys and values of others: their pages hold what those of other sections don't."""
    found = {start + i: layer.mixer.received for i, layer in enumerate(layers) if isinstance(layer.mixer, Attention)}
    return "".join(f", {number} keeps {source}'s" for number, source in found.items() if source is not None)


def _memory(layer: Layer) -> Memory:
    if layer.state_bytes:
        return Memory("state", 1)
    return Memory("window", layer.kv_window_tokens) if layer.kv_window_tokens else Memory()


def _batches(steps: Sequence[Step[NativeSlot]]) -> list[list[Step[NativeSlot]]]:
    """Return runs of steps that one call takes: each in a slot of its own, because a sequence's next step builds on the
    one before."""
    batches: list[list[Step[NativeSlot]]] = []
    tokens, slots = 0, set[int]()
    for step in steps:
        full = tokens + len(step.x) > MOST_TOKENS or len(slots) == MOST_STEPS
        if not batches or full or id(step.slot) in slots:
            batches.append([])
            tokens, slots = 0, set()
        batches[-1].append(step)
        tokens += len(step.x)
        slots.add(id(step.slot))
    return batches
