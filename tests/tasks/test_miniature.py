"""Miniature problems: disjoint, compositional, solved by their gold programs and by no constant reply."""

import collections
import itertools
import json
import random
import re

import pytest

from cycleqd_jax.evaluation import rollout
from cycleqd_jax.tasks import miniature as mini
from cycleqd_jax.tasks.miniature.corpus import DRAW, distinct, problems_of
from cycleqd_jax.tasks.miniature.python import NUMBERS, STRINGS, compiled
from cycleqd_jax.tasks.miniature.sql import table_md5
from cycleqd_jax.types import InputError

from .helpers import make

PROBLEMS = {"train": 40, "test": 60}
# Replays in the sandbox: a few problems by default, as many as in the quick start among the slow tests.
FEW = pytest.param({"train": 10, "test": 15}, id="few")
MANY = pytest.param({"train": 32, "test": 128}, id="many", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def records():
    return mini.generate(seed=0, train=PROBLEMS["train"], test=PROBLEMS["test"])


@pytest.fixture
def make_mini(tmp_path, sandbox):
    """Makes a task with the given numbers of problems."""

    def make_task(name, counts):
        files = mini.write(tmp_path, 0, counts["train"], counts["test"], [name])[name]
        return make(name, sandbox=sandbox, max_new_tokens=64, **mini.OPTIONS[name], **files)

    return make_task


def _program(task, record):
    if task == "mbpp":
        return record["code"].split("return ")[1]
    if task == "dbbench":
        return record["label"][0] if "answer_md5" in record else record["sql"]["query"]
    return record["canonical_solution"].strip() if task == "humaneval" else record["example_script"][1]


def _reply_program(task, conversation):
    """The program in a solved conversation."""
    mark = {"mbpp": "    return ", "dbbench": "```sql\n", "os_interaction": "```bash\n", "humaneval": '"""\n    '}[task]
    return conversation[1]["content"].split(mark)[1].removesuffix("\n```")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "task",
    [
        pytest.param("mbpp", marks=pytest.mark.exhaustive),
        pytest.param("dbbench", marks=pytest.mark.exhaustive),
        "os_interaction",
        "humaneval",
    ],
)
def test_splits_and_demonstrations_never_share_a_program(records, task):
    train, test = ([_program(task, r) for r in records[task][split]] for split in ("train", "test"))
    other = [_program(task, r) for r in mini.generate(7, 40, 0, [task])[task]["train"]]
    taught = {_reply_program(task, c) for c in mini.demonstrations(task, 0, 2000)}
    taught |= {_reply_program(task, c) for c in mini.pretraining(1, 500, 1.0, [task])}
    assert len(set(train)) == PROBLEMS["train"]
    assert len(set(test)) == PROBLEMS["test"]
    assert not set(test) & {*train, *other, *taught}
    assert not set(train) & taught
    assert len(taught) > 400


@pytest.mark.exhaustive
@pytest.mark.parametrize("task", [pytest.param("mbpp", marks=pytest.mark.exhaustive), "dbbench", "os_interaction", "humaneval"])
def test_demonstrations_contain_all_parts_of_test_problems(records, task):
    """Every word of a test problem, and every piece of its program, occurs in the demonstrations."""
    examples = mini.demonstrations(task, 0, 4000)
    known = {word for c in examples for message in c for word in message["content"].replace("'", " ").replace('"', " ").split()}
    for record in records[task]["test"]:
        text = record.get("description", record.get("text", record.get("prompt", "")))
        wanted = {*text.replace('"', " ").split(), *_program(task, record).replace("'", " ").split()}
        unknown = {
            word for word in wanted if word not in known and not any(character in "/,.'0123456789" for character in word)
        }
        assert not unknown


@pytest.mark.parametrize("counts", [FEW, MANY])
@pytest.mark.parametrize("task", mini.TASKS)
def test_gold_solutions_score_one_in_the_format_of_the_demonstrations(make_mini, task, counts):
    """The demonstrations of a task are executed and score 1; the generated ones have the same format."""
    rendered = {split: distinct(task, split, 0, count) for split, count in counts.items()}
    for split, count in counts.items():
        demonstrations = make_mini(task, counts).demonstrations(split)
        assert len(demonstrations) == count
        assert demonstrations == [problem.conversation for problem in rendered[split]]


CONSTANTS = (
    "",
    "```python\ndef solve(x):\n    return 1\n```",
    "```python\ndef solve(x):\n    return x\n```",
    "```python\ndef solve(a, b):\n    return a\n```",
    "    return max(a, b)",
    'Action: Answer\nFinal Answer: ["done"]',
    "Action: Operation\n```sql\nSELECT 1\n```",
    "Act: finish",
    "Act: bash\n\n```bash\nls ~\n```",
)


@pytest.mark.exhaustive
@pytest.mark.parametrize("counts", [FEW, MANY])
@pytest.mark.parametrize("task", mini.TASKS)
def test_constants_score_nothing(make_mini, speaker, task, counts):
    for reply in CONSTANTS:
        episodes = make_mini(task, counts).episodes("test")
        outcomes = rollout(episodes, speaker(lambda _, reply=reply: reply), [64] * len(episodes))
        assert [outcome.score.value for outcome in outcomes] == [0.0] * counts["test"], reply


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(3))
def test_no_single_answer_is_correct_for_many(seed):
    records = mini.generate(seed, 0, 128, ["dbbench", "os_interaction"])
    answers = {
        "dbbench": [str(r["label"]) for r in records["dbbench"]["test"] if "answer_md5" not in r],
        "os_interaction": [r["match"]["answer"] for r in records["os_interaction"]["test"] if r["match"]],
    }
    for task, given in answers.items():
        ((best, times),) = collections.Counter(given).most_common(1)
        assert times <= 0.1 * 128, (task, best)


