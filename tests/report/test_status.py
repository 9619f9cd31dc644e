"""Where a run stands, against the files of made-up runs."""

from __future__ import annotations

import json
import math

import pytest
import yaml

from cycleqd_jax.cli import folders, main
from cycleqd_jax.files import locked
from cycleqd_jax.report import html
from cycleqd_jax.report.status import read_status, status_json, status_text
from cycleqd_jax.report.write import write_report
from cycleqd_jax.types import InputError

TASKS = ("mbpp", "dbbench", "os_interaction")


def config_of(folder, generations, batch=1, **search):
    tasks = [{"name": task, "validation_size": 8} for task in TASKS]
    options = {"generations": generations, "batch_size": batch, "method": "cycleqd", **search}
    (folder / "config.yaml").write_text(yaml.safe_dump({"tasks": tasks, "search": options, "mesh": {"population": 2}}))


def journal(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture
def under_way(make_run):
    """A run of 40 generations of 2 children after 30 generations."""
    folder = make_run(generations=30, batch=2, quarantine=0.2)
    config_of(folder, 40, 2)
    (folder / "tables" / "results.json").unlink()
    return folder


def test_a_run_under_way(under_way):
    status, lines = read_status(under_way), journal(under_way)
    assert (status.stage, status.running, status.method) == ("evolve", False, "cycleqd")
    assert (status.generation, status.generations) == (29, 40)
    assert (status.individuals, status.total) == (3 + 60, 3 + 80)
    assert [one["id"] for one in status.quarantined] == [line["id"] for line in lines if line["scores"] is None] != []
    averages = {line["id"]: sum(line["scores"].values()) / 3 for line in lines if line["scores"]}
    assert status.best["average"] == pytest.approx(max(averages.values()))
    assert averages[status.best["id"]] == pytest.approx(status.best["average"])
    spent = [sum(line["seconds"].values()) for line in lines[-50:]]
    assert status.per_hour == pytest.approx(3600 * 2 / (sum(spent) / 50))
    assert status.seconds_left == pytest.approx(20 / status.per_hour * 3600)
    assert 0 <= status.idle_seconds < 300
    assert set(status.archives) == set(TASKS)
    for task, one in status.archives.items():
        assert 0 < one["coverage"] <= 1
        assert one["best"] == pytest.approx(max(line["scores"][task] for line in lines if line["scores"]))
    text = status_text(status)
    assert "stage evolve, no process is running it" in text
    assert "generation 30 of 40, 63 of 83 individuals" in text
    assert text.count("InfraError") == min(len(status.quarantined), 5)


def test_while_a_process_holds_the_lock_and_writes(under_way):
    path = under_way / "history.jsonl"
    with locked(under_way / ".lock", wait=False):
        path.write_bytes(path.read_bytes() + b'{"id":63,"gen')
        before = path.read_bytes()
        assert read_status(under_way).running
        assert read_status(under_way).individuals == 63
        assert path.read_bytes() == before
    assert not read_status(under_way).running
    with locked(under_way / ".lock", wait=False):
        pass  # reading leaves no lock


def test_the_stages_in_order(make_run, tmp_path):
    folder = make_run(generations=4)
    config_of(folder, 4)
    contents = {name: (folder / name).read_text() for name in ("history.jsonl", "grid.json", "tables/results.json")}
    for name in contents:
        (folder / name).unlink()

    def stage():
        return read_status(folder).stage

    assert stage() == "train"
    status = read_status(folder)
    assert (status.generation, status.individuals, status.best, status.archives) == (-1, 0, None, {})
    assert math.isnan(status.per_hour)
    assert math.isnan(status.seconds_left)
    json.dumps(status_json(status), allow_nan=False)
    (folder / "history.jsonl").write_text("".join(contents["history.jsonl"].splitlines(keepends=True)[:2]))
    assert stage() == "evolve"  # without a grid: the experts are being evaluated
    assert read_status(folder).archives == {}
    (folder / "history.jsonl").write_text(contents["history.jsonl"])
    (folder / "grid.json").write_text(contents["grid.json"])
    assert stage() == "select"
    config_of(folder, 4)
    chosen = {"kind": "elite", "ids": [0]}
    selection = {"problems": {"mbpp": "0"}, "candidates": [{**chosen, "scores": None}], "soup": [0], "chosen": chosen}
    (folder / "tables" / "selection.json").write_text(json.dumps(selection))
    assert stage() == "evaluate"
    (folder / "tables" / "results.json").write_text(contents["tables/results.json"])
    assert stage() == "export"
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    assert stage() == "report"
    (folder / "report.html").write_text("")
    assert stage() == "finished"
    assert "finished" in status_text(read_status(folder))


def test_budgets_end_a_search(under_way):
    for search in ({"budget": 63}, {"budget_items": 63 * 120 + 5}):
        config_of(under_way, 40, 2, **search)
        status = read_status(under_way)
        assert (status.total, status.stage) == (63, "select")
        assert status.seconds_left == 0


def test_the_command(under_way, capsys, monkeypatch):
    assert main(["status", str(under_way), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["individuals"] == 63
    assert main(["status", str(under_way), "--watch"]) == 0  # no process: it ends
    assert "63 of 83 individuals" in capsys.readouterr().out
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            release.__exit__(None, None, None)

    monkeypatch.setattr(folders.time, "sleep", sleep)
    release = locked(under_way / ".lock", wait=False)
    release.__enter__()
    assert main(["status", str(under_way), "--watch", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["running"] for line in lines] == [True, True, False]


def test_halved_slots_are_named(under_way):
    assert read_status(under_way).halved is None
    (under_way / "engine.json").write_text('{"schema": 1, "configured": 64, "slots": 32}')
    status = read_status(under_way)
    assert status_json(status)["halved"] == {"configured": 64, "slots": 32}
    assert "memory        ran out; engine.slots 64 → 32\n" in status_text(status)
    config = yaml.safe_load((under_way / "config.yaml").read_text())
    config["tasks"] = [{**task, "kind": "segmentation"} for task in config["tasks"]]
    (under_way / "config.yaml").write_text(yaml.safe_dump(config))
    assert "memory        ran out; masks.batch_size 64 → 32\n" in status_text(read_status(under_way))
    (under_way / "engine.json").write_text('{"schema": 2, "configured": 64, "slots": 32}')
    with pytest.raises(InputError, match="expected a file of schema 1 or older, got schema 2"):
        read_status(under_way)
    for damaged in ('{"configured": 1e999, "slots": 3}', "[" * 100_000):
        (under_way / "engine.json").write_text(damaged)
        with pytest.raises(
            InputError, match=r"^expected the numbers configured and slots in .*engine.json, got .*; remove the"
        ):
            read_status(under_way)


@pytest.mark.parametrize(
    "text",
    [
        "search: {}\ntasks: []\n",
        "tasks: 3\nsearch: {batch_size: 1, generations: 2}\n",
        "- 1\n",
        "{",
        "tasks: []\nsearch: {batch_size: 1, generations: 2}\n",
        *(
            f"tasks: [{{name: mbpp}}, {{name: dbbench}}, {{name: os_interaction}}]\nsearch: {{{search}}}\n"
            for search in (
                "batch_size: 1, generations: .inf",
                "batch_size: 1, generations: -1",
                "batch_size: 0, generations: 2, budget_items: 5, racing: {}",
                "batch_size: 1, generations: 2, budget: x",
                "batch_size: 1, generations: 2, budget: 0",
                "batch_size: 1, generations: 2, budget_items: [3]",
                "batch_size: 1, generations: 2, budget_items: .inf",
            )
        ),
    ],
)
def test_a_damaged_config(under_way, text):
    (under_way / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"expected .* in .*config.yaml, got"):
        read_status(under_way)


def test_bad_input(under_way, tmp_path, capsys):
    assert main(["status", str(tmp_path / "none")]) == 2
    assert "expected a run folder" in capsys.readouterr().err
    (under_way / "history.jsonl").write_text("[]\n")
    assert main(["status", str(under_way)]) == 2
    assert "expected a journal record" in capsys.readouterr().err


WORKER = {"host": "a", "pid": 7, "device": "cpu", "start_s": 2.5, "error": None}


def with_workers(folder):
    """``workers.json`` after a second start of the run."""
    workers = [
        {"start": 0, "id": 0, "state": "ended", "evaluated": 9, "busy_s": 18.0, "lost": 1, "per_hour": 1800.0, **WORKER},
        {"start": 1, "id": 0, "state": "busy", "evaluated": 3, "busy_s": 3.0, "lost": 0, "per_hour": 3600.0, **WORKER},
        {"start": 1, "id": 1, "state": "refused", "evaluated": 0, "busy_s": 0.0, "lost": 0, "per_hour": None, **WORKER}
        | {"error": "expected version <of> jax"},
    ]
    (folder / "workers.json").write_text(json.dumps({"schema": 1, "workers": workers}))


def test_workers_of_a_cluster_are_shown(under_way):
    assert read_status(under_way).workers == []
    pace = read_status(under_way).per_hour
    with_workers(under_way)
    assert read_status(under_way).per_hour == pytest.approx(pace)  # no process: a start that was killed has left them
    with locked(under_way / ".lock", wait=False):
        status = read_status(under_way)
    assert [one["state"] for one in status.workers] == ["busy", "refused"]  # of the second start
    assert status.per_hour == pytest.approx(pace / 2)  # one worker in the place of two groups of devices
    text = status_text(status)
    assert "workers       1 busy, 1 refused" in text
    assert "0 on a: busy, 3 individuals, 3600.0 individuals per busy hour\n" in text
    assert "1 on a: refused, 0 individuals: expected version <of> jax\n" in text
    assert status_json(status)["workers"][0]["pid"] == 7
    for damaged in (
        '{"workers": [{}]}',
        "{}",
        "[",
        '{"workers": 3}',
        *(
            json.dumps({"workers": [{**status.workers[0], **changes}]})
            for changes in ({"start": 1e999}, {"start_s": "x"}, {"per_hour": "3600"}, {"evaluated": "3"}, {"busy_s": None})
        ),
        "[" * 100_000,
    ):
        (under_way / "workers.json").write_text(damaged)
        with pytest.raises(InputError, match=r"^expected the records of workers in .*workers.json, got .*; remove the file"):
            read_status(under_way)


def test_a_steady_search_uses_all_groups_of_devices(under_way):
    paces = []
    for options in ({"batch": 1}, {"batch": 1, "steady": True}):
        config_of(under_way, 40, **options)
        paces.append(read_status(under_way).per_hour)
    assert paces[1] == pytest.approx(2 * paces[0])


@pytest.mark.exhaustive
def test_the_page_says_which_workers_it_leaves_out(under_way, monkeypatch):
    with_workers(under_way)
    monkeypatch.setattr(html, "_MOST_WORKERS", 2)
    write_report(under_way)
    page = (under_way / "report.html").read_text("utf-8")
    assert "These are the last 2; 1 earlier ones are in workers.json" in page
    assert '<th scope="row">0.0</th>' not in page


@pytest.mark.exhaustive
def test_the_page_has_the_workers_of_all_starts(under_way):
    with_workers(under_way)
    write_report(under_way)
    page = (under_way / "report.html").read_text("utf-8")
    assert 'id="workers"' in page
    assert "expected version &lt;of&gt; jax" in page
    assert all(f'<th scope="row">{name}</th><td>a</td>' in page for name in ("0.0", "1.0", "1.1"))
