"""The daemon: listens, says what the board offers, and hands messages to what it holds."""

import asyncio
import contextlib
import dataclasses
import errno
import functools
import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from edgellm import __version__
from edgellm.agent import measure, systemd
from edgellm.agent.health import health
from edgellm.agent.holding import Holding, in_own_thread
from edgellm.agent.load import load_section
from edgellm.agent.stage import Stage
from edgellm.agent.tune import state_folder, take_cores
from edgellm.config import BOARD_SILENCE_S, MANAGER_SILENCE_S, STEP_TIMEOUT_S
from edgellm.errors import BoardError, EdgellmError
from edgellm.kernels import library
from edgellm.limits import MAX_STEP_BYTES
from edgellm.shards.manifest import Manifest
from edgellm.shards.verified import verified
from edgellm.wire import messages as m
from edgellm.wire.credentials import client_credentials, server_credentials
from edgellm.wire.peer import Peer, listen
from edgellm.wire.protocol import Protocol

log = logging.getLogger(__name__)
_MAX_STRANGERS = 64  # connections that haven't said hello; one more, and the oldest is closed
_MAX_PEERS = 256
_MAX_CHANGES = 4  # assigns and commits that wait for each other
_SWEEP_S = 1.0
_SWITCH_S = 0.0005  # a step that is done waits no longer than this for the loop to let it go on: Python's own is 5 ms
_IDLE_STEP_BYTES = 64 << 10  # largest step frame while no plan says how large they are


@dataclass(frozen=True)
class AgentOptions:
    """`ram_bytes` caps the offer; `threads` and `cores` are for computing (None: what turns out to be the fastest);
    `drain_s` is how long running answers may go on after SIGTERM; `tls` is the folder of this board's certificate
    (None: plain TCP); `path` is load_section's."""

    shards: Path
    host: str
    port: int
    name: str
    threads: int | None = None
    ram_bytes: int | None = None
    drain_s: float = 60.0
    tls: Path | None = None
    cores: tuple[int, ...] | None = None
    path: str = "auto"


