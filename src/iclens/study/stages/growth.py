"""LatentActs of two arms → GrowthTable; and the beliefs against the exact posterior."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from iclens.growth.bayes import agreement, fit_log_odds, linear_part
from iclens.growth.beliefs import belief_table
from iclens.growth.test import test_arms
from iclens.names import BELIEFS, Site
from iclens.study.bench import Bench, beliefs_file
from iclens.study.store import save_json
from iclens.tables.arrays import Floats
from iclens.tables.trajectories import examples_seen

GROWTH, BELIEF_TABLE, BAYES = "growth.parquet", "beliefs.parquet", "bayes.json"


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write `growth.parquet`, `beliefs.parquet` and `bayes.json`."""
    section = bench.config.prompts
    treated, control = section.arms[:2]
    places = [(Site.parse(site), role) for site in bench.facts["saes"] for role in bench.config.track.roles]
    table = test_arms(
        {place: bench.latents(treated, *place) for place in places},
        {place: bench.latents(control, *place) for place in places},
        prompts=(bench.prompts(treated), bench.prompts(control)),
        q=bench.config.growth.q,
        decoder_norms=bench.decoder_norms,
    )
    table.save(folder / GROWTH)
    n_seen = examples_seen("pre", section.n_examples)
    kept = {arm: bench.arrays("track", beliefs_file(arm)) for arm in section.arms}
    model = {arm: arrays["model"] for arm, arrays in kept.items()}
    exact = {arm: arrays["exact"] for arm, arrays in kept.items() if np.isfinite(arrays["exact"]).any()}
    belief_table(n_seen, model, exact=exact, seed=section.seed).save(folder / BELIEF_TABLE)
    own = model[treated]
    true = exact.get(treated, np.full_like(own, np.nan))
    fits = {name: _fit(n_seen, own[..., i], true[..., i], section.seed) for i, name in enumerate(BELIEFS)}
    save_json(folder / BAYES, fits)
    verdicts = {name: int((table["verdict"] == name).sum()) for name in ("grows", "falls")}
    return verdicts | {"tested": int(np.isfinite(table["q_value"]).sum()), "arms": [treated, control]}


def _fit(n_seen: np.ndarray, model: Floats, exact: Floats, seed: int) -> dict[str, Any]:
    """LO_0 + nλ of model and exact posterior over the exact one's linear part, and their agreement."""
    defined = exact[np.isfinite(exact).all(axis=1)]
    over = linear_part(n_seen, defined.mean(axis=0)) if len(defined) else None
    return {
        "model": asdict(fit_log_odds(n_seen, model, over=over, seed=seed)),
        "exact": asdict(fit_log_odds(n_seen, exact, over=over, seed=seed)),
        "agreement": asdict(agreement(exact, model, seed=seed)),
    }
