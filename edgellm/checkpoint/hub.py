"""Downloads a hub id as a folder, with huggingface_hub's cache and offline mode, and its errors in one line each."""

from pathlib import Path

from edgellm.checkpoint.names import one_line
from edgellm.errors import CheckpointError

_PATTERNS = [
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template*",
    "additional_chat_templates/*.jinja", "vocab.*", "merges.txt", "added_tokens.json", "spiece.model",
    "sentencepiece.bpe.model", "*.tiktoken", "tekken.json", "model*.safetensors",
    "model.safetensors.index.json", "modules.json", "*_Pooling/config.json",
]  # fmt: skip


def fetch_hub(name: str, progress=None) -> Path:
    """Return the folder of hub model `name`: from the cache, else download config, tokenizer and safetensors."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    kwargs = {"tqdm_class": _bar(name, progress)} if progress else {}
    try:
        return Path(snapshot_download(name, allow_patterns=_PATTERNS, **kwargs))
    except GatedRepoError:
        raise CheckpointError(
            f"{name}: access needs its authors' permission. Request it on https://huggingface.co/{name}, then run "
            "'hf auth login' or set HF_TOKEN."
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{name}: no such model on the hub, or it is private and HF_TOKEN isn't set. SOURCE may also be a folder "
            "or a .gguf file."
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise CheckpointError(
            f"{name} isn't in the Hugging Face cache, and the hub can't be reached (HF_HUB_OFFLINE is set, or no "
            "network). Fetch it on a machine with network, or give a folder."
        ) from None
    except Exception as e:  # of many kinds: HTTP, disk, names it doesn't like, its own without a common base
        raise CheckpointError(f"{name}: the hub can't provide it: {one_line(e)}") from None


def _bar(name: str, progress):
    """A progress bar class for huggingface_hub that reports bytes to `progress` and draws nothing."""
    from tqdm.auto import tqdm

    most = 0  # the library counts bytes received and bytes written in a bar each

    class Bar(tqdm):
        def __init__(self, *args, **kwargs):
            kwargs.pop("name", None)
            self._counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})
            self._done = kwargs.get("initial") or 0

        def update(self, n=1):
            nonlocal most
            self._done += n or 0
            if self._counts_bytes and self._done > most:
                most = int(self._done)
                progress(f"fetch {name}", most, max(most, int(self.total or 0)))

    return Bar
