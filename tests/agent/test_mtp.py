"""A model's own head for multi-token prediction drafts what transformers' does, whatever came before."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.checkpoint.helpers import encodings
from tests.model.mtp_models import CONTEXT, Drafting, ask, reference_drafts

IDS = np.random.default_rng(3).integers(3, 500, 70).tolist()


@pytest.mark.parametrize("name, tied", [
    ("qwen3_5", False), ("qwen3_5", True), ("qwen3_5_moe", False), ("qwen3_next", False), ("glm4_moe_options", False),
])  # fmt: skip
def test_drafts_are_those_of_transformers(tmp_path, name, tied):
    run = Drafting(tmp_path, name, tied=tied)
    run.compute(IDS[:40], 0)
    run.compute(IDS[40:49], 40)
    assert run.drafts(IDS[:50]) == run.expected(IDS[:50])
    # Two drafts come true, and one doesn't: what was computed behind it doesn't count.
    run.compute([*IDS[49:52], 7], 49)
    assert run.drafts(IDS[:53]) == run.expected(IDS[:53])
    assert (run.manifest.mtp.kv_elements_per_token, run.section.mtp is not None) == (
        run.manifest.kv_elements_per_token[-1], True
    )  # fmt: skip


def test_a_sequence_may_go_back_and_go_on_elsewhere(tmp_path):
    run = Drafting(tmp_path, "qwen3_5")
    run.compute(IDS[:60], 0)
    run.compute(IDS[60:62], 60)  # nobody asks for drafts, so some positions wait
    assert run.drafter.behind(ask(IDS[:63])) == 3
    run.drafter.catch_up(ask(IDS[:63]))
    assert run.drafter.behind(ask(IDS[:63])) == 1
    assert run.drafts(IDS[:63]) == run.expected(IDS[:63])
    other = [*IDS[:62], *IDS[:8]]
    run.compute(other[62:69], 62)
    assert run.drafts(other, 1) == run.expected(other, 1)
    run.compute(IDS[20:30], 0)
    assert run.drafts(IDS[20:31]) == run.expected(IDS[20:31])


def test_drafts_know_less_where_a_slot_was_filled_from_elsewhere(tmp_path):
    run = Drafting(tmp_path, "glm4_moe", slots=2)
    run.compute(IDS[:64], 0)
    run.compute(IDS[5:15], 0, slot=1)
    run.slots[1].restore(0, 64, run.slots[0].export(0, 64))
    run.compute(IDS[64:69], 64, slot=1)
    drafts = run.drafts(IDS[:70], slot=1)
    memory = run.slots[1].mtp
    assert (memory.begin, memory.filled) == (64, 69)
    # The head knows positions from 64 on alone, but the states in which the model sees all of them.
    assert drafts == Alone(run, IDS, 64).drafts(3)
    # Another sequence's tokens are no memory of this one.
    assert run.drafts([3, *IDS[1:70]], slot=1) == []


class Alone:
    """transformers' head on the last positions of a sequence."""

    def __init__(self, run: Drafting, ids: list[int], begin: int):
        self.run, self.ids, self.begin = run, ids, begin

    def drafts(self, count: int) -> list[int]:
        import torch

        model, head = self.run.model, self.run.head
        with torch.inference_mode():
            hidden = model.model(input_ids=torch.tensor([self.ids[:-1]]), use_cache=False).last_hidden_state
        whole = SimpleNamespace(
            model=lambda **kwargs: SimpleNamespace(last_hidden_state=hidden[:, self.begin :]), lm_head=model.lm_head
        )
        return reference_drafts(whole, head, self.ids[self.begin :], count)[0]


def test_several_sequences_draft_at_once_up_to_the_end_of_their_slots(tmp_path):
    run = Drafting(tmp_path, "qwen3_5", slots=3)
    texts = [IDS[:30], IDS[10:50], [*IDS, *IDS][:CONTEXT]]
    for slot, text in enumerate(texts):
        run.compute(text[:-1], 0, slot)
    asks = [ask(text, most, slot) for slot, (text, most) in enumerate(zip(texts, (1, 4, 3), strict=True))]
    found = run.drafter.drafts(asks)
    assert list(map(list, found)) == [run.expected(t, n) for t, n in zip(texts, (1, 4, 2), strict=True)]


def test_a_quantized_head_drafts_too(tmp_path):
    run = Drafting(tmp_path, "qwen3_5_moe", "int4")
    stored = encodings(tmp_path / "split", "head.safetensors")
    assert stored["mtp.layers.0.mlp.experts.up_proj.weight"] == "int4" != stored.get("mtp.layers.0.mlp.gate.weight")
    assert stored["mtp.embed_tokens.weight"] == "int8"
    text = list(IDS[:50])
    run.compute(text[:-1], 0)
    found = run.drafts(text)
    exact = reference_drafts(run.model, run.head, text, 1)[1]
    assert len(found) == 3 and int((exact > exact[found[0]]).sum()) < 25  # of 512 tokens


def test_without_drafts_nothing_is_kept(tmp_path):
    run = Drafting(tmp_path, "qwen3_5")
    run.section.keeps_hidden = False
    run.section.forward(np.array(IDS), 0, run.slots[0], len(IDS), 1)
    assert run.section.hidden_of(run.slots[0]) is None
