"""Writes constraints.txt, the exact versions that boards install, from pip's report (`make constraints`)."""

import json
import re
import sys
import tomllib
from pathlib import Path

HEAD = "# The exact versions that boards and make install. 'make constraints' writes this file anew.\n"


def constraints(report: dict, project: dict) -> str:
    """Return the file's text: the versions in pip's `report`, except those that pyproject.toml's `project` pins itself,
    which stay as they are there, with their markers."""
    pinned = [r for r in project["optional-dependencies"]["generic"] if re.match(r"[\w.-]+==", r)]
    own = {"edgellm", *(r.split("==")[0] for r in pinned)}
    found = {re.sub(r"[-_.]+", "-", i["metadata"]["name"]).lower(): i["metadata"]["version"] for i in report["install"]}
    lines = sorted([*pinned, *(f"{n}=={v}" for n, v in found.items() if n not in own)])
    return HEAD + "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    told = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    made = constraints(json.loads(Path(sys.argv[1]).read_text()), told)
    Path("constraints.txt").write_text(made)
