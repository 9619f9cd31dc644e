from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.models import llama
from cycleqd_jax.types import InputError, tree_paths

SCALING = llama.Llama3RopeScaling(8.0, 1.0, 4.0, 16)
VARIANTS = {
    "gqa": {},
    "tied": {"tie_word_embeddings": True, "rope_theta": 10000.0},
    "mqa, unusual head_dim": {"num_key_value_heads": 1, "head_dim": 6, "rms_norm_eps": 1e-3},
    "mha": {"num_key_value_heads": 4},
    "llama3 rope": {"rope_scaling": SCALING, "head_dim": 16, "rope_theta": 100.0},
}


def rope(**changes):
    """A config's entry for :data:`SCALING`."""
    return {"rope_scaling": {"rope_type": "llama3", **dataclasses.asdict(SCALING), **changes}}


def tokens_of(config, batch=3, time=40, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (batch, time)).astype(np.int32)


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=pytest.mark.exhaustive) if name in ("gqa", "mha") else name for name in VARIANTS]
)
def test_logits_are_those_of_transformers(tmp_path, make_config, make_params, variant):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    from cycleqd_jax.models.files.names import NAMES

    config = make_config(**VARIANTS[variant])
    params = make_params(config)
    # Straight from the dictionary: this test reads no files.
    model = LlamaForCausalLM(LlamaConfig.from_dict(config.to_hf())).eval()
    state = {}
    for path, leaf in tree_paths(params):
        name, transpose = NAMES[path]
        for i, part in enumerate(leaf if "{}" in name else [leaf]):
            state[name.format(i)] = torch.tensor(np.asarray(part.T if transpose else part))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config.tie_word_embeddings else set())
    model.tie_weights()
    tokens = tokens_of(config)
    with torch.no_grad():
        want = model(torch.tensor(tokens).long()).logits.numpy()
    got = llama.forward(params, config, tokens)
    assert got.dtype == jnp.float32
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("attention", ["products", "xla"])
@pytest.mark.parametrize(
    "variant", ["gqa", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in VARIANTS if name != "gqa")]
)
def test_prefill_and_cached_steps_equal_the_full_forward(make_config, make_params, step_by_step, variant, attention):
    config = make_config(**VARIANTS[variant])
    params = make_params(config)
    tokens, lengths, steps = tokens_of(config), np.asarray([5, 1, 9]), 25
    full = np.asarray(llama.forward(params, config, tokens))
    # Ragged prompts in a padded prefill, then every sequence goes on from its own end.
    prompt, stepped = step_by_step(attention, params, config, tokens, lengths, steps, 12)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(prompt[row, :length], full[row, :length], atol=2e-5)
        np.testing.assert_allclose(stepped[row], full[row, length : length + steps], atol=2e-5)


@pytest.mark.exhaustive
def test_padding_and_neighbours_change_nothing(make_config, make_params):
    config = make_config()
    params = make_params(config)
    tokens = tokens_of(config)
    want = llama.forward(params, config, tokens[:1, :10])
    got = llama.forward(params, config, tokens)
    np.testing.assert_allclose(got[:1, :10], want, atol=1e-5)


@pytest.mark.exhaustive
def test_gradient_equals_that_of_unrolled_layers(make_config, make_params):
    # Two code paths, one of them rematerialised: the same function, so the same gradient.
    config = make_config(tie_word_embeddings=True)
    params = make_params(config)
    tokens = tokens_of(config, 2, 12)
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    causal = jnp.tri(12, dtype=bool)

    def attend(q, k, v, cache, layer):
        q = q.reshape(2, 2, -1, 12, config.head_dim)
        scores = jnp.einsum("bgptd,bgsd->bgpts", q, k) * config.head_dim**-0.5
        weights = jax.nn.softmax(jnp.where(causal[None, None, None], scores, -jnp.inf))
        return jnp.einsum("bgpts,bgsd->bgptd", weights, v).reshape(2, -1, 12, config.head_dim), cache

    def unrolled(params):
        layers = [jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(config.num_hidden_layers)]
        hidden, _ = llama.decoder(params | {"layers": layers}, config, tokens, positions, attend, None)
        return llama.unembed(params, config, hidden)

    def loss(params, logits_of):
        logits = logits_of(params)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], -1).mean()

    plain = jax.jit(jax.grad(lambda params: loss(params, lambda params: llama.forward(params, config, tokens))))(params)
    other = jax.jit(jax.grad(lambda params: loss(params, unrolled)))(params)
    for (path, a), b in zip(tree_paths(plain), jax.tree.leaves(other), strict=True):
        assert np.abs(a).max() > 0, path
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=path)


