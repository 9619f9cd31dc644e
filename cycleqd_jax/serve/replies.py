"""The objects of OpenAI's API that answer a request: whole, or as the chunks of a stream."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.serve.jobs import Job, News
from cycleqd_jax.serve.logprobs import chat_logprobs, completion_logprobs

__all__ = ["Answer", "to_bytes", "usage_of"]


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    """The tokens of a request: those of its prompts, each counted once, and those of all replies, with their stop tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the objects of one answer have in common.

    Attributes:
        kind: the kind of the request.
        id: the id of the answer.
        created: seconds since 1970.
        model: the name that the request gave.
        prompt_tokens: the prompt tokens of the request.
        usage: whether a stream ends with the number of tokens.
        jobs: what the replies are to.
        tokenizer: the tokenizer of the model.
    """

    kind: Literal["chat", "completion"]
    id: str
    created: int
    model: str
    prompt_tokens: int
    usage: bool
    jobs: Sequence[Job]
    tokenizer: ChatTokenizer

    def whole(self, replies: Sequence[News]) -> dict[str, Any]:
        """The answer that is not streamed, of complete replies."""
        chat = self.kind == "chat"
        choices = []
        for i, reply in enumerate(replies):
            content = (
                {"message": {"role": "assistant", "content": reply.text, "refusal": None}} if chat else {"text": reply.text}
            )
            choices.append({"index": i, **content, "logprobs": self._logprobs(i, reply), "finish_reason": reply.finish})
        tokens = usage_of(self.prompt_tokens, sum(reply.tokens for reply in replies))
        return {**self._head("chat.completion" if chat else "text_completion"), "choices": choices, "usage": tokens}

    def first(self, count: int) -> Iterator[dict[str, Any]]:
        """The chunks with which a stream begins: of a chat, the role of every reply."""
        if self.kind == "chat":
            for i in range(count):
                yield self._chunk(i, {"role": "assistant", "content": ""}, None)

    def more(self, i: int, news: News) -> Iterator[dict[str, Any]]:
        """The chunks of what is new in a reply; the one with the finish reason has no text, and all log-probabilities."""
        if news.text:
            yield self._chunk(i, {"content": news.text}, None)
        if news.finish is not None:
            yield self._chunk(i, {}, news.finish, self._logprobs(i, news))

    def last(self, completion: int) -> Iterator[dict[str, Any]]:
        """The chunk with the number of tokens, where the request has it."""
        if self.usage:
            yield {**self._head(self._chunk_kind), "choices": [], "usage": usage_of(self.prompt_tokens, completion)}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    def _logprobs(self, i: int, news: News) -> dict[str, Any] | None:
        job = self.jobs[i]
        if news.scored is None or job.logprobs is None:
            return None
        if self.kind == "chat":
            return chat_logprobs(self.tokenizer, news.scored, job.logprobs)
        return completion_logprobs(self.tokenizer, news.scored, job.logprobs, job.echo or "", job.prompt)

    def _chunk(
        self, i: int, delta: dict[str, Any], finish: str | None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        content = {"delta": delta} if self.kind == "chat" else {"text": delta.get("content", "")}
        found = {"choices": [{"index": i, **content, "logprobs": logprobs, "finish_reason": finish}]}
        return {**self._head(self._chunk_kind), **found, **({"usage": None} if self.usage else {})}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def to_bytes(value: Any) -> bytes:
    """JSON in ASCII, which holds any text, without NaN."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
