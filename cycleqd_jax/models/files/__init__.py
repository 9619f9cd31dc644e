"""Files of models: Hugging Face folders, safetensors, LoRA adapters, GGUF files and the hub.

The public names are modules, so that importing one of them does not import the others.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cycleqd_jax.models.files import (
        checkpoint,
        gguf,
        gguf_file,
        gguf_tokenizer,
        hf,
        hub,
        names,
        peft,
        peft_config,
        safetensors,
        torch_zip,
    )

__all__ = [
    "checkpoint",
    "gguf",
    "gguf_file",
    "gguf_tokenizer",
    "hf",
    "hub",
    "names",
    "peft",
    "peft_config",
    "safetensors",
    "torch_zip",
]
