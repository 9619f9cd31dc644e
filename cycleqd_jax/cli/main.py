"""The ``cycleqd`` command: dispatch, exit codes and error messages."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from cycleqd_jax.cli.huge_pages import restart_with_huge_pages
from cycleqd_jax.cli.parser import RESUMABLE, make_parser
from cycleqd_jax.cli.signals import STOPPED, Stopped, stopped_by_sigterm
from cycleqd_jax.cli.supervise import is_supervised, supervise

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        The exit code.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it warns that PyTorch is missing
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # overrides that follow an option
        args.overrides += rest
    command = sys.argv[1:] if argv is None else list(argv)
    if getattr(args, "distributed", False) and not is_supervised():
        return supervise(command, wait=args.wait, where=args.coordinator or "the address that JAX has found")
    if argv is None and args.command in (*RESUMABLE, "generate", "segment", "serve"):  # they compute
        restart_with_huge_pages()
    if args.command not in RESUMABLE:
        return _run(args, command)
    code = STOPPED
    with stopped_by_sigterm() as stop:
        code = _run(args, command)
    if stop.received and code != 0:
        print("\ncycleqd: stopped by SIGTERM; run the same command to continue.", file=sys.stderr)
        code = STOPPED
    if getattr(args, "distributed", False):
        from cycleqd_jax.cli.distributed import finish

        return finish(code)
    return code


def _run(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Runs the command of the arguments; returns the exit code, and prints errors that are of the user or the machine."""
    from cycleqd_jax.sandbox import InfraError
    from cycleqd_jax.types import FailuresError, InputError

    try:
        _check_working_directory()
        code = _dispatch(args, command)
        sys.stdout.flush()
        return code
    except Stopped:
        return STOPPED
    except InputError as error:
        print(f"cycleqd: {error}", file=sys.stderr)
        return 2
    except InfraError as error:
        again = "\nFinished scores are kept; run the same command to continue." if args.command in RESUMABLE else ""
        print(f"cycleqd: {error}{again}", file=sys.stderr)
        return 3
    except FailuresError as error:
        print(f"cycleqd: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        advice = "; run the same command to continue" if args.command in RESUMABLE else ""
        print(f"\ncycleqd: interrupted{advice}.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        from cycleqd_jax.disk_errors import discard_output

        discard_output()
        return 1
    except Exception as error:
        from cycleqd_jax.disk_errors import disk_error, print_disk_error

        if isinstance(error, RuntimeError) and str(error).startswith("Unable to initialize backend"):
            what = " ".join(str(error).split())
            print(f"cycleqd: expected devices that JAX can use, got {what}; correct JAX_PLATFORMS", file=sys.stderr)
            return 2
        refused = disk_error(error)
        if refused is None:
            raise
        resumable = args.command in RESUMABLE
        again = " and run the same command to continue" if resumable else ", then run the same command again"
        print_disk_error("cycleqd", refused, again)
        return 3 if resumable else 2


def _check_working_directory() -> None:
    from cycleqd_jax.types import InputError

    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise InputError("expected a working directory, got one that was deleted; change to another one") from error


def _dispatch(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Runs the command ``args.command``, importing what it needs; returns the exit code."""
    if args.command == "doctor":
        from cycleqd_jax.cli.doctor import doctor

        doctor()
    elif args.command == "generate":
        from cycleqd_jax.cli.generate import generate

        generate(args.model, sys.stdin.read() if args.prompt == "-" else args.prompt, args.max_new_tokens)
    elif args.command == "serve":
        from cycleqd_jax.cli.serve import serve_models

        serve_models(args)
    elif args.command == "segment":
        from cycleqd_jax.cli.segment import segment

        segment(args.model, args.image, args.output, box=args.box, truth=args.truth, picture=args.picture)
    elif args.command == "inspect":
        from cycleqd_jax.cli.inspect import inspect_model

        inspect_model(args.model, args.base, args.json)
    elif args.command == "plan":
        from cycleqd_jax.cli.plan import plan_run

        plan_run(
            args.config,
            args.overrides,
            devices=args.devices,
            device=args.device,
            mesh=args.mesh,
            model_config=args.model_config,
            prompt=args.prompt_tokens,
            reply=args.reply_tokens,
            compiles=args.compile,
            as_json=args.json,
        )
    elif args.command == "fetch":
        from cycleqd_jax.cli.fetch import fetch_model

        fetch_model(args.name, args.folder, source=args.source, dtype=args.dtype)
    elif args.command == "merge":
        from cycleqd_jax.cli.merge import merge

        merge(args.config, args.folder, args.seed)
    elif args.command == "sandbox":
        from cycleqd_jax.cli.sandbox import build

        build(args.into, args.suite, args.mirror)
    elif args.command == "verify-task":
        from cycleqd_jax.cli.verify import verify_task

        return verify_task(
            args.task,
            args.data,
            args.overrides,
            split=args.split,
            backend=args.backend,
            isolation=args.sandbox,
            workers=args.workers,
            stub=args.stub,
            quiet=args.json,
        )
    elif args.command == "compare":
        from cycleqd_jax.cli.compare import run_comparison

        run_comparison(args)
    elif args.command == "extend":
        from cycleqd_jax.cli.extend import extend_run

        extend_run(args, command)
    elif args.command == "report":
        from cycleqd_jax.cli.report import write_reports

        write_reports(args.folder)
    elif args.command == "status":
        from cycleqd_jax.cli.folders import show_status

        show_status(args.folder, as_json=args.json, watch=args.watch)
    elif args.command == "verify":
        from cycleqd_jax.cli.folders import verify

        return verify(args.folder, digest=args.digest)
    elif args.command == "lineage":
        from cycleqd_jax.cli.folders import show_lineage

        show_lineage(args.folder, args.child, as_json=args.json, svg=args.svg)
    elif getattr(args, "distributed", False):
        from cycleqd_jax.cli.distributed import run_distributed

        return run_distributed(args, command)
    else:
        from cycleqd_jax.cli.stages import run_stage

        run_stage(args, command)
    return 0
