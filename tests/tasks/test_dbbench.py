from __future__ import annotations

import hashlib
import time

import pytest

from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.tasks import DbBench
from cycleqd_jax.tasks.dbbench.task import final_answer, operation, parse_answer, same_answer
from cycleqd_jax.types import InputError, Score


def table_md5(rows) -> str:
    hashes = sorted(hashlib.md5(",".join(row).encode()).hexdigest()[:5] for row in rows)
    return str([(hashlib.md5(",".join(hashes).encode()).hexdigest(),)])


ROWS = [["Bob", "41", "Rome"], ["Eve", "17", "Oslo"], ["Ann", "41", "Lima"]]
TABLE = {
    "table_name": "the `staff`",
    "table_info": {"columns": [{"name": "name"}, {"name": "age"}, {"name": "home city"}], "rows": ROWS},
}
ASK = {
    "id": "ask",
    "description": "How old is Eve?",
    "add_description": "The table is the `staff`.",
    "label": ["17"],
    "type": ["other"],
    "table": TABLE,
    "sql": {"query": "SELECT age FROM `the ``staff``` WHERE name = 'Eve'"},
}
NONE = ASK | {"id": "none", "label": ["none"], "sql": {"query": "SELEC"}}
INSERT = ASK | {
    "id": "insert",
    "type": ["INSERT"],
    "label": ["INSERT INTO `the ``staff```\nVALUES ('Kim', '30', 'Rome')"],
    "answer_md5": table_md5([*ROWS, ["Kim", "30", "Rome"]]),
}
UPDATE = ASK | {
    "id": "update",
    "type": ["UPDATE"],
    "label": ["UPDATE `the ``staff``` SET age = age + 1 WHERE name = 'bob'"],
    "answer_md5": table_md5([["Bob", "42", "Rome"], *ROWS[1:]]),
}


@pytest.fixture
def task(write, sandbox):
    return DbBench(train=write(ASK, INSERT), test=write(NONE, UPDATE, name="t.jsonl"), sandbox=sandbox, memo=False, seconds=1)


def sql(statement: str) -> str:
    return f"Think\nAction: Operation\n```sql\n{statement}\n```"


def answer(text: str) -> str:
    return f"Action: Answer\nFinal Answer: {text}"


def play(task, replies, split="train", number=0):
    """What each reply led to: texts, and a score."""
    episode = task.episodes(split)[number]
    results = []
    try:
        episode.start()
        for reply in replies:
            result = episode.step(reply)
            if isinstance(result, Score):
                return [*results, result]
            (message,) = result
            assert message["role"] == "user"
            results.append(message["content"])
    finally:
        episode.close()
    return results


# ------------------------------------------------------------------------------------------------ replies


@pytest.mark.parametrize(
    ("reply", "statement"),
    [
        ("Action: Operation\n```sql\nSELECT 1\n```", "SELECT 1"),
        ("I think.\nAction: Operation\n```sql\nSELECT 1,\n  2\n```\n```sql\nSELECT 3\n```", "SELECT 1,   2"),
        ("```sql\nSELECT 1\n```\nAction: Operation\n", "SELECT 1"),
        ("Action: Operation\n```sql\n\n```", ""),
        ("Action: Operation", None),
        ("Action: Operation \n```sql\nSELECT 1\n```", None),
        ("Action: Answer\nFinal Answer: []\nAction: Operation\n```sql\nSELECT 1\n```", None),
        ("Action: Operation\n```sql\nSELECT 1", None),
        ("Action: Operation\n```\nSELECT 1\n```", None),
        ("Action: Operation\n```sql SELECT 1```", None),
        ("SELECT 1", None),
        ("", None),
    ],
)
def test_operations(reply, statement):
    assert operation(reply) == statement


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ('Action: Answer\nFinal Answer: ["1"]', ' ["1"]'),
        ('x\nFinal Answer:["1"]\nFinal Answer: ["2"]', '["1"]'),
        ("Final Answer: [1]", None),
        ("Action: Answer", None),
        ("\nFinal Answer:", ""),
    ],
)
def test_final_answers(reply, text):
    assert final_answer(reply) == text


