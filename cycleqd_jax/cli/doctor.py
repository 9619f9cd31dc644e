"""``cycleqd doctor``: prints the devices, versions, isolation, data and extras of this machine."""

from __future__ import annotations

import importlib.util
import os
import platform
from pathlib import Path

import jax

from cycleqd_jax.machine import cpu_count
from cycleqd_jax.runs.folder.run_folder import versions
from cycleqd_jax.sandbox import detect

__all__ = ["doctor"]

EXTRAS = {
    "cuda12": ("jax_cuda12_plugin", "NVIDIA GPUs"),
    "gguf": ("gguf", "GGUF files, and `cycleqd fetch smollm2`"),
    "mysql": ("pymysql", "DBBench on a MySQL or MariaDB server"),
    "notebook": ("ipywidgets", "progress bars in notebooks"),
    "ray": ("ray", "workers on a Ray cluster"),
    "serve": ("uvicorn", "`cycleqd serve`"),
    "tensorboard": ("tensorboardX", "logs of a search for TensorBoard"),
    "wandb": ("wandb", "logs of a search for Weights & Biases"),
    "lm-eval": ("lm_eval", "lm-evaluation-harness"),
    "mlflow": ("mlflow", "logs of a search for MLflow"),
    "docs": ("mkdocs", "the documentation site"),
    "dev": ("hypothesis", "the test suite"),
}


def doctor() -> None:
    """Prints devices, versions, isolation, data and extras."""
    print("versions")
    for name, version in versions().items():
        print(f"  {name:18} {version}")
    print(f"  {'system':18} {platform.system()} {platform.release()}, {cpu_count()} cores")
    print("devices")
    try:
        devices = jax.devices()
    except Exception as error:  # JAX raises several types where JAX_PLATFORMS names what is not there
        devices = []
        print(f"  none that JAX can use: {' '.join(str(error).split()) or type(error).__name__}")
    for device in devices:
        stats = device.memory_stats() or {}
        memory = f", {stats['bytes_limit'] / 2**30:.1f} GiB" if "bytes_limit" in stats else ""
        print(f"  {device.platform}:{device.id} {device.device_kind}{memory}")
    print("isolation of model-written code (the first one is used)")
    found = detect()
    for isolation in found:
        print(f"  {isolation.name:18} {isolation.description}")
    if not any(isolation.name != "none" for isolation in found):
        print("  none works on this machine: install bubblewrap (apt-get install bubblewrap)")
    print("data")
    data = os.environ.get("CYCLEQD_DATA")
    if data is None:
        print(
            "  CYCLEQD_DATA is not set: there are only generated miniature problems, and tests on third-party data are skipped"
        )
    elif not Path(data).is_dir():
        print(f"  CYCLEQD_DATA is {data}, which is not a folder")
    else:
        for folder in sorted(path for path in Path(data).iterdir() if path.is_dir()):
            print(f"  {folder.name:18} {', '.join(sorted(path.name for path in folder.glob('*.jsonl')))}")
    print("extras")
    for extra, (module, purpose) in EXTRAS.items():
        status = "installed" if importlib.util.find_spec(module) else f"not installed (pip install 'cycleqd_jax[{extra}]')"
        print(f"  {extra:18} {purpose}: {status}")
