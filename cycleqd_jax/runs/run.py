"""The stages of a run, each of which leaves its result in the run folder or the cache and is skipped where that lies."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cycleqd_jax
from cycleqd_jax import evaluation, genome, report, search
from cycleqd_jax.algorithms import CycleQD, CycleQDState, EliteSelector, UniformSelector, aggregate
from cycleqd_jax.config import RunConfig, TaskConfig
from cycleqd_jax.engine import ChatGenerator
from cycleqd_jax.files import digest, locked, make_folder, write_json, write_text
from cycleqd_jax.models import llama
from cycleqd_jax.models import tokenizer as chat
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import load_tokenizer
from cycleqd_jax.runs.basis import Stored, experts_of, stored_bases
from cycleqd_jax.runs.card import model_card
from cycleqd_jax.runs.devices import Group, device_groups
from cycleqd_jax.runs.folder import check_folder, check_inputs, claim_folder, folder_digest
from cycleqd_jax.runs.models import RECIPE, Lessons, Models
from cycleqd_jax.runs.sandbox import open_sandbox
from cycleqd_jax.tasks import RecordTask, miniature, task_class
from cycleqd_jax.types import SPLITS, Adapter, Genome, InputError, Params, Progress, Split

__all__ = ["Run"]

BRIEF = {
    "mbpp": {"prompt": "brief", "shown": "first"},
    "dbbench": {"prompt": "brief"},
    "os_interaction": {"prompt": "brief"},
}  # how miniature problems are put: as in miniature's own lessons
PAPER_W_MAX = 0.3
MINIATURE_SIZES = {"train": 32, "test": 64, "finetune": 2000}


class Run:
    """One run: its config, and what its stages share. A context manager that closes the sandbox.

    Attributes:
        config: the config.
        folder: the run folder.
        models: base and experts.
        sandbox: where replies are executed.
        tasks: the tasks, in order.
        groups: of devices; children are spread over them, all else is done in the first.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        progress: Progress,
        say: Callable[[str], None] = print,
        writes: bool = True,
        command: Sequence[str] = ("run", "config.yaml"),
    ) -> None:
        """Checks everything that can be checked before anything expensive is done.

        Args:
            config: of the run.
            progress: shown while long stages run.
            say: for single lines.
            writes: this process works in the run folder, alone.
            command: arguments of ``cycleqd``, for the model card.

        Raises:
            InputError: for anything wrong with config, data, models or run folder.
            InfraError: when no sandbox holds.
        """
        self.config = config
        self.folder = config.folder
        self._progress = progress
        self._say = say
        self._command = command
        self._classes = {task.name: _class_of(task) for task in config.tasks}
        with contextlib.ExitStack() as stack:
            if writes:
                check_folder(config)
            self.groups = device_groups(config, say)
            make_folder(Path(config.cache))
            self.sandbox = open_sandbox(config.sandbox)
            stack.callback(self.sandbox.close)
            self.tasks = [self._task(task) for task in config.tasks]
            for task in self.tasks:
                stack.callback(task.close)
            lessons = {task.name: self._lessons(task) for task in config.tasks}
            place = None if self.groups[0].mesh.size == 1 else self.groups[0].weights
            self.models = Models(config, lessons, progress, say, place)
            if config.model.experts is not None:
                _ = self.models.experts  # weights that are no numbers are found before anything is written
            if writes:
                make_folder(self.folder)
                stack.enter_context(locked(self.folder / ".lock", wait=False))
            self._stack = stack.pop_all()
        self._say(f"sandbox: {self.sandbox.isolation.name} ({self.sandbox.isolation.description})")
        self._say(f"sandbox: {self.sandbox.boxes}")

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def workers(self) -> int:
        """Sandboxes at work at the same time."""
        return self.config.sandbox.workers or os.cpu_count() or 1

    # Tasks

    def _miniature(self, task: TaskConfig) -> dict[str, Path]:
        """Files of generated problems; written once, the same for the same seed and sizes."""
        sizes = {"train": task.train_size or MINIATURE_SIZES["train"], "test": task.test_size or MINIATURE_SIZES["test"]}
        name = f"{cycleqd_jax.__version__}-{RECIPE}-seed{self.config.seed}-{sizes['train']}-{sizes['test']}"
        folder = Path(self.config.cache) / "miniature" / name / task.kind
        wanted = {split: folder / f"{split}.jsonl" for split in SPLITS}
        if not folder.exists():
            temporary = folder.with_name(f".{task.kind}.{os.getpid()}")
            miniature.write(temporary, self.config.seed, sizes["train"], sizes["test"], [task.kind])
            with contextlib.suppress(OSError):  # another run may have been faster: its files are the same
                (temporary / task.kind).rename(folder)
            shutil.rmtree(temporary)
        return wanted  # type: ignore[return-value]

    def _files(self, task: TaskConfig) -> dict[str, Any]:
        """Where the problems of a task lie."""
        if task.train is None:
            if task.kind not in miniature.TASKS:
                raise InputError(f"task {task.name!r} needs a train file: there are no miniature problems of its kind.")
            return dict(self._miniature(task))
        return {"data": task.train} if task.test is None else {"train": task.train, "test": task.test}

    def _task(self, task: TaskConfig, **files: Any) -> RecordTask[Any]:
        options = {**(BRIEF[task.kind] if task.train is None else {}), **task.options}
        try:
            return self._classes[task.name](
                **(files or self._files(task)),
                **options,
                name=task.name,
                sandbox=self.sandbox,
                max_new_tokens=task.max_new_tokens,
                cache=Path(self.config.cache) / "demonstrations",
                workers=self.workers,
            )
        except TypeError as error:
            raise InputError(f"task {task.name!r}: the options {options} do not suit its kind ({error}).") from error

    def _lessons(self, task: TaskConfig) -> Lessons:
        """What the expert of a task is fine-tuned on; a file that is named is read, and checked, at once."""
        if task.train is None and task.finetune is None:
            size = task.finetune_size or MINIATURE_SIZES["finetune"]
            identity = {"miniature": task.kind, "seed": self.config.seed, "size": size}
            return Lessons(identity, lambda: miniature.lessons(task.kind, self.config.seed, size))
        source = self.tasks[self.config.task_names.index(task.name)]
        if task.finetune is not None:
            files = self._files(task)  # none of whose test problems may be learned
            source = self._task(task, train=task.finetune, test=files.get("test", task.train))

        def load() -> list[Any]:
            self._say(f"replaying gold solutions of {task.name}")
            found = source.demonstrations("train")
            if not found:
                raise InputError(f"none of the gold solutions in {task.finetune or task.train} scores in the sandbox.")
            return found[: task.finetune_size]

        return Lessons({"kind": task.kind, "size": task.finetune_size, "lessons": source.fingerprint("train")}, load)

    def evaluator_of(self, config: llama.LlamaConfig, tokenizer: chat.ChatTokenizer, group: Group) -> evaluation.Evaluator:
        """An evaluator for models of one architecture and tokenizer.

        Args:
            config: of the models.
            tokenizer: of the models.
            group: the devices where it works.
        """
        engine = group.engine(config, tokenizer, self.config.engine)

        def load(params: Params, *, donate: bool) -> None:
            engine.load(group.place(params, config), donate=donate)

        sizes: Any = {task.name: {"train": task.train_size, "test": task.test_size} for task in self.config.tasks}
        generator = ChatGenerator(engine, tokenizer)
        return evaluation.Evaluator(load, generator, self.tasks, unload=engine.unload, sizes=sizes, workers=self.workers)

    @functools.cached_property
    def evaluator(self) -> evaluation.Evaluator:
        """Plays all tasks with the models of this run, in the first group of devices."""
        return self.evaluator_of(self.models.config, self.models.tokenizer, self.groups[0])

    def _worker(self, group: Group) -> evaluation.Worker:
        """What judges children in a group of devices; what it takes is put there when the first of them comes."""

        def make() -> evaluation.Worker:
            space, evaluator = self.space, self.evaluator
            if group is not self.groups[0]:
                space = group.place_space(self._space, self.models.config)
                evaluator = self.evaluator_of(self.models.config, self.models.tokenizer, group)
            together = self.config.engine.population
            if together > 1 and isinstance(space, genome.ExpertSpace):
                return evaluation.PopulationWorker(group.express(space.express_mixed), evaluator, together)
            return evaluation.SerialWorker(group.express(space.express), evaluator)

        return evaluation.LazyWorker(self.config.engine.population, make)

    # Search

    @functools.cached_property
    def _space(self) -> genome.ExpertSpace | genome.DenseSpace:
        """The genome space of the config, with the weights where they were loaded and bases that are the host's."""
        base, experts = self.models.base, self.models.experts
        options = self.config.genome
        strength = PAPER_W_MAX if options.strength is None else options.strength
        if options.space == "dense":
            return genome.DenseSpace.from_experts(
                base, experts, mutation=options.mutation, strength=strength, rank=options.rank, method=options.method
            )
        w_max = 0.0 if options.mutation == "none" else strength
        space = genome.ExpertSpace.from_experts(
            base,
            experts,
            rank=options.rank,
            w_max=w_max,
            densify=options.densify,
            method=options.method,
            bases=self.basis.bases,
            factor_dtype=options.factor_dtype,
        )
        self.basis.bases.clear()  # the space has its own
        return space

    @functools.cached_property
    def space(self) -> genome.ExpertSpace | genome.DenseSpace:
        """The genome space of the config, in the first group of devices."""
        space = self.groups[0].place_space(self._space, self.models.config)
        if len(self.groups) == 1:
            del self._space  # nobody else takes it from the host
        return space

    def express(self, individual: Genome) -> Params:
        """The weights of a genome, in the first group of devices."""
        self.evaluator.unload()
        return self.groups[0].express(self.space.express)(individual)

    @functools.cached_property
    def basis(self) -> Stored:
        """The experts' singular directions; decomposed where the cache does not have them."""
        experts = experts_of(self.config, self.models)
        return stored_bases(experts, Path(self.config.cache), self._progress, self._say)

    def write_basis(self) -> dict[str, Any]:
        """Writes ``tables/basis.json``: what is known of the basis; says so when it is not the one the run began with."""
        facts = {"experts": list(self.config.task_names), "store": str(self.basis.folder), **self.basis.facts}
        file = self.folder / "tables" / "basis.json"
        before = json.loads(file.read_text("utf-8")) if file.exists() else facts
        if before["digest"] == facts["digest"] and before["checksum"] != facts["checksum"]:
            self._say("the basis was made anew since this run began, and its last bits differ: it may not continue bit for bit")
        write_json(file, facts)
        return facts

    def build_basis(self) -> dict[str, Any]:
        """The stage alone: what is known of the basis."""
        _ = self.basis
        claim_folder(self.config)
        return self.write_basis()

    @functools.cached_property
    def searcher(self) -> CycleQD:
        """CycleQD as configured."""
        options = self.config.search
        elite = EliteSelector(options.alpha_low, options.alpha_high, options.elite_span)
        bounds = options.bounds
        return CycleQD(
            space=self.space,
            bins=options.bins,
            mu=options.mu,
            sigma=options.sigma,
            selector=elite if options.selection == "elite" else UniformSelector(),
            bounds=None if bounds is None else tuple((bounds[t][0], bounds[t][1]) for t in self.config.task_names),
        )

    @functools.cached_property
    def final_state(self) -> CycleQDState:
        """State after the last generation; evolves to there from wherever the run folder stands."""
        _ = self.evaluator  # and with it the models: nothing is written before they are there
        names = self.config.task_names
        checkpoints = search.Checkpoints(
            self.folder / "checkpoints", every=self.config.checkpoint.every, keep=self.config.checkpoint.keep
        )
        experts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(self.space.expert, range(len(names))))
        self._check_population(experts)
        claim_folder(self.config)
        inputs: dict[str, Any] = {name: folder_digest(folder) for name, folder in self.models.folders.items()}
        for task in self.tasks:
            inputs |= {
                f"{task.name}/{split}": digest([row.fingerprint for row in task.rows[split]], digits=16) for split in SPLITS
            }
        check_inputs(self.folder, inputs, self._say)
        if self.config.genome.space == "expert":
            self.write_basis()
        with contextlib.closing(checkpoints):
            return search.evolve(
                self.searcher,
                experts,
                evaluation.WorkerPool([self._worker(group) for group in self.groups]),
                tasks=names,
                key=jax.random.key(self.config.seed),
                generations=self.config.search.generations,
                batch_size=self.config.search.batch_size,
                journal=search.Journal(self.folder / "history.jsonl"),
                checkpoints=checkpoints,
                on_start=self._write_grid,
                progress=self._progress,
            )

    def _check_population(self, genomes: Genome) -> None:
        """Refuses individuals over one base where experts do not share one."""
        if self.config.engine.population == 1:
            return
        for name, expert in zip(self.config.task_names, self.models.experts, strict=True):
            if not isinstance(expert, Adapter):
                raise InputError(
                    f"engine.population is {self.config.engine.population}, but the expert of task {name!r} is no LoRA "
                    "adapter: individuals over one base need experts that all are. Set it to 1."
                )
        assert isinstance(self.space, genome.ExpertSpace)
        jax.eval_shape(self.space.express_mixed, genomes)

    def _write_grid(self, state: CycleQDState) -> None:
        names = self.config.task_names
        edges = {name: row.tolist() for name, row in zip(names, np.asarray(state.archives.edges), strict=True)}
        bounds = {name: [row[0], row[-1]] for name, row in edges.items()}
        grid = {"tasks": list(names), "bins": state.archives.bins, "bounds": bounds, "edges": edges}
        write_json(self.folder / "grid.json", grid)

    def evolve(self) -> None:
        """Evolves the archives."""
        _ = self.final_state

    @functools.cached_property
    def merged(self) -> dict[str, Any]:
        """The aggregated model: its ``genome``, the ``elites`` it is made of, their weights ``beta``, and ``mixing``."""
        aggregated, beta, ids = aggregate(self.final_state.archives)
        return {"genome": aggregated, "elites": ids.tolist(), "beta": beta.tolist(), "mixing": _mixing(aggregated)}

    @functools.cached_property
    def best_elite(self) -> dict[str, Any]:
        """The elite of best average on the train half, whichever archive it is in: its ``id``, ``genome`` and ``mixing``."""
        elite, _, identity = self.final_state.archives.best_on_average()
        return {"id": int(identity), "genome": elite, "mixing": _mixing(elite)}

    # Results

    def contestants(self) -> dict[str, tuple[Callable[[], Params], bool]]:
        """The rows of the results table: what makes the weights, and whether they are made for nobody else."""
        models, names = self.models, self.config.task_names
        found: dict[str, tuple[Callable[[], Params], bool]] = {"base": (lambda: models.base, False)}
        for name in names:
            found[f"expert/{name}"] = functools.partial(models.expert_params, name), False
        for name, folder in models.rivals.items():
            if folder.exists():
                found[name] = functools.partial(models.load_rival, name), True
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *map(self.space.expert, range(len(names))))
        found["uniform_merge"] = functools.partial(self.express, mean), True
        found["cycleqd_best_elite"] = functools.partial(self.express, self.best_elite["genome"]), True
        found["cycleqd"] = functools.partial(self.express, self.merged["genome"]), True
        return found

    def evaluate(self) -> dict[str, Any]:
        """Scores every row on both halves; writes ``tables/results.json`` and ``transcripts/``."""
        contestants = self.contestants()
        methods: dict[str, dict[str, Any]] = {}
        for done, (name, (make, own)) in enumerate(contestants.items()):
            self._progress("measure", done, len(contestants), {})
            methods[name] = {split: self._score(name, make, own, split) for split in SPLITS}
        self._progress("measure", len(contestants), len(contestants), {})
        results = {
            "methods": methods,
            "tasks": list(self.config.task_names),
            "seed": self.config.seed,
            "aggregate": {key: self.merged[key] for key in ("elites", "beta", "mixing")},
            "best_elite": self.best_elite["id"],
            "isolation": self.sandbox.isolation.name,
        }
        write_json(self.folder / "tables" / "results.json", results)
        return results

    def _score(self, method: str, make: Callable[[], Params], own: bool, split: Split) -> dict[str, float | None]:
        self.evaluator.unload()  # made anew for every half, so that there need never be room for two
        evaluation = self.evaluator(make(), split, donate=own)
        if evaluation.scores is None:
            self._say(f"{method} can't be evaluated: {evaluation.error}")
            return dict.fromkeys((*self.config.task_names, "average"))
        lines = [
            {
                "task": task,
                "split": split,
                "method": method,
                "index": index,
                "score": outcome.score.value,
                "reason": outcome.score.reason,
                "messages": outcome.messages,
                "dropped": outcome.dropped,
            }
            for task, outcomes in evaluation.outcomes.items()
            for index, outcome in enumerate(outcomes)
        ]
        path = self.folder / "transcripts" / f"{method.replace('/', '-')}-{split}.jsonl"
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        return {**evaluation.scores, "average": float(np.mean(list(evaluation.scores.values())))}

    def evaluate_folder(self, folder: str | Path) -> Iterator[tuple[Split, str]]:
        """Scores any model on both halves; yields how it did, as text."""
        group = self.groups[0]
        config, params = hf.load(folder, shardings=None if group.mesh.size == 1 else group.weights)
        evaluator = self.evaluator_of(config, load_tokenizer(folder), group)
        for split in SPLITS:
            evaluation = evaluator(params, split)
            scores = evaluation.scores
            yield (
                split,
                str(evaluation.error) if scores is None else ", ".join(f"{name} {value:.3f}" for name, value in scores.items()),
            )

    def results(self) -> dict[str, Any]:
        """The results table; evaluated where it is not there yet."""
        path = self.folder / "tables" / "results.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else self.evaluate()

    def export(self, *, best_elite: bool = False) -> Path:
        """Writes the aggregated model as a Hugging Face folder, ``model/``; or the best elite, ``best_elite/``."""
        chosen = self.best_elite if best_elite else self.merged
        card = model_card(self.config, self.models.folders, chosen, self.results(), self._command)
        target = self.folder / ("best_elite" if best_elite else "model")
        params = self.express(chosen["genome"])
        hf.save(target, self.models.config, params, tokenizer=self.models.tokenizer, card=card)
        return target

    def report(self) -> list[Path]:
        """Draws figures, tables and the page from the run folder."""
        return report.write_report(self.folder)


def _mixing(individual: Genome) -> list[float] | None:
    return individual.mixing.tolist() if isinstance(individual, genome.ExpertGenome) else None


def _class_of(task: TaskConfig) -> type[RecordTask[Any]]:
    try:
        return task_class(task.kind)
    except InputError as error:
        raise InputError(f"task {task.name!r}: {error}") from error
