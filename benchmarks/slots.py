"""What finding the slot that holds most of a prompt takes, in the event loop; medians.

    python -m benchmarks.slots
    python -m benchmarks.slots --json

The worst case: every slot is full, and holds the prompt but for its last token.
"""

import argparse
import time

from benchmarks import report
from benchmarks.report import Row, at_most, median
from edgellm.agent.slots import Slots, choose_slot, ids_of

LIMIT_MS = 5.0
CASES = ((2048, 4), (8192, 8), (32768, 16), (131072, 16))  # tokens of context, slots
_ROUNDS = 15


def measure(context: int, slots: int) -> tuple[float, float]:
    """Return the medians of milliseconds that choosing takes, and that making an array of the prompt's ids takes."""
    free, prompt = Slots([None] * slots).free(), tuple(range(context))
    for slot in free:
        slot.ids = ids_of(prompt[:-1])
    chosen: list[float] = []
    made: list[float] = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        ids = ids_of(prompt)
        made.append((time.perf_counter() - began) * 1e3)
        began = time.perf_counter()
        choose_slot(free, ids, context)
        chosen.append((time.perf_counter() - began) * 1e3)
    return median(chosen), median(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows = []
    for context, slots in CASES:
        chosen, made = measure(context, slots)
        rows.append(at_most(f"{slots} slots of {context} tokens", chosen, "ms", LIMIT_MS))
        rows.append(Row("  the prompt as an array", made, "ms"))
    print(report.text("slots", report.machine(), rows, options.json))


if __name__ == "__main__":
    main()
