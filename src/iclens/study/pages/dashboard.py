"""Every table → pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iclens.dashboards.records.site import SiteView
from iclens.dashboards.site import Progress, build_site
from iclens.results.features import LATENTS
from iclens.results.read import Results
from iclens.study.pages import index
from iclens.study.pages.claims import claims
from iclens.study.pages.concepts import concepts
from iclens.study.pages.growth import additive
from iclens.study.pages.how import how
from iclens.study.pages.latent import exported, latent_views, tuned_roles
from iclens.study.pages.latent_rows import PAGES_REASON, latent_rows, with_pages
from iclens.study.pages.patching import patching
from iclens.study.pages.prompts import prompts_view
from iclens.study.pages.question import QUESTION
from iclens.study.pages.seen import see
from iclens.study.run import RunContext
from iclens.study.store import save_json
from iclens.training.report import write_report

SITE, TRAINING = "site", "training.html"
"""Folder of the pages inside the stage's, and the page of the SAEs' training beside it."""


def write_pages(run: RunContext, folder: Path) -> dict[str, Any]:
    """Write `site/`, what other tools read of its latents, and of SAEs trained here `training.html`."""
    results = Results(run.folder)
    view = site_view(run, results)
    built = build_site(view, folder / SITE, earlier=_earlier(run, folder), progress=_told(run))
    rows = {row.key: row for row in view.latents}
    if run.config.saes.train is not None:
        write_report(run.sae_folder, folder / TRAINING)
    save_json(folder / LATENTS, [exported(page, rows[page.site, page.latent]) for page in view.pages])
    files = {"drawn": built.drawn, "kept from before": built.kept}
    found = {"latent pages": len(view.pages), "latents": len(view.latents), "files": files}
    return found | {"index": f"{SITE}/index.html"}


def _earlier(run: RunContext, folder: Path) -> Path | None:
    """This run's pages, or else those of the study's newest run that has any."""
    name = f"{folder.name.removesuffix('.new')}/{SITE}"
    others = sorted(run.folder.path.parent.glob(f"*/{name}"))
    own = run.folder.path / name
    return own if own.is_dir() else next(reversed(others), None)


def _told(run: RunContext) -> Progress:
    """Tells how many pages are done."""
    return lambda done, total: run.progress({"step": done, "of": total})


def site_view(run: RunContext, results: Results) -> SiteView:
    """Everything that the pages show."""
    n = run.config.dashboard.pages_per_site
    roles = tuned_roles(results, with_pages(results))
    seen = see(run, results, roles)
    rows = latent_rows(results, {site.short: found.density for site, found in seen.items()})
    paged = {(site.short, latent) for site, latents in roles.items() for latent in latents}
    addresses = {row.key: row.page for row in rows if row.key in paged}

    def address(site: str, latent: int) -> str:
        return addresses.get((site, latent), "")

    pages = [
        view
        for site, latents in roles.items()
        for view in latent_views(results, site, latents, seen[site], address)
    ]
    return SiteView(
        title=run.config.study,
        question=QUESTION.format(task=run.config.prompts.task, n=len(results.sites)),
        claims=claims(lambda _, decide: decide(results)),
        findings=[card(results) for card in index.cards(address).values()],
        provenance=index.provenance(results),
        quality=index.quality_rows(results.table("quality")),
        beliefs=index.belief_curves(results),
        patching=patching(results),
        prompts=prompts_view(run, results, set(addresses)) if run.config.dashboard.prompts else None,
        how=how(results),
        growth=index.growth_counts(results.table("growth")),
        additive=additive(results),
        concepts=concepts(results),
        latents=rows,
        pages=pages,
        pages_reason=PAGES_REASON.format(n=n),
        notes=index.notes(results),
    )
