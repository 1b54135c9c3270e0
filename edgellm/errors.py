"""Every error that edgellm raises for a reason outside its own code.

    EdgellmError
    ├── UsageError          the caller's arguments are wrong (exit 2)
    │   ├── ContextError    a prompt that is longer than a slot
    │   └── ConstraintError  a schema or a grammar that can't be compiled
    ├── CheckpointError     a source that can't be read or split
    │   └── ManifestError   a manifest or shard that is damaged or doesn't match
    ├── ModelError          an architecture that can't run in sections
    ├── PlanError           sections that don't fit
    ├── ClusterError        a cluster file that can't be used
    ├── BoardError          a board that fails or can't be reached (names the board)
    │   ├── DialError       a board that can't be dialled (says at which point it failed)
    │   ├── BusyError       a board with no free KV slot
    │   ├── ClaimError      a board that another manager is giving a plan, or that holds another epoch
    │   │   └── OtherModelError  boards that still answer with another model
    │   ├── TagError        a plan that no admin of this cluster signed
    │   ├── LoadError       a board that can't load its section of a plan
    │   ├── LinkError       a board that can't reach another one
    │   └── AnswerError     a board that can't compute this answer; asking again won't help
    ├── DeadlineError       an answer that took longer than the caller allowed (also a TimeoutError)
    ├── ConversationError   a conversation that can't be kept, read or changed
    │   └── NoConversationError  one that the asker doesn't have
    ├── WheelhouseError     wheels or a Python for the boards that can't be resolved, fetched or built
    └── ProtocolError
        ├── LocalProtocolError    we misused the wire
        └── RemoteProtocolError   they sent bad bytes

A message is one sentence or two: who, what, both numbers, what to do.
"""


class EdgellmError(Exception):
    """Base of all; the CLI prints its text in one line and exits with `exit_code`."""

    exit_code = 1


class UsageError(EdgellmError):
    """The caller's arguments are wrong."""

    exit_code = 2


class ContextError(UsageError):
    """A prompt is longer than a slot."""


class ConstraintError(UsageError):
    """A schema or a grammar can't be compiled."""


class CheckpointError(EdgellmError):
    """A source checkpoint can't be read or split."""


class ManifestError(CheckpointError):
    """A manifest or a shard is damaged or doesn't match."""


class ModelError(EdgellmError):
    """An architecture can't be run in sections."""


class PlanError(EdgellmError):
    """The sections don't fit on the boards; `brief` says so in a few words with both numbers, for notes that repeat."""

    def __init__(self, message: str, brief: str | None = None):
        super().__init__(message)
        self.brief = brief or message


class ClusterError(EdgellmError):
    """The cluster file is missing, unreadable or contradicts itself."""


class BoardError(EdgellmError):
    """A board fails or can't be reached; `board` names it if it is known."""

    def __init__(self, message: str, board: str | None = None):
        super().__init__(message)
        self.board = board


# At which point dialling a board failed: nobody listens, or a firewall rejects; no sign of life; no way there; a
# firewall on this side; its name is not known; TCP works, but nothing comes; the handshake or the hello failed.
DIAL_CODES = ("refused", "timeout", "unreachable", "forbidden", "name", "silent", "rejected")


class DialError(BoardError):
    """A board can't be dialled; `code` is one of DIAL_CODES, `reason` the message without the board's name."""

    def __init__(self, message: str, board: str | None, code: str, reason: str):
        super().__init__(message, board)
        self.code, self.reason = code, reason


class BusyError(BoardError):
    """A board has no free KV slot. Who asks may add what is known: the position that a question would have in line, and
    in how many seconds it would get a slot."""

    position: int | None = None
    eta_s: float | None = None


class ClaimError(BoardError):
    """Another manager is changing the plan, or has changed it."""


class OtherModelError(ClaimError):
    """The boards still answer with another model."""


class TagError(BoardError):
    """A plan was not signed by an admin of this cluster."""


class LoadError(BoardError):
    """A board can't load its section of a plan: the layers [start, end) of `section`, or (0, 0) if it has none."""

    def __init__(self, message: str, board: str, section: tuple[int, int]):
        super().__init__(message, board)
        self.section = section


class LinkError(BoardError):
    """A board can't reach `other`, to which it must send."""

    def __init__(self, message: str, board: str, other: str):
        super().__init__(message, board)
        self.other = other


class AnswerError(BoardError):
    """A board can't compute this answer: asking again won't help."""


class DeadlineError(EdgellmError, TimeoutError):
    """An answer took longer than the caller allowed."""


class ConversationError(EdgellmError):
    """A conversation can't be kept, read or changed."""


class NoConversationError(ConversationError):
    """There is no such conversation, or it is another asker's."""


class WheelhouseError(EdgellmError):
    """Wheels or a Python for the boards can't be resolved, fetched or built."""


class ProtocolError(EdgellmError):
    """Base of the two below."""


class LocalProtocolError(ProtocolError):
    """We misused the wire: a bug on this side."""


class RemoteProtocolError(ProtocolError):
    """The peer sent bytes that the protocol doesn't allow."""
