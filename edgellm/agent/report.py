"""What a board reports: its status, what it did for a sequence, and that it is alive."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgellm import __version__
from edgellm.agent import measure
from edgellm.agent.health import health
from edgellm.agent.options import AgentOptions
from edgellm.agent.sequence import Sequence
from edgellm.agent.steps import Stats
from edgellm.plan import Capacity, Swapping
from edgellm.wire import messages as m
from edgellm.wire.section_status import SectionBeside, SectionStatus
from edgellm.wire.status import BoardStatus, Compute, ModelHere, SequenceStats

if TYPE_CHECKING:
    from edgellm.agent.holding import Holding
    from edgellm.agent.models import Model
    from edgellm.agent.stage import Stage


def pong(stages: Iterable["Stage"], number: int) -> m.Pong:
    """Return the answer to ping `number`: how many steps this board's stages have computed, and how many wait."""
    engines = [stage.engine for stage in stages]
    return m.Pong(number, sum(e.steps for e in engines), sum(e.waiting for e in engines))


def board_status(options: AgentOptions, holding: "Holding") -> BoardStatus:
    """Return what the board offers and holds."""
    name, model, stage = options.name, holding.model, holding.stage
    manifest, condition = model.manifest, health(options.host)
    return BoardStatus(
        name=name,
        version=__version__,
        model=manifest.model,
        manifest_sha256=manifest.sha256,
        draining=holding.closed,
        epoch=holding.epoch,
        claimed=holding.claimed,
        plan=None if stage is None else stage.plan,
        addresses={} if stage is None else stage.addresses,
        shards=measure.shards_here(manifest, model.folder),
        disk_free_bytes=measure.disk_free_bytes(options.shards),
        health=condition,
        capacity=_capacity(options, holding, model, condition.link_mbit),
        compute=Compute(options.threads, options.cores, options.kernels, options.path),
        section=None if stage is None else _section_status(holding, stage),
        committed=holding.committed,
        draining_sequences=sum(draining.running for draining in holding.held.draining),
        load_error=holding.loading.error,
        links=holding.links.status(),
        cache=None if holding.cache is None else holding.cache.status(),
        more=tuple(
            ModelHere(m.manifest.model, m.manifest.sha256, measure.shards_here(m.manifest, m.folder),
                      _capacity(options, holding, m, condition.link_mbit))
            for m in holding.models if m is not model
        ),
        beside=tuple(
            SectionBeside(one.plan, one.committed, _section_status(holding, one.stage)) for one in holding.beside
        ),
        loading=holding.loading.status,
    )  # fmt: skip


def _capacity(options: AgentOptions, holding: "Holding", model: "Model", link_mbit: int | None) -> Capacity:
    now = model.pace.now()
    hop_s = measure.hop_s(holding.links.hop_s(), link_mbit, 4 * (model.manifest.widest_row + 1))
    times = {"layer_s": now.layer_s, "head_s": now.head_s, "hop_s": hop_s}
    shares = {"batch_layer_s": now.batch_layer_s, "prefill_layer_s": now.prefill_layer_s}
    told: dict[str, Any] = model.settled.look({**times, **shares}, time.monotonic())
    return Capacity(
        options.name, holding.offer_bytes(), cores=options.threads or 1, disk_bytes_per_s=model.disk_bytes_per_s, **told
    )


def sequence_stats(sequence: Sequence, done: Stats, path: str, waits: Swapping | None = None) -> SequenceStats:
    """Return what this board did for a sequence; `path` names the code that computed it, and `waits` is how its section
    swapped experts."""
    return SequenceStats(
        path=path, accepted_tokens=sequence.accepted, sent_bytes=sequence.sent_bytes, degraded=waits, **vars(done)
    )


def _section_status(holding: "Holding", stage: "Stage") -> SectionStatus:
    own, engine = stage.plan.section_of(stage.board), stage.engine
    need, waits = holding.room.need(stage.plan).total, holding.swapping(stage.plan)
    return SectionStatus(
        epoch=stage.epoch,
        start=own.start,
        end=own.end,
        path=stage.section.path,
        slots=engine.num_slots,
        free_slots=engine.free_slots,
        steps=engine.steps,
        sent_bytes=stage.link_sent_bytes,
        decode_steps=engine.total.decode_steps,
        decode_s=engine.total.decode_s,
        predicted_s=None if stage.pace is None else stage.pace.predicted_s,
        token_s=None if stage.pace is None else stage.pace.token_s(),
        ram_bytes=need if waits is None else need - waits.expert_bytes + waits.held_bytes,
        degraded=waits,
        draft_model=None if (draft := stage.plan.drafts_on(stage.board)) is None else draft.model,
        drafts={} if stage.drafting is None else {
            name: (tally.drafted, tally.accepted) for name, tally in stage.drafting.tallies.items() if tally.drafted
        },
    )  # fmt: skip
