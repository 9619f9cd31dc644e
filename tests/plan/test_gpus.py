"""Programs compiled for H100s and H200s."""

from __future__ import annotations

import importlib.util

import pytest

from cycleqd_jax import plan
from cycleqd_jax.plan.compiled import abstract_space, collectives, engine_programs
from cycleqd_jax.plan.estimate import estimate
from cycleqd_jax.sharding import make_mesh

from .flow import Flow
from .workloads import H100, LLAMA_8B, by_name, workload


@pytest.fixture
def cuda():
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        pytest.skip("compiling for GPUs needs the CUDA plugin: pip install 'cycleqd_jax[cuda12]'")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mesh"), [("h200", (1, 1, 1)), ("h100-80gb", (1, 1, 8)), ("h100-80gb", (1, 2, 4))])
@pytest.mark.parametrize("rank", [256, None])
def test_llama_3_8b_on_gpus(cuda, kind, mesh, rank):
    """Express writes in place, holds one or two further matrices, and sends nothing; the estimates hold."""
    device = plan.DEVICES[kind]
    small = {"slots": 16, "max_len": 1024, "new": 512, "prompt": 512, "reply": 512}
    work = workload(LLAMA_8B, rank=rank, method="gram", **small)
    programs = {program.name.split(",")[0]: program for program in plan.compile_programs(work, mesh, device)}
    stages = by_name(estimate(work, mesh, device))
    express, parts = programs["express"], stages["express"].device
    assert express.collectives == ()
    assert express.aliased == parts["child"]
    held = parts["base"] + parts["experts"] + parts["bases"] + parts["child"] + parts["archives"] / work.cells
    assert express.arguments == pytest.approx(held, rel=1e-3)
    assert express.temporaries == pytest.approx(parts["temporaries"], rel=0.05)
    tensor = mesh[2]
    gate, factors = 4 * 4096 * 14336 / mesh[1] / tensor, 2 * 3 * (rank or 4096) * (4096 / mesh[1] + 14336 / tensor)
    assert express.temporaries < 1.1 * max(gate + factors, 4 * (1 << 24) * 3)
    parts = stages["decode"].device
    for program in programs["prefill"], programs["decode"]:
        held = parts["child"] + parts["KV cache"] + parts["shared columns"]
        assert program.arguments == pytest.approx(held, rel=1e-3)
        assert program.aliased == parts["KV cache"]
    temporaries = max(programs["prefill"].temporaries, programs["decode"].temporaries)
    assert temporaries == pytest.approx(parts["temporaries"], rel=0.2)
    basis = max(
        program.arguments + program.outputs + program.temporaries for program in programs.values() if program.stage == "basis"
    )
    assert basis == pytest.approx(stages["basis"].device["temporaries"], rel=0.3)
    assert not any(program.collectives for program in programs.values() if program.stage == "basis")


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "slots"), [(1, 64), (8, 256)])
def test_the_engine_copies_neither_cache_nor_weights(cuda, devices, slots):
    work = workload(LLAMA_8B, rank=256, slots=slots, max_len=4096, new=512, prompt=3584, reply=512)
    mesh = make_mesh(tensor=devices, devices=plan.topology(H100, devices))
    space, _ = abstract_space(work, mesh)
    parts = by_name(estimate(work, (1, 1, devices), H100))["decode"].device
    smallest = 2 * 4096 * 1024 // devices  # bytes of a device's part of a matrix
    for name, program, arguments, static in engine_programs(work, mesh, space.base):
        compiled = program.trace(*arguments, **static).lower(lowering_platforms=("cuda",)).compile()
        memory, text = compiled.memory_analysis(), compiled.as_text()
        assert memory.temp_size_in_bytes <= 2**30
        assert memory.alias_size_in_bytes == parts["KV cache"]
        flow = Flow(text, smallest)
        assert flow.moved == []
        assert len(flow.used) == 7 * 32 + 2 + 2 * 32  # all matrices and the whole cache
        rows, tokens = (slots, slots) if name.startswith("decode") else (8, 8 * 512)
        found = collectives(text)
        states = 2 * tokens * 4096
        assert {(c.bytes, c.count) for c in found if c.kind == "all-reduce" and c.bytes >= states} == (
            {(states, 2 * 32 + 1)} if devices > 1 else set()
        )
        assert all(c.bytes <= 4 * rows * 128256 for c in found if c.kind != "all-reduce")  # logits, for the draws
        if devices == 1:
            assert found == ()
