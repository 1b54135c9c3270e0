"""The daemon: measures, listens, serves until it is told to stop, and lets running answers end."""

import asyncio
import contextlib
import dataclasses
import errno
import functools
import logging
import os
import signal
import sys

from edgellm.agent import journal, measure, report, systemd
from edgellm.agent.connections import Connections
from edgellm.agent.dispatch import Dispatcher
from edgellm.agent.holding import Holding
from edgellm.agent.load import load_section
from edgellm.agent.models import Models
from edgellm.agent.options import AgentOptions
from edgellm.agent.pace import Pace, Speed
from edgellm.agent.page_memory import PageMemory
from edgellm.agent.page_store import PageStore
from edgellm.agent.prefix_cache import PrefixCache
from edgellm.agent.reaching import Reaching
from edgellm.agent.stage import Stage
from edgellm.agent.threads import in_own_thread
from edgellm.agent.tune import state_folder, take_cores
from edgellm.config import STEP_TIMEOUT_S
from edgellm.errors import BoardError, EdgellmError
from edgellm.kernels import library
from edgellm.limits import MAX_CHOICES
from edgellm.shards.manifest import Manifest
from edgellm.shards.verified import verified
from edgellm.wire import messages as m
from edgellm.wire.credentials import client_credentials, server_credentials
from edgellm.wire.listener import Listener, listen
from edgellm.wire.peer import Peer
from edgellm.wire.protocol import SMALL_BYTES
from edgellm.wire.status import BoardStatus

log = logging.getLogger(__name__)
_SWEEP_S = 1.0
_TIME_AGAIN_S, _TIMES_AGAIN = 120.0, 5
_FINISH_S = 5.0  # for what the last answers leave to be kept on disk
_SWITCH_S = 0.0005  # the longest that a finished step waits for the event loop's thread; Python's default is 5 ms


