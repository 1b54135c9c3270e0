"""A rehearsal before a split: a tiny model of the same config runs in sections and chunks, and must give what
transformers gives for it at once."""

import copy
import json
import tempfile
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from edgellm.checkpoint.layout import Layout
from edgellm.checkpoint.names import quiet_transformers
from edgellm.checkpoint.sources import Source
from edgellm.checkpoint.tensors import LoadedRows, Rows, SourceTensor, transposed_rows
from edgellm.checkpoint.traced import traced_layout
from edgellm.errors import EdgellmError, ModelError
from edgellm.model.families.find import find_spec
from edgellm.model.generic.build import config_from_dict, describe_error
from edgellm.model.generic.section import GenericSection
from edgellm.model.generic.structure import Structure

_TOKENS = 12
_STEPS = ((0, 5), (5, 6), (6, 10), (8, 9), (9, 12))  # chunks, a token alone, and positions that are fed again
_VOCAB, _WIDTH, _WINDOW = 256, 64, 6
_MOST_PARAMETERS = 60_000_000
_TOLERANCE = 1e-3  # of the largest logit; the sums of float32 are taken in another order
_SEEDS = (1, 2, 3)  # a router may fall either way on a near-tie

_WIDTHS = (
    "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp",
    "n_inner", "ffn_dim", "ffn_hidden_size", "moe_shared_expert_intermediate_size",
)  # fmt: skip
_WINDOWS = ("sliding_window", "attention_chunk_size")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")


def rehearse(config: PreTrainedConfig, structure: Structure) -> bool:
    """Return whether sections of a model with this config were tried; raise ModelError, with the reason, if they would
    fail or be wrong.

    The tiny model has the config's head sizes, kinds of layers and options, but few layers, heads and experts. False if
    transformers itself can't run the config when it is shrunk. A native family needs no trial.
    """
    content = json.loads(config.to_json_string(use_diff=False))
    if find_spec(content)[0] is not None:
        return True
    return _rehearse(json.dumps(content, sort_keys=True), _layers_for_every_kind(config, structure))


@lru_cache(maxsize=64)
def _rehearse(content: str, layers: int) -> bool:
    with quiet_transformers():
        for smaller in _smaller(json.loads(content), layers):
            try:
                config = config_from_dict(smaller)
                model = _random_model(config, _SEEDS[0])
                expected = _all_at_once(model)
            except Exception:  # shrunk too far for this family, in whatever way its code says so
                continue
            if not np.isfinite(expected).all():
                continue
            _compare(config, model, expected)
            return True
    return False


def _compare(config: PreTrainedConfig, model: nn.Module, expected: np.ndarray) -> None:
    kind, apart = config.model_type, 0.0
    for seed in _SEEDS:
        if seed != _SEEDS[0]:
            model = _random_model(config, seed)
            expected = _all_at_once(model)
        try:
            found = _in_sections(config, model)
        except EdgellmError as e:
            raise ModelError(f"{kind}: transformers can run it, but not in sections: {e}") from None
        except Exception as e:  # whatever the family's code does with a slot it doesn't expect
            raise ModelError(f"{kind}: transformers can run it, but not in sections: {describe_error(e)}") from None
        apart = max(np.abs(expected[i] - logits).max() / np.abs(expected[i]).max() for i, logits in found)
        if apart <= _TOLERANCE:
            return
    raise ModelError(
        f"{kind}: its sections give different results from transformers; logits of a tiny model differ by "
        f"{100 * apart:.2g} % of the largest, {100 * _TOLERANCE:g} % is allowed"
    )


def _layers_for_every_kind(config: PreTrainedConfig, structure: Structure) -> int:
    """Return how many of the first layers have one of each kind, by their tensors and the config's lists."""
    lists = [
        values
        for values in _per_layer(config.to_dict(), structure.num_layers).values()
        if len({str(v) for v in values}) < len(values)  # no layer numbers
    ]
    kinds = [
        (
            frozenset((name, structure.shapes[i, name]) for name in names),
            structure.kv_shapes[i],
            tuple(str(values[i]) for values in lists),
        )
        for i, names in enumerate(structure.layer_names)
    ]
    # Some families' last layer is of its own kind; whichever is the last then will be.
    first = [kinds.index(kind) for kind in set(kinds[:-1])]
    return min(structure.num_layers, max([1, *first]) + 1)


def _per_layer(content: dict[str, Any], layers: int) -> dict[str, list[Any]]:
    """Return the config's lists that have an entry per layer."""
    return {k: list(v) for k, v in content.items() if isinstance(v, (list, tuple)) and len(v) == layers}


