"""A program that uses models by the commands on standard input: the hub's settings are read once, when a program begins."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from cycleqd_jax.cli import main
from cycleqd_jax.models.files import hf, hub, peft
from cycleqd_jax.models.files.checkpoint import load_tokenizer, open_checkpoint
from cycleqd_jax.models.preflight import local_folder, preflight
from cycleqd_jax.runs.inputs.digests import folder_digest
from cycleqd_jax.types import InputError


def facts(model: str) -> dict:
    """What a model is, without its weights."""
    found = open_checkpoint(model, weights=False)
    tensors = {name: [found.tensors[name].dtype, *found.tensors[name].shape] for name in found.names}
    return {"config": repr(found.config), "nbytes": found.nbytes, "tensors": tensors, "name": found.name}


def check(base: str, experts: list[str]) -> list[str]:
    checked = preflight(base, experts)
    return [checked.base.name, *("adapter" if isinstance(e, Path) else e.name for e in checked.experts)]


def same(model: str, other: str) -> bool:
    """Are two models equal, bit for bit?"""
    (config, params), (other_config, other_params) = hf.load(model), hf.load(other)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(other_params), strict=True)
    return config == other_config and all(
        a.dtype == b.dtype and np.array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32)) for a, b in leaves
    )


def same_adapter(model: str, other: str, base: str) -> bool:
    config = open_checkpoint(base, weights=False).config
    one, two = (peft.load_adapter(local_folder(name, weights=True), config) for name in (model, other))
    return jax.tree.all(jax.tree.map(np.array_equal, dict(one.updates), dict(two.updates)))


def tokens(model: str) -> int:
    return load_tokenizer(model).vocab_size


def forget() -> None:
    hub.forget()


def load(model: str) -> None:
    hf.load(model)


def load_on_a_full_disk(model: str) -> None:
    with mock.patch("shutil.disk_usage", return_value=shutil.disk_usage("/")._replace(free=1000)):
        hf.load(model)


def load_impatiently(model: str) -> None:
    with mock.patch("time.sleep"):
        hf.load(model)


def folder(model: str) -> list:
    """Where a model has been downloaded to, what is there, and its digest."""
    found = local_folder(model, weights=False)
    return [str(found), sorted(path.name for path in found.iterdir()), folder_digest(found)]


def cli(*args: str) -> list:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(args)
    return [code, out.getvalue(), err.getvalue()]


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed is no answer
    for line in sys.stdin:
        name, *args = json.loads(line)
        start = time.monotonic()
        try:
            answer = {"result": globals()[name](*args)}
        except InputError as error:
            answer = {"refused": str(error)}
        except Exception:
            answer = {"broken": traceback.format_exc()}
        print(json.dumps(answer | {"seconds": time.monotonic() - start}), file=answers, flush=True)


if __name__ == "__main__":
    assert Path(os.environ["HF_HOME"]).is_dir()
    serve()
