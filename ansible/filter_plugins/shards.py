"""Filters: which of a model's files a board lacks, and which of them to push."""

import re


def model_steps(first: list[str], more: str, quantize: str, draft: str = "") -> list[dict]:
    """Return the steps of `edgellm controller` that split the models, the default one under the name "model", and the
    one that drafts, if there is one, under "draft"."""
    further = [name for name in re.split(r"\s*,\s*", more.strip()) if name]
    sources = list(dict.fromkeys([*first, *further]))
    steps = [
        {"name": f"model {i}" if i else "model", "command": ["model", source, "--quantize", quantize]}
        for i, source in enumerate(sources)
    ]
    if draft := draft.strip():
        command = ["model", draft, "--quantize", quantize, "--drafts-for", first[0]]
        steps.append({"name": "draft", "command": command})
    return steps


def further_models(answers: dict) -> list[dict]:
    """Return what the steps of `model_steps` told of the models behind the default one, each once, with its id, and
    whether it `answers`: the last one may only draft."""
    found = {answers["model"]["manifest_sha256"]: None}
    for name, answer in answers.items():
        if name != "model":
            more = {"id": answer["manifest_sha256"][:12], "answers": name != "draft"}
            found.setdefault(answer["manifest_sha256"], {**answer, **more})
    return [model for model in found.values() if model is not None]


def beside(models: list[dict]) -> list[dict]:
    """Return the files of further models, named as they are seen from the default one's folder."""
    return [{**f, "name": f"../{model['id']}/{f['name']}"} for model in models for f in model["files"]]


def push_further(
    stdout: str, models: list[dict], board: str, spare_mb: int, taken_bytes: int, cache_gb: object = 0
) -> list[dict]:
    """Return for each further model what `push` returns, with its `id`, `folder`, `files` and `measure`. `taken_bytes`
    of the free ones are for the default model's files; each model takes what the ones before leave."""
    lines = stdout.splitlines()
    found = []
    for model in models:
        own = rf"../{model['id']}/"
        mine = [line.removeprefix(own) for line in lines[:-1] if line.startswith((own, "edgellm_cache_kb="))]
        fields = lines[-1].split()
        fields[3] = str(max(0, int(fields[3]) - taken_bytes // 1024))
        result = push("\n".join([*mine, " ".join(fields)]), model["files"], model["measure"], board, spare_mb, cache_gb)
        taken_bytes += sum(f["bytes"] for f in model["files"] if f["name"] in result["names"])
        found.append({**result, **{key: model[key] for key in ("id", "folder", "files", "measure")}})
    return found


def checksums(files: list[dict]) -> str:
    """Return the files in the format of `sha256sum --check`."""
    return "".join(f"{f['sha256']}  {f['name']}\n" for f in files)


def push(
    stdout: str, files: list[dict], least: list[str], board: str, spare_mb: int, cache_gb: float | str = 0
) -> dict:
    """Return what to push to a board. `stdout` is `sha256sum --check` of `files` there, then the last line of `df -Pk`.

    {"names", "whole": those that are there already, "corrupt", "short": its disk is too small for all files,
    "disk_bytes" that it has for shards, "problem": a sentence if there is no room for `least`, "message"}. `spare_mb`
    stay free, and all files are pushed only if pages of prompts still have their `cache_gb` then. Corrupt files are
    replaced one by one, so they need room for one only.
    """
    whole = set(re.findall(r"^(\S+): OK$", stdout, re.M))
    corrupt = set(re.findall(r"^(\S+): FAILED$", stdout, re.M))
    free_bytes = int(stdout.splitlines()[-1].split()[3]) * 1024 - spare_mb * 10**6
    lacking = [f for f in files if f["name"] not in whole]
    needed = [f for f in lacking if f["name"] in least]

    def room(some: list[dict]) -> int:
        replaced = [f["bytes"] for f in some if f["name"] in corrupt]
        return sum(f["bytes"] for f in some if f["name"] not in corrupt) + max(replaced, default=0)

    cached = re.search(r"^edgellm_cache_kb=(\d+)$", stdout, re.M)
    to_cache = max(0.0, float(cache_gb) * 10**9 - (int(cached[1]) * 1024 if cached else 0))
    short, problem = bool(lacking) and room(lacking) + to_cache > free_bytes, ""
    chosen = needed if short else lacking
    if room(chosen) > free_bytes:
        problem = (
            f"board {board} has {max(0, free_bytes) / 1e6:.0f} MB to spare in /var/lib, but the files it must hold "
            f"take {room(chosen) / 1e6:.0f} MB. Free some space, or use a larger card."
        )
    names, total = [f["name"] for f in chosen], sum(f["bytes"] for f in chosen)
    return {
        "names": names,
        "corrupt": sorted(corrupt - whole),
        "whole": sorted(whole),
        "short": short,
        "disk_bytes": max(0, free_bytes) + sum(f["bytes"] for f in files if f["name"] in whole),
        "problem": problem,
        "message": ", ".join(names if len(names) < 4 else [f"{len(names)} files"]) + f", {total / 1e6:.1f} MB",
    }


def disk(hostvars) -> dict:
    """Return the bytes of shards that fit on a board's disk, as {"disk_bytes"}; {} if all of them fit."""
    found = hostvars.get("shards_push") or hostvars.get("agent_push") or {}
    return {"disk_bytes": found["disk_bytes"]} if found.get("short") else {}


def section_files(sections: list[dict], board: str, files: list[dict], least: list[str]) -> list[str]:
    """Return the names of the files that `board` needs for its section of a plan, and to measure its speed."""
    end = max(s["end"] for s in sections)
    wanted = set(least)
    for section in sections:
        if section["board"] == board:
            wanted |= {f"layer-{i:04d}.safetensors" for i in range(section["start"], section["end"])}
            wanted |= {"embedding.safetensors"} if section["start"] == 0 else set()
            wanted |= {"head.safetensors"} if section["end"] == end else set()
    return [f["name"] for f in files if f["name"] in wanted]


class FilterModule:
    """What Ansible loads."""

    def filters(self):
        return {
            "edgellm_model_steps": model_steps,
            "edgellm_further_models": further_models,
            "edgellm_beside": beside,
            "edgellm_push_further": push_further,
            "edgellm_checksums": checksums,
            "edgellm_push": push,
            "edgellm_disk": disk,
            "edgellm_section_files": section_files,
        }