@pytest.mark.exhaustive
def test_where_a_model_breaks(make_config, make_params):
    config = make_config()
    params = make_params(config)
    tokens = tokens_of(config, 1, 7)
    layers = params["layers"]
    for layer in range(config.num_hidden_layers):
        down = layers["mlp"]["down"].at[layer].set(jnp.nan)
        broken = params | {"layers": layers | {"mlp": layers["mlp"] | {"down": down}}}
        for form in (broken, llama.unstack(broken)):
            finite = np.asarray(llama.finite_layers(form, config, tokens))
            assert not finite.all()
            assert int(np.argmin(finite)) == layer
    assert llama.finite_layers(params, config, tokens).all()


@pytest.mark.parametrize("rows", [3, 70])
@pytest.mark.parametrize("tied", [False, True])
def test_transposed_matrices(make_config, make_params, tied, rows):
    config = make_config(tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    params = make_params(config)
    tokens = tokens_of(config, rows, 1)
    positions = np.zeros((rows, 1), np.int32)

    def logits(params):
        hidden, _ = llama.decoder(params, config, tokens, positions, lambda q, k, v, cache, layer: (q, cache), None)
        return llama.unembed(params, config, hidden[:, 0])

    transposed = llama.unstack(params, transposed=True)
    assert all(isinstance(layer["attn"][name], llama.TransposedMatrix) for layer in transposed["layers"] for name in "qkvo")
    transposed |= llama.for_products(transposed, config, 4)
    np.testing.assert_allclose(jax.jit(logits)(transposed), jax.jit(logits)(llama.unstack(params)), atol=1e-5)


def test_dtype_policy(make_config):
    config = make_config(dtype="bfloat16")
    params = llama.init_params(config, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    hidden = llama.hidden_states(params, config, tokens_of(config))
    assert hidden.dtype == jnp.bfloat16
    assert llama.unembed(params, config, hidden).dtype == jnp.float32
    wide = config.replace(compute_dtype="float32")
    hidden32 = llama.hidden_states(params, wide, tokens_of(config))
    assert hidden32.dtype == jnp.float32
    np.testing.assert_allclose(hidden.astype(np.float32), hidden32, atol=0.15)


def test_weights_are_declared_once(make_config):
    for tied in (False, True):
        config = make_config(tie_word_embeddings=tied)
        params = llama.init_params(config, jax.random.key(0))
        abstract = llama.abstract_params(config)
        assert jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), params, abstract)
        assert llama.num_params(config) == sum(leaf.size for leaf in jax.tree.leaves(params))
        assert ("lm_head" in params) == (not tied)
        axes = jax.tree.leaves(llama.logical_axes(config), is_leaf=lambda node: isinstance(node, tuple))
        for (path, leaf), names in zip(tree_paths(params), axes, strict=True):
            assert leaf.ndim == len(names), path
            assert ("norm" in path) == (leaf.ndim - path.startswith("layers") == 1), path


def test_config_round_trip(make_config):
    for variant in VARIANTS.values():
        config = make_config(**variant, eos_token_id=(3, 4), bos_token_id=1, dtype="bfloat16")
        assert llama.LlamaConfig.from_hf(config.to_hf()) == config