@pytest.mark.parametrize(
    "piece", ["Action: ", "Action: Operation\n```sql\n", "```sql\n", "\nFinal Answer:", "Action: Operation\n", "["]
)
def test_megabytes_are_quick(piece):
    reply = piece * (2_000_000 // len(piece))
    began = time.monotonic()
    operation(reply)
    same_answer(final_answer("\nFinal Answer:" + reply) or reply, ["1"])
    same_answer("[" + "'" * 19_000 + "]", ["1"])
    same_answer("[" * 9_000 + "]" * 9_000, ["1"])
    assert time.monotonic() - began < 5


def test_a_number_too_long_to_be_written_is_wrong(task):
    assert play(task, [answer(f"[0x{'f' * 4_000}]")])[-1].value == 0.0
    assert parse_answer(f"[0x{'f' * 4_000}]") == [f"0x{'f' * 4_000}"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ("[('a',), ('b',)]", ["a", "b"]),
        ("[1, 2.5]", ["1", "2.5"]),
        ("[a, b c]", ["a", "b c"]),
        ("[\"it's\", 'x']", ["it's", "x"]),
        ("[null]", ["None"]),
        ("[]", []),
        ("12", ["12"]),
        ("['a', 'b'", ["['a', 'b'"]),
        ("[__import__('os').system('touch /tmp/x')]", None),
    ],
)
def test_answers_are_parsed_and_never_evaluated(text, values):
    assert values is None or parse_answer(text) == values


@pytest.mark.parametrize(
    ("given", "labels", "right"),
    [
        ('["17"]', ["17.0"], True),
        ("[17]", ["17"], True),
        ("17", ["17"], True),
        ('["17.005"]', ["17"], True),
        ('["17.02"]', ["17"], False),
        ('["3729.7"]', ["3,729.7"], True),
        ('["45%"]', ["45"], True),
        ('["a", "b"]', ["b", "a"], True),
        ('["a", "a", "b"]', ["b", "a"], True),
        ('["a"]', ["b", "a"], False),
        ("[1, 2]", ["2.0", "1.0"], True),
        ("[1, 1]", ["1", "2"], False),
        ("[1, 2, 2]", ["1", "2"], False),
        ('["none"]', ["none"], True),
        ("[0]", ["none"], True),
        ('[""]', ["none"], True),
        ("[]", ["none"], False),
        ("", ["none"], False),
        ("  ", ["0.0"], False),
        ('["nan"]', ["17"], False),
        ('["1e999"]', ["17"], False),
        ('["rome"]', ["Rome"], False),
        ('["[x"]', ["[x"], True),
        ("[[1, 2]]", ["[1, 2]"], True),
    ],
)
def test_comparison(given, labels, right):
    assert same_answer(given, labels) is right


# ------------------------------------------------------------------------------------------------ episodes


def test_questions(task):
    output, score = play(task, [sql(ASK["sql"]["query"]), answer('["17"]')])
    assert output == "[('17',)]"
    assert score == Score(1.0, "passed")
    assert play(task, [answer("[17.0]")])[-1].value == 1.0
    assert play(task, [answer('["18"]')])[-1].value == 0.0
    assert "neither" in play(task, ["what?"])[-1].reason


def test_changes_are_judged_by_the_table_whatever_the_answer(task):
    for ending in (answer('["done"]'), "gibberish", ""):
        output, score = play(task, [sql(INSERT["label"][0]), ending], number=1)
        assert (output, score.value) == ("[]", 1.0)
    assert play(task, [sql(UPDATE["label"][0]), answer("[]")], "test", 1)[-1].value == 1.0


