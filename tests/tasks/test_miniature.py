"""The embedded default: disjoint, compositional, solvable by its gold programs and by nothing constant."""

import itertools
import json

import pytest

from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.tasks import TASKS, rollout
from cycleqd_jax.tasks import miniature as mini
from cycleqd_jax.types import InputError, Reply

PROBLEMS = {"train": 40, "test": 60}


@pytest.fixture(scope="module")
def records():
    return mini.generate(seed=0, train=PROBLEMS["train"], test=PROBLEMS["test"])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    paths = mini.write(tmp_path_factory.mktemp("data"), 0, PROBLEMS["train"], PROBLEMS["test"])
    with Sandbox() as sandbox:
        yield {
            name: TASKS[name](
                sandbox=sandbox,
                prompt="brief",
                max_new_tokens=64,
                **({"shown": "first"} if name == "mbpp" else {}),
                **paths[name],
            )
            for name in mini.TASKS
        }


class _Always:
    """A generator that says the same, whatever it is asked."""

    def __init__(self, text):
        self.text = text

    def generate(self, conversations, max_new_tokens):
        return [Reply(self.text, 1, "stop") for _ in conversations]


def _program(task, record):
    if task == "mbpp":
        return record["code"].split("return ")[1]
    if task == "dbbench":
        return record["label"][0] if "answer_md5" in record else record["sql"]["query"]
    return record["example_script"][1]


def _reply_program(task, conversation):
    """The program that a lesson teaches."""
    mark = {"mbpp": "    return ", "dbbench": "```sql\n", "os_interaction": "```bash\n"}[task]
    return conversation[1]["content"].split(mark)[1].removesuffix("\n```")


@pytest.mark.parametrize("task", mini.TASKS)
def test_splits_and_lessons_never_share_a_program(records, task):
    train, test = ([_program(task, r) for r in records[task][split]] for split in ("train", "test"))
    other = [_program(task, r) for r in mini.generate(7, 40, 0, [task])[task]["train"]]
    taught = {_reply_program(task, c) for c in mini.lessons(task, 0, 2000)}
    taught |= {_reply_program(task, c) for c in mini.pretraining(1, 500, 1.0, [task])}
    assert len(set(train)) == PROBLEMS["train"]
    assert len(set(test)) == PROBLEMS["test"]
    assert not set(test) & {*train, *other, *taught}
    assert not set(train) & taught
    assert len(taught) > 400


@pytest.mark.parametrize("task", mini.TASKS)
def test_problems_ask_for_what_lessons_have_taught_in_parts(records, task):
    """Every word of a test problem, and every piece of its program, occurs in the lessons."""
    lessons = mini.lessons(task, 0, 4000)
    known = {word for c in lessons for message in c for word in message["content"].replace("'", " ").split()}
    for record in records[task]["test"]:
        wanted = {*record.get("description", record.get("text", "")).split(), *_program(task, record).replace("'", " ").split()}
        unknown = {
            word for word in wanted if word not in known and not any(character in "/,.'0123456789" for character in word)
        }
        assert not unknown


@pytest.mark.parametrize("task", mini.TASKS)
def test_gold_solutions_score_one_and_lessons_look_like_demonstrations(tasks, records, task):
    """``demonstrations`` keeps what scored 1 when really executed; lessons are in the very same format."""
    rendered = {split: mini._distinct(task, split, 0, count) for split, count in PROBLEMS.items()}
    for split, count in PROBLEMS.items():
        demonstrations = tasks[task].demonstrations(split)
        assert len(demonstrations) == count
        assert demonstrations == [problem.conversation for problem in rendered[split]]


