"""The config of a LoRA adapter, ``adapter_config.json``: which modules it changes, with which rank and scale."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cycleqd_jax.models.folder import read_json
from cycleqd_jax.types import InputError

__all__ = ["CONFIG", "MERGE", "LoraConfig"]

CONFIG = "adapter_config.json"
"""The file name of an adapter's config."""

_KNOWN = {"peft_type", "bias", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"}
_KNOWN |= {
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "ensure_weight_tying",
}
# Options without effect on merged weights. PEFT ignores fan_in_fan_out for torch's Linear. The options of an initialisation
# have no effect if it leaves the base unchanged.
_KNOWN |= {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
_KNOWN |= {"lora_dropout", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"}
_KNOWN |= {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}

MERGE = "merge the adapter into its base with peft, merge_and_unload(), and use the result as an expert"
"""What to do with an adapter of another kind."""

_INITS_THAT_KEEP_THE_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The config of an adapter; modules have names such as ``model.layers.0.self_attn.q_proj`` and are matched as in PEFT."""

    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    layers: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    rank: int
    alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    use_rslora: bool
    ensure_weight_tying: bool
    bias: str  # which biases were trained: none, all or lora_only

    @classmethod
    def read(cls, path: Path) -> LoraConfig:
        """Reads and checks a config.

        Raises:
            InputError: the file is missing, is not a LoRA config, or has an option that is unknown or not supported.
        """
        raw = read_json(path)

        def check(name: str, valid: Callable[[Any], bool], expected: str, advice: str = "correct the config") -> Any:
            if not valid(raw.get(name)):
                raise InputError(f"expected {expected} for {name!r} in {path}, got {raw.get(name)!r}; {advice}")
            return raw.get(name)

        def number(value: Any) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300

        def positive(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value > 0

        def strings(value: Any) -> bool:
            return isinstance(value, list) and all(isinstance(item, str) for item in value)

        def pattern(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
            return lambda value: not value or (isinstance(value, dict) and all(of(item) for item in value.values()))

        def items_of(name: str, kind: type) -> tuple[Any, ...]:
            def valid(value: Any) -> bool:
                items = value if isinstance(value, list) else [] if value is None else [value]
                return all(isinstance(item, kind) and not isinstance(item, bool) for item in items)

            value = check(name, valid, f"nothing, or a list of {kind.__name__}")
            return tuple(value) if isinstance(value, list) else () if value is None else (value,)

        check("peft_type", lambda value: value == "LORA", "'LORA'", MERGE)
        for name in raw:
            if name not in _KNOWN:
                check(name, lambda value: not value, "nothing or false", MERGE)
        bias = check("bias", lambda value: value in (None, "none", "all", "lora_only"), "'none', 'all' or 'lora_only'")
        check(
            "init_lora_weights",
            lambda value: value is None or value in _INITS_THAT_KEEP_THE_BASE,
            "an initialisation that leaves the base unchanged",
            f"save it again with peft, save_pretrained(folder, path_initial_model_for_weight_conversion=...), or {MERGE}",
        )
        pattern_or_names = "a pattern or a list of names"
        targets = check("target_modules", lambda value: isinstance(value, str) or strings(value), pattern_or_names)
        exclude = check(
            "exclude_modules", lambda value: not value or isinstance(value, str) or strings(value), pattern_or_names
        )
        options = cls(
            target_modules=targets if isinstance(targets, str) else tuple(targets),
            exclude_modules=exclude if isinstance(exclude, str) else tuple(exclude or ()),
            layers=items_of("layers_to_transform", int),
            layers_pattern=tuple(filter(None, items_of("layers_pattern", str))),
            modules_to_save=items_of("modules_to_save", str),
            rank=check("r", positive, "a positive integer"),
            alpha=check("lora_alpha", number, "a number"),
            rank_pattern=check("rank_pattern", pattern(positive), "positive integers by name") or {},
            alpha_pattern=check("alpha_pattern", pattern(number), "numbers by name") or {},
            use_rslora=bool(raw.get("use_rslora")),
            ensure_weight_tying=bool(raw.get("ensure_weight_tying")),
            bias=bias or "none",
        )
        whole = [value for value in (options.target_modules, options.exclude_modules) if isinstance(value, str)]
        try:
            for part in (
                *whole,
                *options.layers_pattern,
                *options.modules_to_save,
                *options.rank_pattern,
                *options.alpha_pattern,
            ):
                re.compile(part)
        except re.error as error:
            raise InputError(
                f"expected regular expressions in {path}, got {error.pattern!r} ({error}); correct the config"
            ) from error
        return options

    def targets(self, module: str, linear: bool) -> bool:
        """Whether the adapter has factors for a module; ``linear`` is false for an embedding."""
        if isinstance(self.exclude_modules, str):
            if self.exclude_modules and re.fullmatch(self.exclude_modules, module):
                return False
        elif _named(module, self.exclude_modules):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.modules_to_save):
            return False
        if isinstance(self.target_modules, str):
            if self.target_modules == "all-linear":
                return linear and module != "lm_head"
            return re.fullmatch(self.target_modules, module) is not None
        if not _named(module, self.target_modules):
            return False
        if not self.layers:
            return True
        heads = [rf"(?:^|.*?\.){name}" for name in self.layers_pattern] or [r".*?\.[^.]*"]
        found = next(filter(None, (re.match(rf"{head}\.(?P<idx>\d+)\.", module) for head in heads)), None)
        return found is not None and int(found["idx"]) in self.layers

    def saves(self, tensor: str) -> bool:
        """Whether the adapter has its own whole copy of a tensor of the base."""
        parts = tensor.split(".")
        modules = [".".join(parts[:i]) for i in range(1, len(parts))]
        return any(module.endswith(name) for module in modules for name in self.modules_to_save)

    def rank_and_scale(self, module: str) -> tuple[int, float]:
        """The rank r of a module, and its scale lora_alpha / r or lora_alpha / √r."""

        def lookup(patterns: dict[str, Any], default: Any) -> Any:
            return next((value for name, value in patterns.items() if re.match(rf"(.*\.)?({name})$", module)), default)

        rank, alpha = lookup(self.rank_pattern, self.rank), lookup(self.alpha_pattern, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _named(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)