def test_doing_nothing_or_too_much_fails(task):
    label = INSERT["label"][0]
    for replies in (
        [answer('["done"]')],
        [answer(f'["{task.records["train"][1].md5}"]')],
        [sql(label), sql(label), answer("[]")],
        [sql("DROP TABLE `the ``staff```"), answer("[]")],
        [sql("DELETE FROM `the ``staff```"), answer("[]")],
        [sql("SELECT 1; " + label), answer("[]")],
    ):
        assert play(task, replies, number=1)[-1].value == 0.0
    assert play(task, [answer("")], "test", 0)[-1].value == 0.0


def test_temporary_tables_and_new_columns_do_not_fool_the_judge(task):
    shadow = [
        sql("CREATE TEMP TABLE `the ``staff``` AS SELECT * FROM main.`the ``staff```"),
        sql("INSERT INTO temp.`the ``staff``` VALUES ('Kim', '30', 'Rome')"),
        answer("[]"),
    ]
    assert play(task, shadow, number=1)[-1].value == 0.0
    extra = [sql("ALTER TABLE `the ``staff``` ADD COLUMN x"), sql(INSERT["label"][0].replace(")", ", 'x')")), answer("[]")]
    assert play(task, extra, number=1)[-1].value == 1.0


def test_a_temporary_table_that_counts_spoils_nothing(task):
    counting = sql("CREATE TEMP TABLE x (id INTEGER PRIMARY KEY AUTOINCREMENT, b)")
    observed = play(task, [counting, sql("SELECT COUNT(*) FROM `the ``staff```"), sql("SELECT * FROM temp.x")])
    assert observed[:2] == ["[]", "[(3,)]"]
    assert "no such table" in observed[2]


def test_32_of_equal_name_at_once_do_not_meet(task, play_32_at_once):
    results, _ = play_32_at_once(task, "`the ``staff```", sql, INSERT["label"][0])
    assert results == [(["[]", f"[('n{number}',)]", "[]"], 1.0) for number in range(32)]


def test_each_episode_has_its_own_database(task):
    first, second = task.episodes("train")[1], task.episodes("train")[1]
    for episode in (first, second):
        episode.start()
    first.step(sql("DELETE FROM `the ``staff```"))
    assert second.step(sql("SELECT COUNT(*) FROM `the ``staff```"))[0]["content"] == "[(3,)]"
    for episode in (first, second, first):
        episode.close()


def test_rounds(task):
    results = play(task, [sql("SELECT 1")] * 5 + [answer("[17]")])
    assert len(results) == 6
    assert results[-1].value == 1.0
    results = play(task, [sql("SELECT 1")] * 9)
    assert len(results) == 6
    assert results[-1] == Score(0.0, "round limit")


def test_an_operation_without_sql_is_no_answer(task):
    both = "Action: Operation\nSELECT 1\nFinal Answer: [17]"
    assert play(task, [both])[-1].value == 0.0
    assert play(task, [sql("SELECT 1")] * 5 + [both])[-1].value == 1.0  # as AgentBench: the round after the last is the answer


def test_observations(task):
    wrong, none, long, cells = play(
        task,
        [
            sql("SELEC 1"),
            sql("SELECT name FROM `the ``staff``` WHERE age = '99'"),
            sql(f"SELECT '{'x' * 2000}'"),
            sql("SELECT name, NULL, 1.5 FROM `the ``staff``` WHERE `home city` = 'rome'"),
        ],
    )
    assert "syntax error" in wrong
    assert none == "[]"
    assert long == "[('" + "x" * 797 + "[TRUNCATED]"
    assert cells == "[('Bob', None, 1.5)]"


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH DATABASE '/tmp/other.db' AS other",
        "VACUUM INTO '/tmp/other.db'",
        "SELECT load_extension('/tmp/x.so')",
        "SELECT readfile('/etc/passwd')",
        "SELECT writefile('/tmp/x', 'y')",
        "PRAGMA temp_store_directory = '/tmp'",
        "PRAGMA writable_schema = 1",
        "CREATE VIRTUAL TABLE x USING csv(filename='/etc/passwd')",
    ],
)
def test_nothing_outside_is_reached(task, statement):
    (text,) = play(task, [sql(statement)])
    assert any(word in text for word in ("not authorized", "denied", "no such", "prohibited", "too many attached"))


