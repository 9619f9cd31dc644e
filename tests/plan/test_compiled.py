"""Estimates against the compiler's figures, and what is read from compiled programs."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest

from cycleqd_jax import plan
from cycleqd_jax.engine import Engine, programs
from cycleqd_jax.models import llama
from cycleqd_jax.plan.collectives import collectives
from cycleqd_jax.plan.compiled import abstract_space, engine_programs, replace_estimates
from cycleqd_jax.plan.estimate import estimate
from cycleqd_jax.plan.leaves import matrix_shapes
from cycleqd_jax.sharding import make_mesh

from .flow import Flow
from .workloads import H100, LORA, SMALL, by_name, workload


@pytest.mark.parametrize("mesh", [(1, 1, 1), pytest.param((1, 2, 4), marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("rank", [pytest.param(16, marks=pytest.mark.exhaustive), None])
def test_the_compiler_agrees_on_small_models(mesh, rank):
    if len(jax.devices()) < math.prod(mesh):
        pytest.skip("needs 8 (simulated) devices")
    work = workload(rank=rank, slots=32, max_len=224, drafts=("cpu",))
    cpu = dataclasses.replace(H100, chip=None)
    programs = {program.name.split(",")[0]: program for program in plan.compile_programs(work, mesh, cpu)}
    stages = by_name(estimate(work, mesh, cpu))
    express = programs["express"]
    parts = stages["express"].device
    genome = parts["archives"] / work.cells
    held = parts["base"] + parts["experts"] + parts["bases"] + parts["child"] + genome
    assert express.arguments == pytest.approx(held, rel=1e-3)
    assert express.aliased == parts["child"]
    assert express.temporaries < 2 * parts["temporaries"] + 1e5
    assert express.collectives == ()
    parts = stages["decode"].device
    for program in programs["prefill"], programs["decode"], programs["verify"]:
        held = parts["child"] + parts["KV cache"] + parts["shared columns"] + parts["drafts"] * (program is programs["verify"])
        assert program.arguments == pytest.approx(held, rel=0.01)
        assert program.aliased == parts["KV cache"]
    temporaries = max(programs[name].temporaries for name in ("prefill", "decode", "verify"))
    assert parts["temporaries"] / 2 < temporaries < 2 * parts["temporaries"]
    assert {program.stage for program in programs.values()} == {"basis", "express", "decode"}
    assert len(programs) == 4 + len(matrix_shapes(work))


@pytest.mark.parametrize("rank", [pytest.param(6, marks=pytest.mark.exhaustive), None])
@pytest.mark.parametrize("last", [{"layers/attn/q": 16, "final_norm": None}, pytest.param(None, marks=pytest.mark.exhaustive)])
def test_the_compiler_agrees_on_adapters(rank, last):
    work = workload(rank=rank, adapters=(LORA, LORA, last))
    cpu = dataclasses.replace(H100, chip=None)
    [express] = [program for program in plan.compile_programs(work, (1, 1, 1), cpu) if program.name == "express"]
    parts = by_name(estimate(work, (1, 1, 1), cpu))["express"].device
    held = parts["base"] + parts["updates"] + parts["bases"] + parts["child"] + parts["archives"] / work.cells
    assert express.arguments == pytest.approx(held, rel=1e-3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_planned_programs_are_those_of_the_engine(dtype, tied, monkeypatch):
    model = SMALL.replace(dtype=dtype, tie_word_embeddings=tied)
    cpu = make_mesh(devices=jax.devices()[:1])
    base = abstract_space(workload(model), cpu)[0].base
    named = {name.split(",")[0]: (args, static) for name, _, args, static in engine_programs(workload(model), cpu, base)}
    ran = {}

    def watch(name):
        run = getattr(programs, name)

        def watched(*args, **static):
            ran[name] = args, static
            return run(*args, **static)

        monkeypatch.setattr(programs, name, watched)

    watch("prefill")
    watch("decode")
    engine = Engine(model, slots=8, max_len=128, stop_ids=(0,), pad_id=0)
    engine.load(llama.init_params(model, jax.random.key(0)))
    engine.warm_up(shared=1)
    for name, (args, static) in named.items():
        assert ran[name][1] == static
        dtypes = [jax.tree.map(lambda x: x.dtype, arguments) for arguments in (args, ran[name][0])]
        assert dtypes[0] == dtypes[1]


def test_the_compilers_figures_replace_estimates():
    stages = estimate(workload(), (1, 1, 1), H100)
    compiled = plan.Program("express", "express", 1000, 300, 200, 70, (), 0.1)
    replaced = by_name(replace_estimates(stages, [compiled]))
    others = ("archives", "KV cache", "shared columns", "one stack")  # not among the program's arguments
    kept = {name: by_name(stages)["express"].device[name] for name in others}
    assert replaced["express"].device == {**kept, "arguments": 1000, "outputs": 100, "temporaries": 70}
    assert replaced["express"].source == "XLA"
    assert replaced["decode"] == by_name(stages)["decode"]


def test_collectives_of_a_program():
    text = """
  %all-reduce.1 = bf16[64,4096]{1,0} all-reduce(%x), replica_groups={{0,1}}
  %all-reduce.2 = bf16[64,4096]{1,0} all-reduce(%x), replica_groups={{0,1}}
  %ag = ((s32[64,1]{0,1}, f32[64,1]{0,1}), (s32[64,8]{0,1}, f32[64,8]{0,1})) all-gather-start(%a, %b)
  %done = f32[64,8]{0,1} all-gather-done(%ag)
  ROOT %p = pred[64]{0} all-reduce(%y), to_apply=%and
  %fusion = f32[2]{0} fusion(%all-reduce.1), kind=kLoop
