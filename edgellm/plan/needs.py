"""What a section needs in a board's RAM, and how much of its offer a board may use."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate, pairwise

from edgellm.limits import MAX_CHOICES, MTP_TOKENS
from edgellm.plan.types import Draft, Settings
from edgellm.shards.manifest import Manifest
from edgellm.shards.slot_memory import kv_bytes

_MIN_HEADROOM_BYTES = 64 << 20
_HEADROOM_SHARE = 20  # a twentieth of the offer: 5 %


def headroom_bytes(ram_bytes: int) -> int:
    """Return what stays free of a board's offer: 64 MiB or 5 %, whichever is more."""
    return max(_MIN_HEADROOM_BYTES, -(-ram_bytes // _HEADROOM_SHARE))


def usable_bytes(ram_bytes: int) -> int:
    """Return what a section may need at most on a board that offers `ram_bytes`."""
    return max(0, ram_bytes - headroom_bytes(ram_bytes))


def offer_for(need_bytes: int) -> int:
    """Return the smallest offer of which `need_bytes` are usable."""
    return max(need_bytes + _MIN_HEADROOM_BYTES, -(-need_bytes * _HEADROOM_SHARE // (_HEADROOM_SHARE - 1)))


@dataclass(frozen=True)
class SectionNeed:
    """RAM in bytes that a section needs, by purpose."""

    weights: int
    kv: int
    activations: int
    state: int = 0  # of recurrent layers, in all slots
    experts: int = 0  # of the weights

    @property
    def slots(self) -> int:
        """What the slots take, whatever is in them."""
        return self.kv + self.state

    @property
    def total(self) -> int:
        return self.weights + self.slots + self.activations

    def least(self, swap_experts: bool) -> int:
        """Return what has to be in RAM: all, or with `swap_experts` all but the experts."""
        return self.total - (self.experts if swap_experts else 0)


class Needs:
    """The needs of every section of one model under one `Settings`: sums of prefixes, so that a lookup costs nothing.

    A longer section never needs less than a part of it; the search rests on that.
    """

    def __init__(self, manifest: Manifest, settings: Settings):
        self.manifest, self.settings = manifest, settings
        self.num_layers = manifest.num_layers
        shards = manifest.shards[1:-1]
        self._weights = [0, *accumulate(s.ram_bytes for s in shards)]
        slots, context, kv_dtype = settings.slots, settings.context, settings.kv_dtype
        layers = zip(
            manifest.kv_elements_per_token, manifest.kv_scales_per_token, manifest.kv_window_tokens, strict=True
        )
        kv = (slots * kv_bytes(*layer, context, kv_dtype) for layer in layers)
        self._kv = [0, *accumulate(kv)]
        self._shared = _shared(manifest, [after - before for before, after in pairwise(self._kv)])
        self._state = [0, *accumulate(slots * state for state in manifest.state_bytes)]
        self._experts = [0, *accumulate(manifest.expert_bytes or [0] * manifest.num_layers)]
        self._embedding = manifest.embedding.ram_bytes
        self._head = manifest.head.ram_bytes
        # One pass holds a chunk of one prompt, or a token of every slot with drafts up to as many as one step may have.
        choices = max(settings.slots, MAX_CHOICES)
        tokens = max(settings.chunk, choices)
        activations = manifest.activation_elements_per_token  # what the layer at work produces
        mask = settings.context
        buffers = 2 * manifest.widest_row  # the hidden states that come in and go out
        self._activations = 4 * tokens * (activations + mask + buffers)
        # Beside the logits: the sampler's scratch, some of it in float64, and one row a sequence with a repeat penalty.
        self._logits = 4 * (choices + 8 + settings.slots) * manifest.vocab_size
        self._mtp_kv = 0
        if mtp := manifest.mtp:  # which drafts, behind the last layer, and has room of its own to compute in
            of_slot = kv_bytes(mtp.kv_elements_per_token, mtp.kv_scales_per_token, 0, context, kv_dtype)
            self._mtp_kv = slots * of_slot
            self._logits += 4 * (MTP_TOKENS * (activations + 4 * manifest.hidden_size) + manifest.vocab_size)
        self._draft = draft = settings.draft or Draft("none", "0" * 64, 0, 0, 0)
        draft_bytes = draft.weights_bytes + settings.slots * draft.slot_bytes + draft.scratch_bytes
        # The same as sums: of what layers need, and what any section needs beside them, the first and the last one.
        self.layer_sums = tuple(map(sum, zip(self._weights, self._kv, self._state, strict=True)))
        self.fixed_bytes = self._activations
        self.first_bytes, self.last_bytes = self._embedding, self._head + self._mtp_kv + self._logits + draft_bytes

    def of(self, start: int, end: int) -> SectionNeed:
        """Return the need of section [start, end)."""
        first, last, draft = start == 0, end == self.num_layers, self._draft
        weights = self._weights[end] - self._weights[start] + first * self._embedding + last * self._head
        return SectionNeed(
            weights=weights + last * draft.weights_bytes,
            kv=self._kv[end] - self._kv[start] + self._received(start, end)
            + last * (self._mtp_kv + self.settings.slots * draft.slot_bytes),
            activations=self._activations + last * (self._logits + draft.scratch_bytes),
            state=self._state[end] - self._state[start],
            experts=self.experts(start, end),
        )

    def total(self, start: int, end: int) -> int:
        """Return `of(start, end).total`, without the object."""
        need = self.layer_sums[end] - self.layer_sums[start] + self.fixed_bytes
        if self._shared:
            need += self._received(start, end)
        if start == 0:
            need += self.first_bytes
        if end == self.num_layers:
            need += self.last_bytes
        return need

    def least(self, start: int, end: int, swap_experts: bool) -> int:
        """Return `of(start, end).least(swap_experts)`, without the object."""
        return self.total(start, end) - (self.experts(start, end) if swap_experts else 0)

    def experts(self, start: int, end: int) -> int:
        """Return the bytes of the experts of layers [start, end)."""
        return self._experts[end] - self._experts[start]

    def _received(self, start: int, end: int) -> int:
        """Return what section [start, end) keeps of the keys and values of layers before it."""
        kept = 0
        for source, size, users in self._shared:
            at = bisect_left(users, start)
            if source < start and at < len(users) and users[at] < end:
                kept += size
        return kept


def _shared(manifest: Manifest, kv: list[int]) -> list[tuple[int, int, list[int]]]:
    """Return the layers whose keys and values others see: their numbers, what they keep, and who sees them."""
    users: dict[int, list[int]] = {}
    for layer, source in enumerate(manifest.kv_sources):
        if source != layer:
            users.setdefault(source, []).append(layer)
    return [(source, kv[source], found) for source, found in users.items()]


def section_need(manifest: Manifest, settings: Settings, start: int, end: int) -> SectionNeed:
    """Return what section [start, end) of a model needs in RAM."""
    return Needs(manifest, settings).of(start, end)
