"""Single latents from run A into run B → PatchTable; and how much of A a patch must carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from iclens.names import Site
from iclens.patching.ladder import patch_ladder
from iclens.patching.latents import patch_latents
from iclens.patching.runs import build_runs
from iclens.study.bench import Bench
from iclens.study.results import PATCH_Q
from iclens.tables.patches import LadderTable, PatchTable

PATCHES, LADDER = "patches.parquet", "ladder.parquet"
TAIL_HOOKS = ("resid_pre", "resid_post", "mlp_out")
"""Hooks at which an addition enters the residual stream as it is."""


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write `patches.parquet` and `ladder.parquet` of every patched site."""
    section, prompts = bench.config.patch, bench.config.prompts
    runs = build_runs(
        bench.model.tokenizer,
        prompts.rule,
        recipient=section.recipient,
        n_prompts=section.n_prompts,
        donor_examples=section.donor_examples,
        seed=section.seed,
        inputs=prompts.inputs,
    )
    wanted = None if section.sites is None else {Site.parse(site) for site in section.sites}
    patches, ladders, skipped = [], [], []
    for site, sae in bench.saes.items():
        if site.hook not in TAIL_HOOKS or (wanted is not None and site not in wanted):
            skipped.append(site.short)
            continue
        found = patch_latents(
            bench.model,
            sae,
            runs,
            n_tested=section.n_tested,
            n_controls=section.n_controls,
            seed=section.seed,
        )
        patches.append(found)
        ladders.append(patch_ladder(bench.model, sae, runs, found, seed=section.seed))
    table = PatchTable.concat(patches)
    table.save(folder / PATCHES)
    LadderTable.concat(ladders).save(folder / LADDER)
    called, tested = table.where(table["q_value"] <= PATCH_Q), table.where(table["n_controls"] > 0)
    return {
        "latents patched": len(set(zip(table["site"], table["latent"], strict=True))),
        "tested": len(set(zip(tested["site"], tested["latent"], strict=True))),
        f"with an effect at q ≤ {PATCH_Q}": len(set(zip(called["site"], called["latent"], strict=True))),
        "largest tested effect, nats": round(float(np.abs(tested["effect"]).max(initial=0.0)), 3),
        "sites not patched": skipped or "none",
    }
