"""Fixtures of the tests with lm-evaluation-harness: a tiny model folder, and a local task of each kind of request."""

from __future__ import annotations

import json

import jax
import pytest

from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.tokenizer import train_tiny_tokenizer

ANIMALS = ("cat", "dog", "horse", "owl")
TASKS = {
    "tiny_choice": """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
fewshot_split: test
fewshot_config: {{sampler: first_n}}
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
""",
    "tiny_rolling": """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}} {{{{question}}}} {{{{question}}}} {{{{question}}}} {{{{question}}}}"
metric_list: [{{metric: word_perplexity}}]
""",
    "tiny_generate": """
task: tiny_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["e", "zz"], max_gen_toks: 12}}
metric_list: [{{metric: exact_match}}]
""",
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model folder that both sides open."""
    texts = [f"Question: which animal says {n}?\nAnswer: {name}" for n, name in enumerate(ANIMALS)]
    tokenizer = train_tiny_tokenizer(texts * 4, 320)
    config = llama.LlamaConfig(
        tokenizer.vocab_size, 32, 48, 2, 4, 2, 8, max_position_embeddings=128, initializer_range=0.3, tie_word_embeddings=True
    )
    path = tmp_path_factory.mktemp("lm_eval") / "model"
    hf.save(path, config, llama.init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    return path


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    """A folder with the tasks as YAML files, and their data."""
    path = tmp_path_factory.mktemp("tasks")
    records = [
        {"question": f"which animal says {n} times {n % 3}?", "choices": [*ANIMALS[: 2 + n % 3], f"{n} owls"], "answer": n % 3}
        for n in range(10)
    ]
    data = path / "data.jsonl"
    data.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    for name, text in TASKS.items():
        (path / f"{name}.yaml").write_text(text.format(file=data), encoding="utf-8")
    return path
