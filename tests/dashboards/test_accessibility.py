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
