"""Finds the structure of any decoder by running it once on the meta device: no weights, no code per family."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.pytorch_utils import Conv1D

from edgellm.errors import ModelError
from edgellm.model.generic import rope
from edgellm.model.generic.build import build_empty, describe_error, find_layers
from edgellm.model.generic.tracing import RecordingLayer, acts_as_linear, tensors_in

_TOKENS = 5  # the length of the traced sequence; a size that is unlikely to be some head count
_PLAIN_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}
_NOT_CAUSAL = "{}: its tokens also attend to later ones; only causal decoders can be split"
_BEFORE, _AFTER = "before", "after"  # phases of a forward pass besides the layers' numbers

# A tensor is keyed by its full state_dict name, a layer's tensor by (layer, name relative to the layer).
Key = str | tuple[int, str]


@dataclass(frozen=True)
class Structure:
    """What splitting and planning need to know of a decoder.

    `shapes`, `packable` and `transposed` use full state_dict names for what lies outside the layers and
    `(layer, relative name)` for what lies inside; shapes are those of the state_dict (a Conv1D weight is [in, out]).
    `packable` are weights that a linear module uses as a whole or an embedding looks up, so that they may be stored in
    another encoding; those also in `transposed` belong to a Conv1D.
    `kv_shapes` has (key heads, key dim, value heads, value dim) per layer. `tied` is the embedding's name if lm_head
    shares its weight. Lengths are in tokens; `rope_switch_len` is None unless the model uses LongRoPE.
    """

    model_type: str
    architecture: str
    layers_path: str
    num_layers: int
    embedding_names: tuple[str, ...]
    head_names: tuple[str, ...]
    layer_names: tuple[tuple[str, ...], ...]
    shapes: dict[Key, tuple[int, ...]] = field(repr=False)
    packable: frozenset[Key] = field(repr=False)
    transposed: frozenset[Key] = field(repr=False)
    kv_shapes: tuple[tuple[int, int, int, int], ...]
    activation_elements_per_token: int
    rope_switch_len: int | None
    max_seq_len: int
    hidden_size: int
    vocab_size: int
    tied: str | None
    tied_head: str | None  # the head's name whose weight is `tied`'s
    layers_return_tuples: bool

    @property
    def kv_elements_per_token(self) -> tuple[int, ...]:
        """Elements that a token's key and value take in a slot, one entry per layer."""
        return tuple(kh * kd + vh * vd for kh, kd, vh, vd in self.kv_shapes)


def trace(config: PreTrainedConfig) -> Structure:
    """Learn a decoder's structure. Raises ModelError, in one line with the reason, if it can't be split by layers."""
    _refuse_by_config(config)
    model = build_empty(config, real_buffers=False, experts="batched_mm")  # eager experts need real numbers
    rope.ignore_dynamic(model)
    return _Tracer(model).run()


def _refuse_by_config(config: PreTrainedConfig) -> None:
    """Raise ModelError for what a config says plainly and a trace would only fail at."""
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{kind}: an encoder-decoder; only decoder-only language models can be split")
    if config.get_text_config() is not config:
        raise ModelError(f"{kind}: a multimodal model; only text-only language models can be split")
    num_layers = getattr(config, "num_hidden_layers", None)
    if not (isinstance(num_layers, int) and 0 < num_layers <= 1024):
        raise ModelError(f"{kind}: num_hidden_layers is {num_layers!r}, expected 1-1024")
    for i, layer_type in enumerate(getattr(config, "layer_types", None) or ()):
        if layer_type not in _PLAIN_LAYER_TYPES:
            raise ModelError(f"{kind}: layer {i} is a {layer_type} layer; only plain attention layers can be split")
    causal = getattr(config, "is_causal", True) and not getattr(config, "use_bidirectional_attention", False)
    if not causal:
        raise ModelError(_NOT_CAUSAL.format(kind))
    if getattr(config, "num_kv_shared_layers", 0):
        raise ModelError(
            f"{kind}: its last {config.num_kv_shared_layers} layers reuse the keys and values of earlier layers, "
            "which another board may hold"
        )


