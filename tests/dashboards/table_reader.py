"""How does a reader of the table of latents use it, and what must stand there then?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from iclens.dashboards.records.site import LatentRow

from .chromium import Browser
from .made_up import make_view

VIEW = make_view()
ROWS = VIEW.latents
STATUS = "document.getElementById('status').textContent"
NAMES = "[...document.querySelectorAll('#table tbody [aria-rowindex] th')].map(cell => cell.textContent)"
FOCUS = "document.activeElement"


def names(rows: Sequence[LatentRow]) -> list[str]:
    """What stands in the first column."""
    return [f"{row.site} · {row.latent}" for row in rows]


def show(browser: Browser, site: Path, asked: str = "", **window: int) -> None:
    """Open the table, with what a link asks for, and wait for its rows."""
    browser.open(f"{(site / 'latents.html').resolve().as_uri()}#{asked}", **window)
    browser.until(STATUS)


def enter(browser: Browser, field: str, value: str) -> None:
    """Put a value into a control, as a reader does."""
    browser.run(
        f"(() => {{ const field = document.getElementById('{field}'); field.value = {json.dumps(value)};"
        " field.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


def expect(browser: Browser, rows: Sequence[LatentRow]) -> None:
    """Exactly these rows are found, in this order, and the first of them stand there."""
    shown = browser.run(NAMES)
    assert shown == names(rows)[: len(shown)]
    assert len(shown) >= min(len(rows), 18)
    said = browser.run(STATUS)
    assert f" of {len(rows)}" in said if rows else said.startswith("No latent matches")
    assert ("(240 in all)" in said) is (len(rows) < 240)
