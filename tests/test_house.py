"""The house stays as docs/architecture.md draws it: who may import whom, no circle, and every file on the map."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "edgellm"
FILES = sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py"))

# What a room may import from the others. cli and console are on the top floor.
GROUND = {"config.py", "errors.py", "files.py", "limits.py", "sampling.py", "structure.py"}
BELOW = {
    "errors.py": set(),
    "files.py": set(),
    "limits.py": set(),
    "config.py": {"errors.py"},
    "sampling.py": {"errors.py"},
    "structure.py": {"errors.py"},
    "kernels": GROUND,
    "shards": GROUND | {"kernels"},
    "plan": GROUND | {"shards"},
    "wire": GROUND | {"plan"},
    "model": GROUND | {"kernels", "shards"},
    "text": GROUND | {"shards"},
    "checkpoint": GROUND | {"kernels", "shards", "model", "text"},
    "agent": GROUND | {"model", "kernels", "shards", "plan", "wire", "text"},
    "manager": GROUND | {"shards", "plan", "wire", "text"},
    "client.py": GROUND | {"manager", "plan", "wire", "text"},
    "blocking.py": GROUND | {"client.py", "manager", "plan"},
    "conversations.py": GROUND,
    "server": GROUND | {"client.py", "controller", "conversations.py", "manager", "plan", "wire", "text", "shards"},
    "check": GROUND | {"checkpoint", "model", "kernels", "shards", "plan", "wire", "manager", "text"},
    "controller": GROUND | {"manager", "checkpoint", "shards", "plan", "wire", "check", "text"},
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


def rooms(path: Path) -> set[str]:
    """The rooms that a file imports from, its own left out."""
    modules = {m.split(".")[1] for m in imports(path) if m.startswith("edgellm.") and m != "edgellm.__version__"}
    return {name if (PACKAGE / name).is_dir() else f"{name}.py" for name in modules} - {path.parts[0]}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path):
    assert rooms(path) <= BELOW.get(path.parts[0], rooms(path))


def test_no_circle_between_rooms():
    measured: dict[str, set[str]] = {}
    for path in [*FILES, *(p.relative_to(PACKAGE) for p in PACKAGE.rglob("__init__.py") if p.parent != PACKAGE)]:
        measured.setdefault(path.parts[0], set()).update(rooms(path))
    for arrows in (measured, BELOW):
        TopologicalSorter(arrows).prepare()  # raises CycleError with the rooms of a circle


PLAIN = [p for p in FILES if p.parts[0] in ("wire", "plan", *GROUND)]


@pytest.mark.parametrize("path", PLAIN, ids=str)
def test_wire_and_plan_need_the_standard_library_only(path):
    others = {m.split(".")[0] for m in imports(path)} - {"edgellm"}
    if path == Path("wire/signed.py"):
        others -= {"cryptography"}  # only in its functions: see the test below
    assert others <= set(sys.stdlib_module_names)


def test_cryptography_is_imported_when_it_is_needed_and_not_before():
    code = "import sys, edgellm.wire.signed, edgellm.wire.peer; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_the_manager_imports_neither_torch_nor_numpy():
    code = (
        "import sys, edgellm.cli, edgellm.text.tokenizer\n"
        "import edgellm.manager.answer, edgellm.manager.cluster_file, edgellm.manager.local\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def map_of(page: str) -> dict[str, str]:
    """What a drawing of the house says of each path under edgellm/; folders end in "/"."""
    found: dict[str, str] = {}
    folders: list[tuple[int, str]] = []
    for line in page.splitlines():
        match = re.fullmatch(r"( {4,})(\S+(?:, \S+)*)(?: {2,}(.*))?", line)
        if match is None:
            continue  # the rest of what the line above says
        indent, names, words = len(match[1]), match[2], match[3]
        while folders and folders[-1][0] >= indent:
            folders.pop()
        for name in names.split(", "):
            path = "".join(folder for _, folder in folders) + name
            assert path not in found, f"{path} is drawn twice"
            found[path] = (words or "").strip()
            if name.endswith("/"):
                folders.append((indent, name))
    return {p.removeprefix("edgellm/"): words for p, words in found.items() if p.startswith("edgellm/")}


def test_the_map_is_read_by_whole_paths():
    page = "    edgellm/\n      a/     one\n        x.py, y.py   two\n      x.py  three\n    tests/  four\n"
    assert map_of(page) == {"": "", "a/": "one", "a/x.py": "two", "a/y.py": "two", "x.py": "three"}


def test_the_map_has_every_file_and_no_other():
    drawn = map_of((ROOT / "docs" / "architecture.md").read_text().split("## The house")[1].split("\n## ")[0])
    sources = {p.relative_to(PACKAGE) for kind in ("*.cpp", "*.h") for p in PACKAGE.rglob(kind)} | set(FILES)
    # Variants by instruction set share a line.
    here = {re.sub(r"/(gemm|ops)_\w+\.cpp$", r"/\1_*.cpp", p.as_posix()) for p in sources}
    folders = {f"{parent.as_posix()}/" for p in sources for parent in p.parents if parent != Path(".")}
    assert drawn.keys() - {""} == here | folders
    assert not [path for path, words in drawn.items() if path and not words]


def test_every_file_says_what_lives_in_it():
    for path in FILES:
        doc = ast.get_docstring(ast.parse((PACKAGE / path).read_text()))
        assert doc and doc.split("\n\n")[0].endswith((".", ":")), path
