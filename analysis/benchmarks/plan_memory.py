"""Is the planned peak memory that of a real run? Three sizes, each in a process of its own on the CPU.

Random Llamas of growing width are written to a scratch folder, and SAEs of growing width are trained on them
for a few steps, by `iclens train`'s own code. The peak is what the operating system counted (VmHWM). Two
figures of the plan were fitted to the runs in `FITTED`; those that judge it are others.

    python analysis/benchmarks/plan_memory.py SCRATCH [--repeats 2]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from random_llama import write_folder

from iclens.model.shape import LLAMA3_8B
from iclens.training.config import TrainConfig, parse_train_config
from iclens.training.loop import train_saes
from iclens.training.plan import cpu, plan

TOLERANCE = 0.10


@dataclass(frozen=True)
class Size:
    """One run."""

    d_model: int
    blocks: int
    dtype: str
    d_sae: int
    sites: tuple[str, ...]
    batch: int
    buffer: int


FITTED = {
    "fitted-small": Size(256, 4, "float32", 8192, ("L1.resid_post", "L2.mlp_out"), 2048, 16_384),
    "fitted-middle": Size(
        1024, 4, "bfloat16", 16_384, ("L1.resid_post", "L2.mlp_out", "L2.resid_post"), 1024, 4096
    ),
    "fitted-large": Size(2048, 3, "bfloat16", 32_768, ("L1.resid_post",), 512, 2048),
}
UNSEEN = {
    "small": Size(512, 6, "float32", 6144, ("L2.mlp_out", "L3.mlp_out", "L4.resid_post"), 4096, 32_768),
    "middle": Size(768, 5, "float32", 24_576, ("L0.resid_post", "L3.resid_post"), 512, 8192),
    "large": Size(1536, 4, "bfloat16", 24_576, ("L1.mlp_out", "L2.resid_post"), 256, 16_384),
}
SIZES = FITTED | UNSEEN


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


def model_config(size: Size) -> dict[str, Any]:
    """A Llama of this width, with heads of 64 and the proportions of llama-3-8b."""
    heads = size.d_model // 64
    return LLAMA3_8B | {
        "hidden_size": size.d_model, "intermediate_size": 7 * size.d_model // 2, "num_attention_heads": heads,
        "num_key_value_heads": heads // 4, "num_hidden_layers": size.blocks, "vocab_size": 8192,
    }  # fmt: skip


def run_config(folder: Path, size: Size) -> TrainConfig:
    """A few steps: enough for half of the buffer to be filled again."""
    return parse_train_config({
        "model": {"name": str(folder), "load": "needed", "dtype": size.dtype},
        "data": {"kind": "mixture", "examples": 16},
        "saes": {"sites": list(size.sites), "d_sae": size.d_sae, "k": 32},
        "training": {
            "tokens": size.batch + size.buffer // 2, "batch_tokens": size.batch,
            "buffer_tokens": size.buffer, "scaling_tokens": 512, "forward_contexts": 16, "lr": 0.001,
            "dead_after_tokens": 10_000_000,
        },
        "checkpoints": {"every_minutes": None},
        "held_out": {"contexts": 16},
    })  # fmt: skip


def measured(name: str, scratch: Path) -> dict[str, Any]:
    """Train one size in this process; its peak memory."""
    config = run_config(scratch / name, SIZES[name])
    begun = time.monotonic()
    train_saes(config, scratch / f"{name}-saes")
    return {"peak": peak_memory(), "seconds": round(time.monotonic() - begun, 1)}


def compared(name: str, scratch: Path) -> dict[str, Any]:
    """Write a model, train in a fresh process, and set the plan beside what was measured."""
    write_folder(scratch / name, model_config(SIZES[name]), blocks_per_shard=2)
    run = subprocess.run(
        [sys.executable, __file__, str(scratch), "--measure", name],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = json.loads(run.stdout.splitlines()[-1])
    planned = plan(run_config(scratch / name, SIZES[name]), cpu())
    return {
        "size": name, "planned_gb": round(planned.peak / 1e9, 3),
        "measured_gb": round(found["peak"] / 1e9, 3),
        "ratio": round(planned.peak / found["peak"], 3), "planned_seconds": round(planned.seconds, 1),
        "seconds": found["seconds"], "phase": max(planned.peaks, key=lambda phase: planned.peaks[phase]),
    }  # fmt: skip


def main() -> int:
    """Print a line of JSON for each size; 1 when one is off by more than the tolerance."""
    parser = argparse.ArgumentParser(description="Planned against measured peak memory.")
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(UNSEEN))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--measure", choices=SIZES, help="one size, in this process")
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measured(asked.measure, asked.scratch)))
        return 0
    worst = 0.0
    for name in asked.sizes * asked.repeats:
        try:
            found = compared(name, asked.scratch)
        finally:
            for folder in asked.scratch.glob(f"{name}*"):
                shutil.rmtree(folder)
        print(json.dumps(found), flush=True)
        worst = max(worst, abs(found["ratio"] - 1))
    return 1 if worst > TOLERANCE else 0


if __name__ == "__main__":
    raise SystemExit(main())
