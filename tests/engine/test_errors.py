"""Broken weights, interrupts and bad input; after each the engine can be used again."""

from __future__ import annotations

import signal

import jax
import jax.numpy as jnp
import pytest

from cycleqd_jax import sharding
from cycleqd_jax.engine import Attention, programs
from cycleqd_jax.types import InputError, NonFiniteError

from .small_model import groups_of, make, plain_loop, requests_of


@pytest.mark.parametrize(
    ("leaf", "named"),
    [
        ("embed_tokens", "embed_tokens"),
        ("norm", "norm"),
        ("layers/attn/q", "layers/1/attn/q"),
        ("layers/post_norm", "layers/1/post_norm"),
    ],
)
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_weights_that_are_not_finite_are_named(params, attention, leaf, named, value):
    def broken(path, x):
        if jax.tree_util.keystr(path, simple=True, separator="/") != leaf:
            return x
        return x.at[1].set(value) if leaf.startswith("layers") else x.at[..., 4].set(value)

    engine = make(attention=attention, slots=2)
    engine.load(jax.tree_util.tree_map_with_path(broken, params))
    with pytest.raises(NonFiniteError, match=f"its weight {named} is not"):
        engine.generate([[1, 2]], [4])
    assert not engine.busy
    engine.load(params)
    assert engine.generate([[1, 2]], [4]) == [plain_loop(params, [1, 2], 4)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("layer", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_a_layer_that_overflows_is_named(params, attention, layer):
    mlp = params["layers"]["mlp"]
    huge = {name: mlp[name].at[layer].multiply(1e30) for name in ("gate", "up", "down")}
    engine = make(attention=attention)
    engine.load(params | {"layers": params["layers"] | {"mlp": mlp | huge}})
    with pytest.raises(NonFiniteError, match=f"layer {layer} of 2 overflows"):
        engine.generate([[1, 2, 7]], [4])


@pytest.mark.exhaustive
def test_a_prefix_that_overflows_names_the_layer(params, attention):
    # Only token 7 has a first component, and the first layer overflows with it.
    layers, embedding = params["layers"], params["embed_tokens"].at[:, 0].set(0.0).at[7, 0].set(1.0)
    attn = layers["attn"] | {"o": layers["attn"]["o"].at[0, :, 0].set(0.0)}
    mlp = layers["mlp"] | {name: layers["mlp"][name].at[0, 0].set(1e25) for name in ("gate", "up")}
    engine = make(attention=attention)
    engine.load(params | {"embed_tokens": embedding, "layers": layers | {"attn": attn, "mlp": mlp}})
    for prompt in ([8, 9], *([7] * 24 + [n] for n in (8, 9, 10))):
        engine.submit(prompt, 3)
    with pytest.raises(NonFiniteError, match="layer 0 of 2"):
        engine.advance()


@pytest.mark.exhaustive
def test_a_warm_up_with_broken_weights(params, attention):
    engine = make(attention=attention)
    engine.load(params | {"norm": params["norm"] * jnp.nan})
    with pytest.raises(NonFiniteError, match="weight norm"):
        engine.warm_up(shared=1)
    engine.load(params)
    engine.warm_up(shared=1)
    assert engine.generate([[7, 8]], [2]) == [plain_loop(params, [7, 8], 2)]


def interrupted(engine, expected, monkeypatch, where, name, instead):
    """``generate`` is interrupted with ``where.name`` replaced, and gives the expected replies afterwards."""
    prompts, limits, wanted = expected[1]
    with monkeypatch.context() as patch:
        patch.setattr(where, name, instead)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(prompts, limits)
    assert not engine.busy
    assert engine.generate(prompts, limits) == wanted


@pytest.mark.exhaustive
@pytest.mark.parametrize("program", [pytest.param("prefill", marks=pytest.mark.exhaustive), "decode"])
@pytest.mark.parametrize("when", [pytest.param(1, marks=pytest.mark.exhaustive), 3])
def test_an_interrupt_leaves_the_engine_usable(engine, expected, monkeypatch, program, when):
    calls, run = [], getattr(programs, program)

    def stops(*args, **kwargs):
        result = run(*args, **kwargs)  # donated buffers are gone
        calls.append(1)
        if len(calls) == when:
            raise KeyboardInterrupt
        return result

    interrupted(engine, expected, monkeypatch, programs, program, stops)


def test_an_interrupt_between_two_host_syncs_leaves_the_engine_usable(engine, expected, monkeypatch):
    advance = engine.advance

    def stops():
        done = advance()
        signal.raise_signal(signal.SIGINT)
        return done

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a command in the background ignores SIGINT
    try:
        interrupted(engine, expected, monkeypatch, engine, "advance", stops)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.exhaustive
def test_no_memory_for_shared_columns_leaves_the_engine_usable(params, attention, monkeypatch):
    engine = make(attention=attention)
    engine.load(params)
    prompts, limits = groups_of(4)
    init = Attention.init

    def small(self, config, pages, columns, mesh=None):
        if pages == 1:
            raise MemoryError
        return init(self, config, pages, columns, mesh)

    with monkeypatch.context() as patch:
        patch.setattr(Attention, "init", small)
        with pytest.raises(MemoryError):
            engine.generate(prompts, limits)
        assert engine.generate(prompts[:1], limits[:1]) == [plain_loop(params, prompts[0], limits[0])]
    assert len(engine.generate(prompts, limits)) == len(prompts)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"slots": 0}, "0 slots"),
        ({"steps": 0}, "0 steps"),
        ({"chunk": 0}, "chunk 0"),
        ({"chunk": 1, "attention": Attention("xla")}, "chunk of at least 2"),
        ({"max_len": 65}, "64 positions.*max_len 65"),
        ({"max_len": 1}, "max_len 1"),
        ({"stop_ids": ()}, "stop ids"),
        ({"stop_ids": (48,)}, r"vocabulary size 48.*\[48\]"),
        ({"pad_id": -1}, "pad id -1"),
        ({"stop_ids": ("3",)}, "stop ids to be whole numbers"),
        ({"stop_ids": (3.0,)}, "stop ids to be whole numbers"),
        ({"pad_id": None}, "pad id to be whole numbers"),
        ({"overflow": "drop"}, "'refuse' or 'truncate', got 'drop'"),
    ],
)
def test_bad_settings(changes, named):
    with pytest.raises(InputError, match=named):
        make(**changes)


