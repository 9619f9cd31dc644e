"""DBBench and OS interaction with tool calls, as in AgentBench's function-calling version."""

from __future__ import annotations

import json

import pytest

from cycleqd_jax.evaluation import rollout
from cycleqd_jax.tasks.dbbench import tools as db_tools
from cycleqd_jax.tasks.os_interaction import tools as os_tools
from cycleqd_jax.tasks.replay import replay_solutions
from cycleqd_jax.tool_calls import write_call
from cycleqd_jax.types import Score

from .db_records import ASK, INSERT, NAME, NONE, UPDATE
from .helpers import make, solution_scores

NO_RESULT = "Error: Failed to parse tool call. Tool call format is incorrect."
INVALID = "Invalid function call. Please call a tool instead"
INIT = [["bash", "mkdir -p ~/docs\nprintf '%s\\n' one two three > ~/docs/list.txt"]]
MATCH = {
    "id": "match",
    "description": "What is the first line of ~/docs/list.txt?",
    "init_script": INIT,
    "match": {"answer": "one", "strip": True},
    "example_script": ["bash", "head -n 1 ~/docs/list.txt"],
}
CHECK = {
    "id": "check",
    "description": "How many lines are in ~/docs/list.txt?",
    "init_script": INIT,
    "check": [None, {"builtin": "integer-match"}],
    "example_script": ["bash", "wc -l < ~/docs/list.txt"],
}
LINES = MATCH | {
    "id": "lines",
    "match": {"answer": "one\ntwo", "strip": True},
    "example_script": ["bash", "head -n 2 ~/docs/list.txt"],
}
STATE = MATCH | {
    "id": "state",
    "match": None,
    "check": [["bash", "test ! -e ~/docs/list.txt"]],
    "example_script": ["bash", "rm ~/docs/list.txt"],
}


def sql(statement) -> str:
    return write_call("execute_sql", {"query": statement})


def commit(answers) -> str:
    return write_call("commit_final_answer", {"answers": answers})


def bash(script) -> str:
    return write_call("bash_action", {"script": script})


def answer(text) -> str:
    return write_call("answer_action", {"answer": text})


FINISH = write_call("finish_action", {"thought": "Done."})


def play(episode, *replies):
    """What follows each reply: the contents of the messages as (role, content), or the score."""
    found: list = []
    try:
        episode.start()
        for reply in replies:
            result = episode.step(reply)
            found.append(result if isinstance(result, Score) else [(m["role"], m["content"]) for m in result])
            if isinstance(result, Score):
                break
    finally:
        episode.close()
    return found


@pytest.fixture
def db(write, sandbox):
    records = {"train": write(ASK, INSERT, UPDATE), "test": write(NONE, name="t.jsonl")}
    return make("dbbench", sandbox=sandbox, protocol="tools", memo=False, seconds=2.0, **records)


@pytest.fixture
def shell(write, sandbox):
    records = {
        "train": write(MATCH, CHECK, STATE, LINES),
        "test": write(MATCH | {"id": "t", "description": "?"}, name="t.jsonl"),
    }
    return make("os_interaction", sandbox=sandbox, protocol="tools", memo=False, **records)


def on(task, number, *replies):
    return play(task.environment(task.records["train"][number]), *replies)


# ------------------------------------------------------------------------------------------------ DBBench


def test_questions_and_changes(db):
    first, score = on(db, 0, sql(ASK["sql"]["query"]), commit(["17"]))
    assert first == [("tool", "[('17',)]")]
    assert (score.value, score.reason) == (1.0, "passed")
    for right in (["17.0"], [17], "17", '["17"]', [" 17 "]):
        assert on(db, 0, commit(right))[-1].value == 1.0, right
    for wrong in (["18"], [], "", None, 17, {"a": 1}, ["17", "18"], True, 0, False):
        assert on(db, 0, commit(wrong))[-1].value == 0.0, wrong
    inserted, score = on(db, 1, sql(INSERT["label"][0]), commit([]))
    assert (inserted, score.value) == ([("tool", "[]")], 1.0)
    assert on(db, 1, commit(["done"]))[-1].value == 0.0
    assert on(db, 2, sql(UPDATE["label"][0]), commit("anything"))[-1].value == 1.0


def test_an_answer_must_be_committed(db):
    *others, score = on(db, 1, sql(INSERT["label"][0]), *["I am done."] * 20)
    assert (score.value, score.reason) == (0.0, "round limit")
    assert len(others) == 14  # the fifteenth reply ends the episode
    assert others[1:] == [[("user", "Internal error: No tool calls found despite finish reason.")]] * 13
    assert on(db, 0, *[sql("SELECT 1")] * 14, commit(["17"]))[-1].value == 1.0


