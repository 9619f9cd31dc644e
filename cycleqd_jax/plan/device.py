"""The limits of devices, on which every estimate is based."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from cycleqd_jax.machine import host_memory

__all__ = ["DEVICES", "Device", "this_machine"]


@dataclasses.dataclass(frozen=True)
class Device:
    """Limits of one device, as its maker states them; programs reach only a part of them.

    Attributes:
        name: its name on the command line.
        memory: bytes that the driver gives to programs.
        bandwidth: the bandwidth of that memory, bytes/s.
        half: dense matrix products in bfloat16 or float16, summed in float32, FLOP/s.
        single: float32 products at full precision (no TensorFloat-32), FLOP/s.
        link: the bandwidth to the other devices of a machine, bytes/s out of each.
        latency: the latency of one collective, s; an assumption.
        disk: rate at which all devices together read weights and write bases, bytes/s; an assumption.
        chip: the fields of XLA's ``gpu_device_info`` that differ between chips; None where programs are compiled for the CPU.
        shares_host: whether its memory is the host's: then it also holds what a stage needs on the host.
    """

    name: str
    memory: int
    bandwidth: float
    half: float
    single: float
    link: float
    latency: float = 10e-6
    disk: float = 2e9
    chip: str | None = None
    shares_host: bool = False

    @property
    def target(self) -> str:
        """The device as a text proto (``stream_executor.GpuTargetConfigProto``), to compile for it on a machine without it."""
        return (
            "gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 "
            "threads_per_core_limit: 2048 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 "
            f"registers_per_core_limit: 65536 registers_per_block_limit: 65536 device_memory_size: {self.memory} "
            f'memory_bandwidth: {self.bandwidth:.0f} {self.chip} }} platform_name: "CUDA" '
            "dnn_version_info { major: 9 minor: 8 patch: 0 } runtime_version { major: 12 minor: 9 patch: 0 } "
            f'device_description_str: "{self.name}"'
        )


_HOPPER = (
    "shared_memory_per_core: 233472 core_count: 132 fpus_per_core: 128 l2_cache_size: 52428800 clock_rate_ghz: 1.98 "
    "shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 minor: 0 }"
)
_AMPERE = (
    "shared_memory_per_core: 167936 core_count: 108 fpus_per_core: 64 l2_cache_size: 41943040 clock_rate_ghz: 1.41 "
    "shared_memory_per_block_optin: 166912 cuda_compute_capability { major: 8 minor: 0 }"
)

DEVICES = {
    device.name: device
    for device in (
        Device("h100-80gb", 84_942_979_072, 3.35e12, 989e12, 67e12, 450e9, chip=_HOPPER),
        Device("h200", 149_250_000_000, 4.8e12, 989e12, 67e12, 450e9, chip=_HOPPER),
        Device("a100-80gb", 84_986_691_584, 2.04e12, 312e12, 19.5e12, 300e9, chip=_AMPERE),
    )
}
"""Figures from NVIDIA's data sheets of the SXM modules."""


def this_machine(devices: int = 1) -> Device:
    """This machine's processor as devices; its rate of products and its bandwidth are measured, which takes a second.

    Args:
        devices: simulated devices that share it: each has an equal part of its memory, FLOPs and bandwidth.
    """

    def fastest(work: Callable[[], object], repeats: int) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    size = 1024
    a = np.ones((size, size), np.float32)
    single = 2 * size**3 / fastest(lambda: a @ a, 4)
    source, target = np.ones(1 << 25, np.uint8), np.empty(1 << 25, np.uint8)
    bandwidth = 2 * source.nbytes / fastest(lambda: np.copyto(target, source), 4)
    memory, single, bandwidth = host_memory() // devices, single / devices, bandwidth / devices
    return Device("cpu", memory, bandwidth, single, single, bandwidth, shares_host=True)
