"""``cycleqd plan``: its formulas against the compiler's figures, and what it says."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import re
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from cycleqd_jax import plan
from cycleqd_jax.cli import main
from cycleqd_jax.engine import Engine, programs
from cycleqd_jax.models import llama
from cycleqd_jax.models import tokenizer as chat
from cycleqd_jax.models.files import hf
from cycleqd_jax.plan.compiled import abstract_space, collectives, engine_programs, replace_estimates
from cycleqd_jax.plan.estimate import estimate, matrix_shapes
from cycleqd_jax.sharding import make_mesh

CONFIGS = Path(__file__).parents[2] / "configs"
H100 = plan.DEVICES["h100-80gb"]
SMALL = llama.LlamaConfig(512, 128, 256, 3, 8, 4, 16, max_position_embeddings=256, dtype="float32")
LLAMA_8B = llama.LlamaConfig(128256, 4096, 14336, 32, 32, 8, 128, max_position_embeddings=8192, dtype="bfloat16")


def workload(model=SMALL, **changes) -> plan.Workload:
    return plan.Workload(
        **{
            "model": model,
            "experts": 3,
            "rank": 16,
            "method": "svd",
            "slots": 8,
            "max_len": 128,
            "new": 32,
            "rounds": (20, 12, 12),
            "prompt": 96,
            "reply": 32,
            "children": 1,
            "cells": 675,
            "keep": 2,
            "workers": 2,
            "sandbox_memory": 1 << 29,
            "sandbox_disk": 1 << 26,
            **changes,
        }
    )


def by_name(stages):
    return {stage.name: stage for stage in stages}


def planned(capsys, *args) -> dict:
    capsys.readouterr()
    assert main(["plan", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# Formulas


def test_memory_of_llama_3_8b():
    work = workload(LLAMA_8B, rank=256)
    stages = by_name(estimate(work, (1, 1, 1), H100))
    assert stages["express"].device["base"] == stages["express"].device["child"] == 16_060_522_496
    assert stages["express"].device["experts"] == 3 * 16_060_522_496
    rows_and_columns = 32 * (2 * 8192 + 2 * 5120 + 3 * 18432) + 2 * (128256 + 4096)
    count = 32 * 7 + 2
    assert stages["express"].device["bases"] == 3 * 256 * (2 * rows_and_columns + 4 * count)  # factors are bfloat16
    assert stages["basis"].disk == 4 * 3 * 256 * (rows_and_columns + count)
    single = by_name(estimate(workload(LLAMA_8B.replace(dtype="float32"), rank=256), (1, 1, 1), H100))
    assert single["express"].device["bases"] == 4 * 3 * 256 * (rows_and_columns + count)
    assert stages["express"].device["archives"] == 675 * 4 * (3 * 256 * count + 3)
    assert stages["load"].disk == 4 * 16_060_522_496
    full = by_name(estimate(workload(LLAMA_8B, rank=None), (1, 1, 1), H100))
    assert full["express"].device["archives"] < 8e9


def test_times_are_those_of_the_limits():
    """Full rank makes 2 m n K r FLOPs of every matrix, more than a Hopper does while it reads the weights; rank 256 less."""
    work = workload(LLAMA_8B, rank=256, slots=1, max_len=4096, prompt=1, reply=1, rounds=(1,))
    stages = by_name(estimate(work, (1, 1, 1), H100))
    matrices = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 2 * 4096 * 128256
    moved = 2 * (5 * matrices + 768 * (32 * (2 * 8192 + 2 * 5120 + 3 * 18432) + 2 * (128256 + 4096)))
    assert stages["express"].seconds == pytest.approx(moved / 3.35e12, rel=0.01)
    full = 32 * (2 * 4096**3 + 2 * 4096 * 1024**2 + 3 * 4096**2 * 14336) + 2 * 4096**2 * 128256
    for dtype, rate in (("bfloat16", 989e12), ("float32", 67e12)):
        most = by_name(estimate(workload(LLAMA_8B.replace(dtype=dtype), rank=None), (1, 1, 1), H100))["express"].seconds
        assert most == pytest.approx(2 * 3 * full / rate, rel=0.01)
    read = (matrices - 4096 * 128256) * 2 / 3.35e12  # by a step
    attention = 4 * 32 * 32 * 128 * (4096 + 512)  # of a token: a kernel goes over all columns of its row
    chunk = 512 * (2 * (matrices - 2 * 4096 * 128256) + attention) / 989e12  # of a prompt of one token

    def seconds(**changes):
        return by_name(estimate(dataclasses.replace(work, **changes), (1, 1, 1), H100))["decode"].seconds

    assert stages["decode"].seconds == pytest.approx(chunk + read, rel=0.02)
    assert seconds(rounds=(1, 1)) == pytest.approx(chunk + 2 * read, rel=0.02)  # the conversation is in the cache
    assert seconds(rounds=(8,)) == pytest.approx(8 * chunk + 8 * read, rel=0.02)
    assert seconds(rounds=(8,), slots=4) == pytest.approx(8 * chunk + 2 * read, rel=0.02)
    assert seconds(rounds=(1, 1), slots=4) == seconds(rounds=(1, 1))  # the second reply waits for the first
    cached = 2 * 32 * 8 * 128 * 2 * (4000 + 500 / 2) / 3.35e12
    longer = seconds(rounds=(6,), slots=2, prompt=4000, reply=500) - seconds(rounds=(6,), slots=2, prompt=4000, reply=1)
    assert longer == pytest.approx((6 * 499 / 2) * read + 3 * 500 * 2 * cached, rel=0.02)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 2, 4)])
@pytest.mark.parametrize("rank", [16, None])
def test_the_compiler_agrees_on_small_models(mesh, rank):
    if len(jax.devices()) < math.prod(mesh):
        pytest.skip("needs 8 (simulated) devices")
    work = workload(rank=rank, slots=32, max_len=224)
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
    for program in programs["prefill"], programs["decode"]:
        held = parts["child"] + parts["KV cache"] + parts["shared columns"]
        assert program.arguments == pytest.approx(held, rel=0.01)
        assert program.aliased == parts["KV cache"]
    temporaries = max(programs["prefill"].temporaries, programs["decode"].temporaries)
    assert parts["temporaries"] / 2 < temporaries < 2 * parts["temporaries"]
    assert {program.stage for program in programs.values()} == {"basis", "express", "decode"}
    assert len(programs) == 3 + len(matrix_shapes(work))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_planned_engine_is_the_one_that_runs(dtype, tied, monkeypatch):
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


def test_the_compilers_figures_take_the_place_of_estimates():
    stages = estimate(workload(), (1, 1, 1), H100)
    compiled = plan.Program("express", "express", 1000, 300, 200, 70, (), 0.1)
    replaced = by_name(replace_estimates(stages, [compiled]))
    others = ("archives", "KV cache", "shared columns", "one stack")  # the program knows nothing of them
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


def test_collectives_that_start_return_operands_and_contexts_too():
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


class Flow:
    """Where the arguments of a compiled program go: what is copied of them or sent to other devices.

    Args:
        text: HLO.
        least: bytes of what counts.
    """

    MOVES = (
        *("all-gather", "all-reduce", "all-to-all", "broadcast", "collective-permute", "concatenate", "convert", "copy"),
        *("dynamic-slice", "pad", "reduce-scatter", "reshape", "reverse", "select", "slice", "transpose"),
    )
    WORK = ("convolution", "custom-call", "dot", "dynamic-update-slice", "gather", "scatter")

    def __init__(self, text: str, least: int) -> None:
        self.least, self.moved, self.used = least, [], set()
        found = re.findall(r"^(ENTRY )?%?(\S+) \(.*\) -> .*\{\n((?:  .*\n)*)\}", text, re.MULTILINE)
        self.bodies = {name: lines.splitlines() for _, name, lines in found}
        [entry] = [name for is_entry, name, _ in found if is_entry]
        self.run(entry, None)

    def run(self, name: str, given: list | None):
        """What the root of a computation is made of: an argument's name, a list for a tuple, or None for what is new."""
        known: dict[str, object] = {}
        root = None
        for line in self.bodies[name]:
            match = re.match(r"\s*(ROOT )?%?(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)", line)
            if match is None:
                continue
            is_root, out, shape, op, rest = match.groups()
            operands = re.findall(r"%([\w.-]+)", rest.split(")", 1)[0])
            values = [known.get(operand) for operand in operands]
            known[out] = self.step(op, shape, rest, values, given)
            root = known[out] if is_root else root
        return root

    def step(self, op: str, shape: str, rest: str, values: list, given: list | None):
        called = re.findall(r"(?:calls|to_apply|body|(?:true|false)_computation)=%?([\w.-]+)", rest)
        if op == "parameter":
            index = int(rest.split(")")[0])
            if given is not None:
                return given[index]
            label = re.search(r'op_name="([^"]*)"', rest)
            return label[1] if label and self.size(shape) >= self.least else None
        if op == "tuple":
            return values
        if op == "get-tuple-element":
            index = int(re.search(r"index=(\d+)", rest)[1])
            return values[0][index] if isinstance(values[0], list) else None
        if op == "bitcast":
            return values[0]
        if op == "while":
            self.run(called[0], values)
            return values[0]
        if op == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", rest)
            for name, value in zip(re.findall(r"[\w.-]+", branches[1]) if branches else called, values[1:], strict=True):
                self.run(name, [value])
            return None
        if op in ("call", "async-start"):
            return self.run(called[0], values)
        whose = [value for value in values if isinstance(value, str)]
        if not whose:
            return None
        inside = " ".join(self.bodies[called[0]]) if op == "fusion" else f" {op}("
        self.used.update(whose)
        written = [name for name in whose if name.startswith("cache")]
        if any(f" {work}(" in inside for work in self.WORK):
            # a token's keys are written where the cache is
            return written[0] if written and "scatter(" in inside else None
        if op.removesuffix("-start") in self.MOVES or op == "fusion":
            self.moved.append((op, shape, whose))
        return None

    @staticmethod
    def size(shape: str) -> int:
        return sum(c.bytes for c in collectives(f"  %x = {shape} all-reduce(%y)\n"))


