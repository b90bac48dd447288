"""The report of a training: one file, with its style inside, that has to bear what the other pages bear."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from iclens.pages.training import training_page

from .chromium import DESKTOP, PHONE, Browser
from .test_accessibility import GRAVE, violations

HOSTILE = "</style><script>alert(1)</script>{{ 7*7 }}\u202e\x00"
QUALITY = {
    "l0": 32.0,
    "fvu": 0.04,
    "fvu_pre": 0.05,
    "ce_recovered": 0.98,
    "ce_recovered_pre": None,
    "kl": 0.1,
}


def report() -> str:
    """The report of two SAEs with hostile names."""
    rows = [
        {"sae_id": "a", "low": 10.0**-i, "high": 10.0 ** (1 - i), "n_latents": 3 * i} for i in range(1, 5)
    ]
    card = {
        "model": {"name": HOSTILE, "fingerprint": "12ab"},
        "config": {"training": {"tokens": 600_000, "note": HOSTILE}},
        "quality": [{"sae_id": "a", "dead": 0.1} | QUALITY, {"sae_id": "b", "dead": 0.0} | QUALITY],
        "density": rows,
        "seconds": 31.5,
        "excluded": {"tokens": {"0": HOSTILE}, "positions": {"3": HOSTILE}},
        "data": {HOSTILE: 3},
        "measured_on": "held-out contexts",
        "versions": {"torch": "2"},
    }
    lines = [{"tokens": 1000 * i, "fvu": 1 / i, "dead": 0.0, "l0": 32.0} for i in range(1, 400)]
    pace = [{"tokens": 1000 * i, "tokens_per_second": 9e3} for i in range(1, 20)]
    return training_page(card, {f"L1{HOSTILE}": lines, "L2": lines}, pace)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_it_opens_quietly_alone_and_for_everyone(
    browser: Browser, axe: str, tmp_path: Path, width: int, scheme: str
) -> None:
    page = tmp_path / "report.html"
    page.write_text(report(), encoding="utf-8")
    browser.open(page, width=width, scheme=scheme)
    assert browser.complaints() == []
    assert browser.requested() == [page.resolve().as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.scripts.length") == 0
    shown = browser.run("document.body.textContent")
    assert "</style><script>alert(1)</script>{{ 7*7 }}\\u{202e}\\u{0}" in shown
    grave = [found for found in violations(browser, axe) if found["impact"] in GRAVE]
    assert json.dumps(grave) == "[]"


def test_a_long_curve_is_thinned_to_means() -> None:
    paths = re.findall(r'<path d="(M[^"]+)" class="line task"', report())
    assert paths and all(len(re.findall("[lh]", path)) < 240 for path in paths)
