"""Gold solutions of samples of the published data and of the miniature problems, played in the episodes."""

from __future__ import annotations

import random

import pytest

from cycleqd_jax.evaluation import rollout
from cycleqd_jax.tasks import miniature
from cycleqd_jax.tasks.dbbench.records import CHANGES
from cycleqd_jax.types import Score

from .helpers import FakeSandbox, final_score, make, solution_scores


def sample(task, split, count):
    rows = sorted(zip(task.rows[split], task.records[split], strict=True), key=lambda pair: (len(pair[0].where), pair[0].where))
    return random.Random(0).sample(rows, min(count, len(rows)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["full", "sanitized"])
def test_mbpp(data_dir, sandbox, name):
    task = make("mbpp", data=data_dir / f"mbpp/mbpp_{name}.visible.jsonl", sandbox=sandbox, memo=False)
    for row, record in sample(task, "train", 40):
        assert solution_scores(task, record) == [1.0], row.id
        constant = "\n".join(f"def {n}(*a, **k): return 0" for n in record.names)
        assert final_score(task, record, f"```python\n{constant}\n```").value == 0.0, row.id
        assert final_score(task, record, "```python\nexit(0)\n```").value == 0.0, row.id


@pytest.mark.exhaustive
def test_dbbench(data_dir, sandbox):
    task = make("dbbench", data=data_dir / "dbbench/dbbench_cycleqd.visible.jsonl", sandbox=sandbox, memo=False)
    queries = 0
    for row, record in sample(task, "train", 40):
        scores = solution_scores(task, record)
        if record.kind in CHANGES:
            assert scores == [1.0], row.id
        else:
            assert scores[-1] == 1.0, row.id
            queries += scores[0] == 1.0
        for reply in ("", 'Action: Answer\nFinal Answer: ["done"]', "Action: Answer\nFinal Answer: []"):
            assert final_score(task, record, reply).value == 0.0, row.id
    assert queries > 0


@pytest.mark.exhaustive
def test_os_interaction(data_dir, sandbox):
    task = make(
        "os_interaction", data=data_dir / "os_interaction/os_agentbench_train.visible.jsonl", sandbox=sandbox, memo=False
    )
    for row, record in sample(task, "train", 20):
        assert 1.0 in solution_scores(task, record) or not row.fields["gold_replay"]["rootless_single_uid"], row.id
        assert final_score(task, record, "Act: finish").value == 0.0, row.id


@pytest.mark.slow
def test_os_interaction_standard(data_dir, sandbox):
    task = make("os_interaction", data=data_dir / "os_interaction/os_cycleqd.visible.jsonl", sandbox=sandbox, memo=False)
    solved = 0
    chosen = [(row, record) for row, record in sample(task, "train", 30) if record.example is not None]
    for row, record in chosen:
        solved += 1.0 in solution_scores(task, record)
        assert final_score(task, record, "Act: finish").value == 0.0, row.id
    assert solved >= 0.8 * len(chosen)


@pytest.fixture
def miniatures(tmp_path, sandbox):
    files = miniature.write(tmp_path, seed=0, train=25, test=5)
    return {name: make(name, **files[name], **miniature.OPTIONS[name], sandbox=sandbox) for name in miniature.TASKS}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", miniature.TASKS)
def test_miniatures_are_solved_in_the_format_of_the_training_conversations(miniatures, name):
    task = miniatures[name]
    demonstrations = task.demonstrations("train")
    assert len(demonstrations) == 25
    (example, *_) = miniature.demonstrations(name, seed=0, size=1)
    same_shape = [d for d in demonstrations if len(d) == len(example)]
    assert same_shape
    assert [m["role"] for m in same_shape[0]] == [m["role"] for m in example]


@pytest.mark.exhaustive
def test_an_oracle_solves_all_tasks_and_the_memo_needs_no_sandbox(miniatures, speaker):
    # Replies as in the demonstrations.
    talks = [talk for task in miniatures.values() for talk in task.demonstrations("train")]
    following = {str(talk[:n]): talk[n]["content"] for talk in talks for n in range(len(talk))}
    oracle = speaker(lambda messages: following[str(messages)])
    episodes = [e for task in miniatures.values() for e in task.episodes("train")]
    first = rollout(episodes, oracle, [64] * len(episodes))
    assert [o.score.value for o in first] == [1.0] * 100

    remembered = {name: task.memo.misses for name, task in miniatures.items()}
    for task in miniatures.values():
        task.sandbox = FakeSandbox()  # fails if anything is executed
    episodes = [e for task in miniatures.values() for e in task.episodes("train")]
    assert rollout(episodes, oracle, [64] * len(episodes)) == first
    assert {name: task.memo.misses for name, task in miniatures.items()} == remembered


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", miniature.TASKS)
def test_verdicts_with_and_without_memo_are_equal(miniatures, name):
    task = miniatures[name]
    (talk, *_) = task.demonstrations("train")
    gold = [m["content"] for m in talk if m["role"] == "assistant"]
    odd = ["", "?", "```python\nx = 1\n```", 'Action: Answer\nFinal Answer: ["0"]', "Act: answer(0)", "Act: finish"]
    odd += ["Action: Operation\n```sql\nSELECT 1\n```", "Act: bash\n\n```bash\npwd\n```", "Act: bash\n\n```bash\ndate +%N\n```"]
    rng = random.Random(0)

    def play_random(episode, seed):
        """The replies and their results, without outputs of the clock."""
        rng.seed(seed)
        results = []
        try:
            episode.start()
            while not results or not isinstance(results[-1][1], Score):
                reply = rng.choice(odd + 4 * gold)
                result = episode.step(reply)
                results.append((reply, None if "date" in reply and not isinstance(result, Score) else result))
        finally:
            episode.close()
        return results

    for seed in range(60):
        with_memo = play_random(task.episodes("train")[seed % 2], seed // 4)
        assert with_memo == play_random(task.environment(task.records["train"][seed % 2]), seed // 4)
    assert task.memo.hits > task.memo.misses / 2
