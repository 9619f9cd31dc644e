"""A tiny model, and adapters of it that PEFT has made."""

from __future__ import annotations

import shutil
import warnings

import pytest

from cycleqd_jax.models.files import hf

from ...lazy import Lazy

torch = Lazy("torch", reason="PEFT needs torch")
library = Lazy("peft", reason="PEFT is the reference")


class Base:
    """A tiny model as Hugging Face's folder and as ours."""

    def __init__(self, folder, config, params):
        hf.save(folder, config, params)
        self.folder, self.config, self.params = folder, config, params

    def torch_model(self):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    def train(self, folder, dtype="float32", seed=0, **options):
        """An adapter with random numbers in whatever would be trained; the PEFT model."""
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = library.get_peft_model(self.torch_model(), library.LoraConfig(**({"r": 3, "lora_alpha": 5} | options)))
            for name, parameter in model.named_parameters():
                if parameter.requires_grad or "lora_" in name:
                    parameter.data.copy_(torch.randn_like(parameter) * 0.3)  # in place: some share memory
            if dtype != "float32":
                model.to(getattr(torch, dtype))
            model.save_pretrained(folder)
        return model

    def merged_by_peft(self, folder, out):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = library.PeftModel.from_pretrained(self.torch_model(), folder).merge_and_unload()
            merged.save_pretrained(out)
        return hf.load(out)[1]


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def trained(make_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    make_base().train(folder, target_modules=["q_proj", "down_proj"])
    return folder


@pytest.fixture
def adapter(trained, tmp_path):
    """A plain adapter to spoil."""
    return shutil.copytree(trained, tmp_path / "adapter")
