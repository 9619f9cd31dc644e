"""Workloads and devices for the tests of plans."""

from __future__ import annotations

from cycleqd_jax import plan
from cycleqd_jax.models import llama

H100 = plan.DEVICES["h100-80gb"]
SMALL = llama.LlamaConfig(512, 128, 256, 3, 8, 4, 16, max_position_embeddings=256, dtype="float32")
LLAMA_8B = llama.LlamaConfig(128256, 4096, 14336, 32, 32, 8, 128, max_position_embeddings=8192, dtype="bfloat16")
LORA = {"layers/attn/q": 8, "layers/mlp/down": 4}


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
