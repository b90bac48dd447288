"""Does a study killed at any moment end in the same tables, to the byte, and is none ever half there?

1. A small study of the built-in model runs without interruption; then again in another folder. 2. Each trial
kills a study with SIGKILL at a random moment of its part of the run, reads every table and array of the
finished stages that it left, and runs it again. 3. The outputs of all stages are compared by hash.

    OMP_NUM_THREADS=1 python analysis/benchmarks/kill_study.py [--kills 10] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from safetensors import safe_open

KEPT = (".parquet", ".safetensors", ".json")
ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
study: killed
model: {{folder: {model}}}
saes: {{folder: {saes}}}
prompts: {{task: 2x+3, arms: [T, S, D, W, Wr, N5], n_prompts: 80, n_examples: 6}}
track: {{sites: [L2.resid_post, L2.mlp_out], roles: [pre, lab], beliefs: ["against:3x+1"]}}
growth: {{shortlist: 20, dose_latents: 2, dose_prompts: 8, n_controls: 10}}
transforms:
  {{n_prompts: 2, n_examples: 6, roles: [pre], tasks: [2x, 2x+1, 2x+3, x+1, x+2, 3x, 3x+1, word:parity]}}
sweep: {{donor_examples: 3, n_prompts: 4, roles: [pre, lab]}}
patch: {{donor_examples: 3, n_prompts: 8, n_tested: 2, n_controls: 4, sites: [L2.resid_post]}}
dashboard: {{pages_per_site: 3, search_prompts: 8}}
"""


def outputs(runs: Path) -> dict[str, str]:
    """Hash of every table and array of the finished stages; pages name their run, and are left out."""
    (run,) = runs.glob("killed/*Z-*")
    found = {}
    for file in sorted(run.glob("[0-9][0-9]_*/**/*")):
        if file.suffix in KEPT and file.name != "stage.json" and ".new/" not in str(file):
            name = str(file.relative_to(run))
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
            if file.suffix == ".parquet":
                pd.read_parquet(file)
            elif file.suffix == ".safetensors":
                with safe_open(file, framework="numpy") as arrays:
                    list(arrays.keys())
    return found


def start(config: Path, runs: Path) -> subprocess.Popen[bytes]:
    """The study in a process of its own."""
    code = "from iclens.cli import main; main()"
    command = [sys.executable, "-c", code, "study", str(config), "--runs", str(runs)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen[bytes]) -> None:
    """Wait for it; stop here when it failed."""
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"the study failed: {said.decode()[-500:]}")


def main() -> None:
    """Print what each kill left, and whether all outputs are those of the uninterrupted run."""
    parser = argparse.ArgumentParser(description="Kill a study at random moments and go on.")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as place:
        config = Path(place) / "killed.yaml"
        checkpoints = ROOT / "checkpoints"
        config.write_text(CONFIG.format(model=checkpoints / "icl-tiny", saes=checkpoints / "icl-tiny-saes"))
        started = time.monotonic()
        finished(start(config, Path(place) / "whole"))
        seconds = time.monotonic() - started
        wanted = outputs(Path(place) / "whole")
        finished(start(config, Path(place) / "again"))
        again = outputs(Path(place) / "again")
        print(f"uninterrupted: {len(wanted)} files in {seconds:.0f} s; again: {again == wanted}")
        same = 0
        for trial in range(asked.kills):
            # One moment in each part of the run, so that the late stages have their turn.
            moment = rng.uniform(trial, trial + 1) / asked.kills * seconds
            runs = Path(place) / f"trial{trial}"
            process = start(config, runs)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            left = outputs(runs) if list(runs.glob("killed/*Z-*")) else {}
            whole = all(wanted[name] == value for name, value in left.items())
            finished(start(config, runs))
            same += whole and outputs(runs) == wanted
            print(f"killed after {moment:5.1f} s: left {len(left)} files, as wanted: {whole}")
        print(f"the same outputs, none half written: {same} of {asked.kills}")


if __name__ == "__main__":
    main()
