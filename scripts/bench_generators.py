"""What ``bench_engine.py`` and ``bench_gpu.py`` share: generators to compare the engine with, and timed replies with drafts."""

from __future__ import annotations

import random
import time
from collections.abc import Hashable, Sequence
from typing import Any

from cycleqd_jax.engine import ChatGenerator, Engine, Generation
from cycleqd_jax.models import tokenizer as chat
from cycleqd_jax.types import Message, Params, Reply


def differing(engine: Engine, ids: Sequence[int], share: float, chosen: random.Random) -> list[int]:
    """A draft: a reply of which a share of the tokens differs."""
    return [chosen.randrange(engine.config.vocab_size) if chosen.random() < share else i for i in ids]


def timed_replies(
    engine: Engine,
    params: Params,
    prompts: Sequence[Sequence[int]],
    new: int,
    drafts: Sequence[Sequence[Sequence[int]]],
) -> tuple[float, list[Generation]]:
    """Seconds and replies of prompts with drafts, with empty caches; the engine's counters are those of this call.

    Args:
        engine: an engine without requests.
        params: its weights.
        prompts: token ids.
        new: the most tokens of each reply.
        drafts: the drafts of each reply; none for a reply without drafts.
    """
    engine.load(params)  # clears the caches
    engine.statistics.clear()
    start = time.perf_counter()
    numbers = [engine.submit(prompt, new, drafts=given) for prompt, given in zip(prompts, drafts, strict=True)]
    replies: dict[int, Generation] = {}
    while engine.busy:
        replies |= dict(engine.advance())
    return time.perf_counter() - start, [replies[number] for number in numbers]


class Transformers:
    """A generator that computes all requests with ``generate``, in batches sorted by length."""

    def __init__(self, folder: str, tokenizer: chat.ChatTokenizer, dtype: str, batch: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self._tokenizer = tokenizer
        self._batch = batch
        self._requests: list[tuple[Hashable, list[int], int]] = []
        self._generate([("to warm up", [tokenizer.pad_id] * 16, 4)])

    def submit(self, conversation: Hashable, messages: Sequence[Message], max_new_tokens: int) -> None:
        """See :class:`cycleqd_jax.types.Generator`."""
        self._requests.append((conversation, self._tokenizer.encode(messages), max_new_tokens))

    def advance(self) -> list[tuple[Hashable, Reply]]:
        """Replies that are complete."""
        requests, self._requests = sorted(self._requests, key=lambda one: (one[2], len(one[1]))), []
        batches = (requests[i : i + self._batch] for i in range(0, len(requests), self._batch))
        return [reply for batch in batches for reply in self._generate(batch)]

    def release(self, conversation: Hashable) -> None:
        """Does nothing: no cache is kept."""

    def _generate(self, batch: Sequence[tuple[Hashable, list[int], int]]) -> list[tuple[Hashable, Reply]]:
        torch, stops = self._torch, set(self._tokenizer.stop_ids)
        width = max(len(ids) for _, ids, _ in batch)
        pad = self._tokenizer.pad_id
        tokens = torch.tensor([[pad] * (width - len(ids)) + ids for _, ids, _ in batch])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for _, ids, _ in batch])
        with torch.inference_mode():
            out = self._model.generate(
                tokens,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max(limit for *_, limit in batch),
                pad_token_id=pad,
                eos_token_id=list(stops),
            )
        replies: list[tuple[Hashable, Reply]] = []
        for (key, _, limit), row in zip(batch, out[:, width:].tolist(), strict=True):
            end = next((i + 1 for i, token in enumerate(row) if token in stops), limit)
            ids = row[: min(end, limit)]
            stopped = bool(ids) and ids[-1] in stops
            text = self._tokenizer.decode(ids[:-1] if stopped else ids)
            replies.append((key, Reply(text, len(ids), "stop" if stopped else "length")))
        return replies


class Static:
    """A generator with static batches: as many requests as slots, and no new one before all of them are complete."""

    def __init__(self, generator: ChatGenerator) -> None:
        self._generator = generator
        self._waiting: list[tuple[Any, ...]] = []
        self._left = 0

    def submit(self, *request: Any) -> None:
        """See :class:`cycleqd_jax.types.Generator`."""
        self._waiting.append(request)

    def advance(self) -> list[tuple[Hashable, Reply]]:
        """Replies that are complete."""
        if not self._left:
            slots = self._generator.engine.slots
            batch, self._waiting = self._waiting[:slots], self._waiting[slots:]
            for request in batch:
                self._generator.submit(*request)
            self._left = len(batch)
        replies = self._generator.advance()
        self._left -= len(replies)
        return replies

    def release(self, conversation: Hashable) -> None:
        """See :class:`cycleqd_jax.types.Generator`."""
        self._generator.release(conversation)
