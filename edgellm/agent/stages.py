"""The stages of this board: one for each model that it serves, those that drain, and those that are being given up."""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from edgellm.agent.loading import Loaded
from edgellm.agent.stage import Stage
from edgellm.plan import Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A plan that the board serves: its stage, the section in memory, and the plan as an admin signed it."""

    stage: Stage
    loaded: Loaded
    committed: dict[str, Any]

    @property
    def plan(self) -> Plan:
        """The plan."""
        return self.stage.plan


class Stages:
    """The stages of a board. No two that serve are of one model. A stage that is draining has sequences of a plan that
    the board has moved on from, which go on to their end."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}  # by the SHA-256 of the manifest
        self._draining: list[Stage] = []
        self._leaving: list[Stage] = []

    @property
    def served(self) -> list[Served]:
        """What the board serves, in the order of the epochs."""
        return sorted(self._served.values(), key=lambda one: one.plan.epoch)

    @property
    def draining(self) -> list[Stage]:
        """The stages that drain, the oldest first."""
        return list(self._draining)

    @property
    def computing(self) -> list[Stage]:
        """All stages that compute: those that serve, and those that drain."""
        return [*(one.stage for one in self.served), *self._draining]

    @property
    def all(self) -> list[Stage]:
        """All stages, also those that are being given up."""
        return [*self.computing, *self._leaving]

    @property
    def still_drains(self) -> bool:
        """Whether sequences of an older plan still go on."""
        return any(stage.running for stage in self._draining)

    def of_model(self, manifest_sha256: str) -> Served | None:
        """Return what the board serves of a model."""
        return self._served.get(manifest_sha256)

    def of_epoch(self, epoch: int) -> Stage | None:
        """Return the stage of this epoch, also one that drains."""
        return next((stage for stage in self.computing if stage.epoch == epoch), None)

    def beside(self, plan: Plan, digests: Collection[str]) -> list[Served]:
        """Return what goes on beside a new plan: of the plans with these digests, those of other models."""
        return [
            one for one in self.served
            if one.plan.digest in digests and one.plan.manifest_sha256 != plan.manifest_sha256
        ]  # fmt: skip

    def begin(self, stage: Stage, loaded: Loaded, committed: dict[str, Any]) -> None:
        """Serve a plan from now on."""
        self._served[stage.plan.manifest_sha256] = Served(stage, loaded, committed)

    def take_out(self, kept: Collection[Served], drain: bool, reason: str) -> list[Stage]:
        """Serve only what is `kept` from now on, and return the stages to leave. With `drain`, those that have
        sequences aren't among them: they go on to the end of these, and take no more, because of `reason`."""
        going = [one.stage for one in self.served if one not in kept]
        self._served = {one.plan.manifest_sha256: one for one in kept}
        if drain:
            drains = [stage for stage in going if stage.running]
            for stage in drains:
                stage.drain(reason)
                log.info("epoch %d goes on with its %d sequences until they end", stage.epoch, stage.running)
            leaves = [stage for stage in going if not stage.running] + self.drained()
            self._draining += drains
            return leaves
        models = self._served.keys()
        leaves = going + [stage for stage in self._draining if stage.plan.manifest_sha256 not in models]
        self._draining = [stage for stage in self._draining if stage.plan.manifest_sha256 in models]
        return leaves

    def drained(self) -> list[Stage]:
        """Take out and return the stages whose last sequence has ended."""
        done = [stage for stage in self._draining if not stage.running]
        self._draining = [stage for stage in self._draining if stage.running]
        return done

    def give_up(self, one: Served) -> Stage:
        """Serve a plan no more; return its stage, to leave."""
        del self._served[one.plan.manifest_sha256]
        return one.stage

    async def leave(self, stages: list[Stage], reason: str) -> None:
        """Give up these stages, and wait for their running steps, because the next section may need the memory. Nothing
        is left in the list."""
        while stages:
            stage = stages.pop()
            self._leaving.append(stage)
            stage.stop(reason)
            await asyncio.to_thread(stage.join)
            stage.let_go()
            self._leaving.remove(stage)

    def stop(self, reason: str, code: str) -> None:
        """End all stages and their sequences."""
        for stage in self.computing:
            stage.stop(reason, code)
        self._served.clear()
        self._draining.clear()
