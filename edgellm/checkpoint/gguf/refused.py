"""Architectures that can't be read from a GGUF, and whether the model's safetensors folder would work instead."""

from typing import NoReturn

from edgellm.errors import CheckpointError

# Architecture in the GGUF → model_type of a folder that can be split.
FOLDER_WORKS = {
    "afmoe": "afmoe", "apertus": "apertus", "arcee": "arcee", "bitnet": "bitnet", "chatglm": "glm",
    "cohere2": "cohere2", "command-r": "cohere", "ernie4_5": "ernie4_5",
    "ernie4_5-moe": "ernie4_5_moe", "exaone-moe": "exaone_moe", "exaone4": "exaone4", "gptj": "gptj",
    "gptneox": "gpt_neox", "jais2": "jais2", "minicpm3": "minicpm3", "mpt": "mpt", "olmo": "olmo", "phi2": "phi",
    "phimoe": "phimoe", "qwen3next": "qwen3_next", "seed_oss": "seed_oss", "starcoder": "gpt_bigcode",
}  # fmt: skip

_RECURRENT = "its layers keep a recurrent state"
_MULTIMODAL = "it is a multimodal model's, and only text-only language models can be split"
_NO_DECODER = "it doesn't write text from left to right"
_OWN_CODE = "it brings code of its own, which is never run"
FOLDER_FAILS = (
    dict.fromkeys(("falcon-h1", "jamba", "kimi-linear", "mamba", "mamba2", "plamo2", "rwkv6", "rwkv6qwen2", "rwkv7",
                   "arwkv7"), _RECURRENT)
    | dict.fromkeys(("chameleon", "clip", "cogvlm", "deepseek2-ocr", "hunyuan_vl", "llama4", "paddleocr", "qwen2vl",
                     "qwen3vl", "qwen3vlmoe"), _MULTIMODAL)
    | dict.fromkeys(("bert", "dream", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llada",
                     "llada-moe", "llama-embed", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1",
                     "t5", "t5encoder", "wavtokenizer-dec"), _NO_DECODER)
    | dict.fromkeys(("baichuan", "codeshell", "deci", "exaone", "internlm2", "jais", "minicpm", "openelm", "orion",
                     "plamo", "qwen", "refact", "xverse"), _OWN_CODE)
    | {
        "gemma3n": "its layers mix several hidden states",
        "glm-dsa": "its attention goes by an index",
    }
)  # fmt: skip


def refuse_architecture(where: str, architecture: str) -> NoReturn:
    """Raise CheckpointError for an architecture that `config` can't read."""
    said = f"{where}: edgellm can't read architecture {architecture[:40]!r} from a GGUF"
    if architecture in FOLDER_WORKS:
        raise CheckpointError(f"{said}, but it can split the model's safetensors folder. Give that.")
    if reason := FOLDER_FAILS.get(architecture):
        raise CheckpointError(f"{said}, and it can't split the model's safetensors folder either: {reason}.")
    raise CheckpointError(f"{said}. It can split the model's safetensors folder if transformers knows the model.")
