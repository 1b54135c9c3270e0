"""A folder's tokenizer, template and ends: what the split gets of them, whichever of its files they are in."""

import base64
import json
import struct
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgellm.checkpoint import folder_tokenizer
from edgellm.checkpoint.sources import open_source
from edgellm.errors import CheckpointError
from edgellm.text.tokenizer import Tokenizer as SplitTokenizer
from tests.checkpoint.helpers import save, tiny_model

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")  # 256 to 259, after the bytes
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """config.json and weights of a model of 512 tokens."""
    from transformers import AutoModelForCausalLM

    from tests.checkpoint.helpers import CONFIGS

    config = CONFIGS["llama"]()
    config.vocab_size = 512
    return save(AutoModelForCausalLM.from_config(config), tmp_path_factory.mktemp("weights"))


@pytest.fixture
def folder(weights, tmp_path):
    """A model's folder with a byte-level tokenizer.json, and no other file of a tokenizer."""
    for path in weights.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "generation_config.json").unlink()
    write_library(tmp_path)
    return tmp_path


def write_library(folder: Path, special=SPECIAL) -> None:
    library = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    library.save(str(folder / "tokenizer.json"))


def write(folder: Path, **files) -> None:
    """Write files by name (a dot as two underscores): JSON, or text as it is."""
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def files_of(folder: Path, out: Path | None = None) -> Path:
    """The files that a split of `folder` gets beside its shards."""
    out = out or folder / "out"
    out.mkdir()
    open_source(str(folder)).write_files(out)
    return out


def library_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(files_of(folder) / "tokenizer.json"))


def transformers_ids(folder: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]


def test_cuts_and_fillings_of_training_never_reach_a_prompt(folder):
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.enable_truncation(32)
    library.enable_padding(length=512)
    library.save(str(folder / "tokenizer.json"))
    write(folder, chat_template__jinja=CHATML)
    out = files_of(folder)
    content = json.loads((out / "tokenizer.json").read_text())
    assert content["truncation"] is None and content["padding"] is None
    for path in (out, folder):  # also in a split that 0.1 made, with the file as it was
        assert len(SplitTokenizer(path).encode_chat([{"role": "user", "content": "a" * 100}])) == 119
        assert len(SplitTokenizer(path).encode("a" * 5)) == 5


@pytest.mark.parametrize(
    "files",
    [
        {"special_tokens_map__json": {"bos_token": "<s>", "eos_token": "</s>"}},
        {"special_tokens_map__json": {"bos_token": {"content": "<s>", "lstrip": False}}},
        {"tokenizer_config__json": {"bos_token": {"__type": "AddedToken", "content": "<s>"}}},
        {"tokenizer_config__json": {}, "special_tokens_map__json": {"bos_token": "<s>"}},
        {"tokenizer_config__json": {"bos_token": "</s>"}, "special_tokens_map__json": {"bos_token": "<s>"}},
        {"tokenizer_config__json": {"bos_token": "<s>", "added_tokens_decoder": {}},
         "special_tokens_map__json": {"bos_token": "</s>"}},
    ],
)  # fmt: skip
def test_a_template_finds_special_tokens_whichever_file_names_them(folder, files):
    write(folder, chat_template__jinja="{{ bos_token }}" + CHATML, **files)
    ids = SplitTokenizer(files_of(folder)).encode_chat([{"role": "user", "content": "hi"}])
    assert len(ids) == 22 and ids[0] == 256


_EXTRA = {"content": "<extra>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config__json": {"added_tokens_decoder": {"260": _EXTRA}}},
        {"tokenizer_config__json": {"added_tokens_decoder": {"260": {**_EXTRA, "lstrip": True, "rstrip": True}}}},
        {"tokenizer_config__json": {"added_tokens_decoder": {"260": {**_EXTRA, "special": False}}}},
        {"added_tokens__json": {"<extra>": 260}},
        {"tokenizer_config__json": {"additional_special_tokens": ["<extra>"]}},
        {"tokenizer_config__json": {"extra_special_tokens": ["<extra>"]}},
        {"tokenizer_config__json": {"extra_special_tokens": {"image_token": "<extra>"}}},
        {"tokenizer_config__json": {"image_token": "<extra>"}},
        {"tokenizer_config__json": {"pad_token": "<extra>"}},
        {"special_tokens_map__json": {"additional_special_tokens": ["<extra>", "</s>"]}},
        {"special_tokens_map__json": {"pad_token": {"content": "<extra>", "normalized": False}}},
    ],
)  # fmt: skip
def test_tokens_that_files_add_are_tokens_as_in_transformers(folder, files):
    files.setdefault("tokenizer_config__json", {})["tokenizer_class"] = "PreTrainedTokenizerFast"
    write(folder, **files)
    library = library_of(folder)
    for text in ("a<extra>b", "a <extra> b", "a<extra><|im_end|>"):
        assert library.encode(text).ids == transformers_ids(folder, text), text
    assert library.encode("a<extra>b").ids == [64, 260, 65]


