"""A browser that tells what a page does wrong, and servers for it."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil

FILES = Path(__file__).parents[2] / "edgellm" / "server" / "page"
START_S = 120.0
# The axe-core 4 of the pinned axe-playwright-python.
AXE_SHA256 = "84494fec757e4710dc751c8d7a636e457f4532f08f85c86dc9070133fbff53bc"
# What axe calls less than serious is left to taste.
BAD = ("serious", "critical")


class Real:
    """`edgellm serve` with the built-in model on agents of this machine."""

    def __init__(self, home: Path):
        env = {k: v for k, v in os.environ.items() if not k.startswith("EDGELLM_")}
        env |= {"EDGELLM_CONFIG": str(home / "config"), "EDGELLM_STATE": str(home / "state")}
        env |= {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CONFIG", "STATE", "DATA")}
        self._log = home / "log"
        with open(self._log, "wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edgellm", "serve", "--port", "0"], env=env, cwd=home, stdin=subprocess.DEVNULL,
                stdout=out, stderr=out,
            )  # fmt: skip
        self.base = self._address()

    def _address(self) -> str:
        deadline = time.monotonic() + START_S
        while True:
            log = self._log.read_text()
            if found := re.search(r"^open (http://\S+?)/?$", log, re.MULTILINE):
                return found[1]
            assert self._process.poll() is None and time.monotonic() < deadline, log
            time.sleep(0.1)

    def kill_agent(self, name: str) -> None:
        """End an agent at once, as a power cut would."""
        for child in psutil.Process(self._process.pid).children(recursive=True):
            command = child.cmdline()
            if "agent" in command and name in command:
                child.kill()
                return
        raise AssertionError(f"no agent is called {name}")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(15)
        finally:
            self._process.kill()
            self._process.wait()
        assert "Traceback" not in self._log.read_text(), self._log.read_text()


@contextmanager
def tab(browser, base: str, *, answers_may_fail: bool = False, **options):
    """A page of its own browser profile. Fails at its end if something was fetched from elsewhere, or if a script
    failed or complained; with `answers_may_fail`, requests may."""
    context = browser.new_context(base_url=base, **options)
    context.set_default_timeout(20_000)
    wrong: list[str] = []
    page = context.new_page()

    def told(message) -> None:
        expected = answers_may_fail and "Failed to load resource" in message.text
        if message.type in ("error", "warning") and not expected:
            wrong.append(f"console: {message.text}")

    def requested(request) -> None:
        if not request.url.startswith((base, "data:", "blob:")):
            wrong.append(f"fetched from elsewhere: {request.url}")

    context.on("console", told)
    context.on("weberror", lambda error: wrong.append(f"script: {error.error}"))
    context.on("request", requested)
    try:
        yield page
        assert not wrong, "\n".join(wrong)
    finally:
        context.close()


def findings(page) -> list[str]:
    """What axe finds that is serious."""
    import axe_playwright_python

    script = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
    assert hashlib.sha256(script.encode()).hexdigest() == AXE_SHA256
    if not page.evaluate("typeof window.axe === 'object'"):
        page.evaluate(script)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [f"{v['id']}: {v['help']}: {[n['html'] for n in v['nodes'][:3]]}" for v in found if v["impact"] in BAD]


def events(*told: dict) -> str:
    """A stream of events as the server sends it."""
    return "".join(f"data: {json.dumps(event)}\n\n" for event in told)


def answers(page, text: str, *, pieces: int = 7, reasoning: str = "") -> None:
    """Have the next questions answered with a text, without a model."""
    told = [{"kind": "accepted", "prompt_tokens": 9, "model": "fake"}]
    told += [{"kind": "reasoning", "text": reasoning}] if reasoning else []
    told += [{"kind": "text", "text": text[i : i + pieces]} for i in range(0, len(text), pieces)]
    timings = {"prompt_tokens": 9, "cached_tokens": 0, "tokens": 50, "first_token_s": 0.42, "total_s": 6.2,
               "tokens_per_s": 8.5}  # fmt: skip
    told.append({"kind": "ended", "reason": "stop", "timings": timings})
    page.route("**/page/api/answer", lambda route: route.fulfill(
        status=200, content_type="text/event-stream", body=events(*told)))  # fmt: skip


def boards(page, state: dict) -> None:
    """Have the boards be as `state` says, without boards."""
    page.route("**/page/api/boards", lambda route: route.fulfill(status=200, json=state))
    page.route("**/page/api/boards/live", lambda route: route.fulfill(
        status=200, content_type="text/event-stream", body=events({"kind": "boards", **state})))  # fmt: skip


def ask(page, text: str) -> None:
    """Ask, and wait until the answer is complete."""
    page.fill("#text", text)
    page.keyboard.press("Enter")
    page.wait_for_selector(".theirs:last-child .stats", timeout=60_000)


def answer(page) -> str:
    return page.inner_text(".theirs:last-child .text")


def until(page, expression: str) -> None:
    """Wait until a JavaScript expression is true. Playwright's own wait would have the page's policy lifted."""
    deadline = time.monotonic() + 20
    while not page.evaluate(f"Boolean({expression})"):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)
