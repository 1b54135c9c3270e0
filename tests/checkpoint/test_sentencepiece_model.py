"""A folder with no vocabulary but tokenizer.model: its ids are SentencePiece's, and a GGUF's of the same model."""

import io
import json
import random
import subprocess
import sys

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer, sentencepiece_model_pb2

from edgellm.checkpoint.folder_tokenizer import read_tokenizer
from edgellm.checkpoint.gguf_tokenizer import write_tokenizer
from edgellm.checkpoint.sentencepiece_model import read_metadata
from edgellm.checkpoint.vocabulary.metadata import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from edgellm.errors import CheckpointError
from edgellm.text.tokenizer import Tokenizer

_SIZE = 1000  # tokens that the model embeds
_LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_TEXTS = ["", " ", "  two", "   three", "a  b     c ", "\n", " \n\n  x", "\t\tdef f(x):\n        return x\n",
          "🙂 é\u0301 你 ▁", "two  🙂  two"]  # fmt: skip
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|> {% endif %}"
)


def _train(**changes) -> bytes:
    """A vocabulary of this very file's text."""
    settings = dict(vocab_size=700, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                    remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=1.0,
                    control_symbols=["<|user|>", "<|end|>"])  # fmt: skip
    model = io.BytesIO()
    with open(__file__, encoding="utf-8") as text:
        lines = [*text, "a  b   c     d      e " * 9]
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, num_threads=1, **settings | changes
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def llama():
    return _train()


def _files(folder, model: bytes, config: dict | None = None, **files) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    for name, content in {"config": {"model_type": "llama"}, "tokenizer_config": config, **files}.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))


def _tokenizer(folder, model: bytes, config: dict | None = None, **files) -> Tokenizer:
    """The tokenizer of the split of a folder with these files."""
    _files(folder, model, config, **files)
    (out := folder / "out").mkdir()
    for name, content in read_tokenizer(folder, _SIZE).files.items():
        (out / name).write_bytes(content)
    return Tokenizer(out)


def _of_gguf(folder, model: bytes, added: list[tuple[str, int]] = (), **more) -> Tokenizer:
    """The tokenizer of the split of a GGUF whose metadata is what llama.cpp's converter writes for `model`."""
    trained = SentencePieceProcessor(model_proto=model)
    user_defined = {p.piece for p in sentencepiece_model_pb2.ModelProto.FromString(model).pieces if p.type == 4}

    def kind(i: int) -> int:
        kinds = ((trained.is_unknown, UNKNOWN), (trained.is_control, CONTROL), (trained.is_byte, BYTE))
        default = USER_DEFINED if trained.id_to_piece(i) in user_defined else NORMAL
        return next((kind for is_kind, kind in kinds if is_kind(i)), default)

    ids = range(trained.vocab_size())
    gguf = {
        "model": "llama",
        "tokens": [*(trained.id_to_piece(i) for i in ids), *(text for text, _ in added)],
        "token_type": [*map(kind, ids), *(kind for _, kind in added)],
        "scores": [*(trained.get_score(i) for i in ids), *(-1000.0 for _ in added)],
    }
    metadata = {f"tokenizer.ggml.{key}": value for key, value in (gguf | more).items()}
    folder.mkdir()
    assert write_tokenizer(folder / "m.gguf", metadata | {"tokenizer.chat_template": _TEMPLATE}, folder)
    return Tokenizer(folder)


def _texts(count: int = 200) -> list[str]:
    rng = random.Random(0)
    return _TEXTS + [
        "".join(rng.choices('   \n\tabehtnsdf_.(|>"0é你🙂\u0301▁', k=rng.randint(1, 40))) for _ in range(count)
    ]


def test_ids_are_those_of_training(tmp_path, llama):
    trained, tokenizer = SentencePieceProcessor(model_proto=llama), _tokenizer(tmp_path, llama, _LLAMA)
    assert any(trained.is_byte(i) for i in trained.encode("\U0001f986"))
    for text in [*_texts(), "\U0001f986", "<s> a</s><|end|>", "<unk>"]:
        assert tokenizer.encode_text(text) == trained.encode(text), text


def test_without_a_space_in_front_user_defined_pieces_have_the_ids_of_training_too(tmp_path):
    model = _train(add_dummy_prefix=False, user_defined_symbols=["▁▁▁", "▁▁", "<tool>"])
    trained, tokenizer = SentencePieceProcessor(model_proto=model), _tokenizer(tmp_path, model)
    for text in [*_TEXTS[:-2], "🙂\u0301  two", "a   b<tool>  def", "<tool> <tool>return"]:
        assert tokenizer.encode(text) == trained.encode(text), text