def test_what_is_moved_of_a_programs_arguments():
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


def test_basis_takes_the_greatest_of_its_limits():
    def seconds(**limits):
        free = {"single": 1e30, "bandwidth": 1e30, "disk": 1e30}
        return by_name(estimate(work, (1, 1, 2), dataclasses.replace(H100, **{**free, **limits})))["basis"].seconds

    work = workload(LLAMA_8B, rank=256, method="randomized")
    stored = by_name(estimate(work, (1, 1, 2), H100))["basis"].disk
    assert seconds(disk=1e9) == pytest.approx(stored / 1e9)
    numbers = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 2 * 4096 * 128256
    # base and expert in bfloat16, τ written once and read in each of 6 products, factors written
    assert seconds(bandwidth=1e12) == pytest.approx((3 * numbers * (2 + 2 + 4 * 7) + stored) / 2 / 1e12)
    fast = seconds(single=1e12)
    assert fast > 0
    assert seconds(single=1e12, bandwidth=1e12, disk=1e12) == max(fast, seconds(bandwidth=1e12), seconds(disk=1e12))


LORA = {"layers/attn/q": 8, "layers/mlp/down": 4}


def test_memory_of_adapters():
    work = workload(LLAMA_8B, rank=6, adapters=(LORA, LORA, {"layers/attn/q": 16}))
    stages = by_name(estimate(work, (1, 1, 1), H100))
    parts = stages["express"].device
    assert parts["experts"] == parts["updates"] == 0
    # q has the largest of the ranks, mutation acts on 6 directions of q and 4 of down
    assert parts["bases"] == 4 * 3 * 32 * (16 * (4096 + 4096 + 1) + 4 * (14336 + 4096 + 1))
    assert parts["archives"] == 675 * 4 * (3 * 32 * (6 + 4) + 3)
    factors = 4 * 32 * ((8 + 8 + 16) * 8192 + (4 + 4) * 18432)
    assert stages["load"].disk == 16_060_522_496 + factors
    assert (stages["basis"].disk, stages["basis"].seconds, stages["basis"].device["temporaries"]) == (0, 0, 0)
    assert stages["decode"].seconds == by_name(estimate(workload(LLAMA_8B), (1, 1, 1), H100))["decode"].seconds
    mixed = by_name(estimate(dataclasses.replace(work, adapters=(LORA, LORA, None)), (1, 1, 1), H100))["express"].device
    assert mixed["experts"] == 16_060_522_496
    size = 8_030_261_248
    assert mixed["updates"] == 4 * (size + 2 * 32 * (4096**2 + 4096 * 14336))


