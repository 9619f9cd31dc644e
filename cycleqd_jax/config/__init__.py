"""The configuration of a run."""

from cycleqd_jax.config.schema import (
    CheckpointConfig,
    EngineConfig,
    GenomeConfig,
    MeshConfig,
    ModelConfig,
    RunConfig,
    SandboxConfig,
    SearchConfig,
    TaskConfig,
    TinyConfig,
    TrainConfig,
    load_config,
    task_options,
    to_dict,
    to_yaml,
)

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
