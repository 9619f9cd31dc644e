"""Speed of the engine on real workloads, against transformers' ``generate`` and against physical limits.

    python scripts/bench_engine.py MODEL --data DIR [--dtypes bfloat16 float32] [--transformers bfloat16:32 …] [--json FILE]
    bash scripts/peers.sh FOLDER
    python scripts/bench_engine.py MODEL --data DIR --peer openvino:FOLDER/openvino/bin/python [--rounds 2]

MODEL is a Hugging Face folder (``cycleqd fetch smollm2 DIR``); DIR has the benchmarks' files (``mbpp/mbpp_full.visible.jsonl``,
``dbbench/dbbench_cycleqd.visible.jsonl``, ``os_interaction/os_cycleqd.visible.jsonl``). Everything runs in one process on one
machine. The engine plays every workload twice, and the second time is reported: the first one compiles the programs. For
transformers the best of the given dtypes and batch sizes counts; its prompts are sorted by length, and it needs torch. Every
row says how many conversations are, word for word, those of the first row of its workload.

``--peer`` compares with other engines, in float32 and on the same token ids: OpenVINO GenAI, vLLM for CPUs and CTranslate2,
each in an environment of its own. They and our engine take turns, and the fastest of ``--rounds`` turns counts.
``openvino:u8:PYTHON`` has keys and values in 8 bits.

Further measurements: ``--check`` computes the logits of all replies again, conversation by conversation, without a cache, and
lists differences from greedy decoding (``--slots`` and ``--shuffle`` for other slots and another order). ``--rate`` decodes
with all slots busy, against the limits of matrix products and of reading weights and cache. ``--population N`` decodes low-rank
individuals over one base, against their merged weights one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from bench_generators import Peer, Static, Transformers, beside_peers, differing, timed_replies

from cycleqd_jax.engine import ChatGenerator, Engine
from cycleqd_jax.engine.layout import WINDOW
from cycleqd_jax.engine.prefix import common_length
from cycleqd_jax.evaluation import rollout
from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import load_tokenizer
from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.tasks import RecordTask, TaskOptions, make_task
from cycleqd_jax.types import MixedMatrix, Outcome, Params

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
    "bfloat16 cache": {"kv_cache_dtype": "bfloat16"},
    "int8 cache": {"kv_cache_dtype": "int8"},
}


class Recorder(Engine):
    """An engine that records its requests and replies."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.requests: dict[int, tuple[tuple[int, ...], int]] = {}
        self.replies: dict[int, tuple[int, ...]] = {}

    def submit(self, prompt: Sequence[int], max_new_tokens: int, **options: Any) -> int:
        """See :meth:`Engine.submit`."""
        number = super().submit(prompt, max_new_tokens, **options)
        self.requests[number] = tuple(prompt), max(min(max_new_tokens, self.max_len - len(prompt)), 0)
        return number

    def advance(self) -> list[tuple[int, Any]]:
        """See :meth:`Engine.advance`."""
        done = super().advance()
        self.replies |= {number: generation.ids for number, generation in done}
        return done

    def clear(self) -> None:
        """Forgets the records, and sets the counters to zero."""
        self.requests, self.replies = {}, {}
        self.statistics.clear()

    def check(self, params: Params) -> dict[str, Any]:
        """Compares the replies with greedy decoding of each conversation alone, without a cache.

        Returns:
            The number of tokens; every token that is not the argmax, with its request, its place and the distance of its logit
            from the largest; and the requests whose reply does not end at its first stop token or its limit.
        """

        @jax.jit
        def compare(params: Params, tokens: Any, following: Any) -> Any:
            logits = llama.forward(params, self.config, tokens[None])[0]
            gaps = logits.max(-1) - jnp.take_along_axis(logits, following[:, None], -1)[:, 0]
            return gaps, logits.argmax(-1) != following

        others, ends = [], []
        for number, ids in self.replies.items():
            prompt, limit = self.requests[number]
            stops = [i for i, token in enumerate(ids) if token in self.stop_ids]
            if len(ids) > limit or (stops or [limit - 1])[0] != len(ids) - 1:
                ends.append(number)
            if not ids:
                continue
            tokens = [*prompt, *ids]
            size = -(-len(tokens) // 256) * 256  # few shapes; padding is masked
            padded = jnp.asarray([*tokens, *[0] * (size - len(tokens))])
            gaps, other = (jax.device_get(x) for x in compare(params, padded, jnp.roll(padded, -1)))
            places = range(len(prompt) - 1, len(tokens) - 1)
            others += [{"request": number, "token": i, "gap": float(gaps[at])} for i, at in enumerate(places) if other[at]]
        return {"tokens": sum(map(len, self.replies.values())), "not the argmax": others, "ends elsewhere": ends}


def limits(config: llama.LlamaConfig) -> dict[str, float]:
    """This machine's present rates of large matrix products, in GFLOP/s, and of reading memory, in GB/s."""
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

    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest", preferred_element_type=jnp.float32))
    matrices = llama.num_params(config) - config.vocab_size * config.hidden_size * (not config.tie_word_embeddings)
    found = {"read_gbs": x.nbytes / best(jax.jit(jnp.sum), x) / 1e9}
    for dtype in ("float32", "bfloat16"):
        gflops = 2 * 2048**3 / best(product, a.astype(dtype)) / 1e9
        found |= {f"{dtype}_gflops": gflops, f"{dtype}_tokens_per_s": gflops * 1e9 / (2 * matrices)}
    return found


def rate(
    config: llama.LlamaConfig, params: Params, prompts: Sequence[Sequence[int]], slots: int, read_gbs: float
) -> dict[str, float]:
    """Tokens per second with all slots busy, from the last 64 of 81 tokens, and the limit of reading matrices and cache."""
    never = config.vocab_size - 1
    engine = Engine(config, slots=slots, max_len=1024, stop_ids=(never,), pad_id=0)
    engine.load(params)
    seconds = []
    for limit in (80, 17, 81):
        start = time.perf_counter()
        generations = engine.generate([prompts[i % len(prompts)] for i in range(slots)], [limit] * slots)
        seconds.append(time.perf_counter() - start)
        assert all(len(generation.ids) == limit for generation in generations)
    weights = sum(
        leaf.nbytes for leaf in jax.tree.leaves(params)
    )  # a tied embedding is read as the head; another one is not read as a whole
    weights -= 0 if config.tie_word_embeddings else params["embed_tokens"].nbytes
    common = min(common_length(prompts[0], prompt) for prompt in prompts)
    columns = sum(len(prompts[i % len(prompts)]) + 49 - common for i in range(slots)) + common
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * columns
    read = weights + cache * jnp.dtype(config.dtype).itemsize
    return {"tokens_per_s": slots * 64 / (seconds[2] - seconds[1]), "read_tokens_per_s": slots * read_gbs * 1e9 / read}


def population(
    config: llama.LlamaConfig, params: Params, prompts: Sequence[Sequence[int]], count: int, rank: int = 16
) -> dict[str, Any]:
    """Seconds of low-rank individuals over one base, and of their merged weights one by one, with the same prompts."""
    keys_of = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(params))))

    def mixed(path: Any, w: Any) -> Any:
        keys = jax.random.split(next(keys_of), 3)
        if path[0].key != "layers" or w.ndim < 3:
            return w
        u = jax.random.normal(keys[0], (*w.shape[:2], rank), w.dtype) * w.shape[1] ** -0.5
        vt = jax.random.normal(keys[1], (w.shape[0], rank, w.shape[2]), w.dtype) * rank**-0.5
        coefficients = 0.05 * jax.random.normal(keys[2], (w.shape[0], count, rank), w.dtype)
        return MixedMatrix(w, u, vt, coefficients)

    @jax.jit
    def merged(params: Any, i: Any) -> Any:
        def leaf(leaf: Any) -> Any:
            if not isinstance(leaf, MixedMatrix):
                return leaf
            change = jnp.matmul(leaf.u * leaf.coefficients[:, i, None], leaf.vt, precision="highest")
            return (leaf.w + change).astype(leaf.w.dtype)

        return jax.tree.map(leaf, params, is_leaf=lambda x: isinstance(x, MixedMatrix))

    together: Any = jax.tree_util.tree_map_with_path(mixed, params)
    stops, replies, seconds = (2,), {}, {}
    for name in ("over one base", "one by one") * 2:  # the first time compiles
        engine = Engine(config, slots=count * len(prompts), max_len=1024, stop_ids=stops, pad_id=0)
        start = time.perf_counter()
        replies[name] = []
        if name == "over one base":
            engine.load(together)
            numbers = [engine.submit(prompt, 64, individual=i) for i in range(count) for prompt in prompts]
            done: dict[int, Any] = {}
            while engine.busy:
                done |= dict(engine.advance())
            replies[name] = [done[number].ids for number in numbers]
        else:
            for i in range(count):
                engine.load(merged(together, i))
                replies[name] += [generation.ids for generation in engine.generate(prompts, [64] * len(prompts))]
        seconds[name] = time.perf_counter() - start
    different = [i for i, (a, b) in enumerate(zip(replies["over one base"], replies["one by one"], strict=True)) if a != b]
    return {"seconds": seconds, "replies": len(replies["one by one"]), "different": different}


