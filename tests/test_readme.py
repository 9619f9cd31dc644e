"""The README's Python is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from cycleqd_jax.models import llama
from cycleqd_jax.models import tokenizer as chat
from cycleqd_jax.models.files import hf

README = Path(__file__).parents[1] / "README.md"


def test_examples(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = chat.train_tiny_tokenizer(["Hello"], 300)  # in the place of the quickstart's
    config = llama.LlamaConfig(304, 32, 48, 2, 4, 2, 8)
    hf.save("runs/quickstart/model", config, llama.init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    experts = namespace["evaluate"](namespace["genomes"]).mean(1)
    merged = namespace["scores"](namespace["merged"]).mean()
    assert float(merged) > 2 * float(experts.max())
    assert namespace["answer"].shape == (3,)
    halfway = [
        (a + b) / 2 for a, b in zip(*(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in namespace["models"][1:]), strict=True)
    ]
    for got, want in zip(jax.tree.leaves(nnx.state(namespace["mlp"], nnx.Param)), halfway, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert namespace["answers"].shape == (5, 3)
    assert namespace["logits"].shape == (8, 8, 304)
    assert hf.load("runs/copy")[0].dtype == "bfloat16"
    assert "CycleQD" in capsys.readouterr().out
