"""Memory and start-up of the split, the agents and the manager, as rows of a table."""

from pathlib import Path

from benchmarks import asking
from benchmarks.ours import AgentMemory, Cluster
from benchmarks.peer import Peer
from benchmarks.report import Row, at_most, median
from edgellm.config import AGENT_BYTES

MAX_MANAGER_BYTES = 200_000_000
MAX_FIRST_BYTE_S, MAX_SERVING_S = 0.5, 2.0


def rows(
    cluster: Cluster, peer: Peer | None, runs: int, first_s: list[float], serving_s: list[float], work: Path
) -> list[Row]:
    """What a model takes beside time a token, of a cluster that runs. Agents took `first_s` until they served when they
    knew nothing of their files, and `serving_s` when earlier ones had found these right since the machine started."""
    model = cluster.model
    cluster.fill()  # prompts take the most memory
    native = cluster.paths == {"native"}
    found = [Row(f"{model.name}: split, peak memory", model.split_cost["peak_bytes"] / 1e6, "MB"),
             Row("  took", model.split_cost["wall_s"], "s")]  # fmt: skip
    found += agent_rows(cluster.memory(), native)
    if peer and (memory := peer.memory.get(str(model.gguf))):
        workers = " and ".join(f"{b / 1e6:.0f}" for b in memory.workers)
        found += [Row("  llama.cpp RPC workers, peak", workers, "MB"),
                  Row("  llama.cpp client, peak, mapped files included", memory.client / 1e6, "MB")]  # fmt: skip
    what = f"  agents started until both serve{'' if native else ' (generic path)'}"
    found.append(at_most(what, median(serving_s), "s", MAX_SERVING_S))
    found.append(at_most("    the first time, which hashes all", median(first_s), "s", MAX_SERVING_S))
    if (model.split / "tokenizer.json").is_file():
        found += manager_rows(cluster, runs, work)
    return found


def agent_rows(agents: list[AgentMemory], native: bool) -> list[Row]:
    """Agents' memory; what is beyond weights and KV has its limit, which is meant for native sections."""
    found = []
    for agent in agents:
        parts = f"{agent.shards / 1e6:.0f} + {agent.kv / 1e6:.0f}"
        found.append(Row(f"  agent {agent.name}, peak memory", agent.peak / 1e6, "MB"))
        found.append(Row("    weights + KV", parts, "MB"))
        what = f"    beyond these{'' if native else ' (generic path)'}"
        found.append(at_most(what, agent.beyond / 1e6, "MB", AGENT_BYTES["native"] // 1_000_000))
    return found


def manager_rows(cluster: Cluster, runs: int, work: Path) -> list[Row]:
    """`edgellm ask` as a process: its peak memory, and when its first byte leaves."""
    path = cluster.write(work / "cluster.json")
    finished = [asking.ask(path, "Name three birds.", max_tokens=8)[1] for _ in range(min(runs, 3))]
    with asking.DeafBoards(cluster.plan.boards) as boards:
        deaf = cluster.write(work / "deaf.json", boards.addresses)
        boards.first_byte_s(deaf)  # its files are in memory after that
        first = [boards.first_byte_s(deaf) for _ in range(runs)]
    return [
        at_most("  manager (edgellm ask), peak memory", max(f.peak_bytes for f in finished) / 1e6, "MB",
                MAX_MANAGER_BYTES // 1_000_000),
        at_most("  edgellm ask to its first byte on the wire", median(first), "s", MAX_FIRST_BYTE_S),
    ]  # fmt: skip
