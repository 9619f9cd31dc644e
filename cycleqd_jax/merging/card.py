"""The model card of a merge."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from cycleqd_jax.merging.recipe import Recipe
from cycleqd_jax.models.files.hub import repository_name
from cycleqd_jax.version import __version__

__all__ = ["merge_card"]


def merge_card(recipe: Recipe, title: str, names: Sequence[str]) -> str:
    """The README.md of a merged model.

    Args:
        recipe: the config.
        title: the name of the model.
        names: the models, the base first. Those of this machine are not named in the metadata, which the hub would refuse.
    """
    repositories = list(dict.fromkeys(found for name in names if (found := repository_name(name)) is not None))
    meta = {
        **({"base_model": repositories, "base_model_relation": "merge"} if repositories else {}),
        "library_name": "transformers",
        "tags": ["merge", recipe.method],
    }
    models = "\n".join(f"- {name}{' (base)' if name == recipe.base else ''}" for name in names)
    return f"""---
{yaml.safe_dump(meta, sort_keys=False).strip()}
---

# {title}

Merged with the method {recipe.method} by `cycleqd merge` of cycleqd_jax {__version__} from

{models}

The mergekit config:

```yaml
{recipe.text.strip()}
```
"""
