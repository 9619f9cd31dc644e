"""DBBench on SQLite: episodes, prompts, records and demonstrations."""

from __future__ import annotations

import time

import pytest

from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.types import InputError

from .db_records import ASK, INSERT, NAME, NONE, UPDATE, answer, check_cells, check_questions_and_changes, play_32_at_once, sql
from .helpers import make, play_replies


@pytest.fixture
def task(write, sandbox):
    files = {"train": write(ASK, INSERT), "test": write(NONE, UPDATE, name="t.jsonl")}
    return make("dbbench", **files, sandbox=sandbox, memo=False, seconds=1)


def test_cells_of_other_types(write, sandbox):
    def make_task(*records):
        files = {"train": write(*records), "test": write(NONE, UPDATE, name="t.jsonl")}
        return make("dbbench", **files, sandbox=sandbox, memo=False, seconds=1)

    check_cells(make_task)


def test_a_number_with_too_many_digits_is_wrong(task):
    assert play_replies(task, [answer(f"[0x{'f' * 4_000}]")])[-1].value == 0.0


PROBLEMS = {"ask": ("train", 0), "insert": ("train", 1), "update": ("test", 1)}


def test_questions_and_changes(task):
    check_questions_and_changes(lambda replies, problem: play_replies(task, replies, *PROBLEMS[problem]))
    assert "neither" in play_replies(task, ["what?"])[-1].reason


def test_other_ways_to_fail(task):
    label = INSERT["label"][0]
    for replies in (
        [answer(f'["{task.records["train"][1].md5}"]')],
        [sql("SELECT 1; " + label), answer("[]")],
    ):
        assert play_replies(task, replies, number=1)[-1].value == 0.0
    assert play_replies(task, [answer("")], "test", 0)[-1].value == 0.0


def test_temporary_tables_and_new_columns_do_not_change_the_verdict(task):
    shadow = [
        sql(f"CREATE TEMPORARY TABLE copied AS SELECT * FROM {NAME}"),
        sql("INSERT INTO copied VALUES ('Kim', '30', 'Rome')"),
        answer("[]"),
    ]
    assert play_replies(task, shadow, number=1)[-1].value == 0.0
    extra = [sql(f"ALTER TABLE {NAME} ADD COLUMN x TEXT"), sql(INSERT["label"][0].replace(")", ", 'x')")), answer("[]")]
    assert play_replies(task, extra, number=1)[-1].value == 1.0


def test_temporary_tables_are_refused_as_on_a_server(task):
    counting = sql("CREATE TEMPORARY TABLE x (id INTEGER PRIMARY KEY AUTO_INCREMENT, b TEXT)")
    observed = play_replies(task, [counting, sql(f"SELECT COUNT(*) FROM {NAME}"), sql("SELECT * FROM x")])
    assert observed[0].startswith("1044 (42000): Access denied")
    assert observed[1] == "[(3,)]"
    assert observed[2] == "1146 (42S02): Table 'the `staff`.x' doesn't exist"


def test_32_databases_of_equal_name_are_separate(task):
    results, _ = play_32_at_once(task)
    assert results == [(["[]", f"[('n{number}',)]", "[]"], 1.0) for number in range(32)]


def test_each_episode_has_its_own_database(task):
    first, second = task.episodes("train")[1], task.episodes("train")[1]
    for episode in (first, second):
        episode.start()
    first.step(sql(f"DELETE FROM {NAME}"))
    assert second.step(sql(f"SELECT COUNT(*) FROM {NAME}"))[0]["content"] == "[(3,)]"
    for episode in (first, second, first):
        episode.close()


def test_the_last_round_is_the_answer(task):
    results = play_replies(task, [sql("SELECT 1")] * 5 + [answer("[17]")])
    assert len(results) == 6
    assert results[-1].value == 1.0


def test_an_operation_without_sql_is_no_answer(task):
    both = "Action: Operation\nSELECT 1\nFinal Answer: [17]"
    assert play_replies(task, [both])[-1].value == 0.0
    assert play_replies(task, [sql("SELECT 1")] * 5 + [both])[-1].value == 1.0  # the last reply is an answer


