"""Headless Chromium of the system, and servers that all tests share; they come with `make test-page`."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from tests.page.browsing import Real
from tests.server.serving import Serving

HERE = Path(__file__).parent
if importlib.util.find_spec("playwright") is None:  # only make test-page installs it
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.page)


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("chromium is missing: tests/page/install gets it")
    # pi.lan is no secure context, as this server is for a phone on plain HTTP.
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP pi.lan 127.0.0.1"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """A server with the built-in model."""
    real = Real(tmp_path_factory.mktemp("real"))
    yield real
    real.stop()


@pytest.fixture(scope="session")
def fake(tmp_path_factory):
    """A server with boards of the fake model."""
    folder = tmp_path_factory.mktemp("fake")
    fake = Serving(folder, state=folder / "state")
    yield fake
    fake.stop()
