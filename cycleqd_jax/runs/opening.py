"""What every process of a run opens: the tasks, the sandbox and the models of a config."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from cycleqd_jax.compilation import persistent_compilation
from cycleqd_jax.config import RunConfig
from cycleqd_jax.files import make_folder
from cycleqd_jax.operators import single_threaded_lapack
from cycleqd_jax.runs.context import Context, workers
from cycleqd_jax.runs.devices.groups import device_groups
from cycleqd_jax.runs.devices.mirror import Mirror
from cycleqd_jax.runs.inputs.examples import Examples
from cycleqd_jax.runs.inputs.models import Models, model_folders
from cycleqd_jax.runs.inputs.resolve import budget_of, check_resources, input_digests, resolve
from cycleqd_jax.runs.inputs.sandbox import open_sandbox
from cycleqd_jax.runs.inputs.tasks import open_tasks
from cycleqd_jax.sandbox import Sandbox
from cycleqd_jax.types import Progress

__all__ = ["Opened", "open_context"]


class Opened(NamedTuple):
    """What a process has opened.

    Attributes:
        sandbox: executes the replies of models; None for models that segment images.
        context: what the stages share.
    """

    sandbox: Sandbox | None
    context: Context


def open_context(
    config: RunConfig,
    stack: contextlib.ExitStack,
    *,
    progress: Progress,
    log: Callable[[str], None],
    check: Callable[[Mapping[str, str]], None],
    shared: Path | None = None,
    read_only: bool = False,
    related: Collection[str] = (),
    mirror: Mirror | None = None,
) -> Opened:
    """Checks everything that can be checked before expensive work; writes nothing into the run folder.

    Given models are loaded here, so that weights that are not finite are found before anything is written.

    Args:
        config: the config of the run.
        stack: closes what is opened.
        progress: called by long stages.
        log: called with single lines.
        check: called with the digests of the inputs before weights are read; raises where they are others than expected.
        shared: see :class:`~cycleqd_jax.runs.context.Context`.
        read_only: see :class:`~cycleqd_jax.runs.context.Context`.
        related: see :class:`~cycleqd_jax.runs.inputs.models.Models`.
        mirror: the mirror of a distributed run. The processes that follow load the models when process 0 does.

    Raises:
        InputError: config, data or models can't be used.
        InfraError: no isolation works on this machine.
    """
    inputs = resolve(config)
    groups = device_groups(config, log, mirror)
    make_folder(config.cache)
    stack.enter_context(single_threaded_lapack())
    stack.enter_context(persistent_compilation(Path(config.cache)))
    sandbox = None
    if not config.segments:
        sandbox = open_sandbox(config.sandbox)
        stack.callback(sandbox.close)
    opened = open_tasks(config, inputs.tasks, sandbox, workers(config), log)
    stack.callback(opened.close)
    budget_of(config, opened.tasks)  # too small a budget is refused before anything is trained
    data = opened.training_data
    check_resources(inputs, log)
    folders = model_folders(config, {name: of_task.identity for name, of_task in data.items()})
    check(input_digests(folders, opened.tasks))
    models = Models(config, folders, log, None if groups[0].single else groups[0].weight_shardings, related, mirror)
    if config.model.base is not None:
        models.check_tokenizer()  # before weights are read
    if config.model.experts is not None and (mirror is None or mirror.leads):
        models.ensure_loaded()
    return Opened(
        sandbox,
        Context(config, models, opened.tasks, Examples(models, data), groups, progress, log, shared, read_only, mirror),
    )