def test_observations(task):
    wrong, none, long, cells = play_replies(
        task,
        [
            sql("SELEC 1"),
            sql(f"SELECT name FROM {NAME} WHERE age = '99'"),
            sql(f"SELECT '{'x' * 2000}'"),
            sql(f"SELECT name, NULL, 1.5 FROM {NAME} WHERE `home city` = 'rome'"),
        ],
    )
    assert wrong.startswith("1064 (42000): You have an error in your SQL syntax")
    assert none == "[]"
    assert long == "[('" + "x" * 797 + "[TRUNCATED]"
    assert cells == "[('Bob', None, Decimal('1.5'))]"


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
    (text,) = play_replies(task, [sql(statement)])
    assert any(word in text for word in ("1064 (42000)", "1305 (42000)", "1235 (42000)")), text


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT COUNT(*) FROM " + ", ".join(f"{NAME} a{i}" for i in range(40)),
        "SELECT MAX(REPEAT('x', a1.age * a2.age)) FROM " + ", ".join(f"{NAME} a{i}" for i in range(40)),
        "SELECT SLEEP(100)",
    ],
)
def test_endless_statements_end_the_episode(task, statement):
    began = time.monotonic()
    assert play_replies(task, [sql(statement)])[-1].value == 0.0
    assert time.monotonic() - began < 20


def test_endless_rows_and_huge_cells_are_cut(task):
    endless = "SELECT a9.age + 0 FROM " + ", ".join(f"{NAME} a{i}" for i in range(10))
    rows, cell = play_replies(task, [sql(endless), sql("SELECT REPEAT('x', 1000000000)")])
    assert rows.startswith("[(41.0,), (17.0,), (41.0,), (41.0,)")
    assert rows.endswith("[TRUNCATED]")
    assert len(rows) == 811
    assert "texts of more than 4000000 bytes" in cell


def test_odd_replies(task):
    for reply in ("\ud800", "\0", sql("SELECT '\ud800\0'"), "x" * 1_000_000, sql("x" * 1_000_000)):
        assert play_replies(task, [reply])


# ------------------------------------------------------------------------------------------------ prompts, records


def test_prompts(write, nowhere):
    files = {"train": write(ASK), "test": write(NONE, name="t.jsonl"), "sandbox": nowhere, "memo": True}
    question = {"role": "user", "content": "How old is Eve?\nThe table is the `staff`."}
    assert make("dbbench", **files, prompt="brief").episodes("train")[0].start() == [question]
    protocol, ok, last = make("dbbench", **files).episodes("train")[0].start()
    assert (ok, last) == ({"role": "assistant", "content": "Ok."}, question)
    system = {"role": "system", "content": "You operate a database."}
    led = make("dbbench", **files, prompt="brief", system_prompt="You operate a database.")
    assert led.episodes("train")[0].start() == [system, question]
    assert led.fingerprint("train") != make("dbbench", **files, prompt="brief").fingerprint("train")
    for bad in ("", " ", 3):
        with pytest.raises(InputError, match="option system_prompt to be a text or null"):
            make("dbbench", **files, system_prompt=bad)
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
        (
            {"table": {"table_name": "t", "table_info": {"columns": [{"name": "a"}], "rows": [["x"], [["y"]]]}}},
            r"texts, numbers, true, false or null, got \[\"y\"\]",
        ),
        ({"description": None}, "'description', got nothing"),
    ],
)
def test_malformed_records_are_named(write, change, words, nowhere):
    with pytest.raises(InputError, match=words) as error:
        make("dbbench", train=write(ASK, INSERT | change), test=write(NONE, name="t.jsonl"), sandbox=nowhere)
    assert "records.jsonl, line 2" in str(error.value)


def test_demonstrations(task):
    asked, inserted = task.demonstrations("train")
    assert [m["content"] for m in asked[-3:]] == [
        f"Action: Operation\n```sql\nSELECT age FROM {NAME} WHERE name = 'Eve'\n```",
        "[('17',)]",
        'Action: Answer\nFinal Answer: ["17"]',
    ]
    assert inserted[-3]["content"] == sql(f"INSERT INTO {NAME} VALUES ('Kim', '30', 'Rome')")[6:]
    (updated,) = task.demonstrations("test")  # the query of the other is broken: its answer alone would teach to guess
    assert len(updated) == len(inserted)


def test_the_sandbox_fixture_is_a_real_sandbox(sandbox):
    assert type(sandbox) is Sandbox
