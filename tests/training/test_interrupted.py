"""Trainings that are interrupted, or killed between two checkpoints, end with the weights of an undisturbed one."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax import sharding
from cycleqd_jax.genome import CoefficientSpace
from cycleqd_jax.models.llama import init_params, logical_axes
from cycleqd_jax.runs.training.checkpoints import CachedTraining
from cycleqd_jax.training import TrainOptions, finetune, finetune_mask_adapter, finetune_masks, fit_coefficients
from cycleqd_jax.training.interrupted import Loop
from cycleqd_jax.types import InputError

from ..shapes import CONFIGS, ellipses, random_params
from .conftest import CONFIG


class StoppedAt:
    """A progress that is interrupted at a step, and counts the steps that it saw."""

    def __init__(self, step: int | None = None) -> None:
        self.step, self.seen = step, []

    def __call__(self, stage, done, total, values) -> None:
        self.seen.append(done)
        if self.step is not None and done >= self.step:
            raise KeyboardInterrupt


def no_warning(line) -> None:
    assert "continues after step" in line


def kept(folder, log=no_warning) -> CachedTraining:
    return CachedTraining(folder, "model", seed=0, minutes=60.0, log=log)


def same(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def language(examples, **options):
    params = init_params(CONFIG, jax.random.key(0))
    chosen = TrainOptions(12, 8, 1e-2, weight_decay=0.1, steps_per_dispatch=4, **options)
    return lambda **more: finetune(params, CONFIG, examples, chosen, seed=1, **more)


def masks(examples):
    options = TrainOptions(steps=12, batch_size=2, learning_rate=5e-3, weight_decay=0.1, steps_per_dispatch=4)
    return lambda **more: finetune_masks(random_params("tiny_vit"), CONFIGS["tiny_vit"], ellipses(6), options, **more)


def adapter(examples):
    options = TrainOptions(steps=12, batch_size=2, learning_rate=5e-3, steps_per_dispatch=4)

    def train(**more):
        found, metrics = finetune_mask_adapter(random_params("tiny_vit"), CONFIGS["tiny_vit"], ellipses(6), options, **more)
        return dict(found.updates), metrics

    return train


def coefficients(examples):
    base = init_params(CONFIG, jax.random.key(0))
    experts = [jax.tree.map(lambda leaf, k=k: leaf + jnp.float32(0.02 * k), base) for k in (1, -2)]
    space = CoefficientSpace.from_experts(base, experts, groups=2)
    return lambda **more: fit_coefficients(space, CONFIG, examples, steps=48, batch_size=4, learning_rate=0.05, **more)


CASES = [
    language,
    pytest.param(lambda examples: language(examples, group_by_length=True), marks=pytest.mark.exhaustive, id="by length"),
    pytest.param(masks, marks=pytest.mark.exhaustive),
    pytest.param(adapter, marks=pytest.mark.exhaustive),
    pytest.param(coefficients, marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize("training", CASES)
def test_interrupted_and_continued(training, examples, tmp_path):
    train = training(examples)
    whole = StoppedAt()
    expected, metrics = train(progress=whole)
    stop = StoppedAt(whole.seen[0])
    with kept(tmp_path) as checkpoints, pytest.raises(KeyboardInterrupt):
        train(progress=stop, checkpoints=checkpoints)
    with kept(tmp_path) as checkpoints:
        rest = StoppedAt()
        found, others = train(progress=rest, checkpoints=checkpoints)
        checkpoints.remove()
    assert stop.seen + rest.seen == whole.seen  # no step twice
    same(found, expected)
    np.testing.assert_array_equal(others.losses, metrics.losses)
    names = [name for name in ("tokens", "attended", "images") if hasattr(metrics, name)]
    assert [getattr(others, name) for name in names] == [getattr(metrics, name) for name in names]
    assert not (tmp_path / "unfinished" / "model").exists()


def test_killed_after_a_checkpoint_by_time(examples, tmp_path):
    """A killed process keeps nothing itself: what the timer wrote counts."""
    train = language(examples)
    expected, _ = train()

    class Killed(CachedTraining):
        def interrupted(self, step, state) -> None:
            pass

    with Killed(tmp_path, "model", seed=0, minutes=1e-9, log=no_warning) as checkpoints, pytest.raises(KeyboardInterrupt):
        train(progress=StoppedAt(8), checkpoints=checkpoints)  # after the dispatch, before its checkpoint
    with kept(tmp_path) as checkpoints:
        rest = StoppedAt()
        found, _ = train(progress=rest, checkpoints=checkpoints)
    assert rest.seen == [8, 12]
    same(found, expected)


def test_interrupted_while_the_host_waits(examples, tmp_path, monkeypatch):
    """The update is dispatched, its losses have not been read: the update counts."""
    train = language(examples)
    expected, metrics = train()
    sync, calls = Loop.sync, []

    def stopped(self):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sync(self)

    monkeypatch.setattr(Loop, "sync", stopped)
    with kept(tmp_path) as checkpoints, pytest.raises(KeyboardInterrupt):
        train(checkpoints=checkpoints)
    monkeypatch.undo()
    with kept(tmp_path) as checkpoints:
        rest = StoppedAt()
        found, others = train(progress=rest, checkpoints=checkpoints)
    assert rest.seen == [12]
    same(found, expected)
    np.testing.assert_array_equal(others.losses, metrics.losses)


@pytest.mark.parametrize("damage", ["bytes", "removed"])
def test_damaged_checkpoints_are_not_used(examples, tmp_path, damage):
    train = language(examples)
    expected, _ = train()
    with kept(tmp_path) as checkpoints, pytest.raises(KeyboardInterrupt):
        train(progress=StoppedAt(4), checkpoints=checkpoints)
    for file in [file for file in (tmp_path / "unfinished").rglob("search/d/*") if file.is_file()]:
        file.write_bytes(file.read_bytes()[::-1]) if damage == "bytes" else file.unlink()
    lines, rest = [], StoppedAt()
    with kept(tmp_path, lines.append) as checkpoints:
        found, _ = train(progress=rest, checkpoints=checkpoints)
    assert rest.seen == [4, 8, 12]
    assert len(lines) == 1
    assert "is damaged, and is removed" in lines[0]
    same(found, expected)


def test_a_checkpoint_of_another_model_is_not_used(examples, tmp_path):
    with kept(tmp_path) as checkpoints, pytest.raises(KeyboardInterrupt):
        language(examples)(progress=StoppedAt(4), checkpoints=checkpoints)
    lines, rest = [], StoppedAt()
    wider = CONFIG.replace(intermediate_size=48)
    with kept(tmp_path, lines.append) as checkpoints:
        options = TrainOptions(12, 8, 1e-2, steps_per_dispatch=4)
        finetune(init_params(wider, jax.random.key(0)), wider, examples, options, progress=rest, checkpoints=checkpoints)
    assert rest.seen == [4, 8, 12]
    assert "is of another training, and is removed" in lines[0]


def test_a_disk_that_refuses_does_not_hide_the_interrupt(examples, tmp_path):
    (tmp_path / "unfinished").write_text("a file where a folder should be")
    lines = []
    with kept(tmp_path, lines.append) as checkpoints, pytest.raises(KeyboardInterrupt):
        language(examples)(progress=StoppedAt(4), checkpoints=checkpoints)
    assert lines[0].startswith("warning: a checkpoint of a training can't be written")


def test_a_training_outlives_a_disk_that_refuses(examples, tmp_path):
    (tmp_path / "unfinished").write_text("a file where a folder should be")
    train, lines = language(examples), []
    expected, _ = train()
    with CachedTraining(tmp_path, "model", seed=0, minutes=1e-9, log=lines.append) as checkpoints:
        found, _ = train(checkpoints=checkpoints)
    assert len(lines) == 1
    same(found, expected)


def test_partial_checkpoints_are_removed(examples, tmp_path):
    partial = tmp_path / "unfinished" / "model" / "8.orbax-checkpoint-tmp-3"
    partial.mkdir(parents=True)
    with kept(tmp_path) as checkpoints, pytest.raises(KeyboardInterrupt):
        language(examples)(progress=StoppedAt(4), checkpoints=checkpoints)
    assert not partial.exists()


def test_a_checkpoint_of_a_newer_version_is_kept_and_refused(examples, tmp_path, monkeypatch):
    with kept(tmp_path) as checkpoints, pytest.raises(KeyboardInterrupt):
        language(examples)(progress=StoppedAt(4), checkpoints=checkpoints)
    monkeypatch.setattr(sys.modules[CachedTraining.__module__], "SCHEMA", 0)
    with (
        kept(tmp_path) as checkpoints,
        pytest.raises(InputError, match="expected a checkpoint of schema 0 or older, got schema 1"),
    ):
        language(examples)(checkpoints=checkpoints)
    assert (tmp_path / "unfinished" / "model" / "4").exists()


def test_a_checkpoint_within_a_dispatch_is_refused(examples, tmp_path):
    with kept(tmp_path) as checkpoints, pytest.raises(KeyboardInterrupt):
        language(examples)(progress=StoppedAt(4), checkpoints=checkpoints)
    options = TrainOptions(12, 8, 1e-2, weight_decay=0.1, steps_per_dispatch=6)
    with kept(tmp_path) as checkpoints, pytest.raises(InputError, match="got one of step 4, between 0 and 6"):
        finetune(init_params(CONFIG, jax.random.key(0)), CONFIG, examples, options, seed=1, checkpoints=checkpoints)


@pytest.mark.exhaustive
def test_coefficients_of_experts_on_several_devices(examples, tmp_path):
    """Restored coefficients are not bound to one device."""
    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])
    base = init_params(CONFIG, jax.random.key(0))
    experts = [jax.tree.map(lambda leaf, k=k: leaf + jnp.float32(0.02 * k), base) for k in (1, -2)]
    space = CoefficientSpace.from_experts(base, experts, groups=2)
    space = space.shard(mesh, sharding.shardings(mesh, base, logical_axes(CONFIG)))

    def train(**more):
        return fit_coefficients(space, CONFIG, examples, steps=48, batch_size=4, learning_rate=0.05, **more)

    expected, _ = train()
    with kept(tmp_path) as checkpoints, pytest.raises(KeyboardInterrupt):
        train(progress=StoppedAt(16), checkpoints=checkpoints)
    with kept(tmp_path) as checkpoints:
        found, _ = train(checkpoints=checkpoints)
    np.testing.assert_array_equal(found, expected)
