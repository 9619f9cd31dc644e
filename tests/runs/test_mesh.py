"""The loop on several (simulated) devices: a pool of workers, models on a group of devices, and populations over one base."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml
from safetensors.numpy import save_file

from cycleqd_jax.cli import main
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import load_tokenizer

from .conftest import TASKS, history, write_config

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        len(jax.devices()) < 8, reason="needs 8 (simulated) devices: set XLA_FLAGS=--xla_force_host_platform_device_count=8"
    ),
]


def evolved(folder: Path, config: str, name: str, *overrides: str) -> tuple[list[dict], list[np.ndarray]]:
    """Evolves in a run folder of its own; the journal, and the arrays of the last checkpoint."""
    run = folder / name
    assert main(["evolve", config, f"output={run}", *overrides]) == 0
    newest = max((path for path in (run / "checkpoints").iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((newest / "search").absolute())
    return history(run), [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_same(one, other) -> None:
    assert one[0] == other[0]
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({tuple(line["scores"].values()) for line in one[0]}) > 3, "scores so alike that no test here could fail"


def test_groups_of_one_device_find_the_same_archives(finished, trained, compiled, capsys):
    """Interrupted on the way, and continued: Ctrl-C is quick and loses nothing that was scored."""
    config = write_config(trained)
    command = [sys.executable, "-m", "cycleqd_jax.cli", "evolve", str(config), "mesh.population=-1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | compiled, text=True)
    journal, deadline = trained / "run" / "history.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 4:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.002)
    output = process.communicate(timeout=60)[0]
    if process.returncode == 0:
        pytest.skip("the run was over before it could be interrupted")
    assert process.returncode == 130, output
    assert "interrupted; run the same command to continue" in output
    assert "6 of 8 groups of devices are idle: search.batch_size is 2" in output
    assert 4 <= len(history(trained / "run")) < 3 + 4 * 2
    assert main(["evolve", str(config), "mesh.population=2"]) == 0
    assert history(trained / "run") == history(finished / "run")
    assert main(["export", str(config)]) == 0  # with one device again: it is the same run
    for name in ("model/model.safetensors", "grid.json"):
        assert (trained / "run" / name).read_bytes() == (finished / "run" / name).read_bytes()


def test_task_vectors_as_genomes_go_to_any_group(trained):
    config = str(write_config(trained, genome={"space": "dense", "mutation": "none"}, search={"generations": 1}))
    assert_same(evolved(trained, config, "one"), evolved(trained, config, "two", "mesh.population=2"))


@pytest.mark.slow  # it compiles for eight devices, which takes minutes on a busy machine
def test_eight_groups_find_the_same_archives(trained):
    config = str(write_config(trained, search={"generations": 1, "batch_size": 8}, engine={"slots": 8}))
    assert_same(evolved(trained, config, "one"), evolved(trained, config, "eight", "mesh.population=8"))


def test_a_steady_search_over_two_groups_is_that_of_its_journal(trained, capsys):
    config, run = str(write_config(trained)), trained / "run"
    assert main(["evolve", config, "search.steady=true", "search.batch_size=1", "mesh.population=2"]) == 0
    lines = history(run)
    assert [line["id"] for line in lines] == list(range(len(TASKS) + 4))
    children = lines[len(TASKS) :]
    assert {line["asked"][1] for line in children} == set(range(4))
    assert any(line["asked"][0] < line["generation"] for line in children), "no child was evaluated beside another one"
    assert main(["verify", str(run)]) == 0, capsys.readouterr().err


def given(folder: Path, models: dict[str, Path], **changes) -> str:
    """A config with a base and experts of one's own."""
    model = {"base": str(models["base"]), "experts": {task: str(models[task]) for task in TASKS}}
    few = {"engine": {"slots": 8}, "merges": [], "export": {"elites": 1}}  # programs to compile, and rows to measure
    path = write_config(folder, baselines=[], **few | changes)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"model": model}))
    return str(path)


def sources(finished: Path) -> dict[str, Path]:
    """Folders of the finished run's models."""
    names = {"base": "base"} | {task: f"expert-{task}" for task in TASKS}
    return {name: next((finished / "cache" / "models").glob(f"{file}-*")) for name, file in names.items()}


@pytest.fixture(scope="session")
def wider(finished, tmp_path_factory) -> dict[str, Path]:
    """The finished run's base and experts with heads that eight devices can share: the same functions.

    Heads more, that add nothing; and the only key/value head eight times.
    """
    heads, kv_heads = 16, 8
    found = {}
    for name, source in sources(finished).items():
        config, params = hf.load(source)
        attn, width = params["layers"]["attn"], config.head_dim * (heads - config.num_attention_heads)
        q, o = jnp.pad(attn["q"], ((0, 0), (0, 0), (0, width))), jnp.pad(attn["o"], ((0, 0), (0, width), (0, 0)))
        k, v = (jnp.concatenate([attn[x]] * kv_heads, axis=-1) for x in "kv")
        layers = params["layers"] | {"attn": attn | {"q": q, "k": k, "v": v, "o": o}}
        found[name] = tmp_path_factory.mktemp("wider") / name
        shape = config.replace(num_attention_heads=heads, num_key_value_heads=kv_heads)
        hf.save(found[name], shape, params | {"layers": layers}, tokenizer=load_tokenizer(source))
    return found


