"""The stages of a run as commands: ``cycleqd run``, ``finetune``, ``basis``, ``evolve`` and so on."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from cycleqd_jax import report
from cycleqd_jax.cli.basis import basis_text
from cycleqd_jax.cli.export import export_from_run, names_a_run
from cycleqd_jax.config import RayConfig, RunConfig, load_config, load_suite
from cycleqd_jax.runs import Run
from cycleqd_jax.runs.devices.mirror import Mirror
from cycleqd_jax.runs.families import family_of
from cycleqd_jax.types import InputError

__all__ = ["run_all", "run_stage"]


def run_stage(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs the stage ``args.command``.

    Args:
        args: the arguments of the command line.
        command: the arguments as they were given, for the model card.
    """
    if args.command == "export" and names_a_run(args):
        export_from_run(args, command)
    else:
        run_config(args, load_config(args.config, args.overrides), command)


def run_config(args: argparse.Namespace, config: RunConfig, command: Sequence[str], mirror: Mirror | None = None) -> None:
    """Runs the stage ``args.command`` with a config.

    Args:
        args: the arguments of the command line.
        config: the config of the run.
        command: the arguments as they were given, for the model card.
        mirror: the mirror of a distributed run, in process 0.
    """
    if args.command == "run":
        run_all(config, command, mirror)
        return
    stage, model = args.command, getattr(args, "model", None)
    file = getattr(args, "suite", None)
    if model is not None and file is not None:
        raise InputError("expected --model or --suite, got both; leave one out")
    suite = None if file is None else load_suite(file)
    if model is not None:  # before base, experts and sandbox are opened
        family_of(config).check_model(model, config)
        family_of(config).processor(model)
    if stage in ("finetune", "basis"):  # they need no workers
        config = dataclasses.replace(config, ray=RayConfig())
    with Run(config, read_only=model is not None, command=command, mirror=mirror) as run:
        if model is not None:
            for split, evaluation in run.evaluate_model(model).items():
                scores = ", ".join(f"{k} {v:.3f}" for k, v in (evaluation.scores or {}).items())
                print(f"{split}: {evaluation.error or scores}")
            return
        if stage == "finetune":
            run.train()
        if stage == "basis":
            facts = run.build_basis()
            print(json.dumps(facts, indent=2, allow_nan=False) if args.json else basis_text(facts, config.expert_names))
        if stage == "evolve":
            run.evolve()
        if stage == "aggregate":
            merged = run.aggregate()
            for name, identity, beta in zip(config.task_names, merged["elites"], merged["beta"], strict=True):
                print(f"{name}: individual {identity}, weight {beta:.3f}")
        if suite is not None:
            print(run.evaluate_suite(suite).text(color=sys.stdout.isatty()))
            return
        if stage == "evaluate":
            run.evaluate()
        if stage == "export":
            print(f"model: {run.export(best_elite=args.best_elite)}")
    if stage == "evaluate":
        print(report.results_table([config.folder]).text(color=sys.stdout.isatty()))


def run_all(config: RunConfig, command: Sequence[str], mirror: Mirror | None = None) -> None:
    """Runs all stages, from the training to the report.

    Args:
        config: the config of the run.
        command: the arguments as they were given, for the model card.
        mirror: the mirror of a distributed run, in process 0.
    """
    with Run(config, command=command, mirror=mirror) as run:
        run.train()
        run.evolve()
        run.results()
        print(f"model: {run.export()}")
        run.report()
    print(report.results_table([config.folder]).text(color=sys.stdout.isatty()))
    print(f"report: {config.folder / 'report.html'}")
