"""lm-evaluation-harness drives the server: likelihoods over completions, generation over chat."""

from __future__ import annotations

import pytest

from ..script import load_script

pytest.importorskip("lm_eval", reason="lm-eval is not installed; the extra lm-eval brings it")
for needed in ("tenacity", "aiohttp"):
    pytest.importorskip(needed, reason="lm-eval[api] is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]

MAX_LEN = 128


@pytest.fixture(scope="module")
def address(folder):
    with load_script("bench_serve").server(str(folder), "--max-len", str(MAX_LEN)) as (address, _):
        yield address


@pytest.fixture
def evaluate(tasks, tmp_path, monkeypatch, folder, address):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import lm_eval
    from lm_eval.tasks import TaskManager

    def run(model, path, task, more, **options):
        return lm_eval.simple_evaluate(
            model=model,
            model_args=f"model={folder.name},base_url={address}/v1/{path},num_concurrent=2,max_retries=1,{more}",
            tasks=[task],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            batch_size=1,
            log_samples=True,
            bootstrap_iters=0,
            **options,
        )["samples"][task]

    return run


@pytest.fixture
def scorer(folder):
    from cycleqd_jax import lm_eval
    from cycleqd_jax.engine import TextScorer

    model = lm_eval.load(pretrained=str(folder), run=None, child=None, dtype=None)
    return TextScorer(lm_eval.make_engine(model, slots=4, max_length=MAX_LEN), model.tokenizer)


def test_likelihoods_are_those_of_the_engine(evaluate, scorer, folder):
    more = f"tokenizer={folder},tokenizer_backend=huggingface,tokenized_requests=True,max_length={MAX_LEN}"
    samples = evaluate("local-completions", "completions", "tiny_choice", more)
    arguments = [tuple(one) for sample in samples for one in sample["arguments"]]
    found = [one for sample in samples for one in sample["filtered_resps"]]
    # Lm-eval's clients add no bos token.
    pairs = []
    for context, continuation in arguments:
        before, whole = (scorer.encode(text, special=False) for text in (context, context + continuation))
        pairs.append((before, whole[len(before) :]))
    expected = scorer.engine.score(pairs)
    assert [float(one[0]) for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-4)
    assert [bool(one[1]) for one in found] == [one.greedy for one in expected]


def test_generation_over_chat(evaluate, folder):
    from cycleqd_jax.engine import load_model

    samples = evaluate(
        "local-chat-completions", "chat/completions", "tiny_generate", "tokenized_requests=False", apply_chat_template=True
    )
    assert len(samples) == 10
    model = load_model(str(folder))
    for sample in samples:
        question = f"Question: {sample['doc']['question']}\nAnswer:"
        assert sample["filtered_resps"][0] == model.generate(question, max_new_tokens=12, stop=("e", "zz"))
