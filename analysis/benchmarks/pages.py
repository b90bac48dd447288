"""How fast are pages written, how large are they, and how soon does a large table answer?

    python analysis/benchmarks/pages.py [--pages 2000] [--rows 131072] [--run RUN]

1. A made-up site with every section of its pages filled is written twice. 2. A table of `--rows` latents is
opened from disk in headless Chromium, five times; the clock of the page starts with the navigation. 3. With
`--run`, the site of a finished run is measured instead of a made-up one, and nothing is written.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from iclens.pages.site import write_site
from iclens.study.run import FOLDERS, find_run

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.pages.chromium import Browser
from tests.pages.made_up import SITES, make_rows, make_site

PUBLISHED = "SAEDashboard, as published and not measured here: 5.5 latents/s, 75-100 KB each"
OPENINGS = 5

PROBE = """
window.measured = {};
const probe = new MutationObserver(() => {
  const status = document.getElementById('status');
  if (measured.rows || !status?.textContent) return;
  measured.rows = performance.now();
  const search = document.getElementById('search');
  search.value = 'grows l2';
  search.dispatchEvent(new Event('input', { bubbles: true }));
  requestAnimationFrame(() => setTimeout(() => {
    if (!status.textContent.includes('in all')) return;
    measured.interactive = performance.now();
  }));
});
probe.observe(document, { subtree: true, childList: true, characterData: true });
"""
"""Notes when the script's rows stand, and when the frame that answers a search has been drawn."""
MOMENTS = {
    "something is painted": "performance.getEntriesByName('first-contentful-paint')[0]?.startTime",
    "rows drawn": "measured.rows",
    "interactive, rows drawn and a search answered": "measured.interactive",
}
ACTION = """
new Promise((resolve) => {{
  const set = (id, value) => {{
    const field = document.getElementById(id);
    field.value = value;
    field.dispatchEvent(new Event('input', {{ bubbles: true }}));
  }};
  const began = performance.now();
  {does};
  requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - began)));
}})
"""
ACTIONS = {
    "a search": "set('search', '12 mlp none')",
    "a sort": "document.querySelector('[data-name=slope] button').click()",
    "a filter": "set('site', 'L2.mlp_out')",
}


def main() -> None:
    """Build, build again, open."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pages", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=131_072)
    parser.add_argument("--run", type=Path, help="a finished run, whose site is measured instead")
    asked = parser.parse_args()
    if asked.pages < 100 or asked.rows < len(SITES):
        parser.error(f"--pages is at least 100, --rows at least {len(SITES)}")
    with tempfile.TemporaryDirectory() as scratch:
        if asked.run is not None:
            sizes(find_run(asked.run).path / FOLDERS["dashboard"] / "site")
        else:
            builds(asked.pages, Path(scratch) / "site")
        print(PUBLISHED)
        table = make_site(4, 0, "")
        rows = make_rows(asked.rows // len(SITES), "")
        write_site(replace(table, rows=rows, prompts=None), Path(scratch) / "table")
        openings(Path(scratch) / "table")


def builds(n: int, out: Path) -> None:
    """Two builds of `n` pages, timed, and the sizes of what they wrote."""
    site = make_site(-(-n // len(SITES)), n, "")
    for what in ("first build", "second build"):
        started, busy = time.perf_counter(), time.process_time()
        write_site(site, out)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        print(f"{what}: {n / seconds:,.0f} latent pages/s, {1000 * busy / n:.2f} ms of one core each")
    sizes(out)


def sizes(site: Path) -> None:
    """Bytes of each latent's page."""
    found = [path.stat().st_size for path in (site / "latents").glob("*.html")]
    if not found:
        raise SystemExit(f"{site} has no latent pages")
    mean, most = np.mean(found) / 1000, np.quantile(found, 0.95) / 1000
    print(f"{len(found)} latent pages: {mean:.1f} KB on average, 95th percentile {most:.1f} KB")


def openings(site: Path) -> None:
    """How soon the table answers; medians over `OPENINGS`."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        raise SystemExit("no chromium on this machine: the table was not opened")
    size = (site / "data" / "latents.js").stat().st_size
    print(f"the table's rows: {size / 1e6:.1f} MB")
    seen: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(binary, Path(profile))
        try:
            browser.send("Page.addScriptToEvaluateOnNewDocument", source=PROBE)
            for _ in range(OPENINGS):
                browser.open(site / "latents.html")
                browser.until("window.measured.interactive")
                for what, when in MOMENTS.items():
                    seen.setdefault(what, []).append(browser.until(when))
                browser.run("document.getElementById('restore').click()")
                for what, does in ACTIONS.items():
                    seen.setdefault(what, []).append(browser.run(ACTION.format(does=does)))
        finally:
            browser.close()
    for what, times in seen.items():
        print(f"{what}: {statistics.median(times):,.0f} ms (longest of {OPENINGS}: {max(times):,.0f})")


if __name__ == "__main__":
    main()