@pytest.fixture(scope="session")
def on_one_device(wider, tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("one")
    return folder, evolved(folder, given(folder, wider, search={"generations": 2}), "run")[0]


def assert_same_on(mesh: dict[str, int], folder: Path, models: dict[str, Path], one: tuple[Path, list[dict]]) -> str:
    """Evolves on a mesh with the scores and archives of one device; the config."""
    alone, lines = one
    assert len({tuple(line["scores"].values()) for line in lines}) > 3, "scores so alike that no test here could fail"
    config = given(folder, models, search={"generations": 2}, mesh=mesh, cache=str(alone / "cache"))
    assert evolved(folder, config, "run")[0] == lines
    assert (folder / "run" / "grid.json").read_bytes() == (alone / "run" / "grid.json").read_bytes()
    return config


@pytest.mark.slow  # programs for eight devices are compiled for minutes on a busy machine
@pytest.mark.parametrize("mesh", [{"tensor": 8}, {"fsdp": 2, "tensor": 4}, {"population": 2, "tensor": 4}], ids=str)
def test_groups_of_many_devices_find_the_same_archives(wider, on_one_device, tmp_path, mesh):
    assert_same_on(mesh, tmp_path, wider, on_one_device)


@pytest.mark.parametrize(
    "mesh", [{"fsdp": 2, "tensor": 2}, pytest.param({"population": 2, "tensor": 2}, marks=pytest.mark.slow)], ids=str
)
def test_groups_of_several_devices_find_the_same_scores(wider, on_one_device, tmp_path, mesh):
    config = assert_same_on(mesh, tmp_path, wider, on_one_device)
    assert main(["export", config]) == 0  # and all that the table needs
    ours, theirs = (hf.load(path)[1] for path in (tmp_path / "run" / "model", wider["base"]))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"tensor": 2}, "an axis 'tensor' whose size divides the model's 1 KV heads, got 2 devices"),
        ({"tensor": 16}, "a mesh population × fsdp × tensor of 8 devices, got 1 × 1 × 16"),
    ],
)
def test_meshes_that_can_not_be(trained, capsys, mesh, message):
    config = write_config(trained, mesh=mesh)
    assert main(["evolve", str(config)]) == 2
    assert message in capsys.readouterr().err
    assert not (trained / "run" / "history.jsonl").exists()


# ---------------------------------------------------------------------------------------------------- over one base


@pytest.fixture(scope="session")
def adapters(finished, tmp_path_factory) -> dict[str, Path]:
    """The finished run's experts as LoRA adapters of rank 24 over its base."""
    models = sources(finished)
    base, found = hf.load(models["base"])[1], {"base": models["base"]}
    names = {"attn": {x: f"self_attn.{x}_proj" for x in "qkvo"}, "mlp": {x: f"mlp.{x}_proj" for x in ("gate", "up", "down")}}
    for task in TASKS:
        expert, tensors = hf.load(models[task])[1], {}
        for part, leaves in names.items():
            for leaf, module in leaves.items():
                tau = np.asarray(expert["layers"][part][leaf]) - np.asarray(base["layers"][part][leaf])
                for i, matrix in enumerate(tau):
                    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
                    prefix = f"base_model.model.model.layers.{i}.{module}"
                    tensors[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(u[:, :24].T)
                    tensors[f"{prefix}.lora_B.weight"] = np.ascontiguousarray((s[:24, None] * vt[:24]).T)
        found[task] = tmp_path_factory.mktemp("adapters") / task
        found[task].mkdir()
        modules = [f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")]
        settings = {"target_modules": modules, "r": 24, "lora_alpha": 24, "peft_type": "LORA", "bias": "none"}
        (found[task] / "adapter_config.json").write_text(json.dumps(settings))
        save_file(tensors, found[task] / "adapter_model.safetensors")
    return found


def test_a_population_over_one_base_finds_the_same_scores(adapters, tmp_path):
    config = given(tmp_path, adapters, search={"generations": 2, "batch_size": 4})
    together = evolved(tmp_path, config, "together", "engine.population=2")
    assert_same(together, evolved(tmp_path, config, "in two groups", "engine.population=2", "mesh.population=2"))
    # decoded one by one, the last bits of logits are others: here no token hangs on them
    assert [line["items"] for line in together[0]] == [line["items"] for line in evolved(tmp_path, config, "alone")[0]]


def test_only_adapters_share_a_base(finished, adapters, tmp_path, capsys):
    models = adapters | {"dbbench": sources(finished)["dbbench"]}
    config = given(tmp_path, models, engine={"population": 2}, genome={"densify": True})
    assert main(["evolve", config]) == 2
    assert "got whole weights for the expert of task 'dbbench'" in capsys.readouterr().err
    assert not (tmp_path / "run" / "history.jsonl").exists()