def test_a_mesh_that_does_not_divide_the_heads(params):
    if len(jax.devices()) < 8:
        pytest.skip("needs eight devices: set XLA_FLAGS=--xla_force_host_platform_device_count=8")
    with pytest.raises(InputError, match="divides the model's 2 KV heads, got 4 devices in the mesh"):
        make(mesh=sharding.make_mesh(tensor=4))


@pytest.mark.parametrize(
    ("prompts", "limits", "options", "named"),
    [
        ([[1], []], [3, 3], {}, "0 tokens"),
        ([[1], [2]], [3, 0], {}, "limit 0"),
        ([[1, 48]], [3], {}, "below 48.*1 to 48"),
        ([[-1]], [3], {}, "below 48.*-1 to -1"),
        ([[1]], [3, 4], {}, "each of 1 prompts, got 2"),
        ([[1]], [3], {"temperature": -1.0}, "got -1.0 and 1.0"),
        ([[1]], [3], {"temperature": float("nan")}, "got nan and 1.0"),
        ([[1]], [3], {"temperature": None}, "got None and 1.0"),
        ([[1]], [3], {"top_p": "x"}, "got 0.0 and x"),
        ([[1]], [3], {"top_p": 0.0}, "got 0.0 and 0.0"),
        ([[1]], [3], {"individual": 1}, "individual below 1, got 1"),
        ([[7.9]], [3], {}, r"whole numbers, got \[7.9\]"),
        ([[1]], [2.5], {}, "whole numbers.*2.5"),
        ([[1]], [3], {"seed": "x"}, "whole numbers.*'x'"),
        ([[1]], [3], {"seed": 2**33, "temperature": 1.0}, "seed from 0"),
        ([[1], [2]], [3, 3], {"conversation": "x"}, "one request of conversation 'x'"),
    ],
)
def test_bad_requests(engine, prompts, limits, options, named):
    with pytest.raises(InputError, match=named):
        engine.generate(prompts, limits, **options)
    assert not engine.busy


@pytest.mark.parametrize(("shared", "named"), [(-5, "at least 0"), (1.5, "whole"), ("x", "whole"), (None, "whole")])
def test_bad_warm_up(engine, shared, named):
    with pytest.raises(InputError, match=named):
        engine.warm_up(shared)


def test_other_slots_give_the_same_replies(params, attention):
    prompts, limits = requests_of(7)
    engine = make(attention=attention)
    engine.load(params)
    wanted = engine.generate(prompts, limits)
    engine.submit([1], 3, conversation="dropped")
    engine.resize(2)
    assert (engine.slots, engine.layout.slots, engine.busy) == (2, 2, False)
    with pytest.raises(RuntimeError, match="expected weights before a request"):
        engine.submit([1], 3)
    engine.load(params)
    assert engine.generate(prompts, limits) == wanted
    with pytest.raises(InputError, match="expected at least 1 slot"):
        engine.resize(0)
    assert engine.generate(prompts, limits) == wanted
