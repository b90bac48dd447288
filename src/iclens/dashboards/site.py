"""How does a view become a folder of pages that opens from disk?

1. Every page is a `Page`: a path, what it rests on, and a function that writes it (`pages/`);
2. all are put into a temporary folder beside the target: a page that rests on what it rested on in the
   earlier site is linked from there, the others are drawn;
3. the folder is swapped in by renaming, so that no reader meets half a site.

Shared assets are written once. Rows behind tables are assignments in `data/*.js`, because a page opened from
disk cannot fetch. All text is made `inert` first, and passes through Jinja's autoescape, markupsafe or
`textContent`; the pages carry a content security policy that allows the site's own files and nothing else,
so nothing inline can execute.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from iclens.core import RunError
from iclens.dashboards.inert import inert
from iclens.dashboards.pages import concepts, growth, how, index, latent, latents, patching, prompts, words
from iclens.dashboards.pages.page import Chrome, Page, Place
from iclens.dashboards.records.site import SiteView

MARKER = ".iclens-site"
"""Marks a folder as a site, and holds key and size of each of its pages."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Built:
    """What a build did.

    Args:
        index: path of `index.html`.
        drawn: pages that were drawn.
        kept: pages that were taken from the earlier site as they were.
    """

    index: Path
    drawn: int
    kept: int


def build_site(
    view: SiteView, out: Path, *, earlier: Path | None = None, progress: Progress = lambda done, total: None
) -> Built:
    """Write the whole site to folder `out`, replacing an earlier site there.

    Args:
        view: what it shows.
        out: the folder.
        earlier: a site whose unchanged pages are taken over; `out` itself when not given.
        progress: told how many pages are done, of how many.

    Raises:
        RunError: when `out` exists and is not a site written by this function.
    """
    out = Path(out)
    _expect_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        scratch.chmod(0o755)
        drawn, kept = _write(list(site_pages(view)), scratch, earlier or out, progress)
        _swap(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Built(out / index.PATH, drawn, kept)


def site_pages(view: SiteView) -> Iterator[Page]:
    """Every file of the site but its assets."""
    view = inert(view)
    chrome = _chrome(view)
    for kind in (index, growth, latents, latent, prompts, patching, concepts, how, words):
        yield from kind.pages(view, chrome)


def _chrome(view: SiteView) -> Chrome:
    places = (
        Place("Index", index.PATH),
        Place("Growth", growth.PATH),
        Place("Latents", latents.PATH),
        *([Place("Concepts", concepts.PATH)] if view.concepts is not None else ()),
        *([Place("Patching", patching.PATH)] if view.patching is not None else ()),
        *([Place("Prompts", prompts.PATH)] if view.prompts is not None else ()),
        Place("How", how.PATH),
    )
    misfits = tuple((q.site, q.mismatch) for q in view.quality if q.mismatch)
    return Chrome(view.title, places, misfits, tuple(view.notices))


def _expect_replaceable(out: Path) -> None:
    if out.is_dir() and ((out / MARKER).is_file() or not any(out.iterdir())):
        return
    if out.exists():
        raise RunError(f"site folder {out}", "exists and holds something else", "Name a new or empty folder.")


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


def _write(pages: list[Page], folder: Path, earlier: Path, progress: Progress) -> tuple[int, int]:
    """Put assets and pages into an empty folder; the numbers of pages drawn and kept."""
    _write_assets(folder / "assets")
    before, keys = _keys(earlier), {page.path: page.key for page in pages}
    kept = 0
    for done, page in enumerate(pages, start=1):
        target = folder / page.path
        target.parent.mkdir(parents=True, exist_ok=True)
        key, size = before.get(page.path, ("", -1))
        if key == keys[page.path] and _take_over(earlier / page.path, target, size):
            kept += 1
        else:
            target.write_text(page.write(), encoding="utf-8")
        progress(done, len(pages))
    record = {path: [key, (folder / path).stat().st_size] for path, key in keys.items()}
    (folder / MARKER).write_text(json.dumps(record, indent=0) + "\n", encoding="utf-8")
    return len(pages) - kept, kept


def _write_assets(folder: Path) -> None:
    folder.mkdir()
    for source in (resources.files("iclens.dashboards") / "assets").iterdir():
        (folder / source.name).write_bytes(source.read_bytes())


def _keys(site: Path) -> dict[str, tuple[str, int]]:
    """Key and size of an earlier site's pages; none where there is no site, or its record is damaged."""
    try:
        found = json.loads((site / MARKER).read_text(encoding="utf-8"))
        return {str(path): (str(key), int(size)) for path, (key, size) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _take_over(source: Path, target: Path, size: int) -> bool:
    """Link a page of that size, or copy it; False where it is gone or another; none is changed in place."""
    try:
        if source.stat().st_size != size:
            return False
        os.link(source, target)
    except FileNotFoundError:
        return False
    except OSError:
        shutil.copy2(source, target)
    return True
