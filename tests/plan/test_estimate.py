"""The formulas of estimates, computed by hand."""

from __future__ import annotations

import dataclasses
import itertools
import types

import pytest

from cycleqd_jax import plan
from cycleqd_jax.plan.estimate import estimate

from .workloads import H100, LLAMA_8B, LORA, by_name, workload


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
    """Express of full rank is limited by its 2 m n K r FLOPs per matrix, that of rank 256 by reading the weights."""
    work = workload(LLAMA_8B, rank=256, slots=1, max_len=4096, prompt=1, reply=1, rounds=(1,))
    stages = by_name(estimate(work, (1, 1, 1), H100))
    matrices = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 2 * 4096 * 128256
    moved = 2 * (5 * matrices + 768 * (32 * (2 * 8192 + 2 * 5120 + 3 * 18432) + 2 * (128256 + 4096)))
    assert stages["express"].seconds == pytest.approx(moved / 3.35e12, rel=0.01)
    full = 32 * (2 * 4096**3 + 2 * 4096 * 1024**2 + 3 * 4096**2 * 14336) + 2 * 4096**2 * 128256
    for dtype, rate in (("bfloat16", 989e12), ("float32", 67e12)):
        most = by_name(estimate(workload(LLAMA_8B.replace(dtype=dtype), rank=None), (1, 1, 1), H100))["express"].seconds
        assert most == pytest.approx(2 * 3 * full / rate, rel=0.01)
    read = (matrices - 4096 * 128256) * 2 / 3.35e12  # per step
    attention = 4 * 32 * 32 * 128 * (4096 + 512)  # per token: the kernel reads all columns of its row
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


def test_devices_of_one_host_share_it(monkeypatch):
    # Everything takes one second.
    monkeypatch.setattr(plan.device, "time", types.SimpleNamespace(perf_counter=itertools.count(0.0).__next__))
    one, four = plan.this_machine(), plan.this_machine(4)
    assert four.memory == one.memory // 4
    assert four.single == one.single / 4
    assert four.bandwidth == one.bandwidth / 4
    here, there = (by_name(estimate(workload(), (1, 1, 2), device)) for device in (four, dataclasses.replace(H100, chip=None)))
    for name, stage in here.items():
        assert stage.total == there[name].total + stage.host / 2
    assert here["evaluate"].host > 0