def test_transformers_reads_the_config_as_this_model(make_config):
    from transformers import LlamaConfig

    config = make_config(rope_scaling=SCALING, dtype="bfloat16", tie_word_embeddings=True)
    theirs = LlamaConfig.from_dict(config.to_hf())
    assert theirs.rope_parameters["rope_type"] == "llama3"
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta
    assert str(theirs.dtype) == "torch.bfloat16"
    # and what transformers 5 writes, with the rope in one dictionary, is read back
    assert llama.LlamaConfig.from_hf(theirs.to_dict()).replace(bos_token_id=None, eos_token_id=None) == config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gemma2"}, "llama, mistral, qwen2, qwen3 for 'model_type'.*gemma2"),
        ({"model_type": None}, "model_type"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types.*chunked"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_parameters.*yarn"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act.*gelu"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.*linear"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
            "rope_scaling.*low_freq_factor|low_freq_factor.*rope_scaling",
        ),
        ({"head_dim": 7}, "even head_dim.*7"),
        ({"num_key_value_heads": 3}, "num_key_value_heads.*4 and 3"),
        ({"vocab_size": 0}, "vocab_size.*0"),
        ({"torch_dtype": "float64"}, "dtype.*float64"),
        ({"num_attention_heads": 0}, "positive integer for 'num_attention_heads'.*got 0"),
        ({"num_attention_heads": "4"}, "'num_attention_heads'.*got '4'"),
        ({"num_hidden_layers": 2.0}, "'num_hidden_layers'.*got 2.0"),
        ({"vocab_size": True}, "'vocab_size'.*got True"),
        ({"hidden_size": 10**30}, "'hidden_size'.*got 10000"),
        ({"num_key_value_heads": 0}, "'num_key_value_heads'.*got 0"),
        ({"head_dim": [8]}, r"'head_dim'.*got \[8\]"),
        ({"model_type": "mistral", "sliding_window": "x"}, "'sliding_window'.*got 'x'"),
        ({"model_type": "mistral", "sliding_window": 0}, "'sliding_window'.*got 0"),
        ({"model_type": "qwen2", "use_sliding_window": "no"}, "true or false for 'use_sliding_window'.*got 'no'"),
        ({"rope_theta": "abc"}, "'rope_theta'.*got 'abc'"),
        ({"rope_theta": "10000"}, "'rope_theta'.*got '10000'"),
        ({"rope_theta": 10**400}, "'rope_theta'.*got 1000"),
        ({"rope_parameters": {"rope_theta": "abc"}}, "'rope_theta'.*got 'abc'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "one object for all layers.*'rope_parameters'"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps'.*got nan"),
        ({"layer_types": 5}, "a list for 'layer_types'.*got 5"),
        ({"layer_types": [["x"]]}, r"'layer_types'.*got \['x'\]"),
        ({"initializer_range": "x"}, "'initializer_range'.*got 'x'"),
        ({"initializer_range": -1.0}, "'initializer_range'.*got -1.0"),
        ({"tie_word_embeddings": "yes"}, "true or false for 'tie_word_embeddings'.*got 'yes'"),
        ({"attention_bias": 1}, "true or false for 'attention_bias'.*got 1"),
        ({"mlp_bias": "false"}, "true or false for 'mlp_bias'.*got 'false'"),
        ({"eos_token_id": "</s>"}, "'eos_token_id'.*got '</s>'"),
        ({"eos_token_id": {"a": 1}}, r"'eos_token_id'.*got \{'a': 1\}"),
        ({"eos_token_id": [1, None]}, r"'eos_token_id'.*got \[1, None\]"),
        ({"bos_token_id": [1]}, r"'bos_token_id'.*got \[1\]"),
        ({"pad_token_id": 1.5}, "'pad_token_id'.*got 1.5"),
        (rope(factor="8"), "'rope_scaling.factor'.*got '8'"),
        (rope(factor=0), "'rope_scaling.factor'.*got 0"),
        (rope(low_freq_factor=4.0), "low_freq_factor 4.0 for 'rope_scaling.high_freq_factor'.*got 4.0"),
        (rope(low_freq_factor=None), "'rope_scaling.low_freq_factor'.*got None"),
        (rope(original_max_position_embeddings=0.5), "'rope_scaling.original_max_position_embeddings'.*got 0.5"),
        ({"rope_parameters": rope(high_freq_factor="x")["rope_scaling"]}, "'rope_parameters.high_freq_factor'.*got 'x'"),
    ],
)
def test_what_can_not_be_computed_is_refused_by_name(make_config, changes, named):
    with pytest.raises(InputError, match=named) as refused:
        llama.LlamaConfig.from_hf(make_config().to_hf() | changes, "folder/config.json")
    assert "in folder/config.json, got" in str(refused.value)
    assert len(str(refused.value)) < 500


def test_bad_configs_in_python_are_refused_too(make_config):
    with pytest.raises(InputError, match="'num_attention_heads' in the model's config, got 0"):
        make_config(num_attention_heads=0)
    with pytest.raises(InputError, match=r"'rope_scaling\.factor' in the model's config, got 0"):
        make_config(rope_scaling=llama.Llama3RopeScaling(0, 1.0, 4.0, 16))