# The pieces of a program: reduction, map, filter, the rest of the reduction.
_PHRASES = re.compile(r"(.*?\[)(.*?) for i in x(| if .*?)(\](?:\)|\[0\]|\[-1\]|\[::-1\])?)$")


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(2))
def test_no_program_of_fewer_phrases_passes(seed):
    for record in mini.generate(seed, 32, 128, ["mbpp"])["mbpp"]["test"]:
        start, mapped, kept, end = _PHRASES.match(_program("mbpp", record)).groups()
        name = record["code"].split()[1].split("(")[0]
        for s, m, k, e in itertools.product((start, "["), (mapped, "i"), (kept, ""), (end, "]")):
            body = f"{s}{m} for i in x{k}{e}"
            if (s == start) == (e == end) and body != _program("mbpp", record):
                assert not _passes(record, name, body), (record, body)


def _passes(record, name, body):
    namespace = {}
    exec(f"def {name}(x): return {body}", namespace)
    try:
        for line in record["test_list"]:
            exec(line, namespace)
    except (AssertionError, TypeError, ValueError, IndexError):
        return False
    return True


@pytest.mark.exhaustive
def test_equal_functions_are_in_the_same_split():
    """Programs with the same results for lists of all sizes are never in different splits."""
    rng = random.Random(1)
    lists = {
        kind: [[rng.choice(items) for _ in range(rng.randint(1, 6))] for _ in range(300)]
        for kind, items in (("numbers", NUMBERS.items), ("words", STRINGS.items))
    }
    codes: dict[str, set[str]] = {"demonstrations": {_reply_program("mbpp", c) for c in mini.demonstrations("mbpp", 0, 1500)}}
    for pool, seed in itertools.product(("train", "test"), (0, 1)):
        programs = {_program("mbpp", record) for record in mini.generate(seed, 100, 100, ["mbpp"])["mbpp"][pool]}
        codes.setdefault(pool, set()).update(programs)
    found = {}
    for pool, programs in codes.items():
        for program in programs:
            kind = "words" if re.search(r"'|\bi\[|len\(i|upper", program) else "numbers"
            does = str([compiled(program)(values) for values in lists[kind]])
            assert found.setdefault(program, pool) == found.setdefault(does, pool) == pool, program


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


def test_the_table_fingerprint_equals_that_of_the_benchmark(data_dir):
    path = data_dir / "dbbench" / "dbbench_cycleqd.visible.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    record = next(r for r in rows if r["id"] == "db/100")
    after = [[str(cell) for cell in row] for row in record["table"]["table_info"]["rows"]]
    after.append(["2019", "Aoharu Ride", "Kou Mabuchi"])
    assert str([(table_md5(after),)]) == record["answer_md5"]


def test_seeds(records):
    assert mini.generate(0, 5, 5) == {t: {s: r[:5] for s, r in splits.items()} for t, splits in records.items()}
    assert mini.generate(1, 5, 5) != mini.generate(0, 5, 5)
    assert mini.demonstrations("mbpp", 3, 20) == mini.demonstrations("mbpp", 3, 30)[:20]
    assert mini.demonstrations("mbpp", 3, 20) != mini.demonstrations("mbpp", 4, 20)
    assert mini.pretraining(0, 9, 0.5) == mini.pretraining(0, 9, 0.5)


@pytest.mark.exhaustive
def test_a_narrow_corpus_has_all_formats_but_few_phrases():
    narrow, wide = mini.pretraining(0, 600, 0.0), mini.pretraining(0, 600, 1.0)
    for number, fence in enumerate(("```python", "```sql", "```bash", "(a, b):")):
        assert all(fence in conversation[1]["content"] for conversation in narrow[number::4])

    def commands(corpus):
        return {_reply_program("os_interaction", conversation).split()[0] for conversation in corpus[2::4]}

    assert len(commands(narrow)) < len(commands(wide)) / 1.5


def test_bad_requests():
    with pytest.raises(InputError, match="one of mbpp, dbbench, os_interaction, humaneval, got 'chess'"):
        mini.demonstrations("chess", 0, 1)
    with pytest.raises(InputError, match="0 or more, got train=-1"):
        mini.generate(0, -1, 1)


def test_more_problems_than_there_are(monkeypatch):
    problem = next(problems_of("mbpp", "test", 0))
    monkeypatch.setitem(DRAW, "mbpp", lambda rng, basic: problem)
    assert len(mini.generate(0, 0, 1, ["mbpp"])["mbpp"]["test"]) == 1
    with pytest.raises(InputError, match="at most 1 different test problems of mbpp, got 2"):
        mini.generate(0, 0, 2, ["mbpp"])


@pytest.mark.parametrize("task", mini.TASKS)
def test_validation_problems_change_no_others_and_repeat_no_program(task):
    before, after = mini.generate(3, 6, 6, [task])[task], mini.generate(3, 6, 6, [task], validation=6)[task]
    assert before == {split: after[split] for split in ("train", "test")}
    assert [*after] == ["train", "validation", "test"]
    programs = {split: {_program(task, record) for record in records} for split, records in after.items()}
    assert [len(found) for found in programs.values()] == [6, 6, 6]
    assert len(set.union(*programs.values())) == 18
    assert _program(task, after["validation"][0]) == _program(task, mini.generate(3, 7, 0, [task])[task]["train"][6])
    with pytest.raises(InputError, match=r"0 or more, got train=1, validation=-1, test=1; correct them"):
        mini.generate(0, 1, 1, [task], validation=-1)
