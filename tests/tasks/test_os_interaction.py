from __future__ import annotations

import json
import os
import time

import pytest

from cycleqd_jax.tasks.os_interaction import task as os_task
from cycleqd_jax.tasks.os_interaction.checks import same_size
from cycleqd_jax.tasks.os_interaction.prompts import PREFIX
from cycleqd_jax.tasks.os_interaction.replies import Act, parse_act
from cycleqd_jax.tasks.replay import replay_solutions
from cycleqd_jax.types import InputError, Score

from .helpers import make, play_replies, solution_scores

INIT = [["bash", "mkdir -p ~/docs\nprintf '%s\\n' one two three > ~/docs/list.txt"]]
COUNT = {
    "id": "count",
    "description": "How many lines are in ~/docs/list.txt?",
    "init_script": INIT,
    "check": [None, {"builtin": "integer-match"}],
    "example_script": ["bash", "wc -l < ~/docs/list.txt"],
}
MATCH = {
    "id": "match",
    "description": "What is the first line of ~/docs/list.txt?",
    "init_script": INIT,
    "start": ["bash", "cd ~/docs\nhere=list.txt"],
    "match": {"answer": "one", "strip": True},
    "check": None,
    "example_script": ["bash", "head -n 1 $here"],
}
# argv: the answer, then the outputs of the scripts before.
STATE = {
    "id": "state",
    "description": "Delete ~/docs/list.txt.",
    "init_script": INIT,
    "check": [
        ["bash", 'test ! -e ~/docs/list.txt && test -d ~/docs && echo "$1"'],
        ["python", "from sys import argv\nassert len(argv) == 3 and argv[2] == argv[1] + '\\n', argv"],
    ],
    "example_script": ["bash", "rm ~/docs/list.txt"],
}


@pytest.fixture
def task(write, sandbox):
    return make("os_interaction", train=write(COUNT, STATE), test=write(MATCH, name="t.jsonl"), sandbox=sandbox, memo=False)


def bash(code: str) -> str:
    return f"Think: hm.\n\nAct: bash\n\n```bash\n{code}\n```"


FINISH = "Think: done.\n\nAct: finish"


# ------------------------------------------------------------------------------------------------ replies


@pytest.mark.parametrize(
    ("reply", "act"),
    [
        (bash("ls\nwc -l"), Act("bash", "ls\nwc -l")),
        ("Act: bash\n```bash\na\n```\nand\n```bash\nb\n```", Act("bash", "a\n\nb")),
        ("Act: bash\n\n```bash\nls", Act("bash", "")),
        ("Act: bash\n\n```\nls\n```", Act("bash", "")),
        ("Act: bash", Act("bash", "")),
        ("Act: Bash(ls)", Act("bash", "")),
        ("Act:\n\nfinish", Act("commit", None)),
        (FINISH, Act("commit", None)),
        ("Act: answer(220)", Act("commit", "220")),
        ("Act: answer (f(x) and (y)) indeed", Act("commit", "f(x) and (y)")),
        ("Act: answer()", Act("commit", "")),
        ("Act: answer(1)\nAct: answer(2)", Act("commit", "2")),
        ("Act: answer(1)\nAct: answer 2", Act("commit", "1")),
        ("Act: answer)1(", Act("commit", "")),
        ("Act: answer(two\nlines)", None),
        ("Act: dance", None),
        ("act: finish", None),
        ("Act:", None),
        ("", None),
    ],
)
def test_acts(reply, act):
    assert parse_act(reply) == act


@pytest.mark.parametrize(
    "piece",
    ["Act: ", "Act:\n", "```bash\n", "\n```", "Act: bash\n```bash\n", "Act: answer(", " ", "Act: bash\n```bash\na\n```\n"],
)
def test_megabytes_are_quick(piece):
    began = time.monotonic()
    parse_act(piece * (2_000_000 // len(piece)))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("4K", "4096", True),
        ("1M\n", " 1024K", True),
        ("512B", "512", True),
        ("4.0K", "4.0K", False),
        ("10KB", "10KB", False),
        ("", "", False),
        ("x", "x", False),
        ("9" * 5000, "9" * 5000, False),
    ],
)
def test_sizes(first, second, same):
    assert same_size(first, second) is same


