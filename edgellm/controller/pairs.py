"""Explains which boards can't reach each other, why, and what to do: from tried pairs to sentences, without I/O."""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgellm.manager.pairs import HERE, Pair
from edgellm.wire.addresses import is_loopback

_BLOCKED = ("timeout", "refused")  # what a firewall does: drops, or rejects
_APART = "if there is no firewall, check the switch or the Wi-Fi, which may keep devices apart"
# A question, or advice, at a reason's end: the sentence here ends in its own.
_ADVICE = re.compile(r"([,;.] [^,;.]*\?|\. (Deploy|Check) .*)$")


@dataclass(frozen=True)
class Trouble:
    """Broken `pairs` with one cause: `what` is wrong, and what `todo`. `boards` are concerned, the first to look at
    first."""

    boards: tuple[str, ...]
    pairs: tuple[Pair, ...]
    what: str
    todo: str

    @property
    def sentence(self) -> str:
        """Return both in a line."""
        return f"{self.what}. {self.todo}"


def troubles(pairs: Iterable[Pair]) -> list[Trouble]:
    """Return what is wrong between boards. A board that can't be reached by any other one, or that reaches none, is
    one trouble instead of many. One that this machine can't reach either is left out: that has its own sentence."""
    pairs = list(pairs)
    tried = [p for p in pairs if p.dialler != HERE and p.outcome is not None and p.board not in _gone(pairs)]
    left = {(p.dialler, p.board): p for p in tried if p.broken}
    if len(left) > 2 and len(left) == len(tried):
        return [_all(tried)]
    boards = list(dict.fromkeys(p.board for p in pairs))
    found = []

    def take(group: Sequence[Pair]) -> tuple[Pair, ...]:
        return tuple(left.pop((p.dialler, p.board)) for p in group if (p.dialler, p.board) in left)

    to = {b: [p for p in tried if p.board == b] for b in boards}
    of = {b: [p for p in tried if p.dialler == b] for b in boards}
    deaf = [b for b in boards if len(to[b]) > 1 and all(p.broken for p in to[b])]
    mute = [b for b in boards if len(of[b]) > 1 and all(p.broken for p in of[b])]
    for board in [b for b in deaf if b in mute]:
        if group := take([*to[board], *of[board]]):
            found.append(_apart(to[board][0], group))
    for board in deaf:
        if group := take(to[board]):
            found.append(_deaf(board, group))
    for board in mute:
        if group := take(of[board]):
            found.append(_mute(board, group))
    while left:
        pair = next(iter(left.values()))
        back = left.get((pair.board, pair.dialler))
        if back is not None and back.code == pair.code in _BLOCKED:
            take([pair, back])
            found.append(_mutual(pair, back))
        else:
            take([pair])
            found.append(_one(pair, _address_of(pair.dialler, pairs)))
    return found


def from_here(pairs: Iterable[Pair]) -> dict[str, Trouble]:
    """Return what keeps this machine from the boards that it can't reach though their agents should run."""
    pairs = list(pairs)
    found = {}
    for pair in pairs:
        if pair.dialler == HERE and pair.broken:
            others = reached_by(pairs, pair.board)
            though = f", though {_and(others)} {'reaches' if len(others) == 1 else 'reach'} it there" if others else ""
            what = f"this machine can't reach {pair.board} at {_place(pair)}: {_reason(pair)}{though}"
            found[pair.board] = Trouble((pair.board,), (pair,), what, _todo(pair))
    return found


def if_agents_run(pairs: Iterable[Pair]) -> str:
    """Return what to do about boards that this machine can't reach as if a firewall kept it from them, in a sentence
    for who doesn't know whether their agents run; "" if there are none."""
    blocked = [p for p in pairs if p.dialler == HERE and p.code in _BLOCKED]
    if not blocked:
        return ""
    ports = " or ".join(dict.fromkeys(str(p.address[1]) for p in blocked))
    run, where = ("its agent runs", blocked[0].board) if len(blocked) == 1 else ("their agents run", "each")
    rule = f"sudo ufw allow {blocked[0].address[1]}/tcp"
    return f"If {run}, allow TCP port {ports} from this machine, with ufw on {where}: '{rule}'."


def reached_by(pairs: Iterable[Pair], board: str) -> list[str]:
    """Return the boards that reach this one."""
    return [p.dialler for p in pairs if p.board == board and p.dialler != HERE and p.code == "ok"]


def tried_by(pairs: Iterable[Pair], board: str) -> list[str]:
    """Return the boards of which this one has just found out whether it reaches them."""
    return [p.board for p in pairs if p.dialler == board and p.outcome is not None]


def untried(pairs: Iterable[Pair]) -> dict[str, str]:
    """Return the boards that answer, but can't say whom they reach, and why."""
    return {p.dialler: p.unknown for p in pairs if p.outcome is None and p.unknown != "it can't be asked"}


def _gone(pairs: list[Pair]) -> set[str]:
    """Return the boards that neither this machine nor another board reaches."""
    mine = {p.board for p in pairs if p.dialler == HERE and p.broken}
    return {b for b in mine if not reached_by(pairs, b)}


def _address_of(board: str, pairs: list[Pair]) -> str | None:
    """Return the IP address of a board; None if it has a name instead."""
    host = next((p.address[0] for p in pairs if p.board == board), "")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def _one(pair: Pair, source: str | None) -> Trouble:
    what = f"{pair.dialler} can't reach {pair.board} at {_place(pair)}: {_reason(pair)}"
    return Trouble((pair.board, pair.dialler), (pair,), what, _todo(pair, source))


