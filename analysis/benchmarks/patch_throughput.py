"""How many single-latent patches per second, against a splice of the SAE with one hook per latent?

1. A 12-block Llama of width 256 with random weights, and an SAE of 4,096 latents at the end of block 5. Runs
A (12 examples of 2x+3) and B (as long, labels deranged), recorded and encoded before the clock starts.
2. Ours: run B prepared, every latent whose activation differs patched alone, every belief read. 3. The
splice: sae_lens' HookedSAETransformer with `use_error_term=True`, a hook that sets one latent at the last
position, one forward pass each. Both alternate in one run, and read the same log-probabilities. 4. Our cost
per row against the blocks above the edit and against the number of rows.

    python analysis/benchmarks/patch_throughput.py [--repeats 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_llama import BUILT_IN, write_folder
from sae_lens import HookedSAETransformer, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights

from iclens.core import Site
from iclens.model.load import LanguageModel, load_model
from iclens.model.tail import Tail, tails_of
from iclens.patching.latents import single_effects
from iclens.patching.receiver import PatchReceiver, prepare_patch, up_to_query
from iclens.patching.runs import build_runs
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae

SHAPE = {
    "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 12, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 32, "initializer_range": 0.06,
}  # fmt: skip
SITE, D_SAE, K = Site(5, "resid_post"), 4096, 64
N_PROMPTS, EXAMPLES, SPLICED = 4, 12, 12
"""Prompts of A and B; examples before the query; latents spliced in one turn."""


def make_sae(seed: int) -> Sae:
    """A TopK SAE with random weights, in sae_lens' own class."""
    torch.manual_seed(seed)
    metadata = SAEMetadata(hook_name=str(SITE), model_name="random-llama")
    config = TopKSAEConfig(
        d_in=256,
        d_sae=D_SAE,
        k=K,
        dtype="float32",
        device="cpu",
        apply_b_dec_to_input=True,
        metadata=metadata,
    )
    network = TopKSAE(config)
    with torch.no_grad():
        network.W_dec.copy_(torch.nn.functional.normalize(torch.randn(D_SAE, 256), dim=1))
        network.W_enc.copy_(network.W_dec.T)
    return Sae(SITE, "random", 256, D_SAE, K, network.requires_grad_(False), Path("random"))


def spliceable(model: LanguageModel) -> HookedSAETransformer:
    """The same weights in sae_lens' transformer, nothing folded or centred."""
    held = model.network.config
    config = HookedTransformerConfig(
        n_layers=held.num_hidden_layers, d_model=held.hidden_size, n_ctx=held.max_position_embeddings,
        d_head=held.head_dim, n_heads=held.num_attention_heads, d_mlp=held.intermediate_size,
        d_vocab=held.vocab_size, n_key_value_heads=held.num_key_value_heads, act_fn="silu",
        normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=held.head_dim,
        rotary_base=int(held.rope_parameters["rope_theta"]), rotary_adjacent_pairs=False, gated_mlp=True,
        final_rms=True, eps=held.rms_norm_eps, device="cpu", original_architecture="LlamaForCausalLM",
    )  # fmt: skip
    spliced = HookedSAETransformer(config)
    spliced.load_state_dict(convert_llama_weights(model.network, config), strict=False)
    return spliced.eval()


@torch.no_grad()
def splice(model: HookedSAETransformer, sae: Sae, tokens: Tensor, latent: int, value: float) -> Tensor:
    """log P at the last position when one latent there is set to `value`, [vocabulary]."""

    def put(acts: Tensor, hook: Any) -> Tensor:
        acts[:, -1, latent] = value
        return acts

    with model.saes(sae.network, use_error_term=True):
        logits = model.run_with_hooks(tokens, fwd_hooks=[(f"{SITE}.hook_sae_acts_post", put)])
    return logits[0, -1].log_softmax(dim=-1)


