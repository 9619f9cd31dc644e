"""Merging coefficients by gradient descent: against plain loops in optax and torch, for full experts and adapters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cycleqd_jax import sharding
from cycleqd_jax.genome import CoefficientSpace
from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.operators import apply_adapter
from cycleqd_jax.training import fit_coefficients
from cycleqd_jax.training.batches import dispatches
from cycleqd_jax.training.supervised import loss
from cycleqd_jax.types import Adapter, InputError, LowRank, tree_paths

from ..lazy import Lazy

torch = Lazy("torch", "torch, the reference, is not installed")

CONFIG = llama.LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=4,
    tie_word_embeddings=False,
    initializer_range=0.2,
)


def perturbed(params, seed, scale):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), params)


def low_rank(params, seed, rank):
    rng, leaves = np.random.default_rng(seed), dict(tree_paths(params))

    def update(path):
        *stack, m, n = leaves[path].shape
        return LowRank(*(rng.normal(scale=0.3, size=(*stack, *shape)).astype(np.float32) for shape in ((m, rank), (rank, n))))

    return Adapter({path: update(path) for path in ("layers/attn/q", "layers/mlp/down")})


def models(kind, config=CONFIG):
    """A base, three experts, and their whole weights."""
    base = llama.init_params(config, jax.random.key(0))
    if kind == "whole":
        experts = [perturbed(base, k, 0.1) for k in (1, 2, 3)]
        return base, experts, experts
    adapters = [low_rank(base, k, rank=k) for k in (1, 2, 3)]
    return base, adapters, [apply_adapter(base, adapter) for adapter in adapters]


def fitted(kind, examples, groups=1, steps=5, rate=0.05, config=CONFIG, **more):
    base, experts, _ = models(kind, config)
    space = CoefficientSpace.from_experts(base, experts, groups=groups)
    return fit_coefficients(space, config, examples, steps=steps, batch_size=8, learning_rate=rate, seed=2, **more)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("kind", "groups"), [("whole", 3), ("adapters", 1)])
def test_equals_a_plain_optax_loop(kind, groups, examples):
    """The reference sums whole task vectors and differentiates through the sum."""
    seen = []
    found, metrics = fitted(kind, examples, groups, progress=lambda *args: seen.append(args))
    base, _, whole = models(kind)
    taus = [jax.tree.map(jnp.subtract, expert, base) for expert in whole]

    def merged(c):
        def leaf(path, weights, *changes):
            of_leaf = c if path[0] == jax.tree_util.DictKey("layers") and groups > 1 else jnp.mean(c, 0, keepdims=True)
            shape = (-1, *(1,) * (weights.ndim - 1))
            return weights + sum(of_leaf[:, k].reshape(shape) * change for k, change in enumerate(changes))

        return jax.tree_util.tree_map_with_path(leaf, base, *taus)

    reference = jax.jit(jax.value_and_grad(lambda c, tokens, mask: loss(merged(c), CONFIG, tokens, mask)))
    c = jnp.full((groups, 3), 1 / 3)
    optimizer = optax.adam(0.05)
    state, losses = optimizer.init(c), []
    for dispatch in dispatches(examples, 5, 8, seed=2):
        for step in range(dispatch.count):
            value, gradient = reference(c, dispatch.tokens[step], dispatch.mask[step])
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradient, state)
            c = optax.apply_updates(c, updates)
            losses.append(float(value))
    assert found.shape == (groups, 3)
    np.testing.assert_allclose(found, c, rtol=0, atol=1e-5)
    np.testing.assert_allclose(metrics.losses, losses, rtol=1e-5)
    assert [args[:3] for args in seen] == [("gradient", 5, 5)]
    assert metrics.tokens > 5 * 8 * 7


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["whole", "adapters"])
@pytest.mark.parametrize("groups", [1, 3])
def test_equals_a_torch_loop(kind, groups, examples, tmp_path):
    """The same batches through transformers and torch's Adam, with the experts' weights read from files."""
    from transformers import AutoModelForCausalLM

    base, _, whole = models(kind)
    states = []
    for i, params in enumerate((base, *whole)):
        hf.save(tmp_path / str(i), CONFIG, params)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / str(i), dtype=torch.float32, attn_implementation="eager")
        states.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    start, *experts = states
    c = torch.full((groups, 3), 1 / 3, requires_grad=True)

    def coefficients(name):
        parts = name.split(".")
        return c[int(parts[2]) * groups // 3] if parts[:2] == ["model", "layers"] else c.mean(0)

    optimizer = torch.optim.Adam([c], lr=0.05)
    losses = []
    for dispatch in dispatches(examples, 20, 8, seed=2):
        for step in range(dispatch.count):
            merged = {
                name: weights + sum(coefficients(name)[k] * (expert[name] - weights) for k, expert in enumerate(experts))
                for name, weights in start.items()
            }
            tokens = torch.tensor(dispatch.tokens[step]).long()
            learned = torch.tensor(dispatch.mask[step])[:, 1:]
            logits = torch.func.functional_call(model, merged, (tokens[:, :-1],)).logits
            each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
            value = (each.reshape(learned.shape) * learned).sum() / learned.sum()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
    found, metrics = fitted(kind, examples, groups, steps=20)
    assert np.abs(found - 1 / 3).max() > 0.1
    np.testing.assert_allclose(found, c.detach().numpy(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(metrics.losses, losses, rtol=1e-3)


@pytest.mark.exhaustive
def test_the_loss_falls_and_bits_repeat(examples):
    found, metrics = fitted("whole", examples, steps=24)
    again, _ = fitted("whole", examples, steps=24)
    np.testing.assert_array_equal(found, again)
    assert np.mean(metrics.losses[-4:]) < np.mean(metrics.losses[:4])


@pytest.mark.exhaustive
def test_bfloat16_adapters_learn(examples):
    """Expressing writes their weights as integers on a CPU, which must not cut the gradient."""
    wide, _ = fitted("adapters", examples, steps=1)
    narrow, _ = fitted("adapters", examples, steps=1, config=CONFIG.replace(dtype="bfloat16"))
    moved = np.abs(wide - 1 / 3)
    assert moved.min() > 0.04  # Adam's first step
    np.testing.assert_allclose(narrow, wide, atol=2e-3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["whole", "adapters"])
def test_a_mesh_gives_the_same_coefficients(kind, examples):
    base, experts, _ = models(kind)
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    space = CoefficientSpace.from_experts(base, experts, groups=3)
    sharded = space.shard(mesh, sharding.shardings(mesh, base, llama.logical_axes(CONFIG)))
    options = {"steps": 3, "batch_size": 8, "learning_rate": 0.05}
    alone, _ = fit_coefficients(space, CONFIG, examples, **options)
    np.testing.assert_allclose(fit_coefficients(sharded, CONFIG, examples, **options)[0], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "expected steps of a gradient descent to be at least 1, got 0; correct it"),
        ({"batch_size": 0}, "expected batch_size of a gradient descent to be at least 1, got 0"),
        ({"learning_rate": 0.0}, "expected learning_rate of a gradient descent to be above 0, got 0.0"),
        ({"learning_rate": float("nan")}, "expected learning_rate of a gradient descent to be above 0, got nan"),
    ],
)
def test_unusable_options(options, message, examples):
    base = {"w": jnp.ones(2)}
    space = CoefficientSpace.from_experts(base, [{"w": jnp.zeros(2)}] * 2)
    with pytest.raises(InputError, match=message):
        fit_coefficients(space, CONFIG, examples, **{"steps": 1, "batch_size": 1, "learning_rate": 0.1, **options})
    with pytest.raises(InputError, match="at least one training example"):
        fit_coefficients(space, CONFIG, [], steps=1, batch_size=1, learning_rate=0.1)


@pytest.mark.exhaustive
def test_a_loss_that_is_not_finite_is_an_error(examples):
    with pytest.raises(InputError, match=r"in gradient, got a loss of \w+ at step [1-5] of 5; lower gradient.learning_rate"):
        fitted("whole", examples, steps=5, rate=1e30)
