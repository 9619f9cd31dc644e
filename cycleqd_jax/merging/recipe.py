"""Reads a mergekit config, and refuses by name what this package does not do."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cycleqd_jax.merging.settings import Setting, Value, parse_setting
from cycleqd_jax.types import InputError
from cycleqd_jax.yaml_files import parse_yaml

__all__ = ["METHODS", "Method", "Model", "Recipe", "load_recipe"]

DTYPES = ("float32", "bfloat16", "float16")


class Method(NamedTuple):
    """A merge method of mergekit.

    Attributes:
        shared: its parameters that are the same for all models, with their defaults; None for a parameter without one.
        needs_base: whether it needs ``base_model``.
    """

    shared: Mapping[str, float | None]
    needs_base: bool = True

    @property
    def per_model(self) -> tuple[str, ...]:
        """Its parameters that each model has."""
        if "t" in self.shared:
            return ()
        return ("weight", "density") if self.needs_base else ("weight",)


def _vectors(normalize: bool, rescale: bool) -> Method:
    return Method({"normalize": float(normalize), "rescale": float(rescale), "int8_mask": 0.0, "lambda": 1.0})


METHODS = {
    "linear": Method({"normalize": 1.0}, needs_base=False),
    "task_arithmetic": _vectors(False, False),
    "ties": _vectors(True, False),
    "dare_linear": _vectors(False, True),
    "dare_ties": _vectors(False, True),
    "slerp": Method({"t": None}),
}
"""The supported methods, by mergekit's names."""

