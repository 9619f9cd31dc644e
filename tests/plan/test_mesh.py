"""Meshes, and alternatives to a plan that does not fit."""

from __future__ import annotations

import dataclasses
import math

import pytest

from cycleqd_jax import plan

from .workloads import H100, LLAMA_8B, workload


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_every_alternative_fits(devices):
    config = LLAMA_8B.replace(dtype="float32")
    work = workload(config, rank=256, slots=64, max_len=4096, new=512, prompt=3584, reply=512)
    mesh, stages = plan.choose_mesh(work, devices, H100)
    assert math.prod(mesh) == devices
    assert not plan.fits(stages, H100)
    found = plan.alternatives(work, devices, H100)
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
