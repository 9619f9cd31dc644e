"""Every tutorial is followed from its beginning to its end, with tiny sizes."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from cycleqd_jax.tasks import miniature

from .pages import ROOT, Page, blocks

TUTORIALS = ROOT / "docs" / "tutorials"
E2E = ("first-run", "your-own-experts", "your-own-task", "many-devices")


def test_there_is_a_test_for_every_tutorial():
    assert {page.stem for page in TUTORIALS.glob("*.md")} == {*E2E, "operators-and-ask-tell"}


@pytest.mark.exhaustive
def test_operators_and_ask_tell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = Page(TUTORIALS / "operators-and-ask-tell.md", monkeypatch).run()
    shown = capsys.readouterr().out
    assert "the same child True" in shown
    assert float(found["scores"](found["merged"]).mean()) > 0.6
    assert found["answer"].shape == (3,)
    states = (jax.tree.leaves(nnx.state(model, nnx.Param)) for model in found["models"][1:])
    for got, first, second in zip(jax.tree.leaves(nnx.state(found["mlp"], nnx.Param)), *states, strict=True):
        np.testing.assert_allclose(got, (first + second) / 2, atol=1e-6)
    assert found["answers"].shape == (5, 3)


@pytest.mark.e2e
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", E2E)
def test_tutorial(name, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    models = trained / "cache" / "models"

    def copy(pattern: str, folder: str) -> None:
        (source,) = models.glob(pattern)
        if not Path(folder).exists():
            shutil.copytree(source, folder)

    def experts(_: str) -> None:
        for pattern, folder in (("base-*", "base"), ("expert-mbpp-*", "coding"), ("expert-dbbench-*", "database")):
            copy(pattern, f"models/{folder}")
        for task, splits in miniature.write("problems", 0, 32, 1, ["mbpp", "dbbench"]).items():
            Path("data").mkdir(exist_ok=True)
            shutil.copy(splits["train"], f"data/{task}.jsonl")

    preparations = {"experts": experts, "base": lambda folder: copy("base-*", folder)}
    page = Page(TUTORIALS / f"{name}.md", monkeypatch, preparations=preparations, cache=trained / "cache")
    page.run()
    assert "error" not in capsys.readouterr().err.lower()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["engine", "models"])
def test_how_to(name, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model("runs/quickstart/model")
    found = Page(ROOT / "docs" / "how-to" / f"{name}.md", monkeypatch).run(("python",))
    if name == "models":
        assert found["logits"].shape == (8, 8, 304)
        assert found["hf"].load("runs/copy")[0].dtype == "bfloat16"
    else:
        assert found["reply"].tokens > 0


def test_the_page_on_segmentation_tasks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = Page(ROOT / "docs" / "how-to" / "segmentation.md", monkeypatch).run(("python",))
    assert [len(found["task"].items(split)) for split in ("train", "validation", "test")] == [3, 1, 4]
    assert "images/" in capsys.readouterr().out


def test_blocks_are_read_with_their_comments(tmp_path):
    page = tmp_path / "page.md"
    commented = "<!-- test: tiny; overrides a=1 b=2 -->\n```bash\nx\n```\n"
    page.write_text(commented + '\n```python title="f.py"\ny\n```\n\n```\nz\n```\n')
    first, second, third = blocks(page)
    assert first.comment == (("tiny", ""), ("overrides", "a=1 b=2"))
    assert (second.title, second.language, second.text) == ("f.py", "python", "y\n")
    assert (third.language, third.line) == ("", 11)


def test_a_wrong_line_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```bash\nrm -r runs\n```\n")
    with pytest.raises(AssertionError, match="expected a command of cycleqd"):
        Page(page, monkeypatch).run()
    page.write_text("```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError):
        Page(page, monkeypatch).run()
