"""The stage that decomposes: stores that are found again, go on where they were killed, and are never those of others."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cycleqd_jax.cli.basis import basis_text
from cycleqd_jax.genome.basis import Basis, dense_bases
from cycleqd_jax.runs.basis import store as basis_store
from cycleqd_jax.runs.basis.decomposition import write_facts
from cycleqd_jax.runs.basis.store import Experts
from cycleqd_jax.types import Adapter, InputError, LowRank

from .small_basis import MATRICES, Q, experts, make, weights


@pytest.mark.exhaustive
def test_bases_from_a_store_are_those_in_memory(tmp_path, decomposed, assert_identical):
    of = experts(1, 2, 3)
    wanted = {path: basis for path, basis, _ in dense_bases(of.base, of.experts, MATRICES, None)}
    made, lines = make(of, tmp_path)
    assert decomposed == MATRICES
    assert lines == []
    again, lines = make(of, tmp_path)
    assert decomposed == MATRICES
    assert lines == [f"basis: {made.folder}"]
    assert_identical(made.bases, wanted)
    assert_identical(again.bases, wanted)
    assert again.facts == made.facts
    assert json.loads((made.folder / "basis.json").read_text()) == made.facts
    assert not list(tmp_path.rglob("*tmp*"))


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", "[" * 100_000])
def test_facts_that_are_damaged_are_written_anew(tmp_path, content):
    file, facts = tmp_path / "basis.json", {"digest": "a", "checksum": "b"}
    file.write_text(content)
    lines = []
    write_facts(file, facts, lines.append)
    assert (json.loads(file.read_text()), lines) == (facts, [])
    write_facts(file, {**facts, "checksum": "c"}, lines.append)
    assert [line.split(",")[0] for line in lines] == ["warning: the basis was rebuilt since this run began"]


@pytest.mark.parametrize("count", [1, 2])
def test_bases_stay_on_the_host(tmp_path, monkeypatch, count):
    devices = jax.local_devices()
    if len(devices) < count:
        pytest.skip("needs several devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    monkeypatch.setattr(jax, "local_devices", lambda: devices[:count])
    made, again = make(experts(1, 2), tmp_path)[0], make(experts(1, 2), tmp_path)[0]
    assert {type(x) for x in jax.tree.leaves((made.bases, again.bases))} == {np.ndarray}


def test_leaves_of_similar_names_have_files_of_their_own(tmp_path, decomposed, assert_identical):
    paths = ["a.b", "a/b", "a/b.json", "a/b/c"]
    base = {path: weights(0)["embed"] for path in paths}
    changed = [{path: x + weights(10 * k + i)["embed"] for i, (path, x) in enumerate(base.items())} for k in (1, 2)]
    of = Experts(base, changed, {})
    made, _ = make(of, tmp_path)
    again, lines = make(of, tmp_path)
    assert lines == [f"basis: {made.folder}"]
    assert decomposed == paths
    wanted = {path: basis for path, basis, _ in dense_bases(base, changed, paths, None)}
    assert_identical(again.bases, wanted)


def test_stacks_without_matrices_have_no_basis(tmp_path):
    base = weights(0) | {"none": jnp.zeros((0, 6, 8))}
    of = Experts(base, [weights(k, weights(0)) | {"none": base["none"]} for k in (1, 2)], {})
    made, _ = make(of, tmp_path)
    again, lines = make(of, tmp_path)
    assert lines == [f"basis: {made.folder}"]
    assert "none" not in again.bases
    assert "none" not in again.facts["leaves"]
    basis_text(again.facts, ["a", "b"])


def test_what_is_known_of_a_basis(tmp_path):
    of = experts(1, 2, rank=3)
    facts = make(of, tmp_path)[0].facts
    tau = np.asarray(of.experts[1]["layers/q"], np.float64) - np.asarray(of.base["layers/q"], np.float64)
    s = np.linalg.svd(tau, compute_uv=False)
    q = facts["leaves"]["layers/q"]
    assert (q["kind"], q["matrices"], q["shape"], q["rank"]) == ("whole", 2, [6, 8], 3)
    assert q["bytes"] == 4 * 2 * 2 * 3 * (6 + 8 + 1)
    np.testing.assert_allclose(q["retained_by_expert"][1], (s[:, :3] ** 2).sum(-1) / (s**2).sum(-1), rtol=1e-5)
    assert q["retained"]["min"] == np.min(q["retained_by_expert"])
    assert q["retained"]["mean"] == pytest.approx(np.mean(q["retained_by_expert"]))
    assert facts["seconds"] > 0
    assert facts["similarity"]["task_vectors"][0][0] == pytest.approx(1)
    text = basis_text(facts, ["mbpp", "dbbench"])
    assert "2 × 6 × 8" in text
    assert f"mbpp and dbbench: {facts['similarity']['singular_values'][0][1]:.4f}" in text
    full = make(experts(1, 2), tmp_path)[0].facts
    assert full["leaves"]["layers/q"]["retained"]["min"] == pytest.approx(1, abs=1e-6)
    assert full["leaves"]["embed"]["rank"] == 6


def test_experts_equal_to_the_base(tmp_path):
    base = weights(0)
    of = Experts(base, [base, weights(1, base, 0.1)], {})
    facts = json.loads(json.dumps(make(of, tmp_path)[0].facts, allow_nan=False))
    assert facts["leaves"]["embed"]["retained_by_expert"] == [[None], [pytest.approx(1, abs=1e-6)]]
    assert facts["similarity"]["task_vectors"] == [[None, None], [None, pytest.approx(1)]]
    assert "mbpp and dbbench: –, –" in basis_text(facts, ["mbpp", "dbbench"])
    nobody = make(Experts(base, [base, base], {"nobody": True}), tmp_path)[0].facts
    assert nobody["leaves"] == {}
    assert "–" in basis_text(nobody, ["a", "b"])


def test_tiny_changes_are_not_none(tmp_path):
    base = {"w": jnp.zeros((10, 6))}
    of = Experts(base, [{"w": weights(k, scale=1e-24)["embed"]} for k in (1, 2)], {})
    retained = make(of, tmp_path)[0].facts["leaves"]["w"]["retained_by_expert"]
    assert retained == [[pytest.approx(1, abs=1e-5)]] * 2


def test_adapters_are_described_but_not_stored(tmp_path, decomposed):
    base, rng = weights(0), np.random.default_rng(0)

    def adapter(rank):
        return Adapter(
            {"layers/q": LowRank(rng.normal(size=(2, 6, rank)).astype("f"), rng.normal(size=(2, rank, 8)).astype("f"))}
        )

    made, _ = make(Experts(base, [adapter(2), adapter(4)], {}, rank=3), tmp_path)
    assert made.bases == {}
    assert decomposed == []
    assert not any((made.folder / "leaves").iterdir())
    q = made.facts["leaves"]["layers/q"]
    assert (q["kind"], q["rank"]) == ("low-rank", 3)
    assert q["retained_by_expert"][0] == pytest.approx([1, 1])
    assert max(q["retained_by_expert"][1]) < 1 - 1e-3
    assert -1 < made.facts["similarity"]["task_vectors"][0][1] < 1
    assert make(Experts(base, [adapter(2), adapter(4)], {}, rank=3), tmp_path)[1] == [f"basis: {made.folder}"]


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
import orbax.checkpoint as ocp
from pathlib import Path
from small_basis import *
saves = []
save = ocp.Checkpointer.save
def killed_in_the_second(self, path, *args, **kwargs):
    saves.append(path)
    if len(saves) == 2:
        handler_save = ocp.PyTreeCheckpointHandler.finalize
        ocp.PyTreeCheckpointHandler.finalize = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    save(self, path, *args, **kwargs)
ocp.Checkpointer.save = killed_in_the_second
make(experts(1, 2), Path({cache!r}))
"""


