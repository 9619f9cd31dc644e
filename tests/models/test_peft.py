"""LoRA adapters, judged by PEFT itself: what it merges is what we merge; what we can't merge is refused by name."""

from __future__ import annotations

import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.models.files import hf, peft
from cycleqd_jax.operators import apply_adapter
from cycleqd_jax.types import InputError, LowRank, tree_paths

torch = pytest.importorskip("torch", reason="PEFT needs torch")
library = pytest.importorskip("peft", reason="PEFT is the judge")

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Base:
    """A tiny model as Hugging Face's folder and as ours."""

    def __init__(self, folder, config, params):
        hf.save(folder, config, params)
        self.folder, self.config, self.params = folder, config, params

    def torch_model(self):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    def train(self, folder, dtype=torch.float32, seed=0, **options):
        """An adapter with random numbers in whatever would be trained; the PEFT model."""
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = library.get_peft_model(self.torch_model(), library.LoraConfig(**({"r": 3, "lora_alpha": 5} | options)))
            for name, parameter in model.named_parameters():
                if parameter.requires_grad or "lora_" in name:
                    parameter.data.copy_(torch.randn_like(parameter) * 0.3)  # in place: some share memory
            if dtype != torch.float32:
                model.to(dtype)
            model.save_pretrained(folder)
        return model

    def merged_by_peft(self, folder, out):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = library.PeftModel.from_pretrained(self.torch_model(), folder).merge_and_unload()
            merged.save_pretrained(out)
        return hf.load(out)[1]


@pytest.fixture(scope="module")
def make_base(tmp_path_factory, make_config, make_params):
    made = {}

    def base(**changes):
        key = tuple(sorted(changes.items()))
        if key not in made:
            config = make_config(**changes)
            made[key] = Base(tmp_path_factory.mktemp("base"), config, make_params(config))
        return made[key]

    return base


@pytest.fixture
def base(make_base):
    return make_base()


