"""The table of all latents: its first rows as they stand without a script, and the rows behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from iclens.dashboards.pages.page import Chrome, Page, draw
from iclens.dashboards.pages.shard import joined, number_column, shard, word_column
from iclens.dashboards.records.site import SiteView

PATH, ROWS = "latents.html", "data/latents.js"
FIRST_ROWS = 50
"""Rows that stand in the page itself."""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        name: field of `LatentRow`, and its name in a link.
        heading: what stands above it.
        meaning: in a few words, the heading's title.
        kind: "key", "number" or "word".
        beside: field whose word stands beside the number, or "".
        first: order of the first sort, "up" or "down".
        shown: "at first" or "when chosen".
    """

    name: str
    heading: str
    meaning: str
    kind: str = "number"
    beside: str = ""
    first: str = "up"
    shown: str = "at first"


COLUMNS = (
    Column("latent", "latent", "site of its SAE, and its index there", "key"),
    Column("density", "density", "share of tokens on which it is active", first="down"),
    Column("role", "role", "role at which it grows best", "word"),
    Column("slope", "slope", "rise per example there, task arm minus control arm", first="down"),
    Column("q_value", "q", "of the slope, corrected for the number of tests"),
    Column("verdict", "verdict", "of the growth test", "word"),
    Column("label", "label", "concept granted, or candidate", "word"),
    Column("auroc", "AUROC", "of the best concept on held-out tasks", beside="concept", first="down"),
    Column(
        "effect", "patch effect", "largest change in a belief’s log-odds, nats", "number", "belief", "down"
    ),
    Column("control_p", "control p", "share of matched random latents with at least that effect"),
    Column("answer", "on the answer", "change in the task’s own answer’s log-odds, nats", first="down"),
    Column(
        "follows", "follows", "account of growth that it follows at its role", "word", shown="when chosen"
    ),
    Column("causal", "when pushed", "whether pushing it moves the answer", "word", shown="when chosen"),
)
CHOICES = ("site", "verdict", "label", "concept", "belief")
"""Fields that a reader chooses a value of."""
_WORDS = ("site", "role", "verdict", "label", "concept", "belief", "follows", "causal")
_NUMBERS = ("density", "slope", "q_value", "auroc", "effect", "control_p", "answer")


def pages(view: SiteView, chrome: Chrome) -> Iterator[Page]:
    """The table and its rows."""
    paged = {(page.site, page.latent) for page in view.pages}
    yield Page(ROWS, (view.latents, sorted(paged)), lambda: table_script(view))
    shown = {
        "rows": view.latents[:FIRST_ROWS],
        "n_latents": len(view.latents),
        "n_pages": len(view.pages),
        "pages_reason": view.pages_reason,
        "concepts": view.concepts is not None,
    }
    own = {row.key for row in shown["rows"]} & paged

    def write() -> str:
        return draw("latents.html.j2", chrome, PATH, paged=own, columns=COLUMNS, choices=CHOICES, **shown)

    yield Page(PATH, (chrome, *shown.values(), sorted(own)), write)


def table_script(view: SiteView) -> str:
    """The rows as a shard, column by column.

    `rows` is their number. `words` has the different words of each column of words, and `values` a string for
    each column, as `shard.joined` writes it: places among the words, numbers, and `page`, 1 where the latent
    has one.
    """
    paged = {(page.site, page.latent) for page in view.pages}
    rows, words, values = view.latents, {}, {}
    for name in _WORDS:
        words[name], values[name] = word_column([getattr(row, name) for row in rows])
    values["latent"] = joined(str(row.latent) for row in rows)
    for name in _NUMBERS:
        values[name] = number_column(getattr(row, name) for row in rows)
    values["page"] = joined("1" if row.key in paged else "" for row in rows)
    return shard("latents", {"rows": len(rows), "words": words, "values": values})
