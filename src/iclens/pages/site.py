"""The site: every page of a run, written into a folder that opens from disk.

1. `assemble` finds what gets a page; with the run's model at hand, latents and prompts are shown on prompts;
2. `write_site` writes every page into a temporary folder beside the target;
3. the folder is swapped in by renaming, so that no reader meets half a site.

A run that is unfinished or damaged gets the same pages: each part whose table is missing says so. Shared
assets are written once. Rows behind tables are assignments in `data/*.js`, because a page opened from disk
cannot fetch. All text passes through Jinja's autoescape, markupsafe or `textContent`, and characters that
would hide or reorder others are spelt out; the pages carry a content security policy that allows the site's
own files and nothing else, so nothing inline can execute.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from iclens.core import IclensError, RunError
from iclens.pages import latents, patching, prompts
from iclens.pages.concepts import CONCEPTS
from iclens.pages.findings import cards, claims, tried
from iclens.pages.growth import GROWTH, headline
from iclens.pages.how import GLOSSARY, HOW, provenance
from iclens.pages.latents import LatentPage, SiteLatents
from iclens.pages.profile import Profile, profiles
from iclens.pages.section import Chrome, Frame, Page, Place, Source, parts_of, records, render
from iclens.pages.training import write_report
from iclens.results.features import LATENTS
from iclens.results.read import Results
from iclens.study.run import RunContext, find_run
from iclens.study.store import save_json

MARKER = ".iclens-site"
"""Marks a folder as a site."""
INDEX, TABLE, AS_IS = "index.html", "latents.html", "as_is"
SITE, TRAINING = "site", "training.html"
"""Folder of the pages inside the stage's, and the page of the SAEs' training beside it."""
PAGES: tuple[Page, ...] = (GROWTH, CONCEPTS, patching.PATCHING, HOW, GLOSSARY)
"""Pages that are lists of sections."""
QUESTION = (
    "Does in-context learning add features, one update per example, and which features? {task} is shown in "
    "context; every latent of {n} SAEs is followed over the examples, tested, identified and patched."
)
UNSEEN = "These pages were written from the run's tables, without its model."
Progress = Callable[[int, int], None]
Write = Callable[[], str]


@dataclass(frozen=True)
class Assembled:
    """What the site shows."""

    source: Source
    rows: Frame  # the table of latents
    latents: Sequence[SiteLatents]  # their pages, site by site
    prompts: Sequence[prompts.Pair] | None  # those that have a page; None shows none
    chrome: Chrome

    @property
    def profiled(self) -> Iterator[LatentPage]:
        """Every latent with a page."""
        return (LatentPage(site, latent) for site in self.latents for latent in site.roles)


def assemble(results: Results, run: RunContext | None = None) -> Assembled:
    """What the pages of a run show; without its model no prompts, logits, densities and neighbours."""
    source = Source(results)
    roles = _tolerant(lambda: latents.with_pages(source), {}, run)
    links = {
        (site.short, latent): latents.address(site.short, latent)
        for site, own in roles.items()
        for latent in own
    }
    source = replace(source, links=links)
    known = profiles(run, results, roles) if run else {s: Profile(np.array([]), reason=UNSEEN) for s in roles}
    density = {site.short: profile.density for site, profile in known.items() if len(profile.density)}
    rows = latents.latent_table(source, density)
    by_site = {
        site: {row["latent"]: row for row in records(rows[rows["site"] == site.short])} for site in roles
    }
    pages = [SiteLatents(source, site, own, known[site], by_site[site]) for site, own in roles.items()]
    n = results.config.dashboard.prompts if run else 0
    shown = prompts.pairs(run, source, n) if run and n else None
    return Assembled(source, rows, pages, shown, _chrome(source, shown is not None, run is None))


def _tolerant(make: Callable[[], Any], otherwise: Any, run: RunContext | None) -> Any:
    """What is made; of a run without its model, which may be damaged, something else where that fails."""
    try:
        return make()
    except (IclensError, LookupError, TypeError, ValueError, AttributeError):
        if run is not None:
            raise
        return otherwise


def _chrome(source: Source, with_prompts: bool, as_is: bool) -> Chrome:
    places = [Place("Index", INDEX), Place("Growth", GROWTH.path), Place("Latents", TABLE)]
    places += [Place("Concepts", CONCEPTS.path), Place("Patching", patching.PATCHING.path)]
    places += [Place("Prompts", prompts.PATH)] if with_prompts else []
    quality = records(source.rows("quality"))
    misfits = tuple((row["site"], row["mismatch"]) for row in quality if row["mismatch"])
    notices = _notices(source) if as_is else ()
    return Chrome(source.config.study, (*places, Place("How", HOW.path)), misfits, notices)


def _notices(source: Source) -> tuple[str, ...]:
    """In what state a run is shown."""
    lines = source.results.problems
    state = f"This run is shown as it is: {'; '.join(lines)}." if lines else "This run is shown as it is."
    finish = " `iclens study` on its config.yaml brings it up to date." if lines else ""
    return state + finish, "Prompts, logits, densities and neighbours are not shown: they need the model."


# ---------------------------------------------------------------- files


def files(site: Assembled) -> Iterator[tuple[str, Write]]:
    """Every file of the site but its assets: path → what gives its text."""
    yield INDEX, lambda: index(site)
    for page in PAGES:
        yield page.path, lambda page=page: page.write(site.source, site.chrome)
    yield TABLE, lambda: table(site)
    yield "data/latents.js", lambda: latents.table_script(site.rows, site.source.links)
    yield from latent_files(site)
    if site.prompts is not None:
        yield from prompts.files(site.prompts, site.source, site.chrome)


def index(site: Assembled) -> str:
    """The index: question, verdicts in words, headline figures, and what was run."""
    source, run = site.source, tried(provenance, site.source)[0] or []
    n = len(tried(lambda one: one.results.sites, source)[0] or ())
    question = QUESTION.format(task=source.config.prompts.task, n=n)
    panels = tried(headline, source)[0] or []
    places = {"growth.html#beliefs": "All beliefs", "growth.html#growth": "Every role"}
    figures = [*zip(panels, places.items(), strict=False)]
    swept = patching.headline(source)
    figures += [(panel, ("patching.html", "All of patching")) for panel in swept]
    return render(
        "index.html.j2", site.chrome, INDEX, question=question, claims=claims(source), cards=cards(source),
        figures=figures, provenance=run[:6],
    )  # fmt: skip


def table(site: Assembled) -> str:
    """The table of all latents: its first rows as they stand without a script."""
    n = site.source.config.dashboard.pages_per_site
    return render(
        "latents.html.j2", site.chrome, TABLE, rows=records(site.rows.head(latents.FIRST_ROWS)),
        n_latents=len(site.rows),
        links=site.source.links, columns=latents.COLUMNS, choices=latents.CHOICES,
        pages_reason=latents.PAGES_REASON.format(n=n), why=site.source.why("growth"),
    )  # fmt: skip


def latent_files(site: Assembled) -> Iterator[tuple[str, Write]]:
    """A page for each latent that is worth one, leading to the next and back."""
    pages = [(page.name, latents.address(page.site.site.short, page.latent), page) for page in site.profiled]
    for before, (_, path, page), after in zip([None, *pages], pages, [*pages[1:], None], strict=False):
        near = {"previous": before, "next": after}
        yield path, lambda page=page, path=path, near=near: _latent(site, page, path, near)


def _latent(site: Assembled, page: LatentPage, path: str, near: Mapping[str, Any]) -> str:
    own, row = page.site.site.short, page.site.rows.get(page.latent, {})
    chrome = replace(site.chrome, misfits=tuple(one for one in site.chrome.misfits if one[0] == own))
    parts = parts_of(page.sections(), site.source)
    summary = tried(lambda _: page.summary, site.source)[0] or ""
    return render("latent.html.j2", chrome, path, page=page, row=row, near=near, parts=parts, summary=summary)


# ---------------------------------------------------------------- folder


def write_pages(run: RunContext, folder: Path) -> dict[str, Any]:
    """Write `site/`, what other tools read of its latents, and of SAEs trained here `training.html`."""
    site = assemble(Results(run.folder), run)
    n = write_site(site, folder / SITE, lambda done, total: run.progress({"step": done, "of": total}))
    if run.config.saes.train is not None:
        write_report(run.sae_folder, folder / TRAINING)
    shown = [latents.exported(page.site.site.short, page.latent, page.site.profile) for page in site.profiled]
    save_json(folder / LATENTS, shown)
    return {"latent pages": len(shown), "latents": len(site.rows), "files": n, "index": f"{SITE}/{INDEX}"}


def write_as_is(path: Path, progress: Progress = lambda done, total: None) -> Path:
    """Write the pages of a run, in whatever state, into its `as_is`, without its model; the index's path.

    `path` is a run folder, or a study folder with a finished run; `progress` is told how many files are done,
    of how many.
    """
    found = find_run(path)
    write_site(assemble(Results(found)), found.path / AS_IS, progress)
    return found.path / AS_IS / INDEX


def write_site(site: Assembled, out: Path, progress: Progress = lambda done, total: None) -> int:
    """Write the whole site to a folder, replacing an earlier site there; the number of files beside assets.

    A folder that exists and is no site is refused.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and ((out / MARKER).is_file() or not any(out.iterdir()))):
        raise RunError(f"site folder {out}", "exists and holds something else", "Name a new or empty folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        scratch.chmod(0o755)
        todo = list(files(site))
        (scratch / "assets").mkdir()
        for asset in (resources.files("iclens.pages") / "assets").iterdir():
            (scratch / "assets" / asset.name).write_bytes(asset.read_bytes())
        for done, (path, write) in enumerate(todo, start=1):
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_text(write(), encoding="utf-8")
            progress(done, len(todo))
        (scratch / MARKER).touch()
        _swap(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return len(todo)


def _swap(scratch: Path, out: Path) -> None:
    if not out.exists():
        scratch.rename(out)
        return
    old = scratch.with_name(scratch.name + "-old")
    out.rename(old)
    try:
        scratch.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
