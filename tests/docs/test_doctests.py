"""Examples in the docstrings of public names are run as they stand."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import cycleqd_jax

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public_names() -> dict[str, str]:
    """Docstrings with examples, by dotted name: of public modules, functions, classes and their public methods."""
    found: dict[str, str] = {}
    for info in pkgutil.walk_packages(cycleqd_jax.__path__, "cycleqd_jax."):
        if ".inside" in info.name or info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        found[info.name] = module.__doc__ or ""
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name, None)  # None: a submodule that the walk has yet to import
            if getattr(thing, "__module__", "") != info.name:
                continue  # is found where it is defined
            found[f"{info.name}.{name}"] = inspect.getdoc(thing) or ""
            if inspect.isclass(thing):
                for method, value in vars(thing).items():
                    if not method.startswith("_") and callable(getattr(value, "__func__", value)):
                        found[f"{info.name}.{name}.{method}"] = inspect.getdoc(value) or ""
    return {name: text for name, text in found.items() if ">>>" in text}


def run(name: str, text: str) -> doctest.TestResults:
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    return doctest.DocTestRunner(optionflags=FLAGS).run(example)


@pytest.mark.parametrize("name", public_names())
def test_examples(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = run(name, public_names()[name])
    assert result.failed == 0, capsys.readouterr().out


def test_a_wrong_example_fails(capsys):
    assert run("wrong", ">>> 1 + 1\n3\n").failed == 1
    assert run("right", ">>> 1 + 1\n2\n").failed == 0