@pytest.fixture(scope="module")
def trained(make_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    make_base().train(folder, target_modules=["q_proj", "down_proj"])
    return folder


@pytest.fixture
def adapter(trained, tmp_path):
    """A plain adapter to spoil."""
    return shutil.copytree(trained, tmp_path / "adapter")


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def edit_weights(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


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


@pytest.mark.parametrize(
    "changes",
    [{"model_type": "qwen2", "attention_bias": True}, {"model_type": "qwen3", "qk_norm": True}, {"model_type": "mistral"}],
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_are_read_exactly_into_float32(base, tmp_path, assert_close, dtype):
    base.train(tmp_path / "adapter", getattr(torch, dtype), target_modules=LINEAR, lora_alpha=3)
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
    base.train(tmp_path / "adapter", getattr(torch, file), target_modules=["embed_tokens"])
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
    with pytest.raises(InputError, match=r"lm_head and embed_tokens.*adapter.*change alike"):
        peft.load_adapter(tmp_path / "adapter", base.config, base.params)


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


# --------------------------------------------------------------------------------------------------------------------
# Refusals

Q0, DOWN2 = "base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.model.layers.2.mlp.down_proj"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "ADALORA"}, "'LORA' for 'peft_type'.*'ADALORA'.*merge_and_unload"),
        ({"use_dora": True}, "'use_dora'.*True.*not supported"),
        ({"lora_bias": True}, "'lora_bias'"),
        ({"bias": "all"}, "'none' for 'bias'.*'all'"),
        ({"bias": "lora_only"}, "'none' for 'bias'"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "'init_lora_weights'.*'pissa_niter_4'.*path_initial_model_for",
        ),
        *(({"init_lora_weights": init}, f"'init_lora_weights'.*'{init}'") for init in ("olora", "loftq", "corda", "lora_ga")),
        ({"trainable_token_indices": [1, 2]}, "'trainable_token_indices'"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "'layer_replication'"),
        ({"target_parameters": ["experts.down_proj"]}, "'target_parameters'"),
        ({"alora_invocation_tokens": [3]}, "'alora_invocation_tokens'"),
        ({"something_of_tomorrow": {"on": True}}, "'something_of_tomorrow'"),
        ({"r": 0}, "positive integer for 'r'.*0"),
        ({"r": "8"}, "positive integer for 'r'"),
        ({"r": 4}, rf"shape \[4, 32\] for tensor {Q0}\.lora_A.*\[3, 32\].*rank"),
        ({"rank_pattern": {"down_proj": 2}}, r"shape \[2, 56\].*layers\.0\.mlp\.down_proj\.lora_A"),
        ({"rank_pattern": {"down_proj": 0}}, "'rank_pattern'"),
        ({"rank_pattern": {"(": 2}}, r"regular expressions.*'\('"),
        ({"lora_alpha": None}, "number for 'lora_alpha'"),
        ({"target_modules": None}, "'target_modules'.*None"),
        ({"target_modules": "("}, r"regular expressions.*'\('"),
        ({"target_modules": ["q_proj"]}, r"unknown .*down_proj\.lora_A.*6 such"),
        ({"target_modules": ["q_proj", "down_proj", "up_proj"]}, r"mlp\.up_proj\.lora_A\.weight.*target_modules.*got none"),
        ({"layers_to_transform": [0, 1]}, r"unknown .*layers\.2"),
        ({"layers_to_transform": "all"}, "'layers_to_transform'"),
        ({"modules_to_save": ["lm_head"]}, r"lm_head\.weight.*modules_to_save.*got none"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("how", [peft.check_adapter, peft.load_adapter])
def test_configs_that_are_refused(base, adapter, how, changes, message):
    edit_config(adapter, **changes)
    with pytest.raises(InputError, match=message) as caught:
        how(adapter, base.config)
    assert str(adapter) in str(caught.value)


def test_adapters_that_peft_makes_of_other_kinds(base, tmp_path):
    base.train(tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(InputError, match="use_dora"):
        peft.check_adapter(tmp_path / "dora", base.config)
    edit_config(tmp_path / "dora", use_dora=False)
    with pytest.raises(InputError, match=r"unknown .*lora_magnitude_vector"):
        peft.check_adapter(tmp_path / "dora", base.config)
    base.train(tmp_path / "pissa", target_modules=["q_proj"], init_lora_weights="pissa")
    with pytest.raises(InputError, match="pissa"):
        peft.check_adapter(tmp_path / "pissa", base.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = library.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
        library.get_peft_model(base.torch_model(), other).save_pretrained(tmp_path / "ia3")
    with pytest.raises(InputError, match="'IA3'"):
        peft.check_adapter(tmp_path / "ia3", base.config)


def spoil(name, value=None):
    """Removes a tensor, or replaces it."""
    return lambda tensors: tensors.pop(name) if value is None else tensors.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(f"{Q0}.lora_B.weight"), rf"the tensor {Q0}\.lora_B\.weight.*where {Q0}\.lora_A\.weight is.*got none"),
        (spoil(f"{Q0}.lora_A.weight"), rf"the tensor {Q0}\.lora_A\.weight.*got none"),
        (spoil(f"{Q0}.lora_B.weight", np.ones((31, 3), np.float32)), r"shape \[32, 3\].*lora_B.*\[31, 3\]"),
        (spoil(f"{Q0}.lora_A.weight", np.ones((3, 32), np.int8)), r"dtype F32.*lora_A.*I8"),
        (spoil("base_model.model.lm_head.weight", np.ones((98, 32), np.float32)), r"shape \[97, 32\].*lm_head.*vocabulary"),
        (spoil("base_model.model.model.norm.bias", np.ones(32, np.float32)), r"unknown base_model\.model\.model\.norm\.bias"),
        (spoil("scalar", np.ones((), np.float32)), "unknown scalar"),
    ],
    ids=range(7),
)
@pytest.mark.parametrize("how", [peft.check_adapter, peft.load_adapter])
def test_weights_that_do_not_fit(base, adapter, how, change, message):
    edit_weights(adapter, change)
    with pytest.raises(InputError, match=message) as caught:
        how(adapter, base.config)
    assert str(adapter / "adapter_model.safetensors") in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_numbers_that_are_not_finite(base, adapter, value, dtype):
    broken = np.ones((32, 3), np.float32)
    broken[7, 1] = value
    edit_weights(adapter, spoil(f"{DOWN2}.lora_B.weight", broken.astype(dtype)))
    peft.check_adapter(adapter, base.config)
    with pytest.raises(InputError, match=rf"NaN or Inf in tensor {DOWN2}\.lora_B\.weight of .*adapter_model\.safetensors"):
        peft.load_adapter(adapter, base.config)


@pytest.mark.parametrize("size", [3, 100, -1])
def test_truncated_files(base, adapter, size):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=rf"whole safetensors file.*{path}"):
        peft.check_adapter(adapter, base.config)


def test_pickled_and_missing_files(base, adapter):
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"adapter_model\.safetensors.*no such file"):
        peft.load_adapter(adapter, base.config)
    (adapter / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pickled.*adapter_model\.bin.*save_pretrained"):
        peft.load_adapter(adapter, base.config)
    (adapter / "adapter_config.json").write_text("{", "utf-8")
    with pytest.raises(InputError, match=r"JSON.*adapter_config\.json"):
        peft.load_adapter(adapter, base.config)


@pytest.mark.parametrize(
    "options", [{"modules_to_save": ["norm"], "target_modules": ["q_proj"]}, {"target_modules": ["lm_head"]}]
)
def test_whole_weights_need_the_base(base, tmp_path, options):
    base.train(tmp_path / "adapter", **options)
    with pytest.raises(InputError, match=r"weights of the base.*(norm|base_layer)\.weight.*load the base first"):
        peft.load_adapter(tmp_path / "adapter", base.config)


def test_an_embedding_of_another_base_is_refused(base, tmp_path):
    base.train(tmp_path / "adapter", target_modules=["embed_tokens"])
    other = {**base.params, "embed_tokens": base.params["embed_tokens"] + 1e-3}
    with pytest.raises(InputError, match=r"embed_tokens\.base_layer\.weight.*to be the base's weights"):
        peft.load_adapter(tmp_path / "adapter", base.config, other)


def test_a_base_of_other_sizes_is_refused(base, adapter):
    with pytest.raises(InputError, match=r"shape \[3, 60\].*mlp\.down_proj\.lora_A.*\[3, 56\]"):
        peft.check_adapter(adapter, base.config.replace(intermediate_size=60))
    with pytest.raises(InputError, match=r"unknown .*layers\.2"):
        peft.check_adapter(adapter, base.config.replace(num_hidden_layers=2))
