"""Speed of ``cycleqd merge`` against mergekit's command, on random models of the size of SmolLM2-135M.

    python scripts/bench_merge.py --mergekit PYTHON [--methods ties task_arithmetic] [--rounds 3] [--dtype D] [--json FILE]

PYTHON is a Python that has mergekit; it may be another environment. The models, a base and three experts, are written into a
temporary folder. Both commands are run alternately, each as a process of its own that starts from nothing; cycleqd compiles its
programs in a round that does not count. Wall time, CPU time and the largest resident memory are those that the operating system
reports for the process; the median of the rounds is printed. The results of both are compared, tensor by tensor.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import yaml
from safetensors import safe_open

from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.tokenizer import train_tiny_tokenizer

SMOLLM2 = llama.LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, head_dim=64, tie_word_embeddings=True,
)  # fmt: skip
MERGEKIT = "from mergekit.scripts.run_yaml import main; main()"


def write_models(folder: Path, dtype: str) -> list[str]:
    rng = np.random.default_rng(0)
    config = SMOLLM2.replace(dtype=dtype)
    tokenizer = train_tiny_tokenizer(["the quick brown fox"], 300)
    base = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32) * 0.04, llama.abstract_params(config))
    names = ["base", "a", "b", "c"]
    for k, name in enumerate(names):
        params = jax.tree.map(lambda leaf, k=k: leaf + (k > 0) * 0.002 * rng.standard_normal(leaf.shape, np.float32), base)
        params = jax.tree.map(lambda leaf: leaf.astype(np.dtype(dtype)), params)
        hf.save(folder / name, config, params, tokenizer=tokenizer)
    return [str(folder / name) for name in names]


def write_recipe(path: Path, method: str, names: list[str], dtype: str) -> None:
    parameters = {"weight": 0.4} | ({"density": 0.2} if method in ("ties", "dare_ties", "dare_linear") else {})
    models = [{"model": name} for name in names[1:]]
    keys = {"merge_method": method, "base_model": names[0], "models": models, "parameters": parameters, "dtype": dtype}
    path.write_text(yaml.safe_dump(keys, sort_keys=False))


def measure(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Wall and CPU seconds and the peak memory in bytes of a process."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read().decode(errors="replace"))
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024.0}


def difference(ours: Path, theirs: Path) -> float:
    """The largest difference of an entry, relative to the largest entry of its tensor."""
    worst = 0.0
    with safe_open(ours / "model.safetensors", "np") as got, safe_open(theirs / "model.safetensors", "np") as want:
        assert sorted(got.keys()) == sorted(want.keys())
        for name in got.keys():  # noqa: SIM118 (not a dict)
            a, b = (file.get_tensor(name).astype(np.float32) for file in (got, want))
            worst = max(worst, float(np.abs(a - b).max() / np.abs(b).max()))
    return worst


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of cycleqd merge against mergekit.")
    parser.add_argument("--mergekit", required=True, metavar="PYTHON", help="a Python that has mergekit")
    parser.add_argument("--methods", nargs="+", default=["ties", "task_arithmetic"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    found = {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "dtype": args.dtype,
        "rounds": args.rounds,
        "methods": {},
    }
    print(f"{found['cores']} cores of {found['cpu']}, {args.dtype}, median of {args.rounds} rounds")
    with tempfile.TemporaryDirectory(prefix="bench-merge-") as folder:
        work = Path(folder)
        # In a process of its own: Linux counts the memory of a parent in the peak of its children.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            names = pool.apply(write_models, (work, args.dtype))
        plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
        ours = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(work / "compiled"), "PYTHONPATH": str(Path(__file__).parents[1])}
        ours |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
        for method in args.methods:
            recipe = work / f"{method}.yml"
            write_recipe(recipe, method, names, args.dtype)
            commands = {
                "cycleqd": ([sys.executable, "-m", "cycleqd_jax.cli", "merge", str(recipe), str(work / "ours")], ours),
                "mergekit": ([args.mergekit, "-c", MERGEKIT, str(recipe), str(work / "theirs"), "--quiet"], plain),
            }
            first = measure(*commands["cycleqd"])
            rounds = [{name: measure(*command) for name, command in commands.items()} for _ in range(args.rounds)]
            medians = {
                name: {key: statistics.median(one[name][key] for one in rounds) for key in ("wall", "cpu", "peak")}
                for name in commands
            }
            ratios = {key: medians["mergekit"][key] / medians["cycleqd"][key] for key in ("wall", "cpu", "peak")}
            error = difference(work / "ours", work / "theirs")
            found["methods"][method] = {
                **medians, "ratios": ratios, "first": first, "difference": error, "rounds": rounds,
            }  # fmt: skip
            for name, one in medians.items():
                print(f"{method:16} {name:9} {one['wall']:7.2f} s wall {one['cpu']:7.2f} s CPU {one['peak'] / 1e6:7.0f} MB")
            print(
                f"{method:16} mergekit / cycleqd: {ratios['wall']:.2f} wall, {ratios['cpu']:.2f} CPU, {ratios['peak']:.2f} "
                f"memory; cycleqd's first run, with compilation: {first['wall']:.2f} s; largest difference {error:.1e}"
            )
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
