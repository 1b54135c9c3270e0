"""Fuzzed frames behind valid certificates and over loopback, while boards answer: nothing crashes, memory is bounded.

    python -m benchmarks.fuzz
    python -m benchmarks.fuzz --frames 100000 --seed 7

Half of the frames come with certificates of the cluster (a board that isn't in the plan, and a manager who only asks),
half over plain loopback. Exits with 1 if anything crashed, an answer was changed, or memory grew by more than 60 MB.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.agent.fuzzing import fuzz, told
from tests.fakes import run

MOST_BYTES = 60 << 20
_FRAME_S = 0.05  # far more than one takes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    well = True
    for tls in (False, True):
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            frames = asked.frames // 2
            out = run(fuzz(Path(folder), frames, asked.seed, tls), 60 + _FRAME_S * frames)
        how = "with certificates" if tls else "over loopback"
        print(f"{how}, {time.monotonic() - began_s:.0f} s: {told(out)}", flush=True)
        for crash in out.crashes[:5]:
            print(crash)
        well = well and out.unharmed and out.grown_bytes < MOST_BYTES
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