"""
    found = {(c.kind, c.bytes, c.count) for c in collectives(text)}
    assert found == {("all-reduce", 64 * 4096 * 2, 2), ("all-gather", 64 * 8 * 8, 1), ("all-reduce", 64, 1)}


def test_collectives_that_start_also_return_operands_and_contexts():
    text = """
  %cp = (f32[64]{0}, f32[64]{0:T(256)}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}
  %cp.done = f32[64]{0} collective-permute-done(%cp)
  %cps = ((bf16[8,2]{1,0}, s8[4]{0}), (bf16[8,2]{1,0}, s8[4]{0}), u32[]) collective-permute-start(%x, %y)
  %cb = f32[16]{0} collective-broadcast(%x), replica_groups={{0,1}}
  %ra = f32[32]{0} ragged-all-to-all(%x, %y, %a, %b, %c, %d), replica_groups={{0,1}}
  %rs = ((f32[80]{0}), f32[10]{0}) reduce-scatter-start(%x)
  %ar = (f32[5]{0}, f32[6]{0}) all-reduce-start(%x, %y)
"""
    found = {(c.kind, c.bytes, c.count) for c in collectives(text)}
    assert found == {
        ("collective-permute", 256, 1),
        ("collective-permute", 36, 1),
        ("collective-broadcast", 64, 1),
        ("ragged-all-to-all", 128, 1),
        ("reduce-scatter", 40, 1),
        ("all-reduce", 44, 1),
    }


def test_moved_arguments_of_a_program():
    text = """
%fused_copy (p.0: bf16[64,64]) -> bf16[64,64] {
  %p.0 = bf16[64,64]{1,0} parameter(0)
  ROOT %copy.1 = bf16[64,64]{0,1} copy(%p.0)
}

%fused_dot (p.1: bf16[8,64], p.2: bf16[64,64]) -> bf16[8,64] {
  %p.1 = bf16[8,64]{1,0} parameter(0)
  %p.2 = bf16[64,64]{1,0} parameter(1)
  ROOT %dot.1 = bf16[8,64]{1,0} dot(%p.1, %p.2), lhs_contracting_dims={1}
}

%body (state: (bf16[8,64], bf16[64,64], bf16[64,64])) -> (bf16[8,64], bf16[64,64], bf16[64,64]) {
  %state = (bf16[8,64]{1,0}, bf16[64,64]{1,0}, bf16[64,64]{1,0}) parameter(0)
  %x = bf16[8,64]{1,0} get-tuple-element(%state), index=0
  %q = bf16[64,64]{1,0} get-tuple-element(%state), index=1
  %k = bf16[64,64]{1,0} get-tuple-element(%state), index=2
  %y = bf16[8,64]{1,0} fusion(%x, %q), kind=kLoop, calls=%fused_dot
  %z = bf16[64,64]{0,1} fusion(%k), kind=kLoop, calls=%fused_copy
  ROOT %next = (bf16[8,64]{1,0}, bf16[64,64]{1,0}, bf16[64,64]{1,0}) tuple(%y, %q, %k)
}

ENTRY %main (a: bf16[8,64], b: bf16[64,64], c: bf16[64,64]) -> bf16[8,64] {
  %a = bf16[8,64]{1,0} parameter(0), metadata={op_name="tokens"}
  %b = bf16[64,64]{1,0} parameter(1), metadata={op_name="params['q']"}
  %c = bf16[64,64]{1,0} parameter(2), metadata={op_name="cache.k[0]"}
  %gathered = bf16[128,64]{1,0} all-gather(%b), dimensions={0}
  %init = (bf16[8,64]{1,0}, bf16[64,64]{1,0}, bf16[64,64]{1,0}) tuple(%a, %b, %c)
  %loop = (bf16[8,64]{1,0}, bf16[64,64]{1,0}, bf16[64,64]{1,0}) while(%init), condition=%cond, body=%body
  ROOT %out = bf16[8,64]{1,0} get-tuple-element(%loop), index=0
}
"""
    flow = Flow(text, 4096)
    assert [(op, whose) for op, _, whose in flow.moved] == [("all-gather", ["params['q']"]), ("fusion", ["cache.k[0]"])]
    assert flow.used == {"params['q']", "cache.k[0]"}
