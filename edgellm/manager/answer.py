"""One question, one answer: from a prompt to text on a screen, with its timings."""

import reprlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgellm.config import DEFAULT_MAX_TOKENS
from edgellm.errors import BoardError, ClusterError, ContextError, ManifestError, UsageError
from edgellm.limits import MAX_CACHE_NAME, MAX_LOGPROBS
from edgellm.manager.session import Session
from edgellm.plan import Plan, Section
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from edgellm.structure import OTHER_POOL, Constraint
from edgellm.text.json_file import read_json
from edgellm.text.stops import StopStrings
from edgellm.text.tokenizer import Tokenizer
from edgellm.wire.status import SequenceStats


@dataclass(frozen=True)
class Question:
    """A prompt, or the messages of a chat, and how to answer. Raises UsageError for an empty one, or numbers out of
    range."""

    prompt: str = ""
    system: str | None = None
    raw: bool = False
    max_tokens: int = DEFAULT_MAX_TOKENS
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    speculate: bool = True
    messages: tuple[Mapping[str, Any], ...] = ()  # each with a role and a content; in place of prompt and system
    tools: tuple[Mapping[str, Any], ...] = ()  # that the model may call, as its chat template takes them
    template: Mapping[str, Any] = field(default_factory=dict)  # further variables of the template
    constraint: Constraint | None = None  # what the answer must match
    logprobs: int | None = None  # of each token, and of so many likeliest ones in its place
    controls: frozenset[str] = frozenset()  # control tokens that are text of the answer, too
    cache: str = ""  # only questions with the same name share what boards keep of prompts

    def __post_init__(self) -> None:
        for message in self.messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise UsageError(f"a message is {reprlib.repr(message)}, expected an object with a role and a content")
        if not self.prompt.strip() and not self.messages:
            raise UsageError("the prompt is empty. Ask something: edgellm ask \"Why is the sky blue?\"")
        if self.max_tokens < 1:
            raise UsageError(f"max-tokens is {self.max_tokens}, expected at least 1")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise UsageError(f"logprobs is {self.logprobs}, expected 0 to {MAX_LOGPROBS}")
        if len(self.cache) > MAX_CACHE_NAME:
            raise UsageError(f"cache is a name of {len(self.cache)} letters, at most {MAX_CACHE_NAME}")
        if self.raw and self.system is not None:
            raise UsageError("--system needs the chat template, and --raw leaves it out. Use one of them.")


@dataclass(frozen=True)
class Delta:
    """A piece of an answer: a token, and the text that it completes, which may be none. The last one has no token, but
    a finish reason (eos, length, context, stop). `logprobs`, where asked for, are (token id, natural logarithm of its
    probability), first of this token, then of the likeliest."""

    text: str
    token: int | None = None
    finish_reason: str | None = None
    logprobs: tuple[tuple[int, float], ...] = ()