class _Tracer(TorchFunctionMode):
    """A watch over one forward pass: which modules use which weights in which phase, and what flows into each layer.

    Whatever is computed from token ids or hidden states is marked. A layer may get marked values only as its hidden
    states, because nothing else travels between boards.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.kind = model, model.config.model_type
        self.path, self.layers = find_layers(model)
        self.cache = Cache(layers=[RecordingLayer() for _ in self.layers])
        self.phase: str | int = _BEFORE
        self.stack: list[nn.Module] = []
        self.marked: dict[int, torch.Tensor] = {}  # by id; holding them keeps ids unique
        self.names = {id(t): n for n, t in model.state_dict(keep_vars=True).items()}
        self.owners = {
            id(t): m for m in model.modules() for t in (*m._parameters.values(), *m._buffers.values()) if t is not None
        }
        self.used: dict[str, set] = {}  # name -> phases
        self.misused: set[str] = set()  # weights used otherwise than as a whole by their own module
        self.module_args: dict[int, tuple] = {}
        self.produced = [0] * len(self.layers)
        self.hidden: torch.Tensor | None = None  # the last layer's output so far
        self.hidden_size, self.returns_tuple = 0, False

    def run(self) -> Structure:
        if any(getattr(m, "is_causal", True) is False for m in self.layers.modules()):
            raise ModelError(_NOT_CAUSAL.format(self.kind))
        for module in self.model.modules():
            module.register_forward_pre_hook(self._enter_module)
            module.register_forward_hook(self._leave_module)
        for i, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(lambda m, a, kw, i=i: self._enter_layer(i, a, kw), with_kwargs=True)
            layer.register_forward_hook(lambda m, a, out, i=i: self._leave_layer(i, out))
        ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
        self._mark(ids)
        inputs = {"input_ids": ids, "past_key_values": self.cache, "use_cache": True}
        if "position_ids" in inspect.signature(self.model.base_model.forward).parameters:
            inputs["position_ids"] = torch.arange(_TOKENS, device="meta").unsqueeze(0)
        try:
            with torch.no_grad(), torch.device("meta"), self:
                logits = self.model(**inputs).logits
        except ModelError:
            raise
        except Exception as e:  # whatever the family's code does with an input it doesn't expect
            raise ModelError(f"{self.kind}: can't be traced: {describe_error(e)}") from None
        return self._structure(logits)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = list(tensors_in((args, kwargs)))
        name = getattr(func, "__name__", "")
        getter = name == "__get__"
        out = func(*args, **kwargs)
        for t in inputs:
            if id(t) in self.names:
                self._note_use(t, args, getter and not isinstance(out, torch.Tensor))
        if not getter and not name.startswith("new_") and not name.endswith("_like"):
            if any(id(t) in self.marked for t in inputs):
                for t in tensors_in(out):
                    self._mark(t)
                if name == "__setitem__":
                    self._mark(args[0])
        return out

    def _note_use(self, t: torch.Tensor, args, attribute: bool) -> None:
        name, owner = self.names[id(t)], self.owners[id(t)]
        own = bool(self.stack) and self.stack[-1] is owner
        if attribute:
            if not own and isinstance(self.phase, int):
                self.misused.add(name)  # reads .weight.dtype or the like: a packed module has no such weight
            return
        self.used.setdefault(name, set()).add(self.phase)
        if not own:
            self.misused.add(name)
        elif isinstance(owner, nn.Embedding):
            # A subclass may shift ids (OPT's positions) before it looks them up: then rows can't be fetched for it.
            looked_up = next(tensors_in(args), None)
            if not any(looked_up is a for a in self.module_args.get(id(owner), ())):
                self.misused.add(name)

    def _mark(self, t: torch.Tensor) -> None:
        self.marked[id(t)] = t

    def _enter_module(self, module, args):
        self.stack.append(module)
        self.module_args[id(module)] = args

    def _leave_module(self, module, args, out):
        self.stack.pop()
        if isinstance(self.phase, int) and not any(True for _ in module.children()):
            # A dropout gives its input back, and so produces nothing.
            given = {id(t) for t in tensors_in(args)}
            self.produced[self.phase] += sum(t.numel() for t in tensors_in(out) if id(t) not in given)

    def _enter_layer(self, i, args, kwargs):
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, torch.Tensor) or hidden.dim() != 3 or tuple(hidden.shape[:2]) != (1, _TOKENS):
            raise ModelError(f"{self.kind}: layer {i} takes no hidden states of shape [1, tokens, hidden_size]")
        if i != (0 if self.phase == _BEFORE else self._layers_done()):
            raise ModelError(f"{self.kind}: its layers don't run one after the other (layer {i} out of order)")
        if i > 0 and hidden is not self.hidden:
            raise ModelError(f"{self.kind}: the hidden states are changed between layers {i - 1} and {i}")
        self.hidden_size = hidden.shape[-1]
        names = list(inspect.signature(self.layers[i].forward).parameters)
        for name, value in (*zip(names[1:], args[1:], strict=False), *kwargs.items()):
            for t in tensors_in(value):
                if id(t) in self.marked and t is not hidden:
                    raise ModelError(
                        f"{self.kind}: layer {i} gets {name!r}, which depends on token ids or on other layers; "
                        "only hidden states travel between boards"
                    )
        self.phase = i

    def _layers_done(self) -> int:
        return self.phase[1] if isinstance(self.phase, tuple) else -1

    def _leave_layer(self, i, out):
        self.returns_tuple = isinstance(out, (tuple, list))
        self.hidden = out[0] if self.returns_tuple else out
        if not isinstance(self.hidden, torch.Tensor) or self.hidden.shape[-1] != self.hidden_size:
            raise ModelError(f"{self.kind}: layer {i} returns no hidden states of its input's shape")
        self.phase = _AFTER if i == len(self.layers) - 1 else ("between", i + 1)

    def _structure(self, logits) -> Structure:
        if self.phase != _AFTER:
            raise ModelError(f"{self.kind}: of its {len(self.layers)} layers, not all ran")
        config, prefix = self.model.config, self.path + "."
        shapes: dict[Key, tuple[int, ...]] = {}
        layer_names: list[list[str]] = [[] for _ in self.layers]
        packable, transposed = set(), set()
        embedding, head = [], []
        for name, t in self.model.state_dict(keep_vars=True).items():
            phases, key = self.used.get(name, set()), name
            if name.startswith(prefix):
                index, _, rest = name[len(prefix) :].partition(".")
                key = (int(index), rest)
                layer_names[key[0]].append(rest)
                if phases - {key[0]}:
                    raise ModelError(f"{self.kind}: {name} is used outside layer {key[0]}")
            else:
                if phases - {_BEFORE, _AFTER}:
                    raise ModelError(f"{self.kind}: {name} is shared by layers, which may lie on different boards")
                embedding += [name] if _BEFORE in phases else []
                head += [name] if _AFTER in phases else []
                if not phases:
                    continue
            shapes[key] = tuple(t.shape)
            owner: Any = self.owners[id(t)]
            whole = name not in self.misused and len(phases) == 1 and name.endswith(".weight")
            if whole and (isinstance(owner, (Conv1D, nn.Embedding)) or acts_as_linear(owner.__class__)):
                packable.add(key)
                if isinstance(owner, Conv1D):
                    transposed.add(key)
        tied, tied_head = self._tied(embedding, head)
        max_seq_len = rope.max_seq_len(config)
        return Structure(
            model_type=self.kind,
            architecture=type(self.model).__name__,
            layers_path=self.path,
            num_layers=len(self.layers),
            embedding_names=tuple(embedding),
            head_names=tuple(head),
            layer_names=tuple(map(tuple, layer_names)),
            shapes=shapes,
            packable=frozenset(packable),
            transposed=frozenset(transposed),
            kv_shapes=tuple(self._kv_shape(i) for i in range(len(self.layers))),
            activation_elements_per_token=-(-max(self.produced) // _TOKENS),
            rope_switch_len=rope.switch_len(config),
            max_seq_len=max_seq_len,
            hidden_size=self.hidden_size,
            vocab_size=logits.shape[-1],
            tied=tied,
            tied_head=tied_head,
            layers_return_tuples=self.returns_tuple,
        )

    def _kv_shape(self, i: int) -> tuple[int, int, int, int]:
        seen = self.cache.layers[i].shapes
        if len(seen) != 1:
            raise ModelError(
                f"{self.kind}: layer {i} stores keys and values {len(seen)} times a pass, expected once; "
                "recurrent layers and layers that share keys and values can't be split"
            )
        k, v = seen[0]
        if len(k) != 4 or len(v) != 4 or (k[0], k[2]) != (1, _TOKENS) or (v[0], v[2]) != (1, _TOKENS):
            raise ModelError(f"{self.kind}: layer {i} stores keys {list(k)} and values {list(v)}, no plain attention")
        return k[1], k[3], v[1], v[3]

    def _tied(self, embedding: list[str], head: list[str]) -> tuple[str | None, str | None]:
        if not getattr(self.model.config, "tie_word_embeddings", False):
            return None, None
        first, last = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        find = {id(m): n for n, m in self.model.named_modules()}
        if first is None or last is None:
            return None, None
        source, target = f"{find[id(first)]}.weight", f"{find[id(last)]}.weight"
        return (source, target) if source in embedding and target in head else (None, None)
