"""The command in this process, and boards of the fake model for it."""

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

from click.testing import CliRunner

from edgellm.cli import main
from edgellm.manager.cluster_file import ClusterFile
from edgellm.shards.manifest import Manifest
from tests.fakes import Boards, connect_all, generate, make_plan
from tests.tiny import environment, write_tokenizer

# One token a character: the fake model's vocabulary of 97.
VOCAB = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ", "ĉ"]
TEXT = {i: {"Ġ": " ", "Ċ": "\n", "ĉ": "\t"}.get(c, c) for i, c in enumerate(VOCAB)}
CONTEXT = 3000
ASK = [sys.executable, "-m", "edgellm", "ask"]


def ids_of(text: str) -> list[int]:
    reverse = {c: i for i, c in TEXT.items()}
    return [reverse[c] for c in text]


def answer_to(prompt: str, count: int) -> str:
    return "".join(TEXT[i] for i in generate(ids_of(prompt), count))


class Pace:
    """A gate for the fake section: each of its steps takes `delay_s`."""

    delay_s = 0.0

    def wait(self, timeout: float) -> bool:
        time.sleep(self.delay_s)
        return True


class Cluster:
    """Two boards of the fake model in a thread, and the cluster file for them. `other` is a further fake model."""

    def __init__(self, folder: Path, other: Manifest | None = None):
        self.model_dir, self.file, self.pace = folder / "model", folder / "cluster.json", Pace()
        self.model_dir.mkdir()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            more = {} if other is None else {folder / other.model: other}
            self.boards = Boards(self.model_dir, 2, gates={"b1": self.pace}, more=more)
            for model_dir in (self.model_dir, *more):
                write_tokenizer(model_dir, VOCAB)
            self.call(self.boards.__aenter__())
            self.plan = self.call(self.boards.form((0, 3, 6), context=CONTEXT, slots=2, chunk=16))
            file = ClusterFile.make(self.model_dir, self.boards.addresses, self.plan)
            for model_dir in more:
                manifest = Manifest.read(model_dir)
                plan = make_plan(manifest, (0, 2, manifest.num_layers), epoch=0, context=CONTEXT)
                file = file.adding(model_dir, plan)
            file.write(self.file)
        except BaseException:
            self.stop_loop()
            raise

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def free_slots(self) -> list[int]:
        async def ask_all():
            boards = await connect_all(self.boards.addresses)
            try:
                sections = [(await b.status()).section for b in boards]  # none where another plan left the board out
                return [self.plan.slots if s is None else s.free_slots for s in sections]
            finally:
                for board in boards:
                    board.close()

        return self.call(ask_all())

    def stop(self) -> None:
        self.call(self.boards.__aexit__())
        self.stop_loop()

    def stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def call(*arguments, stdin=None):
    """The command in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)


def fails(code: int, *arguments, stdin=None) -> str:
    """The one line of the error."""
    result = call(*arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (code, ""), (result.output, result.exception)
    *notes, line = result.stderr.splitlines()
    assert line.startswith("edgellm: ") and not notes, result.stderr
    return line.removeprefix("edgellm: ")


def start(cluster, home, *arguments) -> subprocess.Popen:
    """A question with a long answer, in a process. Its stdout has no buffer here, because `communicate` leaves out what
    a buffer has read."""
    return subprocess.Popen(
        [*ASK, "Why?", "--cluster", str(cluster.file), "--max-tokens", "2500", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home), bufsize=0,
    )  # fmt: skip
