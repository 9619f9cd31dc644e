"""Measures the time from the parents' genomes to the child's weights, against the reference code, mergekit and the machine.

    python scripts/bench_operators.py [--rank 64] [--dtype bfloat16 float32] [--repeats 5] [--mergekit PYTHON] [--json FILE]

The weights are random. Their shape is that of SmolLM2-135M (135 M parameters, 30 layers, tied embeddings) or of the config.json
given with --config. There are three experts. The measured functions run in this process and alternate, so that their ratio is
meaningful on a machine with other load. Every reported time is the minimum over all rounds.

The arithmetic of the reference code is its evolution step in torch: the task vectors of two parents, their weighted sum,
U diag(s w) Vᵀ of the active expert for every matrix (without "norm" in its name), and the sum with the base. It supports full
rank only, in bfloat16. The decomposition is computed in advance and not timed, neither the reference's nor ours; the methods of
decomposition are timed separately. The reference reads both parents from files and writes the child to one, which has separate
rows. cycleqd_jax does neither. The script needs torch and safetensors, which the operators do not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
from safetensors.torch import load_file, save_file

from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.genome.basis import Basis, default_factor_dtype
from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.operators import crossover_weights, decompose, is_matrix
from cycleqd_jax.operators.svd import Method
from cycleqd_jax.types import tree_paths

SMOLLM2 = llama.LlamaConfig(
    49152, 576, 1536, 30, 9, 3, 64, max_position_embeddings=8192, rope_theta=100000.0, tie_word_embeddings=True
)
EXPERTS = 3
METHODS: tuple[Method, ...] = ("svd", "gram", "randomized")


def fastest(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds of the fastest call of each function. The functions alternate, and the first round is not counted."""
    found = dict.fromkeys(functions, float("inf"))
    for i in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if i:
                found[name] = min(found[name], time.perf_counter() - start)
    return found


def limits(repeats: int) -> dict[str, float]:
    """Peak rates of this machine: bytes per second of a copy, and operations per second of a large matrix product."""
    x = jnp.ones(1 << 27, jnp.float32)
    copy = jax.jit(lambda x, out: x + 1, donate_argnums=1, keep_unused=True)
    held = [jnp.zeros_like(x)]

    def step() -> Any:
        held[0] = copy(x, held[0])
        return held[0]

    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest", preferred_element_type=jnp.float32))
    single = jnp.ones((4096, 4096), jnp.float32)
    half = single.astype(jnp.bfloat16)
    found = fastest({"copy": step, "float32": lambda: product(single), "bfloat16": lambda: product(half)}, repeats)
    flop = {name: 2 * 4096**3 / found[name] for name in ("float32", "bfloat16")}
    return {"bytes_per_s": 2 * x.nbytes / found["copy"], **{f"{name}_flop_per_s": rate for name, rate in flop.items()}}


def make_models(config: llama.LlamaConfig) -> tuple[Any, list[Any]]:
    """Makes a base and experts with small differences from it."""
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
    """Makes random decompositions of the right shape; the time of a product does not depend on the values."""
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
            ).astype(default_factor_dtype(leaf.dtype))
    return found


class Ours:
    """Crossover, mutation and expression of one child, and the fraction of the machine's limits that expression reaches."""

    def __init__(self, base: Any, experts: list[Any], rank: int | None) -> None:
        space = ExpertSpace.from_experts(base, experts, predicate=lambda path, leaf: False)
        self.space = space = space.replace(bases=random_bases(base, rank))
        self.parents = space.expert(0), space.expert(1)
        self._child = jax.jit(lambda key, a, b: space.mutate(key, space.crossover(a, b, crossover_weights(key)), 1))
        self._individual = self.operate()
        self._held = space.express(self._individual)

    def operate(self) -> Any:
        """Computes crossover and mutation."""
        return self._child(jax.random.key(0), *self.parents)

    def express(self) -> Any:
        """Computes the child's weights in the buffer of the previous child."""
        self._held = self.space.express(self._individual, self._held)
        return self._held

    def facts(self, operators_s: float, express_s: float, peak: Mapping[str, float]) -> dict[str, Any]:
        """Returns the row of the report."""
        leaves = dict(tree_paths(self.space.base))
        bases = self.space.bases
        weights = sum(leaf.nbytes for leaf in leaves.values())
        moved = weights * (EXPERTS + 2) + sum(x.nbytes for basis in bases.values() for x in basis)
        operations = sum(2 * leaves[path].size * EXPERTS * basis.s.shape[-1] for path, basis in bases.items())
        [factors] = {str(basis.u.dtype) for basis in bases.values()}
        bounds = {"bandwidth": moved / peak["bytes_per_s"], "products": operations / peak[f"{factors}_flop_per_s"]}
        binds = max(bounds, key=lambda name: bounds[name])
        genome = sum(leaf.nbytes for leaf in jax.tree.leaves(self.parents[0]))
        return {
            "crossover_and_mutation_s": operators_s,
            "express_s": express_s,
            "total_s": operators_s + express_s,
            "factors": factors,
            "genome_bytes": genome,
            "times_smaller": weights / genome,
            "bytes_moved": moved,
            "flop": operations,
            "bounds_s": bounds,
            "bound": binds,
            "fraction_of_bound": bounds[binds] / express_s,
            "fraction_of_both_one_after_the_other": sum(bounds.values()) / express_s,
        }


