"""Files of models: Hugging Face folders, safetensors, LoRA adapters, GGUF files and the hub."""
