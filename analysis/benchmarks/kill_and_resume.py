"""Does training that was killed at any moment end in the same weights, to the bit?

1. The built-in model's SAEs are trained without interruption. 2. Each trial trains them again in a process of
its own, kills it with SIGKILL at a random moment (before, in and after checkpoints, which are frequent), and
continues from what is on the disk. 3. The files are compared. Then SIGTERM: exit code 143, and a checkpoint.

    OMP_NUM_THREADS=1 python analysis/benchmarks/kill_and_resume.py [--kills 20] [--terms 10] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from iclens.core import IclensError
from iclens.training import loop
from iclens.training.config import TrainConfig, parse_train_config
from iclens.training.loop import train_saes

ROOT = Path(__file__).resolve().parents[2]


def declared(tokens: int) -> TrainConfig:
    """Two sites, one of them a transcoder's, with a checkpoint every other step."""
    return parse_train_config({
        "model": {"name": str(ROOT / "checkpoints" / "icl-tiny")},
        "data": {"kind": "mixture", "examples": 8, "prompts": [{"task": "2x+3", "weight": 0.1}]},
        "saes": {
            "sites": ["L1.resid_post", {"site": "L2.mlp_in", "target": "L2.mlp_out", "k": 8}],
            "d_sae": 256, "k": 16,
        },
        "training": {
            "tokens": tokens, "batch_tokens": 512, "buffer_tokens": 4096, "forward_contexts": 16, "lr": 0.003,
            "dead_after_tokens": 2048, "scaling_tokens": 2048, "aux_k": 32,
        },
        "checkpoints": {"every_tokens": 1024, "keep": 2},
        "held_out": {"contexts": 4},
    })  # fmt: skip


def started(config: TrainConfig, out: Path) -> int:
    """Train in a forked process, continuing where there is something; its number."""
    process = os.fork()
    if process:
        return process
    try:
        train_saes(config, out, resume="newest")
    except IclensError as error:
        os._exit(error.exit_code)
    os._exit(0)


def ended(process: int) -> int:
    """The exit code of a process, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def digests(out: Path) -> dict[str, str]:
    """sha256 of every file that training decides."""
    files = (p for p in sorted(out.rglob("*")) if p.is_file() and p.parent != out)
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def interrupted(config: TrainConfig, out: Path, number: int, after: float) -> int:
    """Start, wait for the first metrics and then `after` seconds, send a signal; the exit code."""
    process, pace = started(config, out), out.with_name(f"{out.name}.checkpoints") / "metrics" / "pace.jsonl"
    while not out.exists() and not (pace.is_file() and pace.stat().st_size):
        time.sleep(0.002)
    time.sleep(after)
    os.kill(process, number)
    return ended(process)


def main() -> None:
    """Run the trials and print their outcome as JSON; exit 1 unless all are as they should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=30_720)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    loop.EVERY = 4
    config, rng = declared(asked.tokens), random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        begun = time.monotonic()
        if ended(started(config, out / "whole")):
            sys.exit("the uninterrupted run failed")
        expected, reach = digests(out / "whole"), time.monotonic() - begun
        same, places = 0, []
        for trial in range(asked.kills):
            folder = out / f"kill{trial}"
            code = interrupted(config, folder, signal.SIGKILL, rng.uniform(0, 0.6 * reach))
            held = sorted(p.name for p in (out / f"kill{trial}.checkpoints").glob("0*"))
            places.append(int(held[-1]) if held else 0 if code else asked.tokens)
            if code and ended(started(config, folder)):
                print(f"trial {trial}: continuing failed", file=sys.stderr)
            same += folder.exists() and digests(folder) == expected
        left = 0
        for trial in range(asked.terms):
            code = interrupted(config, out / f"term{trial}", signal.SIGTERM, rng.uniform(0, 0.6 * reach))
            held = list((out / f"term{trial}.checkpoints").glob("0*/state.json"))
            left += (code == 128 + signal.SIGTERM and bool(held)) or (code == 0)
        print(json.dumps({
            "kills": asked.kills, "bit_identical": same, "continued_at": places, "sigterms": asked.terms,
            "with_checkpoint_or_done": left, "seconds_uninterrupted": round(reach, 1),
        }))  # fmt: skip
        sys.exit(0 if same == asked.kills and left == asked.terms else 1)


if __name__ == "__main__":
    main()
