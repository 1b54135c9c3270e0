"""A tiny random model with a tokenizer, split as for real, for tests that start agents as processes."""

import os
import sys
import time
from pathlib import Path

import psutil

CONTEXT = 256


def write_tokenizer(folder: Path, vocab: list[str]) -> None:
    """tokenizer.json of byte-level tokens, ids in the order of `vocab`; no merges, no template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    library = Tokenizer(models.BPE({token: i for i, token in enumerate(vocab)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))


def split_tiny(folder: Path, name: str = "checkpoint", family: str = "smollm", words: str = "w") -> Path:
    """A random model, by default a Llama of five layers, with 512 tokens, split into `folder`/split under a name. Its
    tokens behind the bytes are called as `words` says."""
    from tokenizers import pre_tokenizers

    from edgellm.checkpoint.sources import open_source
    from edgellm.checkpoint.split import split
    from tests.model.families import CONFIGS, random_model

    random_model(CONFIGS[family]()).save_pretrained(folder / name)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    write_tokenizer(folder / name, [*alphabet, *(f"{words}{i}" for i in range(len(alphabet), 512))])
    split(open_source(str(folder / name)), folder / "split")
    return folder / "split"


def environment(home: Path) -> dict[str, str]:
    """For a process whose config, state and cache lie under `home`."""
    paths = {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CONFIG", "STATE", "CACHE", "DATA")}
    env = {k: v for k, v in os.environ.items() if k not in ("EDGELLM_CLUSTER", "PYTHONWARNINGS")}
    return {**env, "HOME": str(home), **paths, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def agents_of(model_dir: Path) -> list[psutil.Process]:
    """Running agents that serve the shards in `model_dir`."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            if "agent" in line and str(model_dir) in line and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition, seconds: float = 30.0):
    """The first true value of `condition()`; fails after `seconds`."""
    end_s = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end_s, f"waited {seconds:g} s in vain"
        time.sleep(0.02)
    return value
