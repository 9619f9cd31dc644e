"""Lists the messages between devices in the programs of a search on a mesh: ``python scripts/collectives.py [--mesh 1,2,4 …]``.

The programs are compiled for eight simulated CPU devices, and their collectives are read from the compiled HLO: kind, shape and
bytes of one result on one device, and how often it is written in the program. What stands in the body of a loop, such as that
of the decode steps, is written once and runs once for each pass. The model is a Llama of four layers with eight KV heads, so
that eight devices can share it. Larger models have other bytes, and the compiler may choose otherwise for GPUs.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cycleqd_jax.engine.cache import BLOCK
from cycleqd_jax.engine.likelihood import HEAD_BLOCK, Targets, score
from cycleqd_jax.engine.programs import grow, swap
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.plan import Workload
from cycleqd_jax.plan.collectives import collectives
from cycleqd_jax.plan.compiled import abstract_space, engine_programs
from cycleqd_jax.sharding import make_mesh

DEVICES = 8

TOP = 5
"""Likeliest tokens that the program ``score`` returns for each target."""

Row = tuple[str, str, int, int]
"""Kind, shape, bytes and count."""

MODEL = LlamaConfig(512, 128, 256, 4, 16, 8, 16, max_position_embeddings=512)


def workload() -> Workload:
    """A search with two experts of rank 16; the engine verifies drafts."""
    return Workload(
        model=MODEL,
        experts=2,
        rank=16,
        method="gram",
        children=8,
        cells=30,
        keep=3,
        slots=8,
        max_len=256,
        new=64,
        rounds=(8,),
        prompt=64,
        reply=64,
        workers=1,
        sandbox_memory=0,
        sandbox_disk=0,
        drafts=("cpu",),
    )


def further_programs(
    work: Workload, group: Mesh, prefill: tuple[Any, ...]
) -> Iterator[tuple[str, Any, tuple[Any, ...], dict[str, Any]]]:
    """What the engine runs beside decoding: it scores given tokens, and moves pages of its cache.

    Args:
        work: what is computed.
        group: the devices.
        prefill: the arguments of the largest prefill on them.

    Yields:
        Names, jitted functions, their arguments and their static arguments, as ``engine_programs`` returns them.
    """
    layout = work.layout(group.devices.flat[0].platform)
    *given, tokens, requests = prefill
    count, chunk = tokens.shape

    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=tokens.sharding)

    size = -(-2 * count * chunk // HEAD_BLOCK) * HEAD_BLOCK
    targets = Targets(array(size), array(size), array())
    requests = requests._replace(rows=requests.rows._replace(trunk=array(count), branch=array(count, chunk)))
    static = {"config": layout.computed, "attention": layout.attention, "top": TOP}
    yield f"score, {count} × {chunk}", score, (*given, tokens, requests, targets), static
    cache, half = given[1], layout.pages // 2
    smaller = layout.attention.abstract(work.model, half, layout.page, group)
    yield f"grow, {half} to {layout.pages} pages", grow, (smaller,), {"attention": layout.attention, "pages": layout.pages}
    yield f"swap, {BLOCK} pairs of pages", swap, (cache, array(BLOCK, 2), array()), {}


def programs(mesh_sizes: tuple[int, int, int]) -> Iterator[tuple[str, str]]:
    """Names and HLO of the programs of a search on a mesh.

    Args:
        mesh_sizes: population × fsdp × tensor. The groups of a population run programs of their own; those of one group are
            compiled, and the one that expresses a whole population over the axis.
    """
    population, fsdp, tensor = mesh_sizes
    work = workload()
    group = make_mesh(fsdp=fsdp, tensor=tensor, devices=jax.devices()[: fsdp * tensor])
    space, genome = abstract_space(work, group)

    def text(function, *arguments, **static) -> str:
        return function.trace(*arguments, **static).lower().compile().as_text()

    express = jax.jit(lambda space, genome, out: space.express(genome, out), donate_argnames="out", keep_unused=True)
    yield "express", text(express, space, genome, space.base)
    omega = jax.ShapeDtypeStruct((2,), jnp.float32)
    yield "crossover", text(jax.jit(lambda space, a, b, w: space.crossover(a, b, w)), space, genome, genome, omega)
    key, active = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
    yield "mutation", text(jax.jit(lambda space, k, g, i: space.mutate(k, g, i)), space, key, genome, active)
    engine = engine_programs(work, group, space.base)
    for name, function, arguments, static in [*engine, *further_programs(work, group, engine[0][2])]:
        yield name, text(function, *arguments, **static)
    if population > 1:
        whole, genome = abstract_space(work, make_mesh(population=population, fsdp=fsdp, tensor=tensor))

        def leading(x):
            return jax.ShapeDtypeStruct((population, *x.shape), x.dtype)

        several = jax.jit(lambda space, genomes: space.express_population(genomes))
        yield f"express of {population} individuals", text(several, whole, jax.tree.map(leading, genome))


def rows(text: str) -> list[Row]:
    """The collectives of a program, equal ones together."""
    found: Counter[tuple[str, str, int]] = Counter()
    for line in text.splitlines():
        for one in collectives(line):
            result = line.partition(" = ")[2].partition(f" {one.kind}")[0]
            arrays = Counter(re.findall(r"\w+\[[\d,]*\]", result))
            shape = ", ".join(array if count == 1 else f"{count} × {array}" for array, count in arrays.items())
            found[one.kind, shape, one.bytes] += 1
    return [(*key, count) for key, count in sorted(found.items())]


def table(mesh_sizes: tuple[int, int, int]) -> str:
    """A Markdown table of the collectives of all programs on a mesh."""
    lines = ["| program | collective | result on one device | bytes | count |", "|---|---|---|---:|---:|"]
    for name, text in programs(mesh_sizes):
        found = rows(text)
        lines += [f"| {name} | {kind} | `{shape}` | {size:,} | {count} |" for kind, shape, size, count in found]
        lines += [] if found else [f"| {name} | none | – | 0 | 0 |"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Lists the messages between devices in every program of a search on a mesh.")
    parser.add_argument("--mesh", nargs="+", default=["8,1,1", "1,1,8", "1,2,4"], help="population,fsdp,tensor")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    for mesh in args.mesh:
        population, fsdp, tensor = map(int, mesh.split(","))
        print(f"## population {population} × fsdp {fsdp} × tensor {tensor}\n\n{table((population, fsdp, tensor))}\n")


if __name__ == "__main__":
    main()
