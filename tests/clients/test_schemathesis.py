"""schemathesis over /openapi.json: no 500, and no answer outside its schema."""

import json
import subprocess
import sys

import httpx


def test_no_500_and_no_answer_outside_its_schema(served, tmp_path):
    document = httpx.get(f"{served.url}/openapi.json", headers={"Authorization": f"Bearer {served.key}"}, timeout=30)
    paths = document.json()["paths"]
    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/api/embed"):
        assert path in paths
    (tmp_path / "openapi.json").write_text(json.dumps(document.json()))
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", str(tmp_path / "openapi.json"), "--url", served.url,
        "-H", f"Authorization: Bearer {served.key}", "--phases", "examples,coverage,fuzzing", "-n", "8", "--seed", "1",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--request-timeout", "30", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:]