def with_drafts(
    config: llama.LlamaConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    slots: int,
    stop_ids: Sequence[int],
    new: int,
    shares: Sequence[float],
) -> list[dict[str, Any]]:
    """Model steps and seconds of the same replies without drafts and with drafts of which a share of the tokens differs.

    Raises:
        AssertionError: replies differ.
    """
    longest = max(map(len, prompts)) + new
    engine = Engine(config, slots=slots, max_len=longest, stop_ids=stop_ids, pad_id=0, window=WINDOW)
    random_of = random.Random(0)
    engine.load(params)
    plain = engine.generate(prompts, [new] * len(prompts))
    rows = []
    for share in (None, *shares):
        changed = [differing(engine, reply.ids, share or 0.0, random_of) for reply in plain]
        drafts = [[] if share is None else [ids] for ids in changed]
        seconds = []
        for _ in range(3):  # the first time compiles
            took, found = timed_replies(engine, params, prompts, new, drafts)
            seconds.append(took)
            assert found == plain
        counts = engine.statistics
        row = {"differ": share, "steps": counts.steps, "seconds": min(seconds[1:]), "tokens": counts.decoded}
        row |= {"tokens_per_window": (counts.windows + counts.accepted) / counts.windows} if counts.windows else {}
        rows.append(row)
    return rows