class Reference:
    """The evolution step of the reference code in torch."""

    def __init__(self, folders: list[Path], dtype: torch.dtype, work: Path) -> None:
        self._folders, self._dtype, self._work = folders, dtype, work
        self._base, self._first, self._second = (self._read(folder) for folder in folders[:3])
        self._child: dict[str, torch.Tensor] = {}
        self._factors = {}
        for name, tensor in self._base.items():
            if tensor.ndim == 2 and "norm" not in name:
                m, n = tensor.shape
                shapes = {"u": (m, min(m, n)), "vt": (min(m, n), n)}
                u, vt = (torch.randn(*shape).div_(max(shape) ** 0.5).to(dtype) for shape in shapes.values())
                self._factors[name] = u, torch.rand(min(m, n)).to(dtype), vt

    def _read(self, folder: Path) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self._dtype) for name, tensor in load_file(folder / "model.safetensors").items()}

    def read(self) -> None:
        """Reads both parents."""
        for folder in self._folders[1:3]:
            self._read(folder)

    def step(self) -> None:
        """Computes the child from its parents in memory."""
        base, first, second = self._base, self._first, self._second
        w1, w2 = (1.0 + 0.03 * torch.randn(2)).tolist()
        tau1 = {name: first[name] - base[name] for name in base}
        tau2 = {name: second[name] - base[name] for name in base}
        tau = {name: w1 / (w1 + w2) * tau1[name] + w2 / (w1 + w2) * tau2[name] for name in base}
        for name, (u, s, vt) in self._factors.items():
            tau[name] = tau[name] + u @ torch.diag(s * 0.3 * torch.rand(len(s), dtype=self._dtype)) @ vt
        self._child = {name: base[name] + tau[name] for name in base}

    def write(self) -> None:
        """Writes the child."""
        save_file(self._child, self._work / "child.safetensors")


