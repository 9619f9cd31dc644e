"""The real programs, compiled ahead of time for devices that this machine need not have; nothing is allocated.

XLA's buffer assignment gives the bytes that a device holds while a program runs. The work space that cuSOLVER allocates when it
is called is not included.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from cycleqd_jax.engine import EngineLayout
from cycleqd_jax.engine.cache import Rows, shared_blocks
from cycleqd_jax.engine.drafts import CONTEXT, Sources, text_columns
from cycleqd_jax.engine.layout import check_mesh
from cycleqd_jax.engine.programs import Packing, Requests, Sampling, decode, prefill
from cycleqd_jax.engine.verify import verify
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.genome.basis import Basis, basis_shapes, default_factor_dtype
from cycleqd_jax.genome.expert_space import ExpertGenome
from cycleqd_jax.genome.placement import part_specs
from cycleqd_jax.models import llama
from cycleqd_jax.operators import decompose, is_matrix
from cycleqd_jax.plan.collectives import Collective, collectives
from cycleqd_jax.plan.device import Device
from cycleqd_jax.plan.estimate import Stage
from cycleqd_jax.plan.leaves import changes, declared, matrix_shapes
from cycleqd_jax.plan.workload import GenomeWorkload, Workload
from cycleqd_jax.plan.workload import Mesh as MeshSizes
from cycleqd_jax.sharding import make_mesh, shardings
from cycleqd_jax.types import InputError, tree_paths

__all__ = [
    "Program",
    "abstract_space",
    "compile_program",
    "compile_programs",
    "engine_programs",
    "genome_programs",
    "replace_estimates",
    "topology",
]


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiler's figures for one program; all bytes are per device.

    Attributes:
        stage: the stage that runs it.
        name: the name of the program.
        arguments: bytes of its arguments.
        outputs: bytes of its outputs.
        aliased: bytes of the outputs that reuse the memory of arguments.
        temporaries: further bytes while it runs.
        collectives: messages between devices.
        seconds: the time of compilation.
    """

    stage: str
    name: str
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    collectives: tuple[Collective, ...]
    seconds: float


def topology(device: Device, count: int) -> list[Any]:
    """Devices to compile for: those of the local CPU backend, or GPUs that this machine need not have.

    Args:
        device: the kind of device.
        count: the number of devices.

    Raises:
        InputError: the CUDA plugin is not installed, or there are too few CPU devices.
    """
    if device.chip is None:
        local = jax.local_devices(backend="cpu")
        if len(local) < count:
            raise InputError(
                f"expected {count} CPU devices to compile for, got {len(local)}; set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
            )
        return local[:count]
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise InputError(
            f"expected JAX's CUDA plugin, which compiles for {device.name} without one, got none; "
            "pip install 'cycleqd_jax[cuda12]'"
        )
    # The plugin looks for a GPU's driver when it is loaded; XLA looks for ptxas and nvlink when it compiles.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        tools = Path(folder) / "cuda_nvcc" / "bin"
        if tools.is_dir() and str(tools) not in os.environ.get("PATH", "").split(os.pathsep):
            os.environ["PATH"] = os.pathsep.join([str(tools), os.environ.get("PATH", "")])
    try:
        found = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology=f"1x1x{count}", target_config=device.target
        )
    except NotImplementedError as error:
        raise InputError(
            "expected JAX's CUDA plugin to load, got an error; run with JAX_PLATFORMS=cpu, or in a new process"
        ) from error
    return list(found.devices)


def compile_programs(work: Workload, mesh_shape: MeshSizes, device: Device) -> list[Program]:
    """Compiles the programs of all stages: decompositions, express into donated weights, and the engine's largest programs.

    Args:
        work: what is to be computed.
        mesh_shape: population × fsdp × tensor; the programs are those of one group of the population.
        device: the kind of device.

    Raises:
        InputError: see :func:`topology`; or the mesh does not divide the model.
    """
    _, fsdp, tensor = mesh_shape
    mesh = make_mesh(fsdp=fsdp, tensor=tensor, devices=topology(device, fsdp * tensor))
    compiled = functools.partial(compile_program, "cpu" if device.chip is None else "cuda")
    programs = genome_programs(work, mesh, compiled)
    for name, program, arguments, static in engine_programs(work, mesh, abstract_space(work, mesh)[0].base):
        programs.append(compiled("decode", name, program, *arguments, **static))
    return programs


