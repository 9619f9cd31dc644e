"""How fast the engine is on real workloads, against transformers' ``generate`` and against what bounds it.

    python scripts/bench_engine.py MODEL --data DIR [--json FILE]

MODEL is a Hugging Face folder (``cycleqd fetch smollm2 DIR``); DIR has the benchmarks' files (``mbpp/mbpp_full.visible.jsonl``,
``dbbench/dbbench_cycleqd.visible.jsonl``, ``os_interaction/os_cycleqd.visible.jsonl``). Everything runs in one process on one
machine; programs are compiled before anything is timed. transformers is given float32, bfloat16 and several batch sizes, its
prompts sorted by length, and the best of them counts; it needs torch.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cycleqd_jax.engine import ChatGenerator, Engine
from cycleqd_jax.models import chat, hf, llama
from cycleqd_jax.models.checkpoint import load_tokenizer
from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.tasks import TASKS, RecordTask, rollout
from cycleqd_jax.types import Message, Outcome, Reply

FILES = {
    "mbpp": "mbpp/mbpp_full.visible.jsonl",
    "dbbench": "dbbench/dbbench_cycleqd.visible.jsonl",
    "os_interaction": "os_interaction/os_cycleqd.visible.jsonl",
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no shared prefixes": {"share_prefixes": False},
    "no conversation cache": {"keep_conversations": False},
    "no overlap": {"overlap": False},
    "static batches": {"static": True},
}


class Transformers:
    """A generator that asks ``generate`` for all replies it was asked for, in batches sorted by length."""

    def __init__(self, folder: str, tokenizer: chat.ChatTokenizer, dtype: str, batch: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self._tokenizer = tokenizer
        self._batch = batch
        self._asked: list[tuple[Hashable, list[int], int]] = []

    def submit(self, conversation: Hashable, messages: Sequence[Message], max_new_tokens: int) -> None:
        """See :class:`cycleqd_jax.types.Generator`."""
        self._asked.append((conversation, self._tokenizer.encode(messages), max_new_tokens))

    def advance(self) -> list[tuple[Hashable, Reply]]:
        """Replies that are complete."""
        asked, self._asked = sorted(self._asked, key=lambda one: (one[2], len(one[1]))), []
        return [reply for i in range(0, len(asked), self._batch) for reply in self._generate(asked[i : i + self._batch])]

    def release(self, conversation: Hashable) -> None:
        """Nothing is kept."""

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
    """A generator that takes in nothing before all it was asked for is answered, a batch of the engine's slots at a time."""

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


def limits(config: llama.LlamaConfig) -> dict[str, float]:
    """The rate of a large product in float32, in GFLOP/s, and of reading memory, in GB/s, on this machine now."""
    a = jnp.ones((2048, 2048))
    x = jnp.ones(2**27)

    def best(f: Any, *arguments: Any) -> float:
        jax.block_until_ready(f(*arguments))
        seconds = []
        for _ in range(8):
            start = time.perf_counter()
            jax.block_until_ready(f(*arguments))
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    matrices = (
        llama.num_params(config)
        if config.tie_word_embeddings
        else llama.num_params(config) - config.vocab_size * config.hidden_size
    )
    gflops = 2 * 2048**3 / best(product, a) / 1e9
    return {
        "gemm_gflops": gflops,
        "read_gbs": x.nbytes / best(jax.jit(jnp.sum), x) / 1e9,
        "gemm_bound_tokens_per_s": gflops * 1e9 / (2 * matrices),
    }


def play(
    tasks: Sequence[RecordTask[Any]], count: dict[str, int], generator: Any, overlap: bool = True
) -> tuple[float, list[Outcome]]:
    """Seconds, and outcomes, of the first episodes of the tasks, played together."""
    episodes, budget = [], []
    for task in tasks:
        chosen = [task.environment(record) for split in ("train", "test") for record in task.records[split]][: count[task.name]]
        episodes += chosen
        budget += [task.max_new_tokens] * len(chosen)
    start = time.perf_counter()
    outcomes = rollout(episodes, generator, budget, workers=4, overlap=overlap)
    return time.perf_counter() - start, outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--max-len", type=int, default=2048)
    parser.add_argument("--workloads", nargs="*", default=["mbpp", "dbbench", "os_interaction", "together"])
    parser.add_argument("--ablations", nargs="*", default=["whole"], help=f"of: {', '.join(ABLATIONS)}; or 'all'")
    parser.add_argument("--transformers", nargs="*", default=[], metavar="DTYPE:BATCH", help="such as bfloat16:32")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    config, params = hf.load(arguments.model)
    tokenizer = load_tokenizer(arguments.model)
    sizes = {"mbpp": 128, "dbbench": 60, "os_interaction": 60}
    new = {"mbpp": 256, "dbbench": 128, "os_interaction": 128}
    rows: list[dict[str, Any]] = []
    bounds = limits(config)
    print({name: round(value, 1) for name, value in bounds.items()}, flush=True)
    with Sandbox(workers=4) as sandbox:
        tasks = {
            name: TASKS[name](sandbox=sandbox, data=arguments.data / file, max_new_tokens=new[name], memo=False)
            for name, file in FILES.items()
        }

        def row(workload: str, who: str, generator: Any, overlap: bool = True) -> None:
            seconds, outcomes = play(chosen[workload], sizes, generator, overlap)
            tokens = sum(outcome.tokens for outcome in outcomes)
            score = sum(outcome.score.value for outcome in outcomes) / len(outcomes)
            rows.append({"workload": workload, "who": who, "seconds": seconds, "tokens": tokens, "score": score})
            print(f"{workload:16} {who:28} {seconds:8.1f} s {tokens:7d} tokens {tokens / seconds:7.1f} tokens/s", flush=True)

        chosen: dict[str, list[Any]] = {name: [task] for name, task in tasks.items()} | {"together": list(tasks.values())}
        names = list(ABLATIONS) if arguments.ablations == ["all"] else arguments.ablations
        for workload in arguments.workloads:
            for name in names:
                options = dict(ABLATIONS[name])
                overlap, static = options.pop("overlap", True), options.pop("static", False)
                engine = Engine(
                    config,
                    slots=arguments.slots,
                    max_len=arguments.max_len,
                    stop_ids=tokenizer.stop_ids,
                    pad_id=tokenizer.pad_id,
                    **options,
                )
                generator: Any = ChatGenerator(engine, tokenizer)
                generator = Static(generator) if static else generator
                engine.load(params)
                engine.warm_up()
                row(workload, name, generator, overlap)
                rows[-1] |= {"statistics": vars(engine.statistics)}
            for choice in arguments.transformers:
                dtype, batch = choice.split(":")
                row(workload, f"transformers {choice}", Transformers(arguments.model, tokenizer, dtype, int(batch)))
    if arguments.json:
        arguments.json.write_text(json.dumps({"limits": bounds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
