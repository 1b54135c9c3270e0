"""Tokenizers out of GGUF files: text is cut as the model was trained to see it, special tokens stay whole."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
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
    assert _split(tmp_path, model, "smollm", eos=0, eot=1).eos_token_ids == (0, 1)


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
    with pytest.raises(CheckpointError, match="can't make a tokenizer") as e:
        _split(tmp_path, model, "smollm", ["no such", "tokens here"])
    assert "\n" not in str(e.value)


def test_file_without_vocabulary_has_no_tokenizer(tmp_path, model):
    manifest = split(open_source(str(write_gguf(tmp_path / "m.gguf", model))), tmp_path / "out")
    assert {f.name for f in manifest.files} == {"config.json", "generation_config.json"}
