"""Any reply gives a program, an action, a message or a score, and never an exception."""

from __future__ import annotations

import ast
import contextlib
import json

import pytest
from hypothesis import strategies as st

from cycleqd_jax.sandbox import Completed, Killed
from cycleqd_jax.tasks.base import clean_text, play_solution
from cycleqd_jax.tasks.coding.blocks import blocks, code_regions, leading_tree
from cycleqd_jax.tasks.coding.extraction import extract_code, may_vary, only_program
from cycleqd_jax.tasks.coding.reach import reached
from cycleqd_jax.tasks.dbbench import replies as protocol
from cycleqd_jax.tasks.dbbench import statements
from cycleqd_jax.tasks.dbbench.answers import parse_answer, same_answer
from cycleqd_jax.tasks.dbbench.databases import Ran, truncated, unqualified
from cycleqd_jax.tasks.exact_match import last_number, marked_number, stated_answer
from cycleqd_jax.tasks.os_interaction.checks import BUILTINS
from cycleqd_jax.tasks.os_interaction.replies import TERSE, TEXT, command_and_end, parse_act
from cycleqd_jax.tasks.syntax import future_first
from cycleqd_jax.types import Score

from ..fuzz import NAMES, fuzzed, json_values, replies
from .db_records import ASK, INSERT
from .helpers import FakeSandbox, make
from .test_bigcodebench import LETTERS
from .test_humaneval import TWICE
from .test_mbpp import ADD, AREA

# ------------------------------------------------------------------------------------------------ parsers


@fuzzed(60, reply=replies())
def test_blocks_of_replies(reply):
    for block in blocks(reply):
        assert block.code.strip()
    for region in code_regions(reply):
        assert leading_tree(region) is not None


@fuzzed(60, reply=replies(), names=st.lists(st.sampled_from(NAMES), max_size=2))
def test_programs_in_replies(reply, names):
    code = extract_code(reply, names)
    assert extract_code(reply, names) == code
    assert isinstance(may_vary(code), bool)


@fuzzed(60, code=replies())
def test_reachable_parts_of_programs(code):
    kept = only_program(code, *NAMES)
    assert isinstance(future_first(code), str)
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    found = reached(tree, NAMES)
    assert found is None or [node for node in tree.body if node in found] == found
    if found and len(found) < len(tree.body):
        ast.parse(kept)  # what is kept of a program is a program


@fuzzed(80, reply=replies())
def test_actions_of_replies(reply):
    act = parse_act(reply)
    assert act is None or (act.kind == "commit" or act.content is not None)
    sql = protocol.operation(reply)
    assert sql is None or ("\n" not in sql and protocol.operates(reply))
    answer = protocol.final_answer(reply)
    assert answer is None or "\n" not in answer


@fuzzed(80, answer=replies(), label=replies())
def test_answers(answer, label):
    assert all(isinstance(value, str) for value in parse_answer(answer))
    for given in (answer, f"[{answer}]", f'["{answer}"]'):
        assert isinstance(same_answer(given, [label, "1"]), bool)
    assert not same_answer(" ", [label])
    for check in BUILTINS.values():
        assert isinstance(check(answer, label), bool)
        assert isinstance(check(answer, answer), bool)


@fuzzed(80, text=replies(), number=st.sampled_from(("#### ", "the answer is ", "$", "-", "(A) ", "1,234.5", "٣", "")))
def test_exact_matches(text, number):
    for reply in (text, number + text, text + number, f"{text}{number}{text}"):
        for found in (marked_number(reply), last_number(reply)):
            assert found is None or "," not in found
        answer = stated_answer(reply)
        assert answer is None or "\n" not in answer


@fuzzed(80, sql=replies())
def test_statements(sql):
    reason = statements.refused(sql)
    assert reason is None or reason.startswith("1227 (42000)")
    for question in (statements.ends_session, statements.uses_locks, statements.is_dynamic):
        assert isinstance(question(sql), bool)
    assert unqualified(sql, "other") == sql
    assert len(truncated(unqualified(sql, "t"))) <= 811


@fuzzed(60, text=replies(), think=st.booleans(), answers=st.booleans())
def test_scripted_solutions_read_any_observation(text, think, answers):
    for solution in (
        protocol.query_and_answer(text, [text]),
        protocol.operate_and_answer(text, [text]),
        command_and_end(text, answers, TEXT if think else TERSE),
    ):
        assert isinstance(next(solution), str)
        with contextlib.suppress(StopIteration):
            for _ in range(3):
                assert isinstance(solution.send(text), str)
            pytest.fail("the solution goes on")


# ------------------------------------------------------------------------------------------------ episodes


class Answering(FakeSandbox):
    """A sandbox in which every judge starts and finds that the program ended its box."""

    def run_python(self, source, *, stdin, limits):
        assert stdin.isascii()
        nonce = stdin.rpartition('"nonce": "')[2][:32]
        return Completed(f"{nonce} ready\n", -9, False, False, 0.0)


