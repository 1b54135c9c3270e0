"""Empty transformers models: the config read without running anyone's code, the modules built without weights."""

import copy
import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers import initialization as hf_init
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as hf_logging

from edgellm.errors import ManifestError, ModelError

_MAX_CONFIG_BYTES = 4 << 20
# What may not come from a file: they choose code to run, or a dtype and kernels we choose ourselves.
_REFUSED_KEYS = ("auto_map", "quantization_config", "attn_implementation", "experts_implementation", "dtype")


def read_config(folder: Path | str) -> PreTrainedConfig:
    """Return the config in FOLDER/config.json, read from this file alone.

    Raises ManifestError for a file that can't be read, ModelError for a config that transformers doesn't know.
    """
    return config_from_dict(read_content(folder), str(Path(folder) / "config.json"))


def read_content(folder: Path | str) -> Any:
    """Return the content of FOLDER/config.json; raises ManifestError if it can't be read."""
    path = Path(folder) / "config.json"
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ManifestError(f"{path}: {path.stat().st_size} bytes, a config has at most {_MAX_CONFIG_BYTES}")
        return json.loads(path.read_bytes())
    except OSError as e:
        raise ManifestError(f"{path}: {e.strerror or e}. Push the model again.") from None
    except (ValueError, RecursionError) as e:
        raise ManifestError(f"{path} is not JSON: {e}") from None


def config_from_dict(content: dict, origin: str = "config") -> PreTrainedConfig:
    """Return a transformers config of a config.json's content. Raises ModelError naming `origin`."""
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ModelError(f"{origin} names no model_type, so there is no telling what model it describes")
    model_type = content["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise ModelError(f"{origin}: the installed transformers knows no model_type {model_type!r}")
    known = {k: _numbers(v) for k, v in content.items() if not k.startswith("_") and k not in _REFUSED_KEYS}
    scaling = known.get("rope_scaling")
    if isinstance(scaling, dict) and "su" in (scaling.get("type"), scaling.get("rope_type")):
        known["rope_scaling"] = {**scaling, "type": "longrope", "rope_type": "longrope"}  # Phi-3's first name for it
    try:
        config = CONFIG_MAPPING[model_type].from_dict(known)
    except Exception as e:  # a config class may raise anything at values it doesn't like
        raise ModelError(f"{origin} is not a valid {model_type} config: {describe_error(e)}") from None
    if type(getattr(config.get_text_config(), "vocab_size", None)) is not int:
        raise ModelError(f"{origin} is not a valid {model_type} config: it names no vocab_size")
    return config


def _numbers(value: Any) -> Any:
    """Return a value of a config.json with numbers in place of what transformers writes for Infinity, in lists too."""
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, dict) and value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity"):
        return float(value["__float__"])
    return value


def causal_class(config: PreTrainedConfig) -> type[nn.Module]:
    """Return transformers' class of causal language models for a config; raises ModelError if there is none."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{config.model_type}: transformers has no causal language model of this model_type")
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def build_empty(config: PreTrainedConfig, *, real_buffers: bool, experts: str | None = None) -> nn.Module:
    """Return the *ForCausalLM model of `config`: float32, in eval mode, untied, its parameters on the meta device.

    With `real_buffers` the buffers (rotary frequencies, embedding scales, …) are computed as in any model, because none
    of them comes from a checkpoint; without, they are on meta too. `config` itself stays as it is. torch is patched
    meanwhile, so no other thread may build modules. Raises ModelError.
    """
    model_class = causal_class(config)
    config = copy.deepcopy(config)
    config._attn_implementation = None  # the class then takes sdpa, or eager where sdpa would be wrong (gemma2)
    config._experts_implementation = experts
    try:
        with hf_init.no_init_weights(), hf_init.no_tie_weights(), torch.no_grad():
            with _quiet(), _meta_parameters() if real_buffers else torch.device("meta"):
                model = model_class._from_config(config, dtype=torch.float32)
    except Exception as e:
        raise ModelError(f"{config.model_type}: its model can't be built: {describe_error(e)}") from None
    return model.eval().requires_grad_(False)


@contextmanager
def _quiet():
    """Keep transformers from logging warnings about a config. Whoever made the model has seen them."""
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)


class _empty_is_meta(TorchFunctionMode):
    """A mode in which uninitialised tensors, such as large weights, take no memory.

    A board may refuse even to reserve memory that is never touched.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


@contextmanager
def _meta_parameters():
    """Move every parameter to meta as soon as a module gets it; compute buffers as usual."""
    original = nn.Module.register_parameter

    def register(module, name, param):
        if param is not None and not param.is_meta:
            param = nn.Parameter(torch.empty_like(param, device="meta"), requires_grad=False)
        original(module, name, param)

    nn.Module.register_parameter = register
    try:
        with _empty_is_meta():
            yield
    finally:
        nn.Module.register_parameter = original


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the path and the list of the decoder's layers. Raises ModelError if no list has their number."""
    n = model.config.num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n:
            return path, module
    raise ModelError(f"{model.config.model_type}: found no list of its {n} decoder layers")


def describe_error(error: BaseException) -> str:
    """Return an exception's type and its text in one line, for a message. A config's says only later what is wrong."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
