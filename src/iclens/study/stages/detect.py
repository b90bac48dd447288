"""LatentActs of the arms, discovery prompts → which latents grow, and the short list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from iclens.activations import LatentActs, select_prompts
from iclens.core import Site
from iclens.growth.detect import MIN_ACTIVE, slope_moments, test_arms
from iclens.schemas import GrowthTable
from iclens.stats import benjamini_hochberg
from iclens.study.bench import Bench
from iclens.study.growth_inputs import splits_of
from iclens.table import Ints

DETECTION, SHORTLIST = "detection.parquet", "shortlist.parquet"


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write `detection.parquet` (every latent) and `shortlist.parquet` (what the later gates look at)."""
    growth = bench.config.growth
    splits = splits_of(bench.config)
    treated, controls = bench.config.treated, bench.config.controls
    own = arm_latents(bench, treated, splits.discovery)
    table = test_arms(
        own,
        [arm_latents(bench, arm, splits.discovery) for arm in controls],
        prompts=[bench.prompts(arm).select(splits.discovery) for arm in (treated, *controls)],
        q=growth.q,
        decoder_norms=bench.decoder_norms,
    )
    table.save(folder / DETECTION)
    short = shortlisted(table, growth.shortlist)
    short.save(folder / SHORTLIST)
    verdicts = {name: int((table["verdict"] == name).sum()) for name in ("grows", "falls")}
    return verdicts | {
        "tested": int(np.isfinite(table["q_value"]).sum()),
        "short list": len(short),
        "rising in their own arm": sum(rising(acts, growth.q) for acts in own.values()),
        "arms": [treated, *controls],
        "prompts": [len(splits.discovery), len(splits.shape), len(splits.confirm)],
    }


def rising(acts: LatentActs, q: float) -> int:
    """Latents whose trajectory rises in their own arm, controls not subtracted."""
    nothing = replace(
        acts, indptr=np.zeros_like(acts.indptr), index=acts.index[:0], value=acts.value[:0], by_latent=None
    )
    moments = slope_moments(acts, nothing)
    tested = np.where(moments.n_active >= MIN_ACTIVE, moments.p_rising(), np.nan)
    return int((benjamini_hochberg(tested) <= q).sum())


def places(bench: Bench) -> list[tuple[Site, str]]:
    """Every site and role that is followed."""
    return [(Site.parse(site), role) for site in bench.facts["saes"] for role in bench.config.track.roles]


def arm_latents(bench: Bench, arm: str, prompts: Ints) -> dict[tuple[Site, str], LatentActs]:
    """An arm's latents at every place, some prompts only."""
    return {place: select_prompts(bench.latents(arm, *place), prompts) for place in places(bench)}


def shortlisted(table: GrowthTable, n: int) -> GrowthTable:
    """The clearest growers of every site and role in turn, until `n` are listed; clearest first.

    Clear is a slope many standard errors above 0: the floor of p (see `growth.detect`) makes many p equal.
    """
    grows = table.growing()
    clear = grows["slope"] / (grows["ci_high"] - grows["ci_low"])
    order = np.argsort(-clear, kind="stable")
    turn = np.empty(len(grows), dtype=int)
    seen: dict[tuple[str, str], int] = {}
    for row in order:
        place = (str(grows["site"][row]), str(grows["role"][row]))
        turn[row] = seen[place] = seen.get(place, -1) + 1
    return grows.take(np.lexsort((-clear, turn))[:n])
