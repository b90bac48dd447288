"""The table of all latents: its first rows as they stand without a script, and the rows behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from iclens.dashboards import text
from iclens.dashboards.pages.page import Chrome, Page, draw
from iclens.dashboards.records.latent import LatentRow
from iclens.dashboards.records.site import SiteView

PATH, ROWS = "latents.html", "data/latents.js"
ROWS_PER_PAGE = 50


def pages(view: SiteView, chrome: Chrome) -> Iterator[Page]:
    """The table and its rows."""
    paged = {(page.site, page.latent) for page in view.pages}
    yield Page(ROWS, (view.latents, sorted(paged)), lambda: table_script(view))

    def write() -> str:
        return draw(
            "latents.html.j2",
            chrome,
            PATH,
            view=view,
            rows=view.latents[:ROWS_PER_PAGE],
            paged=paged,
            sites=sorted({row.site for row in view.latents}),
            rows_per_page=ROWS_PER_PAGE,
        )

    yield Page(PATH, (chrome, view.latents, view.pages_reason, sorted(paged)), write)


def table_script(view: SiteView) -> str:
    """The latents' table as a script: one row per latent, columns as in `assets/table.js`.

    `<`, `>`, `&` and the two line separators are written as escapes, so that the text stays inert
    wherever it is put.
    """
    paged = {(page.site, page.latent) for page in view.pages}
    rows = [_table_row(row, row.key in paged) for row in view.latents]
    content = json.dumps(rows, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return f'"use strict";\nwindow.iclensLatents = {content};\n'


def _table_row(row: LatentRow, has_page: bool) -> list[str | int | float | None]:
    numbers = (row.slope, row.q_value, row.auroc, row.effect, row.control_p)
    slope, q_value, auroc, effect, control_p = map(text.three_digits, numbers)
    return [
        *(row.site, row.latent, text.three_digits(row.density), row.role, slope, q_value, row.verdict),
        *(row.label, row.concept, auroc, row.belief, effect, control_p, int(has_page)),
    ]
