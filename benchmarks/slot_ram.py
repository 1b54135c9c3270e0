"""The RAM that a slot takes for models whose layers forget, beside one that keeps all positions in all layers.

    python -m benchmarks.slot_ram
    python -m benchmarks.slot_ram --context 131072 --json
    python -m benchmarks.slot_ram --config folder/config.json

Slots are reserved at once, so this needs no weights, and no board: a slot is made, and its bytes are counted. A version
before windows and states kept all positions in all layers, in float16 at the least. Of a hybrid, which it refused, the
same number of layers with attention is what it is compared with.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import Row
from edgellm.model.families.find import find_spec
from edgellm.model.families.spec import Spec
from edgellm.model.native.slot import NativeSlot
from edgellm.shards.slot_memory import kv_bytes

CONTEXT = 32768
SHAPES: dict[str, dict[str, Any]] = {
    "Gemma 3 1B": dict(
        model_type="gemma3_text", hidden_size=1152, intermediate_size=6912, num_hidden_layers=26, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, sliding_window=512, vocab_size=262144, max_position_embeddings=32768,
    ),
    "Qwen3.5 4B": dict(
        model_type="qwen3_5_text", hidden_size=2560, intermediate_size=9216, num_hidden_layers=32,
        num_attention_heads=16, num_key_value_heads=4, head_dim=256, vocab_size=248320, max_position_embeddings=262144,
        linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128, linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
    ),
}  # fmt: skip


def spec_of(config: Mapping[str, Any]) -> Spec:
    """Return the Spec of a config.json's content. Raises ValueError if no family knows it."""
    spec, reason = find_spec(dict(config))
    if spec is None:
        raise ValueError(reason)
    return spec


def everything(spec: Spec, context: int) -> int:
    """Return what keys and values of all positions take in float16, if every layer had attention."""
    elements = max(spec.kv_elements_per_token)
    return spec.num_layers * kv_bytes(elements, 0, 0, context, "float16")


def rows_of(name: str, spec: Spec, context: int) -> list[Row]:
    """Return a model's rows, in MB."""
    windows = [window for window in (layer.kv_window_tokens for layer in spec.layers) if 0 < window < context]
    states = [layer.state_bytes for layer in spec.layers if layer.state_bytes]
    before = everything(spec, context)
    rows = [
        Row(name, f"{spec.num_layers} layers, {len(windows)} with windows, {len(states)} with states"),
        Row("  all positions in all layers, float16", before / 1e6, "MB"),
    ]
    for kv_dtype in ("float16", "int8"):
        now = NativeSlot(spec.layers, context, kv_dtype).ram_bytes
        rows += [Row(f"  a slot, {kv_dtype}", now / 1e6, "MB"), Row("    of that", 100 * now / before, "%")]
    return [*rows, *([Row("    states", sum(states) / 1e6, "MB")] if states else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=CONTEXT, help="tokens of a slot")
    parser.add_argument("--config", type=Path, help="the config.json of another model")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    shapes = SHAPES if options.config is None else {str(options.config): json.loads(options.config.read_text())}
    rows = [row for name, config in shapes.items() for row in rows_of(name, spec_of(config), options.context)]
    print(report.text("slot_ram", report.machine(), rows, options.json))


if __name__ == "__main__":
    main()
