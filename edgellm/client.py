"""Asks a cluster from Python: `AsyncClient` runs any number of answers at once. blocking.py has the same for threads.

    async with AsyncClient() as client:
        async for delta in client.chat([{"role": "user", "content": "Why is the sky blue?"}]):
            print(delta.text, end="", flush=True)
"""

import asyncio
import logging
import os
import secrets
import struct
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

from edgellm.config import DEFAULT_MAX_TOKENS, PATIENCE_S
from edgellm.errors import ClusterError, DeadlineError, UsageError
from edgellm.files import stamp_of
from edgellm.manager.answer import Answer, Asker, Delta, Question
from edgellm.manager.cluster_file import ClusterFile, find
from edgellm.manager.keeper import SURVEY_EVERY_S, Tag
from edgellm.manager.progress import Progress
from edgellm.manager.session import Session
from edgellm.plan import Plan
from edgellm.structure import Constraint
from edgellm.text.grammars import check
from edgellm.wire.addresses import Address
from edgellm.wire.status import BoardStatus

__all__ = ["Answer", "AnswerStream", "AsyncClient", "Delta", "Message", "OnLoading", "Options", "Question", "Tell"]

log = logging.getLogger(__name__)
FINISH_S = 30.0  # that a client for one question waits at its end for boards that are loading a better plan

Message = Mapping[str, Any]
Tell = Callable[[str], None]
OnLoading = Callable[[Progress], None]
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
)  # fmt: skip


class Options(TypedDict, total=False):
    """How to answer. What isn't given of the sampling is as the model's authors advise."""

    max_tokens: int
    temperature: float  # 0 is greedy: always the likeliest token
    top_p: float
    top_k: int
    min_p: float
    repeat_penalty: float
    presence_penalty: float  # these three are OpenAI's
    frequency_penalty: float
    logit_bias: Mapping[int, float]  # token id → what to add to its logit
    seed: int  # the same seed gives the same answer; random by default
    stop: Sequence[str]  # the answer ends before the first of these texts
    tools: Sequence[Mapping[str, Any]]  # that the model may call, as OpenAI describes them
    template: Mapping[str, Any]  # further variables of the chat template, such as enable_thinking
    constraint: Constraint  # what the answer must match
    logprobs: int  # of each token, and of so many likeliest ones in its place
    controls: Collection[str]  # control tokens whose texts are part of the answer's
    cache: str  # only questions with the same name share what boards keep of prompts
    speculate: bool  # draft tokens and verify them: the same answer, faster
    first_token_timeout_s: float
    timeout_s: float  # for the whole answer
    on_prompt: Callable[[int], None]  # called once with the count of the prompt's tokens, before a board is asked
    on_queue: Callable[[int], None]  # called with the position in the line for a slot, 1 is next, whenever it changes
    on_progress: Callable[[int, int], None]  # called with how many of the prompt's tokens are computed, and of how many


