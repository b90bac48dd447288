"""Does axe-core, the usual judge of accessibility, find anything serious on a page of any kind?

It does not judge words in drawings: their contrast with what lies under them is measured here.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from iclens.pages.draw import heat_chart

from .chromium import DESKTOP, PHONE, Browser

pytestmark = pytest.mark.browser

GRAVE = {"serious", "critical"}
RUN = """
axe.run(document, { resultTypes: ['violations'] }).then(found => JSON.stringify(found.violations.map(v =>
  ({ id: v.id, impact: v.impact, n: v.nodes.length, first: v.nodes.slice(0, 3).map(n => n.html.slice(0, 160)),
     why: v.nodes[0].failureSummary }))))
"""


def violations(browser: Browser, axe: str) -> list[dict[str, object]]:
    """What axe-core objects to on the page that is open; it is put in by the browser, not by the page."""
    browser.run(f"{axe}; 0")
    found: list[dict[str, object]] = json.loads(browser.run(RUN))
    return found


def test_the_judge_finds_what_is_wrong(browser: Browser, axe: str, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><title>bad</title><p style='color: #aaa'>pale</p><button></button>", encoding="utf-8"
    )
    browser.open(page)
    found = {violation["id"] for violation in violations(browser, axe) if violation["impact"] in GRAVE}
    assert {"html-has-lang", "color-contrast", "button-name"} <= found


@pytest.mark.parametrize(("width", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_page_has_no_serious_violation(
    browser: Browser, axe: str, site: Path, page_path: str, width: int, scheme: str
) -> None:
    browser.open(site / page_path, width=width, scheme=scheme)
    browser.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    found = violations(browser, axe)
    grave = [violation for violation in found if violation["impact"] in GRAVE]
    others = Counter(str(violation["impact"]) for violation in found if violation not in grave)
    assert grave == [], f"and {dict(others)} beside"


FAINT = """
(() => {
  const parsed = (c) => c.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const luminance = (c) => c.reduce((sum, v, i) => sum + linear(v) * [.2126, .7152, .0722][i], 0);
  const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  const paper = parsed(getComputedStyle(document.body).backgroundColor).slice(0, 3);
  const paint = (e) => {
    const style = getComputedStyle(e);
    if (style.fill === 'none' || !e.checkVisibility()) return null;
    const [r, g, b, alpha = 1] = parsed(style.fill);
    let share = alpha * style.fillOpacity;
    for (let at = e; at.localName !== 'svg'; at = at.parentNode) share *= getComputedStyle(at).opacity;
    return share > 0 ? { colour: [r, g, b], share } : null;
  };
  const over = (under, { colour, share }) => under.map((v, i) => v * (1 - share) + colour[i] * share);
  const covers = (shape, x, y) =>
    shape.isPointInFill(new DOMPoint(x, y).matrixTransform(shape.getScreenCTM().inverse()));
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    const painted = [...svg.querySelectorAll('rect, path, circle, text')].map(e => ({ e, of: paint(e) }));
    painted.forEach(({ e, of }, order) => {
      if (e.localName !== 'text' || !of || !e.textContent.trim()) return;
      const box = e.getBoundingClientRect();
      const shapes = painted.slice(0, order).filter(one => one.of && one.e.localName !== 'text');
      for (const [across, up] of [.05, .5, .95].flatMap(a => [.25, .5, .75].map(b => [a, b]))) {
        const [x, y] = [box.left + across * box.width, box.top + up * box.height];
        const under = shapes.reduce((c, one) => covers(one.e, x, y) ? over(c, one.of) : c, paper);
        found.push([ratio(luminance(under), luminance(over(under, of))), e.textContent]);
      }
    });
  }
  return { words: found.length, faint: found.filter(([contrast]) => contrast < 4.5) };
})()
"""
"""Words in drawings whose contrast with what lies under them is below 4.5 at one of nine places.

A shape's own fill counts, mixed by its opacity over what is under it, the page's paper lowest.
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_in_charts_have_contrast(browser: Browser, site: Path, page_path: str, scheme: str) -> None:
    browser.open(site / page_path, scheme=scheme)
    browser.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert browser.run(FAINT)["faint"] == []


def test_words_on_a_full_cell_are_judged_by_the_cell(browser: Browser, tmp_path: Path) -> None:
    """Black on white has a contrast of 21, on black at .8 over white (51 of 255) one of 1.66."""
    page = tmp_path / "cell.html"
    page.write_text(
        "<!doctype html><body style='background: #fff'><svg width=200 height=80><g opacity=.8>"
        "<rect width=100 height=40 /></g><text x=9 y=25>on it</text><text x=109 y=25>beside</text></svg>",
        encoding="utf-8",
    )
    browser.open(page)
    found = browser.run(FAINT)
    assert found["words"] == 18
    assert {word for _, word in found["faint"]} == {"on it"}
    assert [contrast for contrast, _ in found["faint"]] == pytest.approx([1.66] * 9, abs=0.005)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 0.51, 0.8, 1.0])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_are_read_on_every_level_of_a_heat_map(
    browser: Browser, site: Path, tmp_path: Path, value: float, scheme: str
) -> None:
    cells = {("pre", "0"): (value, f"{value:.2f}"), ("lab", "0"): (0.0, "0.00")}
    drawn = heat_chart(["pre", "lab"], ["0"], cells, "P(task)", down="block")
    style = (site / "assets" / "site.css").read_text(encoding="utf-8")
    page = tmp_path / "map.html"
    page.write_text(f"<!doctype html><style>{style}</style><body>{drawn}", encoding="utf-8")
    browser.open(page, scheme=scheme)
    found = browser.run(FAINT)
    assert found["words"] >= 9 * len(cells)
    assert found["faint"] == []


LEVELS = """
[...document.querySelectorAll('.ramp b, .tokens b')].map(e => {
    const paint = document.createElement('canvas').getContext('2d', { colorSpace: 'srgb' });
    const rgb = (c) => { paint.fillStyle = c; paint.fillRect(0, 0, 1, 1);
      return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3); };
    const style = getComputedStyle(e);
    return [e.className, rgb(style.backgroundColor), rgb(style.color)];
})
"""
"""Class, background and ink of each coloured token and of the scale, channels 0 to 255."""


def test_levels_of_tokens_stay_apart_and_readable_in_forced_colours(browser: Browser, site: Path) -> None:
    page = next(iter(sorted((site / "latents").glob("*.html"))))
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        features = {"prefers-color-scheme": scheme, "forced-colors": "active"}
        browser.send(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )
        found = browser.run(LEVELS)
        colours = {level: (tuple(back), tuple(ink)) for level, back, ink in found}
        assert set(colours) == {f"a{n}" for n in range(1, 9)}
        assert len({back for back, _ in colours.values()}) == 8
        assert all(contrast(back, ink) >= 4.5 for back, ink in colours.values()), colours


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Of two colours of the page, channels 0 to 255."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: tuple[int, ...]) -> float:
    """Relative luminance, 0 to 1."""
    shares = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), shares, strict=True))
