"""The model ``cycleqd`` of lm-evaluation-harness (lm-eval): ``python -m cycleqd_jax.lm_eval --model cycleqd …``.

lm-eval has a registry of models, but does not look for models of other packages. This package adds one to the registry, and
runs lm-eval's own command line.
"""

from __future__ import annotations

import functools
import importlib
import sys

from cycleqd_jax.disk_errors import discard_output, disk_error, print_disk_error
from cycleqd_jax.lm_eval.loading import NAME, LoadedModel, load, make_engine
from cycleqd_jax.lm_eval.model import HarnessModel
from cycleqd_jax.types import InputError

__all__ = ["NAME", "HarnessModel", "LoadedModel", "load", "main", "make_engine", "register"]


def register() -> None:
    """Adds the model ``cycleqd`` to lm-eval's registry, for ``lm_eval.simple_evaluate(model="cycleqd", …)``.

    Raises:
        InputError: lm-eval is not installed.
    """
    try:
        registry = importlib.import_module("lm_eval.api.registry")
        importlib.import_module("lm_eval.models")  # adds lm-eval's own models, which it does only to an empty registry
    except ImportError as error:
        raise InputError(
            f"expected lm-eval, got {type(error).__name__}: {error} in {sys.executable}; install the extra: pip install "
            "'cycleqd_jax[lm-eval]'"
        ) from error
    registry.register_model(NAME)(_registered())


@functools.cache
def _registered() -> type:
    return type("CycleqdModel", (HarnessModel, importlib.import_module("lm_eval.api.model").TemplateLM), {})


def main() -> int:
    """The command line of lm-eval, with the model ``cycleqd``.

    Returns:
        The exit code: 0, 2 for bad input and for a disk that is full or refuses a file, 130 after Ctrl-C.
    """
    try:
        register()
        importlib.import_module("lm_eval.__main__").cli_evaluate()
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nerror: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # what reads the output has ended
        discard_output()
        return 1
    except Exception as error:
        refused = disk_error(error)
        if refused is None:
            raise
        print_disk_error("error", refused, ", then run the same command again")
        return 2
    return 0
