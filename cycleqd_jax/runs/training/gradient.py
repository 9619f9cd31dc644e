"""The merge of a run's experts whose coefficients gradient descent finds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd_jax import training
from cycleqd_jax.config import GradientConfig
from cycleqd_jax.files import digest, load_json, write_json
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.plan import express_flops
from cycleqd_jax.report.read import load_results
from cycleqd_jax.runs.coefficients import express_coefficients, host_space, placed_space
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.inputs.digests import tokenizer_digest
from cycleqd_jax.runs.training.checkpoints import CachedTraining, claimed
from cycleqd_jax.runs.usage import training_record
from cycleqd_jax.types import Params

__all__ = ["GradientMerge"]

RECIPE = 1
"""Part of the digest of what coefficients depend on; raised whenever the same config would find other coefficients."""


class GradientMerge:
    """The experts of a run, merged with coefficients that gradient descent finds on the training conversations of all tasks.

    Every task has the same share of the conversations. They are shuffled, so the share in a single batch varies.
    """

    def __init__(self, context: Context, options: GradientConfig) -> None:
        """Does nothing yet.

        Args:
            context: the context of the run.
            options: the options of the gradient descent.
        """
        self._context = context
        self._options = options

    @property
    def _model(self) -> LlamaConfig:
        """The architecture; gradient descent is for language models only."""
        config = self._context.models.config
        assert isinstance(config, LlamaConfig)
        return config

    @property
    def file(self) -> Path:
        """The file of the coefficients."""
        return self._context.folder / "tables" / "gradient.json"

    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with everything that the coefficients depend on."""
        return digest(self._identity(), digits=16)

    def is_in(self, results: Mapping[str, Any] | None) -> bool:
        """Whether the content of a ``results.json`` has a row of these coefficients."""
        return results is not None and "gradient" in results["methods"] and results.get("gradient") == self.digest()

    def check(self) -> None:
        """Loads the training conversations of all tasks, where they are needed, and checks that the model can learn from them.

        Raises:
            InputError: no gold solution of a task scores in the sandbox, or a conversation does not fit the model.
        """
        shared = self._context.shared
        if self._read(self.digest()) is None and (shared is None or not self.is_in(load_results(shared))):
            for name in self._context.config.task_names:
                training.check_examples(self._context.examples.of(name), self._model)

    def ensure_fitted(self) -> Mapping[str, Any]:
        """Finds the coefficients and writes them, where the file does not have them.

        Returns:
            The content of the file: ``digest`` (of everything that the coefficients depend on), ``tasks`` (of the experts),
            ``coefficients`` (a row for each group of layers, a column for each expert), ``losses`` (of every step, in nats per
            learned token), ``tokens`` (without padding), ``attended`` (pairs of tokens) and ``seconds``.

        Raises:
            InputError: see :func:`cycleqd_jax.training.fit_coefficients`.
        """
        context, options = self._context, self._options
        identity = self.digest()
        cache, name = Path(context.config.cache), f"gradient-{identity}"
        if (known := self._read(identity)) is not None:
            return known
        names, seed = context.config.task_names, context.config.seed
        shares, minutes = dict.fromkeys(names, 1.0), context.config.checkpoint.training_minutes
        with (
            claimed(cache, name),
            CachedTraining(cache, name, seed=seed, minutes=minutes, log=context.log) as checkpoints,
        ):
            coefficients, metrics = training.fit_coefficients(
                placed_space(context, options.groups),
                self._model,
                context.examples.mixture(shares, options.steps * options.batch_size, seed),
                steps=options.steps,
                batch_size=options.batch_size,
                learning_rate=options.learning_rate,
                seed=seed,
                progress=context.progress,
                checkpoints=checkpoints,
            )
            found = {
                "digest": identity,
                "tasks": list(names),
                "coefficients": coefficients.tolist(),
                "losses": metrics.losses.tolist(),
                "tokens": metrics.tokens,
                "attended": metrics.attended,
                "seconds": metrics.seconds,
            }
            write_json(self.file, found)
            checkpoints.remove()
        return found

    def usage(self) -> dict[str, Any] | None:
        """The record of the gradient descent; None if the file has none.

        Beside what every training has, ``flops`` counts the weights of every step, and the products of their gradient with the
        task vectors, which are as many.
        """
        found = self.ensure_fitted()
        steps = len(found.get("losses", ()))
        record = training_record({**found, "steps": steps})
        return (
            None
            if record is None
            else {**record, "flops": 2 * steps * express_flops(host_space(self._context, self._options.groups))}
        )

    def express(self) -> Params:
        """The weights of the merge, on the first group of devices."""
        return express_coefficients(self._context, np.asarray(self.ensure_fitted()["coefficients"], np.float32))

    def _identity(self) -> dict[str, Any]:
        """Everything that the coefficients depend on, as JSON."""
        config, folders = self._context.config, self._context.models.folders
        return {
            "recipe": RECIPE,
            "seed": config.seed,
            "base": folders.digest(folders.base_name),
            "experts": [folders.digest(f"expert/{name}") for name in config.expert_names],
            "tokenizer": None if folders.tokenizer is None else tokenizer_digest(folders.tokenizer),
            "data": [self._context.examples.identities[name] for name in config.task_names],
            "dtype": config.model.dtype,
            "vocab_size": config.model.vocab_size,
            "steps": self._options.steps,
            "batch_size": self._options.batch_size,
            "learning_rate": self._options.learning_rate,
            "groups": self._options.groups,
        }

    def _read(self, identity: str) -> Mapping[str, Any] | None:
        """The content of the file; None where it is missing, belongs to other inputs, or is damaged, which is a warning."""
        if not self.file.exists():
            return None
        try:
            known = load_json(self.file)
            shape = np.asarray(known["coefficients"], np.float32).shape
            if known["digest"] != identity:
                return None
        except (ValueError, KeyError, TypeError):
            shape = ()
        if shape != (self._options.groups, len(self._context.config.expert_names)):
            self._context.log(f"warning: {self.file} is damaged; the coefficients are computed again")
            return None
        return known
