"""A tiny GGUF file in the format of SmolLM2, with one layer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import quants

BYTES = [chr(c) for c in [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144)]]
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}"


def write(path: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """Writes the file; matrices have the type ``kind`` and norms are float32, as llama.cpp writes them."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES, "Hi", *(f"unused{i}" for i in range(28))]
    file = gguf.GGUFWriter(path, "llama")
    file.add_context_length(64)
    file.add_embedding_length(32)
    file.add_block_count(1)
    file.add_feed_forward_length(64)
    file.add_head_count(2)
    file.add_head_count_kv(1)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("smollm")
    file.add_token_list(tokens)
    file.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    file.add_token_merges(["H i"])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_pad_token_id(2)
    file.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_norm": (32,),
        "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64),
    }
    for name, shape in shapes.items():
        array = rng.normal(size=shape).astype(np.float32)
        stored = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else kind
        file.add_tensor(f"{name}.weight", quants.quantize(array, stored), raw_dtype=stored)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path
