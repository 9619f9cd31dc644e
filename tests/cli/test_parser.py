"""What the parser repeats, because it must not import what it describes, is what is described."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest

from cycleqd_jax import plan
from cycleqd_jax.cli.doctor import EXTRAS
from cycleqd_jax.cli.parser import make_parser
from cycleqd_jax.config import ModelConfig, SandboxConfig


def option(command: str, name: str) -> argparse.Action:
    (commands,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    (found,) = (action for action in commands.choices[command]._actions if name in action.option_strings)
    return found


def literals(kind: type, field: str) -> set[str]:
    hint = typing.get_type_hints(kind)[field]
    return {value for part in (hint, *typing.get_args(hint)) for value in typing.get_args(part) if isinstance(value, str)}


def test_choices():
    assert option("plan", "--device").choices == (*plan.DEVICES, "cpu")
    assert set(option("verify-task", "--sandbox").choices) == literals(SandboxConfig, "isolation") != set()
    assert set(option("fetch", "--dtype").choices) == literals(ModelConfig, "dtype") != set()


def test_extras_are_those_of_the_package():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    other_names = {name for name, needs in extras.items() if all(need.startswith("cycleqd_jax[") for need in needs)}
    assert set(EXTRAS) == set(extras) - other_names


@pytest.mark.parametrize("module", ["jax", "yaml", "cycleqd_jax.plan", "cycleqd_jax.config"])
def test_the_parser_imports_nothing_that_is_slow(module):
    code = f"import sys; from cycleqd_jax.cli.parser import make_parser; make_parser(); print({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