# ------------------------------------------------------------------------------------------------ episodes


def test_answers_are_checked(task):
    output, score = play_replies(task, [bash("wc -l < ~/docs/list.txt"), "Act: answer(3)"])
    assert output == "The output of the OS:\n\n3"
    assert score == Score(1.0, "passed")
    assert play_replies(task, ["Act: answer( 3 )"])[-1].value == 1.0
    for wrong in ("answer(4)", "answer(three)", "answer()", "answer(None)", "finish", "answer(" + "9" * 6000 + ")"):
        assert play_replies(task, [f"Act: {wrong}"])[-1].value == 0.0


def test_answers_are_matched(task):
    assert play_replies(task, [bash("head -n 1 $here"), "Act: answer( one )"], "test")[-1].value == 1.0
    for wrong in ("answer(One)", "answer(one two)", "finish", "answer()"):
        assert play_replies(task, [f"Act: {wrong}"], "test")[-1].value == 0.0


@pytest.mark.parametrize("pattern", ["^(a|a)*$", "(a+)+$"])
def test_a_search_that_takes_exponential_time_ends(write, sandbox, monkeypatch, pattern):
    monkeypatch.setattr(os_task, "_MATCH_SECONDS", 0.2)
    files = {"train": write(MATCH | {"match": {"regex": pattern}}), "test": write(COUNT, name="t.jsonl")}
    task = make("os_interaction", **files, sandbox=sandbox, memo=False)
    assert play_replies(task, ["Act: answer(aaa)"])[-1].value == 1.0
    score = play_replies(task, ["Act: answer(" + "a" * 4000 + "!)"])[-1]
    assert (score.value, score.reason) == (0.0, "the search for the regex took too long")


def test_states_are_checked(task):
    output, score = play_replies(task, [bash("rm ~/docs/list.txt"), FINISH], number=1)
    assert output == "The output of the OS is empty."
    assert score.value == 1.0
    for replies in (
        [FINISH],
        ["Act: answer(None)"],
        [bash("rm -r ~/docs"), FINISH],
        [bash("exit 0"), FINISH],
        [bash("rm ~/docs/list.txt"), "I am done."],  # out of format: as AgentBench, not even checked
    ):
        assert play_replies(task, replies, number=1)[-1].value == 0.0


# A replaced program could pass every check, so checks need the original programs of the sandbox.
UNIVERSAL = {
    "mv over bash": "cp /bin/true /tmp/b; mv -f /tmp/b /usr/bin/bash",
    "link over bash": "ln -sf true /usr/bin/bash",
    "many programs": "cd /usr/bin; for f in bash cat cmp grep python3 test; do cp true /tmp/b; mv -f /tmp/b $f; done",
    "first in the path": "cp /bin/true /usr/local/sbin/bash",
}


@pytest.mark.parametrize("name", UNIVERSAL)
@pytest.mark.parametrize("language", ["bash", "python"])
def test_replaced_programs_pass_no_check(write, sandbox, name, language):
    if sandbox.isolation.name == "none":
        pytest.skip("without isolation the programs are the host's")
    checks = {"bash": ["bash", "test -e /tmp/wanted"], "python": ["python", "open('/tmp/wanted')"]}
    record = STATE | {"check": [checks[language]]}
    task = make("os_interaction", train=write(record), test=write(MATCH, name="t.jsonl"), sandbox=sandbox, memo=False)
    assert play_replies(task, [bash("touch /tmp/wanted"), FINISH])[-1].value == 1.0
    attack = UNIVERSAL[name] if language == "bash" else UNIVERSAL[name].replace("/bash", "/python3")
    score = play_replies(task, [bash(attack), FINISH])[-1]
    assert score.value == 0.0
    assert score.reason.startswith("killed: ")