class Shell:
    """A shell and a box whose commands print what they are given."""

    def run(self, code, timeout):
        assert "\0" not in code
        code.encode()
        if "Action" in code:
            raise Killed("the box is closed")
        return Completed(code[:2000], 0, False, False, 0.0)

    def exec(self, argv, **options):
        "".join(argv).encode()
        return Completed(argv[-1], int("x" in argv[-1]), False, False, 0.0)

    def changes(self):
        return {"/usr/bin/x": "new"}

    def shell(self):
        return self

    def seal(self):
        pass

    def close(self):
        pass


class Boxes(Answering):
    """A sandbox with boxes."""

    def box(self, limits):
        return Shell()


class Database:
    """A database that repeats statements."""

    def run(self, sql):
        sql.encode()
        if "PREPARE" in sql:
            raise Killed("a statement exceeded its limit of memory")
        return Ran(sql[:811], "SELECT" in sql)

    def md5(self):
        return None

    def close(self):
        pass


OS = {"id": "os/1", "description": "Which?", "init_script": [["bash", "true"]], "check": [None, {"builtin": "integer-match"}]}
OS |= {"example_script": ["bash", "echo 1"]}
MATCH = {"id": "os/2", "description": "Which?", "match": {"regex": "^a+$", "strip": False}}
PLUS = {
    "task_id": "HumanEval/900",
    "prompt": 'def f(n):\n    """One more."""\n',
    "canonical_solution": "    return n + 1\n",
    "entry_point": "f",
    "base_input": [[1]],
    "plus_input": [[2]],
    "atol": 0,
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A task of each kind, without anything that executes replies."""
    folder, sandbox = tmp_path_factory.mktemp("records"), Boxes()

    def task(kind, *records, **options):
        path = folder / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return make(kind, sandbox=sandbox, data=path, **options)

    made = [
        task("mbpp", ADD, AREA),
        task("humaneval", TWICE, TWICE | {"task_id": "HumanEval/901", "note": "another problem"}),
        task("bigcodebench", LETTERS, LETTERS | {"task_id": "BigCodeBench/9001", "note": "another problem"}),
        task("os_interaction", OS, MATCH, rounds=3),
        task("gsm8k", GSM, GSM | {"id": "g/2", "question": "How few?"}),
        task("dbbench", ASK, INSERT, rounds=3),
    ]
    made[-1].database = lambda table: Database()
    return made


GSM = {"id": "g/1", "question": "How many?", "answer": "Two.\n#### 2"}


@pytest.fixture(scope="module")
def tool_tasks(tmp_path_factory):
    """The tasks with tools, without anything that executes their calls."""
    folder, sandbox, made = tmp_path_factory.mktemp("tools"), Boxes(), []
    for kind, records in {"os_interaction": (OS, MATCH), "dbbench": (ASK, INSERT)}.items():
        path = folder / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        made.append(make(kind, sandbox=sandbox, data=path, rounds=3, protocol="tools"))
    made[-1].database = lambda table: Database()
    return made


def calls():
    """Replies that call tools, well formed or not, with any arguments."""
    names = st.sampled_from(("execute_sql", "commit_final_answer", "bash_action", "answer_action", "finish_action", "x", ""))
    keys = st.sampled_from(("query", "answers", "script", "answer", "thought", "x"))
    arguments = st.dictionaries(keys, replies() | json_values(), max_size=3) | json_values()
    forms = st.sampled_from(("{}", "<tool_call>\n{}\n</tool_call>", "[{}]", "<|python_tag|>{}", "```json\n{}\n```", "{} {}"))
    one = st.fixed_dictionaries({"name": names}, optional={"arguments": arguments, "parameters": arguments})
    return st.tuples(forms, one.map(lambda call: json.dumps(call))).map(lambda made: made[0].replace("{}", made[1]))


@fuzzed(30, turns=st.lists(calls() | replies(), min_size=1, max_size=4))
def test_episodes_with_tools(tool_tasks, turns):
    play_all(tool_tasks, turns)


@fuzzed(30, turns=st.lists(replies(), min_size=1, max_size=4))
def test_episodes_of_all_tasks(tasks, turns):
    play_all(tasks, turns)


def play_all(tasks, turns):
    """Plays replies in the episodes of tasks: each gives messages or a score."""
    for task in tasks:
        for split in ("train", "test"):
            for episode in task.episodes(split):
                episode.start()
                try:
                    for reply in turns:
                        result = episode.step(reply)
                        if isinstance(result, Score):
                            result.reason.encode()
                            assert result.value in (0.0, 1.0)
                            break
                        for message in result:
                            message["content"].encode()
                finally:
                    episode.close()


@fuzzed(30, turns=st.lists(replies(), max_size=4))
def test_replays_of_all_tasks(tasks, turns):
    for task in tasks:
        environment = task.environment(task.records["train"][0])
        messages, score = play_solution(environment, _typed(turns))
        environment.close()
        assert score is None or 0.0 <= score.value <= 1.0
        assert messages[0]["role"] in ("system", "user")


def _typed(turns):
    for turn in turns:  # noqa: UP028 (a list receives no observations)
        yield turn


@fuzzed(60, text=st.text(st.characters()) | replies())
def test_clean_texts(text):
    clean = clean_text(text)
    assert clean.encode().decode() == clean
    assert "\0" not in clean
