"""Tokenizers out of GGUF files, as a split writes them: text cut as trained, special tokens whole, ends known.

Pre-tokenizers are in test_pretokenizers.py, SentencePiece vocabularies in test_sentencepiece.py. Ids are llama.cpp's.
"""

import json
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

from edgellm.checkpoint.gguf_tokenizer import gguf_end_token_ids, tokenizer_json
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.checkpoint.vocabulary.metadata import CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary
from edgellm.errors import CheckpointError
from tests.checkpoint.gguf_files import write_gguf

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Merges that would join digits with each other and with a space, if the text weren't cut before.
MERGES = ["1 2", "Ġ 1", "h i", "Ġ hi"]
TOKENS = [*bytes_to_unicode().values(), "12", "Ġ1", "hi", "Ġhi", "Ġ12"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(SPECIAL) + len(TOKENS),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
        )
    )


def _split(tmp_path, model, pre, merges=MERGES, **ids):
    tokenizer = dict(pre=pre, tokens=TOKENS, special=SPECIAL, merges=merges, eos=0) | ids
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer=tokenizer)
    return split(open_source(str(path)), tmp_path / "out")


def _tokens(tmp_path, text):
    return Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode(text).tokens


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["hi", "Ġ", "1", "2", "Ċ", "Ċ", "Ġ", "Ġhi"]),
        ("gpt-2", ["hi", "Ġ1", "2", "Ċ", "Ċ", "Ġ", "Ġhi"]),
        ("llama-bpe", ["hi", "Ġ", "12", "Ċ", "Ċ", "Ġ", "Ġhi"]),
        ("qwen2", ["hi", "Ġ", "1", "2", "Ċ", "Ċ", "Ġ", "Ġhi"]),
    ],
)
def test_text_is_cut_as_the_file_says(tmp_path, model, pre, expected):
    merges = [MERGES[1], MERGES[0], *MERGES[2:]] if pre == "gpt-2" else MERGES
    _split(tmp_path, model, pre, merges)
    text = "hi 12\n\n  hi"
    assert _tokens(tmp_path, text) == expected
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_stay_whole_and_the_template_is_kept(tmp_path, model):
    manifest = _split(tmp_path, model, "smollm", template=TEMPLATE)
    assert _tokens(tmp_path, "<|im_start|>hi<|im_end|>\n<|endoftext|>") == [
        "<|im_start|>", "hi", "<|im_end|>", "Ċ", "<|endoftext|>",
    ]  # fmt: skip
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == TEMPLATE and config["eos_token"] == "<|endoftext|>"
    # eos as the metadata has it, and the token that ends a turn in the template
    assert manifest.eos_token_ids == (0, 2)


def test_eos_and_eot_of_the_metadata_end_an_answer(tmp_path, model):
    assert _split(tmp_path, model, "smollm", eos=0, eot=1).eos_token_ids == (0, 1, 2)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("pre", "add_bos", "first"),
    [("smollm", None, "hi"), ("smollm", True, "<|im_start|>"), ("llama-bpe", None, "<|im_start|>"),
     ("llama-bpe", False, "hi")],
)  # fmt: skip
def test_beginning_of_text_is_added_where_the_file_or_its_kind_says(tmp_path, model, pre, add_bos, first):
    _split(tmp_path, model, pre, bos=1, **({} if add_bos is None else {"add_bos": add_bos}))
    assert _tokens(tmp_path, "hi")[0] == first


def test_unknown_way_to_cut_text_is_refused(tmp_path, model):
    with pytest.raises(CheckpointError, match="tokenizer.ggml.pre is 'nonesuch'"):
        _split(tmp_path, model, "nonesuch")


def test_vocabulary_that_contradicts_itself_is_refused(tmp_path, model):
    with pytest.raises(CheckpointError, match="merges 'no such', and 'no' is none of its 264 tokens"):
        _split(tmp_path, model, "smollm", ["no such", "tokens here"])


def test_file_without_vocabulary_has_no_tokenizer_and_split_says_so(tmp_path, model):
    source = open_source(str(write_gguf(tmp_path / "m.gguf", model)))
    (note,) = source.notes
    assert "m.gguf has no vocabulary" in note and "can be planned and measured, but not asked" in note
    manifest = split(source, tmp_path / "out")
    assert {f.name for f in manifest.files} == {"config.json", "generation_config.json"}


def _metadata(marks, pre="gpt-2", **changes) -> dict:
    """A byte-level vocabulary: `marks` (text, kind) first, then 256 bytes and "hi"."""
    letters = [*bytes_to_unicode().values(), "hi"]
    gguf = {
        "model": "gpt2", "pre": pre, "tokens": [*(text for text, _ in marks), *letters], "merges": ["h i"],
        "token_type": [*(kind for _, kind in marks), *[NORMAL] * len(letters)],
    }  # fmt: skip
    return {f"tokenizer.ggml.{name}": value for name, value in (gguf | changes).items() if value is not None}


def _tokenizer(metadata) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer_json(Vocabulary.parse(metadata, "m.gguf"))))