DEMANDED = {
    "undo init": (
        ["chmod 4755 /usr/bin/env", "cp /usr/bin/tee /usr/local/sbin/tee"],
        "rm /usr/local/sbin/tee",
        "test ! -e /usr/local/sbin/tee",
    ),
    "permissions": ([], "chmod 4755 /usr/bin/env; chmod 2755 /usr/bin/tee", "test -u /usr/bin/env && test -g /usr/bin/tee"),
    "disable": ([], "chmod 600 /usr/bin/env", "test ! -x /usr/bin/env"),
    "shadow": (
        [],
        "printf '#!/bin/sh\\necho 7\\n' > /usr/local/bin/nl; chmod 755 /usr/local/bin/nl",
        "test $(/usr/local/bin/nl) = 7",
    ),
    "settings": ([], "echo /opt/lib > /etc/ld.so.conf.d/x.conf", "grep -q /opt/lib /etc/ld.so.conf.d/x.conf"),
}


@pytest.mark.exhaustive
@pytest.mark.skipif(os.getuid() != 0, reason="without root on the host, programs cannot be changed in place")
@pytest.mark.parametrize("name", DEMANDED)
def test_changes_that_the_problem_makes_or_demands_are_no_tampering(write, sandbox, name):
    init, gold, check = DEMANDED[name]
    record = STATE | {
        "init_script": [["bash", code] for code in init],
        "check": [["bash", check]],
        "example_script": ["bash", gold],
    }
    task = make("os_interaction", train=write(record), test=write(MATCH, name="t.jsonl"), sandbox=sandbox, memo=False)
    assert play_replies(task, [bash(gold), FINISH])[-1] == Score(1.0, "passed")
    assert play_replies(task, [FINISH])[-1].value == 0.0
    attacked = play_replies(task, [bash("cp /bin/true /tmp/b; mv -f /tmp/b /usr/bin/bash"), FINISH])[-1]
    assert attacked.reason == "killed: /usr/bin/bash was changed"
    if name == "permissions":  # the gold command changes permissions, not contents
        other = play_replies(task, [bash(f"{gold}; cp /bin/true /tmp/b; mv -f /tmp/b /usr/bin/env"), FINISH])[-1]
        assert other.reason == "killed: /usr/bin/env was changed"


def test_the_shell_persists_and_boxes_do_not(task):
    first, second = play_replies(task, [bash("cd /tmp; x=5; touch here"), bash("pwd; echo $x; ls")])
    assert first == "The output of the OS is empty."
    assert second == "The output of the OS:\n\n/tmp\n5\nhere"
    assert "here" not in play_replies(task, [bash("ls -a /tmp")])[0]


def test_rounds(task):
    assert play_replies(task, [bash("true")] * 4 + ["Act: answer(3)"])[-1].value == 1.0
    results = play_replies(task, [bash("true")] * 9)
    assert len(results) == 5
    assert results[-1] == Score(0.0, "round limit")


def test_long_output_is_cut_as_published(task):
    fits, cut = play_replies(task, [bash("printf 'x%.0s' {1..800}"), bash("printf 'x%.0s' {1..801}")])
    assert fits == "The output of the OS:\n\n" + "x" * 800
    assert cut == "The output of the OS:\n\n" + "x" * 780 + "\n[truncated because the output is too long]"


@pytest.mark.parametrize(
    "code",
    [
        "sleep 100",
        "while true; do :; done",
        "cat",
        "yes",
        ":(){ :|:& };: ; sleep 100",
        "kill -9 -1; kill -9 $$ $PPID 1",
        "rm -rf --no-preserve-root / 2>/dev/null",
    ],
)
def test_hostile_commands_are_contained(write, sandbox, code):
    task = make("os_interaction", train=write(COUNT), test=write(MATCH, name="t.jsonl"), sandbox=sandbox, seconds=1.0)
    began = time.monotonic()
    results = play_replies(task, [bash(code), "Act: answer(7)"])
    assert results[-1].value == 0.0
    assert time.monotonic() - began < 60
    assert play_replies(task, ["Act: answer(3)"])[-1].value == 1.0


