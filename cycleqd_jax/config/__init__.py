"""The configuration of a run: :func:`load_config` reads YAML or a mapping, :func:`describe` lists all keys."""

from cycleqd_jax.config.check import idle_groups, unused_keys
from cycleqd_jax.config.devices import MeshConfig, RayConfig
from cycleqd_jax.config.load import check_config, load_config, read_yaml, task_options, to_dict, to_yaml
from cycleqd_jax.config.racing import RacingConfig
from cycleqd_jax.config.reference import KeyDoc, describe
from cycleqd_jax.config.schema import (
    SEGMENTATION,
    CheckpointConfig,
    EngineConfig,
    ExportConfig,
    ModelConfig,
    RunConfig,
    SandboxConfig,
    TaskConfig,
    TinyConfig,
)
from cycleqd_jax.config.search import GenomeConfig, SearchConfig
from cycleqd_jax.config.suite import Suite, SuiteTask, load_suite
from cycleqd_jax.config.training import GradientConfig, MaskConfig, PrepareConfig, TrainConfig

__all__ = [
    "SEGMENTATION",
    "CheckpointConfig",
    "EngineConfig",
    "ExportConfig",
    "GenomeConfig",
    "GradientConfig",
    "KeyDoc",
    "MaskConfig",
    "MeshConfig",
    "ModelConfig",
    "PrepareConfig",
    "RacingConfig",
    "RayConfig",
    "RunConfig",
    "SandboxConfig",
    "SearchConfig",
    "Suite",
    "SuiteTask",
    "TaskConfig",
    "TinyConfig",
    "TrainConfig",
    "check_config",
    "describe",
    "idle_groups",
    "load_config",
    "load_suite",
    "read_yaml",
    "task_options",
    "to_dict",
    "to_yaml",
    "unused_keys",
]
