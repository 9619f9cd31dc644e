"""Models from the cache of the hub: in offline mode, and without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cycleqd_jax.types import InputError


@pytest.mark.exhaustive
def test_offline_mode_uses_the_cache(server, publish, workers, models):
    publish("cached/base")
    publish("cached/sharded", "sharded")
    publish("cached/lora", "lora")
    publish("cached/headers")
    for name in ("cached/base", "cached/sharded"):
        workers["online"]("load", name)
    workers["online"]("check", "cached/base", ["cached/lora"])
    workers["online"]("facts", "cached/headers")
    with server.watched() as log:
        for worker in (workers["offline"], workers["unplugged"]):
            assert worker("same", "cached/base", str(models / "base"))
            assert worker("check", "cached/base", ["cached/sharded", "cached/lora"])[1:] == ["cached/sharded", "adapter"]
            assert worker("same_adapter", "cached/lora", str(models / "lora"), "cached/base")
            for name in ("cached/absent", "cached/base@v9", "cached/headers"):
                with pytest.raises(InputError, match=f"{name}.*(go online|try again later)") as refused:
                    worker("load", name)
                assert ("offline mode" in str(refused.value)) == (worker is workers["offline"])
                assert worker.seconds < 1
    assert not log


def test_offline_too_a_branch_stays_where_it_is(publish, workers, models):
    repository = publish("steady/model")
    workers["online"]("load", "steady/model")
    assert workers["offline"]("facts", "steady/model")["nbytes"] > 0
    repository.push({path.name: path.read_bytes() for path in (models / "expert").iterdir()})
    workers["online"]("forget")
    workers["online"]("load", "steady/model")  # the cache, which all share, has the new commit now
    assert workers["offline"]("same", "steady/model", str(models / "base"))
    workers["offline"]("forget")
    assert workers["offline"]("same", "steady/model", str(models / "expert"))


def test_a_cache_that_another_program_filled(publish, workers, models, home):
    """Without huggingface_hub's note of what the repository has; and with less than the whole."""
    publish("foreign/model", "sharded")
    workers["online"]("load", "foreign/model")
    shutil.rmtree(home / "hub" / "models--foreign--model" / "trees", ignore_errors=True)
    assert workers["offline"]("same", "foreign/model", str(models / "base"))
    where = Path(workers["offline"]("folder", "foreign/model")[0])
    next(where.glob("*-of-*.safetensors")).unlink()
    with pytest.raises(InputError, match=r"foreign/model.*go online"):
        workers["offline"]("load", "foreign/model")
    assert workers["online"]("same", "foreign/model", str(models / "base"))
