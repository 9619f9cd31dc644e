"""Merges equal those of mergekit on the same weights.

mergekit runs in a Python of its own, which the environment variable ``CYCLEQD_MERGEKIT_PYTHON`` names.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from cycleqd_jax.merging import merge_models
from cycleqd_jax.operators import dare, dare_ties

from .conftest import write_models

pytestmark = pytest.mark.slow


def run_mergekit(runs):
    python = os.environ.get("CYCLEQD_MERGEKIT_PYTHON")
    if not python:
        pytest.skip("CYCLEQD_MERGEKIT_PYTHON does not name a Python that has mergekit")
    script = Path(__file__).with_name("mergekit_runs.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, script, json.dumps(runs)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def recipes(names):
    """Configs by name, with gradients, filters and every level of parameters."""
    base, a, b, c = names
    one = [{"model": name, "parameters": {"weight": w}} for name, w in ((a, 1.0), (b, 0.3), (c, 0.5))]
    ties = [
        {"model": a, "parameters": {"density": [1, 0.7, 0.1], "weight": 1.0}},
        {"model": b, "parameters": {"density": 0.5, "weight": [0, 0.3, 0.7, 1]}},
        {"model": c, "parameters": {"density": 0.33, "weight": [{"filter": "mlp", "value": 0.5}, {"value": 0}]}},
    ]
    t = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    spans = [{"model": name, "layer_range": [0, 3]} for name in (base, a)]
    task = {"merge_method": "task_arithmetic", "base_model": base}
    return {
        "linear": {"merge_method": "linear", "models": one},
        "linear, unnormalised, with a base": {
            "merge_method": "linear", "models": [*one, {"model": base}], "base_model": base,
            "parameters": {"normalize": False, "weight": [0.2, 0.4]},
        },
        "task arithmetic": {**task, "models": one},
        "task arithmetic, normalised": {
            **task, "models": [{"model": base}, *one], "parameters": {"normalize": True, "lambda": [0.5, 1.5]},
            "tokenizer_source": "base",
        },
        "task arithmetic, negative weights": {
            **task, "models": [{"model": a, "parameters": {"weight": -0.5}}, {"model": b}],
            "parameters": {"weight": "1e-1", "lambda": 0.4},
        },
        "ties": {
            "merge_method": "ties", "base_model": base, "models": ties, "parameters": {"normalize": True, "int8_mask": True},
        },
        "ties, sums": {
            "merge_method": "ties", "base_model": base, "models": [{"model": a}, {"model": b}, {"model": c}],
            "parameters": {
                "normalize": False, "rescale": True, "lambda": 0.7, "density": 0.2,
                "weight": [{"filter": "*", "value": [1, 2]}],
            },
        },
        "ties, tiny densities": {
            "merge_method": "ties", "base_model": base, "models": [{"model": a}, {"model": b}],
            "parameters": {"density": 0.001, "weight": 1.0},
        },
        "slerp": {"merge_method": "slerp", "base_model": base, "slices": [{"sources": spans}], "parameters": {"t": t}},
        "slerp of the other order": {
            "merge_method": "slerp", "base_model": base, "models": [{"model": c}, {"model": base}], "parameters": {"t": 0.3},
        },
        "dare without drops": {
            "merge_method": "dare_linear", "base_model": base, "models": one, "parameters": {"density": 1.0},
        },
    }  # fmt: skip


def compare(ours, theirs, tol):
    got, want = load_file(Path(ours) / "model.safetensors"), load_file(Path(theirs) / "model.safetensors")
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        wide, narrow = np.asarray(tensor, np.float64), np.asarray(got[name], np.float64)
        np.testing.assert_allclose(narrow, wide, rtol=tol, atol=tol * np.abs(wide).max(), err_msg=name)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("spread", [0.05, 0.002], ids=["far", "near"])
def test_float32(tmp_path, spread):
    names = write_models(tmp_path / "models", spread=spread)
    runs = []
    for i, recipe in enumerate(recipes(names).values()):
        (tmp_path / f"{i}.yml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        runs.append([str(tmp_path / f"{i}.yml"), str(tmp_path / f"theirs{i}"), None])
    run_mergekit(runs)
    for i, name in enumerate(recipes(names)):
        merge_models(tmp_path / f"{i}.yml", tmp_path / f"ours{i}")
        try:
            compare(tmp_path / f"ours{i}", tmp_path / f"theirs{i}", 1e-6)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale", [True, False])
def test_dare_with_the_masks_of_mergekit(tmp_path, method, rescale):
    base, *experts = write_models(tmp_path / "models", count=2)
    recipe = {
        "merge_method": method, "base_model": base, "parameters": {"density": 0.4, "lambda": 0.8, "rescale": rescale},
        "models": [{"model": name, "parameters": {"weight": w}} for name, w in zip(experts, (1.0, 0.6), strict=True)],
    }  # fmt: skip
    (tmp_path / "dare.yml").write_text(yaml.safe_dump(recipe))
    run_mergekit([[str(tmp_path / "dare.yml"), str(tmp_path / "theirs"), str(tmp_path / "masks")]])
    recorded = load_file(tmp_path / "masks")
    weights = [load_file(Path(name) / "model.safetensors") for name in (base, *experts)]
    masks = []
    for expert in weights[1:]:
        found = {}
        for name, tensor in expert.items():
            delta = tensor - weights[0][name]
            for i in range(len(recorded) // 2):
                if np.array_equal(recorded[f"{i}.delta"], delta):
                    found[name] = recorded[f"{i}.mask"].astype(bool)
        masks.append(found)
    operator = dare if method == "dare_linear" else dare_ties
    options = {"scale": 0.8, "normalize": False, "masks": masks, "rescale": "l1" if rescale else "none"}
    got = operator(jax.random.key(0), weights[0], weights[1:], [1.0, 0.6], 0.4, **options)
    want = load_file(tmp_path / "theirs" / "model.safetensors")
    for name, tensor in want.items():
        np.testing.assert_allclose(np.asarray(got[name]), tensor, rtol=1e-6, atol=1e-6 * np.abs(tensor).max(), err_msg=name)
