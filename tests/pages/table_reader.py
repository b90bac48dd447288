"""How does a reader of the table of latents use it, and what must stand there then?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from iclens.pages.latents import address

from .chromium import Browser
from .made_up import HOSTILE, make_rows


def rows_of(table: pd.DataFrame) -> list[SimpleNamespace]:
    """Rows of the table of latents, each with its key and the address of its page."""
    return [
        SimpleNamespace(**row, key=(row["site"], row["latent"]), page=address(row["site"], row["latent"]))
        for row in table.to_dict("records")
    ]


TABLE = make_rows(40, HOSTILE)
ROWS = rows_of(TABLE)
STATUS = "document.getElementById('status').textContent"
NAMES = "[...document.querySelectorAll('#table tbody [aria-rowindex] th')].map(cell => cell.textContent)"
FOCUS = "document.activeElement"


def names(rows: Sequence[SimpleNamespace]) -> list[str]:
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


def expect(browser: Browser, rows: Sequence[SimpleNamespace]) -> None:
    """Exactly these rows are found, in this order, and the first of them stand there."""
    shown = browser.run(NAMES)
    assert shown == names(rows)[: len(shown)]
    assert len(shown) >= min(len(rows), 18)
    said = browser.run(STATUS)
    assert f" of {len(rows)}" in said if rows else said.startswith("No latent matches")
    assert ("(240 in all)" in said) is (len(rows) < 240)
