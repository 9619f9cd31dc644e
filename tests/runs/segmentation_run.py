"""Folders of synthetic images, a tiny base, and the config of a run of Segment Anything that takes seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cycleqd_jax.files import write_json
from cycleqd_jax.models import sam
from cycleqd_jax.models.sam.images import PROCESSOR

from ..shapes import CONFIGS, ellipses, random_params

TASKS = ("polyp", "leaf")


def image_folder(folder: Path, *, train: int = 10, validation: int = 0, test: int = 3, seed: int = 0) -> Path:
    """A folder with an index: ellipses, one size for all images."""
    rows = ["image,mask,split"]
    for split, count, offset in (("train", train, 0), ("test", test, 1), ("validation", validation, 1000)):
        for i, item in enumerate(ellipses(count, 2 * seed + offset)):
            names = {part: f"{part}/{split}-{i}.png" for part in ("images", "masks")}
            for part, picture in (("images", item.image), ("masks", item.mask.astype(np.uint8) * np.uint8(255))):
                (folder / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(folder / names[part])
            rows.append(f"{names['images']},{names['masks']},{split}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return folder


def sam_base(folder: Path, kind: str = "tiny_vit") -> Path:
    """A folder of Segment Anything with random weights and processor files."""
    folder.mkdir(parents=True)
    side = CONFIGS[kind].vision.image_size
    sizes = {"size": {"longest_edge": side}, "pad_size": {"height": side, "width": side}}
    write_json(folder / "preprocessor_config.json", PROCESSOR | sizes)
    sam.save(folder.parent / "made", CONFIGS[kind], random_params(kind), processor=folder)
    (folder / "preprocessor_config.json").unlink()
    folder.rmdir()
    (folder.parent / "made").rename(folder)
    return folder


def sam_tree(folder: Path, kind: str = "tiny_vit", **changes) -> dict:
    """A config; folders and base are made where they are missing."""
    tasks = []
    for seed, name in enumerate(TASKS):
        if not (folder / name).exists():
            image_folder(folder / name, seed=seed)
        sizes = {"train_size": 3, "validation_size": 2, "test_size": 2}
        tasks.append({"name": name, "kind": "segmentation", "train": str(folder / name), **sizes})
    if not (folder / "base").exists():
        sam_base(folder / "base", kind)
    tree = {
        "name": "shapes",
        "output": str(folder / "run"),
        "cache": str(folder / "cache"),
        "tasks": tasks,
        "model": {"base": str(folder / "base")},
        "finetune": {"steps": 4, "batch_size": 2, "learning_rate": 1e-2, "warmup": 0.25},
        "search": {"generations": 2, "batch_size": 2, "bins": 3},
        "export": {"elites": 2},
        "checkpoint": {"every": 1},
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) and isinstance(tree.get(key), dict) else value
    return tree
