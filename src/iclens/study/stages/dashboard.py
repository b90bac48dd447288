"""Every table → pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from iclens.dashboards.records.site import LogitEffect, PatchingView, SiteView
from iclens.dashboards.site import build_site
from iclens.names import Site
from iclens.saes.readout import logit_effects
from iclens.study.bench import Bench
from iclens.study.pages import index as site_view
from iclens.study.pages.concepts import concepts
from iclens.study.pages.growth import additive
from iclens.study.pages.latent import (
    PAGES_REASON,
    Seen,
    histogram,
    latent_rows,
    latent_views,
    ranked,
    top_prompts,
)
from iclens.study.results import Results
from iclens.tables.prompts import PromptSet
from iclens.tracking.display import token_activations

QUESTION = (
    "Does in-context learning add features, one update per example, and which features? {task} is shown in "
    "context; every latent of {n} SAEs is followed over the examples, tested, identified and patched."
)


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write `site/index.html` and the pages around it."""
    results, n = Results(bench.run), bench.config.dashboard.pages_per_site
    chosen = {site: ranked(results, site, n) for site in results.sites}
    seen = _seen(bench, results, chosen)
    growth, quality = results.table("growth"), results.table("quality")
    rows = latent_rows(results, {site.short: found.density for site, found in seen.items()})
    pages = [
        view for site, latents in chosen.items() for view in latent_views(results, site, latents, seen[site])
    ]
    view = SiteView(
        title=bench.config.study,
        question=QUESTION.format(task=bench.config.prompts.task, n=len(results.sites)),
        findings=site_view.findings(results),
        provenance=site_view.provenance(results),
        quality=site_view.quality_rows(quality),
        beliefs=site_view.belief_curves(results),
        patching=PatchingView(site_view.sweeps(results), site_view.heads(results)),
        growth=site_view.growth_counts(growth),
        additive=additive(results),
        concepts=concepts(results),
        latents=rows,
        pages=pages,
        pages_reason=PAGES_REASON.format(n=n),
        notes=site_view.notes(results),
    )
    built = build_site(
        view, folder / "site", earlier=bench.run.path / folder.name.removesuffix(".new") / "site"
    )
    counts = {"drawn": built.drawn, "kept from before": built.kept}
    return {"latent pages": len(pages), "latents": len(rows), "files": counts, "index": "site/index.html"}


def _seen(bench: Bench, results: Results, chosen: dict[Site, list[int]]) -> dict[Site, Seen]:
    """Density, top prompts, histograms and logit effects, from one pass over the searched prompts."""
    prompts = _searched(bench, results)
    decode = bench.model.tokenizer.decode
    text = {int(token): str(decode([int(token)])) for token in np.unique(prompts.tokens)}
    tokens = [[text[int(token)] for token in row] for row in prompts.tokens]
    titles = [f"task {task}" for task in prompts.task.tolist()]
    activations = token_activations(bench.model, bench.saes, prompts.tokens, batch=bench.config.track.batch)
    after_bos = np.tile(np.arange(prompts.tokens.shape[1]) > 0, prompts.n_prompts)
    top = bench.config.dashboard.top_prompts
    found = {}
    for site, latents in chosen.items():
        columns = activations[site][after_bos].tocsc()
        every = activations[site].tocsc()
        effects = {e.latent: e for e in logit_effects(bench.model, bench.saes[site], latents)}
        histograms = {latent: histogram(columns, latent) for latent in latents}
        found[site] = Seen(
            density=np.diff(columns.indptr) / columns.shape[0],
            prompts={latent: top_prompts(every, latent, tokens, titles, top) for latent in latents},
            histograms={latent: counts for latent, counts in histograms.items() if counts is not None},
            promotes={latent: [LogitEffect(t, v) for t, v in e.top] for latent, e in effects.items()},
            suppresses={latent: [LogitEffect(t, v) for t, v in e.bottom] for latent, e in effects.items()},
        )
    return found


def _searched(bench: Bench, results: Results) -> PromptSet:
    """Prompts of the grid, evenly spread over its tasks."""
    grid = results.grid_prompts
    n = min(bench.config.dashboard.search_prompts, grid.n_prompts)
    return grid.select(np.unique(np.linspace(0, grid.n_prompts - 1, n).round().astype(int)))