@dataclass
class Answer:
    """The text, its token ids, why it ended (eos, length, context, stop, cancelled), and seconds since asking. `stop`
    is the stop string that ended it, "" if none did."""

    prompt_tokens: int
    sampling: Sampling
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish: str = "cancelled"
    stop: str = ""
    reused_tokens: int = 0  # of the prompt: the boards held them already
    draft_tokens: int = 0
    accepted_tokens: int = 0  # of the drafts
    first_token_s: float | None = None
    total_s: float = 0.0
    stages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens per second, of those that were computed."""
        return (self.prompt_tokens - self.reused_tokens) / self.first_token_s if self.first_token_s else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens per second after the first token."""
        if len(self.tokens) < 2 or self.first_token_s is None or self.total_s <= self.first_token_s:
            return None
        return (len(self.tokens) - 1) / (self.total_s - self.first_token_s)

    def to_dict(self) -> dict[str, Any]:
        """Return what `ask --json` prints."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "reused_tokens": self.reused_tokens,
            "draft_tokens": self.draft_tokens,
            "accepted_tokens": self.accepted_tokens,
            "finish_reason": self.finish,
            "seed": self.sampling.seed,
            "sampling": {k: v for k, v in self.sampling.to_dict().items() if k != "seed"},
            "timings": {
                "first_token_s": self.first_token_s,
                "total_s": self.total_s,
                "prefill_tokens_per_s": self.prefill_tokens_per_s,
                "decode_tokens_per_s": self.decode_tokens_per_s,
            },
            "stages": self.stages,
        }


class Asker:
    """Asks one model. `check` and `encode` refuse everything that can be refused without a board.

    `sampling` is how the model's authors want it sampled, and `eos_token_ids` are the tokens that end its answers.
    """

    def __init__(self, model_dir: Path):
        """Raises ManifestError or ClusterError for a split that can't be asked."""
        self.model_dir = model_dir
        self.manifest = Manifest.read(model_dir)
        self.tokenizer = Tokenizer(model_dir, for_chats=True)
        generation = read_json(model_dir / "generation_config.json")
        try:
            self.sampling = Sampling.from_generation_config(generation)
        except UsageError as e:
            raise ManifestError(f"{model_dir / 'generation_config.json'}: {e}") from None
        self.eos_token_ids = (*self.manifest.eos_token_ids, *self._more_ends(generation.get("eos_token_id")))

    def _more_ends(self, ids: object) -> list[int]:
        """Return the end tokens in generation_config.json that the manifest doesn't have."""
        ids = ids if isinstance(ids, list) else [ids]
        known, size = self.manifest.eos_token_ids, self.manifest.vocab_size
        return [i for i in dict.fromkeys(ids) if type(i) is int and 0 <= i < size and i not in known]

    def check(self, plan: Plan) -> None:
        """Raise ClusterError if the plan is another model's."""
        if self.manifest.sha256 != plan.manifest_sha256:
            raise ClusterError(
                f"{self.model_dir} holds {self.manifest.model} ({self.manifest.sha256[:12]}…), the cluster serves "
                f"{plan.model} ({plan.manifest_sha256[:12]}…). Deploy again, or use the cluster file of this model."
            )

    def with_options(self, question: Question, options: Mapping[str, float | int], seed: int) -> Question:
        """Return `question` sampled as the model's authors advise, except for the fields of Sampling in `options`."""
        return replace(question, sampling=replace(self.sampling, **options, seed=seed))  # type: ignore[arg-type]

    def encode(self, question: Question, context: int) -> list[int]:
        """Return the prompt's token ids. Raises ContextError if they don't fit in a slot of `context` tokens.

        Control tokens in the prompt are text, except in a raw one.
        """
        if question.messages:
            ids = self._encode_messages(question)
        elif question.raw:
            ids = self.tokenizer.encode(question.prompt)
        elif self.tokenizer.has_template:
            messages = [{"role": "system", "content": question.system}] if question.system is not None else []
            messages.append({"role": "user", "content": question.prompt})
            ids = self.tokenizer.encode_chat(messages, tools=_plain(question.tools), variables=question.template)
        elif question.system is not None:
            raise UsageError(f"{self.manifest.model} has no chat template. Leave out --system.")
        else:
            ids = self.tokenizer.encode_text(question.prompt)
        if not ids:
            raise UsageError("the prompt has no tokens. Ask something.")
        if len(ids) > context:
            raise ContextError(
                f"the prompt has {len(ids)} tokens, a slot of this cluster holds {context}. "
                "Shorten it, or plan the cluster with a larger --context."
            )
        return ids

    def _encode_messages(self, question: Question) -> list[int]:
        messages = [dict(m) for m in question.messages]
        if self.tokenizer.has_template:
            return self.tokenizer.encode_chat(messages, tools=_plain(question.tools), variables=question.template)
        content = messages[0].get("content")
        if len(messages) > 1 or messages[0]["role"] != "user" or not isinstance(content, str):
            raise UsageError(f"{self.manifest.model} has no chat template. Send one user message, with a text.")
        return self.tokenizer.encode_text(content)

    @property
    def pool(self) -> str:
        """How an embedding is made, of POOLS. Raises UsageError if the model's authors do it in another way."""
        if self.manifest.pooling == OTHER_POOL:
            raise UsageError(
                f"{self.manifest.model} has its own way of making embeddings, which edgellm doesn't know. Embed with "
                "another model."
            )
        return self.manifest.pooling or "mean"

    def encode_text(self, text: str, context: int) -> list[int]:
        """Return a text's token ids, for its embedding. Raises UsageError if it has none, or too many for a slot of
        `context` tokens."""
        ids = self.tokenizer.encode_text(text)
        if not ids:
            raise UsageError("a text without tokens has no embedding")
        if len(ids) > context:
            raise UsageError(f"the text has {len(ids)} tokens, a slot of this cluster holds {context}. Shorten it.")
        return ids

    async def stream(
        self, question: Question, ids: list[int], session: Session, answer: Answer,
        queued: Callable[[int], None] = lambda position: None, progress: Callable[[int, int], None] | None = None,
    ) -> AsyncGenerator[Delta, None]:  # fmt: skip
        """Yield the answer as it arrives, and fill `answer`. If this is closed or cancelled, the boards stop, and
        `answer` keeps what has arrived. `queued(position)` is called when the question moves in the line for a slot,
        and `progress(count, all)` now and then while the boards compute the prompt's tokens.

        Raises BoardError naming a board that is busy, or that the cluster can't continue without.
        """
        began = time.perf_counter()
        stream, stop = self.tokenizer.stream(), StopStrings(question.stop)
        pieces: list[str] = []
        stats: dict[str, SequenceStats] = {}
        plans: list[Plan] = []

        def shown(text: str) -> str:
            pieces.append(text)
            return text

        def computed(count: int) -> None:
            if progress is not None and not answer.tokens:  # a replay's prompt holds some of the answer
                progress(min(count, len(ids)), len(ids))

        likeliest = 0 if question.logprobs is None else max(1, question.logprobs)  # to a board, 0 means none at all
        shown_logprobs = 0 if question.logprobs is None else 1 + question.logprobs
        tokens = session.generate(
            ids, sampling=question.sampling, max_tokens=question.max_tokens, eos=self.eos_token_ids, stats=stats,
            speculate=question.speculate, logprobs=likeliest, constraint=question.constraint,
            cache=question.cache, queued=queued, progress=None if progress is None else computed,
            served=plans.append, ended=lambda: bool(stop.found),
        )  # fmt: skip
        try:
            finish = ""
            async with aclosing(tokens):
                async for chosen in tokens:
                    if chosen.token >= self.manifest.vocab_size:
                        last, size = plans[-1].boards[-1], self.manifest.vocab_size
                        raise BoardError(f"board {last} chose token {chosen.token}, the model has {size}", last)
                    answer.total_s = time.perf_counter() - began
                    if answer.first_token_s is None:
                        answer.first_token_s = answer.total_s
                    answer.tokens.append(chosen.token)
                    control = self.tokenizer.special_token(chosen.token)
                    text = ""
                    if control is not None and stop.mentions(control):
                        text = stop.feed(control, hidden=True)
                    elif control is not None and control in question.controls and chosen.finish != "eos":
                        text = stop.feed(stream.flush() + control)
                    elif chosen.finish != "eos":
                        text = stop.feed(stream.feed(chosen.token))
                    finish = chosen.finish
                    yield Delta(shown(text), chosen.token, logprobs=chosen.logprobs[:shown_logprobs])
                    if stop.found:
                        break
            rest = shown(stop.feed(stream.flush()) + stop.flush())
            answer.finish, answer.stop = "stop" if stop.found else finish, stop.found
            yield Delta(rest, None, answer.finish)
        finally:
            answer.text = "".join(pieces)
            told = [(s, stats[s.board]) for s in (plans[-1].sections if plans else ()) if s.board in stats]
            # The last board knows how many were accepted; in a replay the prompt is longer than the question.
            answer.accepted_tokens = max((t.accepted_tokens for _, t in told), default=0)
            answer.draft_tokens = max((t.draft_tokens for _, t in told), default=0)
            answer.reused_tokens = min((t.reused_tokens for _, t in told), default=0)
            answer.reused_tokens = min(answer.reused_tokens, answer.prompt_tokens)
            answer.stages = [_stage(section, t, answer.accepted_tokens) for section, t in told]


def _plain(tools: tuple[Mapping[str, Any], ...]) -> list[dict[str, Any]] | None:
    return [dict(tool) for tool in tools] or None


def _stage(section: Section, stats: SequenceStats, accepted: int) -> dict[str, Any]:
    steps = stats.decode_steps
    steps += accepted if steps else 0  # each of which is a token
    return {
        "board": section.board,
        "start": section.start,
        "end": section.end,
        "path": stats.path,
        "prefill_s": stats.prefill_s,
        "decode_ms_per_token": 1e3 * stats.decode_s / steps if steps else None,
        "sent_bytes_per_token": stats.sent_bytes / steps if steps else None,
        "degraded": None if stats.degraded is None else asdict(stats.degraded),
    }
