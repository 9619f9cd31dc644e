"""Compiled programs are kept in the run's cache: the next process loads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CODE = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp
from cycleqd_jax.compilation import persistent_compilation
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
x = jnp.arange(3.0)
events.clear()
with persistent_compilation(Path(sys.argv[1])):
    jax.jit(lambda x: jnp.sin(x) + 2)(x).block_until_ready()
folder = jax.config.jax_compilation_cache_dir
print(json.dumps({
    "hits": events.count("/jax/compilation_cache/cache_hits"),
    "misses": events.count("/jax/compilation_cache/cache_misses"),
    "folder": folder,
}))
"""


def run(cache, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-c", CODE, str(cache)]
    result = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def programs(cache):
    return [path for path in (cache / "compiled").glob("*/*") if path.name.endswith("-cache")]


@pytest.mark.exhaustive
def test_a_second_process_compiles_nothing(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    assert (first["hits"], first["misses"]) == (0, 1)
    assert (second["hits"], second["misses"]) == (1, 0)
    assert len(programs(tmp_path)) == 1
    assert first["folder"] is None  # as it was before


@pytest.mark.exhaustive
def test_other_flags_of_xla_have_programs_of_their_own(tmp_path):
    run(tmp_path)
    other = run(tmp_path, XLA_FLAGS="--xla_cpu_enable_fast_min_max=true")
    assert other["hits"] == 0
    assert len(list((tmp_path / "compiled").iterdir())) == 2


def test_a_cache_of_the_user_is_left_alone(tmp_path):
    found = run(tmp_path / "run", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert found["folder"] == str(tmp_path / "own")
    assert not (tmp_path / "run").exists()
