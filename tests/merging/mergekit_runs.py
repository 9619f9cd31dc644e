"""Runs mergekit in a Python that has it: ``python mergekit_runs.py RUNS``, with a JSON list of [config, folder, masks].

Where ``masks`` names a file, every sparsified task vector and its random mask are saved in it.
"""

import json
import sys

import torch
import yaml
from mergekit import sparsify
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import save_file


def main() -> None:
    plain = sparsify.rescaled_masked_tensor
    for config, folder, masks in json.loads(sys.argv[1]):
        seen: dict[str, torch.Tensor] = {}

        def record(tensor, mask, *args, seen=seen, **kwargs):
            number = len(seen) // 2
            seen[f"{number}.delta"], seen[f"{number}.mask"] = tensor.clone(), mask.clone()
            return plain(tensor, mask, *args, **kwargs)

        sparsify.rescaled_masked_tensor = record
        with open(config, encoding="utf-8") as file:
            merge_config = MergeConfiguration.model_validate(yaml.safe_load(file))
        run_merge(merge_config, folder, MergeOptions(quiet=True, random_seed=0))
        if masks:
            save_file(seen, masks)


if __name__ == "__main__":
    main()