def ours(model: LanguageModel, receiver: PatchReceiver) -> int:
    """Prepare run B, and patch every latent that differs alone, beliefs read; how many patches that was."""
    tails = tails_of(model, up_to_query(receiver.runs.recipient), receiver.runs.words)
    latents = np.flatnonzero((receiver.change != 0).any(axis=0))
    single_effects(replace(receiver, tails=tails), latents)
    return int((receiver.change != 0).sum())


def agreement(sae: Sae, receiver: PatchReceiver, spliced: HookedSAETransformer, tokens: Tensor) -> float:
    """Largest difference in log P(answer) between the two over a dozen patches of the first prompt."""
    answers = receiver.tails[0].ids
    worst = 0.0
    for latent in np.flatnonzero(receiver.change[0])[:SPLICED]:
        delta = float(receiver.change[0, latent]) * receiver.directions(np.array([latent]))
        one = receiver.tails[0].added(SITE, delta).log_prob[0]
        other = splice(spliced, sae, tokens, int(latent), float(receiver.donor_latents[0, latent]))[answers]
        worst = max(worst, float(np.abs(one - other.numpy()).max()))
    return worst


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def per_row(model: LanguageModel, tokens: np.ndarray) -> None:
    """Cost of a row against the blocks above the edit, and against the number of rows."""
    tail = Tail(model, tokens)
    print("µs per row:      " + "".join(f"{rows:>9d} rows" for rows in (64, 256, 1024)))
    for layer in (2, 6, 10):
        cells = []
        for rows in (64, 256, 1024):
            resid = tail.resid_pre(layer) + 0.01 * torch.randn(rows, model.d_model)
            run = partial(tail.run, resid, layer)
            run()
            cells.append(1e6 * statistics.median(seconds(run) for _ in range(5)) / rows)
        print(f"  {model.n_blocks - layer:2d} blocks above " + "".join(f"{cell:14.1f}" for cell in cells))


def main() -> None:
    """Print the ratio and the cost per row."""
    parser = argparse.ArgumentParser(description="Latent patches per second.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as place:
        config = json.loads((BUILT_IN / "config.json").read_text()) | SHAPE
        write_folder(Path(place) / "model", config, 12)
        model = load_model(Path(place) / "model")
        sae, spliced = make_sae(0), spliceable(model)
        runs = build_runs(
            model.tokenizer, parse_task("2x+3"), recipient="S arm", donor_examples=EXAMPLES,
            n_prompts=N_PROMPTS, seed=0,
        )  # fmt: skip
        receiver = prepare_patch(model, sae, runs, donor_value="instance", seed=0)
        tokens = torch.as_tensor(up_to_query(runs.recipient)[:1])
        print(f"largest difference in log P: {agreement(sae, receiver, spliced, tokens):.1e}")
        latents, rows = np.flatnonzero(receiver.change[0])[:SPLICED], 0
        rates: dict[str, list[float]] = {"ours": [], "splice": []}
        for _ in range(asked.repeats + 1):
            started = time.perf_counter()
            rows = ours(model, receiver)
            rates["ours"].append(rows / (time.perf_counter() - started))
            took = seconds(lambda: [splice(spliced, sae, tokens, int(f), 1.0) for f in latents])
            rates["splice"].append(len(latents) / took)
        one, other = (rates[name][1:] for name in ("ours", "splice"))
        ratios = [a / b for a, b in zip(one, other, strict=True)]
        print(f"{rows} patches in {N_PROMPTS} prompts of {tokens.shape[1]} tokens, {asked.threads} threads")
        print(
            f"patches per second: ours {statistics.median(one):,.0f}, splice {statistics.median(other):.1f}"
        )
        print(f"ratio {statistics.median(ratios):.0f} [{min(ratios):.0f}, {max(ratios):.0f}] (at least 150)")
        per_row(model, up_to_query(runs.recipient)[0])


if __name__ == "__main__":
    main()
