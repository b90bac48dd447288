"""Does axe-core, the usual judge of accessibility, find anything serious on a page of any kind?"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

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


LEAST_CONTRAST = """
(() => {
  const channels = (c) => c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  const luminance = (c) => channels(c).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  const ratio = (c) => (Math.max(luminance(c), paper) + .05) / (Math.min(luminance(c), paper) + .05);
  const words = [...document.querySelectorAll('svg text:not([fill="var(--paper)"])')];
  return Math.min(21, ...words.map(e => ratio(getComputedStyle(e).fill)));
})()
"""
"""The least contrast of words in charts with the page; those on a dark cell take the page's own colour."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_in_charts_have_contrast(browser: Browser, site: Path, page_path: str, scheme: str) -> None:
    browser.open(site / page_path, scheme=scheme)
    assert browser.run(LEAST_CONTRAST) >= 4.5
