"""LoRA adapters: our merged weights are those of PEFT."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.models.files import hf, peft
from cycleqd_jax.operators import apply_adapter
from cycleqd_jax.types import InputError, LowRank, tree_paths

from ...lazy import Lazy
from .folders import LINEAR, edit_config, edit_weights

torch = Lazy("torch", reason="PEFT needs torch")
library = Lazy("peft", reason="PEFT is the reference")

OPTIONS = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "every linear layer": {"target_modules": LINEAR},
    "all-linear": {"target_modules": "all-linear"},
    "a pattern": {"target_modules": r".*\.[01]\.(self_attn\.(k|o)_proj|mlp\.up_proj)"},
    "full names": {"target_modules": ["model.layers.1.self_attn.q_proj", "2.mlp.gate_proj"]},
    "without some": {"target_modules": LINEAR, "exclude_modules": ["layers.1.self_attn.q_proj", "o_proj"]},
    "without a pattern": {"target_modules": LINEAR, "exclude_modules": r".*\.2\..*"},
    "rank-stabilised": {"target_modules": LINEAR, "use_rslora": True},
    "some layers": {"target_modules": LINEAR, "layers_to_transform": [0, 2]},
    "one layer": {"target_modules": LINEAR, "layers_to_transform": 1},
    "a pattern of layers": {"target_modules": LINEAR, "layers_to_transform": [1], "layers_pattern": "layers"},
    "patterns": {
        "target_modules": LINEAR,
        "rank_pattern": {"^model.layers.0.self_attn.q_proj": 5, "v_proj": 1, r"layers\.[12]\.mlp\..*": 2},
        "alpha_pattern": {"q_proj": 7, "1.mlp.down_proj": 0.5},
    },
    "rank-stabilised patterns": {"target_modules": LINEAR, "use_rslora": True, "rank_pattern": {"q_proj": 7}},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head"], "alpha_pattern": {"lm_head": 1}},
    "head": {"target_modules": ["lm_head"]},
    "whole embedding, head and norm": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    "whole norms": {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "model.norm"]},
    "whole blocks": {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["layers.1.mlp"]},
    "gaussian": {"target_modules": LINEAR, "init_lora_weights": "gaussian"},
    "orthogonal": {"target_modules": LINEAR, "r": 4, "init_lora_weights": "orthogonal"},
    "a rank above the matrix": {"target_modules": ["k_proj"], "r": 40},
}


RENAMED = {
    "a state dict": lambda n: n.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."),
    "compiled": lambda n: f"_orig_mod.{n}",
    "parallel": lambda n: f"module.{n}",
    "without a prefix": lambda n: n.removeprefix("base_model.model."),
    "without model": lambda n: n.replace("base_model.model.model.", "base_model.model."),
    "model twice": lambda n: n.replace("base_model.model.", "base_model.model.model."),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", RENAMED)
def test_names_of_wrapped_adapters_are_understood(base, adapter, kind):
    before = dict(peft.load_adapter(adapter, base.config, base.params).updates)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({RENAMED[kind](name): tensor for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors")
    after = dict(peft.load_adapter(adapter, base.config, base.params).updates)
    assert before.keys() == after.keys()
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_merged_by_us_is_merged_by_peft(base, tmp_path, assert_close, options):
    base.train(tmp_path / "adapter", **options)
    assert peft.is_adapter(tmp_path / "adapter")
    header = peft.check_adapter(tmp_path / "adapter", base.config)
    got = peft.load_adapter(tmp_path / "adapter", base.config, base.params)
    assert header == {path: u.a.shape[-1] if isinstance(u, LowRank) else None for path, u in got.updates.items()}
    assert {leaf.dtype for leaf in jax.tree.leaves(dict(got.updates))} == {np.dtype(np.float32)}
    ours, theirs = apply_adapter(base.params, got), base.merged_by_peft(tmp_path / "adapter", tmp_path / "merged")
    assert_close(ours, theirs)
    changed = {path for (path, x), y in zip(tree_paths(theirs), jax.tree.leaves(base.params), strict=True) if (x != y).any()}
    assert changed == set(header)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen2", "attention_bias": True},
        pytest.param({"model_type": "qwen3", "qk_norm": True}, marks=pytest.mark.exhaustive),
        pytest.param({"model_type": "mistral"}, marks=pytest.mark.exhaustive),
    ],
    ids=lambda changes: changes["model_type"],
)
def test_relatives_of_llama(make_base, tmp_path, assert_close, changes):
    base = make_base(**changes)
    base.train(tmp_path / "adapter", target_modules=LINEAR, layers_to_transform=[0, 1], modules_to_save=["layers.2.self_attn"])
    with pytest.raises(InputError, match=r"either low-rank factors or whole weights.*layers\.2\.self_attn"):
        peft.check_adapter(tmp_path / "adapter", base.config)
    base.train(tmp_path / "other", target_modules=["up_proj"], modules_to_save=["layers.2.self_attn"])
    ours = apply_adapter(base.params, peft.load_adapter(tmp_path / "other", base.config, base.params))
    assert_close(ours, base.merged_by_peft(tmp_path / "other", tmp_path / "merged"))


@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.exhaustive), "float16"])
def test_half_precision_files_are_read_exactly_into_float32(base, tmp_path, assert_close, dtype):
    base.train(tmp_path / "adapter", dtype, target_modules=LINEAR, lora_alpha=3)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {dtype}
    got = peft.load_adapter(tmp_path / "adapter", base.config).updates["layers/attn/q"]
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    np.testing.assert_array_equal(got.a[1], tensors[name.format("A")].T.astype(np.float32))  # scale 1
    np.testing.assert_array_equal(got.b[1], tensors[name.format("B")].T.astype(np.float32))
    ours = apply_adapter(base.params, peft.load_adapter(tmp_path / "adapter", base.config))
    assert_close(ours, base.merged_by_peft(tmp_path / "adapter", tmp_path / "merged"))


@pytest.mark.parametrize(("file", "read"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "float32")])
def test_an_embedding_in_another_precision_is_still_that_of_the_base(base, tmp_path, file, read):
    base.train(tmp_path / "adapter", file, target_modules=["embed_tokens"])
    params = jax.tree.map(lambda leaf: leaf.astype(read), base.params)
    assert set(peft.load_adapter(tmp_path / "adapter", base.config, params).updates) == {"embed_tokens"}


def test_fan_in_fan_out_is_ignored_as_peft_does(base, adapter, tmp_path, assert_close):
    plain = apply_adapter(base.params, peft.load_adapter(adapter, base.config))
    edit_config(adapter, fan_in_fan_out=True)
    assert_close(plain, base.merged_by_peft(adapter, tmp_path / "merged"))
    assert_close(apply_adapter(base.params, peft.load_adapter(adapter, base.config)), plain, 0.0)


def test_layers_left_out_and_smaller_ranks_are_zero(base, tmp_path):
    options = {"target_modules": ["q_proj"], "layers_to_transform": [0, 2], "rank_pattern": {"2.self_attn.q_proj": 2}}
    base.train(tmp_path / "adapter", r=4, **options)
    update = peft.load_adapter(tmp_path / "adapter", base.config).updates["layers/attn/q"]
    assert update.a.shape == (3, 32, 4)
    assert update.b.shape == (3, 4, 32)
    assert not update.a[1].any()
    assert not update.a[2, :, 2:].any()
    assert not update.b[2, 2:].any()
    assert update.a[2, :, :2].all()


def test_whole_weights_that_were_not_trained_are_no_update(base, tmp_path):
    base.train(tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    name = "base_model.model.model.embed_tokens.weight"
    edit_weights(tmp_path / "adapter", lambda t: t.update({name: np.array(base.params["embed_tokens"])}))
    assert peft.check_adapter(tmp_path / "adapter", base.config) == {"layers/attn/q": 3, "embed_tokens": None}
    assert set(peft.load_adapter(tmp_path / "adapter", base.config, base.params).updates) == {"layers/attn/q"}


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=["factors", "whole"],
)
def test_vocabulary_that_is_cut(base, tmp_path, assert_close, options):
    base.train(tmp_path / "adapter", **options)
    whole = apply_adapter(base.params, peft.load_adapter(tmp_path / "adapter", base.config, base.params))
    cut = {**base.params, "embed_tokens": base.params["embed_tokens"][:90], "lm_head": base.params["lm_head"][:, :90]}
    got = apply_adapter(cut, peft.load_adapter(tmp_path / "adapter", base.config, cut, vocab_size=90))
    assert_close(got, {**whole, "embed_tokens": whole["embed_tokens"][:90], "lm_head": whole["lm_head"][:, :90]}, 2e-7)


@pytest.mark.exhaustive
def test_adapters_as_experts(base, tmp_path, assert_close):
    """A space over two adapter folders holds no matrix of the model but the base's, and its experts are PEFT's merged ones."""
    base.train(tmp_path / "0", target_modules=LINEAR)
    base.train(tmp_path / "1", seed=1, target_modules=["q_proj", "v_proj"], r=6, layers_to_transform=[1])
    adapters = [peft.load_adapter(tmp_path / str(k), base.config, base.params) for k in range(2)]
    space = ExpertSpace.from_experts(base.params, adapters)
    assert space.experts == space.updates == {}
    for k in range(2):
        assert_close(space.express(space.expert(k)), base.merged_by_peft(tmp_path / str(k), tmp_path / "merged"), 2e-6)


def test_base_of_an_adapter(base, adapter):
    assert peft.adapter_base(adapter) == str(base.folder)
    edit_config(adapter, base_model_name_or_path=None)
    assert peft.adapter_base(adapter) is None
    assert not peft.is_adapter(base.folder)


# --------------------------------------------------------------------------------------------------------------------
# Tied embeddings


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=str,
)
def test_an_adapter_that_would_untie_is_refused(make_base, tmp_path, options):
    base = make_base(tie_word_embeddings=True)
    base.train(tmp_path / "adapter", **options)
    with pytest.raises(InputError, match=r"equal changes of lm_head and embed_tokens.*got different ones in the adapter"):
        peft.load_adapter(tmp_path / "adapter", base.config, base.params)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"]},
    ],
    ids=str,
)
def test_an_adapter_that_keeps_the_tie(make_base, tmp_path, options):
    """Judged by the logits of PEFT's model before merging: merging adds the update to the one weight twice there."""
    from transformers import AutoModelForCausalLM

    base = make_base(tie_word_embeddings=True)
    model = base.train(tmp_path / "adapter", ensure_weight_tying=True, **options)
    assert "lm_head" not in peft.check_adapter(tmp_path / "adapter", base.config)
    ours = apply_adapter(base.params, peft.load_adapter(tmp_path / "adapter", base.config, base.params))
    hf.save(tmp_path / "merged", base.config, ours)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        got = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(ids).logits
        want = model.eval()(ids).logits
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * float(want.abs().max()))
    assert not torch.allclose(got, base.torch_model()(ids).logits, atol=1e-2)