@pytest.mark.parametrize("rank", [6, None])
@pytest.mark.parametrize("last", [{"layers/attn/q": 16, "final_norm": None}, None])
def test_the_compiler_agrees_on_adapters(rank, last):
    work = workload(rank=rank, adapters=(LORA, LORA, last))
    cpu = dataclasses.replace(H100, chip=None)
    [express] = [program for program in plan.compile_programs(work, (1, 1, 1), cpu) if program.name == "express"]
    parts = by_name(estimate(work, (1, 1, 1), cpu))["express"].device
    held = parts["base"] + parts["updates"] + parts["bases"] + parts["child"] + parts["archives"] / work.cells
    assert express.arguments == pytest.approx(held, rel=1e-3)


def test_devices_of_one_host_share_it(monkeypatch):
    monkeypatch.setattr(plan.device, "time", types.SimpleNamespace(perf_counter=itertools.count().__next__))  # all takes 1 s
    one, four = plan.this_machine(), plan.this_machine(4)
    assert four.memory == one.memory // 4
    assert four.single == one.single / 4
    assert four.bandwidth == one.bandwidth / 4
    here, there = (by_name(estimate(workload(), (1, 1, 2), device)) for device in (four, dataclasses.replace(H100, chip=None)))
    for name, stage in here.items():
        assert stage.total == there[name].total + stage.host / 2
    assert here["evaluate"].host > 0