def mergekit(python: str, folders: list[Path], work: Path, repeats: int) -> float:
    """Seconds of mergekit's linear merge of the three experts, with file access but without the start of Python."""
    models = "\n".join(f"  - model: {folder}\n    parameters: {{weight: 0.3333}}" for folder in folders[1:])
    (work / "merge.yaml").write_text(f"merge_method: linear\ndtype: bfloat16\nmodels:\n{models}\n", encoding="utf-8")
    code = (
        "import time, yaml\n"
        "from mergekit.config import MergeConfiguration\n"
        "from mergekit.merge import MergeOptions, run_merge\n"
        f"config = MergeConfiguration.model_validate(yaml.safe_load(open({str(work / 'merge.yaml')!r})))\n"
        "options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)\n"
        f"for _ in range({repeats + 1}):\n"
        "    start = time.perf_counter()\n"
        f"    run_merge(config, {str(work / 'merged')!r}, options)\n"
        "    print('seconds', time.perf_counter() - start)"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mergekit in {python} failed:\n{done.stderr[-2000:]}")
    return min(float(line.split()[1]) for line in done.stdout.splitlines()[1:] if line.startswith("seconds"))


def factorization(base: Any, rank: int | None, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of every method of decomposition for one matrix of each shape, and for all experts in sequence."""
    counts: Counter[tuple[int, int]] = Counter()
    for path, leaf in tree_paths(base):
        if is_matrix(path, leaf):
            *stack, m, n = leaf.shape
            counts[m, n] += EXPERTS * int(jnp.prod(jnp.asarray(stack)))
    found: dict[str, dict[str, float]] = {method: {} for method in METHODS}
    for m, n in counts:
        tau = jax.random.normal(jax.random.key(0), (1, m, n), jnp.float32)
        calls = {method: lambda method=method, tau=tau: decompose(tau, rank, method) for method in METHODS}
        for method, seconds in fastest(calls, repeats).items():
            found[method][f"{m} x {n}"] = seconds
    for times in found.values():
        times["all"] = sum(times[f"{m} x {n}"] * count for (m, n), count in counts.items())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="take the shape of the model from this config.json")
    parser.add_argument("--rank", type=int, default=64, help="rank of the genome space (64)")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=("bfloat16", "float32"),
        default=["bfloat16", "float32"],
        help="dtypes of the weights",
    )
    parser.add_argument("--repeats", type=int, default=5, help="number of rounds (5)")
    parser.add_argument("--no-full-rank", action="store_true", help="skip cycleqd_jax at full rank")
    parser.add_argument("--no-factorization", action="store_true", help="skip the methods of decomposition")
    parser.add_argument("--mergekit", metavar="PYTHON", help="Python interpreter with mergekit installed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    args = parser.parse_args()
    config = SMOLLM2
    if args.config:
        config = llama.LlamaConfig.from_hf(json.loads(args.config.read_text("utf-8")), str(args.config))
    peak = limits(args.repeats)
    print(
        f"limits: copy {peak['bytes_per_s'] / 1e9:.1f} GB/s, "
        f"products {peak['float32_flop_per_s'] / 1e9:.0f} GFLOP/s in float32, "
        f"{peak['bfloat16_flop_per_s'] / 1e9:.0f} in bfloat16",
        flush=True,
    )
    result: dict[str, Any] = {
        "parameters": llama.num_params(config),
        "rank": args.rank,
        "limits": peak,
        "ours": {},
        "reference": {},
    }
    ranks = {f"rank {args.rank}": args.rank} | ({} if args.no_full_rank else {"full rank": None})
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folders = [work / name for name in ("base", "first", "second", "third")]
        for dtype in args.dtype:
            base, experts = make_models(config.replace(dtype=dtype))
            for folder, params in zip(folders, (base, *experts), strict=True):
                hf.save(folder, config, params, dtype="bfloat16", max_shard_bytes=10**12)
            reference = Reference(folders, getattr(torch, dtype), work)
            calls: dict[str, Callable[[], Any]] = {"read": reference.read, "step": reference.step, "write": reference.write}
            ours = {name: Ours(base, experts, rank) for name, rank in ranks.items()}
            for name, space in ours.items():
                calls |= {f"operate {name}": space.operate, f"express {name}": space.express}
            calls["step"]()  # so that there is a child to write
            seconds = fastest(calls, args.repeats)
            times = {"read_s": seconds["read"], "arithmetic_s": seconds["step"], "write_s": seconds["write"]}
            result["reference"][dtype] = times | {"total_s": sum(times.values())}
            for name, space in ours.items():
                row = space.facts(seconds[f"operate {name}"], seconds[f"express {name}"], peak)
                result["ours"][f"{dtype}, {name}"] = row
            del reference, calls, ours, base, experts
        if args.mergekit:
            result["mergekit_linear_s"] = mergekit(args.mergekit, folders, work, args.repeats)
    if not args.no_factorization:
        result["factorization_s"] = factorization(llama.abstract_params(config), args.rank, 1)
    compare(result)
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compare(result: dict[str, Any]) -> None:
    """Adds the ratio of every other time to ours."""
    for row in result["ours"].values():
        row["times_ours"] = times = {}
        for dtype, reference in result["reference"].items():
            times[f"reference in {dtype}"] = reference["arithmetic_s"] / row["total_s"]
            times[f"reference in {dtype}, with reads and writes"] = reference["total_s"] / row["total_s"]
        if "mergekit_linear_s" in result:
            times["mergekit's linear merge, with reads and writes"] = result["mergekit_linear_s"] / row["total_s"]


def show(result: dict[str, Any]) -> None:
    """Prints the report."""
    for name, row in result["ours"].items():
        bounds = ", ".join(f"{bound} {seconds * 1e3:.0f} ms" for bound, seconds in row["bounds_s"].items())
        print(
            f"ours, {name} (factors {row['factors']}): crossover and mutation {row['crossover_and_mutation_s'] * 1e3:.1f} ms, "
            f"express {row['express_s'] * 1e3:.0f} ms, in all {row['total_s'] * 1e3:.0f} ms; limits {bounds}: "
            f"{row['fraction_of_bound']:.0%} of {row['bound']}, {row['fraction_of_both_one_after_the_other']:.0%} of one "
            f"after the other; genome {row['genome_bytes'] / 1e3:.0f} kB, {row['times_smaller']:.0f} times smaller than weights"
        )
    for dtype, row in result["reference"].items():
        print(f"reference, torch {dtype}, full rank: arithmetic {row['arithmetic_s'] * 1e3:.0f} ms")
        print(
            f"reference, torch {dtype}, full rank, with reads {row['read_s'] * 1e3:.0f} ms and writes "
            f"{row['write_s'] * 1e3:.0f} ms: {row['total_s'] * 1e3:.0f} ms"
        )
    if "mergekit_linear_s" in result:
        print(f"mergekit, linear merge of three, folder to folder: {result['mergekit_linear_s'] * 1e3:.0f} ms")
    for name, row in result["ours"].items():
        for other, times in row["times_ours"].items():
            print(f"ratio: {other} / ours, {name} = {times:.2f}")
    for method, times in result.get("factorization_s", {}).items():
        kinds = ", ".join(f"{kind} {seconds * 1e3:.0f} ms" for kind, seconds in times.items() if kind != "all")
        print(f"factorisation, {method}, rank {result['rank']}: {kinds}; all matrices of all experts {times['all']:.0f} s")


if __name__ == "__main__":
    main()
