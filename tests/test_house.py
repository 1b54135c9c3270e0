"""The house stays as README draws it: who may import whom, and every file on the map."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "edgellm"
FILES = sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py"))

# What a room may import from the others. cli, check and console are on the top floor.
GROUND = {"config.py", "errors.py", "files.py", "sampling.py"}
BELOW = {
    "errors.py": set(),
    "files.py": set(),
    "config.py": {"errors.py"},
    "sampling.py": {"errors.py"},
    "kernels": GROUND,
    "wire": GROUND,
    "shards": GROUND | {"kernels"},
    "plan": GROUND | {"shards", "wire"},
    "model": GROUND | {"kernels", "shards"},
    "checkpoint": GROUND | {"kernels", "shards", "model"},
    "agent": GROUND | {"model", "kernels", "shards", "plan", "wire"},
    "manager": GROUND | {"shards", "plan", "wire"},
    "check": GROUND | {"model", "kernels", "shards", "plan", "wire", "manager"},
    "controller": GROUND | {"manager", "checkpoint", "shards", "plan", "wire", "check"},
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{a.name}" for a in node.names} if node.module == "edgellm" else {node.module}
    return found


def room(module: str) -> str:
    name = module.split(".")[1]
    return name if (PACKAGE / name).is_dir() else f"{name}.py"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path):
    own = path.parts[0]
    if own not in BELOW:
        return
    ours = {room(m) for m in imports(path) if m.startswith("edgellm.") and m != "edgellm.__version__"}
    assert ours <= BELOW[own] | {own}


PLAIN = [p for p in FILES if p.parts[0] in ("wire", "plan", *GROUND)]


@pytest.mark.parametrize("path", PLAIN, ids=str)
def test_wire_and_plan_need_the_standard_library_only(path):
    others = {m.split(".")[0] for m in imports(path)} - {"edgellm"}
    assert others <= set(sys.stdlib_module_names)


def test_the_manager_imports_neither_torch_nor_numpy():
    code = (
        "import sys, edgellm.cli, edgellm.manager.answer, edgellm.manager.cluster_file, edgellm.manager.local\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_map_has_every_file_and_no_other():
    house = (ROOT / "docs" / "architecture.md").read_text().split("## The house")[1].split("\n## ")[0]
    lines = [line.strip() for line in house.splitlines() if line.startswith("    ")]
    named = set(re.findall(r"[\w*]+\.(?:py|cpp|h)\b", " ".join(line.split("  ")[0] for line in lines)))
    here = {p.name for p in FILES} | {p.name for p in PACKAGE.rglob("*.cpp")} | {p.name for p in PACKAGE.rglob("*.h")}
    here = {re.sub(r"^(gemm|ops)_\w+\.cpp$", r"\1_*.cpp", name) for name in here}
    assert named == here


def test_every_file_says_what_lives_in_it():
    for path in FILES:
        doc = ast.get_docstring(ast.parse((PACKAGE / path).read_text()))
        assert doc and doc.split("\n")[0].endswith((".", ":")), path
