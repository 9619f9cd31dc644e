"""Programs are parsed in many threads."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from cycleqd_jax.tasks.dbbench.answers import parse_answer
from cycleqd_jax.tasks.syntax import literal, parse

CODE = "\n".join(f"def f{n}(a, b=(1, [2, {{3: 4}}])): return [x + (y * (z - 1)) for x in a for y in b if x]" for n in range(5))


@pytest.fixture
def frequent_switches():
    """Other threads run whenever garbage is collected, as they may in the middle of building a tree."""

    def switch(*_):
        time.sleep(1e-5)

    threshold = gc.get_threshold()
    gc.callbacks.append(switch)
    gc.set_threshold(20)
    yield
    gc.set_threshold(*threshold)
    gc.callbacks.remove(switch)


def test_threads_parse_at_the_same_time(frequent_switches):
    errors = []

    def work(function, text):
        try:
            for _ in range(30):
                function(text)
        except SystemError as error:  # of Python before 3.13
            errors.append(error)

    calls = [
        (parse, CODE),
        (literal, str([[n, [str(n)]] for n in range(200)])),
        (parse_answer, str([str(n) for n in range(900)])),
    ]
    threads = [threading.Thread(target=work, args=call) for call in [*calls, (parse, CODE)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize("code", ["def f(:", "x = '\0'", "(" * 5000])
def test_what_is_no_program(code):
    with pytest.raises((SyntaxError, ValueError, RecursionError, MemoryError)):
        parse(code)