def test_tokens_outside_the_vocabulary_are_not_written(make_config):
    """Transformers builds no model whose padding token is outside; a cut vocabulary must not leave one behind."""
    from transformers import LlamaConfig

    written = make_config(bos_token_id=96, eos_token_id=(3, 95), pad_token_id=96).to_hf()
    assert [written[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")] == [96, [3, 95], 96]
    config = llama.LlamaConfig.from_hf(written)
    for size, kept in ((97, [96, [3, 95], 96]), (96, [None, [3, 95], None]), (95, [None, [3], None]), (3, [None] * 3)):
        cut = config.replace(vocab_size=size).to_hf()
        assert [cut[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")] == kept
    single = config.replace(eos_token_id=96, pad_token_id=-1)
    assert (single.to_hf()["eos_token_id"], single.to_hf()["pad_token_id"]) == (96, None)
    assert single.replace(vocab_size=96).to_hf()["eos_token_id"] is None
    assert LlamaConfig.from_dict(config.replace(vocab_size=96).to_hf()).pad_token_id is None


def test_a_cut_vocabulary_loads_in_transformers(make_config):
    pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = make_config(pad_token_id=96)
    LlamaForCausalLM(LlamaConfig.from_dict(config.replace(vocab_size=96).to_hf()))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("given", [{}, {"sliding_window": None}, {"sliding_window": 16}])
@pytest.mark.parametrize(
    "more", [{}, {"max_window_layers": 3}, {"max_window_layers": 2}, {"layer_types": ["full_attention"] * 3}]
)
@pytest.mark.parametrize("used", [True, False])
def test_windows_are_those_of_transformers(make_config, family, given, more, used):
    from transformers import AutoConfig

    raw = {key: value for key, value in make_config().to_hf().items() if key not in ("model_type", "sliding_window")}
    raw |= given | ({"use_sliding_window": used, **more} if family.startswith("qwen") else {})
    theirs = AutoConfig.for_model(family, **raw)
    slides = family == "mistral" or (family != "llama" and "sliding_attention" in theirs.layer_types)  # Llama has no window
    ours = llama.LlamaConfig.from_hf(raw | {"model_type": family})
    assert ours.sliding_window == (theirs.sliding_window if slides else None)
    assert llama.LlamaConfig.from_hf(ours.to_hf()).sliding_window == ours.sliding_window


@pytest.mark.parametrize("beside", [{}, {"original_max_position_embeddings": 16}])
@pytest.mark.parametrize("inside", [{}, {"original_max_position_embeddings": 32}])
def test_the_original_positions_of_a_rope_are_those_of_transformers(make_config, beside, inside):
    from transformers import LlamaConfig

    scaling = {key: value for key, value in rope()["rope_scaling"].items() if key != "original_max_position_embeddings"}
    raw = make_config().to_hf() | {"rope_scaling": scaling | inside} | beside
    theirs = LlamaConfig.from_dict(raw).rope_parameters
    ours = llama.LlamaConfig.from_hf(raw)
    assert ours.rope_scaling.original_max_position_embeddings == theirs["original_max_position_embeddings"]
    assert LlamaConfig.from_dict(ours.to_hf()).rope_parameters == theirs


def test_null_heads_are_those_of_transformers(make_config):
    from transformers import AutoConfig

    raw = make_config(num_key_value_heads=4).to_hf() | {"num_key_value_heads": None}
    for family in ("llama", "qwen2", "qwen3"):
        theirs = AutoConfig.for_model(family, **{key: value for key, value in raw.items() if key != "model_type"})
        ours = llama.LlamaConfig.from_hf(raw | {"model_type": family})
        assert ours.num_key_value_heads == theirs.num_key_value_heads == 4


def test_of_two_ropes_transformers_takes_the_older_spelling(make_config):
    from transformers import LlamaConfig

    raw = make_config().to_hf() | rope() | {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    theirs = LlamaConfig.from_dict(raw).rope_parameters
    ours = llama.LlamaConfig.from_hf(raw)
    assert theirs["rope_type"] == "llama3"
    assert ours.rope_scaling == SCALING
    assert ours.rope_theta == theirs["rope_theta"]


def test_incomplete_config_is_refused(make_config):
    config = make_config().to_hf()
    del config["hidden_size"]
    with pytest.raises(InputError, match="hidden_size"):
        llama.LlamaConfig.from_hf(config)
