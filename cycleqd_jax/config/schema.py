"""The configuration of a run: frozen dataclasses, read from YAML and changed by dotted ``key=value`` overrides.

Unknown keys, values of the wrong type and values out of range are errors that name the key. ``${NAME}`` in a text stands for
the environment variable of that name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import re
import types as builtin_types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from cycleqd_jax.types import InputError

__all__ = [
    "CheckpointConfig",
    "EngineConfig",
    "GenomeConfig",
    "MeshConfig",
    "ModelConfig",
    "RunConfig",
    "SandboxConfig",
    "SearchConfig",
    "TaskConfig",
    "TinyConfig",
    "TrainConfig",
    "load_config",
    "task_options",
    "to_dict",
    "to_yaml",
]


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    """The embedded default model: a Llama-3 architecture small enough to be trained in a minute.

    Attributes:
        vocab_size: most tokens of the tokenizer trained with it.
        hidden_size: width.
        intermediate_size: width of the MLP.
        num_layers: decoder layers.
        num_heads: attention heads.
        num_kv_heads: key/value heads.
        rope_theta: base of the rotary frequencies.
        initializer_range: standard deviation of the initial weights; 0.02, as is usual, learns too slowly at this size.
        problems: how many miniature problems the base is pretrained on.
        breadth: share of those that may use any phrase, not just the basic ones.
    """

    vocab_size: int = 768
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 2
    num_heads: int = 6
    num_kv_heads: int = 2
    rope_theta: float = 10000.0
    initializer_range: float = 0.08
    problems: int = 12000
    breadth: float = 0.05


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The base model and its experts.

    Attributes:
        base: the base model: a Hugging Face folder, a .gguf file, or a repository of the hub (``owner/name`` or
            ``owner/name@revision``); null trains the tiny one.
        experts: the expert of each task, by task name: likewise, or a folder or repository of a LoRA adapter (PEFT); left out,
            experts are fine-tuned from the base.
        tokenizer: the model whose tokenizer and chat template are used, where those of base and experts differ; null is the
            base's.
        vocab_size: rows that are kept of every embedding and head, where vocabularies were padded; null keeps all.
        tiny: the tiny base.
        dtype: of the weights while evaluating; null keeps that of the files.
    """

    base: str | None = None
    experts: dict[str, str] | None = None
    tokenizer: str | None = None
    vocab_size: int | None = None
    tiny: TinyConfig = dataclasses.field(default_factory=TinyConfig)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """One task.

    Attributes:
        name: in journals and tables; unique.
        kind: ``mbpp``, ``evalplus``, ``humaneval``, ``bigcodebench``, ``dbbench``, ``os_interaction``, or
            ``package.module:Class`` for a task of one's own.
        train: file of the problems the search sees, or its address: ``https://…/file.jsonl.gz#sha256=DIGEST``, or
            ``hf://datasets/owner/name@commit/file``; null takes generated miniature problems.
        test: file of the problems that are reported; null with ``train`` given splits that file evenly by a hash.
        train_size: problems of the train half the search is scored on; null takes all.
        test_size: problems of the test half; null takes all.
        finetune: file of the problems whose gold solutions the expert is fine-tuned on; null takes the train file, or generated
            miniature problems.
        finetune_size: how many of those; null takes all of a file, and 2000 miniature problems.
        max_new_tokens: most tokens per reply.
        options: further arguments of the task class, such as ``prompt: agentbench``.
    """

    name: str
    kind: str = ""
    train: str | None = None
    test: str | None = None
    train_size: int | None = 32
    test_size: int | None = 64
    finetune: str | None = None
    finetune_size: int | None = None
    max_new_tokens: int = 64
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Names the kind after the task where none is given."""
        object.__setattr__(self, "kind", self.kind or self.name)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run with AdamW and a cosine schedule.

    Attributes:
        steps: optimizer steps.
        batch_size: examples per step (paper: 64).
        learning_rate: peak (paper: 2e-5).
        final_ratio: the last learning rate, as a share of the peak (paper: 4e-6 / 2e-5 = 0.2).
        warmup: share of the steps over which the rate rises (paper: 0.1).
        weight_decay: decoupled.
        clip: largest global norm of a gradient.
        group_by_length: batch conversations of about the same length, where they differ: less is computed on padding.
    """

    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-3
    final_ratio: float = 0.2
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    group_by_length: bool = False


