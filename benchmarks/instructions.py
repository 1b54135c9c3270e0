"""Counts the instructions that boards' kernels execute for 32 weights and one token, compiled by zig as for boards.

    python -m benchmarks.instructions
    python -m benchmarks.instructions --tokens 1 4 --json

Needs qemu-aarch64 and g++-aarch64-linux-gnu. With llvm-mca it also estimates cycles, of caches that always hit.
"""

import argparse
import collections
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.crossbuild import EMULATOR, Objects
from edgellm.kernels.library import ENCODINGS, GROUP

SOURCE = Path(__file__).with_name("one_product.cpp")
CPUS = {"neon": "cortex-a72", "dotprod": "cortex-a76"}  # of qemu, by instruction set
_MODELS = {"neon": "cortex-a72", "dotprod": "neoverse-n1"}  # of llvm-mca: Neoverse N1 is a Cortex-A76 for servers
PACKED = ("int4s", "int4", "int8", "q4_k", "q5_k", "q6_k", "mxfp4", "iq4_xs")
_OBJDUMP = "aarch64-linux-gnu-objdump"
# The fewest rows that a section gives a thread at a time, because some kernels copy activations once for all rows of a
# call; and rows so long that what a block begins and ends with is small.
ROWS, COLUMNS = 64, 2048
_WINDOW = 4000  # instructions for llvm-mca, out of the middle of a product
# Both names of one setting, of QEMU before and after 8.1: a line of the log an instruction.
_EACH = {"QEMU_SINGLESTEP": "1", "QEMU_ONE_INSN_PER_TB": "1"}
_LOGGED = re.compile(rb"/0*([0-9a-f]+)/[0-9a-f]+/[0-9a-f]+\]")


@dataclass(frozen=True)
class Count:
    """What 32 weights times one token cost in a product with `tokens` tokens; cycles are None without llvm-mca."""

    target: str
    encoding: str
    tokens: int
    instructions: float
    cycles: float | None = None


def executed(program: Path, target: str, encoding: str, tokens: int, times: int) -> list[bytes]:
    """Return the address of every instruction that the program executes, in order."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        words = [program, target, ENCODINGS[encoding], ROWS, COLUMNS, tokens, times]
        command = [EMULATOR, "-cpu", CPUS[target], "-d", "exec,nochain", "-D", log, *words]
        subprocess.run(list(map(str, command)), check=True, env={**os.environ, **_EACH}, timeout=120)
        return _LOGGED.findall(log.read_bytes())


def count(program: Path, target: str, encoding: str, tokens: int, estimate: bool = False) -> Count:
    """Count one product: what two of them execute less what one does, so that nothing around it counts."""
    once, twice = (executed(program, target, encoding, tokens, times) for times in (1, 2))
    work = ROWS * (COLUMNS // GROUP) * tokens
    instructions = (len(twice) - len(once)) / work
    if not estimate:
        return Count(target, encoding, tokens, instructions)
    # Addresses that the second product adds belong to it; the most frequent one lies in its innermost loop.
    added = collections.Counter(twice)
    added.subtract(collections.Counter(once))
    busiest = added.most_common(1)[0][0]
    first, last = twice.index(busiest), len(twice) - twice[::-1].index(busiest)
    middle = first + (last - first) // 4
    window = twice[middle : middle + _WINDOW]
    cycles = _estimate(program, window, _MODELS[target]) / len(window) * instructions
    return Count(target, encoding, tokens, instructions, cycles)


def _estimate(program: Path, addresses: list[bytes], model: str) -> int:
    """Return the cycles that llvm-mca gives for these instructions, one after the other."""
    command = [_OBJDUMP, "-d", "--no-show-raw-insn", str(program)]
    listing = subprocess.run(command, check=True, capture_output=True).stdout
    texts = dict(re.findall(rb"^\s*([0-9a-f]+):\s+([^/<\n]*)", listing, re.MULTILINE))
    # Targets of branches are addresses, which the assembler won't take.
    lines = [re.sub(r"\b(?<![#x])[0-9a-f]{5,}\s*$", "#8", texts[a].decode()) for a in addresses]
    machine = ["-mtriple=aarch64-linux-gnu", "-mattr=+dotprod", f"-mcpu={model}"]
    command = ["llvm-mca", *machine, "-iterations=1", "-noalias"]
    done = subprocess.run(command, input="\n".join(lines), check=True, capture_output=True, text=True)
    return int(re.search(r"Total Cycles:\s+(\d+)", done.stdout)[1])


def main() -> None:
    """Parse the options, build, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=(1, 16), help="1 is decode, more is prefill")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = Objects.of_boards(Path(folder)).program(SOURCE)
        estimate = shutil.which("llvm-mca") is not None
        found = [
            count(program, target, encoding, tokens, estimate)
            for target in CPUS for encoding in PACKED for tokens in options.tokens
        ]  # fmt: skip
    if options.json:
        json.dump([dataclasses.asdict(c) for c in found], sys.stdout, indent=1)
        print()
        return
    print(f"{'kernel':9}{'weights':9}{'tokens':>6}{'instructions':>14}{'cycles':>8}   for 32 weights and one token")
    for c in found:
        cycles = "–" if c.cycles is None else f"{c.cycles:.1f}"
        print(f"{c.target:9}{c.encoding:9}{c.tokens:6}{c.instructions:14.2f}{cycles:>8}")


if __name__ == "__main__":
    main()
