#!/usr/bin/env bash
# A Llama of transformers that was made float64 still computes its norms, and eager attention's softmax, in float32.
#
# `model.double()` or `dtype=torch.float64` gives float64 weights, hidden states and logits, so that an exact check
# (a patch that changes nothing, a gradient by finite differences) seems possible to 1e-12. LlamaRMSNorm casts its
# input to float32 and back, and so does eager attention for its softmax: results are right to 1e-7 only, and say
# float64. sdpa's softmax is computed in float64.
#
# transformers 5.23.0, torch 2.13.0 (CPU). Seen on 2026-11-30:
#   norm: float64, off by 3.0e-07 from torch's own rms_norm in float64
#   eager against sdpa: float64, logits off by 3.7e-08; in float64 throughout, below 1e-13
# Exit code 0: still so. 1: it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet transformers==5.23.0
cd "$work"
OMP_NUM_THREADS=1 "$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)
model = LlamaForCausalLM(config).double().eval()
rows, norm = torch.randn(5, 32, dtype=torch.float64), model.model.norm


def exact(self, hidden):
    return torch.nn.functional.rms_norm(hidden, (hidden.shape[-1],), self.weight, self.variance_epsilon)


def eager_minus_sdpa():
    logits = {}
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        logits[attention] = model(torch.arange(12)[None], use_cache=False).logits
    return logits["eager"].dtype, float((logits["eager"] - logits["sdpa"]).abs().max())


with torch.no_grad():
    norm_off = float((norm(rows) - exact(norm, rows)).abs().max())
    print(f"norm: {norm(rows).dtype}, off by {norm_off:.1e} from torch's own rms_norm in float64")
    dtype, eager_off = eager_minus_sdpa()
    print(f"eager against sdpa: {dtype}, logits off by {eager_off:.1e}")
    modeling_llama.LlamaRMSNorm.forward = exact
    softmax = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda x, dim=-1, dtype=None, **rest: softmax(x, dim=dim)
    _, mended_off = eager_minus_sdpa()
    print(f"with norm and softmax in float64: {mended_off:.1e}")
sys.exit(0 if norm_off > 1e-9 and eager_off > 1e-10 and mended_off < 1e-13 else 1)
PYTHON
