"""A factory for manifests and boards with sizes chosen by a test."""

import pytest

from edgellm.plan import Capacity
from edgellm.shards.manifest import Manifest, Shard

MB = 10**6
HEADROOM = 64 << 20  # of an offer under 1.3 GB


@pytest.fixture(scope="session")
def make_manifest():
    def make(layers, *, embedding=0, head=0, kv=0, hidden=1, vocab=1, activation=0, **fields) -> Manifest:
        """A manifest whose shards have these megabytes in RAM; `kv` elements a token, one number or one a layer."""

        def shard(name, kind, layer, megabytes):
            return Shard(f"{name}.safetensors", kind, layer, round(megabytes * MB), round(megabytes * MB), "0" * 64)

        defaults = dict(
            model="tiny", architecture="A", model_type="a", quantization="int4", max_seq_len=4096, eos_token_ids=(2,)
        )
        return Manifest(
            **{**defaults, **fields},
            num_layers=len(layers),
            hidden_size=hidden,
            vocab_size=vocab,
            kv_elements_per_token=tuple(kv) if isinstance(kv, list | tuple) else (kv,) * len(layers),
            activation_elements_per_token=activation,
            rope_switch_len=None,
            shards=(
                shard("embedding", "embedding", None, embedding),
                *(shard(f"layer-{i:04}", "layer", i, size) for i, size in enumerate(layers)),
                shard("head", "head", None, head),
            ),
            files=(),
        )

    return make


@pytest.fixture(scope="session")
def make_boards():
    def make(*offers) -> list[Capacity]:
        """Boards pi1, pi2, … from (usable megabytes, ms a layer, ms for the head, ms a hop, ms a layer for each further
        token of a batch and for a prompt token). The last four may lack: no time."""
        boards = []
        for i, offer in enumerate(offers, 1):
            usable, layer, head, hop, batch, prefill = (*offer, *[0] * (6 - len(offer)))
            seconds = [ms / 1e3 for ms in (layer, head, hop)]
            offered = HEADROOM + round(usable * MB)
            board = Capacity(f"pi{i}", offered, *seconds, batch_layer_s=batch / 1e3, prefill_layer_s=prefill / 1e3)
            boards.append(board)
        return boards

    return make
