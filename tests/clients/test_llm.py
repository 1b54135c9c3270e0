"""The command `llm` with its openai endpoint."""

import json
import os
import subprocess
import sys

import pytest

from tests.clients.asked import LENGTH, MODEL, QUESTION, check_person


@pytest.fixture
def llm(served, tmp_path):
    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", "openai", "endpoint", f"{served.url}/v1", *arguments]
        done = subprocess.run(
            [*command, "--key", served.key], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
            env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_models(llm):
    assert MODEL in llm("--models")


@pytest.mark.parametrize("how", [[], ["--no-stream"], ["--responses"]])
def test_a_prompt(llm, served, how):
    told = llm("-m", MODEL, *how, "-o", "max_tokens", str(LENGTH), "-o", "temperature", "0", QUESTION)
    assert told.strip() == served.answer.strip()


def test_a_schema(llm):
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "age": {
        "type": "integer", "minimum": 0, "maximum": 150}}, "required": ["name", "age"],
        "additionalProperties": False}  # fmt: skip
    told = llm("-m", MODEL, "--schema", json.dumps(schema), "-o", "max_tokens", "200", "Invent a person.")
    check_person(json.loads(told))


def test_a_tool(llm):
    """The model may call it, or not; what it says comes out."""
    function = "def get_weather(city: str) -> str:\n    'Tell the weather.'\n    return 'rain'\n"
    assert llm("-m", MODEL, "--functions", function, "-o", "max_tokens", "16", "--cl", "2", "Weather in Paris?").strip()
