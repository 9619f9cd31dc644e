from __future__ import annotations

import numpy as np
import pytest

from cycleqd_jax.models.sam import predictor

SIZES = {
    "plain": {},
    "other": {
        "vision": {
            "num_hidden_layers": 4, "global_attn_indexes": [0, 3], "window_size": 4, "hidden_size": 48, "mlp_ratio": 2.5,
            "num_attention_heads": 3, "image_size": 80, "output_channels": 64, "num_pos_feats": 32,
        },
        "prompt": {"image_size": 80, "hidden_size": 64, "mask_input_channels": 8, "layer_norm_eps": 1e-5},
        "decoder": {
            "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "attention_downsample_rate": 4,
            "iou_head_depth": 4, "iou_head_hidden_dim": 24, "mlp_dim": 40, "num_multimask_outputs": 2, "layer_norm_eps": 1e-5,
        },
    },
    "bare": {
        "vision": {"use_abs_pos": False, "use_rel_pos": False, "qkv_bias": False, "global_attn_indexes": [], "window_size": 3},
        "decoder": {"iou_head_depth": 2, "num_hidden_layers": 1},
    },
}  # fmt: skip
"""Small models: sizes that divide each other and sizes that do not, with and without what a config can switch off."""


def hf_config(variant: str = "plain"):
    from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

    changes = SIZES[variant]
    vision = {
        "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 8, "window_size": 3, "global_attn_indexes": [1], "num_pos_feats": 16, "mlp_ratio": 2.0,
    }  # fmt: skip
    prompt = {"hidden_size": 32, "image_size": 64, "patch_size": 8}
    decoder = {"hidden_size": 32, "mlp_dim": 48, "num_attention_heads": 4, "iou_head_hidden_dim": 16}
    return SamConfig(
        vision_config=SamVisionConfig(**(vision | changes.get("vision", {}))).to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(**(prompt | changes.get("prompt", {}))).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(**(decoder | changes.get("decoder", {}))).to_dict(),
    )


@pytest.fixture(scope="session")
def peer():
    """``peer(variant)``: transformers' model with random weights; norms and biases are not at their initial values."""
    torch = pytest.importorskip("torch")
    from transformers import SamModel

    def make(variant: str = "plain"):
        model = SamModel(hf_config(variant)).eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                noise = torch.randn(weight.shape, generator=generator)
                fan_in = weight[0].numel() if weight.ndim > 1 else 1
                if name.endswith("positional_embedding"):
                    weight.copy_(noise)
                elif "norm" in name and name.endswith("weight"):
                    weight.copy_(1 + 0.2 * noise)
                else:
                    weight.copy_(noise * (0.2 if weight.ndim == 1 else fan_in**-0.5))
        return model

    return make


@pytest.fixture(scope="session")
def saved(peer, tmp_path_factory):
    """``saved(variant)``: the peer and its folder as transformers writes it."""
    made = {}

    def folder(variant: str = "plain"):
        if variant not in made:
            model, path = peer(variant), tmp_path_factory.mktemp(variant)
            model.save_pretrained(path)
            made[variant] = model, path
        return made[variant]

    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def encoded(monkeypatch):
    """The number of images of every call of the encoder."""
    calls, encode = [], predictor._encode

    def count(vision, config, pixels):
        calls.append(len(pixels))
        return encode(vision, config, pixels)

    monkeypatch.setattr(predictor, "_encode", count)
    return calls
