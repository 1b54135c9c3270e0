"""How far the probabilities of next tokens are from those of transformers in float32 on the same dequantized weights:
edgellm's, beside llama.cpp's of the same GGUF file. Of the built-in models, which are real ones.

    python -m benchmarks.divergence
    python -m benchmarks.divergence --models smollm2-135m --tokens 256 --windows 1 --out /tmp

Each window of a text is a prompt of its own, for which all three get the same token ids. The first time llama.cpp is
built. Table and JSON go to benchmarks/results/.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import peer_build, report
from benchmarks.perplexity import TEXT, divergence, native_logits, reference_logits
from benchmarks.processes import FAILURES, BenchmarkError
from benchmarks.report import Row, at_most
from benchmarks.targets import markdown
from edgellm.checkpoint.builtin import BUILTIN, fetch_builtin
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.console import Progress, note
from edgellm.files import write_atomically
from edgellm.text.tokenizer import Tokenizer

RESULTS = Path(__file__).parent / "results"
TEXTS = [TEXT, Path(__file__).parent.parent / "docs/decisions.md"]
_TIMEOUT_S = 1800.0


def peer_logits(gguf: Path, ids: list[int], words: int, threads: int) -> np.ndarray:
    """Return llama.cpp's logits, float32 [len(ids), words]. Raises BenchmarkError."""
    command = [str(peer_build.build() / "llama-logits"), str(gguf), str(threads)]
    done = subprocess.run(command, input=np.array(ids, "<i4").tobytes(), capture_output=True, timeout=_TIMEOUT_S)
    if done.returncode or len(done.stdout) != 4 * len(ids) * words:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise BenchmarkError(f"llama-logits {gguf.name}: code {done.returncode}, {len(done.stdout)} bytes; {said}")
    return np.frombuffer(done.stdout, "<f4").reshape(len(ids), words)


def windows_of(text: list[int], begin: list[int], tokens: int, count: int) -> list[list[int]]:
    """Return the first stretches of a text, at most `count`, of so many tokens together with those that `begin` each
    prompt. `text` is without these. Raises BenchmarkError for a text that is too short."""
    each = tokens - len(begin)
    found = [begin + text[start : start + each] for start in range(0, len(text) - each + 1, each)][:count]
    if not found:
        raise BenchmarkError(f"a text has {len(text)} tokens, {tokens} were asked for")
    return found


def rows_of(name: str, texts: list[str], tokens: int, count: int, kv_dtype: str, work: Path) -> list[Row]:
    """Return the rows of one built-in model. llama.cpp keeps keys and values in float16."""
    with Progress() as progress:
        gguf = fetch_builtin(name, progress)
        folder = work / name
        manifest = split(open_source(name), folder)
    found: list[tuple[tuple[float, float], tuple[float, float]]] = []
    tokenizer = Tokenizer(folder)
    begin = tokenizer.encode("")
    windows = [w for text in texts for w in windows_of(tokenizer.encode(text)[len(begin) :], begin, tokens, count)]
    for i, ids in enumerate(windows):
        note(f"{name}: window {i + 1} of {len(windows)}")
        expected = reference_logits(manifest, folder, ids)
        ours = divergence(expected, native_logits(manifest, folder, ids, kv_dtype=kv_dtype))
        found.append((ours, divergence(expected, peer_logits(gguf, ids, manifest.vocab_size, report.cores()))))
    means = np.array(found).mean(axis=0)  # [side, (divergence, same)]
    (ours, same), (theirs, same_there) = means.tolist()
    return [
        Row(f"{name}: llama.cpp, mean divergence", 1000 * theirs, "/ 1000"),
        at_most("  edgellm, mean divergence", 1000 * ours, "/ 1000", 1000 * theirs),
        Row("  edgellm / llama.cpp", ours / theirs, "", "≤ 1.00", ours <= theirs),
        Row("    of each window", ", ".join(f"{report.number(a[0] / b[0])}" for a, b in found)),
        Row("  same first choice, edgellm", 100 * same, "%"), Row("    llama.cpp", 100 * same_there, "%"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(BUILTIN), default=list(BUILTIN))
    parser.add_argument("--text", type=Path, nargs="+", default=TEXTS)
    parser.add_argument("--tokens", type=int, default=512, help="of a window (default: 512)")
    parser.add_argument("--windows", type=int, default=3, help="of each text, at most (default: 3)")
    parser.add_argument("--kv-dtype", default="float16", help="of edgellm's keys and values (default: float16)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    options = parser.parse_args()
    machine, rows = report.machine(), []
    try:
        with tempfile.TemporaryDirectory(prefix="edgellm-divergence-") as work:
            for name in options.models:
                texts = [path.read_text() for path in options.text]
                rows += rows_of(name, texts, options.tokens, options.windows, options.kv_dtype, Path(work))
    except FAILURES as e:
        sys.exit(f"benchmarks.divergence: {e}")
    about = (
        f"windows of {options.tokens} tokens of {', '.join(p.name for p in options.text)}; keys and values in "
        f"{options.kv_dtype}; peer: {peer_build.PACKAGE} {peer_build.VERSION}"
    )
    lines = [(r.name, f"{report.number(r.value)} {r.unit}".strip(), r.limit, r.verdict) for r in rows]
    shown = "\n\n".join((report.machine_text(machine), about, markdown(("", "", "limit", ""), lines))) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "divergence.md", shown.encode())
    as_json = report.to_json("divergence", machine, rows, about=about) + "\n"
    write_atomically(options.out / "divergence.json", as_json.encode())
    print(shown, end="")


if __name__ == "__main__":
    main()