def test_all_calls_of_a_reply_are_executed(db):
    statements = "\n".join([sql(INSERT["label"][0]), sql(f"SELECT COUNT(*) FROM {NAME}")])
    results, score = on(db, 1, statements, commit([]))
    assert results == [("tool", "[]"), ("tool", "[(4,)]")]
    assert score.value == 1.0
    (score,) = on(db, 1, "\n".join([sql(INSERT["label"][0]), commit([]), sql(f"DELETE FROM {NAME}")]))
    assert score.value == 1.0


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ('{"name": "execute_sql", "arguments": "{\\"query\\": "}', NO_RESULT),
        ('{"name": "commit_final_answer", "arguments": "[\\"17\\""}', NO_RESULT),
        (write_call("drop_table", {"name": "x"}), f"{INVALID}."),
        ('{"name": "execute_sql", "arguments": {}}', "Error executing query: list index out of range"),
        ('{"name": "execute_sql", "arguments": ["x"]}', "Error executing query: 'list' object has no attribute 'values'"),
        (sql(5), "Error executing query: expected the query as a text, got int"),
        ('{"name": "execute_sql", "arguments": {"statement": "SELECT 2"}}', "[(2,)]"),  # as in AgentBench, the first counts
        (sql("SELECT '😀'\n-- a comment"), "[('😀',)]"),
        ('{"name": "execute_sql", "arguments": {"query": "SELECT \'\\ud800\'"}}', "[('?',)]"),
    ],
)
def test_wrong_calls_get_a_message(db, call, result):
    first, score = on(db, 0, call, commit(["17"]))
    assert first == [("tool", result)]
    assert score.value == 1.0


def test_a_commit_without_arguments_fails(db):
    for arguments in ({}, ["17"], 3, None):
        (score,) = on(db, 0, json.dumps({"name": "commit_final_answer", "arguments": arguments}))
        assert (score.value, score.reason) == (0.0, "an answer without arguments")


@pytest.mark.exhaustive
def test_a_timeout_is_a_result(db):
    late, after, score = on(db, 0, sql("SELECT SLEEP(100)"), sql("SELECT 1"), commit(["17"]))
    assert late == [("tool", "Error: SQL execution timed out.")]
    assert after == [("tool", "[(1,)]")]
    assert score.value == 1.0


def test_a_statement_that_is_too_long_ends_the_episode(db):
    assert on(db, 0, sql("x" * 200_000)) == [Score(0.0, "the statement is too long")]


def test_prompts_of_dbbench(write, nowhere):
    record = ASK | {"evidence": "Ages are years."}
    files = {"train": write(record), "test": write(NONE, name="t.jsonl"), "sandbox": nowhere, "protocol": "tools"}
    system, user = make("dbbench", **files).episodes("train")[0].start()
    assert system["role"] == "system"
    assert "use the `commit_final_answer` function." in system["content"]
    assert [tool["function"]["name"] for tool in system["tools"]] == ["execute_sql", "commit_final_answer"]
    assert user == {
        "role": "user",
        "content": "Evidence about the question: Ages are years.\n"
        "Additional table information about the question: The table is the `staff`.\nQuestion: How old is Eve?\n",
    }
    (brief,) = make("dbbench", prompt="brief", **files).episodes("train")[0].start()
    assert brief == {"role": "user", "content": "How old is Eve?\nThe table is the `staff`.", "tools": list(db_tools.TOOLS)}
    own, _ = make("dbbench", system_prompt="SQL!", **files).episodes("train")[0].start()
    assert own == {"role": "system", "content": "SQL!", "tools": list(db_tools.TOOLS)}


# ------------------------------------------------------------------------------------------------ OS interaction


def test_answers_and_states(shell):
    first, score = on(shell, 0, bash("head -n 1 ~/docs/list.txt"), answer(" one "))
    assert first == [("tool", "The output of the OS:\n\none")]
    assert score == Score(1.0, "passed")
    for wrong in ("two", "", 1, None, ["one"], {"a": "one"}):
        assert on(shell, 0, answer(wrong))[-1].value == 0.0, wrong
    for right in ("3", 3, " 3\n"):  # checks get any value as a text
        assert on(shell, 1, answer(right))[-1].value == 1.0, right
    removed, score = on(shell, 2, bash("rm ~/docs/list.txt"), FINISH)
    assert (removed, score.value) == ([("tool", "The output of the OS is empty.")], 1.0)
    assert on(shell, 2, FINISH)[-1].value == 0.0
    assert on(shell, 0, write_call("finish_action", {"thought": "one"}))[-1].value == 1.0  # as in AgentBench, it is the answer
    assert on(shell, 0, write_call("finish_action", {}))[-1].value == 0.0
    assert on(shell, 3, answer("one\ntwo"))[-1].value == 1.0


def test_a_reply_without_a_call_gets_a_message(shell):
    *others, score = on(shell, 0, *["It is one."] * 20)
    assert others == [[("user", "No executable tool calls found. Please call a tool instead")]] * 7
    assert (score.value, score.reason) == (0.0, "round limit")
    assert on(shell, 0, *[bash("ls")] * 7, answer("one"))[-1].value == 1.0