def compile_program(platform: str, stage: str, name: str, function: Any, *arguments: Any, **static: Any) -> Program:
    """Compiles one program.

    Args:
        platform: ``"cpu"`` or ``"cuda"``.
        stage: the stage that runs it.
        name: its name.
        function: a jitted function.
        arguments: shapes, dtypes and shardings of its arguments.
        static: its static arguments.
    """
    started = time.perf_counter()
    program = function.trace(*arguments, **static).lower(lowering_platforms=(platform,)).compile()
    memory = program.memory_analysis()
    return Program(
        stage,
        name,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        collectives(program.as_text()),
        time.perf_counter() - started,
    )


def genome_programs(work: GenomeWorkload, mesh: Mesh, compiled: Callable[..., Program]) -> list[Program]:
    """The programs of models and genomes: decompositions, and express into donated weights.

    Args:
        work: what is to be computed.
        mesh: the devices.
        compiled: :func:`compile_program` for a platform.
    """
    programs = []
    rank, method = work.rank, work.method
    for m, n in matrix_shapes(work):

        def factors(batch: Any) -> Any:
            return decompose(batch, rank, method, mesh)

        batch = jax.ShapeDtypeStruct((mesh.size, m, n), jnp.float32, sharding=NamedSharding(mesh, P(mesh.axis_names)))
        programs.append(compiled("basis", f"{method} of {m} × {n}", jax.jit(factors), batch))

    space, genome = abstract_space(work, mesh)

    def express(space: ExpertSpace, genome: ExpertGenome, out: Any) -> Any:
        return space.express(genome, out)

    into = jax.jit(express, donate_argnames="out", keep_unused=True)
    programs.append(compiled("express", "express", into, space, genome, space.base))
    return programs


