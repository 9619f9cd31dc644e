"""Evaluations of a run that fail: the memory of an engine, and sandboxes that a program kills."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.config import SearchConfig, load_config
from cycleqd_jax.engine import ChatGenerator, Engine, programs
from cycleqd_jax.evaluation import Evaluation, Evaluator, SerialWorker
from cycleqd_jax.models import llama
from cycleqd_jax.models.tokenizer import train_tiny_tokenizer
from cycleqd_jax.runs import Run
from cycleqd_jax.runs.faults import guarded, halve_slots, known_slots
from cycleqd_jax.sandbox import InfraError, Sandbox
from cycleqd_jax.types import InputError, Outcome, Score

SLOTS = 4
FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."


def results_of(worker, numbers):
    return [worker([np.asarray(number)], threading.Event())[0] for number in numbers]


class Talk:
    """An episode of two turns; its score depends on every character of both replies."""

    def __init__(self, number):
        self.number, self.replies = number, []

    def start(self):
        return [{"role": "user", "content": f"question {self.number}"}]

    def step(self, reply):
        self.replies.append(reply)
        if len(self.replies) == 2:
            return Score(sum(map(ord, "".join(self.replies))) % 101 / 100)
        return [{"role": "user", "content": "again"}]

    def close(self):
        pass


class Talks:
    name, max_new_tokens = "talks", 12

    def episodes(self, split):
        return [Talk(i) for i in range(9)]

    def demonstrations(self, split):
        return []


@pytest.fixture(scope="module")
def tokenizer():
    return train_tiny_tokenizer(["question 1 again"], 300)


@pytest.fixture
def evaluated(tokenizer):
    """Scores of three small models by an engine whose memory runs out; returns them, the lines of the log, and the engine."""
    config = llama.LlamaConfig(tokenizer.vocab_size, 16, 32, 1, 2, 1, 8, max_position_embeddings=128, initializer_range=0.5)

    def evaluate(monkeypatch, faults=(), slots=SLOTS, split="train"):
        engine = Engine(config, slots=slots, max_len=128, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
        lines, calls, real = [], [], programs.decode

        def decode(*args, **options):
            calls.append(engine.slots)
            if len(calls) - 1 in faults:
                raise jax.errors.JaxRuntimeError(FULL)
            return real(*args, **options)

        evaluator = Evaluator(
            lambda params, donate: engine.load(params, donate=donate),
            ChatGenerator(engine, tokenizer),
            [Talks()],
            unload=engine.unload,
            shrink=lambda: halve_slots(engine, slots, lines.append),
            usage=engine.usage,
        )
        worker = SerialWorker(lambda seed: llama.init_params(config, jax.random.key(int(seed))), evaluator)
        one = guarded(worker, evaluator, SearchConfig(), split, lines.append)
        with monkeypatch.context() as patch:
            patch.setattr(programs, "decode", decode)
            found = results_of(one, range(3))
        return found, lines, engine

    return evaluate


@pytest.mark.parametrize("at", [0, 7])
def test_slots_are_halved_once_and_the_scores_are_the_same(evaluated, monkeypatch, at):
    wanted, quiet, engine = evaluated(monkeypatch)
    assert (quiet, engine.slots) == ([], SLOTS)
    found, lines, engine = evaluated(monkeypatch, faults=[at])
    assert engine.slots == SLOTS // 2
    assert lines == [
        "warning: the memory has run out in an evaluation, which starts again with 2 instead of 4 slots, which may change "
        "the last bits of results in bfloat16; give a new run this number as engine.slots"
    ]
    assert [one.items for one in found] == [one.items for one in wanted]
    assert len({tuple(one.items["talks"]) for one in found}) == 3
    assert [one.transcript for one in found] == [one.transcript for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.tokens["generated"] == other.tokens["generated"]


def test_a_run_that_continues_has_the_slots_that_it_had(tmp_path):
    class Resized(Engine):
        slots = 4

        def __init__(self):
            pass

        def resize(self, slots):
            self.slots = slots

    engine, lines = Resized(), []
    assert known_slots(tmp_path, 4) == 4
    assert halve_slots(engine, 4, lines.append, tmp_path)
    assert known_slots(tmp_path, 4) == 4  # a folder without scores belongs to no config
    (tmp_path / "history.jsonl").touch()
    assert (known_slots(tmp_path, 4), known_slots(tmp_path, 8)) == (2, 8)
    assert not halve_slots(engine, 4, lines.append, tmp_path)
    (tmp_path / "engine.json").write_text('{"configured": 4, "slots": 9}')
    with pytest.raises(InputError, match=r"expected the numbers configured and slots in .*engine\.json, got .*; remove the"):
        known_slots(tmp_path, 4)


@pytest.mark.parametrize("scored", [False, True])
def test_slots_that_an_earlier_start_without_scores_halved_are_forgotten(tmp_path, scored):
    """Its scores are those of all slots; a folder with scores keeps the slots that they were made with."""
    (tmp_path / "engine.json").write_text('{"schema": 1, "configured": 4, "slots": 2}')
    if scored:
        (tmp_path / "history.jsonl").touch()
    run = Run(load_config({"name": "demo", "output": str(tmp_path), "tasks": [{"name": "mbpp"}, {"name": "dbbench"}]}))
    with contextlib.ExitStack() as stack:
        run._lock(stack)
    (tmp_path / "history.jsonl").touch()
    assert known_slots(tmp_path, 4) == (2 if scored else 4)


def test_evaluating_another_model_records_no_slots(monkeypatch):
    """Its memory says nothing about that of the search."""
    read_only = []

    @dataclasses.dataclass(frozen=True)
    class Shared:
        """Stands for the context of a run."""

        family: Any
        groups: tuple[Any, ...] = (SimpleNamespace(single=True),)
        read_only: bool = False

        def evaluator(self, *args):
            read_only.append(self.read_only)
            return lambda params, split: Evaluation({}, None, {})

    family = SimpleNamespace(
        check_model=lambda *args: None, processor=lambda model: None, load=lambda *args, **options: (None, None)
    )
    opened = SimpleNamespace(context=Shared(family))
    monkeypatch.setattr(Run, "_ensure_open", lambda *args, **options: opened)
    config = load_config({"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}]})
    Run(config).evaluate_model("model")
    assert read_only == [True]


@pytest.mark.exhaustive
def test_where_halving_does_not_help_the_child_is_quarantined(evaluated, monkeypatch):
    wanted, _, _ = evaluated(monkeypatch)
    found, lines, engine = evaluated(monkeypatch, faults=[0, 1])
    assert found[0].error == f"out of memory: {FULL}"
    assert found[0].transient
    assert [one.items for one in found[1:]] == [one.items for one in wanted[1:]]
    assert (len(lines), engine.slots) == (1, SLOTS // 2)
    found, lines, engine = evaluated(monkeypatch, faults=[0], slots=1)
    assert (found[0].error, lines, engine.slots) == (f"out of memory: {FULL}", [], 1)


def test_candidates_for_the_final_model_are_not_quarantined(evaluated, monkeypatch):
    with pytest.raises(jax.errors.JaxRuntimeError):
        evaluated(monkeypatch, faults=[0, 1], split="validation")


# ---------------------------------------------------------------------------------------------------------- sandboxes


def family(pid):
    """A process and its descendants."""
    pids = [pid]
    for parent in pids:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
    return pids


@pytest.fixture(scope="module")
def sandbox():
    try:
        with Sandbox() as found:
            yield found
    except InfraError as error:
        pytest.skip(f"no sandbox works here: {error}")


class Executes(Evaluator):
    """Runs a model's program in a box. Model 1 kills the worker of its sandbox in every attempt."""

    def __init__(self, sandbox):
        self.sandbox, self.attempts, self.unload, self.shrink = sandbox, [], lambda: None, lambda: False

    def __call__(self, params, split="train", *, donate=False, stop=None, relatives=()):
        number = int(params["number"])
        self.attempts.append(number)
        with self.sandbox.box() as box:
            if number == 1:
                for pid in reversed(family(self.sandbox._worker.process.pid)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            output = box.shell().run("echo 1").output
        return Evaluation({"task": [Outcome(Score(float(output)), (), 1, 1)]}, None, {})


@pytest.mark.exhaustive
def test_a_child_that_kills_its_worker_every_time_does_not_harm_the_others(sandbox):
    evaluator, lines = Executes(sandbox), []
    worker = guarded(
        SerialWorker(lambda number: {"number": jnp.asarray(number)}, evaluator),
        evaluator,
        SearchConfig(retries=1),
        "train",
        lines.append,
    )
    found = results_of(worker, range(3))
    assert evaluator.attempts == [0, 1, 1, 2]
    assert [one.error is None for one in found] == [True, False, True]
    assert found[1].error.startswith("InfraError: expected a working sandbox, got ")
    assert found[1].error.endswith(" (in 2 attempts)")
    assert len(lines) == 1