def test_only_the_first_call_counts(shell):
    first, score = on(shell, 2, "\n".join([bash("echo 1"), bash("rm ~/docs/list.txt")]), FINISH)
    assert first == [("tool", "The output of the OS:\n\n1")]
    assert score.value == 0.0


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ('{"name": "bash_action", "arguments": "{\\"script\\": "}', "Expecting value: line 1 column 12 (char 11)"),
        ('{"name": "bash_action", "arguments": ["ls"]}', "'list' object has no attribute 'values'"),
        ('{"name": "answer_action", "arguments": null}', "'NoneType' object has no attribute 'values'"),
        (write_call("python_action", {"code": "1"}), INVALID),
        (bash(["ls"]), "The output of the OS is empty."),
        (bash("printf x\0y"), "The output of the OS:\n\nxy"),
    ],
)
def test_wrong_calls_of_the_shell_get_a_message(shell, call, result):
    first, score = on(shell, 0, call, answer("one"))
    assert first == [("tool", result)]
    assert score.value == 1.0


def test_a_missing_argument_fails(shell):
    for name in ("bash_action", "answer_action"):
        assert on(shell, 0, write_call(name, {})) == [Score(0.0, "a call without arguments")]


def test_prompts_of_os_interaction(write, nowhere):
    files = {"train": write(MATCH), "test": write(CHECK, name="t.jsonl"), "sandbox": nowhere, "protocol": "tools"}
    system, user = make("os_interaction", **files).episodes("train")[0].start()
    assert system["content"].endswith("Always use a tool provided instead of simply responding with content.")
    assert [tool["function"]["name"] for tool in system["tools"]] == ["bash_action", "finish_action", "answer_action"]
    assert user["content"] == f"Now, I will start a new problem in a new OS. My problem is:\n\n{MATCH['description']}"
    (brief,) = make("os_interaction", prompt="brief", **files).episodes("train")[0].start()
    assert brief == {"role": "user", "content": MATCH["description"], "tools": list(os_tools.TOOLS)}


# ------------------------------------------------------------------------------------------------ both


def test_gold_solutions_score_and_stubs_do_not(db, shell):
    assert [replay.score.value for replay in replay_solutions(db)] == [1.0] * 4
    assert [replay.score.value for replay in replay_solutions(shell)] == [1.0] * 5
    for task in (db, shell):
        for record in task.records["train"]:
            assert 1.0 not in solution_scores(task, record, task.stubs(record))


def test_demonstrations_hold_calls(db, shell):
    asked, *_ = db.demonstrations("train")
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "tool", "assistant"]
    assert asked[2]["tool_calls"][0]["function"] == {"name": "execute_sql", "arguments": {"query": ASK["sql"]["query"]}}
    assert asked[3] == {"role": "tool", "tool_call_id": "call00001", "name": "execute_sql", "content": "[('17',)]"}
    assert asked[4]["tool_calls"][0]["function"] == {"name": "commit_final_answer", "arguments": {"answers": ["17"]}}
    assert db.demonstrations("test") == []  # an answer without a query would teach to guess
    matched, *_ = shell.demonstrations("train")
    assert [call["function"]["name"] for m in matched for call in m.get("tool_calls", ())] == ["bash_action", "answer_action"]


def test_demonstrations_survive_their_cache(write, sandbox, tmp_path):
    files = {"train": write(ASK, INSERT), "test": write(NONE, name="t.jsonl"), "sandbox": sandbox, "cache": tmp_path / "cache"}
    first = make("dbbench", protocol="tools", **files).demonstrations("train")
    assert make("dbbench", protocol="tools", **files).demonstrations("train") == first
    assert make("dbbench", **files).demonstrations("train") != first


@pytest.mark.parametrize("kind", ["dbbench", "os_interaction"])
def test_fingerprints_and_memos_distinguish_protocols(write, nowhere, kind):
    records = (ASK, NONE) if kind == "dbbench" else (MATCH, CHECK)
    files = {"train": write(records[0]), "test": write(records[1], name="t.jsonl"), "sandbox": nowhere}
    rounds = {"dbbench": 15, "os_interaction": 8}[kind]
    text, tools = make(kind, rounds=rounds, **files), make(kind, protocol="tools", **files)
    assert text.rounds == tools.rounds
    assert text.fingerprint("train") != tools.fingerprint("train")
    assert text._fingerprint() != tools._fingerprint()  # part of the keys of the memo
    assert text.fingerprint("train") == make(kind, rounds=rounds, protocol="text", **files).fingerprint("train")
    assert "protocol" not in text.settings()


def test_rollouts_hold_structured_messages(write, sandbox, speaker):
    files = {"train": write(ASK, INSERT), "test": write(NONE, name="t.jsonl"), "sandbox": sandbox}
    task = make("dbbench", protocol="tools", memo=True, **files)
    seen = []

    def reply(messages):
        seen.append(messages)
        return f"I look. {sql('SELECT 1')}" if messages[-1]["role"] == "user" else commit(["17"])

    for _ in range(2):  # the second time from the memo
        first, second = rollout(task.episodes("train"), speaker(reply), [99, 99])
        assert (first.score.value, second.score.value) == (1.0, 0.0)
        assert [message["role"] for message in first.messages] == ["system", "user", "assistant", "tool", "assistant"]
        assert first.messages[2]["content"] == "I look."
        assert first.messages[2]["tool_calls"][0]["id"] == first.messages[3]["tool_call_id"]
        assert first.rounds == 2
    assert task.memo.hits > 0
    json.dumps(first.messages, allow_nan=False)
