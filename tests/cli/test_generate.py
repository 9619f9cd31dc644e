"""``cycleqd generate``: said while it is generated."""

from __future__ import annotations

import io
import re
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.cli import main
from cycleqd_jax.models import chat, hf, llama


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """A model that says ``UVWXYZUVW…`` to whatever is asked and never ends."""
    tokenizer = chat.train_tiny_tokenizer(["hello"], 261)
    ids = tokenizer._tokenizer.encode("UVWXYZ", add_special_tokens=False)
    assert len(ids) == 6
    size = tokenizer.vocab_size
    config = llama.LlamaConfig(size, size + size % 2, 2, 1, 1, 1, 2, max_position_embeddings=128)
    # Layers add nothing: the head sees which token was the last, and knows which one follows.
    head = np.zeros((config.hidden_size, size), np.float32)
    head[:, ids[0]] = 0.5
    head[ids, [*ids[1:], ids[0]]] = 1
    params = jax.tree.map(jnp.zeros_like, llama.init_params(config, jax.random.key(0)))
    params |= {"embed_tokens": jnp.eye(*params["embed_tokens"].shape), "norm": params["norm"] + 1, "lm_head": jnp.asarray(head)}
    folder = tmp_path_factory.mktemp("counting")
    hf.save(folder / "model", config, params, tokenizer=tokenizer)
    hf.save(folder / "broken", config, params | {"norm": params["norm"] * 1e38}, tokenizer=tokenizer)
    return folder


class Terminal(io.StringIO):
    """Standard output that notes what was shown at every flush, and whose reader may press Ctrl-C."""

    def __init__(self, patience: int | None = None):
        super().__init__()
        self.shown = []
        self.patience = patience

    def isatty(self):
        return True

    def flush(self):
        self.shown.append(self.getvalue())
        if len(self.shown) == self.patience:
            signal.raise_signal(signal.SIGINT)


def test_pieces_are_shown_as_they_come(counting, monkeypatch):
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["generate", str(counting / "model"), "hi", "--max-new-tokens", "14"]) == 0
    assert out.shown == ["U", "UVWXY", "UVWXYZUVW", "UVWXYZUVWXYZU", "UVWXYZUVWXYZUV", "UVWXYZUVWXYZUV\n"]
    assert "14 tokens" in err.getvalue()
    assert "tokens/s" in err.getvalue()


def test_nothing_but_the_reply_where_nobody_watches(counting, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi"))
    assert main(["generate", str(counting / "model"), "-", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr() == ("UVW\n", "")


def test_interrupted(counting, monkeypatch, capsys):
    out = Terminal(patience=2)
    monkeypatch.setattr(sys, "stdout", out)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none
    try:
        assert main(["generate", str(counting / "model"), "hi", "--max-new-tokens", "100"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert out.getvalue() == "UVWXY"
    assert capsys.readouterr().err.startswith("\ncycleqd: interrupted")


def test_the_end_of_the_context(counting, capsys):
    assert main(["generate", str(counting / "model"), "hi", "--max-new-tokens", "500"]) == 0
    length = len(chat.ChatTokenizer.load(counting / "model").encode([{"role": "user", "content": "hi"}]))
    assert capsys.readouterr().out == ("UVWXYZ" * 40)[: 128 - length] + "\n"


@pytest.mark.parametrize(
    ("model", "prompt", "limit", "named"),
    [
        ("model", "hi", "0", "--max-new-tokens"),
        ("model", "x" * 200, "5", "128"),
        ("broken", "hi", "5", "broken can't answer: .*not finite"),
    ],
)
def test_refused(counting, capsys, model, prompt, limit, named):
    assert main(["generate", str(counting / model), prompt, "--max-new-tokens", limit]) == 2
    out, err = capsys.readouterr()
    assert out.strip() == ""
    assert re.search(named, err)
    assert err.count("\n") == 1


def test_a_trained_model(finished, capsys):
    assert main(["generate", str(finished / "run" / "model"), "How many files?", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.endswith("\n")
