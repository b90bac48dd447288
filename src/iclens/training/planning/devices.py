"""Machines to plan for: memory, arithmetic, bandwidth, and how much of these a training run reaches.

Peaks are those of the vendors' data sheets, dense (without structured sparsity), in decimal units. The
reached fractions are assumptions, stated here once; a plan multiplies peaks by them.
"""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from iclens.core import ConfigError, nearest

GB = 10**9


@dataclass(frozen=True)
class Device:
    """A machine to train on.

    Args:
        name: as given to `--device`.
        kind: `cuda` or `cpu`.
        memory: bytes.
        bf16_flops: peak of bfloat16 matrix products, FLOP/s.
        fp32_flops: peak of float32 matrix products as PyTorch runs them by default, FLOP/s.
        bandwidth: peak of memory traffic, byte/s.
        matrix_efficiency: assumed fraction of the peak that large matrix products reach.
        memory_efficiency: assumed fraction of the bandwidth that streaming and gathering reach.
        reserve: bytes that no tensor can have: driver context, libraries, interpreter.
        slack: assumed fraction of tensor bytes lost to the allocator's rounding and fragments.
        source: where the peaks are from.
    """

    name: str
    kind: str
    memory: int
    bf16_flops: float
    fp32_flops: float
    bandwidth: float
    matrix_efficiency: float
    memory_efficiency: float
    reserve: int
    slack: float
    source: str

    def matrix_rate(self, dtype: str) -> float:
        """Reached FLOP/s of matrix products in `float32` or `bfloat16`."""
        return self.matrix_efficiency * (self.bf16_flops if dtype == "bfloat16" else self.fp32_flops)

    @property
    def traffic_rate(self) -> float:
        """Reached byte/s."""
        return self.memory_efficiency * self.bandwidth


def _card(name: str, memory_gb: int, bf16: float, fp32: float, bandwidth: float, source: str) -> Device:
    return Device(
        name, "cuda", memory_gb * GB, bf16 * 1e12, fp32 * 1e12, bandwidth * 1e12,
        matrix_efficiency=0.65, memory_efficiency=0.7, reserve=GB, slack=0.03, source=source,
    )  # fmt: skip


CARDS = {
    card.name: card
    for card in (
        _card("a100-40gb", 40, 312, 19.5, 1.555, "NVIDIA A100 data sheet, SXM 40 GB"),
        _card("a100-80gb", 80, 312, 19.5, 2.039, "NVIDIA A100 data sheet, SXM 80 GB"),
        _card("h100-80gb", 80, 989, 67, 3.35, "NVIDIA H100 data sheet, SXM"),
        _card("h200", 141, 989, 67, 4.8, "NVIDIA H200 data sheet, SXM"),
    )
}
NAMES = (*CARDS, "cpu")
_KNOWN = (
    ("A100", "80GB", "a100-80gb"), ("A100", "40GB", "a100-40gb"), ("H100", "", "h100-80gb"),
    ("H200", "", "h200"),
)  # fmt: skip
"""Words in the name that a driver reports → device; the first match counts."""


def cpu() -> Device:
    """This machine without an accelerator.

    Assumed for each core: 96 GFLOP/s in float32 (two 8-lane fused multiply-adds a cycle at 3 GHz), the same
    in bfloat16; 10 GB/s of memory traffic.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(cores, int(os.environ.get("OMP_NUM_THREADS") or cores))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(
        "cpu", "cpu", memory, 96e9 * threads, 96e9 * threads, 10e9 * threads,
        matrix_efficiency=0.8, memory_efficiency=0.7, reserve=0, slack=0.0,
        source=f"{threads} cores of this machine, rates assumed",
    )  # fmt: skip


def find_device(name: str | None, wanted: str = "cpu") -> Device:
    """The device to plan for.

    Args:
        name: one of `NAMES`; None for the present machine.
        wanted: torch device of the configuration; with no name, `cpu` plans for this machine's CPU and
            anything else for its accelerator.

    Raises:
        ConfigError: for an unknown name, or when no name is given and the accelerator is not there.
    """
    if name is None:
        return cpu() if wanted == "cpu" else present_device()
    if name == "cpu":
        return cpu()
    if name not in CARDS:
        raise ConfigError(f"device '{name}'", "unknown", nearest(name, NAMES))
    return CARDS[name]


def present_device() -> Device:
    """The accelerator of this machine: its own memory, the rates of the card it is.

    Raises:
        ConfigError: when there is none, or it is a card without known rates.
    """
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            "the present device", "no accelerator is here", f"Name one by --device: {', '.join(NAMES)}."
        )
    found = torch.cuda.get_device_properties(0)
    card = recognised(found.name, found.total_memory)
    if card is None:
        raise ConfigError(
            f"the present device '{found.name}'",
            "its rates are not known",
            f"Name one of {', '.join(NAMES)}.",
        )
    return card


def recognised(reported: str, memory: int) -> Device | None:
    """The card that a driver reports by this name, with the memory it reports; None for an unknown one."""
    for model, size, name in _KNOWN:
        if model in reported and size in reported.replace(" ", ""):
            return replace(CARDS[name], memory=memory)
    return None


def peak_memory() -> int:
    """Most bytes that this process has held so far: on the accelerator when it used one, else RSS."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_reserved())
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
