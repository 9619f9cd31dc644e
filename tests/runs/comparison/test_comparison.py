"""What a comparison refuses before any evaluation, which runs it makes, and what they share; the runs are made up."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import queue
from pathlib import Path

import pytest
import yaml

import cycleqd_jax as cq
from cycleqd_jax.config import RunConfig, load_config, to_yaml
from cycleqd_jax.files import locked
from cycleqd_jax.report import comparison_files
from cycleqd_jax.runs.comparison import compare as comparison
from cycleqd_jax.runs.folder.run_folder import compare_inputs
from cycleqd_jax.statistics import resampled_means
from cycleqd_jax.types import InputError

from ...compared_runs import TASKS, write_finished
from ..segmentation_run import image_folder


def config_of(folder: Path, **changes) -> RunConfig:
    tasks = [{"name": name, "kind": kind} for name, kind in zip(TASKS, ("mbpp", "dbbench"), strict=True)]
    places = {"output": str(folder / "run"), "cache": str(folder / "cache")}
    return load_config({"name": "demo", "tasks": tasks, **places, **changes})


@dataclasses.dataclass
class Runs:
    """The runs that were made, in order: seed, method and the run that gave the shared rows, with its seed where it is another.

    ``fail_at`` kills one, ``early`` before it has a score.
    """

    made: list[tuple[int, str, str | None]] = dataclasses.field(default_factory=list)
    fail_at: int | None = None
    problems: str | None = None  # digest of the test problems, of tasks that read files
    early: bool = False  # killed before there is a score


@pytest.fixture
def runs(monkeypatch):
    record = Runs()

    class FakeRun:
        def __init__(self, config, *, progress, log, shared):
            self.config, self.shared = config, shared

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def check_problems(self, other):
            compare_inputs(other, {f"{task}/test": record.problems for task in TASKS if record.problems is not None})

        def train(self):
            pass

        def evolve(self):
            folder = self.config.folder
            folder.mkdir(parents=True, exist_ok=True)
            shared = None if self.shared is None else self.shared.relative_to(folder.parents[1]).as_posix()
            shared = None if shared is None else shared.removeprefix(f"seed-{self.config.seed}/")
            record.made.append((self.config.seed, folder.name, shared))
            if record.fail_at == len(record.made):
                (folder / "config.yaml").write_text(to_yaml(self.config))
                if not record.early:
                    (folder / "history.jsonl").touch()
                raise KeyboardInterrupt

        def evaluate(self):
            (self.config.folder / "config.yaml").write_text(to_yaml(self.config))
            write_finished(
                self.config.folder,
                self.config.search.method,
                self.config.seed,
                individuals=self.config.search.budget or 5,
                test_digest=record.problems,
            )

    monkeypatch.setattr(comparison, "Run", FakeRun)
    # figures take a second
    monkeypatch.setattr(comparison_files, "write_comparison", lambda folder, table, curves, experts: [])
    few = functools.partial(resampled_means, resamples=100)  # of 10,000: no test here is about the length of intervals
    monkeypatch.setattr("cycleqd_jax.report.comparison.resampled_means", few)
    return record


def compare(config, methods="cycleqd,random", **options):
    lines = []
    quiet = {"progress": lambda *_: None, "log": lines.append}
    table = cq.compare(config, methods, **{"seeds": [0, 1], "budget": 12, **quiet, **options})
    return table, lines


@pytest.mark.exhaustive
def test_the_first_run_of_a_seed_gives_the_shared_rows(runs, tmp_path):
    table, lines = compare(config_of(tmp_path))
    assert runs.made == [(0, "cycleqd", None), (0, "random", "cycleqd"), (1, "cycleqd", None), (1, "random", "cycleqd")]
    assert table.methods == ("base", "expert/a", "expert/b", "uniform_merge", "cycleqd", "random")
    assert table.seeds == (0, 1)
    assert lines[0] == "comparison: seed 0, cycleqd (run 1 of 4)"
    assert lines[1].startswith("comparison: seed 0, random (run 2 of 4, about ")
    record = yaml.safe_load((tmp_path / "run-compare" / "comparison.yaml").read_text())
    assert record["config"]["search"]["budget"] == 12
    assert record["methods"] == {name: {"search.method": name} for name in ("cycleqd", "random")}
    assert record["table"]["seeds"] == [0, 1]
    drawn = comparison_files.draw_comparison(tmp_path / "run-compare")
    assert drawn.csv() == table.csv()
    assert drawn.facts() == table.facts()
    assert table.facts()["budget"] == 12
    assert "Every run evaluated 12 individuals, experts included." in table.caption()


@pytest.mark.exhaustive
def test_a_comparison_continues_where_it_was_interrupted(runs, tmp_path):
    runs.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        compare(config_of(tmp_path))
    runs.made, runs.fail_at = [], None
    resumed, _ = compare(config_of(tmp_path))
    assert runs.made == [(1, "cycleqd", None), (1, "random", "cycleqd")]
    runs.made = []
    again, lines = compare(config_of(tmp_path))
    assert (runs.made, lines) == ([], [])
    whole, _ = compare(config_of(tmp_path / "other"))
    assert resumed.csv() == again.csv() == whole.csv()


@pytest.mark.exhaustive
def test_seeds_and_methods_can_be_added(runs, tmp_path):
    config = config_of(tmp_path)
    compare(config, "cycleqd", seeds=[0])
    runs.made = []
    table, _ = compare(config, "random,cycleqd", seeds=[0, 4])
    assert runs.made == [(0, "random", "cycleqd"), (4, "random", None), (4, "cycleqd", "random")]
    assert table.methods[-2:] == ("random", "cycleqd")
    runs.made = []
    compare(config, "random", seeds=[4])
    assert runs.made == []


def test_several_processes_share_the_runs(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "POLL_S", 0.01)
    config, folder = config_of(tmp_path), tmp_path / "run-compare" / "seed-0"
    compare(config, "cycleqd", seeds=[1])
    folder.mkdir()
    runs.made, messages = [], queue.Queue[str]()
    with contextlib.ExitStack() as other, concurrent.futures.ThreadPoolExecutor() as pool:
        other.enter_context(locked(folder / ".cycleqd.lock", wait=False))  # another process is at the first run of seed 0
        result = pool.submit(compare, config, log=messages.put)
        lines = [messages.get(timeout=60) for _ in range(2)]
        assert lines[0] == "comparison: seed 1, random (run 2 of 4)"
        assert lines[1] == "comparison: waiting for the runs of other processes"
        assert runs.made == [(1, "random", "cycleqd")]
        other.close()  # the other process has been killed
        table, _ = result.result(timeout=60)
    assert runs.made[1:] == [(0, "cycleqd", None), (0, "random", "cycleqd")]
    assert table.seeds == (0, 1)


@pytest.mark.exhaustive
def test_processes_with_other_seeds_draw_their_own_tables(runs, tmp_path, monkeypatch):
    config, folder = config_of(tmp_path), tmp_path / "run-compare"
    compare(config, "cycleqd", seeds=[0])
    made = comparison._run

    def meanwhile(*arguments):  # another process begins with seed 5
        text = (folder / "comparison.yaml").read_text()
        tree = yaml.safe_load(text)
        tree["table"]["seeds"] = [5]
        (folder / "comparison.yaml").write_text(yaml.safe_dump(tree))
        made(*arguments)

    monkeypatch.setattr(comparison, "_run", meanwhile)
    table, _ = compare(config, "cycleqd", seeds=[0, 1])
    assert table.seeds == (0, 1)


def test_a_comparison_under_way_is_not_replaced(runs, tmp_path):
    config = config_of(tmp_path)
    runs.fail_at, runs.early = 1, True
    with pytest.raises(KeyboardInterrupt):
        compare(config, "cycleqd", seeds=[0])
    with (
        locked(tmp_path / "run-compare" / "seed-0" / ".cycleqd.lock", wait=False),
        pytest.raises(InputError, match=r"expected search\.sigma to be 0\.03, as in the comparison in .*, got 0\.4"),
    ):
        compare(dataclasses.replace(config, search=dataclasses.replace(config.search, sigma=0.4)), "cycleqd", seeds=[0])


@pytest.mark.exhaustive
def test_a_run_that_another_process_has_finished_is_not_made_again(runs, tmp_path, monkeypatch):
    config = config_of(tmp_path)
    compare(config, "cycleqd", seeds=[0])
    runs.made = []
    finished = comparison._is_finished
    looks = iter([False])  # it is finished after the first look
    monkeypatch.setattr(comparison, "_is_finished", lambda one: next(looks, True) and finished(one))
    compare(config, "cycleqd", seeds=[0])
    assert runs.made == []


@pytest.mark.exhaustive
def test_another_comparison_in_the_folder_is_refused(runs, tmp_path):
    config = config_of(tmp_path)
    path = tmp_path / "methods.yaml"
    path.write_text("{methods: {cycleqd: {}, random: {search.high: 0.9}}}")
    compare(config, path)
    runs.made = []
    cases = [
        (config, path, {"budget": 13}, "search.budget to be 12, as in the comparison in .*, got 13; choose another --output"),
        (config_of(tmp_path, finetune={"steps": 7}), "qd", {}, "finetune.steps to be 300, as in"),
        (config_of(tmp_path, merges=["ties"]), path, {}, r"merges to be \[\], as in"),
        (config, "random", {}, r"the method random to be {'search\.high': 0\.9, 'search\.method': 'random'}, as in"),
    ]
    for one, methods, options, message in cases:
        with pytest.raises(InputError, match=f"expected {message}"):
            compare(one, methods, output=tmp_path / "run-compare", **options)
    assert runs.made == []


@pytest.mark.exhaustive
def test_other_files_are_refused(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "check_methods", lambda configs: None)  # nobody reads the file
    train = tmp_path / "train.jsonl"
    train.write_text("one")
    tasks = [{"name": "a", "kind": "mbpp", "train": str(train)}, {"name": "b", "kind": "dbbench"}]
    config = config_of(tmp_path, tasks=tasks)
    compare(config)
    runs.made = []
    train.write_text("two")
    with pytest.raises(InputError, match=r"expected the digest of tasks\.a\.train to be '\w{16}', as in the comparison in"):
        compare(config, seeds=[0, 1, 2])
    assert runs.made == []


@pytest.mark.exhaustive
def test_other_images_are_refused(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "check_methods", lambda configs: None)  # nobody reads the images
    tasks = [{"name": name, "kind": "segmentation", "train": str(tmp_path / name)} for name in TASKS]
    for n, name in enumerate(TASKS):
        image_folder(tmp_path / name, train=2, test=1, seed=n)
    config = config_of(tmp_path, tasks=tasks, model={"base": str(tmp_path / "base")})
    index, mask = tmp_path / "b" / "index.csv", tmp_path / "b" / "masks" / "train-1.png"
    compare(config)
    runs.made = []
    for file, content in ((mask, mask.with_name("train-0.png").read_bytes()), (index, index.read_bytes()[:-5] + b"train")):
        before = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"expected the digest of tasks\.b\.train to be '\w{16}', as in the comparison in"):
            compare(config)
        file.write_bytes(before)
    compare(config)
    assert runs.made == []


def test_other_folders_are_refused(runs, tmp_path):
    (tmp_path / "run-compare").mkdir()
    (tmp_path / "run-compare" / "thesis.tex").touch()
    with pytest.raises(
        InputError, match=r"expected a comparison or an empty place for the output .*, got a folder with thesis"
    ):
        compare(config_of(tmp_path))
    (tmp_path / "run-compare" / "comparison.yaml").write_text("config: 3")
    with pytest.raises(InputError, match="expected config, methods and inputs in"):
        compare(config_of(tmp_path))
    assert runs.made == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": []}, "expected at least one seed, got none; give --seeds"),
        ({"seeds": [0, 1, 0]}, "expected every seed once, got 0 2 times in --seeds; remove one"),
        ({"seeds": [-1]}, "^expected seeds of at least 0, got -1 in --seeds; correct it"),
        ({"budget": 0}, "^expected --budget of at least 1, got 0; increase it"),
        ({"budget_items": 0}, "^expected --budget-items of at least 1, got 0; increase it"),
        ({"reference": "random_selcted"}, "got 'random_selcted'; correct --reference"),
        ({"budget": 5}, "^expected search.budget of at least 6, which the experts and the first .* in method 'cycleqd'; "),
        ({"budget": None}, "expected a budget that all methods share, got none"),
        (
            {"budget": None, "budget_items": 6 * 64 - 1},
            "^expected search.budget_items of at least 384, 6 individuals with 64 items each.*, got 383 in method 'cycleqd'; ",
        ),
        ({"methods": "cycleqd,cmaes", "budget": 5}, "^expected search.budget of at least 6.* in method 'cycleqd'; "),
        ({"methods": "cmeas"}, r"got 'cmeas'; did you mean cmaes\?"),
        (
            {"methods": "nsga2", "budget": 31},
            "^expected search.budget of at least 32, .* in method 'nsga2'; increase it, or decrease search.population for this",
        ),
        ({"reference": "ties"}, r"expected the reference to be a row of the table \(base, .*, got 'ties'; correct --reference"),
    ],
)
def test_bad_input_is_refused_before_anything_is_evaluated(runs, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        compare(config_of(tmp_path), **options)
    assert runs.made == []
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_needs_keys_of_its_own_is_refused(runs, tmp_path):
    message = "^expected search.batch_size of at least 4, .*, got 1 in method 'cmaes'; increase it for this method in a file of"
    with pytest.raises(InputError, match=message):
        compare(config_of(tmp_path, search={"batch_size": 1}), "cycleqd,cmaes")
    assert runs.made == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{methods: {x: {search.method: cmaes, search.groups: 3}}}", "^expected 1 to 2 groups of layers.* in method 'x'; "),
        (
            "{methods: {cycleqd: {}}, merges: [slerp, ties]}",
            r"^expected two tasks with merges: slerp.* in .*methods\.yaml; correct",
        ),
        ("{methods: {cycleqd: {}}, merges: ties}", r"^expected merges to be a list, got 'ties' in .*methods\.yaml; correct it"),
        ("{methods: {cycleqd: {}}, baselines: [joint]}", r"^expected baselines.0 to be one of"),
    ],
)
def test_methods_that_do_not_fit_the_config_are_refused(runs, tmp_path, text, message):
    path = tmp_path / "methods.yaml"
    path.write_text(text)
    tasks = [{"name": name} for name in ("mbpp", "dbbench", "os_interaction")]
    with pytest.raises(InputError, match=message):
        compare(config_of(tmp_path, tasks=tasks), path)
    assert runs.made == []
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("setting", "tasks", "shown"), [("demo", "[b, a]", True), ("other", "[a, b]", False), ("demo", "[a, b, c]", False)]
)
def test_the_papers_figures_are_shown_in_its_setting_only(runs, tmp_path, setting, tasks, shown):
    path = tmp_path / "methods.yaml"
    paper = f"{{setting: {setting}, tasks: {tasks}, rows: {{base: {{average: 32.6}}}}}}"
    path.write_text(f"{{methods: {{cycleqd: {{}}}}, paper: {paper}}}")
    table, _ = compare(config_of(tmp_path), path, seeds=[0])
    assert ("32.6" in table.markdown()) == shown
    assert (f"The figures of the paper are those of its own setting, {setting}." in table.caption()) == shown


@pytest.mark.exhaustive
def test_a_comparison_without_scores_is_replaced(runs, tmp_path):
    runs.fail_at, runs.early = 1, True
    with pytest.raises(KeyboardInterrupt):
        compare(config_of(tmp_path))
    runs.fail_at = None
    table, _ = compare(config_of(tmp_path, finetune={"steps": 7}), budget=13)
    assert table.facts()["budget"] == 13


@pytest.mark.exhaustive
def test_a_row_that_a_run_got_elsewhere_is_no_row_of_the_table(runs, tmp_path):
    config = config_of(tmp_path)
    compare(config, "cycleqd", seeds=[0])
    folder = tmp_path / "run-compare" / "seed-0" / "cycleqd"
    results = json.loads((folder / "tables" / "results.json").read_text())
    results["methods"]["gradient"] = results["methods"]["base"]
    (folder / "tables" / "results.json").write_text(json.dumps(results))
    runs.made = []
    table, _ = compare(config, "cycleqd", seeds=[0])
    assert "gradient" not in table.methods
    assert runs.made == []
    stored = load_config(folder / "config.yaml", ["gradient={steps: 2}"])
    (folder / "config.yaml").write_text(to_yaml(stored))
    compare(config, "cycleqd", seeds=[0])
    assert runs.made == [(0, "cycleqd", None)]


@pytest.mark.exhaustive
def test_given_models_and_files_are_shared_over_seeds(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "check_methods", lambda configs: None)  # nobody reads the models
    tasks = [{"name": name, "kind": kind, "train": "hf://x"} for name, kind in zip(TASKS, ("mbpp", "dbbench"), strict=True)]
    given = {"base": "base", "experts": {"a": "x", "b": "y"}}
    compare(config_of(tmp_path, tasks=tasks, model=given))
    assert runs.made == [
        (0, "cycleqd", None),
        (0, "random", "cycleqd"),
        (1, "cycleqd", "seed-0/cycleqd"),
        (1, "random", "cycleqd"),
    ]


@pytest.mark.exhaustive
def test_problems_that_changed_since_another_seed_are_refused(runs, tmp_path):
    runs.problems = "one"
    compare(config_of(tmp_path), seeds=[0])
    runs.made, runs.problems = [], "two"
    with pytest.raises(InputError, match=r"expected a/test with digest one, as when the run in .* began, got two; restore"):
        compare(config_of(tmp_path), seeds=[0, 1])
    assert runs.made == []


def test_models_that_a_config_gives_have_digests(tmp_path):
    for name in ("base", "one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    model = {"base": str(tmp_path / "base"), "experts": dict.fromkeys(TASKS, str(tmp_path / "one"))}
    config = config_of(tmp_path, model={**model, "others": {"more": str(tmp_path / "other")}})
    before = comparison._digests(config)
    assert {*before} == {"model.base", *(f"model.experts.{name}" for name in (*TASKS, "more"))}
    (tmp_path / "other" / "model.safetensors").write_text("changed")
    after = comparison._digests(config)
    assert {name for name in before if before[name] != after[name]} == {"model.experts.more"}