def test_odd_replies(task):
    for reply in (
        "\ud800",
        "\0",
        bash("echo '\ud800\0'"),
        "x" * 1_000_000,
        bash("x" * 1_000_000),
        f"Act: answer({'x' * 10**6})",
    ):
        assert play_replies(task, [reply])
    assert play_replies(task, ["Act: answer(\0003\0)"])[-1].value == 1.0


def test_a_check_that_hangs_is_a_wrong_answer(write, sandbox, monkeypatch):
    monkeypatch.setattr(os_task, "_CHECK_SECONDS", 1.0)
    hangs = COUNT | {"check": [["bash", "sleep 100"]]}
    task = make("os_interaction", train=write(hangs), test=write(MATCH, name="t.jsonl"), sandbox=sandbox, seconds=1.0)
    assert play_replies(task, [FINISH])[-1] == Score(0.0, "check 1 timed out")
    assert len(task.memo) == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("field", ["init_script", "start"])
def test_a_record_that_is_slow_to_prepare_is_at_fault_itself(write, sandbox, monkeypatch, field):
    monkeypatch.setattr(os_task, "_SETUP_SECONDS", 1.0)
    slow = ["bash", "sleep 30"]
    record = COUNT | {"id": "slow", field: [slow] if field == "init_script" else slow}
    task = make("os_interaction", train=write(record, STATE), test=write(MATCH, name="t.jsonl"), sandbox=sandbox)
    (score,) = play_replies(task, ["Act: answer(3)"])
    assert score.value == 0.0
    assert score.reason.startswith("the record slow can't be prepared: 'sleep 30' took longer than 1 s")
    assert len(task.memo) == 0
    slow_one, good, *_ = replay_solutions(task)
    assert (slow_one.id, slow_one.score) == ("slow", score)
    assert good.score.value == 1.0


def test_an_init_script_that_breaks_its_box_is_a_fault_of_the_record(write, sandbox):
    record = COUNT | {"id": "broken", "init_script": [["bash", "mv /usr/bin/bash /usr/bin/bash2; rm -f /bin/bash"]] * 2}
    record["start"] = ["bash", "kill -9 $$"]
    task = make("os_interaction", train=write(record), test=write(MATCH, name="t.jsonl"), sandbox=sandbox)
    assert play_replies(task, [bash("true"), FINISH])[-1].value == 0.0


@pytest.mark.exhaustive
def test_a_command_that_takes_too_long_shows_what_it_has_printed(write, sandbox):
    task = make("os_interaction", train=write(COUNT), test=write(MATCH, name="t.jsonl"), sandbox=sandbox, seconds=1.0)
    replies = [bash("echo begun; sleep 1.5; echo late"), bash("echo next"), bash("read word"), "Act: answer(3)"]
    begun, late, empty, score = play_replies(task, replies)
    assert begun == "The output of the OS:\n\nbegun"
    assert late == "The output of the OS:\n\nlate\nnext"
    assert empty == "The output of the OS is empty."
    assert score.value == 1.0
    assert len(task.memo) == 0


# ------------------------------------------------------------------------------------------------ prompts, records


def test_prompts(write, nowhere):
    files = {"train": write(COUNT), "test": write(MATCH, name="t.jsonl"), "sandbox": nowhere}
    brief = make("os_interaction", **files, prompt="brief").episodes("train")[0].start()
    assert brief == [{"role": "user", "content": COUNT["description"]}]
    for prompt in ("brief", "agentbench"):
        plain = make("os_interaction", **files, prompt=prompt).episodes("train")[0].start()
        led = make("os_interaction", **files, prompt=prompt, system_prompt="You operate Linux.").episodes("train")[0].start()
        assert led == [{"role": "system", "content": "You operate Linux."}, *plain]
    *prefix, problem = make("os_interaction", **files).episodes("train")[0].start()
    assert problem["content"].endswith("My problem is:\n\n" + COUNT["description"])
    assert prefix == list(PREFIX)


