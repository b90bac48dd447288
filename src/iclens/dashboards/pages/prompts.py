"""The pages of single prompts: run A and run B side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from markupsafe import Markup

from iclens.dashboards import text
from iclens.dashboards.charts import svg
from iclens.dashboards.pages.page import Chrome, Page, draw
from iclens.dashboards.pages.shard import shard
from iclens.dashboards.records.prompts import (
    START,
    PairBelief,
    PromptPair,
    RunToken,
    RunView,
    ShownLatent,
    SiteLatents,
)
from iclens.dashboards.records.site import Curve, SiteView

PATH = "prompts.html"
LISTED = 3
"""Examples of a prompt that the list quotes."""
Links = Mapping[tuple[str, int], str]
"""(Site, latent) → the address of its page."""


@dataclass(frozen=True)
class Column:
    """A latent as it is drawn: everything that the page and its shard say of it.

    Args:
        latent, why: as in `ShownLatent`.
        page: the address of its page from a prompt's page; "" where it has none.
        peak: its largest activation after the first token, as text.
        levels: run → colour level 0–8 of every token, as digits.
        values: run → the activations on the tokens above level 0, as text, in order.
    """

    latent: int
    why: str
    page: str
    peak: str
    levels: Mapping[str, str]
    values: Mapping[str, Sequence[str]]

    def cells(self, run: str) -> list[tuple[int, str]]:
        """(Colour level, activation as text) of every token of a run."""
        left = iter(self.values[run])
        return [(int(level), next(left) if level != "0" else "") for level in self.levels[run]]


def pages(view: SiteView, chrome: Chrome) -> Iterator[Page]:
    """The list of prompts, and a page for each, when there are any."""
    if view.prompts is None:
        return
    own, every = view.prompts, view.addresses
    yield Page(
        PATH,
        (chrome, own),
        partial(draw, "prompts.html.j2", chrome, PATH, view=own, address=address, quoted=quoted),
    )
    for number, pair in enumerate(own.prompts, start=1):
        keys = [(held.site, one.latent) for held in pair.sites for one in held.latents]
        links = {key: every[key] for key in keys if key in every}
        near = {"previous": number - 1, "next": number + 1 if number < len(own.prompts) else 0}
        here = address(number)
        yield Page(here, (chrome, pair, near, links), partial(_write, chrome, number, pair, near, links))
        if _sites(pair):
            name = f"prompts/{number}"
            yield Page(f"data/{name}.js", (pair.sites, links), partial(_shard, name, pair, links))


def address(number: int) -> str:
    """The address of a prompt's page, relative to the index."""
    return f"prompts/{number}.html"


def quoted(pair: PromptPair) -> str:
    """The first examples of run A in a line."""
    lines = [
        "".join(token.text for token in line).strip()
        for example, line in groupby(pair.a.tokens, lambda token: token.example)
        if START < example < min(LISTED, pair.n_examples)
    ]
    return " ".join(lines) + (" …" if pair.n_examples > LISTED else "")


def _write(chrome: Chrome, number: int, pair: PromptPair, near: Mapping[str, int], links: Links) -> str:
    sites = _sites(pair)
    first = [_column(sites[0].site, one, links) for one in sites[0].latents] if sites else []
    coloured = first[0] if first else None
    beliefs = [(one, belief_chart(one)) for one in pair.beliefs]
    return draw(
        "prompt.html.j2",
        chrome,
        address(number),
        number=number,
        pair=pair,
        near=near,
        address=address,
        sites=sites,
        columns=first,
        whys=[(why, len(list(same))) for why, same in groupby(first, lambda column: column.why)],
        coloured=coloured,
        runs=[
            ("a", pair.a, _lines(pair.a, coloured.cells("a") if coloured else [])),
            ("b", pair.b, _lines(pair.b, coloured.cells("b") if coloured else [])),
        ],
        groups=_groups(pair),
        cells={run: [column.cells(run) for column in first] for run in ("a", "b")},
        beliefs=beliefs,
        has_exact=any(math.isfinite(v) for one in pair.beliefs for v in (*one.exact, one.exact_b)),
        level=lambda share: svg.level(share, 1.0),
        shown=shown,
    )


def _shard(name: str, pair: PromptPair, links: Links) -> str:
    return shard(name, [_site(held, links) for held in _sites(pair)])


def _sites(pair: PromptPair) -> list[SiteLatents]:
    """The sites that have a latent to show."""
    return [held for held in pair.sites if held.latents]


def _site(held: SiteLatents, links: Links) -> dict[str, object]:
    """A site for `assets/prompt.js`."""
    columns = [_column(held.site, one, links) for one in held.latents]
    return {"site": held.site, "latents": [vars(column) for column in columns]}


def _column(site: str, one: ShownLatent, links: Links) -> Column:
    page = f"../{links[site, one.latent]}" if (site, one.latent) in links else ""
    levels = {run: [svg.level(v, one.peak) for v in values] for run, values in (("a", one.a), ("b", one.b))}
    values = {
        run: [text.number(v) for v, level in zip(held, levels[run], strict=True) if level]
        for run, held in (("a", one.a), ("b", one.b))
    }
    digits = {run: "".join(map(str, found)) for run, found in levels.items()}
    return Column(one.latent, one.why, page, text.number(one.peak), digits, values)


def shown(token: RunToken) -> str:
    """A token as it stands on the page."""
    return text.token_text(token.text, token.continues)


def _lines(
    run: RunView, cells: Sequence[tuple[int, str]]
) -> list[tuple[str, list[tuple[RunToken, int, str]]]]:
    """A run's tokens with colour level and activation, line by line; each line is an example."""
    held = cells or [(0, "")] * len(run.tokens)
    every = [(token, *cell) for token, cell in zip(run.tokens, held, strict=True)]
    lines = groupby(every, lambda entry: entry[0].example)
    return [(_line_name(example, run.query), list(line)) for example, line in lines]


def _line_name(example: int, query: int) -> str:
    return "start" if example == START else "query" if example == query else str(example + 1)


def _groups(pair: PromptPair) -> list[tuple[str, list[tuple[str, int, RunToken]]]]:
    """Rows of the table as (run, position, token), in groups: the query, what stands before it, the examples.

    Tokens of one place in both runs stand one below the other.
    """
    places: dict[str, dict[tuple[str, int], list[tuple[str, int, RunToken]]]] = {"query": {}, "start": {}}
    for name, run in (("a", pair.a), ("b", pair.b)):
        seen: dict[tuple[str, str], int] = {}
        for pos, token in enumerate(run.tokens):
            line = _line_name(token.example, run.query)
            nth = seen[line, token.role] = seen.get((line, token.role), -1) + 1
            places.setdefault(line, {}).setdefault((token.role, nth), []).append((name, pos, token))
    titles = {"query": "The query", "start": "Before the first example"}
    return [
        (titles.get(line, f"Example {line}"), [row for rows in held.values() for row in rows])
        for line, held in places.items()
        if held
    ]


def belief_chart(one: PairBelief) -> Markup:
    """A belief over the examples of run A, with run B's as a level line."""
    n = list(range(len(one.a)))
    curves = [("exact", Curve.line(n, one.exact)), ("task", Curve.line(n, one.a))]
    if math.isfinite(one.b):
        curves.insert(0, ("control", Curve.line([0, n[-1]], [one.b, one.b])))
    said = f"Log-odds of {one.belief} by examples seen in run A: {svg.ends(curves[-1][1])}"
    return svg.line_chart(curves, f"{said}; in run B {text.number(one.b)}.")
