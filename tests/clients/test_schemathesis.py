"""schemathesis over /openapi.json: no 500, and no answer outside its schema."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]


def test_no_500_and_no_answer_outside_its_schema(served, tmp_path):
    document = httpx.get(f"{served.url}/openapi.json", headers={"Authorization": f"Bearer {served.key}"}, timeout=30)
    paths = document.json()["paths"]
    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/api/embed"):
        assert path in paths
    (tmp_path / "openapi.json").write_text(json.dumps(document.json()))
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", str(tmp_path / "openapi.json"), "--url", served.url,
        "-H", f"Authorization: Bearer {served.key}", "--phases", "examples,coverage,fuzzing", "-n", "5", "--seed", "1",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--request-timeout", "30", "--workers", "4", "--no-shrink", "--no-color",
    ]  # fmt: skip
    env = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.clients.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout[-8000:]
