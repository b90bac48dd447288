"""How fast are pages written, how large are they, and how soon does a large table answer?

    python analysis/benchmarks/pages.py [--pages 2000] [--rows 131072] [--run RUN]

1. Latents are made up with every section of their page filled, as long as the built-in model's: four roles,
eleven arms, 83 tasks, eight concepts, seven beliefs, nine parts of prompts. Their site is built, built again
with nothing changed, and again with one page in a hundred changed. 2. A table of `--rows` latents is opened
from disk in headless Chromium, five times; the clock of the page starts with the navigation. 3. With `--run`,
the site of a finished run is measured instead of a made-up one, and nothing is built.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from iclens.dashboards.records.concepts import BoxView, TuningView
from iclens.dashboards.records.latent import (
    ArmMeans,
    ConceptRow,
    Curve,
    DoseView,
    Histogram,
    LadderView,
    LatentRow,
    LatentView,
    LogitEffect,
    Neighbour,
    PatchRow,
    PromptView,
    ResponseView,
    ScaledPosterior,
    TaskActivation,
    TokenView,
    TrajectoryView,
)
from iclens.dashboards.records.site import SiteView
from iclens.dashboards.site import build_site

from iclens.schemas import LADDER
from iclens.study.run import FOLDERS, find_run

PUBLISHED = "SAEDashboard, as published and not measured here: 5.5 latents/s, 75-100 KB each"
SITES = tuple(f"L{layer}.{hook}" for layer in (9, 14, 19, 20) for hook in ("resid_post", "mlp_out"))
ROLES, EXAMPLES = ("x", "pre", "lab", "close"), 16
ARMS = ("T", "P", "D", "R", "N3", "N6", "S", "U", "O", "M", "C")
BELIEFS = ("numeric", "odd", "double", "exact", "copy", "near:3x", "against:3x+1")
CONCEPTS = ("double", "odd", "numeric", "offset", "magnitude", "task identity", "difference", "ratio")
OPENINGS = 5

PROBE = """
window.measured = {};
const probe = new MutationObserver(() => {
  const status = document.getElementById('status');
  if (measured.rows || !status?.textContent) return;
  measured.rows = performance.now();
  const search = document.getElementById('search');
  search.value = 'grows l14';
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
    "a filter": "set('site', 'L14.mlp_out')",
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
        rng = np.random.default_rng(1)
        rows = sorted((row(rng, i, asked.rows) for i in range(asked.rows)), key=lambda one: one.q_value)
        table = build_site(SiteView("A large table", "", latents=rows), Path(scratch) / "table")
        openings(table.index.parent)


def builds(n: int, out: Path) -> None:
    """Three builds of `n` pages, timed, and the sizes of what they wrote."""
    rng = np.random.default_rng(0)
    rows = [row(rng, i, n) for i in range(n)]
    view = SiteView("Made-up latents", "", latents=rows, pages=[page(rng, one) for one in rows])
    changed = [replace(one, summary="Another.") if i % 100 == 0 else one for i, one in enumerate(view.pages)]
    for what, built in (
        ("first build", view),
        ("nothing changed", view),
        ("1 % changed", replace(view, pages=changed)),
    ):
        started, busy = time.perf_counter(), time.process_time()
        done = build_site(built, out)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        print(f"{what}: {n / seconds:,.0f} latent pages/s, {1000 * busy / n:.2f} ms of one core each", end="")
        print(f" ({done.drawn} files drawn, {done.kept} kept)")
    sizes(out)


def sizes(site: Path) -> None:
    """Bytes of each latent's page with the shards that only it reads."""
    found = [
        path.stat().st_size + sum(own.stat().st_size for own in site.glob(f"data/latents/{path.stem}*.js"))
        for path in (site / "latents").glob("*.html")
    ]
    if not found:
        raise SystemExit(f"{site} has no latent pages")
    mean, most = np.mean(found) / 1000, np.quantile(found, 0.95) / 1000
    print(f"{len(found)} latent pages: {mean:.1f} KB on average, 95th percentile {most:.1f} KB")


def openings(site: Path) -> None:
    """How soon the table answers; medians over `OPENINGS`."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        raise SystemExit("no chromium on this machine: the table was not opened")
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "dashboards"))
    from chromium import Browser  # the driver of the pages' tests

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


def row(rng: np.random.Generator, i: int, n: int) -> LatentRow:
    """A row of the table: one latent in ten grows, one in thirty was patched."""
    site, latent = divmod(i, math.ceil(n / len(SITES)))
    grows, patched = rng.random() < 0.1, rng.random() < 0.03
    nothing = math.nan
    return LatentRow(
        SITES[site], latent, float(rng.beta(1, 60)), ROLES[int(rng.integers(4))], float(rng.normal(0, 0.3)),
        float(10 ** -rng.uniform(2, 20)) if grows else float(rng.uniform(0.05, 1)),
        "grows" if grows else "none",
        ("double", "candidate", "")[int(rng.integers(3))] if grows else "",
        CONCEPTS[int(rng.integers(len(CONCEPTS)))] if grows else "",
        float(rng.uniform(0.5, 1)) if grows else nothing,
        BELIEFS[int(rng.integers(len(BELIEFS)))] if patched else "",
        float(rng.normal()) if patched else nothing,
        float(rng.uniform(0.01, 1)) if patched else nothing,
        ("exact posterior", "counting")[int(rng.integers(2))] if grows else "",
        ("causal", "not causal")[int(rng.integers(2))] if patched else "",
    )  # fmt: skip


def page(rng: np.random.Generator, own: LatentRow) -> LatentView:
    """A page with every section filled."""
    doses = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
    xs = list(range(50))
    effects = [LogitEffect(str(int(rng.integers(1000))), float(v)) for v in rng.normal(0, 2, 20)]
    near = [Neighbour(int(rng.integers(10_000)), float(v)) for v in rng.uniform(-1, 1, 10)]
    figures = [(f"figure {i}", f"{rng.normal():.3g}", "what it is, in a few words") for i in range(6)]
    edges = np.linspace(0, 3, 25)
    said = [f"At {role} it follows the model's own belief: weight 0.41 [0.38, 0.44]." for role in ROLES[:2]]
    words = "Its mean activation at pre rises with the examples and is highest on 2x+7. Its label is double."
    return LatentView(
        own.site, own.latent, words, "pre",
        trajectories=[
            TrajectoryView(role, curve(rng), curve(rng), 0.12, 0.091, 0.153, 3e-9, "grows") for role in ROLES
        ],
        posterior=ScaledPosterior(Curve.line(curve(rng).n_seen, curve(rng).mean), 0.93),
        arms=[ArmMeans(arm, "what its labels are, in words", curve(rng).mean) for arm in ARMS],
        ladder=LadderView("pre", LADDER, LADDER[2], "the curve saturates after 8 examples", figures),
        task_role="lab",
        tasks=[
            TaskActivation(f"{i // 20 + 1}x+{i % 20}", m, m - 0.1, m + 0.1, 24, "held out" if i % 3 else "")
            for i, m in enumerate(rng.gamma(1.2, 0.5, 83).tolist())
        ],
        concepts=[
            ConceptRow(
                name, role, *rng.uniform(0.5, 1, 3).tolist(), "magnitude", 0.71, 1e-3, "",
                "confound above 0.65; held-out interval reaches 0.5",
            )
            for name, role in zip(CONCEPTS, ("lab", "pre") * 4, strict=True)
        ],
        tunings=[
            TuningView(of, [*range(n)], rng.gamma(2, 0.4, n).tolist(), [24] * n, "slope 0.12, R² 0.91")
            for of, n in (("y", 100), ("x", 50), ("y-2x", 40))
        ],
        boxes=[
            BoxView(x, y, 10, float(rng.gamma(2, 0.4)), 24)
            for x in range(0, 50, 10) for y in range(0, 160, 10)
        ],
        patches=[
            PatchRow(belief, *rng.normal(0, 3, 4).tolist(), *sorted(rng.normal(0, 1, 2).tolist()),
                     -0.21, 0.18, 0.0199, 0.07, 0.01, 57, 64, role="pre")
            for belief in BELIEFS
        ],
        response=ResponseView(xs, *rng.normal(20, 3, (3, 50)).tolist(), "slope 1.5, intercept 2.1"),
        prompts=[part(rng, f"task 2x+{i}") for i in range(6)],
        random=[part(rng, f"task 3x+{i}") for i in range(3)],
        promotes=effects[:10], suppresses=effects[10:],
        histogram=Histogram(edges.tolist(), rng.integers(1, 900, 24).tolist()),
        doses=[
            DoseView(n, Curve(doses, *rng.normal(0, 1, (3, 7)).tolist()), "causal") for n in (4, 8)
        ],
        follows=said, close=near[:5], together=near[5:],
    )  # fmt: skip


def curve(rng: np.random.Generator) -> Curve:
    """A noisy rise over the examples, with a band."""
    n = np.arange(EXAMPLES)
    mean = rng.gamma(2) * n / (n + 3) + rng.normal(0, 0.05, EXAMPLES)
    return Curve(n.tolist(), mean.tolist(), (mean - 0.1).tolist(), (mean + 0.1).tolist())


def part(rng: np.random.Generator, title: str) -> PromptView:
    """Five lines of a prompt, active on two tokens of each."""
    tokens = []
    for x in rng.integers(50, size=5).tolist():
        at_pre, at_lab = rng.gamma(2, 0.5, 2).tolist()
        tokens += [TokenView("("), TokenView(str(x)), TokenView(","), TokenView(" ", at_pre)]
        tokens += [TokenView(str(2 * x + 7), at_lab), TokenView(")\n")]
    return PromptView(title, tokens, before=True, after=True)


if __name__ == "__main__":
    main()
