"""Plans of runs of Segment Anything."""

from __future__ import annotations

import dataclasses
import importlib.util

import jax
import pytest

from cycleqd_jax import plan
from cycleqd_jax.models import sam
from cycleqd_jax.plan.images import (
    ImageWorkload,
    compile_images,
    estimate_images,
    image_alternatives,
    segment_seconds,
    temporaries,
)
from cycleqd_jax.plan.memory import GenomeMemory
from cycleqd_jax.plan.shapes import PUBLISHED_SAM

from .workloads import H100, by_name

HUGE = PUBLISHED_SAM["facebook/sam-vit-huge"]
MOBILE = sam.SamConfig(vision=sam.TinyVitConfig())
SMALL_VIT = sam.VitConfig(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    mlp_dim=128,
    image_size=256,
    window_size=4,
    global_attn_indexes=(1, 3),
)
SMALL = sam.SamConfig(vision=SMALL_VIT, prompt=sam.PromptConfig(image_size=256))
CPU = plan.Device("cpu", 1 << 34, 2e10, 1e11, 1e11, 1e10)


def workload(model=HUGE, **changes) -> ImageWorkload:
    given = {
        "model": model,
        "experts": 2,
        "rank": None,
        "method": "svd",
        "children": 4,
        "cells": 30,
        "keep": 2,
        "frozen": ("vision/", "prompt/"),
        "batch": 4,
        "images": 32,
        "all_images": 200,
    }
    return ImageWorkload(**(given | changes))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("size", "millions"), [("huge", 641), ("large", 312), ("base", 94)])
def test_published_models(size, millions):
    model = PUBLISHED_SAM[f"facebook/sam-vit-{size}"]
    assert round(sam.num_params(model) / 1e6) == millions
    assert plan.encoder_flops(model) == 2 * products_of(model.vision)
    assert plan.decoder_flops(model) == plan.decoder_flops(HUGE)


def products_of(vit: sam.VitConfig) -> int:
    """Multiplications of the encoder for one image: windows of 14 patches, the last ones filled up."""
    width, patches = vit.hidden_size, vit.grid**2
    windows = -(-vit.grid // vit.window_size)
    rows = {True: patches, False: (windows * vit.window_size) ** 2}
    sides = {True: vit.grid, False: vit.window_size}
    found = patches * 3 * vit.patch_size**2 * width  # the patches' embedding
    found += patches * (width * vit.output_channels + 9 * vit.output_channels**2)  # the neck
    for layer in range(vit.num_hidden_layers):
        whole = layer in vit.global_attn_indexes
        found += rows[whole] * width * 4 * width  # q, k, v and the projection
        found += rows[whole] * width * 2 * sides[whole] ** 2  # scores and sums
        found += rows[whole] * width * 2 * sides[whole]  # relative positions
        found += patches * width * 2 * vit.mlp_dim
    return found


def test_a_frozen_encoder_is_held_once_and_embeds_once():
    work, whole = workload(), workload(frozen=())
    stages, others = by_name(estimate_images(work, 1, H100)), by_name(estimate_images(whole, 1, H100))
    assert [*stages] == ["load", "basis", "embed", "express", "segment"]
    assert [*others] == ["load", "basis", "express", "segment"]
    weights = 4 * sam.num_params(HUGE)
    decoder = sum(4 * leaf.size for leaf in jax.tree.leaves(sam.abstract_params(HUGE)["decoder"]))
    assert stages["load"].device == {"base": weights, "experts": 2 * weights}
    assert stages["express"].device["experts"] == 2 * decoder
    assert others["express"].device["experts"] == 2 * weights
    assert stages["segment"].host == 200 * 64 * 64 * 256 * 4
    assert others["segment"].host == 0
    assert others["segment"].device["temporaries"] > stages["segment"].device["temporaries"]
    assert stages["embed"].seconds == pytest.approx(200 * plan.encoder_flops(HUGE) / 67e12)
    assert others["segment"].seconds == pytest.approx(32 * (plan.encoder_flops(HUGE) + plan.decoder_flops(HUGE)) / 67e12)
    groups = by_name(estimate_images(work, 4, H100))["embed"]  # every group has embeddings of its own
    assert (groups.seconds, groups.host) == (stages["embed"].seconds, 4 * stages["embed"].host)
    assert stages["embed"].device["frozen leaves of experts"] == 2 * (weights - decoder)


def test_images_beyond_the_cache_are_embedded_by_every_model():
    room = (4 << 30) // (64 * 64 * 256 * 4)
    work = workload(all_images=2 * room)
    assert work.kept == room
    more = segment_seconds(work, 32, H100) - segment_seconds(workload(), 32, H100)
    assert more >= 32 * 0.5 * plan.encoder_flops(HUGE) / 67e12 * 0.9


@pytest.mark.exhaustive
@pytest.mark.parametrize("model", [SMALL, pytest.param(MOBILE, marks=pytest.mark.exhaustive)], ids=["vit", "tiny_vit"])
@pytest.mark.parametrize(
    "frozen", [("vision/", "prompt/"), pytest.param((), marks=pytest.mark.exhaustive)], ids=["decoder", "all"]
)
def test_the_compiler_agrees_on_a_cpu(model, frozen):
    work = workload(model, frozen=frozen, batch=2)
    programs = {program.name.split(",")[0]: program for program in compile_images(work, CPU)}
    stages = by_name(estimate_images(work, 1, CPU))
    memory = GenomeMemory(work, (1, 1, 1), "cpu")
    express = programs["express"]
    held = stages["express"].device
    genome = memory.genome
    assert express.arguments == pytest.approx(sum(held[k] for k in ("base", "experts", "bases", "child")) + genome, rel=1e-3)
    for name, estimated in zip(("embed", "segment"), temporaries(model, 2), strict=True):
        assert 0.1 * estimated < programs[name].temporaries < 1.1 * estimated
        assert programs[name].collectives == ()


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [("vision/", "prompt/"), ()], ids=["decoder", "all"])
def test_vit_h_on_an_h100(frozen):
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        pytest.skip("compiling for GPUs needs the CUDA plugin: pip install 'cycleqd_jax[cuda12]'")
    work = workload(frozen=frozen)
    programs = {program.name.split(",")[0]: program for program in compile_images(work, H100)}
    for name, estimated in zip(("embed", "segment"), temporaries(HUGE, 4), strict=True):
        assert programs[name].temporaries < 1.1 * estimated


@pytest.mark.exhaustive
def test_what_would_fit():
    small = dataclasses.replace(H100, memory=int(26e9))
    work = workload(frozen=(), batch=16)
    devices = [f"--device {name}" for name in plan.DEVICES]
    assert image_alternatives(work, 1, small) == ["masks.batch_size=4", "model.dtype=bfloat16", *devices]
    many = workload(batch=512)
    assert image_alternatives(many, 1, small)[0].startswith("masks.batch_size=")