@pytest.mark.parametrize(
    "statement",
    [
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT MAX(hex(zeroblob(x))) FROM c",
    ],
)
def test_endless_statements_end_the_episode(task, statement):
    began = time.monotonic()
    assert play(task, [sql(statement)])[-1].value == 0.0
    assert time.monotonic() - began < 20


def test_endless_rows_and_huge_cells_are_cut(task):
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
    rows, cell = play(task, [sql(endless), sql("SELECT hex(zeroblob(1000000000))")])
    assert rows.startswith("[(1,), (2,)")
    assert rows.endswith("[TRUNCATED]")
    assert len(rows) == 811
    assert "too big" in cell


def test_odd_replies(task):
    for reply in ("\ud800", "\0", sql("SELECT '\ud800\0'"), "x" * 1_000_000, sql("x" * 1_000_000)):
        assert play(task, [reply])


# ------------------------------------------------------------------------------------------------ prompts, records


def test_prompts(write, nowhere):
    files = {"train": write(ASK), "test": write(NONE, name="t.jsonl"), "sandbox": nowhere, "memo": True}
    question = {"role": "user", "content": "How old is Eve?\nThe table is the `staff`."}
    assert DbBench(**files, prompt="brief").episodes("train")[0].start() == [question]
    protocol, ok, last = DbBench(**files).episodes("train")[0].start()
    assert (ok, last) == ({"role": "assistant", "content": "Ok."}, question)
    system = {"role": "system", "content": "You operate a database."}
    led = DbBench(**files, prompt="brief", system_prompt="You operate a database.")
    assert led.episodes("train")[0].start() == [system, question]
    assert led.fingerprint("train") != DbBench(**files, prompt="brief").fingerprint("train")
    for bad in ("", " ", 3):
        with pytest.raises(InputError, match="option system_prompt to be a text or null"):
            DbBench(**files, system_prompt=bad)
    assert 'Action: Answer\nFinal Answer: ["ANSWER1", "ANSWER2", ...]\n' in protocol["content"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "INSERT"}, "a list in field 'type'"),
        ({"type": []}, "exactly one text"),
        ({"label": ["x"], "answer_md5": None}, "'answer_md5', got nothing"),
        ({"answer_md5": "[]"}, "an MD5"),
        ({"label": []}, "at least one text"),
        ({"label": [1]}, "only texts"),
        ({"table": {"table_name": "t"}}, "table/table_info/columns"),
        ({"table": {"table_name": "t", "table_info": {"columns": ["a"], "rows": []}}}, "objects with a name"),
        ({"table": {"table_name": "t", "table_info": {"columns": [{"name": "a"}], "rows": ["x"]}}}, "rows that are lists"),
        (
            {"table": {"table_name": "t", "table_info": {"columns": [{"name": "a"}, {"name": "A"}], "rows": []}}},
            "different names",
        ),
        ({"description": None}, "'description', got nothing"),
    ],
)
def test_malformed_records_are_named(write, change, words, nowhere):
    with pytest.raises(InputError, match=words) as error:
        DbBench(train=write(ASK, INSERT | change), test=write(NONE, name="t.jsonl"), sandbox=nowhere)
    assert "records.jsonl, line 2" in str(error.value)


def test_demonstrations(task):
    asked, inserted = task.demonstrations("train")
    assert [m["content"] for m in asked[-3:]] == [
        "Action: Operation\n```sql\nSELECT age FROM `the ``staff``` WHERE name = 'Eve'\n```",
        "[('17',)]",
        'Action: Answer\nFinal Answer: ["17"]',
    ]
    assert inserted[-3]["content"] == sql("INSERT INTO `the ``staff``` VALUES ('Kim', '30', 'Rome')")[6:]
    (updated,) = task.demonstrations("test")  # the query of the other is broken: its answer alone would teach to guess
    assert len(updated) == len(inserted)


def test_the_sandbox_fixture_is_the_real_one(sandbox):
    assert isinstance(sandbox, Sandbox)