@pytest.mark.exhaustive
def test_a_killed_stage_goes_on_at_the_leaf_it_was_at(tmp_path, decomposed, assert_identical):
    script = KILLED.format(here=str(Path(__file__).parent), cache=str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert list(tmp_path.rglob(f"{Q}.orbax-checkpoint-tmp*"))  # it was in the middle of writing
    made, lines = make(experts(1, 2), tmp_path)
    assert decomposed == ["layers/q"]
    assert lines == [f"basis: 1 of 2 leaves are in {made.folder}"]
    of = experts(1, 2)
    assert_identical(made.bases, {path: basis for path, basis, _ in dense_bases(of.base, of.experts, MATRICES, None)})
    assert not list(tmp_path.rglob("*orbax-checkpoint-tmp*"))


def test_two_runs_at_once_share_the_work(tmp_path, decomposed):
    results = []
    threads = [threading.Thread(target=lambda: results.append(make(experts(1, 2), tmp_path)[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decomposed == MATRICES
    assert results[0].facts == results[1].facts


def facts_of(leaf):
    return leaf.with_name(f"{leaf.name}.json")


def flip_a_byte(leaf):
    file = max(filter(Path.is_file, leaf.rglob("*")), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty_arrays(leaf):
    shutil.rmtree(leaf)
    leaf.mkdir()
    facts_of(leaf).write_text(json.dumps(json.loads(facts_of(leaf).read_text()) | {"files": {}}))


def remove_arrays(leaf):
    shutil.rmtree(leaf)


def spoil_facts(leaf):
    facts_of(leaf).write_text('{"path": ')


def forge(leaf, change, suits=True):
    """Other arrays, with facts that suit them, or don't."""
    facts = json.loads(facts_of(leaf).read_text())
    with basis_store.checkpointer() as checkpointer:
        host = checkpointer.restore(leaf.absolute())
        host = {name: change(np.array(x)) for name, x in host.items()}
        shutil.rmtree(leaf)
        checkpointer.save(leaf.absolute(), host)
    if suits:
        facts_of(leaf).write_text(json.dumps(facts | {"files": basis_store.file_checksums(leaf)}))


def write_other_numbers(leaf):
    forge(leaf, lambda x: x * np.float32(1 + 1e-6), suits=False)


def write_nan(leaf):
    forge(leaf, lambda x: np.where(x == x.max(), np.nan, x).astype(np.float32))


def write_another_rank(leaf):
    forge(leaf, lambda x: x[..., :-1])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_byte, "its files are not those that were written"),
        (write_other_numbers, "its files are not those that were written"),
        (remove_arrays, "its files are not those that were written"),
        (empty_arrays, "its arrays can't be read"),
        (spoil_facts, "its facts can't be read"),
        (write_nan, "it holds NaN or infinity"),
        (write_another_rank, "its arrays have other shapes"),
    ],
)
def test_a_corrupt_leaf_is_rebuilt_with_a_warning(tmp_path, decomposed, assert_identical, damage, reason):
    made, _ = make(experts(1, 2), tmp_path)
    damage(made.folder / "leaves" / Q)
    again, lines = make(experts(1, 2), tmp_path)
    assert lines[0].startswith(f"warning: the leaf layers/q of the basis {made.folder} is corrupt ({reason}")
    assert decomposed == [*MATRICES, "layers/q"]
    assert_identical(again.bases, made.bases)
    assert make(experts(1, 2), tmp_path)[1] == [f"basis: {made.folder}"]


def test_a_leaf_of_another_basis_is_made_again(tmp_path, decomposed, assert_identical):
    other, _ = make(experts(1, 3), tmp_path)
    made, _ = make(experts(1, 2), tmp_path)
    for name in (Q, f"{Q}.json"):
        target = made.folder / "leaves" / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        copy = shutil.copytree if (other.folder / "leaves" / name).is_dir() else shutil.copy
        copy(other.folder / "leaves" / name, target)
    again, lines = make(experts(1, 2), tmp_path)
    assert "layers/q" in lines[0]
    assert "it belongs to another basis" in lines[0]
    assert_identical(again.bases, made.bases)


def test_a_basis_of_other_experts_is_refused(tmp_path, decomposed):
    other, _ = make(experts(1, 3), tmp_path)
    made, _ = make(experts(1, 2), tmp_path)
    shutil.rmtree(made.folder)
    shutil.copytree(other.folder, made.folder)
    with pytest.raises(
        InputError,
        match=r"in the basis .*, got \[1, 3\], so it was built for other experts than its name says",
    ):
        make(experts(1, 2), tmp_path)
    assert len(decomposed) == 4


def test_a_store_without_its_identity_is_rebuilt(tmp_path, decomposed, assert_identical):
    made, _ = make(experts(1, 2), tmp_path)
    (made.folder / "meta.json").write_text("")
    again, lines = make(experts(1, 2), tmp_path)
    assert "meta.json can't be read" in lines[0]
    assert decomposed == MATRICES * 2
    assert_identical(again.bases, made.bases)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda identity: identity.pop("rank"), "expected rank None in the basis .*, got '<absent>', so"),
        (lambda identity: identity.update(more=None), "expected more '<absent>' in the basis .*, got None, so"),
    ],
)
def test_an_identity_that_lacks_a_key_is_another(tmp_path, decomposed, change, message):
    made, _ = make(experts(1, 2), tmp_path)
    identity = json.loads((made.folder / "meta.json").read_text())
    change(identity)
    (made.folder / "meta.json").write_text(json.dumps(identity))
    with pytest.raises(InputError, match=message):
        make(experts(1, 2), tmp_path)