@pytest.mark.parametrize("devices", [1, 2])
def test_every_advice_fits(devices):
    config = LLAMA_8B.replace(dtype="float32")
    work = workload(config, rank=256, slots=64, max_len=4096, new=512, prompt=3584, reply=512)
    mesh, stages = plan.choose_mesh(work, devices, H100)
    assert math.prod(mesh) == devices
    assert not plan.fits(stages, H100)
    found = plan.advice(work, devices, H100)
    assert found
    for line in found:
        count, kind, changes = devices, H100, {}
        words = line.replace("--device ", "--device=").replace("--devices ", "--devices=").split()
        for name, value in (word.split("=") for word in words):
            if name == "--devices":
                count = int(value)
            elif name == "--device":
                kind = plan.DEVICES[value]
            elif name == "model.dtype":
                changes["model"] = config.replace(dtype=value)
            else:
                changes[name.partition(".")[2]] = int(value)
        assert plan.fits(plan.choose_mesh(dataclasses.replace(work, **changes), count, kind)[1], kind), line


# What the command says


def test_the_paper_setting_without_its_weights(capsys):
    facts = planned(capsys, CONFIGS / "llama3_8b_cs.yaml", "--devices", 8)
    assert facts["parameters"] == 8_030_261_248
    assert facts["fits"]
    assert facts["mesh"] == {"population": 1, "fsdp": 1, "tensor": 8}
    assert facts["replies"] == 189 + 180 * 6 + 85 * 5
    assert facts["generations"] == 1200
    assert [stage["name"] for stage in facts["stages"]] == ["load", "basis", "express", "decode", "evaluate"]
    one = planned(capsys, CONFIGS / "llama3_8b_cs.yaml")
    assert not one["fits"]
    assert one["seconds_per_generation"] > facts["seconds_per_generation"]
    short = planned(capsys, CONFIGS / "llama3_8b_cs.yaml", "--reply-tokens", 100, "--devices", 8)
    assert short["seconds_per_generation"] < facts["seconds_per_generation"]


def test_another_mesh_is_advised(capsys):
    args = ["plan", str(CONFIGS / "llama3_8b_cs.yaml"), "--devices", "8"]
    assert main([*args, "--mesh", "8,1,1"]) == 0
    said = capsys.readouterr().out
    assert "--mesh 1,1,8 (or leave --mesh out)" in said
    assert "only other devices help" not in said
    assert "7 of 8 groups of devices are idle: search.batch_size is 1" in said
    assert "cycleqd run arranges devices like this with mesh.population=8 mesh.fsdp=1 mesh.tensor=1" in said
    facts = planned(capsys, *args[1:], "--mesh", "1,8,1")
    for line in facts["advice"]:
        words = line.replace("--mesh ", "--mesh=").replace("--devices ", "--devices=").replace("--device ", "--device=").split()
        given = {"--mesh": "1,8,1", "--devices": "8"} | dict(word.split("=") for word in words)
        assert planned(capsys, args[1], *(f"{name}={value}" for name, value in given.items()))["fits"], line


