"""One server for all tests that change nothing about it."""

import pytest

from tests.server.serving import Serving


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    served = Serving(tmp_path_factory.mktemp("served"))
    yield served
    served.stop()


@pytest.fixture
def slow(served):
    """The same, with boards that take a moment for each token."""
    served.cluster.pace.delay_s = 0.01
    yield served
    served.cluster.pace.delay_s = 0.0