def test_the_prompt_equals_the_published_one(data_dir):
    assert list(PREFIX) == json.loads((data_dir / "os_interaction/prompt_prefix.json").read_text())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"description": None}, "'description', got nothing"),
        ({"check": None}, "either match or a list of checks"),
        ({"check": []}, "either match or a list of checks"),
        ({"match": {"answer": "x"}}, "either match or a list of checks"),
        ({"check": None, "match": {}}, "an answer or a regex"),
        ({"check": None, "match": {"regex": "("}}, "a regular expression"),
        ({"check": None, "match": {"answer": 5, "regex": "^5$"}}, "an answer or a regex"),
        ({"check": None, "match": {"answer": "5", "regex": ["5"]}}, "an answer or a regex"),
        ({"check": None, "match": {"answer": "5", "strip": "no"}}, "true or false in field 'match/strip', got \"no\""),
        ({"check": [{"builtin": "other"}]}, "one of integer-match"),
        ({"check": [{"builtin": "integer-match"}]}, "a script before a builtin"),
        ({"check": [["ruby", "1"]]}, "bash or python"),
        ({"check": ["true"]}, "\\[language, code\\] in field 'check'"),
        ({"check": [None], "example_script": None}, "an example_script"),
        ({"init_script": [["bash"]]}, "\\[language, code\\] in field 'init_script'"),
        ({"init_script": "ls"}, "a list in field 'init_script'"),
        ({"start": "ls"}, "a list in field 'start'"),
    ],
)
def test_malformed_records_are_named(write, change, words, nowhere):
    with pytest.raises(InputError, match=words) as error:
        make("os_interaction", train=write(STATE, COUNT | change), test=write(MATCH, name="t.jsonl"), sandbox=nowhere)
    assert "records.jsonl, line 2" in str(error.value)


def test_demonstrations(task):
    counted, deleted = task.demonstrations("train")
    assert [m["content"] for m in counted[-2:]] == [
        "The output of the OS:\n\n3",
        "Think: The output is the answer.\n\nAct: answer(3)",
    ]
    assert deleted[-1]["content"].endswith("Act: finish")
    (matched,) = task.demonstrations("test")
    assert matched[-1]["content"].endswith("Act: answer(one)")


@pytest.mark.exhaustive
def test_gold_solutions(write, sandbox):
    """Published examples need their own process, no input, an empty output as the answer, or no command."""
    counts = COUNT | {"id": "counts", "example_script": ["bash", "ps -A | wc -l"]}
    reads = COUNT | {"id": "reads", "example_script": ["bash", "cat | wc -l"]}
    empty = COUNT | {"id": "empty", "check": [None, {"builtin": "string-match"}], "example_script": ["bash", "true"]}
    given = MATCH | {"id": "given", "example_script": None}
    task = make(
        "os_interaction",
        train=write(counts, reads, empty, given),
        test=write(MATCH, name="t.jsonl"),
        sandbox=sandbox,
        seconds=1,
    )
    for record in task.records["train"]:
        assert 1.0 in solution_scores(task, record), record
        assert set(solution_scores(task, record, task.stubs(record))) == {0.0}
    assert len(task.demonstrations("train")) == 3


def test_the_shell_is_older_than_the_scripts_that_prepare(write, sandbox):
    init = [["bash", "echo 'export PATH=$PATH:/made' >> ~/.bashrc; echo 'export PATH=$PATH:/made' >> ~/.profile"]]
    task = make(
        "os_interaction", train=write(COUNT | {"init_script": init}), test=write(MATCH, name="t.jsonl"), sandbox=sandbox
    )
    assert "/made" not in play_replies(task, [bash("echo $PATH")])[0]
    assert "/made" in play_replies(task, [bash("source ~/.bashrc; echo $PATH")])[0]
