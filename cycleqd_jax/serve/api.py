"""The endpoints below ``/v1``: models, chat completions and completions."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cycleqd_jax.serve.catalog import Catalog, Entry, UnknownModel
from cycleqd_jax.serve.errors import ApiError, internal_error, invalid, too_many, unavailable
from cycleqd_jax.serve.http import EventStream, Json, log, read_body, until_disconnect
from cycleqd_jax.serve.jobs import Job, QueueFull, ServerClosed, Ticket
from cycleqd_jax.serve.parameters import (
    SEEDS,
    Sampling,
    chat_messages,
    chat_parameters,
    completion_parameters,
    completion_prompts,
    parse_json,
)
from cycleqd_jax.serve.replies import Answer
from cycleqd_jax.serve.worker import EngineWorker
from cycleqd_jax.types import InputError, NonFiniteError

__all__ = ["Api", "Limits"]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        max_len: the most tokens of a prompt and its reply together.
        body: bytes of a request.
        stall_s: seconds that a client may leave a full socket unread.
    """

    max_len: int
    body: int = 2**20
    stall_s: float = 60.0


class Api:
    """The endpoints.

    Args:
        catalog: the models.
        worker: decodes.
        limits: what a client may ask for.
    """

    def __init__(self, catalog: Catalog, worker: EngineWorker, limits: Limits) -> None:
        self.catalog = catalog
        self.worker = worker
        self._limits = limits
        self._created = int(time.time())
        self._encoder = ThreadPoolExecutor(1, "encoder")  # long prompts do not hold up streams

    def routes(self) -> list[Route]:
        """Paths and their endpoints."""
        return [
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
        ]

    async def _encode(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._encoder, call)

    async def health(self, request: Request) -> Response:
        """Whether requests are accepted, and how many there are."""
        status = "ok" if self.worker.open else "stopping"
        found = dataclasses.asdict(self.worker.state())
        return Json({"status": status, **found}, 200 if self.worker.open else 503)

    async def models(self, request: Request) -> Response:
        """All models."""
        return Json({"object": "list", "data": [self._model(one) for one in await self._entries()]})

    async def model(self, request: Request) -> Response:
        """One model."""
        name = request.path_params["name"]
        await self._resolve(name)
        listed = {one.id: one for one in await self._entries()}
        return Json(self._model(listed.get(name, Entry(name, "child"))))

    async def chat(self, request: Request) -> Response:
        """A chat completion."""
        body = parse_json(await read_body(request, self._limits.body))
        sampling, messages = chat_parameters(body), chat_messages(body)
        self._check_count("messages", sampling.n)
        key = await self._resolve(sampling.model)

        def encode() -> list[list[int]]:
            try:
                return [self.catalog.tokenizer.encode(messages, remember=False)]
            except InputError as error:
                raise invalid("messages", str(error)) from error

        ids = await self._encode(encode)
        self._check_prompts("messages", ids, sampling)
        return await self._answer(request, "chat", key, ids, sampling, [None])

    async def completions(self, request: Request) -> Response:
        """Completions of one prompt or several."""
        body = parse_json(await read_body(request, self._limits.body))
        sampling, prompts = completion_parameters(body), completion_prompts(body)
        self._check_count("prompt", len(prompts) * sampling.n)
        key = await self._resolve(sampling.model)

        def encode() -> list[list[int]]:
            tokenizer = self.catalog.tokenizer
            return [tokenizer.encode_text(one) if isinstance(one, str) else one for one in prompts]

        def texts() -> list[str | None]:
            if not sampling.echo:
                return [None] * len(prompts)
            return [one if isinstance(one, str) else self.catalog.tokenizer.decode(one) for one in prompts]

        ids = await self._encode(encode)
        self._check_prompts("prompt", ids, sampling)  # only ids of the vocabulary have a text
        return await self._answer(request, "completion", key, ids, sampling, await self._encode(texts))

    def _model(self, one: Entry) -> dict[str, Any]:
        facts = {"kind": one.kind, **one.about}
        return {"id": one.id, "object": "model", "created": self._created, "owned_by": "cycleqd_jax", "cycleqd": facts}

    async def _entries(self) -> Sequence[Entry]:
        try:
            return await asyncio.to_thread(self.catalog.entries)
        except InputError as error:  # the run's folder was damaged meanwhile
            raise unavailable(str(error)) from error

    async def _resolve(self, name: str) -> Any:
        try:
            return await asyncio.to_thread(self.catalog.resolve, name)
        except InputError as error:
            raise unavailable(str(error)) from error
        except UnknownModel as error:
            raise ApiError(404, str(error), param="model", code="model_not_found") from error

    async def _answer(
        self,
        request: Request,
        kind: Literal["chat", "completion"],
        key: Any,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        echoes: Sequence[str | None],
    ) -> Response:
        jobs = self._jobs(key, prompts, sampling, echoes, continues=kind == "completion")
        changed, loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            tickets = self.worker.submit(jobs, lambda: _wake(loop, changed))
        except QueueFull as error:
            raise too_many(str(error)) from error
        except ServerClosed as error:
            raise unavailable(str(error)) from error
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        name = f"{prefix}-{uuid.uuid4().hex}"
        tokens, tokenizer = sum(map(len, prompts)), self.catalog.tokenizer
        answer = Answer(kind, name, int(time.time()), sampling.model, tokens, sampling.usage, jobs, tokenizer)
        if sampling.stream:
            values = self._stream(answer, tickets, changed)
            return EventStream(values, self._limits.stall_s, lambda: self.worker.cancel(tickets))
        try:
            await until_disconnect(request.receive, _all_done(tickets, changed))
        except ConnectionResetError:
            log.info("a client has closed its connection")
            return Response(status_code=499)  # the client reads no answer
        finally:
            self.worker.cancel(tickets)
        replies = [ticket.take() for ticket in tickets]
        for reply in replies:
            if reply.error is not None:
                raise _failed(reply.error)
        return Json(await self._encode(lambda: answer.whole(replies)))  # log-probabilities have many tokens to show

    async def _stream(self, answer: Answer, tickets: Sequence[Ticket], changed: asyncio.Event) -> AsyncIterator[Any]:
        """The chunks of a stream."""
        for chunk in answer.first(len(tickets)):
            yield chunk
        left, tokens = dict(enumerate(tickets)), 0
        while left:
            await changed.wait()
            changed.clear()
            for i, ticket in list(left.items()):
                news = ticket.take()
                chunks = answer.more(i, news)
                for chunk in chunks if news.scored is None else await self._encode(functools.partial(list, chunks)):
                    yield chunk
                if news.error is not None:
                    yield _failed(news.error).body()
                    return
                if news.done:
                    tokens += news.tokens
                    del left[i]
        for chunk in answer.last(tokens):
            yield chunk

    def _check_count(self, where: str, count: int) -> None:
        """Refuses a request for more replies than the server takes, before its prompts are encoded."""
        if count > self.worker.capacity:
            raise invalid(where, f"expected at most {self.worker.capacity} replies for one request, got {count}; ask for fewer")

    def _check_prompts(self, where: str, prompts: Sequence[list[int]], sampling: Sampling) -> None:
        """Refuses ids outside the vocabulary, and prompts that leave no room for the reply."""
        most, vocabulary = self._limits.max_len, self.catalog.config.vocab_size
        for prompt in prompts:
            if not prompt:
                raise invalid(where, f"expected a prompt with at least one token, got none in {where}; give a text")
            if not 0 <= min(prompt) <= max(prompt) < vocabulary:
                raise invalid(where, f"expected token ids below {vocabulary} in {where}, got others; correct them")
            if len(prompt) + (sampling.max_tokens != 0) > most:
                raise invalid(
                    where,
                    f"expected a prompt that leaves room for a reply in a context of {most} tokens, got {len(prompt)} tokens; "
                    "shorten it",
                    "context_length_exceeded",
                )

    def _jobs(
        self, key: Any, prompts: Sequence[list[int]], sampling: Sampling, echoes: Sequence[str | None], *, continues: bool
    ) -> list[Job]:
        return [
            Job(
                key,
                tuple(prompt),
                self._limits.max_len if sampling.max_tokens is None else sampling.max_tokens,
                sampling.temperature,
                sampling.top_p,
                (sampling.seed + i) % SEEDS,
                sampling.stop,
                sampling.logprobs,
                continues,
                echo,
            )
            for prompt, echo in zip(prompts, echoes, strict=True)
            for i in range(sampling.n)
        ]


async def _all_done(tickets: Sequence[Ticket], changed: asyncio.Event) -> None:
    while not all(ticket.done for ticket in tickets):
        await changed.wait()
        changed.clear()
        if any(ticket.failed for ticket in tickets):
            return


def _wake(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
    """Sets an event of the loop from the engine's thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
        loop.call_soon_threadsafe(changed.set)


def _failed(error: Exception) -> ApiError:
    if isinstance(error, ServerClosed):
        return unavailable(str(error))
    if isinstance(error, (InputError, NonFiniteError)):
        message = f"expected a reply, got: {error}; ask another model" if isinstance(error, NonFiniteError) else str(error)
        return ApiError(500, message, type="server_error", code="model_error")
    log.error("a reply failed", exc_info=error)
    return internal_error()
