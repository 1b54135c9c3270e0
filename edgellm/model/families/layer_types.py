"""Which layers have a window and which see every token, and the rotary factors of each of these types. Pure."""

from collections.abc import Callable, Mapping

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.rotary import Rotary, rotary_of

SLIDING, FULL = "sliding_attention", "full_attention"
Windows = Callable[[int], int]  # a layer's number → how many tokens its attention reaches, 0 for all


def read_layer_types(config: Config, num_layers: int, slides: Callable[[int], bool]) -> list[str]:
    """Return each layer's type, as `layer_types` names it; without that, `slides` says of a layer's number whether it
    has a window. Raises UnsupportedError."""
    types = config.get("layer_types")
    if types is None:
        return [SLIDING if slides(i) else FULL for i in range(num_layers)]
    if not isinstance(types, list) or len(types) < num_layers or not all(isinstance(t, str) for t in types):
        raise UnsupportedError(f"layer_types is not a list with an entry for each of the {num_layers} layers")
    for name in types:
        if name not in (FULL, SLIDING):
            raise UnsupportedError(f"a layer is of type {name[:60]!r}, the native path knows {FULL}, {SLIDING}")
    return types[:num_layers]


def windows_of(types: list[str], window: int) -> Windows:
    """Return the windows of layers of these types; 0 as `window` says that the config has none. Raises
    UnsupportedError for layers with a window of unknown size."""
    if not window and SLIDING in types:
        raise UnsupportedError("layers have a sliding window, but its size isn't given")
    return lambda layer: window if types[layer] == SLIDING else 0


def read_window(config: Config, default: int | None) -> int:
    """Return `sliding_window`, 0 where it is null; `default` counts where it is missing. Raises UnsupportedError."""
    if config.content.get("sliding_window", default) is None:
        return 0
    return config.count("sliding_window", default=default)


def rotaries_of_types(
    config: Config, head_dim: int, max_seq_len: int, thetas: Mapping[str, tuple[str | None, float]]
) -> dict[str, Rotary]:
    """Return the rotary factors of each type of layer.

    `rope_parameters` has a set for each; in older configs `rope_scaling` counts for the layers that see every token.
    `thetas` gives for each type what the config calls its base outside of the set, None if nothing, and the family's
    default. Raises UnsupportedError.
    """
    given, scaling = config.content.get("rope_parameters") or {}, config.content.get("rope_scaling") or {}
    if not isinstance(given, dict) or not isinstance(scaling, dict) or given.keys() - thetas.keys():
        raise UnsupportedError(f"its rotary parameters aren't one set for each of {', '.join(thetas)}")
    found = {}
    for name, (outer, default) in thetas.items():
        parameters = given.get(name) or {}
        if not isinstance(parameters, dict):
            raise UnsupportedError(f"its rotary parameters of {name} are no set")
        if name == FULL:
            parameters = {**parameters, **scaling}
        base = config.content.get(outer) if outer else None
        parameters = {"rope_theta": default if base is None else base, **parameters}
        found[name] = rotary_of({"rope_parameters": parameters}, head_dim, max_seq_len, partial=False)
        if found[name].switch_len is not None:
            raise UnsupportedError(f"LongRoPE in layers of type {name}")
    return found