_TRUTHS = ("normalize", "rescale", "int8_mask")
_KEYS = ("merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source")
_NOT_DONE = {
    "modules": "give models for the whole model",
    "tokenizer": "use tokenizer_source: base",
    "chat_template": "edit the tokenizer of the result",
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of a config.

    Attributes:
        name: a folder, or ``owner/name[@revision]`` of the hub.
        parameters: its own settings.
        layers: the first layer and the one after the last, where the config has them.
    """

    name: str
    parameters: Mapping[str, Setting]
    layers: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A mergekit config.

    Attributes:
        path: the file.
        text: its content.
        method: the name of the method.
        models: the models with a part of their own in the result, without the base of methods that use task vectors.
        base: the base model, or None.
        scopes: the settings of the slice and those of the whole config, in order of precedence.
        base_layers: the layers of the base, where the config has them.
        dtype: dtype of the result, or None for that of the base.
        same_tokenizer: whether ``tokenizer_source: base`` is set.
    """

    path: Path
    text: str
    method: str
    models: tuple[Model, ...]
    base: str | None
    scopes: tuple[Mapping[str, Setting], ...]
    base_layers: tuple[int, int] | None
    dtype: str | None
    same_tokenizer: bool

    @property
    def settings(self) -> list[Setting]:
        """All settings."""
        scopes = [*(model.parameters for model in self.models), *self.scopes]
        return [setting for scope in scopes for setting in scope.values()]

    def value(self, name: str, tensor: str, position: float, model: Model | None = None) -> float | None:
        """A parameter for one tensor: the model's own setting counts first, then the slice's, then the config's.

        Args:
            name: the name of the parameter.
            tensor: the name of the tensor.
            position: see :meth:`~.settings.Setting.at`.
            model: the model, for a parameter that each model has.
        """
        for scope in (*([model.parameters] if model is not None else []), *self.scopes):
            if name in scope and (found := scope[name].at(tensor, position)) is not None:
                return found
        return METHODS[self.method].shared.get(name, 1.0 if name == "density" else None)


def load_recipe(path: str | Path) -> Recipe:
    """Reads a mergekit config; no model is opened.

    Args:
        path: the YAML file.

    Raises:
        InputError: the file can't be read, or has a method, a key or a value that is not supported; the message names it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        raw = parse_yaml(text)
    except OSError as error:
        raise InputError(f"expected a mergekit config, got {error.strerror or error} in {path}; correct the path") from error
    except ValueError as error:
        raise InputError(
            f"expected a mergekit config, got text that is not YAML in {path} ({error}); correct the file"
        ) from error
    if not isinstance(raw, dict):
        raise InputError(f"expected the keys of a mergekit config, got {type(raw).__name__} in {path}; correct the file")
    return _Reader(path, raw).recipe(text)


class _Reader:
    """Reads the keys of one config."""

    def __init__(self, path: Path, raw: Mapping[str, Value]) -> None:
        self.path, self.raw = path, raw

    def refuse(self, expected: str, got: str, advice: str) -> InputError:
        return InputError(f"expected {expected}, got {got} in {self.path}; {advice}")

    def recipe(self, text: str) -> Recipe:
        name = self.raw.get("merge_method")
        if not isinstance(name, str) or name not in METHODS:
            raise self.refuse(f"merge_method to be one of {', '.join(METHODS)}", repr(name), "use mergekit for other methods")
        for key in self.raw:
            if key not in _KEYS:
                advice = _NOT_DONE.get(str(key), "remove it, or use mergekit")
                raise self.refuse(f"the keys {', '.join(_KEYS)}", f"the key {key!r}", advice)
        method, base = METHODS[name], self.raw.get("base_model")
        base = None if base is None else self.model_name(base, "base_model")
        if method.needs_base and base is None:
            raise self.refuse(f"a base_model for {name}", "none", "name the base")
        models, slice_scope = self.models(method)
        names = [model.name for model in models]
        if len(set(names)) < len(names):
            twice = next(one for one in names if names.count(one) > 1)
            raise self.refuse("every model once", f"{twice} twice", "remove one of them")
        if self.raw.get("slices") is not None and base is not None and base not in names:
            raise self.refuse("base_model among the sources of the slice", f"{base}, which is not", "add it to the sources")
        base_layers = next((model.layers for model in models if model.name == base), None)
        if name == "linear" and base is not None and base not in names:
            models.append(Model(base, {}))  # as mergekit does
        if name != "linear":
            models = [model for model in models if model.name != base]
        if name == "slerp" and len(models) != 1:
            raise self.refuse("two models for slerp, one of them the base_model", f"{len(models)} beside it", "name two")
        if not models:
            raise self.refuse("at least one model beside the base", "none", "add the models to merge")
        shared = self.parameters(self.raw.get("parameters"), "parameters", (*method.shared, *method.per_model))
        dtypes = [self.dtype(key) for key in ("out_dtype", "dtype")]
        source = self.raw.get("tokenizer_source")
        if source not in (None, "base"):
            raise self.refuse("tokenizer_source: base", repr(source), "remove it to keep the base's tokenizer, or use mergekit")
        scopes = (slice_scope, shared)
        return Recipe(self.path, text, name, tuple(models), base, scopes, base_layers, dtypes[0] or dtypes[1], source == "base")

    def models(self, method: Method) -> tuple[list[Model], Mapping[str, Setting]]:
        """The models in order, and the settings of the slice."""
        given = [key for key in ("models", "slices") if self.raw.get(key) is not None]
        if len(given) != 1:
            raise self.refuse("either models or slices", " and ".join(given) or "neither", "give one of them")
        entries, scope, where = self.raw[given[0]], {}, given[0]
        if where == "slices":
            if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
                raise self.refuse(
                    "one slice with the layers of whole models", f"{_count(entries)} slices", "use mergekit for others"
                )
            part = entries[0]
            self.known(part, ("sources", "parameters"), "slices[0]")
            scope = self.parameters(part.get("parameters"), "slices[0].parameters", (*method.shared, *method.per_model))
            entries, where = part.get("sources"), "slices[0].sources"
        if not isinstance(entries, list) or not entries:
            raise self.refuse(f"a list of models for {where}", _shown(entries), "name the models")
        allowed = ("model", "parameters", *(["layer_range"] if "sources" in where else []))
        models = []
        for i, entry in enumerate(entries):
            here = f"{where}[{i}]"
            if not isinstance(entry, dict) or "model" not in entry:
                raise self.refuse(f"a model for {here}", _shown(entry), "write model: and its name")
            self.known(entry, allowed, here)
            layers = self.layers(entry.get("layer_range"), here) if "sources" in where else None
            settings = self.parameters(entry.get("parameters"), f"{here}.parameters", method.per_model)
            models.append(Model(self.model_name(entry["model"], f"{here}.model"), settings, layers))
        return models, scope

    def known(self, entry: Mapping[str, Value], allowed: tuple[str, ...], where: str) -> None:
        unknown = [key for key in entry if key not in allowed]
        if unknown:
            raise self.refuse(
                f"the keys {', '.join(allowed)} for {where}", f"the key {unknown[0]!r}", "remove it, or use mergekit"
            )

    def layers(self, raw: Value, where: str) -> tuple[int, int]:
        if not isinstance(raw, list) or len(raw) != 2 or not all(type(value) is int for value in raw):
            raise self.refuse(
                f"layer_range: [0, number of layers] for {where}", _shown(raw), "give the range of the whole model"
            )
        return raw[0], raw[1]

    def model_name(self, raw: Value, where: str) -> str:
        if not isinstance(raw, str) or not raw:
            raise self.refuse(f"a folder or owner/name for {where}", _shown(raw), "write the name of the model as a text")
        if "+" in raw and not Path(raw).is_dir():
            raise self.refuse(f"a whole model for {where}", f"a model with a LoRA adapter, {raw}", "merge the adapter first")
        return os.path.normpath(raw) if Path(raw).is_dir() else raw  # a folder with and without a slash at its end is one

    def parameters(self, raw: Value, where: str, allowed: tuple[str, ...]) -> dict[str, Setting]:
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            raise self.refuse(f"names with values for {where}", _shown(raw), "correct the entry")
        for key in raw:
            if key not in allowed:
                names = ", ".join(allowed) or "no parameter"
                raise self.refuse(f"{names} for {where} of {self.raw['merge_method']}", f"the key {key!r}", "move or remove it")
        return {key: parse_setting(value, f"{where}.{key} of {self.path}", truth=key in _TRUTHS) for key, value in raw.items()}

    def dtype(self, key: str) -> str | None:
        raw = self.raw.get(key)
        name = raw.removeprefix("torch.") if isinstance(raw, str) else raw
        if name is None:
            return None
        if name not in DTYPES:
            raise self.refuse(f"{key} to be one of {', '.join(DTYPES)}", repr(raw), "choose one of them")
        return str(name)


def _count(entries: Value) -> str:
    return str(len(entries)) if isinstance(entries, list) else _shown(entries)


def _shown(raw: Value) -> str:
    return "nothing" if raw is None else repr(raw)[:80]
