"""Runs a playbook with ansible-runner: its events and reports of progress as they come, and a clean end by Ctrl-C."""

import contextlib
import json
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgellm.config import PROGRESS_FILE
from edgellm.errors import UsageError

_TICK_S = 0.1
_INTERRUPT_S = 20.0  # how long Ansible may take to end after Ctrl-C, before it is killed


def command() -> Path:
    """Return the ansible-playbook beside this Python. Raise UsageError if there is none."""
    path = Path(sys.executable).with_name("ansible-playbook")
    if not path.is_file():
        how = "Run 'make controller', or pip install 'edgellm[controller]'"
        raise UsageError(f"this needs Ansible, which is not installed. {how}.")
    return path


def environment(project: Path) -> dict[str, str]:
    """Return this process's environment with what the playbooks of `project` need."""
    checks = os.environ.get("ANSIBLE_HOST_KEY_CHECKING", "True")  # ansible-runner turns it off unless told
    return {
        **os.environ, "ANSIBLE_CONFIG": str(project / "ansible.cfg"), "ANSIBLE_HOST_KEY_CHECKING": checks,
        "ANSIBLE_CALLBACK_PLUGINS": str(project / "ansible" / "callback_plugins"),  # ansible-runner adds its own
    }  # fmt: skip


def run(
    project: Path, playbook: str, arguments: list[str], passwords: dict[str, str],
    on_event: Callable[[dict[str, Any]], None], on_progress: Callable[[dict[str, Any]], None],
    tick: Callable[[], None] = lambda: None,
) -> int:  # fmt: skip
    """Run a playbook of `project` in the current folder; return Ansible's exit code.

    `passwords` answers prompts, by regular expression. `tick` is called about ten times a second, in this thread like
    the other two. Raise KeyboardInterrupt after Ctrl-C, SIGTERM or SIGHUP, once Ansible has ended.
    """
    import ansible_runner

    binary = str(command())
    with tempfile.TemporaryDirectory(prefix="edgellm-") as folder, _signals_interrupt():
        reports = Path(folder) / "progress"
        reports.touch()
        queue: list[dict[str, Any]] = []

        def keep(event: dict[str, Any]) -> bool:
            queue.append(event)  # atomic; this thread takes from the other end
            return False  # so that the runner writes no file of it

        runner = ansible_runner.interface.init_runner(
            private_data_dir=folder, project_dir=os.getcwd(), binary=binary,
            cmdline=shlex.join([str(project / playbook), *arguments]), passwords=passwords, suppress_env_files=True,
            envvars={**environment(project), PROGRESS_FILE: str(reports)}, fact_cache_type="", quiet=True,
            settings={"suppress_output_file": True, "pexpect_timeout": 1}, event_handler=keep,
            cancel_callback=lambda: False,
        )  # fmt: skip
        thread = threading.Thread(target=runner.run, name="ansible-runner", daemon=True)
        thread.start()
        try:
            with reports.open("rb") as lines:
                while thread.is_alive():
                    thread.join(_TICK_S)
                    _hand_out(queue, lines, on_event, on_progress)
                    tick()
                _hand_out(queue, lines, on_event, on_progress)
        except BaseException:
            _stop(thread)
            raise
        return int(runner.rc if runner.rc is not None else 1)


def _hand_out(queue: list[dict[str, Any]], lines, on_event, on_progress) -> None:
    while queue:
        on_event(queue.pop(0))
    for line in lines.readlines():
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict):
                on_progress(told)


def _stop(thread: threading.Thread) -> None:
    """Interrupt Ansible, which stands in a session of its own, and wait until it has ended."""
    import psutil

    children = [child for child in psutil.Process().children() if _leads(child.pid)]
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGINT)
    thread.join(_INTERRUPT_S)
    if thread.is_alive():
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [*child.children(recursive=True), child]:
                    process.kill()
        thread.join(_INTERRUPT_S)


def _leads(pid: int) -> bool:
    """Return whether a process is the first of a group of its own, as Ansible is here."""
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does: Ansible must not go on alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, signal.default_int_handler) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
