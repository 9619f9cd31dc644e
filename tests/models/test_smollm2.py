"""Real weights, real tokenizer, real prompts: SmolLM2-135M-Instruct against transformers."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cycleqd_jax.engine import Engine
from cycleqd_jax.models import llama
from cycleqd_jax.models.fetch import fetch_smollm2
from cycleqd_jax.models.files import gguf, hf
from cycleqd_jax.models.tokenizer import ChatTokenizer

from ..lazy import Lazy

pytest.importorskip("gguf", reason="the gguf package, which dequantises the weights, is not installed")
torch = Lazy("torch", reason="torch, which transformers computes with, is not installed")

TIE = 1e-4  # logits closer than this may come in either order
NEW_TOKENS = 64


@pytest.fixture(scope="module")
def folder(smollm2_gguf, tmp_path_factory):
    return fetch_smollm2(tmp_path_factory.mktemp("smollm2") / "model")


@pytest.fixture(scope="module")
def ours(folder):
    return hf.load(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return ChatTokenizer.load(folder)


def records(path: Path, count: int) -> list[dict]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(next(file)) for _ in range(count)]


@pytest.fixture(scope="module")
def questions(data_dir):
    mbpp = records(data_dir / "mbpp" / "mbpp_sanitized.visible.jsonl", 25)
    gsm8k = records(data_dir / "gsm8k" / "gsm8k_test.visible.jsonl", 25)
    asked = [f"{r['prompt']} Your code should pass this test:\n{r['test_list'][0]}" for r in mbpp]
    return asked + [r["question"] for r in gsm8k]


@pytest.mark.exhaustive
def test_the_gguf_tensors_are_those_that_transformers_reads(smollm2_gguf):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32)
    expected = model.state_dict()
    config, tensors = gguf.read_gguf(smollm2_gguf)
    assert set(expected) - set(tensors) == {"lm_head.weight"}  # tied
    assert config["tie_word_embeddings"]
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.read(0, tensor.shape[0]), expected[name].numpy(), err_msg=name)


@pytest.mark.exhaustive
def test_float32_keeps_every_weight(smollm2_gguf, ours):
    config, params = ours
    _, tensors = gguf.read_gguf(smollm2_gguf)
    assert config.dtype == "float32"
    for layer in (0, 17, 29):
        q = tensors[f"model.layers.{layer}.self_attn.q_proj.weight"]
        np.testing.assert_array_equal(np.asarray(params["layers"]["attn"]["q"][layer]), q.read(0, 576).T)
    assert llama.num_params(config) == 134_515_008  # of the published model


@pytest.mark.exhaustive
def test_a_turn_ends_with_im_end(tokenizer):
    (end,) = tokenizer.stop_ids
    ids = tokenizer.encode([{"role": "user", "content": "Hi"}], add_generation_prompt=False)
    assert tokenizer.decode([end]) == ""
    assert ids.count(end) == 2  # of the default system prompt and of the question
    assert tokenizer.decode(ids).startswith("system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\n")


@pytest.mark.exhaustive
def test_logits_equal_transformers(ours, theirs, tokenizer, questions):
    config, params = ours
    prompts = [tokenizer.encode([{"role": "user", "content": questions[i]}]) for i in (0, 12, 30)]
    tokens = np.full((3, max(map(len, prompts))), tokenizer.pad_id)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    got = jax.jit(llama.forward, static_argnums=1)(params, config, tokens)
    for row, prompt in zip(np.asarray(got), prompts, strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor([prompt])).logits[0].numpy()
        np.testing.assert_allclose(row[: len(prompt)], expected, rtol=0, atol=2e-4)


def their_replies(model, prompts: list[list[int]], stop_id: int, rows: int = 10) -> list[list[int]]:
    """``generate`` of transformers, ``rows`` prompts of about one length at a time; each up to its stop token."""
    replies: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for members in (order[at : at + rows] for at in range(0, len(order), rows)):
        width = max(len(prompts[i]) for i in members)
        tokens = torch.tensor([[stop_id] * (width - len(prompts[i])) + prompts[i] for i in members])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in members])
        with torch.no_grad():
            ids = model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS)
        for i, row in zip(members, ids[:, width:].tolist(), strict=True):
            replies[i] = row[: row.index(stop_id) + 1] if stop_id in row else row
    return [replies[i] for i in range(len(prompts))]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_greedy_replies_equal_transformers(ours, theirs, tokenizer, questions, capsys):
    config, params = ours
    prompts = [tokenizer.encode([{"role": "user", "content": question}]) for question in questions]
    engine = Engine(config, slots=10, max_len=640, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    engine.load(params)
    start = time.perf_counter()
    got = [list(generation.ids) for generation in engine.generate(prompts, [NEW_TOKENS] * len(prompts))]
    with capsys.disabled():
        print(f"\n{len(prompts)} replies: {time.perf_counter() - start:.0f} s, compilation included", flush=True)
    start = time.perf_counter()
    expected = their_replies(theirs, prompts, tokenizer.stop_ids[0])
    seconds = time.perf_counter() - start

    gaps = {}
    for i, (prompt, g, e) in enumerate(zip(prompts, got, expected, strict=True)):
        if g != e:
            same = next(j for j in range(NEW_TOKENS) if g[j : j + 1] != e[j : j + 1])
            with torch.no_grad():
                logits = theirs(torch.tensor([prompt + e[:same]])).logits[0, -1]
            gaps[i] = (same, float(logits[e[same]] - logits[g[same]]))
    with capsys.disabled():
        print(f"transformers: {seconds:.0f} s; {len(gaps)} replies differ")
        for i, (same, gap) in gaps.items():
            print(f"prompt {i} differs from token {same} on, logit gap {gap:.2e}")
        for i in (1, 30):
            print(f"--- {questions[i]}\n>>> {tokenizer.decode(got[i])}")
    assert all(abs(gap) < TIE for _, gap in gaps.values()), gaps
    assert any(ids[-1] in tokenizer.stop_ids for ids in got), "no reply ends"