def test_many_added_tokens_take_their_places_in_order(folder):
    said = {str(i): {"content": f"<{i}>", "special": i % 2 == 0} for i in range(460, 259, -1)}
    write(folder, tokenizer_config__json={"added_tokens_decoder": said})
    source = open_source(str(folder))
    assert source.notes == ()
    library = library_of(folder)
    assert all(library.token_to_id(token["content"]) == int(i) for i, token in said.items())
    skipped = library.decode([64, 460, 459], skip_special_tokens=True)
    assert "<459>" in skipped and "<460>" not in skipped


def test_a_token_at_another_place_than_was_said_is_told(folder):
    write(folder, tokenizer_config__json={"added_tokens_decoder": {"300": _EXTRA}})
    (note,) = open_source(str(folder)).notes
    assert "'<extra>' should have the id 300, but the vocabulary has 260" in note


def test_a_token_without_an_embedding_is_no_token(folder):
    write(folder, tokenizer_config__json={"additional_special_tokens": [f"<x{i}>" for i in range(300)]})
    library = library_of(folder)
    assert library.get_vocab_size() == 512 and library.token_to_id("<x251>") == 511


@pytest.mark.parametrize(
    "files, message",
    [
        ({"tokenizer__json": "{}"}, "tokenizer.json is not a tokenizer: "),
        ({"tokenizer__json": "{"}, "tokenizer.json is not JSON: "),
        ({"tokenizer_config__json": "[1]"}, "tokenizer_config.json is not a JSON object"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"x": _EXTRA}}}, "a token has the id 'x', expected"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"7": 1}}}, "added_tokens_decoder has for token 7: 1"),
        ({"added_tokens__json": {"<extra>": -1}}, "added_tokens.json: a token has the id '-1'"),
    ],
)
def test_files_that_are_no_tokenizer_are_one_sentence(folder, files, message):
    write(folder, **files)
    with pytest.raises(CheckpointError, match=message) as e:
        files_of(folder)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template__jinja": "right"},
        {"chat_template__json": {"chat_template": "right"}},
        {"tokenizer_config__json": {"chat_template": "right"}},
        {"tokenizer_config__json": {"chat_template": [{"name": "tool_use", "template": "tools"},
                                                      {"name": "default", "template": "right"}]}},
        {"chat_template__json": {"chat_template": {"default": "right", "tool_use": "tools"}}},
        {"chat_template__jinja": "right", "chat_template__json": {"chat_template": "wrong"}},
        {"chat_template__json": {"chat_template": "right"}, "tokenizer_config__json": {"chat_template": "wrong"}},
        {"tokenizer_config__json": {"chat_template": [{"name": "only", "template": "right"}, 7]}},
    ],
)  # fmt: skip
def test_the_chat_template_is_found_wherever_it_is(folder, files):
    write(folder, **files)
    out = files_of(folder)
    assert (out / "chat_template.jinja").read_text() == "right"
    assert "wrong" not in "".join(p.read_text() for p in out.glob("*.j*"))


def test_templates_for_other_uses_are_kept_by_name(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    write(folder, chat_template__jinja="right", tokenizer_config__json={"chat_template": "wrong"})
    out = files_of(folder)
    assert (out / "chat_template.jinja").read_text() == "right"
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == [
        {"name": "default", "template": "right"}, {"name": "tool_use", "template": "tools"},
    ]  # fmt: skip


def test_templates_without_a_default_are_told(folder):
    named = [{"name": name, "template": "x"} for name in ("tool_use", "rag")]
    write(folder, tokenizer_config__json={"chat_template": named})
    (note,) = open_source(str(folder)).notes
    assert "the chat templates rag, tool_use, but none named default" in note
    assert not SplitTokenizer(files_of(folder)).has_template


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_no_part_of_a_file(folder, encoding):
    write(folder, tokenizer_config__json={"bos_token": "<s>"}, generation_config__json={"eos_token_id": 259})
    for path in [*folder.glob("*.json")]:
        text = path.read_text()
        path.unlink()
        path.write_text(text, encoding=encoding)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}ü", encoding="utf-8-sig")
    source = open_source(str(folder))
    assert 259 in source.eos_token_ids
    out = files_of(folder)
    assert all(p.read_bytes()[:1] in b"{" for p in out.glob("*.json"))
    assert SplitTokenizer(out).encode_chat([{"role": "user", "content": ""}])[0] == 256
    assert (out / "chat_template.jinja").read_bytes() == "{{ bos_token }}ü".encode()


def test_a_folder_without_tokenizer_is_told_when_it_is_split(folder):
    (folder / "tokenizer.json").unlink()
    (note,) = open_source(str(folder)).notes
    assert "has no tokenizer (no tokenizer.json, tokenizer.model or vocab.json): its split can be planned" in note
    assert not (files_of(folder) / "tokenizer.json").exists()


