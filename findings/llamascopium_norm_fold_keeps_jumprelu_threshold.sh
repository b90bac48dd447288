#!/usr/bin/env bash
# Folding the dataset norm into a JumpReLU SAE of llamascopium changes which latents are active.
#
# Such an SAE is trained on activations that are scaled to length √d. `standardize_parameters_of_dataset_norm` is
# called once for inference, so that the SAE takes raw activations. It scales both biases and, where they read and
# write with other norms, the decoder. JumpReLU's threshold stays in the units of training. Before the fold a latent
# fires when factor · (x·w) + b exceeds θ, afterwards when x·w + b / factor does. So latents fire that did not
# (activations longer than √d), or fall silent (shorter ones). ReLU and TopK SAEs are folded exactly.
#
# llamascopium 2.0.0b34, transformer-lens 3.9.0, torch 2.13.0 (CPU). Seen on 2026-12-01, d = 64, 512 latents, 256 rows, active latents
# before / after the fold, and how many of them differ:
#   JumpReLU, length 2:   13,824 / 0,      13,824 differ
#   JumpReLU, length 32:  13,824 / 49,449, 35,625 differ
#   ReLU, length 2 or 32: 65,323 / 65,323, none differ
# Exit code 0: still so. 1: it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet llamascopium==2.0.0b34 transformer-lens==3.9.0
cd "$work"
OMP_NUM_THREADS=1 WANDB_MODE=disabled "$work/venv/bin/python" - <<'PYTHON'
import math
import sys

import torch
from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

WIDTH, EXPANSION, ROWS = 64, 8, 256
HOOK = "blocks.0.hook_resid_post"


def active_before_and_after(act_fn, norm):
    """Which latents fire on rows of mean length `norm`, scaled by hand, and raw after the fold."""
    torch.manual_seed(0)
    config = SAEConfig(
        hook_point_in=HOOK, hook_point_out=HOOK, d_model=WIDTH, expansion_factor=EXPANSION, act_fn=act_fn,
        top_k=16, norm_activation="dataset-wise", sparsity_include_decoder_norm=False, device="cpu", dtype=torch.float32,
    )
    sae = SparseAutoEncoder(config)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_(std=0.1)
        if act_fn == "jumprelu":
            sae.activation_function.log_jumprelu_threshold.fill_(math.log(1.0))
    sae.set_dataset_average_activation_norm({HOOK: norm})
    rows = torch.nn.functional.normalize(torch.randn(ROWS, WIDTH), dim=1) * norm
    with torch.no_grad():
        before = sae.encode(rows * math.sqrt(WIDTH) / norm) > 0
        sae.standardize_parameters_of_dataset_norm()
        after = sae.encode(rows) > 0
    return before, after


as_seen = True
for act_fn in ("jumprelu", "relu"):
    for norm in (2.0, 32.0):
        before, after = active_before_and_after(act_fn, norm)
        differ = int((before != after).sum())
        print(f"{act_fn}, length {norm:g}: {int(before.sum()):,} / {int(after.sum()):,}, {differ:,} differ")
        as_seen &= (differ > 0.1 * int(before.sum())) == (act_fn == "jumprelu")
sys.exit(0 if as_seen else 1)
PYTHON
