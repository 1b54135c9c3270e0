"""How long deploys take on boards of the lab, and how much they bring there: of this checkout, or beside another one.

    python -m benchmarks.deploys                    # root, x86-64 Debian, cgroup v1: what make test-boards needs
    python -m benchmarks.deploys --before ../0.1    # the other checkout has its own .venv with the dev extra

Three blank boards of 4, 4 and 2 GB without an uplink, with this machine's caches filled by a run that doesn't count.
Each checkout deploys with its own playbooks. All boards share this machine's cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import BenchmarkError
from edgellm.console import note

HERE = Path(__file__).parents[1]
_TIMEOUT_S = 1800.0
# What a checkout runs, once: it has the lab, and prints a JSON object of what it measured.
_SIDE = """
import json, sys
from tests.boards.conftest import new_controller
from tests.boards.harness import Asking, Board, lab
from tests.boards.test_upgrade import copy_of_the_project

def received(boards):
    return sum(int(b.ssh("cat /sys/class/net/eth0/statistics/rx_bytes")) for b in boards) / len(boards)

def on_disk(board):
    software = int(board.root("du -sk /opt/edgellm").split()[0]) * 1024
    return software, int(board.root("du -sk /var/lib/edgellm").split()[0]) * 1024

found = {}
for number in range(1, 5):
    Board(number).destroy()
lab("stop", timeout=120)
lab("build", timeout=1500)
lab("start")
controller = new_controller("measured")
try:
    boards = [Board(n).up(memory=m) for n, m in ((1, 4096), (2, 4096), (3, 2048))]
    options = {"edgellm_objective": "throughput", "edgellm_threads": 1}
    controller.inventory(boards, **options)
    before = received(boards)
    found["three blank boards, s"] = controller.deploy(timeout=900).good().seconds
    found["pushed to a board, MB"] = (received(boards) - before) / 1e6
    software, model = on_disk(boards[0])
    found["on a board's disk, software, MB"] = software / 1e6
    found["on a board's disk, shards, MB"] = model / 1e6
    found["nothing to do, s"] = controller.deploy().good().seconds
    fourth = Board(4).up(memory=4096)
    ask = ["ask", "Tell a long story.", "--temperature", 0, "--max-tokens", 1500]
    asking = controller.start("edgellm", *ask, kind=Asking)
    asking.after(5)
    controller.inventory([*boards, fourth], **options)
    found["a fourth board during an answer, s"] = controller.deploy().good().seconds
    asking.kill()
    copy = copy_of_the_project("next", sys.argv[1], broken=False)
    controller.inventory(boards, **options)
    controller.deploy().good()
    played = controller.ansible("playbooks/upgrade.yml", root=copy, timeout=700).good()
    found["upgrade of three boards, s"] = played.seconds
finally:
    lab("stop", timeout=120)
print(json.dumps(found))
"""


def measure(checkout: Path, version: str) -> dict[str, float]:
    """Return what one round of deploys of a checkout took, by name; boards are upgraded to `version`."""
    python = checkout / ".venv" / "bin" / "python"
    if not python.is_file():
        raise BenchmarkError(f"{checkout} has no .venv. Run 'make .venv/dev' there.")
    done = subprocess.run(
        [python, "-c", _SIDE, version], cwd=checkout, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=_TIMEOUT_S,
    )  # fmt: skip
    if done.returncode:
        raise BenchmarkError(f"{checkout}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    sides = {"before": options.before.resolve(), "now": HERE} if options.before else {"now": HERE}
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for i in range(options.runs + 1):
        for side, checkout in sides.items():
            found = measure(checkout, f"99.0.{i}")
            if i:  # the first fills caches
                rounds[side].append(found)
            note(f"{side}: {i} of {options.runs}")
    if options.json:
        print(json.dumps(rounds, indent=1))
        return
    print(f"{'medians of ' + str(options.runs):40}" + "".join(f"{side:>10}" for side in sides))
    for what in rounds["now"][0]:
        print(f"{what:40}" + "".join(f"{statistics.median(r[what] for r in rounds[side]):10.1f}" for side in sides))


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as e:
        sys.exit(f"benchmarks.deploys: {e}")