def test_facts_that_are_lost_are_found_again(tmp_path, decomposed):
    made, _ = make(experts(1, 2), tmp_path)
    (made.folder / "basis.json").write_text("{}")
    assert make(experts(1, 2), tmp_path)[0].facts == made.facts
    assert decomposed == MATRICES


def test_a_disk_without_space_is_refused_before_anything_is_decomposed(tmp_path, decomposed, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(InputError, match=r"GB of space for the basis in .*; free some space, or choose .* set genome\.rank$"):
        make(experts(1, 2), tmp_path)
    assert decomposed == []


def test_experts_that_are_not_finite_are_refused(tmp_path):
    base = weights(0)
    broken = {**weights(1), "embed": base["embed"].at[0, 0].set(jnp.nan)}
    with pytest.raises(InputError, match=r"NaN or infinity in leaf 'embed' of expert 1"):
        make(Experts(base, [weights(1), broken], {}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("rank", "method"), [(99, "svd"), pytest.param(2, "gram", marks=pytest.mark.exhaustive), (2, "randomized")]
)
def test_ranks_and_methods(tmp_path, rank, method):
    of = experts(1, 2, rank=rank, method=method)
    made, _ = make(of, tmp_path)
    wanted = {path: basis for path, basis, _ in dense_bases(of.base, of.experts, MATRICES, min(rank, 6), method)}
    for path, basis in wanted.items():
        for found, want in zip(made.bases[path], basis, strict=True):
            np.testing.assert_allclose(found, want, atol=1e-5)
    assert isinstance(made.bases["embed"], Basis)
