"""How each pre-tokenizer cuts a text, shown by a vocabulary in which every piece of the texts is one token."""

import json
from functools import lru_cache

import pytest
from tokenizers import Tokenizer

from edgellm.checkpoint.gguf_tokenizer import tokenizer_json
from edgellm.checkpoint.vocabulary.bpe import bytes_to_letters
from edgellm.checkpoint.vocabulary.metadata import Vocabulary
from edgellm.checkpoint.vocabulary.pretokenizers import pre_tokenizer
from edgellm.errors import CheckpointError

_TEXTS = (
    "l'mot       z", "I'm HE'LL x1 22 12345", "a  b \n\n c\t\n ", "iPhone cDé", 'f(x)==>y!.\n"q;\r\n/', "ni\u0301no हि",
    "你好，世。カナ한 z", "$5+1,234.5 ~<|#",
)  # fmt: skip
# The pieces of the texts above, one after the other, as llama.cpp cuts them over the same vocabulary (llama-cpp-python
# 0.3.36). It cuts differently where it approximates the model's own expression: combining marks with gpt-4o, tekken and
# kimi-k2, capital letters with tiny_aya, youtu and kimi-k2; the cuts here are those of the model's own.
_CUTS = {
    "default": (
        "l¦'¦mot¦      ¦ z‖I¦'¦m¦ HE¦'¦LL¦ x¦1¦ ¦22¦ ¦123¦45‖a¦ ¦ b¦ \n\n¦ c¦\t\n ‖iPhone¦ cDé‖"
        'f¦(¦x¦)==>¦y¦!.¦\n¦"¦q¦;¦\r\n¦/‖ni¦\u0301¦no¦ ह¦ि‖你好¦，¦世¦。¦カナ한¦ z‖$¦5¦+¦1¦,¦234¦.¦5¦ ¦~<|#'
    ),
    "gpt-2": (
        "l¦'m¦ot¦      ¦ z‖I¦'m¦ HE¦'¦LL¦ x¦1¦ 22¦ 12345‖a¦ ¦ b¦ \n\n¦ c¦\t\n ‖iPhone¦ cDé‖"
        'f¦(¦x¦)==>¦y¦!.¦\n¦"¦q¦;¦\r¦\n¦/‖ni¦\u0301¦no¦ ह¦ि‖你好¦，¦世¦。¦カナ한¦ z‖$¦5¦+¦1¦,¦234¦.¦5¦ ~<|#'
    ),
    "starcoder": (
        "l¦'m¦ot¦      ¦ z‖I¦'m¦ HE¦'¦LL¦ x¦1¦ ¦2¦2¦ ¦1¦2¦3¦4¦5‖a¦ ¦ b¦ \n\n¦ c¦\t\n ‖iPhone¦ cDé‖"
        'f¦(¦x¦)==>¦y¦!.¦\n¦"¦q¦;¦\r¦\n¦/‖ni¦\u0301¦no¦ ह¦ि‖你好¦，¦世¦。¦カナ한¦ z‖$¦5¦+¦1¦,¦2¦3¦4¦.¦5¦ ~<|#'
    ),
    "falcon": (
        "l¦'¦mot¦      ¦ z‖I¦'¦m¦ HE¦'¦LL¦ x¦1¦ 22¦ ¦123¦45‖a¦ ¦ b¦ \n\n¦ c¦\t\n ‖iPhone¦ cDé‖"
        'f¦(¦x¦)==>¦y¦!.¦\n¦"¦q¦;¦\r\n¦/‖ni¦\u0301¦no¦ ह¦ि‖你好¦，¦世¦。¦カナ한¦ z‖$¦5¦+¦1¦,¦234¦.¦5¦ ¦~<|#'
    ),
    "bloom": (
        "l'mot¦      ¦ z‖I'm¦ HE'LL¦ x1¦ 22¦ 12345‖a¦ ¦ b¦ \n\n¦ c¦\t\n ‖iPhone¦ cDé‖f¦(¦x¦)¦==>y¦!.\n¦\"q;¦\r\n¦/‖"
        "ni\u0301no¦ हि‖你好¦，¦世¦。¦カナ한¦ z‖$5+1¦,¦234¦.¦5¦ ~<¦|¦#"
    ),
    "viking": (
        "l'mot¦      ¦ z‖I'm¦ HE'LL¦ x¦1¦ ¦2¦2¦ ¦1¦2¦3¦4¦5‖a¦ ¦ b¦ \n\n¦ c¦\t\n ‖iPhone¦ cDé‖"
        'f¦(¦x¦)¦==>y¦!.\n¦"q;¦\r\n¦/‖ni\u0301no¦ हि‖你好¦，¦世¦。¦カナ한¦ z‖$¦5¦+¦1¦,¦2¦3¦4¦.¦5¦ ~<¦|¦#'
    ),
    "llama-bpe": (
        "l¦'m¦ot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦22¦ ¦123¦45‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖iPhone¦ cDé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n¦/‖ni¦\u0301no¦ ह¦ि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦234¦.¦5¦ ~<|#'
    ),
    "dbrx": (
        "l¦'m¦ot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦22¦ ¦123¦45‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖iPhone¦ cDé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n¦/‖ni¦\u0301no¦ ह¦ि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦234¦.¦5¦ ~<|#'
    ),
    "glm4": (
        "l¦'m¦ot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦22¦ ¦123¦45‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖iPhone¦ cDé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n¦/‖ni¦\u0301no¦ ह¦ि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦234¦.¦5¦ ~<|#'
    ),
    "minicpm5": (
        "l¦'m¦ot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦22¦ ¦123¦45‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖iPhone¦ cDé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n¦/‖ni¦\u0301no¦ ह¦ि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦234¦.¦5¦ ~<|#'
    ),
    "jais-2": (
        "l¦'m¦ot¦    ¦  ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦22¦ ¦123¦45‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖iPhone¦ cDé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n¦/‖ni¦\u0301no¦ ह¦ि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦234¦.¦5¦ ~<|#'
    ),
    "qwen2": (
        "l¦'m¦ot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦2¦2¦ ¦1¦2¦3¦4¦5‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖iPhone¦ cDé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n¦/‖ni¦\u0301no¦ ह¦ि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦2¦3¦4¦.¦5¦ ~<|#'
    ),
    "qwen35": (
        "l¦'m¦ot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦2¦2¦ ¦1¦2¦3¦4¦5‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖iPhone¦ cDé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n¦/‖ni\u0301no¦ हि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦2¦3¦4¦.¦5¦ ~<|#'
    ),
    "seed-coder": (
        "l¦'m¦ot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦2¦2¦ ¦1¦2¦3¦4¦5‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖iPhone¦ cDé‖"
        'f¦(x¦)==>¦y¦!.¦\n¦"q¦;¦\r\n¦/‖ni¦\u0301no¦ ह¦ि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦2¦3¦4¦.¦5¦ ~<|#'
    ),
    "ufakzeka": (
        "l¦'mot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦2¦2¦ ¦1¦2¦3¦4¦5‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖iPhone¦ cDé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n¦/‖ni¦\u0301no¦ ह¦ि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦2¦3¦4¦.¦5¦ ~<|#'
    ),
    "laguna": (
        "l¦'m¦ot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦2¦2¦ ¦1¦2¦3¦4¦5‖a¦ ¦ b¦ ¦\n\n¦ c¦\t¦\n¦ ‖iPhone¦ cDé‖"
        'f¦(x¦)==>¦y¦!.¦\n¦"q¦;\r¦\n¦/‖ni¦\u0301no¦ ह¦ि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦2¦3¦4¦.¦5¦ ~<|#'
    ),
    "bailingmoe": (
        "l¦'m¦ot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦2¦2¦ ¦1¦2¦3¦4¦5‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖iPhone¦ cDé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n¦/‖ni¦\u0301no¦ ह¦ि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦2¦3¦4¦.¦5¦ ~<|#'
    ),
    "exaone-moe": (
        "l¦'m¦ot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦2¦2¦ ¦1¦2¦3¦4¦5‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖iPhone cDé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r¦\n¦/‖ni\u0301no हि‖你好¦，世¦。カナ한 z‖$¦5¦+¦1¦,¦2¦3¦4¦.¦5¦ ~<|#'
    ),
    "gpt-4o": (
        "l'm¦ot¦      ¦ z‖I'm¦ HE'LL¦ x¦1¦ ¦22¦ ¦123¦45‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖i¦Phone¦ c¦Dé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n/‖ni\u0301no¦ हि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦234¦.¦5¦ ~<|#'
    ),
    "tekken": (
        "l¦'mot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦2¦2¦ ¦1¦2¦3¦4¦5‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖i¦Phone¦ c¦Dé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n/‖ni\u0301no¦ हि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦2¦3¦4¦.¦5¦ ~<|#'
    ),
    "tiny_aya": (
        "l'm¦ot¦      ¦ z‖I'm¦ HE'LL¦ x¦1¦ ¦22¦ ¦12¦345‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖i¦Phone¦ c¦Dé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n/‖ni\u0301no¦ हि‖你好¦，世¦。カナ한¦ z‖$¦5¦+¦1¦,¦234¦.¦5¦ ~<|#'
    ),
    "youtu": (
        "l'm¦ot¦      ¦ z‖I'm¦ HE'LL¦ x¦1¦ ¦2¦2¦ ¦1¦2¦3¦4¦5‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖i¦Phone¦ c¦Dé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n/‖ni\u0301no¦ हि‖你好¦，¦世¦。¦カナ¦한¦ z‖$¦5¦+¦1¦,¦2¦3¦4¦.¦5¦ ~<|#'
    ),
    "kimi-k2": (
        "l'm¦ot¦      ¦ z‖I'm¦ HE'LL¦ x¦1¦ ¦22¦ ¦123¦45‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖i¦Phone¦ c¦Dé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n¦/‖ni\u0301no¦ हि‖你好¦，¦世¦。カナ한¦ z‖$¦5¦+¦1¦,¦234¦.¦5¦ ~<|#'
    ),
    "superbpe": (
        "l'mot       z‖I'm HE'LL x¦1¦ ¦22¦ ¦12¦345‖a  b \n\n c\t\n ‖iPhone cDé‖f(x)==>y!.\n\"q;\r\n/‖ni\u0301no हि‖"
        "你好，世。カナ한 z‖$¦5¦+¦1¦,¦234¦.¦5¦ ~<|#"
    ),
    "deepseek-llm": (
        "l¦'¦mot¦      ¦ z‖I¦'¦m¦ HE¦'¦LL¦ x¦1¦ ¦22¦ ¦12345‖a¦ ¦ b¦ ¦\n¦\n¦ c¦\t¦\n¦ ‖iPhone¦ cD¦é‖"
        'f¦(¦x¦)==>¦y¦!.¦\n¦"¦q¦;¦\r¦\n¦/‖ni¦\u0301¦no¦ ¦हि‖你好¦，¦世¦。¦カナ한¦ z‖$¦5¦+¦1¦,¦234¦.¦5¦ ~<|#'
    ),
    "deepseek-coder": (
        "l¦'¦mot¦      ¦ z‖I¦'¦m¦ HE¦'¦LL¦ x¦1¦ ¦2¦2¦ ¦1¦2¦3¦4¦5‖a¦ ¦ b¦ ¦\n¦\n¦ c¦\t¦\n¦ ‖iPhone¦ cDé‖"
        'f¦(¦x¦)¦==>¦y¦!.¦\n¦"¦q¦;¦\r¦\n¦/‖ni¦\u0301¦no¦ ¦ह¦ि‖你好¦，¦世¦。¦カナ한¦ z‖$¦5¦+¦1¦,¦2¦3¦4¦.¦5¦ ~<|¦#'
    ),
    "deepseek-v3": (
        "l¦'mot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦22¦ ¦123¦45‖a¦ ¦ b¦ \n\n¦ c¦\t\n¦ ‖iPhone¦ cDé‖"
        'f¦(x¦)==>¦y¦!.\n¦"q¦;\r\n¦/‖ni\u0301no¦ हि‖你好¦，¦世¦。¦カナ¦한¦ z‖$¦5¦+¦1¦,¦234¦.¦5¦ ~<|#'
    ),
    "spark2_5": (
        "l¦'mot¦      ¦ z‖I¦'m¦ HE¦'LL¦ x¦1¦ ¦2¦2¦ ¦1¦2¦3¦4¦5‖a¦ ¦ b¦ \n\n¦ c¦\t\n ‖iPhone¦ cDé‖"
        'f¦(x¦)==>¦y¦!.¦\n¦"q¦;¦\r¦\n¦/‖ni\u0301no¦ हि‖你好¦，¦世¦。¦カナ¦한¦ z‖$¦5¦+¦1¦,¦2¦3¦4¦.¦5¦ ~<|#'
    ),
}
# Names of the same in files: one of each, and those of models that many people have.
_SAME = {
    "mpt": "gpt-2", "olmo": "gpt-2", "exaone4": "gpt-2", "a.x-4.0": "gpt-2", "smollm": "starcoder",
    "refact": "starcoder",
    "command-r": "starcoder", "codeshell": "starcoder", "poro-chat": "bloom", "gpt3-finnish": "bloom",
    "llama3": "llama-bpe", "falcon3": "llama-bpe", "smaug-bpe": "dbrx", "chatglm-bpe": "dbrx", "glm5": "glm4",
    "stablelm2": "qwen2", "deepseek-r1-qwen": "qwen2", "hunyuan": "qwen2", "grok-2": "qwen2", "llada-moe": "bailingmoe",
    "llama4": "gpt-4o", "cohere2moe": "tiny_aya", "hunyuan-dense": "deepseek-v3",
}  # fmt: skip


