"""Records and replies for the tests of DBBench on both backends."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from cycleqd_jax.sandbox import Killed

from .helpers import play_replies

OUT_OF_SYNC = "Commands out of sync; you can't run this command now"
ROWS = [["Bob", "41", "Rome"], ["Eve", "17", "Oslo"], ["Ann", "41", "Lima"]]
COLUMNS = [{"name": "name"}, {"name": "age"}, {"name": "home city"}]
TABLE = {"table_name": "the `staff`", "table_info": {"columns": COLUMNS, "rows": ROWS}}
NAME = "`the ``staff```"


def table_md5(rows) -> str:
    hashes = sorted(hashlib.md5(",".join(row).encode()).hexdigest()[:5] for row in rows)
    return str([(hashlib.md5(",".join(hashes).encode()).hexdigest(),)])


ASK = {
    "id": "ask",
    "description": "How old is Eve?",
    "add_description": "The table is the `staff`.",
    "label": ["17"],
    "type": ["other"],
    "table": TABLE,
    "sql": {"query": f"SELECT age FROM {NAME} WHERE name = 'Eve'"},
}
NONE = ASK | {"id": "none", "label": ["none"], "sql": {"query": "SELEC"}}
INSERT = ASK | {
    "id": "insert",
    "type": ["INSERT"],
    "label": [f"INSERT INTO {NAME}\nVALUES ('Kim', '30', 'Rome')"],
    "answer_md5": table_md5([*ROWS, ["Kim", "30", "Rome"]]),
}
UPDATE = ASK | {
    "id": "update",
    "type": ["UPDATE"],
    "label": [f"UPDATE {NAME} SET age = age + 1 WHERE name = 'bob'"],
    "answer_md5": table_md5([["Bob", "42", "Rome"], *ROWS[1:]]),
}


def sql(statement: str) -> str:
    """The reply that executes a statement."""
    return f"Think\nAction: Operation\n```sql\n{statement}\n```"


def answer(text: str) -> str:
    """The reply that gives the final answer."""
    return f"Action: Answer\nFinal Answer: {text}"


def play_32_at_once(task):
    """Changes the table in 32 episodes of the problem :data:`INSERT` at the same time.

    Returns:
        For each episode the outputs of its statements and its score; and the seconds that each start took.
    """
    together = threading.Barrier(32)
    starts = []

    def one(number):
        episode = task.episodes("train")[1]
        try:
            began = time.monotonic()
            episode.start()
            starts.append(time.monotonic() - began)
            together.wait(60)
            outputs = [episode.step(sql(f"INSERT INTO {NAME} VALUES ('n{number}', '{number}', 'x')"))[0]["content"]]
            outputs.append(episode.step(sql(f"SELECT name FROM {NAME} WHERE `home city` = 'x'"))[0]["content"])
            outputs.append(episode.step(sql(f"DELETE FROM {NAME} WHERE `home city` = 'x'"))[0]["content"])
            together.wait(60)
            episode.step(sql(INSERT["label"][0]))
            return outputs, episode.step("").value
        finally:
            episode.close()

    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(one, range(32))), starts


def check_questions_and_changes(play) -> None:
    """Questions are judged by the answer and changes by the table, on every backend.

    Args:
        play: ``play(replies, record)`` returns the results of replies to the problem ``"ask"``, ``"insert"`` or ``"update"``.
    """
    output, score = play([sql(ASK["sql"]["query"]), answer('["17"]')], "ask")
    assert (output, score.value, score.reason) == ("[('17',)]", 1.0, "passed")
    assert play([answer("[17.0]")], "ask")[-1].value == 1.0
    assert play([answer('["18"]')], "ask")[-1].value == 0.0
    for ending in (answer('["done"]'), "gibberish", ""):
        output, score = play([sql(INSERT["label"][0]), ending], "insert")
        assert (output, score.value) == ("[]", 1.0)
    assert play([sql(UPDATE["label"][0]), answer("[]")], "update")[-1].value == 1.0
    for replies in (
        [answer('["done"]')],
        [sql(INSERT["label"][0])] * 2 + [""],
        [sql(f"DROP TABLE {NAME}"), ""],
        [sql(f"DELETE FROM {NAME}"), ""],
    ):
        assert play(replies, "insert")[-1].value == 0.0
    results = play([sql("SELECT 1")] * 9, "ask")
    assert len(results) == 6
    assert (results[-1].value, results[-1].reason) == (0.0, "round limit")


def execute(task, *statements, number=0):
    """The output of each statement in one episode; at most five."""
    return play_replies(task, [sql(statement) for statement in statements], number=number)


def check_cells(make_task) -> None:
    """Cells of other types than text are what MySQL's driver makes of them.

    Args:
        make_task: makes a task from the train records.
    """
    cells = [[None, "x", "y"], [True, 5, 1.5], ["None", "", False]]
    table = TABLE | {"table_info": {"columns": COLUMNS, "rows": cells}}
    task = make_task(ASK | {"table": table}, INSERT)
    assert execute(
        task,
        f"SELECT * FROM {NAME} WHERE name IS NULL",
        f"SELECT * FROM {NAME} WHERE age = 5",
        f"SELECT COUNT(name) FROM {NAME}",
    ) == ["[(None, 'x', 'y')]", "[('1', '5', '1.5')]", "[(2,)]"]
    assert execute(task, f"SELECT `home city` FROM {NAME} WHERE name = 'None'") == ["[('0',)]"]


def leftovers(admin) -> set[str]:
    """The names of the temporary schemas and users on a server."""
    rows = admin("SELECT schema_name FROM information_schema.schemata UNION SELECT user FROM mysql.user")
    return {name for (name,) in rows if name.startswith("cycleqd")}


def outcome(database, statement: str) -> str | Killed | None:
    """The output of a statement, the exceeded limit, or None after a timeout."""
    try:
        ran = database.run(statement)
    except Killed as killed:
        return killed
    return None if ran.timed_out else ran.output