def test_control_tokens_need_not_be_of_the_byte_alphabet():
    names = ["<pad>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
    metadata = _metadata([(n, CONTROL) for n in names], "deepseek-r1-qwen", bos_token_id=1, add_bos_token=True)
    tokenizer = _tokenizer(metadata)
    assert tokenizer.encode("<｜User｜>Hi<｜Assistant｜>").ids == [1, 3, 44, 77, 4]
    text = "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>"
    assert tokenizer.decode([1, 3, 44, 77, 4], skip_special_tokens=False) == text
    assert gguf_end_token_ids(metadata, "m.gguf") == (2,)


def test_user_defined_runs_of_spaces_stay_whole_the_longest_first():
    tokenizer = _tokenizer(_metadata([("  ", USER_DEFINED), ("    ", USER_DEFINED), ("<eos>", CONTROL)]))
    assert tokenizer.encode("a  b").ids == [67, 0, 68]
    assert tokenizer.encode("a       b").ids == [67, 1, 0, 223, 68]
    assert tokenizer.decode([67, 1, 0, 223, 68]) == "a       b"


def test_user_defined_letters_are_decoded_as_what_they_are():
    tokens = [t for t in bytes_to_unicode().values() if t not in "øÿ"]  # bytes that no UTF-8 holds
    marks = [("ø", USER_DEFINED), ("ÿ", USER_DEFINED), ("été", USER_DEFINED)]
    kinds = [USER_DEFINED] * 3 + [NORMAL] * (len(tokens) + 1)
    metadata = _metadata(marks, tokens=[t for t, _ in marks] + tokens + ["hi"], token_type=kinds)
    tokenizer = _tokenizer(metadata)
    ids = tokenizer.encode("øhi été é").ids
    assert ids[0] == 0 and 2 in ids and tokenizer.decode(ids) == "øhi été é"


def test_end_of_turn_that_a_file_calls_plain_stays_whole():
    metadata = _metadata([("<|im_end|>", NORMAL), ("</s>", NORMAL), ("<x>", NORMAL)], eos_token_id=1)
    assert _tokenizer(metadata).encode("hi<|im_end|></s><x>").ids[:3] == [259, 0, 1]
    assert len(_tokenizer(metadata).encode("<x>").ids) == 3
    assert gguf_end_token_ids(metadata, "m.gguf") == (1, 0)


@pytest.mark.parametrize(("architecture", "ends"), [("phi3", (3, 4, 5)), ("llama", (3, 5))])
def test_phi3s_next_turn_ends_an_answer_as_its_generation_config_says(architecture, ends):
    texts = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>"]
    metadata = {
        "general.architecture": architecture,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [2, 3, 4, 3, 3, 3, 3],
        "tokenizer.ggml.eos_token_id": 3,
    }
    assert gguf_end_token_ids(metadata, "m.gguf") == ends


def test_ends_are_known_without_a_vocabulary():
    metadata = {"tokenizer.ggml.model": "none", "tokenizer.ggml.eos_token_id": 7, "tokenizer.ggml.eot_token_id": -1}
    assert gguf_end_token_ids(metadata, "m.gguf") == (7,)


def test_empty_and_repeated_tokens_keep_their_ids():
    metadata = _metadata([("", NORMAL), ("hi", UNUSED), ("<eos>", CONTROL)])
    tokenizer = _tokenizer(metadata)
    assert tokenizer.get_vocab_size() == 260 and tokenizer.token_to_id("<eos>") == 2
    assert tokenizer.encode("hi").ids == [1] and tokenizer.id_to_token(259) == "[DUPLICATE_259]"


def test_merges_twice_count_where_they_come_first():
    metadata = _metadata([("ab", NORMAL), ("bc", NORMAL)], merges=["a b", "b c", "a b"])
    assert _tokenizer(metadata).encode("abc").ids == [0, 68]


@pytest.mark.parametrize(
    ("name", "pre", "expected"), [("jina", "jina-v2-de", True), ("jina", "gpt-2", False), (3, "gpt-2", False)]
)
def test_mask_of_jina_swallows_the_space_before_it(name, pre, expected):
    metadata = _metadata([("<mask>", CONTROL)], pre) | {"general.name": name}
    assert _tokenizer(metadata).encode("hi  <mask>").ids[1:] == ([0] if expected else [221, 221, 0])


def test_file_without_merges_is_refused():
    with pytest.raises(CheckpointError, match="m.gguf: the vocabulary has no tokenizer.ggml.merges"):
        _tokenizer(_metadata([], merges=None))


def test_no_part_of_it_needs_torch_or_transformers(tmp_path):
    code = (
        "import sys; from pathlib import Path; from edgellm.checkpoint.gguf_tokenizer import write_tokenizer\n"
        "import json; print(write_tokenizer(Path('m.gguf'), json.load(sys.stdin), Path(sys.argv[1])))\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], input=json.dumps(_metadata([("<eos>", CONTROL)])), timeout=60,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "['tokenizer.json', 'tokenizer_config.json']\n", done.stderr
