"""What a slot exports can be restored into another one, of another size too, and gives the same bits."""

import numpy as np
import pytest

from edgellm.agent.load import load_section
from edgellm.errors import ModelError
from tests.model.families import CONFIGS, random_model
from tests.model.make_split import make_split

IDS = np.random.default_rng(5).integers(0, 90, 200)


@pytest.mark.parametrize("path", ["auto", "generic"])
@pytest.mark.parametrize("kv_dtype", ["float16", "float32"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_one_slot_exports_another_one_continues_with(tmp_path, path, kv_dtype, family):
    manifest = make_split(random_model(CONFIGS[family]()), tmp_path)
    section = load_section(manifest, tmp_path, 0, manifest.num_layers, path=path)
    first, second = section.new_slot(201, kv_dtype), section.new_slot(250, kv_dtype)
    section.forward(IDS[:130], 0, first, 130, 0)
    for start, end in ((0, 64), (64, 128)):
        second.restore(start, end, first.export(start, end))
    assert second.filled == 128 and section.page_layout.startswith(section.path)
    results = [section.forward(IDS[128:], 128, slot, 200, 1) for slot in (first, second)]
    assert np.array_equal(*results)
    assert all(map(np.array_equal, first.export(64, 128), second.export(64, 128)))
    assert len(section.memories) == len(first.export(64, 128)) == manifest.num_layers
    some = first.export(64, 128, {1})
    assert some[0] is None and np.array_equal(some[1], first.export(64, 128)[1])


@pytest.mark.parametrize("path", ["auto", "generic"])
def test_a_page_that_does_not_fit_is_refused(tmp_path, path):
    manifest = make_split(random_model(CONFIGS["llama"]()), tmp_path)
    section = load_section(manifest, tmp_path, 0, 1, path=path)
    slot, page = section.new_slot(100), section.new_slot(100).export(0, 64)
    wrong = ([page[0][:-1]], [None], [])
    for start, end, data in ((16, 80, page), (64, 128, page), (0, 0, page), *((0, 64, parts) for parts in wrong)):
        with pytest.raises(ModelError, match=rf"positions? {start} "):
            slot.restore(start, end, data)
    assert slot.filled == 0 and not any(part.any() for part in slot.export(0, 96))