@lru_cache(1)
def _every_piece() -> dict:
    """Return the metadata of a vocabulary with every run of bytes of each text, which any two halves make."""
    letters = bytes_to_letters()
    tokens, merges = dict.fromkeys(letters.values()), {}
    for text in _TEXTS:
        word = "".join(letters[byte] for byte in text.encode())
        for length in range(2, len(word) + 1):
            for start in range(len(word) - length + 1):
                piece = word[start : start + length]
                tokens[piece] = None
                merges |= {f"{piece[:cut]} {piece[cut:]}": None for cut in range(1, length)}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.merges": list(merges),
    }


def _cuts(pre: str | None) -> str:
    metadata = _every_piece() | ({"tokenizer.ggml.pre": pre} if pre else {})
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json(Vocabulary.parse(metadata, "m.gguf"))))
    encoded = [tokenizer.encode(text) for text in _TEXTS]
    assert [tokenizer.decode(e.ids) for e in encoded] == list(_TEXTS)
    return "‖".join("¦".join(tokenizer.decode([i]) for i in e.ids) for e in encoded)


@pytest.mark.parametrize("pre", _CUTS)
def test_text_is_cut_as_the_model_was_trained(pre):
    assert _cuts(pre) == _CUTS[pre]


def test_a_file_that_names_no_pre_tokenizer_has_the_default_one():
    assert _cuts(None) == _CUTS["default"]


@pytest.mark.parametrize(("pre", "same"), _SAME.items())
def test_other_names_of_the_same(pre, same):
    assert pre_tokenizer(pre, "m.gguf") == pre_tokenizer(same, "m.gguf")


@pytest.mark.parametrize("pre", ["afmoe", "chameleon", "whitespace", "gemma4", "roberta-bpe", "qwen\n2" + "x" * 99])
def test_others_are_refused_by_name(pre):
    with pytest.raises(CheckpointError, match="m.gguf: tokenizer.ggml.pre is ") as e:
        pre_tokenizer(pre, "m.gguf")
    assert repr(pre[:40]) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("pre", ["llama-bpe", "glm4", "minicpm5", "tekken", "youtu"])
def test_a_whole_word_of_the_vocabulary_is_taken_before_merging(pre):
    letters = list(bytes_to_letters().values())
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [*letters, "ab", "bc", "abc"]}
    metadata |= {"tokenizer.ggml.merges": ["b c"], "tokenizer.ggml.pre": pre}
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json(Vocabulary.parse(metadata, "m.gguf"))))
    assert tokenizer.encode("abc abc").tokens == ["abc", "Ġ", "a", "bc"]