@pytest.mark.parametrize("changes, prefix", [({}, True), ({"add_dummy_prefix": False}, False)])
def test_ids_are_those_of_a_gguf(tmp_path, changes, prefix):
    """With control tokens and user-defined pieces, added ones too, in a text and in a chat."""
    model = _train(user_defined_symbols=["<tool>"], **changes)
    added = [("<|call|>", CONTROL), ("<word>", USER_DEFINED)]
    said = {str(700 + i): {"content": text, "special": kind == CONTROL, "normalized": kind != CONTROL}
            for i, (text, kind) in enumerate(added)}  # fmt: skip
    config = {**_LLAMA, "add_bos_token": True, "added_tokens_decoder": said, "chat_template": _TEMPLATE}
    ours = _tokenizer(tmp_path / "folder", model, config)
    gguf = _of_gguf(tmp_path / "gguf", model, added, add_space_prefix=prefix)
    marked = ["<s> two</s>two", "<|user|>\n two<|end|> two", "two<tool>two <tool>  two", "a<|call|> b<|call|>b",
              "<word>a <word> a<word>", "<unk>two"]  # fmt: skip
    for text in _texts(50) + marked:
        assert ours.encode(text) == gguf.encode(text), text
        assert ours.encode_text(text) == gguf.encode_text(text), text
        chat = [{"role": "user", "content": text}]
        assert ours.encode_chat(chat) == gguf.encode_chat(chat), text
    assert ours.encode("a<|call|><word>a")[2:4] == [700, 701]


_OBJECT = {"content": "</s>", "__type": "AddedToken"}


@pytest.mark.parametrize(
    "config, files",
    [
        (None, {}),
        ({}, {}),
        (_LLAMA, {}),
        ({**_LLAMA, "add_bos_token": True}, {}),
        ({**_LLAMA, "add_bos_token": True, "add_eos_token": True}, {}),
        ({**_LLAMA, "add_bos_token": False, "add_eos_token": True}, {}),
        ({**_LLAMA, "add_bos_token": None}, {}),
        ({**_LLAMA, "add_bos_token": True, "bos_token": _OBJECT}, {}),
        ({**_LLAMA, "add_bos_token": True, "bos_token": "<new>"}, {}),
        ({**_LLAMA, "add_bos_token": True, "bos_token": None}, {}),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True}, {}),
        ({"add_bos_token": True}, {"special_tokens_map": {"bos_token": "</s>"}}),
        ({"tokenizer_class": "CodeLlamaTokenizer"}, {}),
        ({"tokenizer_class": "CodeLlamaTokenizer", "add_bos_token": False}, {}),
    ],
)
def test_tokens_around_a_text_are_those_of_transformers(tmp_path, llama, config, files):
    from transformers import AutoTokenizer

    tokenizer, trained = _tokenizer(tmp_path, llama, config, **files), SentencePieceProcessor(model_proto=llama)
    reference, text = AutoTokenizer.from_pretrained(tmp_path), "two def"
    whole, plain = (reference(text, add_special_tokens=around)["input_ids"] for around in (True, False))
    at = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    # The pieces themselves aren't compared: without a class, transformers puts no space in front.
    assert tokenizer.encode(text) == [*whole[:at], *trained.encode(text), *whole[at + len(plain) :]]


@pytest.mark.parametrize("prefix", [True, False])
def test_a_folder_says_whether_texts_get_a_space_in_front(tmp_path, llama, prefix):
    tokenizer = _tokenizer(tmp_path, llama, {**_LLAMA, "add_prefix_space": prefix})
    gguf = _of_gguf(tmp_path / "gguf", llama, add_space_prefix=prefix, add_bos_token=False)
    assert [tokenizer.encode(text) for text in _TEXTS] == [gguf.encode(text) for text in _TEXTS]


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "unigram", "vocab_size": 400},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"byte_fallback": False, "vocab_size": 400},
        {"treat_whitespace_as_suffix": True},
    ],
)
def test_other_kinds_are_left_to_transformers(tmp_path, changes):
    _files(tmp_path, _train(**changes))
    assert read_metadata(tmp_path / "tokenizer.model") is None


def test_transformers_is_not_imported(tmp_path, llama):
    _files(tmp_path, llama, _LLAMA)
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None)\n"  # importing either fails
        "from pathlib import Path; from edgellm.checkpoint.folder_tokenizer import read_tokenizer\n"
        f"print(len(read_tokenizer(Path(sys.argv[1]), {_SIZE}).control_tokens))"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert run.stdout == "5\n", run.stderr


def _damaged(change) -> bytes:
    model = sentencepiece_model_pb2.ModelProto.FromString(_train())
    change(model)
    return model.SerializeToString()


@pytest.mark.parametrize(
    "change, error",
    [
        (lambda m: m.pieces.pop(0), "tokenizer.model is no vocabulary of SentencePiece's. Fetch it again."),
        (lambda m: m.pieces.add(piece="<s>"), "tokenizer.model is no vocabulary of SentencePiece's. Fetch it again."),
        (lambda m: setattr(m.pieces[600], "score", float("nan")), "piece 600 has the score nan, expected a finite"),
        (lambda m: setattr(m.pieces[600], "piece", "a" * 1025), "a token has 1025 characters, at most 1024 are read"),
    ],
)
def test_a_model_that_contradicts_itself_is_one_sentence(tmp_path, change, error):
    with pytest.raises(CheckpointError, match=error) as e:
        _tokenizer(tmp_path, _damaged(change))
    assert "\n" not in str(e.value)


def test_no_byte_of_a_damaged_model_is_more_than_a_sentence(tmp_path, llama):
    rng = random.Random(0)
    for _ in range(40):
        damaged = bytearray(llama[: rng.choice([len(llama), rng.randrange(1, len(llama))])])
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(1, len(damaged))] = rng.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        try:
            read_metadata(tmp_path / "tokenizer.model")
        except CheckpointError as e:
            assert "\n" not in str(e)
