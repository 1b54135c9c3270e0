"""How byte-level vocabularies cut a text before they merge pairs: the regular expressions of each model's training.

`tokenizer.ggml.pre` names them; the names are those of llama.cpp (src/llama-vocab.cpp). The expressions are those of
the models' own tokenizer.json, in the tokenizers library's dialect (Oniguruma). Where llama.cpp has an approximation
only, because its engine knows no \\p{Lu} or \\p{M}, the model's own is taken.
"""

from dataclasses import dataclass

from edgellm.errors import CheckpointError


@dataclass(frozen=True)
class PreTokenizer:
    """Each expression in turn cuts every piece into its matches and what is between them. With `ignore_merges` a piece
    that is a token is taken whole; with `add_bos` a text begins with a BOS token unless the file denies it."""

    regexes: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_SPACES = r"\s+(?!\S)|\s+"
_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}"
_ANY_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_DIGIT = r"\p{N}"


def _words(number: str, contraction: str = f"{_ANY_CASE}|", signs: str = r"[^\s\p{L}\p{N}]+[\r\n]*") -> str:
    """GPT-4's expression and its kin: a word takes one sign or space in front, signs take the line ends behind."""
    return rf"{contraction}[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{number}| ?{signs}|\s*[\r\n]+|{_SPACES}"


def _cased_words(number: str, contraction: str, not_han: str = "", line_ends: str = r"[\r\n/]*") -> str:
    """GPT-4o's expression and its kin: a word ends where small letters are followed by a capital one."""
    capitals = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{not_han}]"
    small = rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{not_han}]"
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{lead}{capitals}*{small}+{contraction}|{lead}{capitals}+{small}*{contraction}|{number}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+{line_ends}|\s*[\r\n]+|{_SPACES}"
    )


_QWEN2 = _words(_DIGIT)
_QWEN35 = (
    rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}"
)
_LLAMA3 = _words(r"\p{N}{1,3}")
_JAIS2 = _LLAMA3.removesuffix(_SPACES) + r"\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)"
_JAIS2 += r"|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s"
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
    rf"| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*|\s*[\r\n]|{_SPACES}"
)
_EXAONE_MOE = (
    rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACES}"
)
_O200K = _cased_words(r"\p{N}{1,3}", rf"{_ANY_CASE}?")
_HAN_KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
_DEEPSEEK_SIGN_AND_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = (r"\p{N}{1,3}", _HAN_KANA, rf"{_DEEPSEEK_SIGN_AND_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}")
_DEEPSEEK_CJK = "[一-龥\u0800-一가-\ud7ff]+"
# Cased letters, without those that Unicode's blocks of these numbers hold.
_DEEPSEEK_LETTERS = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\x{560}-\x{588}\x{10c7}-\x{10ff}\x{1c80}-\x{1c8f}\x{2d00}-\x{2d2d}\x{a790}-\x{a7fa}"
    r"\x{ab30}-\x{ab68}\x{10570}-\x{105bc}\x{10d50}-\x{10d8f}\x{16e40}-\x{16eff}\x{1d400}-\x{1d7cb}\x{1df00}-\x{1dfff}]]+"
)
_DEEPSEEK_SIGNS = r"\s?[!-/:-~！-／：-～‘-‟\x{3000}-。]+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_FALCON_SIGNS = r"[\p{P}$+<=>^~|`]+"
_KIMI = r"\p{Han}+|" + _cased_words(r"\p{N}{1,3}", rf"{_ANY_CASE}?", not_han=r"&&[^\p{Han}]", line_ends=r"[\r\n]*")
_THREES_FROM_THE_RIGHT = r"\d{1,3}(?=(?:\d{3})*\b)"

_PRE_TOKENIZERS = {
    # What llama.cpp takes for a file that names none: GPT-2's, with signs and groups of three digits apart.
    "default": PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer((_GPT2,)),
    "starcoder": PreTokenizer((_DIGIT, _GPT2)),
    "falcon": PreTokenizer((_FALCON_SIGNS, _GPT2, r"[0-9][0-9][0-9]")),
    "bloom": PreTokenizer((_BLOOM,)),
    "viking": PreTokenizer((_BLOOM, _DIGIT)),
    "llama-bpe": PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    "dbrx": PreTokenizer((_LLAMA3,)),
    "glm4": PreTokenizer((_LLAMA3,), ignore_merges=True),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _words(r"\p{N}+")), ignore_merges=True),
    "jais-2": PreTokenizer((_JAIS2,)),
    "qwen2": PreTokenizer((_QWEN2,)),
    "qwen35": PreTokenizer((_QWEN35,)),
    "seed-coder": PreTokenizer((_words(_DIGIT, signs=r"[^\s\p{L}\p{N}\r\n]+"),)),
    "ufakzeka": PreTokenizer((_words(_DIGIT, contraction=""),)),
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", _QWEN2)),
    "bailingmoe": PreTokenizer((_BAILING,)),
    "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
    "gpt-4o": PreTokenizer((_O200K,)),
    "tekken": PreTokenizer((_cased_words(_DIGIT, ""),), ignore_merges=True, add_bos=True),
    "tiny_aya": PreTokenizer((_THREES_FROM_THE_RIGHT, _O200K)),
    "youtu": PreTokenizer(
        (
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-\u303f︰-﹏]+|[ㄅ-ㄯ]+|" + _HAN_KANA,
            _cased_words(_DIGIT, rf"{_ANY_CASE}?"),
        ),
        ignore_merges=True,
    ),
    "kimi-k2": PreTokenizer((_KIMI,)),
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "deepseek-llm": PreTokenizer(
        (r"[\r\n]", rf"\s?{_DEEPSEEK_LETTERS}", _DEEPSEEK_SIGNS, r"\s+$", _DEEPSEEK_CJK, r"\p{N}+")
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, _DIGIT)),
    "deepseek-v3": PreTokenizer(_DEEPSEEK3),
    "spark2_5": PreTokenizer(
        (*_DEEPSEEK3[:2], rf"{_DEEPSEEK_SIGN_AND_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|{_SPACES}", _DIGIT)
    ),
}
# Other names of the same.
_ALIASES = {
    "gpt-2": (
        "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "a.x-4.0", "mellum",
        "jina-es", "jina-de", "jina-v2-es", "jina-v2-de",
    ),
    "starcoder": ("refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"),
    "bloom": ("poro-chat", "gpt3-finnish"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    "dbrx": ("smaug-bpe", "chatglm-bpe"),
    "glm4": ("glm5",),
    "qwen2": ("stablelm2", "deepseek-r1-qwen", "kormo", "megrez", "hunyuan", "solar-open", "grok-2", "f2llmv2"),
    "bailingmoe": ("bailingmoe2", "llada-moe"),
    "gpt-4o": ("llama4", "kanana2", "talkie", "minimax-m2"),
    "tiny_aya": ("cohere2moe",),
    "deepseek-v3": ("hunyuan-dense", "joyai-llm", "hy_v4"),
}  # fmt: skip
_BY_NAME = _PRE_TOKENIZERS | {alias: _PRE_TOKENIZERS[name] for name, names in _ALIASES.items() for alias in names}


def pre_tokenizer(name: str, where: str) -> PreTokenizer:
    """Return the pre-tokenizer that a GGUF calls `name`; raises CheckpointError for one that isn't known here."""
    if name not in _BY_NAME:
        raise CheckpointError(
            f"{where}: tokenizer.ggml.pre is {name[:40]!r}, whose way to split text isn't known here; guessing would "
            "give worse answers. Use the model's safetensors folder."
        )
    return _BY_NAME[name]
