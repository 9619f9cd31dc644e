"""The tasks of a run: their classes and files, and what experts are fine-tuned on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cycleqd_jax.config import SEGMENTATION, RunConfig, TaskConfig
from cycleqd_jax.files import locked, make_folder, replacing_folder
from cycleqd_jax.runs.inputs.images import FolderInput, training_start
from cycleqd_jax.runs.inputs.models import RECIPE
from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.tasks import RecordTask, TaskOptions, checked_options, make_task, miniature, task_class
from cycleqd_jax.tasks.base import refuse_overlap
from cycleqd_jax.tasks.download import local_file
from cycleqd_jax.tasks.records import Row, read_rows, split_evenly, validation_slice
from cycleqd_jax.tasks.segmentation import SegmentationFolder
from cycleqd_jax.types import InputError, Message, Split, with_place
from cycleqd_jax.version import __version__

__all__ = ["OpenTasks", "RunTask", "TaskInput", "TrainingData", "open_tasks", "resolve_tasks"]


@dataclasses.dataclass(frozen=True)
class TaskInput:
    """A task of a run before it is opened: what can be known without a sandbox.

    Attributes:
        config: the config of the task.
        kind: its class.
    """

    config: TaskConfig
    kind: type[RecordTask[Any]]

    @property
    def own_options(self) -> dict[str, Any]:
        """The options of the task's class."""
        defaults = miniature.OPTIONS[self.config.kind] if self.config.train is None else {}
        return {**defaults, **self.config.options}

    @property
    def uses_tools(self) -> bool:
        """Whether replies call tools."""
        return self.config.options.get("protocol") == "tools"

    @property
    def max_replies(self) -> int:
        """Most replies of one episode."""
        return self.kind.max_replies(**self.own_options)

    def size(self, split: Split) -> int:
        """Number of problems of a split that a model is scored on; reads the file.

        A file that is not on this machine is not downloaded where the config gives a size: that size is returned.

        Raises:
            InputError: the file is not there and the config gives no size, or it is malformed, or has too few problems.
        """
        config = self.config
        size = {"train": config.train_size, "validation": config.validation_size, "test": config.test_size}[split]
        if config.train is None:
            return miniature.SIZES[split] if size is None else size
        file = config.test if split == "test" and config.test is not None else config.train
        if size is not None and not os.path.exists(file):
            return size
        if config.test is None:
            count = len(split_evenly(self.kind.read(local_file(file)))[split == "test"])
        else:
            count = self.kind.count(file)
        if split == "test":
            self.check_test_size(count)
        else:
            held = self.validation_slice(count)
            validation = held.stop - held.start
            count = validation if split == "validation" else count - validation
        return count if size is None else min(size, count)

    def check_test_size(self, count: int) -> None:
        """Checks that the test file or half has as many problems as the config asks for.

        Raises:
            InputError: there are too few of them.
        """
        config = self.config
        if config.train is None or config.test_size is None or config.test_size <= count:
            return
        where = f"the test half of {config.train}" if config.test is None else config.test
        raise InputError(
            f"expected at least {config.test_size} test problems for test_size {config.test_size}, got {count} in {where} of "
            f"task {config.name!r}; decrease it, or set test_size: null, which takes all"
        )

    def validation_slice(self, count: int) -> slice:
        """Which of ``count`` problems of the train file or half are the validation problems.

        Raises:
            InputError: there are too few problems.
        """
        config = self.config
        half = "the train half of " if config.test is None else ""
        return validation_slice(
            count, config.train_size, config.validation_size, f"{half}{config.train} of task {config.name!r}"
        )


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What the expert of a task is fine-tuned on: conversations, or images with masks.

    Attributes:
        identity: JSON that changes whenever they do.
        load: generates conversations, or replays gold solutions. Images are read when they are used.
    """

    identity: Any
    load: Callable[[], Sequence[Any]]


RunTask = RecordTask[Any] | SegmentationFolder
"""A task of a run. All of a run are of one of the two."""


@dataclasses.dataclass(frozen=True)
class OpenTasks:
    """The tasks of a run, ready to be evaluated; closing them releases what they hold, a database server for example.

    Attributes:
        tasks: the tasks, in the order of the config.
        training_data: the training data of every task, by name.
    """

    tasks: tuple[RunTask, ...]
    training_data: dict[str, TrainingData]
    _stack: contextlib.ExitStack

    def close(self) -> None:
        """Closes the tasks of the run and the tasks of the training data. It is safe to call this twice."""
        self._stack.close()


def resolve_tasks(config: RunConfig) -> tuple[TaskInput | FolderInput, ...]:
    """Finds the class of every task; reads no data.

    Raises:
        InputError: a kind or an option is unknown, an option has the wrong type, or a task without a train file has no
            miniature problems, or none with its protocol.
    """
    inputs: list[TaskInput | FolderInput] = []
    for task in config.tasks:
        if task.kind == SEGMENTATION:
            folder = FolderInput(task)
            folder.check()
            inputs.append(folder)
            continue
        try:
            kind = task_class(task.kind)
        except InputError as error:
            raise InputError(with_place(error, f"task {task.name!r}")) from error
        if task.train is None and task.kind not in miniature.TASKS:
            raise InputError(
                f"expected a train file for task {task.name!r}, got none, and there are no miniature problems of its kind "
                f"{task.kind}; set tasks.{task.name}.train"
            )
        given = TaskInput(task, kind)
        checked_options(task.kind, task.name, given.own_options)
        if task.train is None and given.uses_tools:
            raise InputError(
                f"expected a train file for task {task.name!r} with protocol: tools, got none, and the conversations that "
                f"teach the miniature problems are in protocol: text; set tasks.{task.name}.train or remove the option"
            )
        inputs.append(given)
    return tuple(inputs)


def open_tasks(
    config: RunConfig,
    inputs: Sequence[TaskInput | FolderInput],
    sandbox: Sandbox | None,
    workers: int,
    log: Callable[[str], None],
) -> OpenTasks:
    """Reads and checks the records, or the images, of all tasks; miniature problems are generated into the cache.

    Args:
        config: the config of the run.
        inputs: its tasks.
        sandbox: executes the replies; None for tasks of images.
        workers: threads that replay gold solutions.
        log: called with single lines.

    Raises:
        InputError: data is missing or malformed, options do not suit a task, or there are too few problems for its sizes.
    """
    folders = [given for given in inputs if isinstance(given, FolderInput)]
    if folders:
        opened = [given.open() for given in folders]
        found = {given.config.name: _images(given, folder) for given, folder in zip(folders, opened, strict=True)}
        return OpenTasks(tuple(opened), found, contextlib.ExitStack())
    assert sandbox is not None
    records = [given for given in inputs if isinstance(given, TaskInput)]
    with contextlib.ExitStack() as stack:
        opener = _Opener(config, sandbox, workers, log, stack)
        tasks = [opener.open(given, opener.files(given)) for given in records]
        for given, task in zip(records, tasks, strict=True):
            given.check_test_size(len(task.rows["test"]))
            if given.config.test is not None and given.config.validation_size != 0:
                task.shuffle()  # files may be sorted by kind
            task.hold_out(opener.validation(given, task))
        data = {given.config.name: opener.training_data(given, task) for given, task in zip(records, tasks, strict=True)}
        return OpenTasks(tuple(tasks), data, stack.pop_all())


def _images(given: FolderInput, folder: SegmentationFolder) -> TrainingData:
    """The images that the expert of a task is fine-tuned on."""
    identity = {"kind": SEGMENTATION, "size": given.config.finetune_size, "images": folder.fingerprint("train")}
    start = training_start(given.config, len(folder.pairs["train"]), "images")
    return TrainingData(identity | ({"start": start} if start else {}), lambda: given.training_items(folder))


class _Files(NamedTuple):
    """Files with the problems of a task, as :class:`TaskOptions` names them."""

    train: str | Path | None = None
    test: str | Path | None = None
    data: str | Path | None = None


@dataclasses.dataclass(frozen=True)
class _Opener:
    config: RunConfig
    sandbox: Sandbox
    workers: int
    log: Callable[[str], None]
    stack: contextlib.ExitStack

    def open(self, given: TaskInput, files: _Files) -> RecordTask[Any]:
        options = TaskOptions(
            sandbox=self.sandbox,
            name=given.config.name,
            max_new_tokens=given.config.max_new_tokens,
            cache=Path(self.config.cache) / "demonstrations",
            workers=self.workers,
            train=files.train,
            test=files.test,
            data=files.data,
        )
        task = make_task(given.config.kind, options, **given.own_options)
        self.stack.callback(task.close)
        return task

    def files(self, given: TaskInput) -> _Files:
        """Files with the problems of a task."""
        task = given.config
        if task.train is None:
            return self._miniature(task)
        return _Files(data=task.train) if task.test is None else _Files(train=task.train, test=task.test)

    def _miniature(self, task: TaskConfig) -> _Files:
        """Files of generated problems, written once: the same seed and sizes give the same problems."""
        folder = self._miniature_folder(task)
        return _Files(train=folder / "train.jsonl", test=folder / "test.jsonl")

    def validation(self, given: TaskInput, task: RecordTask[Any]) -> Sequence[Row]:
        """The validation problems of a task, in the order of the train problems."""
        if given.config.train is not None:
            return task.pool[given.validation_slice(len(task.pool))]
        file = self._miniature_folder(given.config) / "validation.jsonl"
        return read_rows(file) if given.config.validation_size != 0 else []

    def _miniature_folder(self, task: TaskConfig) -> Path:
        """The folder with the files of generated problems."""
        sizes = {"train": task.train_size, "validation": task.validation_size, "test": task.test_size}
        train, validation, test = (miniature.SIZES[split] if size is None else size for split, size in sizes.items())
        name = f"{__version__}-{RECIPE}-seed{self.config.seed}-{train}-{validation}-{test}"
        cache = Path(self.config.cache)
        folder = cache / "miniature" / name / task.kind
        make_folder(cache / "locks")
        with locked(cache / "locks" / f"miniature-{name}-{task.kind}", wait=True):
            if not folder.exists():
                with replacing_folder(folder) as new:  # it is named after the kind, as is the folder that is written
                    miniature.write(new.parent, self.config.seed, train, test, [task.kind], validation=validation)
        return folder

    def training_data(self, given: TaskInput, task: RecordTask[Any]) -> TrainingData:
        """What the expert of a task is fine-tuned on; a file that the config names is read, and checked, at once.

        No validation or test problem is among them.
        """
        config = given.config
        if config.train is None and config.finetune is None:
            size = config.finetune_size or miniature.SIZES["finetune"]
            identity = {"miniature": config.kind, "seed": self.config.seed, "size": size}
            return TrainingData(identity, lambda: miniature.demonstrations(config.kind, self.config.seed, size))
        if config.finetune is None:
            source, start = task, training_start(config, len(task.rows["train"]), "problems")
        else:
            test = self.files(given).test or config.train  # to check that no test problem is trained on
            source, start = self.open(given, _Files(train=config.finetune, test=test)), 0
            refuse_overlap(config.name, source.rows["train"], task.rows["validation"], "fine-tuning and validation")

        def load() -> list[list[Message]]:
            self.log(f"replaying the gold solutions of {config.name}")
            found = source.demonstrations("train", start)
            if not found:
                raise InputError(
                    f"expected gold solutions that score in the sandbox in {config.finetune or config.train}, got none; check "
                    f"them with `cycleqd verify-task {config.kind}`"
                )
            return found[: config.finetune_size]

        # The keys decide about the names of cached models: they stay as they are.
        identity = {"kind": config.kind, "size": config.finetune_size, "lessons": source.fingerprint("train")}
        return TrainingData(identity | ({"start": start} if start else {}), load)
