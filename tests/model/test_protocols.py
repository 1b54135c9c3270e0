"""Every section keeps the protocol that engine, stage and verify rely on: native, generic and fake."""

import inspect

import pytest

from edgellm.model.generic.section import GenericSection
from edgellm.model.generic.slot import KVSlot
from edgellm.model.native.section import NativeSection
from edgellm.model.native.slot import NativeSlot
from edgellm.model.protocols import Section, Slot
from tests.fakes import FakeSection, FakeSlot, make_manifest
from tests.model.families import CONFIGS, random_model
from tests.model.make_split import make_split

METHODS = ("new_slot", "example", "forward", "forward_many", "embed", "trace")


@pytest.mark.parametrize("kind", [NativeSection, GenericSection, FakeSection])
def test_methods_take_what_the_protocol_says(kind):
    for name in METHODS:
        own, said = (list(inspect.signature(getattr(c, name)).parameters) for c in (kind, Section))
        assert own == said, name


def test_sections_and_slots_are_those_of_the_protocol(tmp_path):
    manifest = make_split(random_model(CONFIGS["llama"]()), tmp_path)
    from edgellm.agent.load import load_section

    native, generic = (load_section(manifest, tmp_path, 0, 2, path=path) for path in ("auto", "generic"))
    fake = FakeSection(make_manifest(), 0, 2)
    for section, kind in ((native, NativeSlot), (generic, KVSlot), (fake, FakeSlot)):
        slot = section.new_slot(8)
        assert isinstance(section, Section) and isinstance(slot, Slot) and isinstance(slot, kind)
        assert slot.max_seq_len == 8 and slot.filled == 0
        x = section.example()
        assert x.shape == (1,), "the first section takes token ids"
        assert section.forward(x, 0, slot, 1, 0).shape == (1, section.hidden_size) and slot.filled == 1
    assert [s.path for s in (native, generic, fake)] == ["native", "generic", "fake"]
    assert [s.batches for s in (native, generic)] == [True, False]
