"""A run: each stage stores its result in the run folder or the cache, and is skipped if the result exists."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cycleqd_jax import report
from cycleqd_jax.config import ModelConfig, RunConfig, Suite, load_suite
from cycleqd_jax.evaluation import Evaluation
from cycleqd_jax.files import locked, make_folder
from cycleqd_jax.models.files import hf
from cycleqd_jax.report.folder import RunFolder
from cycleqd_jax.report.read import load_results
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.devices.mirror import Mirror
from cycleqd_jax.runs.evolution import Evolution, Merged
from cycleqd_jax.runs.export.card import model_card
from cycleqd_jax.runs.export.model_folders import record_export
from cycleqd_jax.runs.extension.origin import compare_origin, open_origin
from cycleqd_jax.runs.faults import forget_slots
from cycleqd_jax.runs.folder.run_folder import check_folder, claim_folder, compare_inputs
from cycleqd_jax.runs.inputs.resolve import problems_digest
from cycleqd_jax.runs.logs.loggers import check_loggers
from cycleqd_jax.runs.opening import open_context
from cycleqd_jax.runs.results.measurement import lacks_rows, measure
from cycleqd_jax.runs.results.pictures import draw_pictures
from cycleqd_jax.runs.results.suite import measure_suite
from cycleqd_jax.runs.training.trainer import Trainer
from cycleqd_jax.runs.workers.follow import agree_on_inputs
from cycleqd_jax.runs.workers.remote import RemoteWorkers, connect, end_workers
from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.types import REPORTED, InputError, Progress, Split

__all__ = ["Run"]


@dataclasses.dataclass(eq=False)
class _Opened:
    """What an open run holds; closing ``stack`` releases it."""

    sandbox: Sandbox | None
    context: Context
    trainer: Trainer
    evolution: Evolution
    stack: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    @property
    def isolation(self) -> str | None:
        """The isolation of the sandbox; None where nothing is executed."""
        return None if self.sandbox is None else self.sandbox.isolation.name


class Run:
    """One run, as a context manager: entering it checks its inputs and opens its sandbox, leaving it closes them.

    Stages need an open run. They may be called repeatedly and in any order: a stage computes only missing results. They are
    those of the command line::

        with cq.Run(cq.load_config("configs/quickstart.yaml")) as run:
            run.train()
            run.evolve()
            run.evaluate()
            run.export()
            run.report()

    Attributes:
        config: the config of the run.
        folder: the run folder.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        progress: Progress | None = None,
        log: Callable[[str], None] | None = None,
        read_only: bool = False,
        command: Sequence[str] = (),
        shared: Path | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        """Does no work.

        Args:
            config: the config of the run.
            progress: called by long stages; by default a progress bar, in notebooks a widget.
            log: called with single lines; by default they are printed above the progress bar.
            read_only: do not lock the run folder, and write nothing into it. Such a run has only :meth:`results` of a finished
                run and :meth:`evaluate_model`.
            command: arguments of ``cycleqd``, for the model card.
            shared: the folder of a finished run whose config differs in ``search``, ``genome``, ``export``, ``output`` and
                ``seed`` only. The experts' scores are taken over from it, and so are the rows of the results table that no
                search found. Rows that depend on the seed are taken over from a run of the same seed only. Transcripts stay
                there. Another seed is refused where models or problems depend on it.
            mirror: the mirror of a distributed run, in process 0; for the others see
                :func:`~cycleqd_jax.runs.workers.follow.follow`.
        """
        self.config = config
        self.folder = config.folder
        self._progress = progress
        self._log = log
        self._read_only = read_only
        self._command = command
        self._shared = shared
        self._mirror = mirror
        self._opened: _Opened | None = None

    def __enter__(self) -> Run:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def open(self) -> None:
        """Checks everything that can be checked before expensive work, and locks the run folder. ``with Run(...)`` calls it.

        A run that is open stays as it is; one that was closed is opened again.

        Raises:
            InputError: config, data, models or run folder can't be used.
            InfraError: no isolation works on this machine.
        """
        if self._opened is None:
            with contextlib.ExitStack() as stack:
                opened = self._open(stack)
                opened.stack = stack.pop_all()
            self._opened = opened

    def close(self) -> None:
        """Releases the run folder and the sandbox; safe to call twice."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.stack.close()

    def _open(self, stack: contextlib.ExitStack) -> _Opened:
        config, claimed = self.config, False
        check_loggers(config)
        if not self._read_only:
            check_folder(config)
            claimed = self.folder.exists()
            if claimed:
                self._lock(stack)
        progress, log = self._output(stack)
        cluster = None
        if config.ray.address is not None and not self._read_only and not self._has_searched():
            cluster = connect(config)  # before anything is loaded
            stack.callback(cluster.close)
        origin = open_origin(config, self.folder)  # a run that can't be extended is refused before its models are read

        def check(digests: Mapping[str, str]) -> None:
            if self._mirror is not None:
                agree_on_inputs(self._mirror.processes, digests)
            if self._read_only:
                return
            for folder in (self.folder, *([] if self._shared is None else [self._shared])):
                compare_inputs(folder, digests)
            if origin is not None:
                compare_origin(origin, digests)

        opened = open_context(
            config,
            stack,
            progress=progress,
            log=log,
            check=check,
            shared=self._shared,
            read_only=self._read_only,
            related=() if origin is None else origin.new_experts,
            mirror=self._mirror,
        )
        if not self._read_only and not claimed:
            make_folder(self.folder)
            self._lock(stack)
        if opened.sandbox is not None:
            log(f"sandbox: {opened.sandbox.isolation.name} ({opened.sandbox.isolation.description})")
            log(f"sandbox: {opened.sandbox.boxes}")
        context, remote = opened.context, None
        if cluster is not None:
            remote = stack.enter_context(contextlib.closing(RemoteWorkers(context, cluster)))
        trainer = Trainer(config, context.models, context.examples, progress, log)
        return _Opened(opened.sandbox, context, trainer, Evolution(context, remote))

    def _has_searched(self) -> bool:
        """Whether search and selection are over: the rest is computed in this process, and needs no cluster."""
        if not (self.folder / "tables" / "results.json").exists():
            return False
        return RunFolder(self.folder).config["search"]["generations"] >= self.config.search.generations

    def _lock(self, stack: contextlib.ExitStack) -> None:
        stack.enter_context(locked(self.folder / ".lock", wait=False))
        forget_slots(self.folder)
        end_workers(self.folder)

    def _output(self, stack: contextlib.ExitStack) -> tuple[Progress, Callable[[str], None]]:
        if self._progress is not None and self._log is not None:
            return self._progress, self._log
        bar = stack.enter_context(report.ProgressBar())
        return self._progress or bar, self._log or bar.log

    def _ensure_open(self, stage: str, *, writes: bool = True) -> _Opened:
        """What the open run holds.

        Args:
            stage: the method that needs it.
            writes: whether the stage writes into the run folder.

        Raises:
            InputError: the run is not open; or it is read-only, and the stage writes.
        """
        if self._opened is None:
            raise InputError(f"expected an open run, got one that is not open in Run.{stage}; use `with Run(...) as run:`")
        if writes and self._read_only:
            raise InputError(f"expected a run that may write, got read_only=True in Run.{stage}; leave read_only out")
        return self._opened

    def check_problems(self, other: Path) -> None:
        """Checks that another run has scored models on the test problems of this run, of all tasks that read files.

        Args:
            other: the folder of a run with scores.

        Raises:
            InputError: a file has changed since; or the run is not open.
        """
        context = self._ensure_open("check_problems", writes=False).context
        for task, options in zip(context.tasks, self.config.tasks, strict=True):
            if options.train is not None:
                compare_inputs(other, problems_digest(task))

    # Stages

    # Each raises an InputError where the run is not open, or is read-only and would be written.

    def train(self) -> None:
        """Trains what is neither given nor cached: the tiny base, the prepared base, the experts and the baselines."""
        opened = self._ensure_open("train")
        if not (self.folder / "history.jsonl").exists():
            claim_folder(self.config)  # so that the folder is known to be a run while its models are trained
        opened.trainer.train()

    @property
    def model_folders(self) -> Mapping[str, Path]:
        """The folders of ``base``, of ``prepared_base`` where there is one, and of ``expert/<name>``, trained or not."""
        return self._ensure_open("model_folders", writes=False).context.models.folders.search

    def train_expert(self, task: str) -> Path:
        """Trains the expert of one task where it is not cached, and returns its folder; writes into the cache only.

        Raises:
            InputError: the base is not there, or no gold solution of the task scores in the sandbox.
        """
        return self._ensure_open("train_expert", writes=False).trainer.train_expert(task)

    def build_basis(self) -> dict[str, Any]:
        """Decomposes the experts' task vectors; returns the content of ``tables/basis.json``."""
        return self._ensure_open("build_basis").evolution.placement.build_basis()

    def evolve(self) -> None:
        """Runs the search to the last generation or the end of its budget, continuing from the state in the run folder."""
        self._ensure_open("evolve").evolution.ensure_evolved()

    def evaluate_individual(self, identity: int, split: Split = "test") -> Evaluation:
        """Scores an individual of the search on the problems of a split; writes no score into the run folder.

        Args:
            identity: its id in the journal.
            split: the problems.

        Raises:
            InputError: the journal does not have it, or its genome can't be rebuilt here.
        """
        return self._ensure_open("evaluate_individual", writes=False).evolution.evaluate_individual(identity, split)

    def aggregate(self) -> Mapping[str, Any]:
        """The merge of CycleQD's elites (equation 5): ids of the ``elites``, their weights ``beta``, and ``mixing``."""
        return self._ensure_open("aggregate").evolution.aggregate().facts

    def evaluate(self) -> dict[str, Any]:
        """Scores every row of the results table on train and test problems; writes and returns ``tables/results.json``.

        The final model is chosen on validation problems before; that is stored in ``tables/selection.json``.
        """
        opened = self._ensure_open("evaluate")
        return measure(opened.context, opened.evolution, opened.isolation)

    def evaluate_suite(self, suite: str | Path | Suite) -> report.SuiteTable:
        """Scores every row of the results table on tasks that are not its own; writes ``tables/suite-NAME.json``.

        Args:
            suite: a YAML file (:func:`~cycleqd_jax.config.load_suite`), or what it holds.

        Returns:
            The table. The file has what :func:`~cycleqd_jax.runs.results.suite.measure_suite` returns.

        Raises:
            InputError: a key of the suite is wrong, or a task can't be opened.
        """
        found = suite if isinstance(suite, Suite) else load_suite(suite)
        opened = self._ensure_open("evaluate_suite")
        measure_suite(opened.context, opened.evolution, opened.sandbox, found)
        return report.write_suite(self.folder, found.name)

    def results(self) -> dict[str, Any]:
        """The results table: read from the run folder, with the rows that the config names and the table lacks measured.

        Rows that the config does not name any more stay in the table; :meth:`evaluate` leaves them out.

        Raises:
            InputError: the table is damaged.
        """
        opened = self._ensure_open("results", writes=False)
        found = load_results(self.folder)
        if found is None:
            return self.evaluate()
        if self._read_only or not lacks_rows(opened.context, found):
            return found
        return measure(opened.context, opened.evolution, opened.isolation, keep=True)

    def export(self, *, best_elite: bool = False) -> Path:
        """Writes a Hugging Face folder with a model card that has the results.

        Args:
            best_elite: the individual with the highest average on the train problems, into ``best_elite/``, instead of the
                model of ``export.method``, into ``model/``.

        Returns:
            The folder.
        """
        opened = self._ensure_open("export")
        target = self.folder / ("best_elite" if best_elite else "model")
        hf.check_target(target)  # before anything is evolved
        evolution, models = opened.evolution, opened.context.models
        chosen: Merged = evolution.best_elite() if best_elite else evolution.final()
        self.results()
        table, evaluated = report.results_table(self.folder), len(report.open_run(self.folder).individuals)
        library = models.family.library(models.config)
        card = model_card(self.config, models.folders.search, chosen.facts, table, self._command, evaluated, library)
        params = evolution.placement.gathered(evolution.placement.express(chosen.genome))
        models.family.save(target, models.config, params, models.processor, card)
        record_export(self.folder, target, chosen.facts, evaluated)
        return target

    def report(self) -> list[Path]:
        """Draws figures, tables and the page from the run folder; returns the files written."""
        opened = self._ensure_open("report")
        if self.config.segments and load_results(self.folder) is not None:
            draw_pictures(opened.context, opened.evolution)
        return report.write_report(self.folder)

    def evaluate_model(self, model: str | Path) -> dict[Split, Evaluation]:
        """Scores any model on the tasks of this run; writes nothing into the run folder.

        Args:
            model: a Hugging Face folder, a ``.gguf`` file, or a repository of the hub.

        Returns:
            The evaluation on the train and on the test problems. Its ``error`` is set if the model's logits are not finite.

        Raises:
            InputError: the model can't be read, has no tokenizer with a chat template, or has fewer positions than
                ``engine.max_len``; or it is of another family than the run's models.
        """
        context = self._ensure_open("evaluate_model", writes=False).context
        family, group = context.family, context.groups[0]
        family.check_model(model, self.config)
        processor = family.processor(model)  # before gigabytes are read
        config, params = family.load(model, ModelConfig(), shardings=None if group.single else group.weight_shardings)
        measured = dataclasses.replace(context, read_only=True)  # slots that it halves are not those of the search
        evaluator = measured.evaluator(config, processor, group, lambda: params)
        return {split: evaluator(params, split) for split in REPORTED}