@pytest.mark.parametrize("task", mini.TASKS)
@pytest.mark.parametrize(
    "reply",
    [
        "",
        "```python\ndef solve(x):\n    return 1\n```",
        "```python\ndef solve(x):\n    return x\n```",
        'Action: Answer\nFinal Answer: ["done"]',
        "Action: Operation\n```sql\nSELECT 1\n```",
        "Act: finish",
        "Act: bash\n\n```bash\nls ~\n```",
    ],
)
def test_constants_score_nothing(tasks, task, reply):
    episodes = tasks[task].episodes("test")
    outcomes = rollout(episodes, _Always(reply), [64] * len(episodes))
    assert sum(outcome.score.value for outcome in outcomes) == 0


@pytest.mark.parametrize("task", mini.TASKS)
def test_one_answer_is_right_for_few(tasks, task):
    best = 0.0
    for answer in range(6):
        text = f'Act: answer({answer})\nAction: Answer\nFinal Answer: ["{answer}"]'
        episodes = tasks[task].episodes("test")
        scores = [o.score.value for o in rollout(episodes, _Always(text), [64] * len(episodes))]
        best = max(best, sum(scores) / len(scores))
    assert best < 0.2


def test_records_have_the_published_fields(records):
    for record in itertools.chain(*records["mbpp"].values()):
        assert {"task_id", "text", "code", "test_list", "test_setup_code", "challenge_test_list"} == set(record)
        assert len(record["test_list"]) == 3
    for record in itertools.chain(*records["dbbench"].values()):
        assert {"description", "label", "table", "type", "add_description"} <= set(record)
        assert ("answer_md5" in record) == (record["type"][0] in ("INSERT", "UPDATE"))
        assert ("sql" in record) != ("answer_md5" in record)
    for record in itertools.chain(*records["os_interaction"].values()):
        assert {"description", "init_script", "start", "check", "match", "example_script"} <= set(record)
        assert (record["check"] is None) != (record["match"] is None)


def test_table_fingerprint_is_that_of_the_benchmark(data_dir):
    path = data_dir / "dbbench" / "dbbench_cycleqd.visible.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    record = next(r for r in rows if r["id"] == "db/100")
    after = [[str(cell) for cell in row] for row in record["table"]["table_info"]["rows"]]
    after.append(["2019", "Aoharu Ride", "Kou Mabuchi"])
    assert str([(mini._table_md5(after),)]) == record["answer_md5"]


def test_seeds(records):
    assert mini.generate(0, 5, 5) == {t: {s: r[:5] for s, r in splits.items()} for t, splits in records.items()}
    assert mini.generate(1, 5, 5) != mini.generate(0, 5, 5)
    assert mini.lessons("mbpp", 3, 20) == mini.lessons("mbpp", 3, 30)[:20]
    assert mini.lessons("mbpp", 3, 20) != mini.lessons("mbpp", 4, 20)
    assert mini.pretraining(0, 9, 0.5) == mini.pretraining(0, 9, 0.5)


def test_a_narrow_corpus_has_all_formats_but_few_phrases():
    narrow, wide = mini.pretraining(0, 600, 0.0), mini.pretraining(0, 600, 1.0)
    for number, fence in enumerate(("```python", "```sql", "```bash")):
        assert all(fence in conversation[1]["content"] for conversation in narrow[number::3])

    def commands(corpus):
        return {_reply_program("os_interaction", conversation).split()[0] for conversation in corpus[2::3]}

    assert len(commands(narrow)) < len(commands(wide)) / 1.5


def test_bad_requests():
    with pytest.raises(InputError, match="one of mbpp, dbbench, os_interaction, got 'chess'"):
        mini.lessons("chess", 0, 1)
    with pytest.raises(InputError, match="0 or more, got train=-1"):
        mini.generate(0, -1, 1)


def test_more_problems_than_there_are(monkeypatch):
    problem = next(mini._problems("mbpp", "test", 0))
    monkeypatch.setitem(mini._DRAW, "mbpp", lambda rng, basic: problem)
    assert len(mini.generate(0, 0, 1, ["mbpp"])["mbpp"]["test"]) == 1
    with pytest.raises(InputError, match="at most 1 different test problems of mbpp to be asked for, got 2"):
        mini.generate(0, 0, 2, ["mbpp"])
