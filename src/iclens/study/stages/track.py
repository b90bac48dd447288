"""PromptSet → LatentActs: every latent at every role of every arm, and the beliefs beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from iclens.errors import TaskError
from iclens.names import BELIEFS
from iclens.study.bench import Bench, beliefs_file, latents_file
from iclens.study.store import save_arrays
from iclens.tables.arrays import Floats
from iclens.tables.prompts import PromptSet
from iclens.tasks.prompts import exact_answer_probs
from iclens.tracking.beliefs import belief_log_odds
from iclens.tracking.track import track


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write the latents of every arm, site and role, and the beliefs of every arm.

    Files: `latents_<arm>_<site>_<role>.safetensors`; `beliefs_<arm>.safetensors` with log-odds in nats,
    `model` and `exact` [prompt example belief], `exact` NaN with a reason where the posterior is unknown.
    """
    section, found = bench.config.track, {}
    for arm in bench.config.prompts.arms:
        prompts = bench.prompts(arm)
        tracked = track(bench.model, bench.saes, prompts, roles=tuple(section.roles), batch=section.batch)
        for (site, role), latents in tracked.latents.items():
            latents.save(folder / latents_file(arm, site, role))
        model = belief_log_odds(tracked.probs, prompts)
        exact, reason = _exact(bench, prompts)
        save_arrays(folder / beliefs_file(arm), {"model": model, "exact": exact}, reason=reason)
        right = np.array(tracked.probs.answers)[tracked.probs.top()] == prompts.answer
        found[f"top answer is the task's, arm {arm}"] = round(float(right[:, -1].mean()), 4)
    return found | {"sites": [site.short for site in bench.saes], "roles": section.roles}


def _exact(bench: Bench, prompts: PromptSet) -> tuple[Floats, str]:
    """The exact posterior's beliefs in log-odds [prompt example belief], or NaN and the reason."""
    unknown = np.full((*prompts.x.shape, len(BELIEFS)), np.nan)
    if bench.mixture is None:
        return unknown, "the model's folder declares no mixture"
    try:
        return belief_log_odds(exact_answer_probs(bench.mixture, prompts), prompts), ""
    except TaskError as outside:
        return unknown, str(outside)
