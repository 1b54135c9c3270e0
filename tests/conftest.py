"""What every test may count on."""

import signal

import pytest
from hypothesis import settings

# An example may take as long as the machine makes it take: a limit would fail on one that is busy.
settings.register_profile("edgellm", deadline=None)
settings.load_profile("edgellm")
# Whoever started the tests may have had Ctrl-C ignored (a shell does for what it runs in the background), and child
# processes would inherit that: ours are to be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Without tests marked native, the others must do without the library, and so it isn't there."""
    if "not native" in config.option.markexpr:
        from edgellm.kernels import library

        library._candidates = list


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Hostile peers make agents log what isn't UTF-8; the processes of pytest-xdist send each other nothing else."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
