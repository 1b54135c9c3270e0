"""Writes docs/messages.md, every sentence that leaves a board out of a deploy, from the code (`make messages`)."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from edgellm.controller.pairs import from_here, troubles  # noqa: E402
from edgellm.manager.pairs import HERE, Pair  # noqa: E402
from edgellm.wire.reach import Outcome  # noqa: E402

PAGE = ROOT / "docs" / "messages.md"
HEAD = """# What deploy says, and the way out

Every sentence with which a playbook leaves a board out or stops, as the code has it: `make messages` writes this page.
NAME is a board, … a value. A board that is left out doesn't keep the others from being deployed, and running the same
command again goes on where it stopped. If a model doesn't fit, deploy says what is missing, and then what helps, in
numbers: boards that are left out, limits in the inventory, less context or fewer slots, int8 or int4, more boards.
"""
# Where sentences are written, and the heading of what is there; the first that a path begins with counts.
SECTIONS = {
    "ansible/filter_plugins/boards.py": "A board can't be reached or used",
    "ansible/filter_plugins/inventory.py": "The inventory is wrong",
    "ansible/filter_plugins/shards.py": "The model's files don't fit, or are damaged",
    "ansible/roles": "Setting a board up fails",
    "ansible": "The run stops, or goes on without a board",
    "playbooks": "The run stops, or goes on without a board",
    "edgellm/controller/wheel": "This machine can't get the boards' wheels",
    "edgellm/controller/model.py": "The model can't be used",
    "edgellm/controller/certificates.py": "The certificates on this machine are wrong",
    "edgellm/controller/authority.py": "The certificates on this machine are wrong",
    "edgellm/controller/serving.py": "The server can't be set up",
    "edgellm/controller/forming.py": "The boards don't answer together",
}
_NAMES = {"board", "place", "boards", "inventory_hostname", "name", "names", "', '.join(boards)"}


def sentences(path: Path) -> list[str]:
    """Return what a file says to people, in its order, values as "…"."""
    if path.suffix == ".py":
        found = _of_python(path.read_text())
    else:
        found = _of_playbook(path.read_text())
    return [text for text in dict.fromkeys(map(_plain, found)) if is_whole(text)]


def is_whole(text: str) -> bool:
    """Whether a text is what happened, a full stop, and what to do."""
    said = bool(re.fullmatch(r"\S.{8,}?[.]\s\S.{5,}[.]?", text)) and text.count("…") <= 8
    return said and "&&" not in text  # a script of ours is none


def _of_python(source: str) -> list[str]:
    tree = ast.parse(source)
    documents = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    parts = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    texts = [
        (node.lineno, node.col_offset, _text(node)) for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in documents | parts
    ]  # fmt: skip
    return [text for _, _, text in sorted(texts)]


def _text(node: ast.expr) -> str:
    """Return a string's text, with the board's name as NAME and other values as "…"."""
    if isinstance(node, ast.Constant):
        return re.sub(r"\{(\w+)\}", _value, node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(v) if isinstance(v, ast.Constant) else _value(ast.unparse(v.value)) for v in node.values)
    return "…"


def _value(name) -> str:
    name = name if isinstance(name, str) else name[1]
    return "NAME" if name.removesuffix("!r") in _NAMES else "…"


def _of_playbook(text: str) -> list[str]:
    """Return the texts of `msg:` and of facts that hold reasons, in YAML as these files write it."""
    found = re.findall(r"^( *)(?:msg|\w+_reason): *(?:>-\n((?:\1  +.*\n|\n)+)|(.+)\n)", text + "\n", re.M)
    texts = [" ".join((block or line).split()).strip("\"'") for _, block, line in found]
    return [re.sub(r"\{\{\s*(.*?)\s*\}\}", _value, t) for t in texts if re.match(r"board|There|The ", t)]


def _plain(text: str) -> str:
    return " ".join(re.sub(r"…(?:[ ,]*…)+", "…", text).replace("NAME (NAME)", "NAME").split())


def files() -> list[tuple[str, Path]]:
    """Return (heading, path) of each file that may have sentences, in the page's order."""
    found = []
    for path in sorted(p for top in ("ansible", "playbooks", "edgellm") for p in (ROOT / top).rglob("*.[py][ym]*")):
        place = path.relative_to(ROOT).as_posix()
        if path.suffix in (".py", ".yml") and (prefix := next((s for s in SECTIONS if place.startswith(s)), None)):
            found.append((list(SECTIONS).index(prefix), SECTIONS[prefix], path))
    return [(title, path) for _, title, path in sorted(found)]


def of_pairs() -> list[str]:
    """Return what is said of boards that can't reach each other, one sentence of each kind, about pi1 to pi3."""
    places = {f"pi{i}": (f"192.168.1.1{i}", 7710) for i in (1, 2, 3)}
    lost, everyone = Outcome("timeout", "no answer within 2 s"), [(d, b) for d in places for b in places if d != b]
    kinds = [
        {("pi1", "pi2"): lost}, {("pi1", "pi2"): lost, ("pi2", "pi1"): lost},
        {("pi1", "pi3"): lost, ("pi2", "pi3"): lost}, {("pi1", "pi2"): lost, ("pi1", "pi3"): lost},
        {way: lost for way in everyone if "pi1" in way}, dict.fromkeys(everyone, lost), {(HERE, "pi1"): lost},
        *({("pi1", "pi2"): Outcome(*outcome)} for outcome in (
            ("unreachable", "there is no route to it"), ("forbidden", ""), ("name", "the name is not known"),
            ("silent", "no answer within 2 s, though it takes connections"), ("rejected", "calls itself pi3"),
            ("rejected", "its certificate is not valid yet"),
            ("rejected", "its certificate belongs to another cluster"),
        )),
    ]  # fmt: skip
    told = []
    for kind in kinds:
        ways = [*((HERE, b) for b in places), *everyone]
        pairs = [Pair(d, b, places[b], kind.get((d, b), Outcome("ok"))) for d, b in ways]
        told += [trouble.sentence for trouble in (*troubles(pairs), *from_here(pairs).values())]
    return told


def page() -> str:
    """Return the whole page."""
    found: dict[str, list[str]] = {}
    for title, path in files():
        found.setdefault(title, []).extend(sentences(path))
    found["The boards don't answer together"] += of_pairs()
    lines = [HEAD]
    for title, texts in found.items():
        if texts:
            lines += [f"## {title}\n", "| it says | the way out |", "|---|---|"]
            lines += ["| {} | {} |".format(*split(text)) for text in dict.fromkeys(texts)] + [""]
    return "\n".join(lines)


def split(text: str) -> tuple[str, str]:
    """Return what happened, and what to do."""
    what, _, todo = re.sub(r"\|", r"\\|", text).partition(". ")
    return what + ".", todo


if __name__ == "__main__":
    PAGE.write_text(page())
