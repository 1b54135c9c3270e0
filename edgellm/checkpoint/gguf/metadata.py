"""A GGUF file's metadata, read key by key: each key is used, has no effect for a reason given here, or is refused.

Silently skipping a key gives wrong answers, not errors: with a rotary base of 10000 in place of 1000000 a model talks
fluent nonsense.
"""

import re
import reprlib
from collections.abc import Mapping

from edgellm.errors import CheckpointError

_MAX_COUNT = 1 << 31
_EPSILON = 1e-5  # metadata is float32: two ways to the same number may differ by as much

# Keys that change no answer, whatever their value, and why. {arch} is the file's architecture.
WITHOUT_EFFECT = {
    r"general\.(quantization_version|file_type)": "each tensor states its own type",
    r"general\.sampling\..*": "advice to samplers; generation_config.json has what edgellm's sampler knows",
    # Also names no one has thought of yet: uploaders add notes here, and llama.cpp keeps all that a model computes with
    # under the architecture's own name.
    r"general\..*": "who made the file, from what, under which licence",
    r"split\..*": "the parts were counted when the file was opened",
    r"(quantize\.)?imatrix\..*": "how weights were chosen when they were rounded",
    r"{arch}\.rope\.scaling\.finetuned": "says that the model was trained with the scaling that other keys give",
    r"tokenizer\.huggingface\.json": "a second form of the vocabulary in tokenizer.ggml",
    r"tokenizer\.chat_templates": "the names of the other templates",
    r"tokenizer\.chat_template\..+": "templates for other uses; tokenizer.chat_template is the one for chat",
    r"tokenizer\.ggml\.(token_type_count|add_sep_token)": "of BERT's vocabularies, which no decoder has",
    r"tokenizer\.ggml\.(remove_extra_whitespaces|precompiled_charsmap)": "llama.cpp reads them for T5's vocabularies",
    # Any name: such a key names one token, and text is cut the same whatever it names.
    r"tokenizer\.ggml\.\w+_token_id": "names a token; the vocabulary says which of them end an answer",
}
# Read where the vocabulary is written. Another key of tokenizer.ggml is refused: it may change how text is cut.
VOCABULARY = frozenset(
    "tokenizer." + name
    for name in (
        "chat_template", "ggml.model", "ggml.pre", "ggml.tokens", "ggml.token_type", "ggml.scores", "ggml.merges",
        "ggml.bos_token_id", "ggml.eos_token_id", "ggml.eot_token_id", "ggml.eom_token_id", "ggml.unknown_token_id",
        "ggml.padding_token_id", "ggml.add_bos_token", "ggml.add_eos_token", "ggml.add_space_prefix",
    )
)  # fmt: skip
# Keys outside these sections are notes of the tool that wrote the file: nothing computes with them.
_SECTIONS = ("{arch}", "tokenizer", "adapter", "clip")

# <arch>.pooling_type → how an embedding is made; 0 leaves it open, and 4 has a head of its own, for ranking.
POOLING_TYPES = {1: "mean", 2: "cls", 3: "last"}
# Keys of an architecture that change nothing at these values; a family that knows more reads them itself.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "interleave_moe_layer_step": (0, 1),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "moe_every_n_layers": (0, 1),
    "n_deepstack_layers": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0, *POOLING_TYPES),  # changes embeddings alone
    "residual_scale": (0, 1),
    "rope.scaling.alpha": (0,),
    "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.yarn_attn_factor": (0, 1),
    "rope.scaling.yarn_ext_factor": (0, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "router_logit_softcapping": (0,),
    "use_parallel_residual": (False,),
}


