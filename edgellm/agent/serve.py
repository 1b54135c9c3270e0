"""The daemon: listens, says what the board offers, takes its section of a plan, and hands messages to its stage."""

import asyncio
import contextlib
import errno
import logging
import os
import reprlib
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

from edgellm import __version__
from edgellm.agent import measure
from edgellm.agent.load import load_section, set_threads
from edgellm.agent.stage import Stage
from edgellm.checkpoint.manifest import Manifest
from edgellm.config import BOARD_SILENCE_S, MANAGER_SILENCE_S, MAX_STEP_BYTES
from edgellm.errors import BoardError, EdgellmError, ManifestError, PlanError
from edgellm.plan import Plan, SectionNeed, check_lengths, section_need
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer, listen
from edgellm.wire.protocol import Protocol

log = logging.getLogger(__name__)
_MAX_STRANGERS = 64  # connections that haven't said hello; one more, and the oldest is closed
_MAX_PEERS = 256
_MAX_ASSIGNS = 4
_IDLE_STEP_BYTES = 64 << 10  # largest step frame while no plan says how large they are


@dataclass(frozen=True)
class AgentOptions:
    """`ram_bytes` caps the offer; `threads` is for computing; `drain_s` is how long running answers may go on after
    SIGTERM."""

    shards: Path
    host: str
    port: int
    name: str
    threads: int
    ram_bytes: int | None = None
    drain_s: float = 60.0


