"""One child, from parents to weights: ours against the reference's arithmetic, and against the limits of the machine.

    python scripts/bench_operators.py [--rank 64] [--dtype float32] [--repeats 5] [--mergekit PYTHON] [--json FILE]

Weights are random, of the shape of SmolLM2-135M (135 M parameters, 30 layers, tied embeddings), or of any config.json
(--config); three experts. Everything runs in this one process, so that ratios mean something.

The reference's arithmetic is its evolution step in torch: task vectors of two parents, their weighted sum, U diag(s w) Vᵀ of
the active expert matrix by matrix (everything with "norm" in its name skipped), and the sum with the base. Its decomposition is
made before and not timed, as ours. It reads both parents and writes the child, which are figures of their own.
Needs torch, which the package itself does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch

from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.genome.basis import Basis
from cycleqd_jax.models import hf, llama
from cycleqd_jax.operators import crossover_weights, is_matrix
from cycleqd_jax.types import tree_paths

SMOLLM2 = llama.LlamaConfig(
    49152, 576, 1536, 30, 9, 3, 64, max_position_embeddings=8192, rope_theta=100000.0, tie_word_embeddings=True
)
EXPERTS = 3


def best(function: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of several calls, after one that does not count."""
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function())
        if i:
            times.append(time.perf_counter() - start)
    return min(times)