class Agent:
    """One board. `run()` returns when it has been told to stop and running answers have ended. `take_cores` decides
    which cores compute; None changes nothing. `pace` is told what steps take."""

    def __init__(
        self, options: AgentOptions, load=load_section, measure_decode=measure.measure_decode, take_cores=None,
        pace: Pace | None = None,
    ):  # fmt: skip
        self.options = options
        self._measure_decode, self._take_cores = measure_decode, take_cores
        models = Models.read(options.name, (options.shards, *options.more), generic=options.path == "generic")
        self.port = options.port  # the real one after listening, where 0 was asked for
        self._server_tls = server_credentials(options.tls) if options.tls else None
        self._client_tls = client_tls = client_credentials(options.tls) if options.tls else None
        if pace is not None:
            models.default.pace = pace
        self.cache: PrefixCache | None = None
        store = None
        if options.cache is not None and (options.cache_bytes > 0 or options.cache.is_dir()):
            store = PageStore(options.cache, options.cache_bytes)
        if store is not None or options.cache_ram_bytes:
            self.cache = PrefixCache(store, PageMemory(options.cache_ram_bytes))
        self.holding = Holding(options.name, models, load, ram_bytes=options.ram_bytes, tls=client_tls)
        reaching = Reaching(options.name, client_tls)
        self.dispatcher = Dispatcher(options.name, self.holding, reaching, self._status)
        self.connections = Connections(
            options.name, self.dispatcher.message, self._lost, self._largest, self._busy, self._place_of
        )
        self._stop = asyncio.Event()

    async def run(self, ready=lambda agent: None) -> None:
        """Measure, listen, serve until stopped. `ready(agent)` is called when it listens. Raises EdgellmError if
        the shards or the address can't be used."""
        server = await self._listen()
        self.port = server.sockets[0].getsockname()[1]
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._measure()
            if self.cache is not None and await in_own_thread(self.cache.start):
                self.holding.cache = self.cache
                self.holding.share_ram()
            await server.start_serving()
            log.info(
                "%s: %s, %.2f ms a layer, offers %.2f GB, listens on %s:%d",
                self.options.name, ", ".join(model.manifest.model for model in self.holding.models),
                self.holding.model.pace.start.layer_s * 1e3,
                self.holding.offer_bytes() / 1e9, self.options.host, self.port,
            )  # fmt: skip
            ready(self)
            systemd.ready()
            tasks = [asyncio.create_task(self._sweep()), asyncio.create_task(self._time_again())]
            await self._stop.wait()
            systemd.stopping()
            await self._drain()
        finally:
            for task in tasks:
                task.cancel()
            self.dispatcher.close()
            server.close()
            self.holding.stop(f"board {self.options.name} is stopping")
            self.connections.close()
            if self.holding.cache is not None:
                await in_own_thread(self.holding.cache.finish, _FINISH_S)

    def stop(self) -> None:
        """Take no new sequences, let running ones end, then return from `run`. A second call doesn't wait."""
        if self._stop.is_set():
            self.holding.stop(f"board {self.options.name} was told twice to stop")
        self.holding.closed = True
        for stage in self.holding.stages:
            stage.turn_away("draining", f"board {self.options.name} is stopping and takes no new prompts")
        self._stop.set()

    @property
    def manifest(self) -> Manifest:
        """The manifest of the model of the plan, or of the default one."""
        return self.holding.manifest

    @property
    def stage(self) -> Stage | None:
        """The stage of the last plan."""
        return self.holding.stage

    async def _listen(self) -> Listener:
        """Reserve the address, without taking connections yet. Raises BoardError if that isn't possible."""
        options = self.options
        try:
            return await listen(options.host, options.port, self.connections.make_peer, tls=self._server_tls)
        except (OSError, ValueError) as e:
            number = getattr(e, "errno", None)
            reason = os.strerror(number) if isinstance(number, int) and number in errno.errorcode else str(e.args[-1])
            place = f"{options.host}:{options.port}"
            raise BoardError(
                f"board {options.name} can't listen on {place}: {reason.lower()}", options.name
            ) from None

    async def _measure(self) -> None:
        """Choose the cores, then measure how fast experts come from the disk, and the seconds a token takes."""
        told = self.options
        if self._take_cores is not None:
            choice = await in_own_thread(self._take_cores, self.manifest, told.shards, told.threads, told.cores)
            kernels = library.target()
            self.options = dataclasses.replace(told, threads=choice.threads, cores=choice.cores, kernels=kernels)
        models = self.holding.models
        for model in models:
            rate = await in_own_thread(measure.disk_bytes_per_s, model.manifest, model.folder)
            model.disk_bytes_per_s = rate and float(f"{rate:.2g}")  # told alike, though it varies
        models.default.pace.start = await self._time()
        await in_own_thread(models.time_others, self._measure_decode)

    async def _time(self) -> Speed:
        model = self.holding.models.default
        return Speed(*await in_own_thread(self._measure_decode, model.manifest, model.folder))

    async def _time_again(self) -> None:
        """Measure a few times more while no plan has a section for this board: its steps can't tell, and if it was busy
        at its start, no plan would ever have one."""
        for _ in range(_TIMES_AGAIN):
            await asyncio.sleep(_TIME_AGAIN_S)
            if self.holding.models.served:
                return
            try:
                self.holding.models.default.pace.timed_again(await self._time())
            except EdgellmError as e:  # shards may be about to be replaced
                log.warning("the decode time was not measured again: %s", e)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            # A thread that hangs can't be ended, and one that died does nothing: a restart is all that helps.
            if self.holding.alive and self.holding.step_s < STEP_TIMEOUT_S:
                systemd.watchdog()
            self.connections.sweep()
            self.dispatcher.tidy()
            self.holding.share_ram()
            journal.sparing.sum_up()
            self._refuse_revoked()

    def _refuse_revoked(self) -> None:
        """End connections, theirs and ours, whose certificate has been revoked: a handshake is only at their start."""
        if self._server_tls is None or self._client_tls is None:
            return
        serials = self._server_tls.revoked
        if serials:
            self.connections.refuse_revoked(serials)
            for peer in [p for p in self._client_tls.dialled if p.serial in serials]:
                peer.refuse(f"the certificate of board {peer.name} has been revoked")

    async def _drain(self) -> None:
        deadline = asyncio.get_running_loop().time() + self.options.drain_s
        while self.holding.running and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)

    def _lost(self, peer: Peer) -> None:
        self.holding.release(peer)
        for stage in self.holding.stages:
            stage.manager_lost(peer)

    def _status(self) -> BoardStatus:
        return report.board_status(self.options, self.holding)

    def _busy(self, peer: Peer) -> bool:
        return self.holding.holds_for(peer)

    def _place_of(self, board: str) -> str | None:
        """Return the host on which the newest plan that has a board has it."""
        places = [one.stage.addresses[board] for one in self.holding.held.served if board in one.stage.addresses]
        return places[-1][0] if places else None

    def _largest(self, sender: m.Hello, message: type[m.Message]) -> int:
        """Return the largest body, in bytes, that `sender` may need for such a message now."""
        stages = self.holding.stages
        widest = max(self.holding.models.of(stage.plan).manifest.widest_row for stage in stages) if stages else 0
        token_bytes = 4 * (widest + 1)  # its id, and its row
        if message is m.Hidden:
            plans = [stage.plan for stage in stages if sender.name == stage.hidden_from]
            most = token_bytes * max((max(plan.chunk, MAX_CHOICES) for plan in plans), default=0)
            return m.Hidden.OVERHEAD + max(SMALL_BYTES, most)
        if message is m.Trace:
            chunk = max((stage.plan.chunk for stage in stages), default=0)
            return m.Trace.OVERHEAD + max(SMALL_BYTES, token_bytes * chunk)
        if message is m.Open:
            context = max((stage.plan.context for stage in stages), default=0)
            return m.Open.OPTIONS_LIMIT + max(SMALL_BYTES, 4 * context)
        return message.LIMIT


async def serve(options: AgentOptions, ready=lambda agent: None, until_eof=None) -> None:
    """Run an agent until SIGTERM or SIGINT, or until the file `until_eof` ends (its parent process has ended)."""
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

        def parent_gone() -> None:
            if not until_eof.buffer.raw.read(1):
                loop.remove_reader(until_eof)
                agent.stop()
                agent.stop()

        loop.add_reader(until_eof, parent_gone)
    with contextlib.suppress(asyncio.CancelledError):
        await agent.run(ready)