def test_the_mesh_of_the_config_is_planned(capsys):
    config = CONFIGS / "llama3_8b_cs.yaml"
    facts = planned(capsys, config, "mesh.population=2", "mesh.fsdp=2", "mesh.tensor=4", "search.batch_size=2")
    assert facts["devices"] == 16
    assert facts["mesh"] == {"population": 2, "fsdp": 2, "tensor": 4}
    assert not any("mesh" in note for note in facts["notes"])
    rest = planned(capsys, config, "mesh.fsdp=2", "mesh.tensor=-1", "--devices", 8)
    assert rest["mesh"] == {"population": 1, "fsdp": 2, "tensor": 4}
    asked = planned(capsys, config, "mesh.tensor=4", "--mesh", "1,8,1")
    assert asked["mesh"] == {"population": 1, "fsdp": 8, "tensor": 1}
    assert "cycleqd run arranges devices like this with mesh.population=1 mesh.fsdp=8 mesh.tensor=1" in asked["notes"]
    part = planned(capsys, config, "mesh.tensor=4", "--devices", 8)
    assert part["devices"] == 4  # as cycleqd run does


def test_one_device_needs_no_note_about_several(capsys):
    notes = planned(capsys, CONFIGS / "llama3_8b_cs.yaml")["notes"]
    assert notes == ["not at hand, so counted as full weights: the experts mbpp, dbbench, os_interaction"]


def test_experts_that_are_adapters(capsys, tmp_path):
    tree = yaml.safe_load((CONFIGS / "llama3_8b_cs.yaml").read_text("utf-8"))
    for name in tree["model"]["experts"]:
        tree["model"]["experts"][name] = str(tmp_path / name)
        (tmp_path / name).mkdir()
        modules = {"target_modules": ["q_proj"], "r": 2, "lora_alpha": 4, "peft_type": "LORA", "bias": "none"}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(modules))
        prefix = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        tensors = {}
        for i in range(32):
            tensors[prefix.format(i, "A")] = np.zeros((2, 4096), np.float16)
            tensors[prefix.format(i, "B")] = np.zeros((4096, 2), np.float16)
        save_file(tensors, tmp_path / name / "adapter_model.safetensors")
    (tmp_path / "lora.yaml").write_text(yaml.safe_dump(tree))
    facts = planned(capsys, tmp_path / "lora.yaml")
    parts = next(stage["device"] for stage in facts["stages"] if stage["name"] == "express")
    assert parts["experts"] == 0
    assert parts["bases"] == 4 * 3 * 2 * 32 * (4096 + 4096 + 1)
    assert facts["notes"] == []
    tree["model"]["experts"]["mbpp"] = "owner/model"
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(tree))
    assert main(["plan", str(tmp_path / "mixed.yaml")]) == 2
    assert "set genome.densify=true" in capsys.readouterr().err
    facts = planned(capsys, tmp_path / "mixed.yaml", "genome.densify=true")
    assert facts["notes"] == ["not at hand, so counted as full weights: the experts mbpp"]


def test_70b_says_what_does_not_fit_and_why(capsys):
    assert main(["plan", str(CONFIGS / "llama3_70b_cs.yaml"), "--devices", "8"]) == 0
    said = capsys.readouterr().out
    assert "it does not fit: 80.7 GB are to be had of each device" in said
    assert "express needs 115.1 GB, 52.9 GB of it experts" in said
    assert "base, 3 experts and a child are 88.2 GB already: only other devices help" in said
    assert said.endswith("each line alone:\n  --devices 16\n  --device h200\n")


def test_a_model_of_ones_own(capsys, tmp_path):
    tokenizer = chat.train_tiny_tokenizer(["some text", "and more"] * 3, 300)
    config = llama.LlamaConfig(tokenizer.vocab_size, 32, 48, 2, 4, 2, 8, max_position_embeddings=256)
    hf.save(tmp_path / "base", config, llama.init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    tree = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text("utf-8"))
    tree["model"] = {"base": str(tmp_path / "base")}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    from_headers = planned(capsys, tmp_path / "own.yaml")
    assert from_headers["parameters"] == llama.num_params(config)
    file = tmp_path / "base" / "config.json"
    from_file = planned(capsys, tmp_path / "own.yaml", "model.base=/no/such/folder", "--model-config", file)
    assert from_file["stages"] == from_headers["stages"]
    assert main(["plan", str(tmp_path / "own.yaml"), "model.base=/no/such/folder"]) == 2
    assert "--model-config" in capsys.readouterr().err


