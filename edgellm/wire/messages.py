"""Messages: what frames mean. One frozen dataclass per message, each with its bytes both ways (docs/wire.md).

Header fields are big-endian, tensors little-endian float32, token ids little-endian uint32. `decode` raises
RemoteProtocolError for every body that isn't exactly what the message allows.
"""

from edgellm.limits import MAX_CHOICES
from edgellm.wire.answer_messages import FINISH, Embedded, Logits, Logprobs, Prefilled, Tokens
from edgellm.wire.body import Message
from edgellm.wire.cluster_messages import (
    MAGIC,
    OLDEST,
    VERSION,
    AskStatus,
    Assign,
    Assigned,
    Claim,
    Claimed,
    Commit,
    Committed,
    Hello,
    Ping,
    Pong,
    Reach,
    Reached,
    Refuse,
    Status,
)
from edgellm.wire.frames import encode_frame
from edgellm.wire.sequence_messages import (
    FAILURES,
    Close,
    Closed,
    Failed,
    Hidden,
    Open,
    Opened,
    Queued,
    Start,
)
from edgellm.wire.trace_messages import Trace, Traced

__all__ = [
    "FAILURES", "FINISH", "MAGIC", "MAX_CHOICES", "OLDEST", "VERSION", "BY_TYPE", "MESSAGES", "Message", "encode",
    "Hello", "Refuse", "Ping", "Pong", "AskStatus", "Status", "Assign", "Assigned", "Claim", "Claimed", "Commit",
    "Committed", "Reach", "Reached", "Open", "Queued", "Opened", "Start", "Close", "Hidden", "Tokens", "Closed",
    "Failed", "Logits", "Logprobs", "Trace", "Traced", "Prefilled", "Embedded",
]  # fmt: skip

MESSAGES: tuple[type[Message], ...] = (
    Hello, Refuse, Ping, Pong, AskStatus, Status, Assign, Assigned, Open, Opened, Hidden, Tokens, Close, Closed,
    Failed, Logits, Trace, Traced, Claim, Claimed, Commit, Committed, Reach, Reached, Start,
    Queued, Logprobs, Prefilled, Embedded,
)  # fmt: skip
BY_TYPE = {m.TYPE: m for m in MESSAGES}


def encode(message: Message) -> bytes:
    """Return a message as one frame."""
    return encode_frame(message.TYPE, message.encode())
