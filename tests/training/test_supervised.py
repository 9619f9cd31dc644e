"""Training: against a plain optax loop, reproducible to the bit, and refusing what it can't learn from."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cycleqd_jax.models.llama import forward, init_params
from cycleqd_jax.training.supervised import TrainOptions, finetune, learning_rates, loss
from cycleqd_jax.types import InputError

from .conftest import CONFIG


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


def _same(tree1, tree2):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(tree1), jax.tree.leaves(tree2), strict=True))


def test_it_learns_and_reports(params, examples):
    options = TrainOptions(steps=40, batch_size=16, learning_rate=1e-2, steps_per_dispatch=16)
    seen = []
    new, metrics = finetune(params, CONFIG, examples, options, progress=lambda *args: seen.append(args), stage="x")
    assert metrics.losses.shape == (40,)
    assert np.mean(metrics.losses[-5:]) < 0.8 * np.mean(metrics.losses[:5])
    assert [(stage, done, total) for stage, done, total, _ in seen] == [("x", 16, 40), ("x", 32, 40), ("x", 40, 40)]
    assert seen[-1][3]["loss"] == pytest.approx(metrics.losses[-1])
    assert metrics.tokens == sum(len(ids) for ids, _ in examples) * 10  # 640 draws are ten permutations of 64
    assert metrics.attended == sum(sum(range(1, len(ids) + 1)) for ids, _ in examples) * 10
    assert not _same(new, params)


@pytest.mark.exhaustive
def test_equals_a_plain_optax_loop(params, examples):
    """Also shows that the order of the examples is one permutation after another, and that padding is of no matter."""
    options = TrainOptions(steps=7, batch_size=32, learning_rate=5e-3, weight_decay=0.1, clip=0.5, steps_per_dispatch=3)
    new, metrics = finetune(params, CONFIG, examples, options, seed=3)

    schedule = optax.warmup_cosine_decay_schedule(0.0, 5e-3, int(0.7), 7, 1e-3)
    mask = jax.tree_util.tree_map_with_path(lambda path, leaf: "norm" not in str(path), params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(lambda count: schedule(count + 1), b1=0.9, b2=0.95, weight_decay=0.1, mask=mask),
    )

    def reference_loss(params, ids, learned):  # summed over the learned tokens of one conversation, without padding
        logp = jax.nn.log_softmax(forward(params, CONFIG, ids[None, :-1])[0])
        return -jnp.sum(jnp.take_along_axis(logp, ids[1:, None], axis=1)[:, 0] * learned[1:].astype(logp.dtype))

    reference = jax.jit(jax.value_and_grad(reference_loss))

    rng = np.random.default_rng(3)
    order = np.concatenate([rng.permutation(64) for _ in range(4)])
    expected, state, losses = params, optimizer.init(params), []
    for step in range(7):
        batch = [examples[i] for i in order[32 * step : 32 * step + 32]]
        parts = [reference(expected, jnp.asarray(ids), jnp.asarray(learned)) for ids, learned in batch]
        value, gradients = jax.tree.map(lambda *leaves: sum(leaves) / (3 * len(batch)), *parts)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradients, state, expected)
        expected = optax.apply_updates(expected, updates)
        losses.append(float(value))
    np.testing.assert_allclose(metrics.losses, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), new, expected)


@pytest.mark.exhaustive
def test_reproducible_to_the_bit(params, examples):
    options = TrainOptions(steps=5, batch_size=8, learning_rate=1e-2)
    before = jax.tree.map(np.array, params)
    first, _ = finetune(params, CONFIG, examples, options, seed=1)
    again, _ = finetune(params, CONFIG, examples, options, seed=1)
    other, _ = finetune(params, CONFIG, examples, options, seed=2)
    assert _same(first, again)
    assert not _same(first, other)
    assert _same(params, before)  # the caller's weights are neither changed nor donated


@pytest.mark.exhaustive
def test_dispatches_do_not_matter(params, examples):
    runs = [finetune(params, CONFIG, examples, TrainOptions(6, 8, 1e-2, steps_per_dispatch=size))[0] for size in (1, 4, 6)]
    jax.tree.map(lambda *leaves: [np.testing.assert_allclose(leaf, leaves[0], atol=1e-5) for leaf in leaves], *runs)


@pytest.mark.exhaustive
def test_groups_of_like_length(params, examples, monkeypatch):
    """Every conversation as often as without groups, with less padding between them."""
    module = sys.modules[finetune.__module__]
    shapes, train = [], module._train
    monkeypatch.setattr(
        module, "_train", lambda p, s, tokens, *rest, **more: shapes.append(tokens.shape) or train(p, s, tokens, *rest, **more)
    )
    options = TrainOptions(steps=16, batch_size=8, learning_rate=1e-2, group_by_length=True)
    long = [([*ids, *[1] * 40], [*mask, *[1] * 40]) if len(ids) > 20 else (ids, mask) for ids, mask in examples]
    new, metrics = finetune(params, CONFIG, long, options, seed=1)
    assert len(shapes) == 16
    assert {shape[:2] for shape in shapes} == {(1, 8)}
    assert sorted({shape[2] for shape in shapes}) == [32, 64]
    assert metrics.tokens == sum(len(ids) for ids, _ in long) * 2  # 128 draws are two permutations of 64
    assert _same(new, finetune(params, CONFIG, long, options, seed=1)[0])


def test_learning_rates():
    rates = learning_rates(TrainOptions(steps=100, batch_size=1, learning_rate=2e-5))
    assert rates.argmax() == 9
    assert rates[9] == pytest.approx(2e-5)
    assert rates[0] == pytest.approx(2e-6)
    assert rates[-1] == pytest.approx(4e-6)  # the paper's 2e-5 → 4e-6
    assert np.all(np.diff(rates[9:]) < 0)


@pytest.mark.exhaustive
def test_loss_is_of_the_learned_tokens_only(params):
    tokens = jnp.asarray([[1, 2, 3, 4]])
    changed = jnp.asarray([[1, 2, 3, 9]])
    mask = jnp.asarray([[0.0, 0.0, 1.0, 0.0]])
    assert loss(params, CONFIG, tokens, mask) == loss(params, CONFIG, changed, mask)
    assert loss(params, CONFIG, tokens, jnp.zeros((1, 4))) == 0


@pytest.mark.exhaustive
def test_bfloat16_weights_keep_their_dtype(examples):
    config = CONFIG.replace(dtype="bfloat16")
    params = init_params(config, jax.random.key(0))
    new, metrics = finetune(params, config, examples, TrainOptions(12, 32, 1e-2))
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("bfloat16")}
    assert metrics.losses[-1] < metrics.losses[0]


@pytest.mark.exhaustive
def test_a_loss_that_is_not_finite_is_an_error(params, examples):
    bad = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), params)
    with pytest.raises(InputError, match=r"finite loss in pretraining, got nan at step 1 of 8"):
        finetune(bad, CONFIG, examples, TrainOptions(8, 4, 1e-2), stage="pretraining")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "at least one training example"),
        ([([1, 2], [0, 1]), ([1, 2, 3], [0, 1])], "got 3 tokens and 2 mask values, 1 of them 1, in training example 1"),
        ([([1, 2], [1, 0])], "a token to learn after the first, got .* in training example 0"),
        ([([1, 40], [0, 1])], "from 0 to 39, got 1 to 40 in training example 0"),
        ([([1] * 3000, [1] * 3000)], "context_length = 2048"),
    ],
)
def test_unusable_examples(params, examples, message):
    with pytest.raises(InputError, match=message):
        finetune(params, CONFIG, examples, TrainOptions(1, 1, 1e-3))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"clip": -1.0},
        {"warmup": 1.0},
        {"final_ratio": 1.5},
        {"weight_decay": -0.1},
        {"weight_decay": float("nan")},
        {"steps_per_dispatch": 0},
    ],
    ids=str,
)
def test_unusable_options(change):
    with pytest.raises(InputError, match=f"expected {next(iter(change))} of a training"):
        TrainOptions(**{"steps": 1, "batch_size": 1, "learning_rate": 1e-3, **change})