@dataclasses.dataclass(frozen=True)
class GenomeConfig:
    """What evolution works on.

    Attributes:
        space: ``expert`` (coefficients over the experts) or ``dense`` (task vectors).
        rank: singular directions that mutation acts on, per matrix; null is all.
        method: how matrices are decomposed, the experts' or the child's own (dense space):
            ``svd`` (exact), ``gram`` (several times as fast; the smallest directions are mixed) or ``randomized`` (the leading
            ``rank`` alone, by products); see ``operators.decompose``. Adapters have their factors.
        mutation: ``svd``, ``gaussian`` (dense only) or ``none``. In the expert space the decomposition is that of the active
            expert (the reference code's), in the dense space the child's own.
        strength: w_max of SVD mutation (null: the paper's 0.3), or σ of Gaussian mutation, in the units of the weights.
        densify: multiply an adapter's update out where another expert changes the whole matrix (expert space; it is refused
            otherwise).
        factor_dtype: of the singular directions of dense experts; null takes bfloat16 where the weights are, float32 elsewhere
            (expert space; see ``ExpertSpace.from_experts``).
    """

    space: Literal["expert", "dense"] = "expert"
    rank: int | None = None
    method: Literal["svd", "gram", "randomized"] = "svd"
    mutation: Literal["svd", "gaussian", "none"] = "svd"
    strength: float | None = None
    densify: bool = False
    factor_dtype: Literal["float32", "bfloat16"] | None = None


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """CycleQD (the paper's defaults, but for the number of generations).

    Attributes:
        generations: T.
        batch_size: children per generation (paper: 1).
        selection: of parents: ``elite`` or ``uniform``.
        alpha_low: α_low of elite sampling.
        alpha_high: α_high of elite sampling.
        elite_span: ``paper`` [α_low, α_high], or ``reference`` [α_low, α_low + α_high].
        mu: μ of the crossover weights.
        sigma: σ of the crossover weights.
        bins: bins per archive axis.
        bounds: fixed ends of the archive axes, ``{task: [low, high]}``; null takes 0.85 × and 1.15 × the experts' extremes.
    """

    generations: int = 60
    batch_size: int = 4
    selection: Literal["elite", "uniform"] = "elite"
    alpha_low: float = 0.5
    alpha_high: float = 0.8
    elite_span: Literal["paper", "reference"] = "paper"
    mu: float = 1.0
    sigma: float = 0.03
    bins: int = 15
    bounds: dict[str, list[float]] | None = None


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Greedy decoding.

    Attributes:
        slots: prompts decoded together.
        max_len: most tokens of prompt and reply.
        population: individuals decoded together over the one base that they share; more than one where all experts are LoRA
            adapters.
        overflow: a prompt that leaves no room for its reply is refused and scores 0 (``refuse``; where it is the first of its
            problem, which would score 0 whatever the model, the run ends instead); or it loses its beginning until the whole
            reply has room, or half of ``max_len`` where that is less (``truncate``; transcripts say how many tokens).
    """

    slots: int = 32
    max_len: int = 256
    population: int = 1
    overflow: Literal["refuse", "truncate"] = "refuse"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged; −1, for one of the axes, is all that the others leave.

    Attributes:
        population: groups of devices; each has the experts, and evaluates children of its own.
        fsdp: devices of a group that share the slices of every weight.
        tensor: devices of a group that share the heads and hidden units of every layer.
    """

    population: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Of all axes, as they are written."""
        return self.population, self.fsdp, self.tensor


@dataclasses.dataclass(frozen=True)
class SandboxConfig:
    """Where the replies are executed.

    Attributes:
        isolation: ``auto`` takes the strongest there is; ``none``, by name only, runs without isolation.
        rootfs: folder of the root file system that boxes show (``cycleqd sandbox build-rootfs``); null shows this machine's
            programs and settings.
        backend: ``bwrap`` makes boxes in this sandbox, ``docker`` makes them with a Docker engine. Programs and databases run
            in this sandbox in either case.
        image: of Docker's containers.
        workers: executions at once; null is the number of cores.
        wall_s: wall-clock limit of one execution, seconds.
        cpu_s: CPU limit of one execution, seconds.
        memory_mb: memory limit, MiB.
        disk_mb: limit on files written, MiB.
    """

    isolation: Literal["auto", "bwrap", "userns", "none"] = "auto"
    rootfs: str | None = None
    backend: Literal["bwrap", "docker"] = "bwrap"
    image: str = "local-os/default"
    workers: int | None = None
    wall_s: float = 5.0
    cpu_s: float = 5.0
    memory_mb: int = 512
    disk_mb: int = 64


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Orbax checkpoints.

    Attributes:
        every: generations between two.
        keep: how many are kept.
    """

    every: int = 10
    keep: int = 2


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
        name: of the run.
        output: the run folder; null is ``runs/<name>``.
        cache: where trained models, bases and demonstrations are kept for other runs.
        seed: of everything random.
        tasks: what is scored; expert k belongs to task k.
        model: base and experts.
        pretrain: training of the tiny base.
        finetune: training of each expert.
        baselines: rivals to train and to measure beside CycleQD: ``finetune_all`` (one model on the data of all tasks, as many
            steps as an expert) and ``finetune_all_longer`` (as many as all experts together).
        genome: what evolution works on.
        search: CycleQD.
        engine: decoding.
        mesh: devices; one by default.
        sandbox: execution.
        checkpoint: checkpoints.
    """

    name: str
    tasks: tuple[TaskConfig, ...]
    output: str | None = None
    cache: str = "runs/cache"
    seed: int = 0
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    pretrain: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    finetune: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    baselines: tuple[Literal["finetune_all", "finetune_all_longer"], ...] = ()
    genome: GenomeConfig = dataclasses.field(default_factory=GenomeConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    sandbox: SandboxConfig = dataclasses.field(default_factory=SandboxConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output or f"runs/{self.name}")

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(task.name for task in self.tasks)


MAX_CELLS = 1_000_000  # per archive, as in qd.archive
MIN_VOCABULARY = 261  # 256 bytes and five special tokens

POSITIVE = {
    "steps", "generations", "bins", "slots", "max_len", "every", "keep", "vocab_size", "hidden_size", "intermediate_size",
    "num_layers", "num_heads", "num_kv_heads", "problems", "max_new_tokens", "train_size", "test_size", "finetune_size", "rank",
    "workers", "wall_s", "cpu_s", "memory_mb", "disk_mb", "learning_rate", "clip", "batch_size", "rope_theta",
    "initializer_range",
}  # fmt: skip
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
NOT_NEGATIVE = {"seed", "sigma", "strength", "weight_decay", "alpha_low", "alpha_high", "warmup", "final_ratio", "breadth"}


def _build(kind: Any, value: Any, key: str) -> Any:
    """``value`` as plain YAML made into ``kind``, or an InputError that names ``key``."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, key)
    if origin in (builtin_types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _build(next(a for a in args if a is not type(None)), value, key)
    if origin is Literal:
        if value not in args:
            raise InputError(f"{key} must be one of {', '.join(map(str, args))}, but is {value!r}.")
        return value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise InputError(f"{key} must be a list, but is {value!r}.")
        return tuple(_build(args[0], item, f"{key}.{i}") for i, item in enumerate(value))
    if origin is list:
        if not isinstance(value, list):
            raise InputError(f"{key} must be a list, but is {value!r}.")
        return [_build(args[0], item, f"{key}.{i}") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{key} must be a mapping, but is {value!r}.")
        return {str(k): _build(args[1], v, f"{key}.{k}") for k, v in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as a string
            value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{key} must be of type {kind.__name__}, but is {value!r}.")
    if kind is float and not math.isfinite(typing.cast(float, value)):
        raise InputError(f"{key} must be finite, but is {value!r}.")
    last, number = key.rsplit(".", 1)[-1], typing.cast(float, value)
    if kind in (int, float) and ((last in POSITIVE and not number > 0) or (last in NOT_NEGATIVE and not number >= 0)):
        raise InputError(f"{key} must be {'positive' if last in POSITIVE else 'zero or positive'}, but is {value!r}.")
    return value


def _build_dataclass(kind: Any, value: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{key or 'the config'} must be a mapping, but is {value!r}.")
    hints = typing.get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known keys: {', '.join(hints)}."
            raise InputError(f"unknown key {prefix}{name} in the config; {hint}")
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in value:
            raise InputError(f"the config lacks the key {prefix}{field.name}.")
    return kind(**{name: _build(hints[name], item, f"{prefix}{name}") for name, item in value.items()})


def _override(tree: Any, assignment: str) -> None:
    """Sets ``a.b.0.c=value`` in a tree of dicts and lists; the value is YAML."""
    dotted, equals, text = assignment.partition("=")
    if not equals or not dotted:
        raise InputError(f"an override must read key=value, but is {assignment!r}.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"the value of the override {assignment!r} is not YAML.") from error
    *parents, last = dotted.split(".")
    for depth, name in enumerate([*parents, last]):
        here = ".".join(dotted.split(".")[: depth + 1])
        if isinstance(tree, list):
            if not name.isdigit() or int(name) >= len(tree):
                found = [i for i, item in enumerate(tree) if isinstance(item, dict) and item.get("name") == name]
                if not found:
                    raise InputError(f"the override {assignment!r} names {here}, but the list has {len(tree)} items.")
                name = str(found[0])
            place: Any = int(name)
        elif not isinstance(tree, dict):
            raise InputError(f"the override {assignment!r} reaches into {here}, which is not a mapping.")
        else:
            place = name
        if depth == len(parents):
            tree[place] = value
            return
        if isinstance(tree, dict) and tree.get(place) is None:
            tree[place] = {}
        tree = tree[place]


def _filled(value: Any, key: str) -> Any:
    """``value`` with each ``${NAME}`` in its texts replaced by the environment variable."""
    if isinstance(value, Mapping):
        return {name: _filled(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, f"{key}.{i}") for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            raise InputError(
                f"{key} is {value!r}, but the environment variable {match[1]} is not set: set it, or override {key}."
            )
        return found

    return _VARIABLE.sub(fill, value)


def _check(config: RunConfig) -> None:
    names = config.task_names
    if len(names) < 2:
        raise InputError(f"tasks must list at least two tasks, but lists {len(names)}.")
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise InputError(f"task names must be unique, but {duplicates[0]!r} is used {names.count(duplicates[0])} times.")
    for name in (config.name, *names):
        if not name or name != Path(name).name or name.startswith("."):
            raise InputError(f"names of runs and tasks must be plain file names, but one is {name!r}.")
    if "average" in names:
        raise InputError("no task may be named 'average': that is the last column of every table.")
    if config.seed >= 2**32:
        raise InputError(f"seed must be below 2**32, but is {config.seed}.")
    for name, train in (("pretrain", config.pretrain), ("finetune", config.finetune)):
        if train.warmup >= 1 or train.final_ratio > 1:
            raise InputError(f"{name}.warmup must be below 1 and {name}.final_ratio at most 1: they are shares.")
    tiny = config.model.tiny
    if tiny.breadth > 1:
        raise InputError(f"model.tiny.breadth must be at most 1, but is {tiny.breadth}: it is a share.")
    if tiny.vocab_size < MIN_VOCABULARY:
        raise InputError(f"model.tiny.vocab_size must be at least {MIN_VOCABULARY}, but is {tiny.vocab_size}.")
    for task in config.tasks:
        if task.max_new_tokens >= config.engine.max_len:
            raise InputError(
                f"engine.max_len ({config.engine.max_len}) must exceed max_new_tokens of task {task.name!r} "
                f"({task.max_new_tokens}): it holds prompt and reply."
            )
    if len(set(config.baselines)) < len(config.baselines):
        raise InputError("baselines names one of them twice.")
    experts = config.model.experts
    if experts is not None and config.baselines:
        raise InputError(f"{config.baselines[0]} is fine-tuned beside the experts: it can't be made when experts are given.")
    if experts is not None:
        missing = [name for name in names if name not in experts]
        unknown = [name for name in experts if name not in names]
        if missing:
            raise InputError(f"model.experts must name an expert for every task, but lacks {missing[0]!r}.")
        if unknown:
            raise InputError(f"model.experts names {unknown[0]!r}, which is not a task; the tasks are {', '.join(names)}.")
        if config.model.base is None:
            raise InputError("model.experts is given, but model.base is not: name the folder of the base they were tuned from.")
    _check_devices(config)
    if config.genome.mutation == "gaussian" and config.genome.space != "dense":
        raise InputError("genome.mutation: gaussian leaves the span of the experts' factors: it needs genome.space: dense.")
    if config.genome.mutation == "gaussian" and config.genome.strength is None:
        raise InputError("genome.mutation: gaussian needs genome.strength, its σ in the units of the weights (0.001, say).")
    if config.genome.method == "randomized" and config.genome.rank is None:
        raise InputError("genome.method: randomized finds the leading directions alone: it needs genome.rank (256, say).")
    if config.search.bounds is not None:
        for name in names:
            if len(config.search.bounds.get(name, ())) != 2:
                raise InputError(f"search.bounds must give [low, high] for every task, but does not for {name!r}.")
            low, high = config.search.bounds[name]
            if not low < high:
                raise InputError(f"search.bounds.{name} must be [low, high] with low < high, but is [{low}, {high}].")
        unknown = [name for name in config.search.bounds if name not in names]
        if unknown:
            raise InputError(f"search.bounds names {unknown[0]!r}, which is not a task; the tasks are {', '.join(names)}.")
    if config.search.alpha_low > config.search.alpha_high and config.search.elite_span == "paper":
        raise InputError(
            f"search.alpha_low ({config.search.alpha_low}) must not be above search.alpha_high ({config.search.alpha_high})."
        )
    cells = config.search.bins ** (len(names) - 1)
    if cells > MAX_CELLS:
        raise InputError(f"search.bins: {config.search.bins} makes {cells} cells per archive: the most is {MAX_CELLS}.")
    for task in config.tasks:
        if task.test is not None and task.train is None:
            raise InputError(f"task {task.name!r} has a test file but no train file.")
    if tiny.num_heads % tiny.num_kv_heads or tiny.hidden_size % (2 * tiny.num_heads):
        raise InputError(
            f"model.tiny: num_heads ({tiny.num_heads}) must be a multiple of num_kv_heads ({tiny.num_kv_heads}), and "
            f"hidden_size ({tiny.hidden_size}) of twice num_heads."
        )


def _check_devices(config: RunConfig) -> None:
    sizes, together = config.mesh.sizes, config.engine.population
    if min(sizes) < -1 or 0 in sizes or sizes.count(-1) > 1:
        raise InputError(f"mesh must have positive sizes, one of them -1 (all the devices left) at most, but has {sizes}.")
    apart = sizes[1:] == (1, 1)
    if config.genome.space == "dense" and not apart:
        raise InputError("genome.space: dense works on groups of one device: mesh.fsdp and mesh.tensor must be 1.")
    if together < 1:
        raise InputError(f"engine.population must be positive, but is {together}.")
    if together > max(config.search.batch_size, 1):
        raise InputError(
            f"engine.population ({together}) must not be above search.batch_size ({config.search.batch_size}): individuals of "
            "one generation are decoded together."
        )
    if together > 1 and (config.genome.space != "expert" or not apart):
        raise InputError(
            f"engine.population is {together}: individuals over one base need genome.space: expert, and groups of one device "
            "(mesh.fsdp and mesh.tensor 1)."
        )
    if together > 1 and config.model.experts is None:
        raise InputError(f"engine.population is {together}: individuals over one base need experts that are LoRA adapters.")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML, in which a key given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise InputError(f"the config has the key {key!r} twice (line {node.value[i][0].start_mark.line + 1}).")
        return super().construct_mapping(node, deep)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML config and applies overrides.

    Args:
        path: of the YAML file.
        overrides: ``dotted.key=value`` strings; values are YAML; lists are addressed by index or by an item's ``name``
            (``tasks.mbpp.train_size=8``).

    Raises:
        InputError: naming the file, the key, or the environment variable that is not set.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text("utf-8"), _UniqueKeyLoader)
    except OSError as error:
        raise InputError(f"the config {path} can't be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        raise InputError(f"the config {path} is not YAML{f' (line {where.line + 1})' if where else ''}.") from error
    if not isinstance(tree, dict):
        raise InputError(f"the config {path} must be a mapping of keys, but is {type(tree).__name__}.")
    tree.pop("versions", None)  # a run folder's resolved config may be run again
    for assignment in overrides:
        _override(tree, assignment)
    config = _build(RunConfig, _filled(tree, ""), "")
    _check(config)
    return config


def to_dict(config: Any) -> Any:
    """A config as plain YAML types, every default written out."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {key: to_dict(item) for key, item in config.items()}
    return config


def task_options(overrides: Sequence[str]) -> tuple[dict[str, Any], SandboxConfig]:
    """Options of a task without a config, and the sandbox it is played in.

    Args:
        overrides: ``key=value`` for the task's options, ``sandbox.key=value`` for the sandbox.

    Raises:
        InputError: naming the key.
    """
    tree: dict[str, Any] = {"sandbox": {}}
    for assignment in overrides:
        _override(tree, assignment)
    return tree, _build(SandboxConfig, tree.pop("sandbox"), "sandbox")


def to_yaml(config: RunConfig) -> str:
    """A config as YAML that :func:`load_config` reads back equal."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
