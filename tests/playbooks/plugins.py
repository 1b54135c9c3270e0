"""Loads the playbooks' plugins as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def plugin(kind: str, name: str) -> ModuleType:
    """Return ansible/KIND_plugins/NAME.py as a module. The test is skipped without Ansible, which only the extra
    controller has."""
    pytest.importorskip("torch._dynamo")  # ansible patches sys.intern, and then torch can't be imported any more
    pytest.importorskip("ansible")
    spec = importlib.util.spec_from_file_location(f"{kind}_{name}", ROOT / f"ansible/{kind}_plugins/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