def _smaller(content: dict[str, Any], layers: int) -> Iterator[dict[str, Any]]:
    """Yield smaller configs of the same kind, the smallest first."""
    names = _attribute_names(content["model_type"])

    def name(usual: str) -> str:
        return names.get(usual, usual)

    def number(key: str, default: int) -> int:
        value = content.get(key)
        return value if isinstance(value, int) and value > 0 else default

    small = copy.deepcopy(content)
    small |= {k: v[:layers] for k, v in _per_layer(content, content[name("num_hidden_layers")]).items()}
    small[name("num_hidden_layers")] = layers
    most = {name("vocab_size"): _VOCAB, **dict.fromkeys(map(name, _WIDTHS), _WIDTH)}
    most |= dict.fromkeys(_WINDOWS, _WINDOW)
    small |= {key: min(number(key, 0), limit) for key, limit in most.items() if number(key, 0)}
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if isinstance(small.get(key), list):
            small[key] = [0]
        elif isinstance(small.get(key), int):
            small[key] = min(small[key], _VOCAB - 1)
    groups, chosen = number("n_group", 1), max(number(key, 1) for key in _CHOSEN)
    experts = max(2 * chosen, 2 * groups) // groups * groups
    small |= {key: min(number(key, 0), experts) for key in map(name, _EXPERTS) if number(key, 0)}

    heads, hidden = number(name("num_attention_heads"), 1), number(name("hidden_size"), 1)
    kv_keys = [key for key in (name("num_key_value_heads"), "num_kv_heads") if number(key, 0)]
    kv_heads = min([heads, *(number(key, heads) for key in kv_keys)])
    independent = "head_dim" in content or "qk_nope_head_dim" in content  # of hidden_size / heads
    for few in (2, 4):
        kv = min(few, kv_heads)
        now = min(heads, kv * min(2, heads // kv_heads))
        sizes = [128] if independent else []
        sizes += [hidden * now // heads if hidden * now % heads == 0 else hidden // heads * now]
        for size in sizes:
            changed = {name("hidden_size"): size, name("num_attention_heads"): now, **dict.fromkeys(kv_keys, kv)}
            yield {**small, **changed}
    yield small


def _attribute_names(model_type: str) -> dict[str, str]:
    """Return what a family's config calls the usual fields, such as n_layer for num_hidden_layers."""
    from transformers import CONFIG_MAPPING

    return dict(CONFIG_MAPPING[model_type].attribute_map)


def _random_model(config: PreTrainedConfig, seed: int) -> nn.Module:
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(copy.deepcopy(config)).parameters())
    if size > _MOST_PARAMETERS:
        raise ModelError(f"{size} parameters even when shrunk")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class._from_config(copy.deepcopy(config), dtype=torch.float32).eval().requires_grad_(False)
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.2)
            else:
                p.add_(0.1 * torch.randn_like(p))
    return model


def _ids(vocab_size: int) -> list[int]:
    return [(3 + 7 * i) % vocab_size for i in range(_TOKENS)]


@torch.inference_mode()
def _all_at_once(model: nn.Module) -> np.ndarray:
    """Return logits float32 [tokens, vocab_size] of one pass over the whole sequence."""
    ids = torch.tensor([_ids(model.config.get_text_config().vocab_size)])
    return model(input_ids=ids, use_cache=False).logits[0].float().numpy()


def _in_sections(config: PreTrainedConfig, model: nn.Module) -> list[tuple[int, np.ndarray]]:
    """Return (position, logits [vocab_size]) of the steps' last tokens, computed in sections as agents would."""
    from edgellm.checkpoint.split import split

    with tempfile.TemporaryDirectory(prefix="edgellm-") as folder:
        manifest = split(_Tiny(config, model), folder)
        cut = manifest.num_layers // 2
        cuts = [(0, cut), (cut, manifest.num_layers)] if cut else [(0, 1)]
        sections = [GenericSection.load(manifest, folder, *ends, verify_sha256=False) for ends in cuts]
        slots = [section.new_slot(_TOKENS) for section in sections]
        ids, found = np.array(_ids(manifest.vocab_size)), []
        for start, stop in _STEPS:
            x: Any = ids[start:stop]
            for section, slot in zip(sections, slots, strict=True):
                x = section.forward(x, start, slot, _TOKENS, 1 if section.is_last else 0)
            found.append((stop - 1, np.array(x[-1])))
        return found


class _Tiny(Source):
    """A model in memory as a source."""

    def __init__(self, config: PreTrainedConfig, model: nn.Module):
        self.name, self.where, self.eos_token_ids, self.config = "tiny", "the rehearsal", (), config
        self._state = {name: t.float().numpy() for name, t in model.state_dict().items()}

    def layout(self) -> Layout:
        return traced_layout(self, rehearsed=False)

    def tensors(self, model: Any) -> dict[str, SourceTensor]:
        return {name: SourceTensor(t.shape, "f32", name, partial(_rows, t)) for name, t in self._state.items()}

    def fingerprint_parts(self) -> list[bytes]:
        return [b"tiny"]

    def write_files(self, folder: Path) -> list[str]:
        (folder / "config.json").write_text(self.config.to_json_string(use_diff=False))
        return ["config.json"]


def _rows(data: np.ndarray, transposed: bool) -> Rows:
    rows = LoadedRows(data.shape, "f32", lambda: data)
    return transposed_rows(rows) if transposed else rows