class Agent:
    """One board. `run()` returns when it has been told to stop and running answers have ended."""

    def __init__(self, options: AgentOptions, load=load_section, measure_decode=measure.measure_decode):
        self.options = options
        self._load, self._measure_decode = load, measure_decode
        self.manifest = Manifest.read(options.shards)
        self.port = options.port  # the real one after listening, where 0 was asked for
        self.stage: Stage | None = None
        self._layer_s = self._head_s = 0.0
        self._strangers: dict[Peer, None] = {}
        self._peers: set[Peer] = set()
        self._assigning = asyncio.Lock()
        self._assigns = 0  # being loaded or waiting for it
        self._tasks: set[asyncio.Task] = set()
        self._stop = asyncio.Event()
        self._draining = False

    async def run(self, ready=lambda agent: None) -> None:
        """Measure, listen, serve until stopped. `ready(agent)` is called when it listens. Raises EdgellmError if the
        shards are unusable or the address can't be had."""
        me, place = self.options.name, f"{self.options.host}:{self.options.port}"
        try:
            server = await listen(self.options.host, self.options.port, self._make_peer)
        except (OSError, ValueError) as e:
            known = getattr(e, "errno", None) in errno.errorcode
            reason = (os.strerror(e.errno) if known else str(e.args[-1])).lower()
            raise BoardError(f"board {me} can't listen on {place}: {reason}", me) from None
        self.port = server.sockets[0].getsockname()[1]
        try:
            self._layer_s, self._head_s = await _in_own_thread(
                self._measure_decode, self.manifest, self.options.shards
            )
            await server.start_serving()
            log.info(
                "%s: %s, %.2f ms a layer, offers %.2f GB, listens on %s:%d",
                self.options.name, self.manifest.model, self._layer_s * 1e3, self._offer() / 1e9,
                self.options.host, self.port,
            )  # fmt: skip
            ready(self)
            sweep = asyncio.create_task(self._sweep())
            await self._stop.wait()
            await self._drain()
            sweep.cancel()
        finally:
            server.close()
            if self.stage is not None:
                self.stage.stop(f"board {self.options.name} is stopping", "draining")
            for peer in [*self._strangers, *self._peers]:
                peer.close()

    def stop(self) -> None:
        """Take no new sequences, let running ones end, then return from `run`. A second call doesn't wait."""
        if self._draining and self.stage is not None:
            self.stage.stop(f"board {self.options.name} was told twice to stop", "draining")
            self.stage = None
        self._draining = True
        self._stop.set()

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
        if self.stage is not None:
            self.stage.manager_lost(peer)

    async def _sweep(self) -> None:
        """Peers that fell silent (asleep, unplugged) are let go; greeted ones are strangers no more."""
        while True:
            await asyncio.sleep(1.0)
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
            case m.Assign() if self._assigns >= _MAX_ASSIGNS:
                peer.send(m.Assigned(self._assigned(f"{_MAX_ASSIGNS} plans wait to be loaded already")))
            case m.Assign():
                self._assigns += 1
                self._spawn(self._assign(peer, message.content))
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
            case m.Token():
                self.stage.token_from(peer, message)
            case m.Trace():
                self.stage.trace(peer, message)

    def _spawn(self, coroutine) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Capacity and section

    def _need(self, plan: Plan) -> SectionNeed:
        own = plan.section_of(self.options.name)
        return section_need(self.manifest, plan.settings, own.start, own.end)

    def _offer(self) -> int:
        """Free RAM for a section, as if this agent held none: its KV counts as free, its mapped shards are already."""
        free = measure.free_ram_bytes()
        if self.stage is not None:
            free += self._need(self.stage.plan).kv
        return min(free, self.options.ram_bytes) if self.options.ram_bytes else free

    def _status(self) -> dict:
        status = {
            "name": self.options.name,
            "version": __version__,
            "model": self.manifest.model,
            "manifest_sha256": self.manifest.sha256,
            "draining": self._draining,
            "capacity": {
                "board": self.options.name, "ram_bytes": self._offer(), "layer_s": self._layer_s,
                "head_s": self._head_s, "hop_s": measure.hop_s(), "cores": self.options.threads,
            },
            "section": None,
        }  # fmt: skip
        if self.stage is not None:
            own = self.stage.plan.section_of(self.options.name)
            status["section"] = {
                "epoch": self.stage.epoch, "start": own.start, "end": own.end, "path": self.stage.section.path,
                "slots": self.stage.engine.num_slots, "free_slots": self.stage.engine.free_slots,
                "steps": self.stage.engine.steps, "sent_bytes": self.stage.link_sent_bytes,
            }  # fmt: skip
        return status

    def _step_bytes(self) -> int:
        if self.stage is None:
            return _IDLE_STEP_BYTES
        chunk = max(self.stage.plan.chunk, self.stage.plan.context)  # a trace is a whole sequence
        return min(chunk * self.manifest.hidden_size * 4, MAX_STEP_BYTES)

    async def _assign(self, peer: Peer, content: dict) -> None:
        error = None
        async with self._assigning:
            try:
                plan, addresses = self._parse_assign(content)
                await self._take(plan, addresses)
            except EdgellmError as e:
                error = str(e)
                log.warning("refused a section: %s", error)
            except Exception as e:  # whatever loading raises: the manager waits for an answer
                error = f"{type(e).__name__}: {e}"
                log.exception("could not load a section")
        self._assigns -= 1
        peer.send(m.Assigned(self._assigned(error)))

    def _assigned(self, error: str | None) -> dict:
        return {"error": error, "epoch": self.stage.epoch if self.stage else None}

    def _check_draining(self) -> None:
        if self._draining:
            raise BoardError(f"board {self.options.name} is stopping and takes no section", self.options.name)

    def _parse_assign(self, content: dict) -> tuple[Plan, dict[str, tuple[str, int]]]:
        self._check_draining()
        plan = Plan.from_dict(content.get("plan"))
        addresses = content.get("addresses")
        if content.get("board") != self.options.name:
            other = reprlib.repr(content.get("board"))
            raise PlanError(f"this is board {self.options.name}, the plan was sent for {other}")
        if plan.manifest_sha256 != self.manifest.sha256 or plan.num_layers != self.manifest.num_layers:
            raise ManifestError(
                f"board {self.options.name} has the shards of {self.manifest.model} ({self.manifest.sha256[:12]}…), "
                f"the plan is for {plan.model} ({plan.manifest_sha256[:12]}…). Push the same shards to every board."
            )
        if self.stage is not None and plan.epoch <= self.stage.epoch and plan != self.stage.plan:
            raise PlanError(f"board {self.options.name} is at epoch {self.stage.epoch}, the plan has {plan.epoch}")
        check_lengths(self.manifest, plan.settings)
        if not isinstance(addresses, dict):
            raise PlanError("the plan came without addresses")
        parsed = {}
        for board in plan.boards:
            match addresses.get(board):
                case [str(host), port] if 0 < len(host) < 254 and type(port) is int and 0 < port < 1 << 16:
                    parsed[board] = (host, port)
                case other:
                    raise PlanError(f"the plan came with address {reprlib.repr(other)} for board {board}")
        return plan, parsed

    async def _take(self, plan: Plan, addresses: dict) -> None:
        """Load the section of `plan` and switch to it: beside the old one where RAM allows, else instead of it."""
        own = plan.section_of(self.options.name)
        if self.stage is not None and plan == self.stage.plan and addresses == self.stage.addresses:
            return
        need = self._need(plan)
        offer = self._offer()
        if need.total > offer:
            raise PlanError(
                f"board {self.options.name} offers {offer / 1e9:.2f} GB now; layers {own.start}-{own.end} need "
                f"{need.total / 1e9:.2f} GB. Plan again."
            )
        if self.stage is not None and need.kv + need.weights > measure.free_ram_bytes():
            await self._leave(plan.epoch)
        log.info("loads layers %d-%d, epoch %d", own.start, own.end, plan.epoch)
        section, slots = await _in_own_thread(self._load_with_slots, plan)
        self._check_draining()
        if self.stage is not None:
            await self._leave(plan.epoch)
        self.stage = Stage(plan, self.options.name, addresses, section, slots, self.manifest.rope_switch_len)
        for peer in (*self._peers, *self._strangers):
            peer.protocol.max_step_bytes = self._step_bytes()
        log.info("serves layers %d-%d of %s, epoch %d", own.start, own.end, plan.model, plan.epoch)

    def _load_with_slots(self, plan: Plan) -> tuple[object, list]:
        own = plan.section_of(self.options.name)
        section = self._load(self.manifest, self.options.shards, own.start, own.end)
        return section, [section.new_slot(plan.context, plan.kv_dtype) for _ in range(plan.slots)]

    async def _leave(self, epoch: int) -> None:
        """Give up the running stage, and wait for its running step, whose memory the next section may need."""
        stage, self.stage = self.stage, None
        stage.stop(f"board {self.options.name} went on to epoch {epoch}")
        await asyncio.to_thread(stage.engine.join)

    async def _drain(self) -> None:
        deadline = asyncio.get_running_loop().time() + self.options.drain_s
        while self.stage is not None and self.stage.running and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)


async def _in_own_thread(function, *args):
    """`function(*args)` in a thread that ends with it.

    OpenMP keeps a team of helpers for each thread that has computed, as long as that thread lives, and makes all teams
    wait less eagerly once together they are more than the cores: a pool's idle thread would slow every step.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future = loop.create_future()

    def settle(result, error):
        if not done.cancelled():
            done.set_exception(error) if error else done.set_result(result)

    def run():
        result = error = None
        try:
            result = function(*args)
        except BaseException as e:
            error = e
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=function.__name__, daemon=True).start()
    return await done


async def serve(options: AgentOptions, ready=lambda agent: None, until_eof=None) -> None:
    """Run an agent until SIGTERM or SIGINT, or until the file `until_eof` ends (a parent process that is gone)."""
    set_threads(options.threads)
    agent = Agent(options)
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
