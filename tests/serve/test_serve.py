"""What is refused before anything is loaded."""

from __future__ import annotations

import sys

import pytest
from starlette.applications import Starlette

from cycleqd_jax.cli import main
from cycleqd_jax.engine import Engine
from cycleqd_jax.serve import OneModel, Options, make_worker, serve
from cycleqd_jax.serve.http import is_loopback
from cycleqd_jax.serve.server import run_server
from cycleqd_jax.types import InputError

from .small_server import tiny_model


@pytest.mark.parametrize(
    "option",
    [
        "--slots=0",
        "--waiting=-1",
        "--max-len=1",
        "--max-body=0",
        "--port=-1",
        "--weights-gib=-1",
        "--weights-gib=nan",
        "--weights-gib=inf",
        "--stall-s=nan",
        "--grace-s=inf",
    ],
)
def test_numbers_out_of_range(option, capsys):
    assert main(["serve", "nothing", option]) == 2
    name = option.partition("=")[0]
    assert f"cycleqd: expected {name} to be at least" in capsys.readouterr().err


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"package uvicorn .* pip install 'cycleqd_jax\[serve\]'"):
        serve("nothing", Options())


def test_keys(monkeypatch, tmp_path):
    for key in ("", " ", "é", "a\n"):
        with pytest.raises(InputError, match="expected a key of printable ASCII"):
            serve(str(tmp_path), Options(key=key))
    monkeypatch.setenv("CYCLEQD_API_KEY", "")
    with pytest.raises(InputError, match="expected a key of printable ASCII"):
        serve(str(tmp_path), Options())
    assert "secret" not in repr(Options(key="secret"))


def test_a_host_that_others_reach_needs_a_key_or_gets_a_warning(tmp_path):
    lines = []
    with pytest.raises(InputError, match="expected"):  # there is no model
        serve(str(tmp_path), Options(host="0.0.0.0"), lines.append)
    assert lines == ["warning: 0.0.0.0 may be reached from other machines, and there is no key; set CYCLEQD_API_KEY"]
    assert [is_loopback(host) for host in ("localhost", "127.0.0.2", "::1", "0.0.0.0", "example.org")] == [True] * 3 + [
        False
    ] * 2


def test_the_weights_of_a_single_model_are_in_memory_once(tokenizer, monkeypatch):
    loads = []
    monkeypatch.setattr(Engine, "warm_up", lambda self: None)
    monkeypatch.setattr(Engine, "load", lambda self, params, *, donate: loads.append(donate))
    make_worker(OneModel("one", tiny_model(tokenizer)), Options(slots=1, max_len=32), print)
    assert loads == [True]


def test_an_address_that_is_taken(server):
    with pytest.raises(InputError, match=r"expected an address to listen on, got .* for 127.0.0.1 port"):
        run_server(Starlette(), server.worker, host="127.0.0.1", port=server.port, grace_s=0, on_ready=print)


def test_address_and_positions_are_checked_before_weights_are_read(server, tokenizer, tmp_path, monkeypatch):
    model = tiny_model(tokenizer)
    model.save(tmp_path / "m")
    monkeypatch.setattr(sys.modules[serve.__module__], "load_model", None)
    with pytest.raises(InputError, match=r"expected an address to listen on, got .* for 127.0.0.1 port"):
        serve(str(tmp_path / "m"), Options(port=server.port))
    positions = model.config.context_length
    with pytest.raises(InputError, match=f"--max-len of at most {positions}, the model's positions, got {positions + 1}"):
        serve(str(tmp_path / "m"), Options(port=0, max_len=positions + 1))