def first(task: RecordTask[Any], count: dict[str, int]) -> list[Any]:
    """The records of a task that are played."""
    return [record for split in ("train", "test") for record in task.records[split]][: count[task.name]]


def play(
    tasks: Sequence[RecordTask[Any]], count: dict[str, int], generator: Any, overlap: bool = True, shuffle: int | None = None
) -> tuple[float, list[Outcome]]:
    """Seconds, and outcomes, of the first episodes of the tasks, played together."""
    chosen = [(task, record) for task in tasks for record in first(task, count)]
    if shuffle is not None:
        random.Random(shuffle).shuffle(chosen)
    episodes = [task.environment(record) for task, record in chosen]
    budget = [task.max_new_tokens for task, _ in chosen]
    start = time.perf_counter()
    outcomes = rollout(episodes, generator, budget, workers=4, overlap=overlap)
    return time.perf_counter() - start, outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--max-len", type=int, default=2048)
    parser.add_argument("--dtypes", nargs="*", default=["float32"], help="of the engine; ablations use the first")
    parser.add_argument("--workloads", nargs="*", default=["mbpp", "dbbench", "os_interaction", "together"])
    parser.add_argument("--ablations", nargs="*", default=["whole"], help=f"of: {', '.join(ABLATIONS)}; or 'all'")
    parser.add_argument("--transformers", nargs="*", default=[], metavar="DTYPE:BATCH", help="such as bfloat16:32")
    parser.add_argument(
        "--peer", nargs="*", default=[], metavar="NAME:PYTHON", help="such as openvino:FOLDER/openvino/bin/python"
    )
    parser.add_argument("--rounds", type=int, default=2, help="turns of every engine, where there are peers (2)")
    parser.add_argument("--against", nargs="*", default=["mbpp", "os_interaction"], help="workloads for transformers and peers")
    parser.add_argument("--check", action="store_true", help="compare float32 replies with uncached logits")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="play the episodes in another order")
    parser.add_argument("--rate", action="store_true", help="decode with all slots busy")
    parser.add_argument("--population", type=int, default=0, metavar="N", help="decode N low-rank individuals")
    parser.add_argument(
        "--drafts", type=float, nargs="*", metavar="SHARE", help="verify drafts of which this share of the tokens differs"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    config, params = hf.load(arguments.model)
    models = {
        dtype: (config.replace(dtype=dtype), jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), params))
        for dtype in arguments.dtypes
    }
    tokenizer = load_tokenizer(arguments.model)
    sizes = {"mbpp": 128, "dbbench": 60, "os_interaction": 60}
    new = {"mbpp": 256, "dbbench": 128, "os_interaction": 128}
    bounds = limits(config)
    print({name: round(value, 1) for name, value in bounds.items()}, flush=True)
    results: dict[str, Any] = {"limits": bounds, "rows": []}
    conversations: dict[str, list[Any]] = {}  # of the first that played each workload
    with Sandbox(workers=4) as sandbox:
        tasks = {
            name: make_task(name, TaskOptions(sandbox, name, new[name], data=arguments.data / file, memo=False))
            for name, file in FILES.items()
        }
        chosen: dict[str, list[Any]] = {name: [task] for name, task in tasks.items()} | {"together": list(tasks.values())}

        def row(workload: str, name: str, generator: Any, overlap: bool = True) -> dict[str, Any]:
            seconds, outcomes = play(chosen[workload], sizes, generator, overlap, arguments.shuffle)
            tokens = sum(outcome.tokens for outcome in outcomes)
            score = sum(outcome.score.value for outcome in outcomes) / len(outcomes)
            first = conversations.setdefault(workload, [outcome.messages for outcome in outcomes])
            same = sum(outcome.messages == messages for outcome, messages in zip(outcomes, first, strict=True))
            print(
                f"{workload:16} {name:32} {seconds:8.1f} s {tokens:7d} tokens {tokens / seconds:7.1f} tokens/s, "
                f"score {score:.3f}, {same} of {len(first)} conversations as the first",
                flush=True,
            )
            found = {"workload": workload, "who": name, "seconds": seconds, "tokens": tokens, "score": score, "same": same}
            results["rows"].append(found)
            return found

        def measure(workload: str, dtype: str, name: str) -> None:
            options = dict(ABLATIONS[name])
            overlap, static = options.pop("overlap", True), options.pop("static", False)
            config, params = models[dtype]
            engine = Recorder(
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
            play(chosen[workload], sizes, generator, overlap, arguments.shuffle)
            engine.load(params)
            engine.clear()
            found = row(workload, f"{name}, {dtype}", generator, overlap)
            found |= {
                "statistics": vars(engine.statistics),
                "prompt_tokens": sum(len(ids) for ids, _ in engine.requests.values()),
            }
            if arguments.check and dtype == "float32" and name == "whole":
                found["check"] = engine.check(params)
                print("  against greedy decoding without a cache:", found["check"], flush=True)

        names = list(ABLATIONS) if arguments.ablations == ["all"] else arguments.ablations
        for workload in arguments.workloads:
            for i, dtype in enumerate(arguments.dtypes):
                for name in names if i == 0 else ["whole"]:
                    measure(workload, dtype, name)
            for choice in arguments.transformers if workload in arguments.against else ():
                dtype, batch = choice.split(":")
                row(workload, f"transformers {choice}", Transformers(arguments.model, tokenizer, dtype, int(batch)))
            if arguments.peer and workload in arguments.against:
                for turn in range(arguments.rounds):
                    if turn:
                        measure(workload, arguments.dtypes[0], "whole")
                    for choice in arguments.peer:
                        with contextlib.closing(Peer(choice, arguments.model, tokenizer, arguments.slots)) as peer:
                            row(workload, peer.name, peer)
                print(beside_peers(results["rows"], workload, bounds), flush=True)
        prompts = [tokenizer.encode(tasks["mbpp"].environment(r).opening()) for r in tasks["mbpp"].records["train"][:128]]
    if arguments.rate:
        read_gbs = bounds["read_gbs"]
        results["rate"] = {dtype: rate(*models[dtype], prompts, arguments.slots, read_gbs) for dtype in models}
        for dtype, found in results["rate"].items():
            tokens = found["tokens_per_s"]
            shares = [f"{tokens / bounds[f'{d}_tokens_per_s']:.0%} of {d} products" for d in ("float32", "bfloat16")]
            shares.append(f"{tokens / found['read_tokens_per_s']:.0%} of reading weights and cache")
            print(f"{arguments.slots} slots busy, {dtype}: {tokens:.0f} tokens/s, {', '.join(shares)}", flush=True)
    if arguments.population:
        found = population(*models[arguments.dtypes[-1]], prompts[:16], arguments.population)
        results["population"] = found
        print(f"{arguments.population} individuals: {found}", flush=True)
    if arguments.drafts is not None:
        for dtype, model in models.items():
            rows = with_drafts(*model, prompts, arguments.slots, tokenizer.stop_ids, new["mbpp"], arguments.drafts)
            results.setdefault("drafts", {})[dtype] = rows
            for row in rows:
                name = "no drafts" if row["differ"] is None else f"{row['differ']:.0%} of the draft tokens differ"
                window = f", {row['tokens_per_window']:.2f} tokens per window" if "tokens_per_window" in row else ""
                print(
                    f"{name}, {dtype}: {row['steps']} steps, {row['seconds']:.2f} s, {row['tokens']} tokens{window}", flush=True
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
