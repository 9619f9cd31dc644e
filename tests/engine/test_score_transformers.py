"""Log-likelihoods against transformers: a tiny random Llama, and SmolLM2-135M on real questions."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from cycleqd_jax.engine import Engine
from cycleqd_jax.models import llama
from cycleqd_jax.models.fetch import fetch_smollm2
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.tokenizer import ChatTokenizer

from ..lazy import Lazy

torch = Lazy("torch", reason="torch, which transformers computes with, is not installed")
TINY = llama.LlamaConfig(96, 32, 64, 3, 4, 2, 8, max_position_embeddings=128, initializer_range=0.3)


def theirs(folder):
    """The float32 weights, computed in float64: the rounding of transformers' own float32 is as large as the tolerance."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.double().eval()


def their_score(model, context, continuation):
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *continuation][:-1]])).logits[0, len(context) - 1 :]
    logprobs = torch.log_softmax(logits, -1)
    wanted = torch.tensor(continuation)
    total = logprobs[torch.arange(len(wanted)), wanted].double().sum()
    return float(total), bool((logits.argmax(-1) == wanted).all())


def check(found, pairs, model, tol=1e-4):
    for one, (context, continuation) in zip(found, pairs, strict=True):
        logprob, greedy = their_score(model, context, continuation)
        assert one.logprob == pytest.approx(logprob, abs=tol)
        assert one.greedy == greedy


@pytest.mark.exhaustive
def test_a_tiny_random_llama(tmp_path):
    params = llama.init_params(TINY, jax.random.key(3))
    hf.save(tmp_path / "model", TINY, params)
    rng = np.random.default_rng(0)
    before = rng.integers(0, 96, 30).tolist()
    pairs = []
    for _ in range(6):
        context = before + rng.integers(0, 96, rng.integers(1, 30)).tolist()
        pairs += [(context, rng.integers(0, 96, rng.integers(1, 12)).tolist()) for _ in range(4)]
    engine = Engine(TINY, slots=4, max_len=96, stop_ids=[0], pad_id=0, chunk=16)
    engine.load(params)
    check(engine.score(pairs), pairs, theirs(tmp_path / "model"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2(smollm2_gguf, tmp_path, data_dir):
    folder = fetch_smollm2(tmp_path / "model")
    config, params = hf.load(folder)
    tokenizer = ChatTokenizer.load(folder).transformers_tokenizer
    with (data_dir / "arc" / "arc_challenge_test.visible.jsonl").open(encoding="utf-8") as file:
        records = [json.loads(next(file)) for _ in range(12)]
    shots = "".join(
        f"Question: {r['question']['stem']}\nAnswer: "
        f"{next(c['text'] for c in r['question']['choices'] if c['label'] == r['answerKey'])}\n\n"
        for r in records[:4]
    )
    pairs = []
    for record in records[4:]:
        context = f"{shots}Question: {record['question']['stem']}\nAnswer:"
        begin = tokenizer.encode(context)
        for choice in record["question"]["choices"]:
            pairs.append((begin, tokenizer.encode(f"{context} {choice['text']}")[len(begin) :]))
    engine = Engine(config, slots=8, max_len=1024, stop_ids=[0], pad_id=0)
    engine.load(params)
    found = engine.score(pairs)
    assert engine.statistics.reused > 7 * 100  # the four solved questions
    check(found, pairs, theirs(folder))
