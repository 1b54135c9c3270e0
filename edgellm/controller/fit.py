"""Whether the model fits on the boards as the inventory will have them, and if not, what the owner can do."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgellm.controller.request import Memory, Request
from edgellm.errors import ClusterError, PlanError
from edgellm.manager.survey import Fleet, Report, standing_plan
from edgellm.plan import Capacity, next_plan, parse_board
from edgellm.plan.make import check_request
from edgellm.plan.needs import Needs
from edgellm.plan.search import allowed_kinds, fits
from edgellm.plan.short import larger_boards, less_kv, lower_bits, more_boards, shortage, swapped
from edgellm.plan.words import size
from edgellm.shards.manifest import Manifest

_STEP_BYTES = 10_000_000  # offers are told in hundredths of a GB


def fit(request: Request) -> str | None:
    """Return None if each model fits on the boards once their agents run with the inventory's limits, else what is
    missing and what helps, in sentences.

    An agent that keeps its limits, or that this run doesn't touch, is believed; the others' offers are estimated. The
    models share the boards' disks, and take turns with their RAM.
    """
    manifest = Manifest.read(request.model_dir)
    if (message := _fit(request, manifest)) is not None:
        return message
    beside_bytes = sum(e.bytes for e in manifest.entries)
    for folder in request.more:
        manifest = Manifest.read(folder)
        message = _fit(request.of_model(folder, manifest, beside_bytes), manifest)
        if message is not None:
            return f"{manifest.model}, one of edgellm_models: {message}"
        beside_bytes += sum(e.bytes for e in manifest.entries)
    return None


def _fit(request: Request, manifest: Manifest) -> str | None:
    manifest = manifest.as_generic() if request.generic else manifest
    reports = asyncio.run(_reports(request, manifest)) if request.tls is None or request.tls.is_dir() else {}
    capacities = [c for b in request.boards if (c := _capacity(b.name, request, manifest, reports)) is not None]
    steady = {n: r for n, r in reports.items() if n not in request.memory or request.memory[n].stays}
    try:
        check_request(manifest, capacities, request.settings)
    except PlanError as e:
        return " ".join([str(e), *([] if capacities else _left_out(request))])
    try:  # what runs, and goes on running, may use its headroom up
        held = {name: report.held for name, report in steady.items()}
        next_plan(manifest, standing_plan(steady), capacities, request.settings, 1, held=held)
    except PlanError:
        return _advice(request, manifest, capacities)
    return None


async def _reports(request: Request, manifest: Manifest) -> dict[str, Report]:
    """Return the reports of agents that answer, and have this model."""
    try:
        tls = request.client_tls()
    except ClusterError:
        return {}  # the first deploy: no certificate yet, and no agent
    async with Fleet(manifest, request.addresses, tls, strangers=False) as fleet:
        await fleet.survey()
        return fleet.reports


def _capacity(
    name: str, request: Request, manifest: Manifest, reports: Mapping[str, Report]
) -> Capacity | None:
    """Return what the board will offer; None if nothing is known of it."""
    report, memory = reports.get(name), request.memory.get(name)
    if memory is None or (memory.kept and report is not None):
        return None if report is None else request.on_disk(report.capacity)
    known = parse_board(f"{name}=1GB", manifest) if report is None else report.capacity
    return request.on_disk(replace(known, ram_bytes=memory.offer_bytes(request.agent_bytes)))


def _advice(request: Request, manifest: Manifest, capacities: Sequence[Capacity]) -> str:
    """Return what is missing, then what helps: first what the owner has, and only then another board."""
    settings = request.settings
    sentences = [f"{shortage(manifest, capacities, settings)}."]
    sentences += _left_out(request)
    held_back = _held_back(request, manifest, capacities)
    sentences += held_back + _small_disks(request)
    bits = lower_bits(manifest, capacities, settings)
    ways = [
        *less_kv(manifest, capacities, settings),
        *([f"with edgellm_quantize={bits[0]} ({bits[1]})"] if bits else []),
        *more_boards(manifest, capacities, settings),
        *swapped(manifest, capacities, settings),
    ]
    if ways:
        sentences.append(f"It would fit {', or '.join(ways)}.")
    elif not held_back:
        sentences.append(larger_boards(manifest, settings))
    return " ".join(sentences)


def _left_out(request: Request) -> list[str]:
    if not request.left_out:
        return []
    reasons = [b.reason if b.reason.endswith(".") else f"{b.reason}." for b in request.left_out]
    return [f"First bring back what is left out: {reasons[0]}", *reasons[1:]]


def _small_disks(request: Request) -> list[str]:
    told = []
    for board, memory in request.memory.items():
        room = request.disk_bytes.get(board)
        if room is not None and room < memory.offer_bytes(request.agent_bytes):
            told.append(f"The disk of {board} has room for {size(room)} of weights. Free some space there.")
    return told


def _held_back(request: Request, manifest: Manifest, capacities: Sequence[Capacity]) -> list[str]:
    """Return the sentences on RAM that the inventory holds back, if the model fits with it."""
    agent_bytes = request.agent_bytes
    most = {c.board: _unlimited(c, request.memory.get(c.board), agent_bytes) for c in capacities}
    bound = [c for c in capacities if request.on_disk(most[c.board]).ram_bytes > c.ram_bytes]
    if not bound:
        return []

    def raised(steps: int) -> list[Capacity]:
        offers = {c.board: min(most[c.board].ram_bytes, c.ram_bytes + steps * _STEP_BYTES) for c in bound}
        return [request.on_disk(replace(c, ram_bytes=offers.get(c.board, c.ram_bytes))) for c in capacities]

    needs = Needs(manifest, request.settings)
    low, high = 0, 1 + max((most[c.board].ram_bytes - c.ram_bytes) // _STEP_BYTES for c in bound)
    if not fits(needs, allowed_kinds(raised(high), needs)):
        return []
    while low + 1 < high:  # the fewest steps with which it fits
        middle = (low + high) // 2
        low, high = (low, middle) if fits(needs, allowed_kinds(raised(middle), needs)) else (middle, high)
    enough = {c.board: c.ram_bytes for c in raised(high)}
    told = []
    for c in bound:
        limit = request.memory[c.board].limit(agent_bytes)
        told.append(f"{limit} holds {c.board} at {size(c.ram_bytes)}, of {size(most[c.board].ram_bytes)} free")
    wanted = " and ".join(f"{c.board} offers {_rounded_up(enough[c.board])}" for c in bound)
    return [f"{'; '.join(told)}: the model fits if {wanted}."]


def _unlimited(capacity: Capacity, memory: Memory | None, agent_bytes: int) -> Capacity:
    """Return what the board could offer without the inventory's limits."""
    if memory is None or memory.offer_bytes(agent_bytes) == memory.free_bytes(agent_bytes):
        return capacity
    return replace(capacity, ram_bytes=max(capacity.ram_bytes, memory.free_bytes(agent_bytes)))


def _rounded_up(count: int) -> str:
    return size(-(-count // _STEP_BYTES) * _STEP_BYTES)