def engine_programs(work: Workload, mesh: Mesh, params: Any) -> list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]]:
    """The largest prefill, decode and, with drafts, verification program of the engine, with shared columns, on a mesh.

    Args:
        work: what is to be computed.
        mesh: the devices; as at run time, their platform decides on attention and sizes.
        params: shapes, dtypes and shardings of the stacked weights.

    Returns:
        Names, jitted functions, their arguments (shapes, dtypes and shardings), and their static arguments.

    Raises:
        InputError: the mesh does not divide the model's KV heads.
    """
    check_mesh(work.model, mesh)
    layout: EngineLayout = work.layout(mesh.devices.flat[0].platform)
    attention, width, columns = layout.attention, layout.width, layout.shared_columns(1)
    cache = attention.abstract(work.model, layout.pages, layout.page, mesh)
    shared = attention.abstract(work.model, 1, columns, mesh)
    everywhere = NamedSharding(mesh, P())

    def array(*shape: int, dtype: DTypeLike = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    def requests(count: int, tokens: int) -> Requests:
        rows = Rows(array(count, width), array(count), array(count), array(count, 2))
        if tokens < layout.chunk and attention.paged:
            rows = rows._replace(owners=array(layout.pages), starts=array(layout.pages), blocks=array())
        if attention.paged and tokens == layout.chunk:
            rows = rows._replace(filled=array())
        if attention.paged:
            size, cut = shared_blocks(count, tokens, columns)
            rows = rows._replace(near=array(count // size * (columns // cut), 2), nears=array())
        sampling = Sampling(array(count, dtype=jnp.float32), array(count, dtype=jnp.float32), array(count, 2, dtype=jnp.uint32))
        return Requests(rows, array(count), array(count), sampling)

    def apart(x: Any) -> Any:
        shape, axes = x.shape[1:], x.sharding.spec[1:]
        if not layout.transposed or len(shape) != 2:
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=NamedSharding(mesh, P(*axes)))
        turned = P(*reversed((*axes, *[None] * (2 - len(axes)))))
        matrix: Any = jax.ShapeDtypeStruct(shape[::-1], x.dtype, sharding=NamedSharding(mesh, turned))
        return llama.TransposedMatrix(matrix)

    layer = jax.tree.map(apart, params["layers"])
    params = params | {"layers": [layer] * work.model.num_hidden_layers}
    if attention.paged:
        extra = functools.partial(llama.for_products, config=work.model, positions=layout.positions)
        params |= jax.eval_shape(extra, params)
    static = {"config": layout.computed, "attention": attention}
    most, chunk = layout.batches[-1], layout.chunk
    packing = Packing(array(layout.batch_tokens(most)), array(most, chunk)) if attention.paged else None
    given = params, cache, shared
    found: list[tuple[str, Any, tuple[Any, ...], dict[str, Any]]] = [
        (f"prefill, {most} × {chunk}", prefill, (*given, array(most, chunk), requests(most, chunk), packing), static),
        (
            f"decode, {work.slots} × {work.max_len}",
            decode,
            (*given, array(work.slots), requests(work.slots, 1)),
            static | {"steps": layout.steps, "stop_ids": (0,)},
        ),
    ]
    if layout.window > 1:
        slots, text = work.slots, text_columns(work.max_len, layout.window)
        verified = requests(slots, layout.window)
        verified = verified._replace(rows=verified.rows._replace(ends=array(slots)))
        sources = Sources(array(slots, text), array(slots), array(slots, CONTEXT))
        options = {"steps": layout.verify_steps, "window": layout.window, "stop_ids": (0,)}
        found.append((f"verify, {slots} × {layout.window}", verify, (*given, sources, verified), static | options))
    return found


def abstract_space(work: GenomeWorkload, mesh: Mesh) -> tuple[ExpertSpace, ExpertGenome]:
    """The expert space and a genome as shapes, dtypes and shardings, without arrays.

    Raises:
        InputError: the mesh does not divide the model.
    """
    shapes, axes = declared(work.model)
    specs = shardings(mesh, shapes, axes)
    leaves = dict(tree_paths(shapes))

    def numbers(*shape: int, dtype: DTypeLike = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    held = {path: changes(work, path) for path in leaves}
    bases, remainders = {}, {}
    for path, leaf in leaves.items():
        if is_matrix(path, leaf):
            kept, known = held[path].directions(leaf.shape, work.rank)
            for into, rank in ((bases, kept), (remainders, 0 if held[path].dense else known - kept)):
                if rank:
                    u, s, vt = basis_shapes(leaf.shape, work.experts, rank)
                    wanted = work.factor_dtype or default_factor_dtype(leaf.dtype)
                    dtype = jnp.dtype(wanted if held[path].dense else "float32")
                    into[path] = Basis(numbers(*u, dtype=dtype), numbers(*s), numbers(*vt, dtype=dtype))
    updates = {
        path: tuple(numbers(*leaf.shape) if given else None for given in held[path].updates)
        for path, leaf in leaves.items()
        if any(held[path].updates)
    }
    space = ExpertSpace(
        shapes,
        {path: (leaf,) * held[path].experts for path, leaf in leaves.items() if held[path].experts},
        updates,
        bases,
        remainders,
        num_experts=work.experts,
        mesh=mesh,
        specs=tuple((path, place.spec) for path, place in tree_paths(specs)),
    )

    def place(x: Any, spec: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    leaf_specs = dict(space.specs)
    parts = {path: jax.tree.map(place, space.parts(path), part_specs(space.parts(path), leaf_specs[path])) for path in leaves}
    placed = space.replace(
        base=jax.tree.unflatten(jax.tree.structure(shapes), [parts[path].base for path in leaves]),
        experts={path: parts[path].experts for path in space.experts},
        updates={path: parts[path].updates for path in updates},
        bases={path: parts[path].bases[0] for path in bases},
        remainders={path: parts[path].bases[-1] for path in remainders},
    )
    coefficients = {path: place(basis.s, P()) for path, basis in bases.items()}
    return placed, ExpertGenome(place(numbers(work.experts), P()), coefficients)


def replace_estimates(stages: Sequence[Stage], programs: Sequence[Program]) -> list[Stage]:
    """The stages with the compiler's figures in place of estimates, from each stage's program that needs the most memory.

    Args:
        stages: the stages of an estimate.
        programs: the compiled programs.
    """

    def replaced(stage: Stage) -> Stage:
        own = [program for program in programs if program.stage == stage.name]
        if not own:
            return stage
        most = max(own, key=lambda program: program.arguments + program.outputs - program.aliased + program.temporaries)
        device = {name: size for name, size in stage.device.items() if name != "temporaries"}
        if stage.name == "basis":  # the weights are not among its arguments
            device["arguments"] = most.arguments
        elif stage.name == "express":  # its arguments are all but the archives and the engine's memory
            others = ("archives", "frozen leaves of experts", "KV cache", "shared columns", "one stack")
            device = {name: device[name] for name in others if name in device} | {"arguments": most.arguments}
        device["outputs"] = most.outputs - most.aliased
        device["temporaries"] = most.temporaries
        return dataclasses.replace(stage, device=device, source="XLA")

    return [replaced(stage) for stage in stages]
