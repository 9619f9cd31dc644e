"""The documentation check passes, and fails where it should; the site builds."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from ..script import load_script
from .pages import ROOT


@pytest.fixture(scope="module")
def check_docs():
    return load_script("check_docs")


def test_the_documentation_is_complete(check_docs):
    assert check_docs.problems() == []


@pytest.fixture
def small_docs(check_docs, tmp_path, monkeypatch):
    """A folder with little documentation, in the place of the repository's."""
    (tmp_path / "docs" / "reference").mkdir(parents=True)
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n[there](page.md#a-heading)\n")
    (tmp_path / "docs" / "page.md").write_text("# Page\n\n## A `heading`\n\n```\n[no](link.md)\n```\n")
    (tmp_path / "mkdocs.yml").write_text("nav:\n  - index.md\n  - page.md\n")
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        (tmp_path / name).write_text("# Title\n")
    monkeypatch.setattr(check_docs, "ROOT", tmp_path)
    return tmp_path


def test_sound_pages_have_no_problems(check_docs, small_docs):
    assert [*check_docs.link_problems(), *check_docs.navigation_problems(), *check_docs.readme_problems()] == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("README.md", "a\n" * 201, "at most 200 lines, got 201"),
        ("README.md", "[x](docs/none.md)\n", "docs/none.md, got none in README.md"),
        ("docs/page.md", "![x](none.png)\n", "none.png, got none in docs/page.md"),
        ("docs/page.md", "[x](index.md#none)\n", "index.md#none, got none in docs/page.md"),
        ("docs/other.md", "# Other\n", "docs/other.md in the navigation"),
    ],
)
def test_what_is_wrong_is_found(check_docs, small_docs, file, text, expected):
    (small_docs / file).write_text(text)
    found = [*check_docs.readme_problems(), *check_docs.link_problems(), *check_docs.navigation_problems()]
    assert any(expected in problem for problem in found), found


def test_names_on_no_page_are_found(check_docs, small_docs):
    missing = list(check_docs.reference_problems())
    assert any("cycleqd_jax.operators.merge" in problem for problem in missing)
    (small_docs / "docs" / "reference" / "operators.md").write_text("# operators\n\n::: cycleqd_jax.operators\n")
    assert not [problem for problem in check_docs.reference_problems() if "cycleqd_jax.operators" in problem]


def test_public_modules_on_no_page_are_found(check_docs, small_docs):
    page = small_docs / "docs" / "reference" / "models.md"
    page.write_text("::: cycleqd_jax.models\n\n::: cycleqd_jax.models.inspection\n")
    missing = "\n".join(check_docs.reference_problems())
    assert "the module cycleqd_jax.models.fetch on a page" in missing
    assert "the module cycleqd_jax.models.files.hub on a page" in missing
    assert "the module cycleqd_jax.models.inspection on a page" not in missing
    assert check_docs.public_modules("cycleqd_jax.operators") == []  # lists its own names


def test_names_without_docstrings_are_found(check_docs, tmp_path, monkeypatch):
    (tmp_path / "undocumented.py").write_text(
        "from typing import NamedTuple\n"
        "__all__ = ['f', 'g', 'T', 'A', 'B']\n"
        "def f():\n    pass\n"
        "def g():\n    '''Does nothing.'''\n"
        "class T(NamedTuple):\n    x: int\n"
        "A = int\nB = 3\n'''Three.'''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("undocumented")
    for name in ("f", "g", "T"):
        getattr(module, name).__module__ = "cycleqd_jax.undocumented"
    found = {name: check_docs.documented("undocumented", name) for name in module.__all__}
    sys.modules.pop("undocumented")
    assert found == {"f": False, "g": True, "T": False, "A": True, "B": True}


@pytest.mark.e2e
def test_the_site_builds_and_has_every_public_name(check_docs, tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(check_docs.site_problems(tmp_path / "site")) == []