def test_the_quickstart_on_this_machine(capsys):
    if len(jax.devices()) < 2:
        pytest.skip("needs 2 (simulated) devices")
    args = ("plan", str(CONFIGS / "quickstart.yaml"), "--device", "cpu", "--devices", "2", "--mesh", "2,1,1", "--compile")
    assert main(args) == 0
    said = capsys.readouterr().out
    assert "it fits" in said
    assert "XLA: " in said
    assert "collectives: none" in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--mesh", "1,8"], "expected --mesh population,fsdp,tensor"),
        (["--mesh", "1,1,4"], "expected --mesh of 8 devices in all"),
        (["--mesh", "8,1,1", "--devices", "7"], "expected --mesh of 7 devices in all"),
        (["--mesh", "1,1,3", "--devices", "3"], "divide by the 3 devices of mesh axis 'tensor'"),
        (["--devices", "0"], "expected at least one device"),
        (["mesh.tensor=16"], "expected a mesh population × fsdp × tensor of 8 devices, got 1 × 1 × 16"),
        (["--devices", "7"], "expected a number of devices that divides"),
        (["--reply-tokens", "600"], "expected --reply-tokens from 1 to the 512"),
        (["engine.max_len=9000"], "the model has 8192 positions"),
        (["tasks.mbpp.train_size=null", "tasks.mbpp.train=null"], "neither its file nor train_size"),
        (["tasks.mbpp.train_size=null", "tasks.mbpp.train=absent.jsonl"], "no file at absent.jsonl"),
        (["genome={space: dense}"], "knows the expert space alone"),
    ],
)
def test_bad_input(args, message, capsys):
    assert main(["plan", str(CONFIGS / "llama3_8b_cs.yaml"), "--devices", "8", *args]) == 2
    assert message in capsys.readouterr().err


def test_without_the_cuda_plugin(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["plan", str(CONFIGS / "llama3_8b_cs.yaml"), "--devices", "8", "--compile"]) == 2
    assert "pip install 'cycleqd_jax[cuda12]'" in capsys.readouterr().err


# Compiled for H100s


@pytest.fixture
def cuda():
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        pytest.skip("compiling for GPUs needs the CUDA plugin: pip install 'cycleqd_jax[cuda12]'")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mesh"), [("h200", (1, 1, 1)), ("h100-80gb", (1, 1, 8)), ("h100-80gb", (1, 2, 4))])
@pytest.mark.parametrize("rank", [256, None])
def test_llama_3_8b_on_gpus(cuda, kind, mesh, rank):
    """Express holds a matrix or two beside its output, writes it in place, and sends nothing; estimates hold."""
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
    smallest = 2 * 4096 * 1024 // devices  # of a device's part of a matrix
    for name, program, arguments, static in engine_programs(work, mesh, space.base):
        compiled = program.trace(*arguments, **static).lower(lowering_platforms=("cuda",)).compile()
        memory, text = compiled.memory_analysis(), compiled.as_text()
        assert memory.temp_size_in_bytes <= 2**30
        assert memory.alias_size_in_bytes == parts["KV cache"]
        flow = Flow(text, smallest)
        assert flow.moved == []
        assert len(flow.used) == 7 * 32 + 2 + 2 * 32  # matrices and cache: all were followed
        rows, tokens = (slots, slots) if name.startswith("decode") else (8, 8 * 512)
        found = collectives(text)
        states = 2 * tokens * 4096
        assert {(c.bytes, c.count) for c in found if c.kind == "all-reduce" and c.bytes >= states} == (
            {(states, 2 * 32 + 1)} if devices > 1 else set()
        )
        assert all(c.bytes <= 4 * rows * 128256 for c in found if c.kind != "all-reduce")  # logits, where tokens are drawn
        if devices == 1:
            assert found == ()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "devices", "fits"), [("llama3_8b_cs", 8, True), ("llama3_70b_cs", 8, False)])
def test_the_command_compiles(cuda, name, devices, fits, capsys):
    facts = planned(capsys, CONFIGS / f"{name}.yaml", "--devices", devices, "--compile")
    assert facts["fits"] is fits
    assert {stage["source"] for stage in facts["stages"] if stage["name"] in ("basis", "express", "decode")} == {"XLA"}
    estimated = planned(capsys, CONFIGS / f"{name}.yaml", "--devices", devices)
    for compiled, guess in zip(facts["stages"], estimated["stages"], strict=True):
        assert guess["total"] == pytest.approx(compiled["total"], rel=0.05)
    moved = [c for program in facts["programs"] for c in program["collectives"] if c["kind"] != "all-reduce"]
    assert all(c["bytes"] <= 4 * 64 * 128256 for c in moved)  # logits, where tokens are drawn: no message carries weights
