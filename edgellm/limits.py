"""The largest values that a frame may carry: the wire enforces them, and plans must respect them (docs/wire.md)."""

MAX_FRAME_BYTES = 64 << 20  # the largest body of a frame
MAX_STEP_BYTES = MAX_FRAME_BYTES - 64  # the largest tensor in a frame, and the largest answer to a trace
MAX_CHOICES = 16  # tokens that one step may choose: one, and one after each draft that it carries
MAX_LOGPROBS = 20  # likeliest tokens whose logarithms of probability one answer may ask for
MAX_CACHE_NAME = 64  # letters in the name of a cache of prompts
MAX_WAIT_S = 86_400.0  # the longest that a sequence may ask to wait for a slot
MAX_CHECKPOINTS = 256  # positions that a board may name at which a sequence may begin
MTP_TOKENS = 64  # that the layer which drafts computes at once
