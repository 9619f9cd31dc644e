"""Models for groups of several devices, made from those of the finished run."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import pytest
import yaml

from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import load_tokenizer

from .conftest import TASKS, write_config


def given(folder: Path, models: dict[str, Path], **changes) -> str:
    """A config with a base and experts of one's own."""
    model = {"base": str(models["base"]), "experts": {task: str(models[task]) for task in TASKS}}
    path = write_config(folder, baselines=[], **changes)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"model": model}))
    return str(path)


def sources(finished: Path) -> dict[str, Path]:
    """Folders of the finished run's models."""
    names = {"base": "base"} | {task: f"expert-{task}" for task in TASKS}
    return {name: next((finished / "cache" / "models").glob(f"{file}-*")) for name, file in names.items()}


@pytest.fixture(scope="session")
def wider(finished, tmp_path_factory) -> dict[str, Path]:
    """The finished run's base and experts with heads that two devices can share: the same functions.

    A head more, that says nothing; and the only key/value head twice.
    """
    found = {}
    for name, source in sources(finished).items():
        config, params = hf.load(source)
        attn, width = params["layers"]["attn"], config.head_dim
        q, o = jnp.pad(attn["q"], ((0, 0), (0, 0), (0, width))), jnp.pad(attn["o"], ((0, 0), (0, width), (0, 0)))
        k, v = (jnp.concatenate([attn[x]] * 2, axis=-1) for x in "kv")
        layers = params["layers"] | {"attn": attn | {"q": q, "k": k, "v": v, "o": o}}
        found[name] = tmp_path_factory.mktemp("wider") / name
        shape = config.replace(num_attention_heads=config.num_attention_heads + 1, num_key_value_heads=2)
        hf.save(found[name], shape, params | {"layers": layers}, tokenizer=load_tokenizer(source))
    return found