class Agent:
    """One board. `run()` returns when it has been told to stop and running answers have ended. `take_cores` decides
    what is computed on, None leaves it."""

    def __init__(
        self, options: AgentOptions, load=load_section, measure_decode=measure.measure_decode, take_cores=None
    ):
        self.options = options
        self._measure_decode, self._take_cores = measure_decode, take_cores
        self.manifest = Manifest.read(options.shards)
        self.port = options.port  # the real one after listening, where 0 was asked for
        self._server_tls = server_credentials(options.tls) if options.tls else None
        client_tls = client_credentials(options.tls) if options.tls else None
        self.holding = Holding(
            options.name, self.manifest, options.shards, load, ram_bytes=options.ram_bytes, tls=client_tls
        )
        self._layer_s = self._head_s = 0.0
        self._strangers: dict[Peer, None] = {}
        self._peers: set[Peer] = set()
        self._changes = 0
        self._tasks: set[asyncio.Task] = set()
        self._stop = asyncio.Event()
        self._draining = False

    async def run(self, ready=lambda agent: None) -> None:
        """Measure, listen, serve until stopped. `ready(agent)` is called when it listens. Raises EdgellmError if the
        shards are unusable or the address can't be had."""
        me, place = self.options.name, f"{self.options.host}:{self.options.port}"
        try:
            server = await listen(self.options.host, self.options.port, self._make_peer, tls=self._server_tls)
        except (OSError, ValueError) as e:
            known = getattr(e, "errno", None) in errno.errorcode
            reason = (os.strerror(e.errno) if known else str(e.args[-1])).lower()
            raise BoardError(f"board {me} can't listen on {place}: {reason}", me) from None
        self.port = server.sockets[0].getsockname()[1]
        try:
            if self._take_cores is not None:
                told = self.options
                choice = await in_own_thread(
                    self._take_cores, self.manifest, told.shards, told.threads, told.cores
                )
                self.options = dataclasses.replace(told, threads=choice.threads, cores=choice.cores)
            self._layer_s, self._head_s = await in_own_thread(
                self._measure_decode, self.manifest, self.options.shards
            )
            await server.start_serving()
            log.info(
                "%s: %s, %.2f ms a layer, offers %.2f GB, listens on %s:%d",
                self.options.name, self.manifest.model, self._layer_s * 1e3, self.holding.offer_bytes() / 1e9,
                self.options.host, self.port,
            )  # fmt: skip
            ready(self)
            systemd.ready()
            self._spawn(self._sweep())
            await self._stop.wait()
            systemd.stopping()
            await self._drain()
        finally:
            for task in self._tasks:
                task.cancel()
            server.close()
            self.holding.stop(f"board {self.options.name} is stopping")
            for peer in [*self._strangers, *self._peers]:
                peer.close()

    def stop(self) -> None:
        """Take no new sequences, let running ones end, then return from `run`. A second call doesn't wait."""
        if self._draining:
            self.holding.stop(f"board {self.options.name} was told twice to stop")
        self._draining = self.holding.closed = True
        self._stop.set()

    @property
    def stage(self) -> Stage | None:
        """The stage that runs now."""
        return self.holding.stage

    # Connections

    def _make_peer(self) -> Peer:
        protocol = Protocol(m.Hello("board", self.options.name), dials=False, max_step_bytes=self._step_bytes())
        peer = Peer(protocol, self._message, self._lost)
        self._strangers[peer] = None
        if len(self._strangers) > _MAX_STRANGERS:
            self._know_greeted()
        for oldest in list(self._strangers)[:-_MAX_STRANGERS]:
            oldest.refuse("too many connections without a hello")
        return peer

    def _greeted(self, peer: Peer) -> bool:
        if peer in self._strangers:
            del self._strangers[peer]
            if len(self._peers) >= _MAX_PEERS:
                peer.refuse(f"{_MAX_PEERS} connections are open already")
                return False
            self._peers.add(peer)
        return True

    def _lost(self, peer: Peer, reason: str) -> None:
        self._strangers.pop(peer, None)
        self._peers.discard(peer)
        if peer.protocol.peer is None:
            log.info("connection of %s ended: %s before a hello", peer.name, reason)
        else:
            level = logging.DEBUG if reason.startswith("closed by") else logging.WARNING
            log.log(level, "connection of %s (%s) ended: %s", peer.name, peer.address, reason)
        self.holding.release(peer)
        if self.stage is not None:
            self.stage.manager_lost(peer)

    async def _sweep(self) -> None:
        """Peers that fell silent (asleep, unplugged) are let go; greeted ones are strangers no more."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            if self.holding.step_s < STEP_TIMEOUT_S:  # a thread that hangs can't be ended: a restart is all that helps
                systemd.watchdog()
            now = asyncio.get_running_loop().time()
            for peer in list(self._peers):
                patience_s = MANAGER_SILENCE_S if peer.protocol.peer.role == "manager" else BOARD_SILENCE_S
                if now - peer.last_heard_s > patience_s:
                    peer.refuse(f"silent for {patience_s:g} s")
            self._know_greeted()

    def _know_greeted(self) -> None:
        for peer in [p for p in self._strangers if p.protocol.peer is not None]:
            self._greeted(peer)

    # Messages

    def _message(self, peer: Peer, message) -> None:
        if not self._greeted(peer):
            return
        match message:
            case m.Ping():
                stage = self.stage
                steps, waiting = (stage.engine.steps, stage.engine.waiting) if stage else (0, 0)
                peer.send(m.Pong(message.number, steps, waiting))
            case m.AskStatus():
                peer.send(m.Status(self._status()))
            case m.Claim():
                peer.send(m.Claimed(self._claim(peer, message.content)))
            case m.Assign() | m.Commit() if self._changes >= _MAX_CHANGES:
                peer.refuse(f"{_MAX_CHANGES} changes of the plan wait already")
            case m.Assign() | m.Commit():
                self._changes += 1  # counted when it arrives
                self._spawn(self._change(peer, message))
            case m.Open() if self._draining:
                reason = f"board {self.options.name} is stopping and takes no new prompts"
                peer.send(m.Failed(message.epoch, message.seq_id, m.FAILURES.index("draining"), reason))
            case m.Close() if self.stage is None or message.epoch != self.stage.epoch:
                peer.send(m.Closed(message.epoch, message.seq_id, {}))
            case _ if self.stage is None or message.epoch != self.stage.epoch:
                held = "no section" if self.stage is None else f"epoch {self.stage.epoch}"
                reason = f"board {self.options.name} holds {held}, not epoch {message.epoch}"
                if isinstance(message, m.Open):
                    peer.send(m.Failed(message.epoch, message.seq_id, m.FAILURES.index("epoch"), reason))
                else:
                    peer.refuse(reason)
            case m.Open():
                self.stage.open(peer, message)
            case m.Close():
                self.stage.close(peer, message)
            case m.Hidden():
                self.stage.hidden(peer, message)
            case m.Tokens():
                self.stage.tokens_from(peer, message)
            case m.Trace():
                self.stage.trace(peer, message)

    def _spawn(self, coroutine) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Capacity and section

    def _claim(self, peer: Peer, content: dict) -> dict:
        error = None
        try:
            self.holding.claim(peer, content)
        except EdgellmError as e:
            error = str(e)
            log.info("refused a claim of %s: %s", peer.address, error)
        return {"error": error, "epoch": self.holding.epoch}

    async def _change(self, peer: Peer, message: m.Assign | m.Commit) -> None:
        done, error = {}, None
        try:
            if isinstance(message, m.Assign):
                done = await self.holding.prepare(peer, message.content)
            else:
                done = await self.holding.commit(peer, message.content.get("epoch"))
        except EdgellmError as e:
            error = str(e)
            log.warning("refused a section: %s", error)
        except Exception as e:  # whatever loading raises: the manager waits for an answer
            error = f"{type(e).__name__}: {e}"
            log.exception("could not load a section")
        finally:
            self._changes -= 1
        for known in (*self._peers, *self._strangers):
            known.protocol.max_step_bytes = self._step_bytes()
        answer = m.Assigned if isinstance(message, m.Assign) else m.Committed
        peer.send(answer({"error": error, "epoch": self.holding.epoch, **done}))

    def _status(self) -> dict:
        status = {
            "name": self.options.name,
            "version": __version__,
            "model": self.manifest.model,
            "manifest_sha256": self.manifest.sha256,
            "draining": self._draining,
            "epoch": self.holding.epoch,
            "claimed": self.holding.claimed,
            "plan": None,
            "addresses": None,
            "shards": measure.shards_here(self.manifest, self.options.shards),
            "disk_free_bytes": measure.disk_free_bytes(self.options.shards),
            "capacity": {
                "board": self.options.name, "ram_bytes": self.holding.offer_bytes(), "layer_s": self._layer_s,
                "head_s": self._head_s, "hop_s": measure.hop_s(), "cores": self.options.threads,
            },
            "compute": {"threads": self.options.threads, "cores": self.options.cores, "kernels": library.target()},
            "section": None,
            "health": health(self.options.host),
        }  # fmt: skip
        if self.stage is not None:
            own = self.stage.plan.section_of(self.options.name)
            status["plan"], status["addresses"] = self.stage.plan.to_dict(), self.stage.addresses
            status["section"] = {
                "epoch": self.stage.epoch, "start": own.start, "end": own.end, "path": self.stage.section.path,
                "slots": self.stage.engine.num_slots, "free_slots": self.stage.engine.free_slots,
                "steps": self.stage.engine.steps, "sent_bytes": self.stage.link_sent_bytes,
                "decode_steps": self.stage.engine.total.decode_steps, "decode_s": self.stage.engine.total.decode_s,
            }  # fmt: skip
        return status

    def _step_bytes(self) -> int:
        if self.stage is None:
            return _IDLE_STEP_BYTES
        chunk = max(self.stage.plan.chunk, self.stage.plan.context)  # a trace is a whole sequence
        return min(chunk * (self.manifest.hidden_size + 1) * 4, MAX_STEP_BYTES)  # and its ids

    async def _drain(self) -> None:
        deadline = asyncio.get_running_loop().time() + self.options.drain_s
        while self.stage is not None and self.stage.running and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)


async def serve(options: AgentOptions, ready=lambda agent: None, until_eof=None) -> None:
    """Run an agent until SIGTERM or SIGINT, or until the file `until_eof` ends (a parent process that is gone)."""
    verified.keep_in(state_folder(), options.name)
    agent = Agent(
        options,
        functools.partial(load_section, path=options.path),
        functools.partial(measure.measure_decode, path=options.path),
        functools.partial(take_cores, path=options.path),
    )
    sys.setswitchinterval(_SWITCH_S)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    if until_eof is not None:

        def parent_gone():
            if not until_eof.buffer.raw.read(1):
                loop.remove_reader(until_eof)
                agent.stop()
                agent.stop()

        loop.add_reader(until_eof, parent_gone)
    with contextlib.suppress(asyncio.CancelledError):
        await agent.run(ready)
