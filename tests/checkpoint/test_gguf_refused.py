"""An architecture that can't be read from a GGUF is refused in one sentence, which says whether the folder works."""

import pytest
from gguf.constants import MODEL_ARCH_NAMES

from edgellm.checkpoint.described import needs_description
from edgellm.checkpoint.gguf.config import ARCHITECTURES
from edgellm.checkpoint.gguf.refused import FOLDER_FAILS, FOLDER_WORKS
from edgellm.checkpoint.sources import open_source
from edgellm.errors import CheckpointError
from edgellm.model.families.find import find_spec
from edgellm.model.generic.build import config_from_dict
from edgellm.model.generic.structure import trace
from tests.checkpoint.test_gguf_file import _s, gguf

_SMALL = {"num_hidden_layers": 4, "vocab_size": 64, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def test_an_architecture_is_in_one_table():
    tables = (set(ARCHITECTURES), set(FOLDER_WORKS), set(FOLDER_FAILS))
    assert sum(map(len, tables)) == len(set.union(*tables))
    assert set.union(*tables) <= set(MODEL_ARCH_NAMES.values())


@pytest.mark.parametrize("architecture", FOLDER_WORKS)
def test_where_the_folder_is_said_to_work_its_family_can_be_split(architecture):
    config = config_from_dict({"model_type": FOLDER_WORKS[architecture], **_SMALL})
    spec, _ = find_spec(config.to_dict())
    if spec is None or not needs_description(spec):
        trace(config)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("olmo", "but it can split the model's safetensors folder. Give that."),
        ("mamba", "and it can't split the model's safetensors folder either: its layers keep a recurrent state."),
        ("gemma3n", "split the model's safetensors folder either: its layers mix several hidden states."),
        ("nonesuch", "It can split the model's safetensors folder if transformers knows the model."),
    ],
)
def test_a_refusal_says_whether_the_folder_works(tmp_path, architecture, said):
    path = tmp_path / "m.gguf"
    entry = _s("general.architecture") + b"\x08\0\0\0" + _s(architecture)
    path.write_bytes(gguf([entry], [("token_embd.weight", (8, 4), 0, 0)], bytes(128)))
    with pytest.raises(CheckpointError) as e:
        open_source(str(path))
    assert str(e.value).startswith(f"{path}: edgellm can't read architecture {architecture!r} from a GGUF")
    assert str(e.value).endswith(said) and "\n" not in str(e.value) and "Error" not in str(e.value)


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_what_is_no_model_is_refused(tmp_path, kind):
    path = tmp_path / "m.gguf"
    entries = [_s(key) + b"\x08\0\0\0" + _s(value) for key, value in (("general.architecture", "llama"),
                                                                   ("general.type", kind))]  # fmt: skip
    path.write_bytes(gguf(entries, [("token_embd.weight", (8, 4), 0, 0)], bytes(128)))
    with pytest.raises(CheckpointError, match=f"holds no model: general.type is '{kind}'"):
        open_source(str(path))
