"""Builds edgellm's wheels for the package index, one a machine, playbooks included (`make wheels`)."""

import shutil
import sys
import tempfile
from pathlib import Path

import platformdirs

from edgellm.controller.wheels import ELF_MACHINES, Target, Wheels, check_wheel


def build(source: Path, into: Path, machines=tuple(ELF_MACHINES)) -> list[Path]:
    """Build a wheel for each machine from the repository `source`; return their paths. Raise WheelhouseError."""
    tools = Path(platformdirs.user_cache_dir("edgellm")) / "tools"
    workshop = Wheels(tools, lambda what: print(what, "…", file=sys.stderr))
    made = []
    for machine in machines:
        target = Target(machine, f"{sys.version_info.major}.{sys.version_info.minor}")
        with tempfile.TemporaryDirectory() as work:
            built = workshop.build(source, target, Path(work) / "built", Path(work), playbooks=True)
            check_wheel(built, machine)
            into.mkdir(parents=True, exist_ok=True)
            made.append(Path(shutil.move(built, into / built.name)))
    return made


if __name__ == "__main__":
    for path in build(Path.cwd(), Path(sys.argv[1])):
        print(path)
