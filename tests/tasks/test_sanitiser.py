"""Programs are found in replies of many forms; EvalPlus's sanitiser finds none that is not found here.

evalplus runs in a Python of its own, which the environment variable ``CYCLEQD_EVALPLUS_PYTHON`` names; it needs the packages
evalplus (without its dependencies), tree-sitter, tree-sitter-python, tqdm and numpy.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from cycleqd_jax.tasks.coding.extraction import extract_code, only_program

from .replies_with_programs import forms, parts

RUN = """
import contextlib, io, json, signal, sys

def stop(*_):
    raise TimeoutError

signal.signal(signal.SIGALRM, stop)
passed = []
for program in json.load(sys.stdin):
    sys.stdin = io.StringIO()
    try:
        signal.alarm(10)
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(program, "program", "exec"), {"__name__": "__main__"})
        passed.append(True)
    except BaseException:
        passed.append(False)
    finally:
        signal.alarm(0)
print(json.dumps(passed))
"""


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str
    reply: str
    name: str
    asserts: str


def cases(folder: Path, count: int) -> list[Case]:
    """Replies around the gold programs of the first problems of MBPP, sanitized, whose functions have no other name."""
    found: list[Case] = []
    lines = (folder / "mbpp" / "mbpp_sanitized.visible.jsonl").read_text().splitlines()
    for row in map(json.loads, lines[:count]):
        code, asserts = row["code"].replace("\r\n", "\n").strip(), row["test_imports"] + row["test_list"]
        functions = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
        name = next(name for name in functions if any(f"{name}(" in line for line in asserts))
        replies = itertools.chain(forms(code, name), parts(code, name))
        found += [Case(kind, reply, name, "\n".join(asserts)) for kind, reply in replies]
    return found


def passed(programs: Iterable[str], given: Iterable[Case]) -> list[bool]:
    """Whether programs pass the tests. They are variants of gold programs, and need no sandbox."""
    texts = [f"{program}\n{case.asserts}" for program, case in zip(programs, given, strict=True)]
    done = subprocess.run([sys.executable, "-c", RUN], input=json.dumps(texts), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def ours(given: Iterable[Case]) -> list[bool]:
    return passed([only_program(extract_code(case.reply, (case.name,)), case.name) for case in given], given)


@pytest.mark.exhaustive
def test_right_programs_are_found(data_dir):
    given = cases(data_dir, 2)
    assert [case.kind for case, right in zip(given, ours(given), strict=True) if not right] == []


@pytest.mark.slow
def test_evalplus_finds_no_program_that_is_not_found_here(data_dir, capsys):
    python = os.environ.get("CYCLEQD_EVALPLUS_PYTHON")
    if not python:
        pytest.skip("CYCLEQD_EVALPLUS_PYTHON does not name a Python that has evalplus")
    given = cases(data_dir, 30)
    script, pairs = Path(__file__).with_name("evalplus_sanitiser.py"), [(case.reply, case.name) for case in given]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([python, script], input=json.dumps(pairs), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, theirs = ours(given), passed(json.loads(done.stdout), given)
    counts = collections.defaultdict(lambda: [0, 0, 0])
    for case, one, other in zip(given, found, theirs, strict=True):
        counts[case.kind] = [n + more for n, more in zip(counts[case.kind], (1, one, other), strict=True)]
    with capsys.disabled():
        print("\nkind, programs, found here, found by EvalPlus")
        for kind, numbers in counts.items():
            print(kind, *numbers, sep=", ")
    assert sum(theirs) > len(theirs) / 2, "the sanitiser found too little: it can't have run as it should"
    assert [case.kind for case, one, other in zip(given, found, theirs, strict=True) if other and not one] == []
