"""The pool on a cluster of threads: workers join, leave, hang, die and are refused; every group has one result."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from cycleqd_jax.evaluation import GenomeEvaluator, is_transient
from cycleqd_jax.evaluation.ray import Cluster, Patience, Program, pool, starts
from cycleqd_jax.sandbox import InfraError
from cycleqd_jax.types import FailuresError, InputError

from .fake_cluster import Died, Doubler, FakeCluster, die_times, doubled, pool_of, raise_error, results_of


def test_the_contracts():
    assert isinstance(FakeCluster(), Cluster)
    assert isinstance(Doubler(), Program)
    assert isinstance(pool_of(FakeCluster("a"), Doubler()).evaluator("train", quarantine=True), GenomeEvaluator)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_group_has_one_result(workers):
    records = []
    one = pool_of(FakeCluster("a", "b", "c"), Doubler(), workers, record=lambda found: records.append(list(found)))
    assert results_of(one, range(7)) == [doubled(n) for n in range(7)]
    assert results_of(one, range(3)) == [doubled(n) for n in range(3)]  # the same workers
    assert results_of(one, []) == []
    found = one.records
    assert [record.id for record in found] == list(range(workers))
    assert sum(record.evaluated for record in found) == 10
    assert {record.device for record in found if record.evaluated} == {"cpu"}
    assert all(record.start_s is not None and record.to_json()["host"] for record in found if record.evaluated)
    one.close()
    assert {record.state for record in records[-1]} == {"ended"}


def test_a_worker_that_dies_is_replaced_and_its_genome_is_evaluated_again():
    lines = []
    one = pool_of(FakeCluster("a", "b"), program := Doubler(acts={3: die_times(2)}), log=lines.append)
    found = results_of(one, range(6))
    assert [evaluation.scores for evaluation in found] == [doubled(n).scores for n in range(6)]
    assert found[3].seconds["retries"] >= 0
    assert "retries" not in found[2].seconds
    assert sorted(n for group in program.tried for n in group) == [0, 1, 2, 3, 3, 3, 4, 5]
    assert sum("ended while it evaluated 1 individual, which another worker" in line for line in lines) == 2
    assert sum(record.lost for record in one.records) == 2
    assert [record.error for record in one.records if record.lost] == ["the process is dead"] * 2


def test_a_child_that_ends_too_many_workers_is_quarantined():
    one = pool_of(FakeCluster("a", "b"), Doubler(acts={1: die_times(9)}), patience=Patience(deaths=2))
    found = results_of(one, range(4))
    assert [evaluation.error for evaluation in found] == [
        None, "the evaluation ended 2 workers: the process is dead", None, None
    ]  # fmt: skip
    assert found[1].transient
    assert is_transient(found[1].error)
    assert found[1].scores is None
    with pytest.raises(InfraError, match="the evaluation ended 2 workers: the process is dead"):
        results_of(one, [1], quarantine=False)


def test_a_machine_that_is_lost_does_not_count_against_the_child():
    one = pool_of(FakeCluster("a", "b"), Doubler(acts={1: die_times(5, process=False)}), patience=Patience(deaths=1))
    assert [evaluation.error for evaluation in results_of(one, range(3))] == [None] * 3


def test_of_a_group_the_cause_alone_is_quarantined():
    program = Doubler(size=3, acts={4: die_times(9)})
    one = pool_of(FakeCluster("a", "b"), program, patience=Patience(deaths=2))
    found = results_of(one, list(range(8)), size=3)
    assert [n for n, evaluation in enumerate(found) if evaluation.error] == [4]
    assert [one.scores for n, one in enumerate(found) if n != 4] == [doubled(n).scores for n in range(8) if n != 4]
    assert program.tried.count([3, 4, 5]) == 2
    assert program.tried.count([4]) == 2


def test_a_worker_that_hangs_is_ended_at_its_deadline():
    hung = threading.Event()
    acts = {2: lambda before: hung.wait(20) if before == 0 else None}
    one = pool_of(FakeCluster("a", "b"), Doubler(acts=acts), patience=Patience(deadline=0.3))
    start = time.monotonic()
    assert [evaluation.scores for evaluation in results_of(one, range(4))] == [doubled(n).scores for n in range(4)]
    assert time.monotonic() - start < 5
    hung.set()
    assert "no answer within 0.3 s" in [record.error for record in one.records]


def test_a_worker_joins_when_its_node_does():
    cluster, meeting = FakeCluster("a"), threading.Barrier(2, timeout=10)

    def late(before):
        cluster.add("b")
        meeting.wait()

    one = pool_of(cluster, Doubler(acts={0: late, 1: lambda before: meeting.wait()}))
    assert results_of(one, [0, 1]) == [doubled(0), doubled(1)]
    assert sum(record.evaluated > 0 for record in one.records) == 2


def raise_input_error():
    raise InputError("expected version of jax 1, as in the run, got 2")


def test_a_machine_that_is_refused_gets_no_more_workers():
    lines = []
    cluster = FakeCluster("a", "b")
    one = pool_of(cluster, Doubler(starts=[raise_input_error]), log=lines.append)
    assert len(results_of(one, range(4))) == 4
    refused = [record for record in one.records if record.error]
    assert [record.state for record in refused] == ["refused"]
    assert any("is refused: expected version of jax 1, as in the run, got 2" in line for line in lines)
    assert [avoid for avoid in cluster.avoided if avoid] == [{cluster.workers[refused[0].id].node}]


def test_a_worker_with_other_devices_is_refused():
    one = pool_of(FakeCluster("a", "b"), Doubler(devices=["gpu H100"] * 2), device="gpu A100")
    with pytest.raises(InputError, match=r"devices of the kind gpu A100, as of the other workers, got gpu H100 in worker"):
        results_of(one, [1])
    one = pool_of(FakeCluster("a"), Doubler(devices=["gpu H100"]))
    results_of(one, [1])
    assert one.device == "gpu H100"


def test_where_all_are_refused_the_first_reason_is_named_within_seconds():
    one, start = pool_of(FakeCluster("a", "b"), Doubler(starts=[raise_input_error] * 9)), time.monotonic()
    with pytest.raises(InputError, match=r"^expected a worker that can evaluate, got 2 .*expected version of jax 1.*; correct"):
        results_of(one, [1])
    assert time.monotonic() - start < 5


def raise_died():
    raise Died


def test_where_all_die_while_they_start_the_run_can_be_continued():
    one = pool_of(FakeCluster("a", "b"), Doubler(starts=[raise_died] * 9))
    with pytest.raises(FailuresError, match=r"the process is dead\) in the cluster; correct the cause and run the"):
        results_of(one, [1])


def test_an_exception_in_an_evaluation_ends_its_worker_only():
    lines = []
    one = pool_of(FakeCluster("a", "b"), Doubler(acts={2: raise_error("x")}), patience=Patience(deaths=2), log=lines.append)
    found = results_of(one, range(6))
    assert [n for n, evaluation in enumerate(found) if evaluation.error] == [2]
    assert found[2].error == "the evaluation ended 2 workers: ModuleNotFoundError: x"
    assert sum(line.endswith(":   line 7 of the worker") for line in lines) == 2
    with pytest.raises(InfraError, match=r"got none: the evaluation ended 2 workers: ModuleNotFoundError: x; correct"):
        results_of(one, [2], quarantine=False)


def test_a_machine_on_which_several_children_raise_gets_no_more_workers():
    cluster = FakeCluster("a")
    one = pool_of(cluster, Doubler(acts={n: raise_error("x") for n in range(9)}), workers=1)
    with pytest.raises(FailuresError, match=r"that failed \(worker 3 on .*: ModuleNotFoundError: x\) in the cluster; correct"):
        results_of(one, range(9))
    assert len(cluster.workers) == 4  # one child three times, another one once


def test_children_of_several_generations_count_one_by_one():
    cluster = FakeCluster("a")
    one = pool_of(cluster, Doubler(acts={n: raise_error() for n in range(9)}), workers=1)
    assert results_of(one, [0])[0].error  # the only group of its generation, with number 0, as in the next one
    with pytest.raises(FailuresError, match="in the cluster"):
        results_of(one, [1])
    assert one._starts.avoid == {"a"}


def test_a_run_that_is_stopped_ends_all_busy_workers():
    hung = threading.Event()
    cluster = FakeCluster("a", "b", "c")
    ended, end = [], cluster.end

    def failing_end(worker, process):
        ended.append(worker)
        end(worker, process)
        raise ConnectionError("the cluster is gone")

    cluster.end = failing_end
    program = Doubler(acts=dict.fromkeys((1, 2), lambda before: hung.wait(20)))

    def stop(i, evaluations):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool_of(cluster, program, 3).evaluator("train", quarantine=True)([[np.asarray(n)] for n in (1, 2, 0)], stop)
    hung.set()
    assert len(ended) == 2


def test_a_passing_error_at_the_start_is_no_refusal():
    cluster = FakeCluster("a")
    one = pool_of(cluster, Doubler(starts=[raise_error("nfs")], acts={0: die_times(1)}), workers=1)
    assert len(results_of(one, range(2))) == 2
    assert [avoid for avoid in cluster.avoided if avoid] == []
    assert "refused" not in {record.state for record in one.records}


def test_a_machine_without_the_package_does_not_end_a_healthy_run():
    cluster = FakeCluster("a")
    one = pool_of(cluster, program := Doubler(), workers=2)
    assert len(results_of(one, range(2))) == 2
    cluster.add("b")
    program.starts += [raise_error()] * 2
    program.acts[7] = lambda before: time.sleep(0.5)
    assert len(results_of(one, [7, *range(20)])) == 21
    assert cluster.avoided[-1] == {"b"}
    assert one._starts.avoid == {"b"}


def test_machines_that_do_not_say_where_they_are_are_tried_less_and_less_often(monkeypatch):
    monkeypatch.setattr(starts, "PAUSE_S", 0.1)
    cluster = FakeCluster("a")
    one = pool_of(cluster, Doubler(acts={n: lambda before: time.sleep(0.1) for n in range(10)}))
    assert len(results_of(one, [0])) == 1
    cluster.add("b")
    cluster.unknown.add("b")
    assert len(results_of(one, range(10))) == 10
    assert 3 <= len(cluster.workers) <= 12
    other = FakeCluster("a", "b")
    other.unknown |= {"a", "b"}
    with pytest.raises(FailuresError, match=r"got [34] that failed \(.*ModuleNotFoundError: No module named 'numpy'\)"):
        results_of(pool_of(other, Doubler()), [1])


def test_a_cluster_without_machines_has_not_refused_all(monkeypatch):
    monkeypatch.setattr(pool, "WAITING_S", 0.1)
    cluster = FakeCluster("a")

    def leave():
        cluster.alive.remove("a")
        raise_input_error()

    one = pool_of(cluster, Doubler(starts=[leave]), workers=1, log=lambda line: "no worker" in line and cluster.add("b"))
    assert results_of(one, [1]) == [doubled(1)]


def test_what_ended_while_the_driver_was_blocked_is_kept():
    program = Doubler()
    one = pool_of(FakeCluster("a", "b", "c"), program, 3, patience=Patience(deadline=0.3))
    results_of(one, range(3))
    program.tried.clear()
    found = {}

    def block(i, evaluations):
        if not found:
            time.sleep(0.8)
        found[i] = evaluations[0]

    one.evaluator("train", quarantine=True)([[np.asarray(n)] for n in range(6)], block)
    assert found == {n: doubled(n) for n in range(6)}
    assert sorted(n for group in program.tried for n in group) == list(range(6))


def test_machines_that_are_lost_again_and_again_end_the_attempts(monkeypatch):
    monkeypatch.setattr(pool, "LOST_MACHINES", 4)
    one = pool_of(FakeCluster("a", "b"), Doubler(acts={1: die_times(9, process=False), 2: die_times(3, process=False)}))
    found = results_of(one, range(3))
    assert found[1].error == "the evaluation ended 4 workers: the process is dead"
    assert found[2].scores == doubled(2).scores
    assert "retries" in found[2].seconds


@pytest.mark.exhaustive
def test_what_the_cluster_lacks_is_said(monkeypatch):
    monkeypatch.setattr(pool, "WAITING_S", 0.1)
    lines, cluster = [], FakeCluster()

    def log(line):
        lines.append(line)
        if len(lines) == 2:
            cluster.add("a")

    assert results_of(pool_of(cluster, Doubler(), log=log), [1]) == [doubled(1)]
    assert lines[:2] == [f"no worker has started for {s:g} s: a worker needs 1 CPU; 0 CPU are free" for s in (0.1, 0.2)]


def test_the_next_genomes_are_asked_for_when_a_worker_is_idle():
    one = pool_of(FakeCluster("a", "b"), Doubler(acts={0: die_times(1)}))
    numbers, flying, most, found = iter(range(9)), set(), 0, {}

    def source():
        nonlocal most
        number = next(numbers, None)
        if number is None:
            return None
        flying.add(number)
        most = max(most, len(flying))
        return number, [np.asarray(number)], ()

    def on_result(number, evaluations):
        flying.remove(number)
        found[number] = evaluations[0].scores

    one.evaluator("train", quarantine=True).stream(source, on_result)
    assert found == {n: doubled(n).scores for n in range(9)}
    assert most <= 2