def limits(repeats: int) -> dict[str, float]:
    """What this machine can do at most: bytes per second of a copy, float32 operations per second of a large product."""
    x = jnp.ones(1 << 27, jnp.float32)
    copy = jax.jit(lambda x, out: x + 1, donate_argnums=1, keep_unused=True)
    held = [jnp.zeros_like(x)]

    def step() -> Any:
        held[0] = copy(x, held[0])
        return held[0]

    bandwidth = 2 * x.nbytes / best(step, repeats)
    a = jnp.ones((4096, 4096), jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    return {"bytes_per_s": bandwidth, "flop_per_s": 2 * 4096**3 / best(lambda: product(a), repeats)}


def make_models(config: llama.LlamaConfig) -> tuple[Any, list[Any]]:
    """A base and experts near it."""
    base = llama.init_params(config, jax.random.key(0))

    @jax.jit
    def near(base: Any, key: Any) -> Any:
        leaves, tree = jax.tree.flatten(base)
        keys = jax.random.split(key, len(leaves))
        moved = [
            x + 0.002 * jax.random.normal(k, x.shape, jnp.float32).astype(x.dtype) for x, k in zip(leaves, keys, strict=True)
        ]
        return tree.unflatten(moved)

    return base, [near(base, jax.random.key(k + 1)) for k in range(EXPERTS)]


def random_bases(base: Any, rank: int | None) -> dict[str, Basis]:
    """Bases of the right shape: the time of a product does not depend on the numbers, and decomposing is not what is timed."""
    found = {}
    for i, (path, leaf) in enumerate(tree_paths(base)):
        if is_matrix(path, leaf):
            *stack, m, n = leaf.shape
            r = min(m, n, rank or m)
            u, v, s = jax.random.split(jax.random.key(i), 3)
            found[path] = Basis(
                jax.random.normal(u, (*stack, m, EXPERTS, r)) / m**0.5,
                jax.random.uniform(s, (EXPERTS, *stack, r)),
                jax.random.normal(v, (*stack, EXPERTS, r, n)) / n**0.5,
            )
    return found


def ours(base: Any, experts: list[Any], rank: int | None, peak: dict[str, float], repeats: int) -> dict[str, Any]:
    """Crossover, mutation and expression of one child, and how near the latter is to what bounds it."""
    space = ExpertSpace.from_experts(base, experts, rank=1, method="randomized").replace(bases=random_bases(base, rank))
    genome = space.expert(0)
    child = jax.jit(lambda key, a, b: space.mutate(key, space.crossover(a, b, crossover_weights(key)), 1))
    operators = best(lambda: child(jax.random.key(0), genome, space.expert(1)), repeats)
    individual = child(jax.random.key(0), genome, space.expert(1))
    held = [space.express(individual)]

    def express() -> Any:
        held[0] = space.express(individual, held[0])
        return held[0]

    seconds = best(express, repeats)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    factors = sum(x.nbytes for basis in space.bases.values() for x in basis)
    moved = weights * (EXPERTS + 2) + factors
    operations = sum(
        2 * leaf.size * EXPERTS * space.bases[path].s.shape[-1] for path, leaf in tree_paths(base) if path in space.bases
    )
    bounds = {"bandwidth": moved / peak["bytes_per_s"], "matrix products": operations / peak["flop_per_s"]}
    binds = max(bounds, key=lambda name: bounds[name])
    return {
        "crossover_and_mutation_s": operators,
        "express_s": seconds,
        "total_s": operators + seconds,
        "genome_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(genome)),
        "bytes_moved": moved,
        "flop": operations,
        "bound": binds,
        "bound_s": bounds[binds],
        "fraction_of_bound": bounds[binds] / seconds,
    }


def reference(folders: list[Path], dtype: torch.dtype, work: Path, rank: int | None, repeats: int) -> dict[str, float]:
    """The reference's step in torch."""
    from safetensors.torch import load_file, save_file

    def read(folder: Path) -> dict[str, torch.Tensor]:
        return {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}

    read_s = best(lambda: [read(folder) for folder in folders[1:3]], repeats)
    base, first, second = (read(folder) for folder in folders[:3])
    factors = {}
    for name, tensor in base.items():
        if tensor.ndim == 2 and "norm" not in name:
            m, n = tensor.shape
            r = min(m, n, rank or m)
            factors[name] = (
                torch.randn(m, r).to(dtype) / m**0.5,
                torch.rand(r).to(dtype),
                torch.randn(r, n).to(dtype) / n**0.5,
            )
    out: dict[str, torch.Tensor] = {}

    def step() -> None:
        w1, w2 = (1.0 + 0.03 * torch.randn(2)).tolist()
        tau1 = {name: first[name] - base[name] for name in base}
        tau2 = {name: second[name] - base[name] for name in base}
        tau = {name: w1 / (w1 + w2) * tau1[name] + w2 / (w1 + w2) * tau2[name] for name in base}
        for name, (u, s, vt) in factors.items():
            tau[name] = tau[name] + u @ torch.diag(s * 0.3 * torch.rand(len(s), dtype=dtype)) @ vt
        out.update({name: base[name] + tau[name] for name in base})

    step_s = best(step, repeats)
    write_s = best(lambda: save_file(out, work / "child.safetensors"), repeats)
    return {"read_s": read_s, "arithmetic_s": step_s, "write_s": write_s, "total_s": read_s + step_s + write_s}


def mergekit(python: str, folders: list[Path], work: Path) -> float:
    """Seconds of mergekit's linear merge of the three experts, with reading and writing, without starting Python."""
    models = "\n".join(f"  - model: {folder}\n    parameters: {{weight: 0.3333}}" for folder in folders[1:])
    (work / "merge.yaml").write_text(f"merge_method: linear\ndtype: bfloat16\nmodels:\n{models}\n", encoding="utf-8")
    code = (
        "import time, yaml\nfrom mergekit.config import MergeConfiguration\nfrom mergekit.merge import MergeOptions, "
        f"run_merge\nconfig = MergeConfiguration.model_validate(yaml.safe_load(open({str(work / 'merge.yaml')!r})))\n"
        f"start = time.time()\nrun_merge(config, {str(work / 'merged')!r}, MergeOptions(copy_tokenizer=False, quiet=True))\n"
        "print('seconds', time.time() - start)"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split("seconds")[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="config.json of another model")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of our weights")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-full-rank", action="store_true")
    parser.add_argument("--mergekit", metavar="PYTHON", help="an interpreter that has mergekit")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    config = SMOLLM2
    if args.config:
        config = llama.LlamaConfig.from_hf(json.loads(args.config.read_text("utf-8")), str(args.config))
    config = config.replace(dtype=args.dtype)
    peak = limits(args.repeats)
    print(f"limits: copy {peak['bytes_per_s'] / 1e9:.1f} GB/s, float32 products {peak['flop_per_s'] / 1e9:.0f} GFLOP/s")
    base, experts = make_models(config)
    result: dict[str, Any] = {"parameters": llama.num_params(config), "dtype": args.dtype, "limits": peak}
    dense = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    for name, rank in (("rank", args.rank), *([] if args.no_full_rank else [("full", None)])):
        row = result[f"ours_{name}"] = ours(base, experts, rank, peak, args.repeats)
        print(
            f"ours, {f'rank {rank}' if rank else 'full rank'}: crossover and mutation "
            f"{row['crossover_and_mutation_s'] * 1e3:.1f} ms, "
            f"express {row['express_s'] * 1e3:.0f} ms ({row['fraction_of_bound']:.0%} of the limit, which is {row['bound']}: "
            f"{row['bound_s'] * 1e3:.0f} ms); genome {row['genome_bytes'] / 1e3:.0f} kB, {dense / row['genome_bytes']:.0f} "
            "times smaller"
        )
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folders = [work / name for name in ("base", "first", "second", "third")]
        for folder, params in zip(folders, (base, *experts), strict=True):
            hf.save(folder, config, params, dtype="bfloat16", max_shard_bytes=10**12)
        for name in ("bfloat16", "float32"):
            for kind, rank in (("rank", args.rank), *([] if args.no_full_rank else [("full", None)])):
                row = result[f"reference_{name}_{kind}"] = reference(folders, getattr(torch, name), work, rank, args.repeats)
                mine = result[f"ours_{kind}"]
                print(
                    f"reference, torch {name}, {f'rank {rank}' if rank else 'full rank'}: arithmetic "
                    f"{row['arithmetic_s'] * 1e3:.0f} ms "
                    f"({row['arithmetic_s'] / mine['total_s']:.1f} × ours), with reads {row['read_s'] * 1e3:.0f} ms and writes "
                    f"{row['write_s'] * 1e3:.0f} ms {row['total_s'] * 1e3:.0f} ms ({row['total_s'] / mine['total_s']:.1f} × "
                    "ours)"
                )
        if args.mergekit:
            seconds = result["mergekit_linear_s"] = mergekit(args.mergekit, folders, work)
            print(
                f"mergekit, linear merge of three, folder to folder: {seconds * 1e3:.0f} ms "
                f"({seconds / result['ours_rank']['total_s']:.1f} ×)"
            )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
