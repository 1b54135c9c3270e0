"""Defaults and timeouts that more than one room uses."""

PROGRESS_FILE = "EDGELLM_PROGRESS_FILE"  # environment variable: where to append reports of progress, a JSON a line
DEFAULT_PORT = 7710
DEFAULT_MODEL = "smollm2-135m"
DEFAULT_CONTEXT = 2048  # tokens a slot holds
DEFAULT_SLOTS = 4  # sequences at once
DEFAULT_CHUNK = 32  # prompt tokens per prefill chunk: benchmarks/chunks.py
DEFAULT_MAX_TOKENS = 512
DEFAULT_CACHE_GB = 1.0  # of a disk, for pages of prompts
DEFAULT_CACHE_RAM_GB = 1.0  # of RAM that no plan needs, for the same, if there is so much

# What an agent takes beside weights and KV: the most while it computes (benchmarks/lean.py), and while it holds
# nothing, which is when it measures what it can offer. generic includes torch.
AGENT_BYTES = {"native": 120_000_000, "generic": 500_000_000}
IDLE_AGENT_BYTES = {"native": 60_000_000, "generic": 500_000_000}

# Timeouts by phase, in seconds.
CONNECT_TIMEOUT_S = 5.0
HELLO_TIMEOUT_S = 5.0
FRAME_TIMEOUT_S = 30.0  # from a frame's first byte to its last
WRITE_TIMEOUT_S = 20.0  # a peer that reads nothing for this long is gone
PING_EVERY_S = 0.5
PONG_TIMEOUT_S = 4.0  # a board that answers no ping for this long is dead or hangs: noticed within 5 s
PATIENCE_S = 120.0  # an answer without a token for this long is given up, whatever was tried
MANAGER_SILENCE_S = 30.0  # a manager that sends nothing for this long is gone
BOARD_SILENCE_S = 600.0  # a board that sends no step for this long dials again when it has one
STALL_TIMEOUT_S = 20.0  # no token for this long after the first board has done its part: a step was lost
SLOT_TIMEOUT_S = 25.0  # a board behind the first waits this long for a slot that another answer still has
START_TIMEOUT_S = 60.0  # an open sequence that is neither started nor traced for this long loses its slot
WAIT_S = 300.0  # a question waits this long for a slot
STEP_TIMEOUT_S = 180.0  # a board that has work and finishes no step for this long hangs
