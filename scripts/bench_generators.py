"""What ``bench_engine.py`` and ``bench_gpu.py`` share: generators to compare the engine with, and timed replies with drafts."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import subprocess
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.engine import ChatGenerator, Engine, Generation
from cycleqd_jax.files import digest
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


class Peer:
    """A generator that asks another engine, in a process and an environment of its own; see ``peer_worker.py``.

    Attributes:
        name: the engine and its version.
    """

    def __init__(self, choice: str, model: str, tokenizer: chat.ChatTokenizer, slots: int) -> None:
        """Args:
        choice: ``NAME:PYTHON``, an engine that ``peer_worker.py`` knows and the interpreter of its environment, which keeps
            converted weights; ``openvino:u8:PYTHON`` has keys and values in 8 bits.
        model: Hugging Face folder.
        tokenizer: of the model.
        slots: requests at the same time, where the engine can be told.

        Raises:
            RuntimeError: the process ends.
        """  # noqa: D205
        name, _, python = choice.rpartition(":")
        engine, _, cache_dtype = name.partition(":")
        weights = [(file.name, file.stat().st_size, file.stat().st_mtime) for file in sorted(Path(model).iterdir())]
        converted = Path(python).absolute().parents[1] / "converted" / digest([str(Path(model).resolve()), weights], digits=16)
        command = [python, str(Path(__file__).with_name("peer_worker.py")), engine, model, str(converted)]
        command += ["--stop", *map(str, tokenizer.stop_ids), "--slots", str(slots)]
        command += ["--cache-dtype", cache_dtype] if cache_dtype else []
        self._tokenizer = tokenizer
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[Hashable, list[int], int]] = {}
        self._open: dict[int, Hashable] = {}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = f"{name} {self._answer()['ready']}"
        self._waiting[next(self._numbers)] = "to warm up", [tokenizer.pad_id] * 16, 4
        self.advance()

    def submit(self, conversation: Hashable, messages: Sequence[Message], max_new_tokens: int) -> None:
        """See :class:`cycleqd_jax.types.Generator`."""
        self._waiting[next(self._numbers)] = conversation, self._tokenizer.encode(messages), max_new_tokens

    def advance(self) -> list[tuple[Hashable, Reply]]:
        """Replies that are complete."""
        assert self._process.stdin is not None
        requests = [(number, prompt, limit) for number, (_, prompt, limit) in self._waiting.items()]
        self._open |= {number: conversation for number, (conversation, *_) in self._waiting.items()}
        self._waiting = {}
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        return [(self._open.pop(number), self._reply(ids)) for number, ids in self._answer()]

    def release(self, conversation: Hashable) -> None:
        """Does nothing: the engine decides what its cache keeps."""

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"expected an answer of the other engine, got exit code {self._process.wait()}; see its messages"
            )
        return json.loads(line)

    def _reply(self, ids: list[int]) -> Reply:
        stopped = bool(ids) and ids[-1] in self._tokenizer.stop_ids
        return Reply(self._tokenizer.decode(ids[:-1] if stopped else ids), len(ids), "stop" if stopped else "length")


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


def beside_peers(rows: Sequence[dict[str, Any]], workload: str, bounds: dict[str, float]) -> str:
    """A Markdown table of the fastest turn of every engine.

    The share is that of float32 products of all prompt and reply tokens in the time; a prompt prefix that conversations share
    counts every time, so it is given for tasks of one turn only.

    Args:
        rows: what was measured: ``workload``, ``who``, ``seconds``, ``tokens``, and of our engine ``prompt_tokens``.
        workload: the name of one.
        bounds: the limits of this machine.
    """
    fastest: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["workload"] == workload and row["seconds"] < fastest.get(row["who"], {"seconds": float("inf")})["seconds"]:
            fastest[row["who"]] = row
    ours = min((row for row in fastest.values() if "prompt_tokens" in row), key=lambda row: row["seconds"])
    lines = [
        f"| {workload} | seconds | reply tokens | our time / its time | share of float32 products |",
        "|---|---:|---:|---:|---:|",
    ]
    for who, row in sorted(fastest.items(), key=lambda one: one[1]["seconds"]):
        rate = (ours["prompt_tokens"] + row["tokens"]) / row["seconds"] / bounds["float32_tokens_per_s"]
        share = f"{rate:.0%}" if workload == "mbpp" else "–"
        lines.append(f"| {who} | {row['seconds']:.1f} | {row['tokens']} | {ours['seconds'] / row['seconds']:.2f} | {share} |")
    return "\n".join(lines)