class Metadata:
    """The values of one file by key; `used` notes the keys that were asked for."""

    def __init__(self, values: Mapping[str, object], where: str):
        self.where = where
        self.values = values
        self.architecture = str(values.get("general.architecture"))
        self.used = {"general.architecture", "general.alignment", "general.type"}

    def key(self, name: str) -> str:
        """Return the whole key of one of the architecture's own."""
        return f"{self.architecture}.{name}"

    def get(self, name: str) -> object:
        """Return an architecture's value, None if there is none; a list of equal values, one a layer, is that value.

        Raises CheckpointError for a list of different ones.
        """
        key = self.key(name)
        self.used.add(key)
        value = self.values.get(key)
        if not isinstance(value, list):
            return value
        if not value or any(v != value[0] for v in value):
            raise CheckpointError(
                f"{self.where}: {key} is {reprlib.repr(value)}: the layers differ, which edgellm can't run, neither "
                "from a GGUF nor from the model's safetensors folder"
            )
        return value[0]

    def raw(self, name: str) -> object:
        """Return an architecture's value as the file has it, lists too."""
        self.used.add(self.key(name))
        return self.values.get(self.key(name))

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number from `least` on; without a default it must be there. Raises CheckpointError."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or not least <= value < _MAX_COUNT:
            what = "is missing" if value is None else f"is {reprlib.repr(value)}"
            raise CheckpointError(f"{self.where}: {self.key(name)} {what}, expected a whole number from {least} on")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number that isn't negative; without a default it must be there. Raises CheckpointError."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1e30:
            what = "is missing" if value is None else f"is {reprlib.repr(value)}"
            raise CheckpointError(f"{self.where}: {self.key(name)} {what}, expected a number")
        return float(value)

    def expect(self, name: str, *allowed: object) -> None:
        """Raise CheckpointError if a value is there that is none of `allowed`."""
        value = self.get(name)
        if value is not None and not any(_same(value, a) for a in allowed):
            raise CheckpointError(
                f"{self.where}: {self.key(name)} is {reprlib.repr(value)}, which edgellm can't run from a GGUF of "
                f"architecture {self.architecture!r} (it knows {' and '.join(map(repr, allowed))}). Try the model's "
                "safetensors folder."
            )

    def token_id(self, name: str, vocab_size: int) -> int | None:
        """Return the id of tokenizer.ggml.<name>_token_id if it lies in the vocabulary."""
        value = self.values.get(f"tokenizer.ggml.{name}_token_id")
        return value if type(value) is int and 0 <= value < vocab_size else None

    def check_rest(self) -> None:
        """Raise CheckpointError for the first key that nothing has read and that isn't known to have no effect."""
        for name, allowed in _NEUTRAL.items():
            if self.key(name) not in self.used:
                self.expect(name, *allowed)
        unread = [key for key in self.values if self.effect_of(key) == "unknown"]
        if unread:
            more = f" (and {len(unread) - 1} more such keys)" if len(unread) > 1 else ""
            raise CheckpointError(
                f"{self.where}: edgellm doesn't know metadata {unread[0][:120]}{more}, which is "
                f"{reprlib.repr(self.values[unread[0]])}, for architecture {self.architecture!r}; ignoring it could "
                "give wrong answers. Use the model's safetensors folder."
            )

    def effect_of(self, key: str) -> str:
        """Return "used", or why `key` changes no answer, or "unknown"."""
        if key in self.used or key in VOCABULARY:
            return "used"
        for pattern, reason in WITHOUT_EFFECT.items():
            if re.fullmatch(pattern.replace("{arch}", re.escape(self.architecture)), key):
                return reason
        sections = [section.replace("{arch}", self.architecture) for section in _SECTIONS]
        if not any(key.startswith(section + ".") for section in sections):
            return "a note of the tool that wrote the file"
        return "unknown"


def _same(value: object, allowed: object) -> bool:
    if isinstance(value, bool) or isinstance(allowed, bool) or isinstance(value, str) or isinstance(allowed, str):
        return value is allowed or isinstance(value, str) and value == allowed
    assert isinstance(value, (int, float)) and isinstance(allowed, (int, float))
    return abs(value - allowed) <= _EPSILON * max(abs(allowed), 1e-30)