# SentencePiece's tokenizer.model, by hand: protobuf fields (number, then length and bytes, or a number).
def _varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def _field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def write_sentencepiece(folder: Path) -> None:
    """A BPE vocabulary with byte fallback, as Llama 2's: pieces in the order in which they merge."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{i:02X}>", 0.0, 6) for i in range(256))]
    words = ["▁t", "he", "▁the", "▁th", "at", "▁hat"]
    pieces += [(piece, -float(i), 1) for i, piece in enumerate([*words, *"▁etaoinshrdlucmfwygpbvkxqjzTHQ."])]
    body = b"".join(
        _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _field(3, kind))
        for text, score, kind in pieces
    )
    body += _field(2, _field(3, 2) + _field(35, 1))  # trainer: BPE, byte fallback
    body += _field(3, _field(1, b"identity") + _field(3, 1) + _field(4, 0))  # normalizer: a space before, none removed
    (folder / "tokenizer.model").write_bytes(body)
    write(folder, tokenizer_config__json={
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "add_bos_token": True,
    })  # fmt: skip


def test_a_folder_with_only_tokenizer_model_has_the_ids_of_sentencepiece(folder):
    import sentencepiece

    (folder / "tokenizer.json").unlink()
    write_sentencepiece(folder)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    out = files_of(folder)
    tokenizer = SplitTokenizer(out)
    for text in ("the hat", "that  is é", "T\nQ"):
        assert tokenizer.encode(text) == [1, *reference.encode(text)], text
    assert json.loads((out / "tokenizer_config.json").read_text())["bos_token"] == "<s>"


def test_what_converting_lacks_is_named(folder, monkeypatch):
    (folder / "tokenizer.json").unlink()
    write_sentencepiece(folder)
    monkeypatch.setattr(folder_tokenizer, "_is_installed", lambda module: module != "sentencepiece")
    with pytest.raises(CheckpointError, match=r"only tokenizer.model, and sentencepiece is not installed. Run pip"):
        files_of(folder)


def test_a_damaged_tokenizer_model_is_called_that(folder):
    (folder / "tokenizer.json").unlink()
    write_sentencepiece(folder)
    whole = (folder / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(whole[: len(whole) // 2] + b"\xff" * 9)
    with pytest.raises(CheckpointError, match=r"tokenizer.model is no vocabulary of SentencePiece's. Fetch it again.$"):
        files_of(folder)


def test_a_vocabulary_without_its_merges_is_named(folder):
    (folder / "tokenizer.json").unlink()
    write(folder, vocab__json={"a": 0})
    with pytest.raises(CheckpointError, match=r"neither tokenizer.json nor the merges.txt that belongs to its vocab"):
        files_of(folder)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "generation_config.json", "model.safetensors"],
)
def test_a_file_that_git_lfs_has_not_fetched_is_called_that(folder, name):
    (folder / "tokenizer.json").unlink() if name == "tokenizer.model" else None
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 9\n")
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer of Git LFS, not the file itself. Fetch it"):
        files_of(folder)


@pytest.mark.parametrize("name", ["qwen.tiktoken", "tokenizer.model"])
def test_ranks_without_a_way_to_cut_words_are_refused(folder, name):
    (folder / "tokenizer.json").unlink()
    lines = [base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256)]
    (folder / name).write_bytes(b"".join(lines))
    with pytest.raises(CheckpointError, match=f"{name} has only the ranks of tokens .* tokenizer.json beside it"):
        files_of(folder)


@pytest.mark.parametrize(
    "special, generation, config, ends",
    [
        (SPECIAL, {"eos_token_id": 257}, {}, (257, 259)),  # a chat's end that only its text shows
        (SPECIAL, {"eos_token_id": [259, 257, 259]}, {}, (259, 257)),
        (SPECIAL, {}, {}, (2, 257, 259)),  # config.json's
        (SPECIAL, {"eos_token_id": 256}, {"eos_token": "<|im_start|>"}, (256, 258, 257, 259)),
        (("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<reponame>"), {"eos_token_id": 258}, {}, (258, 256, 259)),
        (("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"), {"eos_token_id": [258]}, {}, (258, 256, 257)),
        (("<bos>", "<end_of_turn>"), {"eos_token_id": 300}, {}, (300, 257)),
    ],
)
def test_every_token_that_ends_an_answer_ends_it(folder, special, generation, config, ends):
    write_library(folder, special)
    write(folder, tokenizer_config__json=config)
    if generation:
        write(folder, generation_config__json=generation)
    assert open_source(str(folder)).eos_token_ids == ends


def test_an_end_beyond_the_vocabulary_is_said_and_left_out(folder):
    write(folder, generation_config__json={"eos_token_id": [512, 257, 99999]})
    source = open_source(str(folder))
    assert source.eos_token_ids == (257, 259)
    assert any("eos_token_id 512 is beyond the 512 tokens of the model" in note for note in source.notes)


def test_ends_that_only_the_config_names_need_no_tokenizer(tmp_path):
    assert open_source(str(save(tiny_model("llama"), tmp_path))).eos_token_ids == (2,)
