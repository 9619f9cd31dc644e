"""A hub on this machine, repositories on it, and processes that use them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.types import InputError

from .server import Hub
from .traffic import JUNK


class Worker:
    """A program that calls a function of ``worker.py`` for us."""

    def __init__(self, home: Path, **settings: str) -> None:
        unset = ("HF_", "TRANSFORMERS_", "XLA_FLAGS")
        env = {key: value for key, value in os.environ.items() if not key.startswith(unset) and "proxy" not in key.lower()}
        env |= {"HF_HOME": str(home), "HF_TOKEN": "hf_secret", "JAX_PLATFORMS": "cpu", **settings}
        home.mkdir(parents=True, exist_ok=True)
        self.env, self.seconds = env, 0.0
        command = [sys.executable, str(Path(__file__).parent / "worker.py")]
        self._stderr = (home / f"stderr-{id(self)}").open("w")
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True
        )

    def __call__(self, function: str, *args):
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([function, *args]), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        self.seconds = answer["seconds"]
        if "refused" in answer:
            assert "\n" not in answer["refused"]
            raise InputError(answer["refused"])
        assert "broken" not in answer, answer["broken"]
        return answer["result"]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()


@pytest.fixture(scope="session")
def server():
    made = Hub()
    yield made
    made.close()


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def workers(server, home):
    """Programs that are online, in offline mode, and without a network: started together, as that takes seconds."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    made = {
        "online": Worker(home, HF_ENDPOINT=server.endpoint),
        "offline": Worker(home, HF_ENDPOINT=nobody, HF_HUB_OFFLINE="1"),
        "unplugged": Worker(home, HF_ENDPOINT=nobody),
    }
    yield made
    for worker in made.values():
        worker.close()


@pytest.fixture
def online(workers):
    return workers["online"]


@pytest.fixture(scope="session")
def models(workers, tmp_path_factory, make_config, tokenizer):
    """Model folders; weights are much more than their headers."""
    root = tmp_path_factory.mktemp("models")
    config = make_config(vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=512, max_position_embeddings=256)
    random = np.random.default_rng(0)

    def weights(config):
        return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), llama.abstract_params(config))

    params = weights(config)
    tuned = jax.tree.map(lambda leaf: leaf * np.float32(1.01), params)
    hf.save(root / "base", config, params, tokenizer=tokenizer)
    hf.save(root / "sharded", config, params, tokenizer=tokenizer, max_shard_bytes=500_000)
    hf.save(root / "expert", config, tuned, tokenizer=tokenizer)
    hf.save(root / "bf16", config, tuned, dtype="bfloat16", tokenizer=tokenizer)
    wider = config.replace(intermediate_size=520)
    hf.save(root / "wider", wider, weights(wider), tokenizer=tokenizer)
    padded = config.replace(vocab_size=config.vocab_size + 8)
    hf.save(root / "padded", padded, weights(padded), tokenizer=tokenizer)
    shutil.copytree(root / "expert", root / "stranger")
    vocabulary = (root / "stranger" / "tokenizer.json").read_text(encoding="utf-8")
    (root / "stranger" / "tokenizer.json").write_text(vocabulary.replace("<|eot_id|>", "<|im_end|>"), encoding="utf-8")

    (root / "lora").mkdir()
    options = {
        "peft_type": "LORA",
        "base_model_name_or_path": "acme/base",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
    }
    (root / "lora" / "adapter_config.json").write_text(json.dumps(options), encoding="utf-8")
    tensors = {}
    for layer in range(config.num_hidden_layers):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors[f"{prefix}A.weight"] = random.normal(size=(4, 64)).astype(np.float32)
        tensors[f"{prefix}B.weight"] = random.normal(size=(32, 4)).astype(np.float32)
    save_file(tensors, root / "lora" / "adapter_model.safetensors")
    return root


@pytest.fixture
def publish(server, models):
    """``publish(name, folder="base", change=None, **how)``: a repository of a folder's files, with junk beside."""

    def add(name, folder="base", change=None, **how):
        files = JUNK | {path.name: path.read_bytes() for path in (models / folder).iterdir()}
        if change is not None:
            change(files)
        return server.add(name, files, **how)

    return add