def _mutual(pair: Pair, back: Pair) -> Trouble:
    a, b, port = pair.dialler, pair.board, pair.address[1]
    what = f"{a} ({_place(back)}) and {b} ({_place(pair)}) can't reach each other: {_reason(pair)}"
    return Trouble((b, a), (pair, back), what, f"{_allow(port, 'on both')}; {_APART}.")


def _deaf(board: str, group: tuple[Pair, ...]) -> Trouble:
    pair, port = _typical(group), group[0].address[1]
    what = f"no other board reaches {board} at {_place(pair)}, though this machine does: {_said(pair, group)}"
    todo = f"{_allow(port, f'on {board}')}." if _blocked(pair) else _todo(pair)
    return Trouble((board,), group, what, todo)


def _mute(board: str, group: tuple[Pair, ...]) -> Trouble:
    pair, port = _typical(group), group[0].address[1]
    places = _and([f"{p.board} at {_place(p)}" for p in group[:3]] + ["others"] * (len(group) > 3))
    what = f"{board} can't reach any other board ({places}): {_said(pair, group)}"
    return Trouble((board,), group, what, f"{_allow_out(port, board)}; {_APART}." if _blocked(pair) else _todo(pair))


def _apart(one: Pair, group: tuple[Pair, ...]) -> Trouble:
    """Return what keeps the board of `one` from all others, and them from it."""
    pair, board, port = _typical(group), one.board, one.address[1]
    what = f"{board} ({_place(one)}) and the other boards can't reach each other: {_said(pair, group)}"
    todo = f"{_allow(port, f'on {board}, in and out')}; {_APART}." if _blocked(pair) else _todo(pair)
    return Trouble((board,), group, what, todo)


def _all(group: Sequence[Pair]) -> Trouble:
    pair = _typical(group)
    places = _and(list(dict.fromkeys(_place(p) for p in group))[:4])
    what = f"no board reaches another one ({places}): {_said(pair, group)}"
    todo = f"{_allow(pair.address[1], 'on each')}; {_APART}." if _blocked(pair) else _todo(pair)
    return Trouble((HERE, *dict.fromkeys(p.board for p in group)), tuple(group), what, todo)


def _todo(pair: Pair, source: str | None = None) -> str:
    """Return what to do about one pair, in a sentence. `source` is the dialler's IP address, if it is known."""
    (host, port), d, b, code, reason = pair.address, pair.dialler, pair.board, pair.code, pair.reason
    there = f"{d}'s" if d != HERE else "this machine's"
    if is_loopback(host) and code != "rejected" and not (source and is_loopback(source)):
        return f"Give {b} its address in the network as ansible_host, because {host} is each machine's own."
    if code in _BLOCKED:
        return f"{_allow(port, f'on {b}', 'from this machine' if d == HERE else 'between the boards', source)}."
    if code == "forbidden":
        return f"{_allow_out(port, 'this machine' if d == HERE else d)}."
    if code == "unreachable":
        return f"Check {there} cable, network mask and routes: 'ip route get {host}' shows the way that it takes."
    if code == "name":
        return f"Use {b}'s IP address as ansible_host in the inventory."
    if code == "silent":
        return f"See 'edgellm logs {b}'; if that shows nothing, large packets are lost: compare the MTUs of 'ip link'."
    if "not valid yet" in reason:
        who = b if "by the peer's clock" in reason else d
        return f"Set the clock of {who}, or let it keep time with 'sudo timedatectl set-ntp true'."
    if "calls itself" in reason or "a hello from" in reason:
        return "Check the boards' addresses in the inventory."
    if "version" in reason:
        return "Run 'edgellm upgrade', so that all have one version."
    return "Run 'edgellm deploy', which renews certificates."


def _allow(port: int, where: str, whom: str = "between the boards", source: str | None = None) -> str:
    rule = f"from {source} to any port {port} proto tcp" if source else f"{port}/tcp"
    return f"Allow TCP port {port} {whom}, with ufw {where}: 'sudo ufw allow {rule}'"


def _allow_out(port: int, where: str) -> str:
    return f"Allow connections out to TCP port {port} on {where}, with ufw: 'sudo ufw allow out {port}/tcp'"


def _blocked(pair: Pair) -> bool:
    return pair.code in _BLOCKED and not is_loopback(pair.address[0])


def _reason(pair: Pair) -> str:
    if pair.code == "forbidden":  # a board's reason speaks of the board as "this machine"
        return "its own firewall doesn't allow the connection"
    return _ADVICE.sub("", pair.reason)


def _typical(group: Sequence[Pair]) -> Pair:
    """Return a pair with the most frequent reason."""
    ((reason, _),) = Counter(_reason(p) for p in group).most_common(1)
    return next(p for p in group if _reason(p) == reason)


def _said(pair: Pair, group: Sequence[Pair]) -> str:
    """Return the reason, and whose it is if others have another."""
    alike = all(_reason(p) == _reason(pair) for p in group)
    return _reason(pair) if alike else f"{_reason(pair)} (from {pair.dialler} to {pair.board})"


def _place(pair: Pair) -> str:
    host, port = pair.address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
