#!/usr/bin/env bash
# A BatchTopK SAE of sae_lens that was trained for a short time is another SAE once it is saved and loaded.
#
# In training exactly k latents per token are active. `save_inference_model` writes a JumpReLU SAE whose one
# threshold is a moving average (rate .01) of each batch's smallest kept activation, and that average starts at 0
# without a correction for it. So the threshold reaches its value only after some 400 steps: saved earlier, the SAE
# loads without a word, its metadata states k, and many times k latents are active.
#
# sae-lens 6.54.12, torch 2.13.0 (CPU). Seen on 2026-11-30, k = 8, 512 latents, active latents per token as trained / as loaded:
#   step 0    8.0 / 249.7
#   step 100  8.0 / 66.2
#   step 200  8.0 / 17.1
#   step 800  8.0 / 7.7
# Exit code 0: still so. 1: it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet sae-lens==6.54.12 transformer-lens==3.9.0
cd "$work"
OMP_NUM_THREADS=1 "$work/venv/bin/python" - <<'PYTHON'
import sys
import tempfile

import torch
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput

K, LATENTS, WIDTH = 8, 512, 32
torch.manual_seed(0)
directions = torch.nn.functional.normalize(torch.randn(128, WIDTH), dim=1)


def batch(rows=1024):
    """Sums of about four of 128 directions, [row width]."""
    active = torch.rand(rows, 128) < 4 / 128
    return (active * (1 + torch.rand(rows, 128))) @ directions


sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=K, device="cpu"))
optimiser = torch.optim.Adam(sae.parameters(), lr=1e-3)
loaded_l0 = {}
for step in range(801):
    if step in (0, 100, 200, 800):
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            rows = batch()
            sae.save_inference_model(folder)
            trained, loaded = sae.encode(rows), SAE.load_from_disk(folder).encode(rows)
            loaded_l0[step] = float((loaded > 0).sum(dim=1).float().mean())
            trained_l0 = float((trained > 0).sum(dim=1).float().mean())
            print(f"step {step}: {trained_l0:.1f} active in training, {loaded_l0[step]:.1f} once loaded")
    output = sae.training_forward_pass(
        TrainStepInput(
            sae_in=batch(), coefficients={}, dead_neuron_mask=None, n_training_steps=step, is_logging_step=False
        )
    )
    optimiser.zero_grad()
    output.loss.backward()
    optimiser.step()
as_seen = loaded_l0[0] > 20 * K and loaded_l0[100] > 4 * K and loaded_l0[200] > 1.5 * K and loaded_l0[800] < 1.25 * K
sys.exit(0 if as_seen else 1)
PYTHON
