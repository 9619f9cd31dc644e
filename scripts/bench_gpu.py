"""Speed on one accelerator for a model of a given shape, with random weights: a child's weights, decoding, prefill and drafts.

    python scripts/bench_gpu.py [--config config.json] [--rank 256] [--slots 64 128] [--peer 64 128] [--json FILE]

Without --config the shape is that of Llama-3-8B. Times of products and of decoding do not depend on the values of weights. Peak
rates are measured in the same process: a copy, and a large matrix product. --peer measures only ``generate`` of transformers
on the same device with the same shape, prompts and numbers of tokens, in batches of these sizes. It needs torch. So does
``bench_operators.py``, with which the child's weights are measured (not with --no-children).
"""

from __future__ import annotations

import argparse
import importlib
import json
import operator
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from bench_generators import differing, timed_replies

from cycleqd_jax.engine import Attention, Engine
from cycleqd_jax.engine.layout import WINDOW
from cycleqd_jax.models import llama
from cycleqd_jax.types import Params

LLAMA3_8B = llama.LlamaConfig(
    128256, 4096, 14336, 32, 32, 8, 128, max_position_embeddings=8192, rope_theta=500000.0, dtype="bfloat16"
)
PROMPT, NEW = 512, 128


def report(found: dict[str, Any], name: str, row: dict[str, Any]) -> None:
    """Keeps and prints one row."""
    row = {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}
    found[name] = row
    print(f"{name}: {json.dumps(row)}", flush=True)


def seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds of a call after one that is not counted."""
    found = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        if i:
            found.append(time.perf_counter() - start)
    return statistics.median(found)


def peaks() -> dict[str, float]:
    """Bytes per second of a copy, read and written, and operations per second of a large product in bfloat16."""
    x = jnp.ones(1 << 29, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    a, b = (jax.random.normal(jax.random.key(i), (8192, 8192), jnp.bfloat16) for i in range(2))
    product = jax.jit(jnp.matmul)
    return {
        "bytes_per_s": 2 * x.nbytes / seconds(lambda: copy(x)),
        "flop_per_s": 2 * 8192**3 / seconds(lambda: product(a, b)),
    }


def children(operators: Any, config: llama.LlamaConfig, rank: int, peak: dict[str, float]) -> tuple[dict[str, Any], Params]:
    """Seconds from the parents' genomes to the child's weights, and those weights; ``operators`` is ``bench_operators``."""
    ours = operators.Ours(*operators.make_models(config), rank)
    limits = {"bytes_per_s": peak["bytes_per_s"], "bfloat16_flop_per_s": peak["flop_per_s"]}
    operate = seconds(ours.operate)
    row = ours.facts(operate, seconds(ours.express), limits)
    individual = ours.operate()
    row["into_new_arrays_s"] = seconds(lambda: ours.space.express(individual))
    return row, ours.express()


def decoding(engine: Engine, params: Params, prompts: Sequence[Sequence[int]], peak: dict[str, float]) -> dict[str, Any]:
    """Tokens per second with all slots busy, and of prompts alone."""
    config, slots = engine.config, engine.slots

    def timed(new: int) -> float:
        engine.load(params)  # clears the caches
        start = time.perf_counter()
        replies = engine.generate(prompts, [new] * slots)
        assert all(len(reply.ids) == new for reply in replies), "a reply ended at the stop token; its time says nothing"
        return time.perf_counter() - start

    start = time.perf_counter()
    timed(17)
    first = time.perf_counter() - start
    short, long, prefill = (min(timed(new) for _ in range(2)) for new in (17, 17 + NEW, 1))
    step = (long - short) / NEW
    untied = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size  # looked up, not read as a whole
    matrices = llama.num_params(config) - untied
    inner = matrices - config.vocab_size * config.hidden_size  # a prefill computes the logits of its last token only
    weights = matrices * jnp.dtype(config.dtype).itemsize
    # Each step reads all matrices, and the keys and values of the columns so far.
    columns = slots * (PROMPT + 17 + NEW / 2)
    cache = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * columns
    tokens = slots * PROMPT
    return {
        "load_ms": seconds(lambda: (engine.load(params), engine._runner.params)[1]) * 1e3,
        "first_call_s": first,
        "step_ms": step * 1e3,
        "decoded_tokens_per_s": slots / step,
        "share_of_bandwidth": (weights + cache) / peak["bytes_per_s"] / step,
        "prefill_tokens_per_s": tokens / prefill,
        "share_of_products": 2 * inner * tokens / peak["flop_per_s"] / prefill,
        "whole_s": long,
        "whole_tokens_per_s": slots * (17 + NEW) / long,
    }


def drafting(engine: Engine, params: Params, prompts: Sequence[Sequence[int]], share: float) -> dict[str, Any]:
    """Seconds of the same replies without drafts, and with drafts of which a share of the tokens differs."""
    chosen = random.Random(0)
    plain = engine.generate(prompts, [NEW] * len(prompts))

    def play(drafts: Sequence[Sequence[Sequence[int]]]) -> tuple[float, int, int]:
        took, replies = timed_replies(engine, params, prompts, NEW, drafts)
        return took, engine.statistics.steps, sum(map(operator.eq, replies, plain))

    drafts = [[differing(engine, reply.ids, share, chosen)] for reply in plain]
    none: list[list[list[int]]] = [[] for _ in prompts]
    without, with_drafts = (min(play(given) for _ in range(3)) for given in (none, drafts))
    return {
        "differ": share,
        "without_s": without[0],
        "without_steps": without[1],
        "with_s": with_drafts[0],
        "with_steps": with_drafts[1],
        "times_faster": without[0] / with_drafts[0],
        "equal_replies": with_drafts[2],
        "replies": len(prompts),
    }


def peer(config: llama.LlamaConfig, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """``generate`` of transformers, with random weights of the same shape."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    # The engine's memory is JAX's: this process must not have used it.
    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context_length,
        tie_word_embeddings=config.tie_word_embeddings,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, config.dtype)).eval()
    tokens = torch.tensor(prompts, device=device)

    def timed(new: int) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=0,
            )
        assert out.shape[1] == tokens.shape[1] + new
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed(4)
    short, long = timed(17), timed(17 + NEW)
    step = (long - short) / NEW
    slots = len(prompts)
    return {
        "step_ms": step * 1e3,
        "decoded_tokens_per_s": slots / step,
        "whole_s": long,
        "whole_tokens_per_s": slots * (17 + NEW) / long,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="config.json of another model")
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--max-len", type=int, default=1024, help="places of the cache for each slot")
    parser.add_argument("--drafts", type=float, nargs="*", default=[0.0, 0.05], help="shares of draft tokens that differ")
    parser.add_argument("--peer", type=int, nargs="+", help="measure only transformers, in batches of these sizes")
    parser.add_argument("--attention", choices=("cudnn", "xla"), help="implementation of attention (the fastest)")
    parser.add_argument("--no-children", action="store_true", help="do not measure the child's weights")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = LLAMA3_8B
    if arguments.config:
        config = llama.LlamaConfig.from_hf(json.loads(arguments.config.read_text("utf-8")), str(arguments.config))
    longest = PROMPT + 17 + NEW
    if arguments.max_len < longest:
        parser.error(f"expected --max-len of at least {longest}, got {arguments.max_len}; increase it")
    if (least := min([*arguments.slots, *(arguments.peer or [1])])) < 1:
        parser.error(f"expected numbers of at least 1 with --slots and --peer, got {least}; increase it")
    operators: Any = None
    if arguments.peer is None and not arguments.no_children:
        operators = importlib.import_module("bench_operators")
    words = random.Random(0)

    def prompts(count: int) -> list[list[int]]:
        return [[words.randrange(10, config.vocab_size - 1) for _ in range(PROMPT)] for _ in range(count)]

    found: dict[str, Any] = {}
    try:
        if arguments.peer is not None:
            for batch in arguments.peer:
                report(found, f"transformers, batch of {batch}", peer(config, prompts(batch)))
            return
        measure(found, config, operators, arguments, prompts)
    finally:
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1))


def measure(
    found: dict[str, Any],
    config: llama.LlamaConfig,
    operators: Any,
    arguments: argparse.Namespace,
    prompts: Callable[[int], list[list[int]]],
) -> None:
    """Measures everything but the peer."""
    device = jax.devices()[0]
    peak = peaks()
    report(
        found, "device", {"name": device.device_kind, "jax": jax.__version__, "parameters": llama.num_params(config), **peak}
    )
    if operators is None:
        params = llama.init_params(config, jax.random.key(0))
    else:
        row, params = children(operators, config, arguments.rank, peak)
        report(found, f"child, rank {arguments.rank}", row)
    for slots in arguments.slots:
        engine = Engine(
            config,
            slots=slots,
            max_len=arguments.max_len,
            stop_ids=(config.vocab_size - 1,),  # no prompt has it
            pad_id=0,
            window=WINDOW,
            attention=Attention(arguments.attention) if arguments.attention else None,
        )
        some = prompts(slots)
        report(found, f"{slots} slots", decoding(engine, params, some, peak))
        for share in arguments.drafts:
            report(found, f"{slots} slots, drafts of which {share:.0%} differ", drafting(engine, params, some, share))
        del engine
    usage = device.memory_stats() or {}
    report(found, "memory", {"peak_bytes": usage.get("peak_bytes_in_use")})


if __name__ == "__main__":
    main()
