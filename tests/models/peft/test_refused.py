"""LoRA adapters that are not supported or corrupt are errors that name the reason."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.models.files import peft
from cycleqd_jax.models.inspection import inspect_model
from cycleqd_jax.types import InputError

from ...lazy import Lazy
from .folders import edit_config, edit_weights

torch = Lazy("torch", reason="PEFT needs torch")
library = Lazy("peft", reason="PEFT is the reference")

Q0, DOWN2 = "base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.model.layers.2.mlp.down_proj"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "ADALORA"}, "'LORA' for 'peft_type'.*'ADALORA'.*merge_and_unload"),
        ({"use_dora": True}, "nothing or false for 'use_dora'.*True.*merge"),
        ({"lora_bias": True}, "'lora_bias'"),
        ({"bias": "some"}, "'lora_only' for 'bias'.*'some'"),
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
        ({"lora_alpha": 10**400}, "number for 'lora_alpha'"),
        ({"target_modules": None}, "'target_modules'.*None"),
        ({"target_modules": "("}, r"regular expressions.*'\('"),
        ({"target_modules": ["q_proj"]}, r"unknown .*down_proj\.lora_A.*unknown tensors: 6"),
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


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_refused_where_the_base_has_any(base, adapter, bias):
    edit_config(adapter, bias=bias)
    assert peft.check_adapter(adapter, base.config)
    with pytest.raises(InputError, match=f"'none' for 'bias'.*whose base has biases, got '{bias}'; merge the adapter"):
        peft.check_adapter(adapter, base.config.replace(attention_bias=True))


def test_inspect_warns_as_a_run_does(base, adapter):
    edit_config(adapter, base_model_name_or_path="owner/another")
    assert inspect_model(str(adapter), str(base.folder)).warnings == (
        f"the adapter names the base owner/another, and not {base.folder}",
    )
    edit_weights(adapter, lambda tensors: tensors.update({name: tensor * 0 for name, tensor in tensors.items()}))
    equal, _ = inspect_model(str(adapter), str(base.folder)).warnings
    assert equal == f"the model equals {base.folder} bit for bit; check that it was trained and saved"


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
        (spoil(f"{Q0}.lora_B.weight"), rf"the tensor {Q0}\.lora_B\.weight.*belongs to {Q0}\.lora_A\.weight.*got none"),
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
    with pytest.raises(InputError, match=r"the base's weights as .*embed_tokens\.base_layer\.weight.*got other weights"):
        peft.load_adapter(tmp_path / "adapter", base.config, other)


def test_a_base_of_other_sizes_is_refused(base, adapter):
    with pytest.raises(InputError, match=r"shape \[3, 60\].*mlp\.down_proj\.lora_A.*\[3, 56\]"):
        peft.check_adapter(adapter, base.config.replace(intermediate_size=60))
    with pytest.raises(InputError, match=r"unknown .*layers\.2"):
        peft.check_adapter(adapter, base.config.replace(num_hidden_layers=2))