class AnswerStream:
    """An answer as it arrives: iterate over its deltas, once. `answer` is filled meanwhile, with timings at the end.

    The boards stop, and the slot is free, when the iteration is cancelled, when `aclose` is called, at the end of an
    `async with` block, or when nobody holds the stream any more.
    """

    def __init__(self, deltas: AsyncGenerator[Delta, None], answer: Answer, limits: tuple[float | None, float | None]):
        self.answer = answer
        self._deltas, self._limits = deltas, limits
        self._began_s: float | None = None
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        """Return the next delta. Raises DeadlineError after a timeout, and the errors of edgellm.errors."""
        if self._ended:
            raise StopAsyncIteration
        now_s = asyncio.get_running_loop().time()
        self._began_s = now_s if self._began_s is None else self._began_s
        first_s, total_s = self._limits
        limits = [s for s in (total_s, first_s if self.answer.first_token_s is None else None) if s is not None]
        try:
            async with asyncio.timeout_at(self._began_s + min(limits) if limits else None):
                return await anext(self._deltas)
        except TimeoutError as e:
            self._ended = True
            if isinstance(e, DeadlineError) or not limits:
                raise
            count = len(self.answer.tokens)
            came = f"only {count} tokens of it" if count else "no token"
            raise DeadlineError(f"the answer took longer than {min(limits):g} s; {came} came by then") from None
        except BaseException:
            self._ended = True
            raise

    async def aclose(self) -> None:
        """End the answer. Returns at once: nobody waits for the boards."""
        self._ended = True
        await self._deltas.aclose()

    async def read(self) -> Answer:
        """Return the answer, once it is complete."""
        async for _ in self:
            pass
        return self.answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class AsyncClient:
    """Asks a cluster. Any number of answers run at once; they share connections, and one task that keeps the plan.

    `cluster` is the path of a cluster file, by default the one that `edgellm ask` would use, and `model` is the name of
    one of its models, by default the first. After losing boards, an answer is given up once no token has arrived for
    `patience_s`. Boards are surveyed every `survey_every_s`; with None only around an answer, which suits a client for
    one question. `tell(text)` is called for events that a person may want to know, and by default logs them, and
    `on_loading(progress)` now and then while boards load the model. Raises ClusterError, ManifestError or UsageError
    for a cluster that can't be asked. Close it at the end, or use it in `async with`.
    """

    def __init__(
        self, cluster: str | os.PathLike[str] | None = None, *, patience_s: float = PATIENCE_S,
        survey_every_s: float | None = SURVEY_EVERY_S, tell: Tell = log.info, model: str | None = None,
        on_loading: OnLoading = lambda progress: None,
    ):  # fmt: skip
        path = find(None if cluster is None else os.fspath(cluster))
        if path is None:
            raise UsageError("no cluster file. Deploy, or start a local cluster with 'edgellm local up'.")
        self.path: Path = path
        self._file = ClusterFile.read(path)
        known = self._file.choose(model)
        self.asker = Asker(self._file.model_dir_path(path, known.model))
        self.asker.check(known.plan)
        self._every_s, self._tell = survey_every_s, tell
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="edgellm-encode")
        self._stamp = stamp_of(path)
        self._session = Session(
            self.asker.manifest, known.plan, self._file.addresses(), tls=self._file.client_tls(path),
            patience_s=patience_s, tell=tell, adopted=self._adopted, every_s=survey_every_s, refresh=self._refresh,
            unasked=known.model == self._file.model, on_progress=on_loading,
        )  # fmt: skip

    @property
    def plan(self) -> Plan:
        """The plan that the next question takes."""
        return self._session.plan

    @property
    def boards(self) -> dict[str, BoardStatus]:
        """By board, what it said when boards were surveyed last; empty before the first survey."""
        return self._session.keeper.statuses

    @property
    def missing(self) -> dict[str, str]:
        """By board, why it didn't answer that survey, or has no part in a plan."""
        return self._session.keeper.missing

    @property
    def recoveries(self) -> int:
        """How often an answer went on after a board was lost, or the plan changed."""
        return self._session.recoveries

    def start(self) -> None:
        """Survey the boards now, unless that was done before, and on the timer from then on, as a question does."""
        keeper = self._session.keeper
        if not keeper.statuses and not keeper.missing:
            keeper.look()
        keeper.start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, *exc: object) -> None:
        await self._close(wait=kind is None)

    async def aclose(self) -> None:
        """End all answers, and hang up on every board. Without a timer, a change of the plan that is under way gets up
        to 30 s to finish."""
        await self._close(wait=True)

    @property
    def loading(self) -> Progress | None:
        """How far boards are with loading this client's model; None unless they are at it for this client."""
        return self._session.keeper.progress

    async def prepare(self, *, beside: bool = False) -> Plan:
        """Have the boards load this client's model, as its next question would, and return the plan. With `beside`,
        models that stand go on, and PlanError says why this one doesn't fit beside them. Raises OtherModelError while
        answers of another model run, and the errors of an answer."""
        return await self._session.keeper.stand(beside=beside)

    async def unload(self) -> bool:
        """Have the boards give up this client's model; return whether any did. Raises ClaimError while answers of it
        run, or while another program changes the plan."""
        return await self._session.keeper.unload()

    async def stands(self) -> bool:
        """Return whether the boards hold this client's model, as they say now."""
        return await self._session.keeper.stands()

    def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> AnswerStream:
        """Return the assistant's next message in a chat of `messages`, each with a `role` and a `content`.

        Raises UsageError for messages or options that make no sense; all else is raised by the stream.
        """
        return self._answer(options, messages=tuple(messages))

    def generate(self, prompt: str, **options: Unpack[Options]) -> AnswerStream:
        """Return how the model continues `prompt`, without a chat template; control tokens in it are recognized."""
        return self._answer(options, prompt=prompt, raw=True)

    def answer(self, question: Question, options: Options | None = None) -> AnswerStream:
        """Return the answer to a question as it is; of `options`, only timeouts and what is to be called count."""
        given = options or {}
        answer = Answer(0, question.sampling)
        limits = given.get("first_token_timeout_s"), given.get("timeout_s")
        return AnswerStream(self._deltas(question, answer, given), answer, limits)

    async def embed(self, texts: Sequence[str]) -> list[tuple[list[float], int]]:
        """Return for each text its embedding, [hidden_size], and how many tokens it has.

        An embedding is made of the model's last hidden states of all the text's tokens, as its authors do, or if they
        don't say, it is their mean. Raises UsageError for a text without tokens, or with too many for a slot, and for a
        model whose authors do what edgellm can't; and what an answer raises.
        """
        pool = self.asker.pool
        self._session.keeper.start()
        encode, context = asyncio.get_running_loop().run_in_executor, self._session.plan.context
        tokens: list[list[int]] = []
        for i, text in enumerate(texts):
            try:
                tokens.append(await encode(self._encoder, self.asker.encode_text, text, context))
            except UsageError as e:
                raise UsageError(f"text {i}: {e}") from None
        turns = asyncio.Semaphore(self._session.plan.slots)

        async def embed(ids: list[int]) -> tuple[list[float], int]:
            async with turns:
                data = await self._session.embed(ids, pool)
                return list(struct.unpack(f"<{len(data) // 4}f", data)), len(ids)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(embed(ids)) for ids in tokens]
        except BaseExceptionGroup as e:
            raise e.exceptions[0] from None
        return [task.result() for task in tasks]

    async def count(self, messages: Sequence[Message], **options: Unpack[Options]) -> int:
        """Return how many tokens a chat has, however many a slot holds. No board is asked. Raises UsageError."""
        question = self._question(options, messages=tuple(messages))
        encode = asyncio.get_running_loop().run_in_executor
        return len(await encode(self._encoder, self.asker.encode, question, sys.maxsize))

    def _answer(self, options: Options, **what: Any) -> AnswerStream:
        question = self._question(options, **what)
        given: dict[str, Any] = dict(options)
        sampling = {name: given[name] for name in _SAMPLING if given.get(name) is not None}
        seed = options.get("seed")
        seed = secrets.randbits(31) if seed is None else seed
        return self.answer(self.asker.with_options(question, sampling, seed), options)

    def _question(self, options: Options, **what: Any) -> Question:
        if unknown := sorted(options.keys() - Options.__annotations__.keys()):
            raise UsageError(f"there is no option {unknown[0]!r}. There are {', '.join(Options.__annotations__)}.")
        return Question(
            **what, max_tokens=options.get("max_tokens", DEFAULT_MAX_TOKENS), stop=tuple(options.get("stop", ())),
            speculate=options.get("speculate", True), tools=tuple(options.get("tools", ())),
            template=options.get("template", {}), constraint=options.get("constraint"),
            logprobs=options.get("logprobs"), controls=frozenset(options.get("controls", ())),
            cache=options.get("cache", ""),
        )  # fmt: skip

    async def _deltas(self, question: Question, answer: Answer, options: Options) -> AsyncGenerator[Delta, None]:
        self._session.keeper.start()
        # In a thread, one at a time: a template may take a while, and other answers go on.
        if question.constraint is not None:
            await asyncio.to_thread(check, question.constraint)
        encode = asyncio.get_running_loop().run_in_executor
        ids = await encode(self._encoder, self.asker.encode, question, self._session.plan.context)
        answer.prompt_tokens = len(ids)
        if told := options.get("on_prompt"):
            told(len(ids))
        queued, on_progress = options.get("on_queue", lambda position: None), options.get("on_progress")
        async with aclosing(self.asker.stream(question, ids, self._session, answer, queued, on_progress)) as deltas:
            async for delta in deltas:
                if self._every_s is None and len(answer.tokens) == 1:
                    self._session.keeper.look()
                yield delta

    async def _close(self, wait: bool) -> None:
        try:
            if wait and self._every_s is None:
                await self._session.keeper.finish(FINISH_S, self._tell)
        finally:
            self._session.close()
            self._encoder.shutdown(wait=False, cancel_futures=True)

    def _adopted(self, plan: Plan, addresses: dict[str, Address], tag: Tag | None) -> None:
        try:
            self._refresh()  # other models' plans may be newer there
            self._file = self._file.with_plan(plan, addresses, tag)
            self._file.write_if_newer(self.path)
            self._stamp = stamp_of(self.path)
        except ClusterError as e:  # answers go on without it
            self._tell(str(e))

    def _refresh(self) -> None:
        """Take over what another program has written into the cluster file."""
        stamp = stamp_of(self.path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            file = ClusterFile.read(self.path)
        except ClusterError as e:
            self._tell(str(e))
            return
        plan = file.plans().get(self.asker.manifest.sha256)
        if plan is None:
            self._tell(f"{self.path} is of another model now ({file.model}). Make a new client to ask it.")
            return
        self._file = file
        self._session.keeper.know(plan, file.addresses())
