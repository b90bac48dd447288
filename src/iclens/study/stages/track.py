"""PromptSet → LatentActs: every latent at every role of every arm, and the beliefs beside them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from iclens.growth.bayes import Calibration, calibrate
from iclens.model.run import answer_probs
from iclens.prompts.build import PromptSet, build_prompts, exact_answer_probs, in_mixture
from iclens.study import shards
from iclens.study.bench import Bench, beliefs_file, latents_file
from iclens.study.store import save_arrays, save_json
from iclens.table import Floats
from iclens.track import belief_log_odds

CALIBRATION = "calibration.json"
CALIBRATION_SEED, CALIBRATION_PROMPTS = 1_000_003, 128
"""Prompts of another seed than the study's: guess and lapse never come from the curve they correct."""


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write the latents of every arm, site and role, and the beliefs of every arm.

    Where every rank has tracked its share of the prompts (`study.shards`), the parts are joined; otherwise
    all prompts are tracked here. Files: `calibration.json` with guess and lapse;
    `latents_<arm>_<site>_<role>.safetensors`; `beliefs_<arm>.safetensors` with log-odds in nats, `model` and
    `exact` [prompt example belief], `exact` NaN with a reason where the posterior is unknown.
    """
    section, found = bench.config.track, {}
    parts = shards.complete(bench)
    for arm in bench.config.prompts.arms:
        prompts = bench.prompts(arm)
        tracked = shards.joined(parts, arm) if parts else shards.track_prompts(bench, prompts)
        for (site, role), latents in tracked.latents.items():
            latents.save(folder / latents_file(arm, site, role))
        exact, reason = _exact(bench, prompts)
        save_arrays(folder / beliefs_file(arm), {"model": tracked.model, "exact": exact}, reason=reason)
        found[f"top answer is the task's, arm {arm}"] = round(float(tracked.right[:, -1].mean()), 4)
    save_json(folder / CALIBRATION, asdict(_calibration(bench)))
    shared = {"joined from ranks": len(parts)} if parts else {}
    return found | {"sites": [site.short for site in bench.saes], "roles": section.roles} | shared


def _calibration(bench: Bench) -> Calibration:
    """Guess and lapse: P(the task's answer) after no example and after a whole prompt."""
    section = bench.config.prompts
    prompts = build_prompts(
        bench.model.tokenizer, section.rule, arm="T", n_prompts=CALIBRATION_PROMPTS,
        n_examples=section.n_examples, seed=section.seed + CALIBRATION_SEED, inputs=section.inputs,
    )  # fmt: skip
    words = tuple(y for y in dict.fromkeys(prompts.answer.ravel().tolist()) if not y.isdigit())
    probs = answer_probs(
        bench.model,
        prompts.tokens,
        prompts.positions("pre")[[0, -1]],
        extra=words,
        batch=bench.config.track.batch,
    )
    right = probs.of(prompts.answer[:, [0, -1]])
    return calibrate(right[:, 0], right[:, 1])


def _exact(bench: Bench, prompts: PromptSet) -> tuple[Floats, str]:
    """The exact posterior's beliefs in log-odds [prompt example belief], or NaN and the reason."""
    declared = bench.config.declared
    unknown = np.full((*prompts.x.shape, len(bench.config.belief_names)), np.nan)
    if bench.mixture is None:
        return unknown, "the model's folder declares no mixture"
    possible = np.flatnonzero(in_mixture(bench.mixture, prompts))
    if possible.size == 0:
        return unknown, f"no prompt of arm {prompts.arm} is one that the mixture can give"
    some = prompts.select(possible)
    unknown[possible] = belief_log_odds(exact_answer_probs(bench.mixture, some), some, declared=declared)
    left = prompts.n_prompts - len(possible)
    return unknown, f"{left} prompts hold a label that the mixture never gives" if left else ""
