"""A cluster as the page is told of it: three boards, of which one is hot and one is lost."""


def _board(name: str, start: int, end: int, **fields) -> dict:
    return {
        "board": name, "address": f"{name}.lan:7710", "state": "serving", "serving": True, "ready": False,
        "in_plan": True, "section": {"start": start, "end": end}, "path": "native", "ram_total_bytes": 8_200_000_000,
        "ram_offered_bytes": 6_900_000_000, "ram_free_bytes": 1_600_000_000, "disk_free_bytes": 41_000_000_000,
        "slots": 4, "free_slots": 3, "temperature_c": 56.0, "throttled": False, "undervoltage": False,
        "link_mbit": 1000, "uptime_s": 263_000.0, "predicted_ms_per_token": 44.1, "measured_ms_per_token": 45.2,
        "hop_s": 0.00031, "kernels": "neon-dot", "version": "0.1.0", **fields,
    }  # fmt: skip


HOT = {"board": "pi2", "about": "heat", "what": "it is hot: 83 °C, and slows down now",
       "todo": "Give it a heat sink, a fan, or more air."}  # fmt: skip
STATE = {
    "model": "qwen3-8b-q4_k_m", "objective": "throughput", "num_layers": 36, "context": 8192, "slots": 4, "epoch": 7,
    "cluster_file_epoch": 7, "serving": False, "ready": False, "tokens_per_s": 5.4, "predicted_tokens_per_s": 6.1,
    "notes": ["pi2 takes 61 ms a token, and the plan was made for 44.1 ms: heat or other work slows it"],
    "boards": [
        _board("pi1", 0, 14),
        _board("pi2", 14, 27, temperature_c=83.0, throttled=True, measured_ms_per_token=61.0),
        _board("pi3", 27, 36, serving=False, state="unreachable: no answer within 4 s", temperature_c=None,
               measured_ms_per_token=None, link_mbit=None, uptime_s=None, ram_free_bytes=None),
        _board("pi4", 0, 0, in_plan=False, serving=False, section=None, path=None, state="spare: offers 0.31 GB",
               predicted_ms_per_token=None, measured_ms_per_token=None, link_mbit=100),
    ],
    "findings": [HOT],
    "news": [
        {"time_s": 1_795_800_000.0, "kind": "plain", "board": None, "text": "plan 7 is in use"},
        {"time_s": 1_795_800_030.0, "kind": "bad", "board": "pi3", "text": "pi3 was lost"},
    ],
}  # fmt: skip
