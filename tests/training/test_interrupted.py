"""Trainings that are interrupted, or killed between two checkpoints, end with the weights of an undisturbed one."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.genome import CoefficientSpace
from cycleqd_jax.models.llama import LlamaConfig, init_params
from cycleqd_jax.runs.training_checkpoints import CachedTraining
from cycleqd_jax.training import TrainOptions, finetune, finetune_mask_adapter, finetune_masks, fit_coefficients
from cycleqd_jax.training.interrupted import Loop

from ..shapes import CONFIGS, ellipses, random_params

CONFIG = LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    tie_word_embeddings=True,
    initializer_range=0.2,
)


class StoppedAt:
    """A progress that is interrupted at a step, and counts the steps that it saw."""

    def __init__(self, step: int | None = None) -> None:
        self.step, self.seen = step, []

    def __call__(self, stage, done, total, values) -> None:
        self.seen.append(done)
        if self.step is not None and done >= self.step:
            raise KeyboardInterrupt


def kept(folder, log=None, minutes=60.0) -> CachedTraining:
    return CachedTraining(folder, "model", seed=0, minutes=minutes, log=log or (lambda line: pytest.fail(line)))


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

    with Killed(tmp_path, "model", seed=0, minutes=1e-9, log=pytest.fail) as checkpoints, pytest.raises(KeyboardInterrupt):
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
    assert "this training continues without it" in lines[0]
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
    assert "this training begins again" in lines[0]
    shutil.rmtree(tmp_path / "unfinished", ignore_errors=True)


def test_a_disk_that_refuses_does_not_hide_the_interrupt(examples, tmp_path):
    (tmp_path / "unfinished").write_text("a file where a folder should be")
    lines = []
    with kept(tmp_path, lines.append) as checkpoints, pytest.raises(KeyboardInterrupt):
        language(examples)(progress=StoppedAt(4), checkpoints=checkpoints)
    assert lines[0].startswith("warning: no checkpoint of the training")
