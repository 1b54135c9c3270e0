"""A draft model: it follows what its slots hold, and answers are what they are without it, however good it is."""

import numpy as np
import pytest

from edgellm.agent.draft_model import DraftModel
from edgellm.agent.drafters import Ask
from edgellm.agent.load import load_section
from edgellm.agent.slots import ids_of
from edgellm.model.sampler import sample
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from tests.model.recurrent_models import recurrent_model, split

TEXT = [(7 * i) % 89 + 1 for i in range(90)]


@pytest.fixture(scope="module", params=["qwen3_5", "lfm2"])
def section(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("draft") / "split"
    split(recurrent_model(request.param), folder)
    manifest = Manifest.read(folder)
    return load_section(manifest, folder, 0, manifest.num_layers)


def alone(section, ids, count, sampling):
    """What the model says, computed anew for each token."""
    ids, began = list(ids), len(ids)
    for _ in range(count):
        slot = section.new_slot(256)
        (logits,) = section.forward(np.array(ids, np.int64), 0, slot, len(ids), 1)
        ids.append(sample(logits, ids, sampling, len(ids), began))
    return tuple(ids[began:])


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3, repeat_penalty=1.2)])
def test_drafts_are_what_the_model_says_whatever_its_slots_held_before(section, sampling):
    model = DraftModel(section, [section.new_slot(256) for _ in range(2)], section.vocab_size, 32)

    def drafts(slot, ids, most, began):
        return Ask(slot, ids_of(ids), most, sampling, began)

    first = drafts(0, TEXT[:70], 4, 70)
    assert model.behind(first) == 70
    assert model.catch_up(first) and model.behind(first) == 38
    assert model.catch_up(first) and not model.catch_up(first) and model.behind(first) == 1
    other = drafts(1, TEXT[20:40], 2, 20)
    both = model.drafts([first, other])
    assert both == [alone(section, TEXT[:70], 4, sampling), alone(section, TEXT[20:40], 2, sampling)]
    right = (*TEXT[:70], *both[0][:3])  # the boards chose all but the last, and then another
    assert model.behind(drafts(0, [*right, 5], 1, 70)) == 1
    longer = drafts(0, [*TEXT[:70], both[0][0], 7], 3, 70)  # no: only the first, and two were in vain
    assert model.behind(longer) == 1
    assert model.drafts([longer]) == [alone(section, longer.ids, 3, sampling)]
    anew = drafts(0, TEXT[30:60], 2, 30)
    assert model.drafts([anew]) == [alone(section, TEXT[30:60], 2, sampling)]


def test_no_draft_goes_beyond_a_slot_and_unknown_tokens_are_no_trouble(section):
    model = DraftModel(section, [section.new_slot(32)], section.vocab_size + 5, 32)
    strange = [*TEXT[:29], section.vocab_size + 2]
    assert [len(model.drafts([Ask(0, ids_of(strange), most)])[0]) for most in (1, 9)] == [1, 3]
    assert model.drafts([Ask(0, ids_of(TEXT[:33]), 9)]) == [()]
    assert not model.catch_up(Ask(0, ids_of(TEXT[:60]), 9))
    few = DraftModel(section, [section.new_slot(32)], 50, 32)
    assert max(few.drafts([Ask(0, ids_of(TEXT[:20]), 9, Sampling(temperature=2.0, seed=1))])[0]) < 50
