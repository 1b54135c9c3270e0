"""The playbooks' plugins as modules, and what their documents say."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ROLES = sorted(p.name for p in (ROOT / "ansible/roles").iterdir() if p.is_dir())


def plugin(kind: str, name: str) -> ModuleType:
    """Return ansible/KIND_plugins/NAME.py as a module. The test is skipped without Ansible, which only the extra
    controller has."""
    pytest.importorskip("torch._dynamo")  # ansible patches sys.intern, and then torch can't be imported any more
    pytest.importorskip("ansible")
    spec = importlib.util.spec_from_file_location(f"{kind}_{name}", ROOT / f"ansible/{kind}_plugins/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: str):
    return pytest.importorskip("yaml").safe_load((ROOT / path).read_text())


def spec(role: str) -> dict:
    """The role's only argument spec. That of the inventory isn't named main, because roles that depend on it would
    check it again, one task each."""
    [spec] = read(f"ansible/roles/{role}/meta/argument_specs.yml")["argument_specs"].values()
    return spec


def defaults(role: str) -> dict:
    path = f"ansible/roles/{role}/defaults/main.yml"
    return read(path) if (ROOT / path).exists() else {}
