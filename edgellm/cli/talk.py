"""The conversations that `edgellm chat` and `edgellm ask` keep, and go on with."""

from collections.abc import Sequence
from typing import Any

from edgellm.console import note
from edgellm.conversations import Conversation, Conversations, Message
from edgellm.errors import ConversationError, UsageError

OWNER = ""  # as for who asks this machine's own server without a key


def last_conversation() -> Conversation:
    """Return the conversation that was used last. Raises UsageError if there is none."""
    store = Conversations()
    try:
        found = store.last(OWNER)
    finally:
        store.close()
    if found is None or not found.messages:
        raise UsageError("there is no conversation to go on with. Ask without -c first.")
    return found


def as_chat(conversation: Conversation, system: str | None = None) -> list[dict[str, Any]]:
    """Return a conversation's messages as a model is given them; `system` comes in place of its own system prompt."""
    messages = [{"role": m.role, "content": m.content} for m in conversation.messages if m.role != "system"]
    if system is None:
        system = conversation.settings.get("system") or next(
            (m.content for m in conversation.messages if m.role == "system"), ""
        )
    return [{"role": "system", "content": str(system)}, *messages] if system else messages


def keep_answer(
    asker: Any, conversation: Conversation | None, question: str, system: str | None, answer: Any, *, aloud: bool
) -> None:
    """Keep a question of `ask` and its answer, in a conversation if it goes on with one. The model's reasoning is kept
    apart, so that the next question goes on without it. What can't be kept is told if `aloud`."""
    from edgellm.text.prepared import parse
    from edgellm.text.tool_formats import Reasoning, Said

    pieces = parse(asker.tokenizer, answer.text)
    text = "".join(p.text for p in pieces if isinstance(p, Said))
    reasoning = "".join(p.text for p in pieces if isinstance(p, Reasoning))
    model = asker.manifest.model
    said = Message("assistant", text, reasoning, model, answer.finish)
    keep(conversation, [Message("user", question), said], model=model, system=system, aloud=aloud)


def keep(
    conversation: Conversation | None, messages: Sequence[Message], *, model: str, system: str | None,
    instead: int = 0, aloud: bool,
) -> Conversation | None:  # fmt: skip
    """Add messages to a conversation in place of its last `instead` ones, or begin one with them; return it. What
    can't be kept is told if `aloud`."""
    try:
        store = Conversations()
        try:
            if conversation is not None:
                if instead:
                    count = len(store.read(OWNER, conversation.id).messages)
                    store.truncate(OWNER, conversation.id, max(0, count - instead))
                return store.append(OWNER, conversation.id, messages)
            settings = {"system": system} if system else {}
            return store.new(OWNER, model=model, settings=settings, messages=messages)
        finally:
            store.close()
    except ConversationError as e:
        if aloud:
            note(str(e))
        return conversation
