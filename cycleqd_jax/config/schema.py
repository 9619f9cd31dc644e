"""The keys of a config: frozen dataclasses with defaults, ranges and a description of every key.

The descriptions under "Attributes" are read by :func:`cycleqd_jax.config.describe`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from cycleqd_jax.config.devices import MeshConfig, RayConfig
from cycleqd_jax.config.fields import field
from cycleqd_jax.config.search import GenomeConfig, SearchConfig
from cycleqd_jax.config.training import GradientConfig, MaskConfig, PrepareConfig, TrainConfig

__all__ = [
    "SEGMENTATION",
    "CheckpointConfig",
    "EngineConfig",
    "ExportConfig",
    "ModelConfig",
    "RunConfig",
    "SandboxConfig",
    "TaskConfig",
    "TinyConfig",
]

SEGMENTATION = "segmentation"
"""The kind of the tasks of models that segment images."""

MIN_VOCABULARY = 261
"""The smallest tokenizer: 256 bytes and five special tokens."""


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    """The embedded base model: a Llama-3 architecture that trains in a minute on a CPU.

    Attributes:
        vocab_size: largest vocabulary of the tokenizer that is trained with the model.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        num_layers: number of decoder layers.
        num_heads: number of attention heads.
        num_kv_heads: number of key/value heads.
        rope_theta: base of the rotary frequencies.
        initializer_range: standard deviation of the initial weights. The usual 0.02 learns too slowly at this size.
        problems: number of miniature problems in the pretraining data.
        breadth: share of the pretraining problems that may use every phrase instead of the basic ones only.
    """

    vocab_size: int = field(768, minimum=MIN_VOCABULARY)
    hidden_size: int = field(192, minimum=1)
    intermediate_size: int = field(512, minimum=1)
    num_layers: int = field(2, minimum=1)
    num_heads: int = field(6, minimum=1)
    num_kv_heads: int = field(2, minimum=1)
    rope_theta: float = field(10000.0, above=0)
    initializer_range: float = field(0.08, above=0)
    problems: int = field(12000, minimum=1)
    breadth: float = field(0.05, minimum=0, maximum=1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The base model and its experts.

    Attributes:
        base: the base model: a Hugging Face folder, a ``.gguf`` file, or a repository on the hub (``owner/name`` or
            ``owner/name@revision``). Null trains the tiny model. Tasks of the kind ``segmentation`` need a folder of Segment
            Anything.
        experts: the expert of each task, by task name: a model as for ``base``, or the folder or repository of a LoRA adapter
            (PEFT). Null fine-tunes the experts from the base.
        others: further experts by name, as in ``experts``, that belong to no task. Their coefficients are part of every genome.
            ``cycleqd extend --remove`` keeps the experts of removed tasks here.
        prepare: joint fine-tuning of the base on the data of several tasks, before the experts branch off. Null fine-tunes the
            experts from the base as it is.
        tokenizer: the model that provides the tokenizer and chat template, for models whose templates differ. Null uses the
            base's.
        vocab_size: number of rows to keep of every embedding and output head, for padded vocabularies. Null keeps all.
        tiny: shape and pretraining data of the tiny model.
        dtype: dtype of the weights during evaluation. Null keeps the dtype of the files.
    """

    base: str | None = None
    experts: dict[str, str] | None = None
    others: dict[str, str] | None = None
    prepare: PrepareConfig | None = None
    tokenizer: str | None = None
    vocab_size: int | None = field(None, minimum=1)
    tiny: TinyConfig = dataclasses.field(default_factory=TinyConfig)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """One task.

    Attributes:
        name: name of the task in the journal and in tables, unique within a run.
        kind: ``mbpp``, ``evalplus``, ``humaneval``, ``bigcodebench``, ``dbbench``, ``os_interaction``, ``arc``, ``boolq``,
            ``commonsenseqa``, ``hellaswag``, ``mmlu``, ``gsm8k``, ``bbh``, ``segmentation``, or ``package.module:Class`` for a
            task of your own. Empty means the task's name.
        train: file with the problems that the search may use, or its URL (``https://…/file.jsonl.gz#sha256=DIGEST`` or
            ``hf://datasets/owner/name@commit/file``). Null generates miniature problems. Of ``segmentation``: the folder with
            all images and masks.
        test: file with the problems for the reported scores. Null splits the ``train`` file into two halves by a hash.
        train_size: number of train problems that every individual is scored on. Null uses all that validation leaves.
        validation_size: number of problems that the final model is chosen on: those of the train file or half after the
            ``train_size`` problems. Experts that the run fine-tunes do not see them. Null uses all after ``train_size``. 0 has
            none, which requires ``export.method: aggregate`` or ``best_elite``.
        test_size: number of test problems for the reported scores. Null uses all.
        finetune: file whose gold solutions the expert is fine-tuned on. Null uses the train problems, or generated miniature
            problems where there is no file.
        finetune_size: number of problems for fine-tuning, or of images. Null uses all of a file, or 2000 miniature problems.
        finetune_on_train: whether an expert is also fine-tuned on the ``train_size`` problems that the search scores, where
            ``finetune`` is null. If true, the search also rewards what experts remember of these problems. If false, it
            measures skill on problems that experts have not seen, but experts have fewer problems to learn from. Miniature
            problems for fine-tuning are always other ones.
        max_new_tokens: largest number of tokens of one reply.
        options: further arguments of the task class, such as ``prompt: agentbench``.
    """

    name: str
    kind: str = ""
    train: str | None = None
    test: str | None = None
    train_size: int | None = field(32, minimum=1)
    validation_size: int | None = field(32, minimum=0)
    test_size: int | None = field(64, minimum=1)
    finetune: str | None = None
    finetune_size: int | None = field(None, minimum=1)
    finetune_on_train: bool = True
    max_new_tokens: int = field(64, minimum=1)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Replaces an empty kind by the name."""
        object.__setattr__(self, "kind", self.kind or self.name)


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """The engine, which decodes greedily with continuous batching.

    Attributes:
        slots: number of conversations decoded together (vLLM's ``max_num_seqs``).
        max_len: largest number of tokens of prompt and reply together (vLLM's ``max_model_len``).
        population: number of individuals decoded together over one shared base. More than one requires that all experts are
            LoRA adapters.
        overflow: what happens to a prompt that leaves no room for its reply. ``refuse`` scores it 0; if it is the first prompt
            of a problem, which would score 0 with every model, the run stops with an error. ``truncate`` drops the beginning of
            the prompt until the whole reply fits, or half of ``max_len`` if that is less, and notes the number of dropped
            tokens in the transcript.
        drafts: speculative decoding. ``parents`` takes the replies of a child's parents, and of the expert of its active task,
            as drafts, and verifies several tokens at a time. This is faster where the replies agree. A child that is given by
            merging coefficients takes the replies of the individuals with the nearest coefficients instead. ``none`` decodes
            one token at a time. ``auto`` is ``parents`` on CPUs and GPUs, and ``none`` elsewhere. The replies are the same,
            except where two tokens are equally likely.
        kv_cache_dtype: dtype of the keys and values of the engine (vLLM's ``kv_cache_dtype``). ``auto`` is the dtype in which
            the model computes. CPUs have two more: ``bfloat16``, and ``int8`` with a scale for every token and head. They need
            about a half and a quarter of the memory that float32 needs, and change some replies.
    """

    slots: int = field(32, minimum=1)
    max_len: int = field(256, minimum=1)
    population: int = field(1, minimum=1)
    overflow: Literal["refuse", "truncate"] = "refuse"
    drafts: Literal["none", "parents", "auto"] = "none"
    kv_cache_dtype: Literal["auto", "bfloat16", "int8"] = "auto"

    def uses_drafts(self, platform: str) -> bool:
        """Whether drafts are verified on a platform, as in ``jax.Device.platform``."""
        return self.drafts == "parents" or (self.drafts == "auto" and platform in ("cpu", "gpu", "cuda"))


@dataclasses.dataclass(frozen=True)
class SandboxConfig:
    """Isolation and limits of the code that models write.

    Attributes:
        isolation: ``auto`` uses the strongest isolation available. ``none`` runs without isolation and is never chosen
            automatically.
        rootfs: folder with the root file system that episodes of the OS task see (``cycleqd sandbox build-rootfs``). Null shows
            them the programs and settings of this machine.
        backend: what isolates the episodes of the OS task: ``bwrap`` (this sandbox) or ``docker`` (a Docker engine). Programs
            and SQLite databases of other tasks always run in this sandbox.
        image: image of the Docker containers.
        workers: number of executions at the same time. Null is the number of cores that the process may use.
        wall_s: wall-clock limit of one execution in seconds.
        cpu_s: CPU time limit of each process in seconds.
        memory_mb: memory limit of one execution in MiB.
        disk_mb: limit of the files that one execution writes, in MiB.
    """

    isolation: Literal["auto", "bwrap", "userns", "none"] = "auto"
    rootfs: str | None = None
    backend: Literal["bwrap", "docker"] = "bwrap"
    image: str = "local-os/default"
    workers: int | None = field(None, minimum=1)
    wall_s: float = field(5.0, above=0)
    cpu_s: float = field(5.0, above=0)
    memory_mb: int = field(512, minimum=1)
    disk_mb: int = field(64, minimum=1)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Orbax checkpoints.

    Attributes:
        every: number of generations between two checkpoints.
        keep: number of checkpoints to keep.
        training_minutes: minutes between two checkpoints while a model is trained. They are in the cache until the model is
            saved. One more is written after SIGTERM and Ctrl-C.
    """

    every: int = field(10, minimum=1)
    keep: int = field(2, minimum=1)
    training_minutes: float = field(10.0, above=0.0)


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """The model that a run ends with.

    Attributes:
        method: the model that is exported: ``aggregate`` (the merge of the archives' elites, equation 5 of the paper; of
            CycleQD only), ``best_elite`` (the individual with the highest average on the train problems), ``soup`` (the average
            of individuals that validation accepts one by one) or ``selected`` (the best of all these on the validation
            problems).
        elites: number of individuals with the highest averages on the train problems that are evaluated on the validation
            problems: of the elites of all archives (``cycleqd``, ``qd``), the members of the population (``dns``), or all
            individuals (``random``, ``cmaes``, ``nsga2``).
    """

    method: Literal["selected", "aggregate", "best_elite", "soup"] = "selected"
    elites: int = field(8, minimum=1)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
        name: name of the run.
        tasks: the tasks to score, each with an expert.
        output: the run folder. Null is ``runs/<name>``.
        origin: the folder of the finished run that this run extends; ``cycleqd extend`` sets this key. The search begins with
            the individuals of that run. Null begins with the experts alone.
        cache: folder of the trained models, decompositions, demonstrations and compiled programs that runs share.
        seed: seed of all random numbers.
        model: base and experts.
        pretrain: training of the tiny base.
        finetune: training of each expert and each baseline.
        masks: fine-tuning and evaluation of models that segment images. Null uses the defaults. Language models must leave it
            null.
        baselines: models to train and measure for comparison: ``finetune_all`` (one model on the data of all tasks, with as
            many steps as one expert) and ``finetune_all_longer`` (with as many steps as all experts together).
        merges: merges of the experts to measure for comparison, beside the uniform one: ``task_arithmetic``, ``ties``,
            ``dare``, ``dare_ties``, and ``slerp`` for two experts; with the defaults of ``cycleqd_jax.operators``.
        gradient: a merge of the experts to measure for comparison: coefficients by gradient descent on the data of all tasks.
            Null has none.
        loggers: other logs of the search than the journal: ``tensorboard`` (scalars in the folder ``tensorboard``), ``wandb``
            (Weights & Biases, offline unless ``WANDB_MODE`` says otherwise) and ``mlflow`` (local unless
            ``MLFLOW_TRACKING_URI`` names a server).
        genome: genome space and mutation.
        search: the CycleQD algorithm.
        export: how the final model is chosen.
        engine: greedy decoding of the models.
        mesh: arrangement of the devices.
        ray: evaluation of individuals on the workers of a Ray cluster.
        sandbox: execution of model-written code.
        checkpoint: checkpoints of the search.

    >>> from cycleqd_jax.config import RunConfig, TaskConfig, check_config
    >>> config = RunConfig("demo", (TaskConfig("mbpp"), TaskConfig("dbbench", train_size=8)))
    >>> check_config(config)
    >>> config.task_names, config.search.bins, str(config.folder)
    (('mbpp', 'dbbench'), 15, 'runs/demo')
    """

    name: str
    tasks: tuple[TaskConfig, ...]
    output: str | None = None
    origin: str | None = None
    cache: str = "runs/cache"
    seed: int = field(0, minimum=0, below=2**32)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    pretrain: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    finetune: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    masks: MaskConfig | None = None
    baselines: tuple[Literal["finetune_all", "finetune_all_longer"], ...] = ()
    merges: tuple[Literal["task_arithmetic", "ties", "dare", "dare_ties", "slerp"], ...] = ()
    gradient: GradientConfig | None = None
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    genome: GenomeConfig = dataclasses.field(default_factory=GenomeConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    ray: RayConfig = dataclasses.field(default_factory=RayConfig)
    sandbox: SandboxConfig = dataclasses.field(default_factory=SandboxConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output or f"runs/{self.name}")

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of the tasks, in order."""
        return tuple(task.name for task in self.tasks)

    @property
    def segments(self) -> bool:
        """Whether the models segment images; otherwise they are language models."""
        return all(task.kind == SEGMENTATION for task in self.tasks)

    @property
    def mask_options(self) -> MaskConfig:
        """The options of models that segment images."""
        return self.masks or MaskConfig()

    @property
    def expert_names(self) -> tuple[str, ...]:
        """The names of the experts: those of the tasks, in order, and the others."""
        return (*self.task_names, *(self.model.others or {}))

    @property
    def given_experts(self) -> dict[str, str]:
        """The experts that the config gives, by name, in the order of ``expert_names``; empty where the run fine-tunes them."""
        experts = {**(self.model.experts or {}), **(self.model.others or {})}
        return {name: experts[name] for name in self.expert_names if name in experts}

    @property
    def selects(self) -> bool:
        """Whether the run evaluates candidates for the final model on validation problems."""
        return all(task.validation_size != 0 for task in self.tasks)
