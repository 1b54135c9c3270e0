"""Hands each message to its handler, once it is known to fit what this board holds."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from edgellm.agent import checks, report
from edgellm.agent.holding import Holding, epoch_of
from edgellm.agent.reaching import Reaching
from edgellm.agent.stage import Stage
from edgellm.errors import BusyError, EdgellmError
from edgellm.wire import messages as m
from edgellm.wire.credentials import may_only_ask
from edgellm.wire.peer import Peer
from edgellm.wire.status import BoardStatus

log = logging.getLogger(__name__)
_OfSequence = m.Open | m.Start | m.Close | m.Hidden | m.Tokens | m.Trace
_MAX_CHANGES = 4  # assigns and commits that wait for each other


class Dispatcher:
    """The messages of all peers of `board`. `status()` is its status now."""

    def __init__(self, board: str, holding: Holding, reaching: Reaching, status: Callable[[], BoardStatus]):
        self._board, self._holding, self._reaching, self._status = board, holding, reaching, status
        self._changes = 0
        self._tasks: set[asyncio.Task] = set()

    def close(self) -> None:
        """Cancel the changes of the plan and the tries to reach boards that are under way."""
        self._reaching.close()
        for task in self._tasks:
            task.cancel()

    def tidy(self) -> None:
        """Give up what has drained, and what no constraint needs any more. Call it now and then."""
        for model in self._holding.models:
            model.grammars.sweep(time.monotonic())
        if self._holding.drained:
            self._run(self._holding.tidy())

    def message(self, peer: Peer, message: object) -> None:
        """Act on a message, or refuse it."""
        match message:
            case m.Hidden() | m.Tokens():
                self._to_stage(peer, message)
            case m.Claim() | m.Assign() | m.Commit() | m.Reach() if not (peer.identity and peer.identity.admin):
                self._refuse_planning(peer, message)
            case m.Ping():
                peer.send(report.pong(self._holding.stages, message.number))
            case m.AskStatus():
                peer.send(m.Status(self._status().to_dict(), message.request))
            case m.Claim():
                peer.send(m.Claimed(self._claim(peer, message.content), message.request))
            case m.Assign() | m.Commit() if self._changes >= _MAX_CHANGES:
                peer.refuse(f"{_MAX_CHANGES} changes of the plan are already waiting")
            case m.Assign() | m.Commit():
                self._begin_change(peer, message)
            case m.Reach():
                self._reaching.asked(peer, message)
            case m.Open() if self._holding.closed:
                self._fail(peer, message, "draining", f"board {self._board} is stopping and takes no new prompts")
            case m.Open() | m.Start() | m.Close() | m.Trace():
                self._to_stage(peer, message)

    def _refuse_planning(self, peer: Peer, message: m.Claim | m.Assign | m.Commit | m.Reach) -> None:
        """Answer one who may only ask."""
        what = "have boards dial each other" if isinstance(message, m.Reach) else "change the plan"
        error = may_only_ask(str(peer.identity or peer.name), what)
        log.info("refused a %s of %s: %s", type(message).__name__.lower(), peer.address, error)
        if isinstance(message, m.Reach):
            peer.send(m.Reached({"error": error}, message.request))
            return
        answer = {m.Claim: m.Claimed, m.Assign: m.Assigned, m.Commit: m.Committed}[type(message)]
        peer.send(answer({"error": error, "epoch": self._holding.epoch}, message.request))

    def _to_stage(self, peer: Peer, message: _OfSequence) -> None:
        stage = self._holding.held.of_epoch(message.epoch)
        if isinstance(message, m.Open) and not self._holding.takes(stage):
            stage = None  # one that drains takes no new sequences
        if stage is None:
            self._of_another_epoch(peer, message)
            return
        try:
            match message:
                case m.Hidden():
                    checks.check_hidden(stage, peer.name, message)
                    stage.hidden(peer, message)
                case m.Tokens():
                    checks.check_tokens(stage, peer.name, message)
                    stage.tokens(message)
                case m.Open():
                    self._open(stage, peer, message)
                case m.Start():
                    checks.check_start(stage, message)
                    stage.start(peer, message)
                case m.Close():
                    stage.close(peer, message)
                case m.Trace():
                    stage.trace(peer, message, checks.parse_trace(stage, message))
        except EdgellmError as e:
            peer.refuse(str(e))

    def _of_another_epoch(self, peer: Peer, message: _OfSequence) -> None:
        """Answer a manager. Drop what a board sends: it hasn't moved on yet, or has done so already; the manager of
        that sequence knows, and the link is needed for others."""
        epochs = [one.plan.epoch for one in self._holding.held.served]
        held = " and ".join(f"epoch {epoch}" for epoch in epochs) or "no section"
        reason = f"board {self._board} holds {held}, not epoch {message.epoch}"
        match message:
            case m.Open() | m.Start():
                self._fail(peer, message, "epoch", reason)
            case m.Close():
                peer.send(m.Closed(message.epoch, message.seq_id, {}))
            case m.Hidden() | m.Tokens():
                log.debug("dropped %s from %s: %s", type(message).__name__, peer.name, reason)
            case _:
                peer.refuse(reason)

    def _open(self, stage: Stage, peer: Peer, message: m.Open) -> None:
        if message.options.get("plan") != stage.plan.digest:
            reason = f"board {self._board} holds another plan of epoch {stage.epoch} than the one that was asked for"
            self._fail(peer, message, "epoch", reason)
            return
        if not stage.engine.alive:
            reason = f"board {self._board} can't compute any more and has to be restarted"
            self._fail(peer, message, "draining", reason)
            return
        try:
            stage.open(checks.parse_open(stage, peer, message))
        except EdgellmError as e:
            self._fail(peer, message, "busy" if isinstance(e, BusyError) else "error", str(e))

    def _fail(self, peer: Peer, message: m.Open | m.Start, code: str, reason: str) -> None:
        peer.send(m.Failed(message.epoch, message.seq_id, m.FAILURES.index(code), reason))

    def _claim(self, peer: Peer, content: dict) -> dict:
        error = None
        try:
            self._holding.claim(peer, content)
        except EdgellmError as e:
            error = str(e)
            log.info("refused a claim of %s (%s): %s", peer.name, peer.address, error)
        else:
            if content.get("epoch") is not None:
                log.info("%s (%s) claims this board for epoch %d", peer.name, peer.address, content["epoch"])
        return {"error": error, "epoch": self._holding.epoch}

    def _begin_change(self, peer: Peer, message: m.Assign | m.Commit) -> None:
        """Assign or commit, behind those that came before; at once if it is to be refused, because only who has the
        claim may make others wait."""
        assign = isinstance(message, m.Assign)
        try:
            self._holding.check_claim(peer, epoch_of(message.content) if assign else message.content.get("epoch"))
        except EdgellmError as e:
            log.info("refused %s of %s (%s): %s", type(message).__name__, peer.identity, peer.address, e)
            content = {"error": str(e), "epoch": self._holding.epoch}
            peer.send(m.Assigned(content, message.request) if assign else m.Committed(content, message.request))
            return
        self._changes += 1  # counted when it arrives
        self._run(self._change(peer, message))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _change(self, peer: Peer, message: m.Assign | m.Commit) -> None:
        done: dict = {}
        error = None
        try:
            if isinstance(message, m.Assign):
                done = await self._holding.prepare(peer, message.content)
            else:
                done = await self._holding.commit(peer, message.content)
                if "unload" not in message.content:
                    log.info("%s (%s) has committed epoch %d", peer.name, peer.address, message.content["epoch"])
        except EdgellmError as e:
            error = str(e)
            log.warning("refused a change of the plan: %s", error)
        except Exception as e:  # loading may raise anything, and the manager waits for an answer
            error = f"{type(e).__name__}: {e}"
            log.exception("could not load a section")
        finally:
            self._changes -= 1
        answer = m.Assigned if isinstance(message, m.Assign) else m.Committed
        peer.send(answer({"error": error, "epoch": self._holding.epoch, **done}, message.request))
