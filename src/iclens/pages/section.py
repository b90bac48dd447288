"""Pages as data: a page is a list of sections, a section is rows of a table as words, charts and values.

1. `Source` gives the tables of a run; of one that is missing, damaged or empty it says why instead;
2. a `Section` chooses rows, says in words what they show, draws them as their table is drawn, and lays them
   out under headings;
3. a `Page` is drawn from its sections by one template.

Nothing is computed on the way that a stage would compute, and no section stops another: what cannot be
drawn says why where it would stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from iclens.core import ROLES, IclensError, RunError, TableError
from iclens.pages import draw, text
from iclens.pages.draw import NAN, Line, Mark, tag
from iclens.pages.text import interval, number, percent, spelt_out
from iclens.results.read import Results
from iclens.schemas import TABLES
from iclens.study.config import StudyConfig
from iclens.table import Axis, Chart, Curves, Heat, Points, Strip

Frame = pd.DataFrame
Row = Mapping[str, Any]
_FORMLESS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What reading raises for a file that can be read but is of another form."""
_KINDS = ("task", "control", "third", "exact", "random")
"""Kinds of curve, in the order in which a chart takes them."""
_STRIP = 40
"""Estimates of a group that a strip shows, the largest."""
EMPTY = {
    "heads": "Not run: the config asks for no ablation (`sweep.ablations`).",
    "direct": "Not run: no head costs the belief a nat or more by itself, so none was looked into.",
    "redundancy": "Not run: there was no set of heads to ablate.",
    "redundancy_ladder": "Not run: the config asks for no step (`sweep.ladder_steps`).",
    "patches": "Nothing was patched: no latent differs between the runs.",
    "sets": "Nothing was patched: no latent differs between the runs.",
    "patch_controls": "Not run: no latent was tested, so there was none to patch elsewhere.",
    "screens": "Not run: no latent was patched.",
    "responses": "Not run: no site was patched at pre, or its answers are no numbers.",
    "response_fits": "Not run: no response curve was drawn.",
    "confidence": "Not measured: no latent was chosen at lab.",
    "transport": "Not measured: no latent was chosen at lab.",
    "subspaces": "Not measured: periods are looked for where parity is told best, and that was not asked "
    "or could not be.",
}  # fmt: skip
"""Why a table of a finished stage has no rows."""


@dataclass(frozen=True)
class Source:
    """What pages are drawn from.

    Args:
        results: the run's tables.
        links: (site, latent) → the address of its page, for those that have one.
    """

    results: Results
    links: Mapping[tuple[str, int], str] = field(default_factory=dict)

    @property
    def config(self) -> StudyConfig:
        """The resolved config."""
        return self.results.config

    def rows(self, table: str) -> Frame:
        """A table; without rows where it is missing, damaged or empty."""
        return self._read(table)[0]

    def why(self, table: str, empty: str = "") -> str:
        """Why a table has no rows, "" when it has some; `empty` says it of one that is there."""
        rows, reason = self._read(table)
        if reason or len(rows):
            return reason
        return empty or EMPTY.get(table, f"Not run: {table}.parquet has no rows.")

    def _read(self, name: str) -> tuple[Frame, str]:
        kind = TABLES[name]
        try:
            table = self.results.table(name)
        except RunError:
            reason = f"Not run: the stage `{kind.stage}` has left no {name}.parquet."
        except TableError:
            reason = f"Not shown: {name}.parquet is damaged or of another version of iclens."
        else:
            return table, ""
        return pd.DataFrame(columns=list(kind.COLUMNS)), reason


def records(rows: Frame) -> list[dict[str, Any]]:
    """Rows as mappings of column names."""
    return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]


# ---------------------------------------------------------------- cells


@dataclass(frozen=True)
class Figure:
    """A number with its interval.

    Args:
        value: the number.
        low, high: its interval, if any.
        reason: why it is NaN.
        small: words beside it.
        kind: CSS classes of the cell besides, as `own` or a shade.
    """

    value: float
    low: float = NAN
    high: float = NAN
    reason: str = ""
    small: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Latent:
    """A latent, linked where it has a page, and words beside it."""

    site: str
    latent: int
    small: str = ""


@dataclass(frozen=True)
class Words:
    """Words, with more in small; `strong` where they are a finding."""

    text: str
    small: str = ""
    strong: bool = False


Cell = str | int | float | Figure | Latent | Words | Markup
Make = str | Callable[[Row], Cell]
"""A column of a table of values: a column's name, or what makes a cell of a row."""


def figure(value: str, bounds: str = "ci", **more: str) -> Callable[[Row], Figure]:
    """Cells of column `value` with its interval, `<bounds>_low` to `<bounds>_high`, and the row's reason."""

    def make(row: Row) -> Figure:
        return Figure(row[value], row[f"{bounds}_low"], row[f"{bounds}_high"], row.get("reason", ""), **more)

    return make


def share(column: str) -> Callable[[Row], Words]:
    """Cells of a share as a percentage; 0 below .01 %."""
    return lambda row: Words("0" if row[column] < 1e-4 else percent(row[column]))


def shade(auroc: float) -> str:
    """CSS class of a cell of an AUROC: the further above .5, the fuller; nothing at or below it."""
    step = round(10 * (auroc - 0.5)) if math.isfinite(auroc) and auroc > 0.5 else 0
    return f"a{step}" if step else ""


def grid(
    label: str,
    columns: Mapping[str, Make],
    rows: Iterable[Row],
    links: Mapping[tuple[str, int], str] = {},
    *,
    kind: str = "small",
    folded: str = "",
    titles: Mapping[str, str] = {},
) -> Markup:
    """A table of values; nothing without rows.

    Args:
        label: names its region to a reader who scrolls it.
        columns: heading → what makes its cells; the first heads the row, one that is empty is left out.
        rows: of the table.
        links: addresses of latents' pages.
        kind: CSS class.
        folded: the words that unfold it; it stands open without.
        titles: heading → what it means.
    """
    made = [[make(row) if callable(make) else row[make] for make in columns.values()] for row in rows]
    if not made:
        return Markup("")
    kept = [i for i in range(len(columns)) if i == 0 or any(not _blank(cells[i]) for cells in made)]
    notes: list[str] = []
    body = [
        Markup("<tr>") + Markup("").join(_cell(cells[i], i == 0, notes, links) for i in kept)
        for cells in made
    ]
    headings = list(columns)
    head = [
        tag("th", headings[i], scope="col", **_class("n" if _numeric(cells[i] for cells in made) else ""),
            **({"title": titles[headings[i]]} if headings[i] in titles else {}))
        for i in kept
    ]  # fmt: skip
    rows_ = Markup("").join(line + Markup("</tr>\n") for line in body)
    parts = tag("thead", tag("tr", *head)), tag("tbody", Markup("\n") + rows_)
    region = {"class_": "scroll", "role": "region", "tabindex": "0", "aria_label": label}
    table = tag("div", tag("table", *parts, **_class(kind)), **region)
    if notes:
        why = Markup("").join(tag("li", note) for note in notes)
        table += tag("ol", why, class_="reasons", aria_label="Why figures are undefined")
    return tag("details", tag("summary", folded), table) if folded else table


def _blank(cell: Cell) -> bool:
    return cell == "" or (isinstance(cell, Words) and not cell.text and not cell.small)


def _numeric(cells: Iterable[Cell]) -> bool:
    kinds = (Figure, int, float, np.number)
    return any(isinstance(cell, kinds) or _counts(cell) for cell in cells)


def _counts(cell: Cell) -> bool:
    """Whether words are a percentage or begin with a count."""
    return isinstance(cell, Words) and not cell.small and cell.text[:1].isdigit()


def _class(name: str) -> dict[str, str]:
    return {"class_": name} if name else {}


def _cell(cell: Cell, heads: bool, notes: list[str], links: Mapping[tuple[str, int], str]) -> Markup:
    """One cell; `notes` gathers why figures are undefined, each once."""
    kind, small = "", ""
    if isinstance(cell, Figure):
        inside: str = escape_number(cell.value)
        if cell.value != cell.value and cell.reason:
            notes.extend([] if cell.reason in notes else [cell.reason])
            inside += tag("sup", str(notes.index(cell.reason) + 1))
        small = " ".join(filter(None, (interval(cell.low, cell.high), cell.small)))
        kind = f"n {cell.kind}".rstrip()
    elif isinstance(cell, Latent):
        name, at = f"{cell.site} · {cell.latent}", links.get((cell.site, cell.latent))
        inside, small = tag("a", name, href=at) if at else Markup.escape(name), cell.small
    elif isinstance(cell, Words):
        inside, small = (
            tag("b", cell.text) if cell.strong else Markup.escape(cell.text or text.DASH),
            cell.small,
        )
        kind = "n" if _counts(cell) else "wrap" if len(cell.text) + len(small) > 30 else ""
    elif isinstance(cell, str):
        inside, kind = Markup.escape(cell), "wrap" if len(cell) > 30 and not isinstance(cell, Markup) else ""
    else:
        inside, kind = escape_number(cell), "n"
    parts = inside + (Markup(" ") + tag("small", small) if small else Markup(""))
    if heads:
        return tag("th", parts, scope="row") if parts else Markup('<th scope="row"></th>')
    return (
        Markup('<td class="{}">{}</td>').format(kind, parts) if kind else Markup("<td>{}</td>").format(parts)
    )


def escape_number(value: float) -> Markup:
    """A number as it is written; whole ones whole."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return Markup.escape(text.count(int(value)) if whole else number(float(value)))


# ---------------------------------------------------------------- charts


@dataclass(frozen=True)
class Panel:
    """A chart with its title, its caption, and its values folded below it.

    Args:
        group: of panels that are unfolded together; "" stands open.
    """

    title: str
    caption: str
    chart: Markup
    values: str | Markup = ""
    under: str = ""
    group: str = ""


def chart_of(
    spec: Chart, rows: Frame, title: str, bounds: draw.Interval | None = None, **more: Any
) -> tuple[Markup, Markup]:
    """Rows of a table as its kind of chart draws them, and their values.

    A column `name` names a row or curve instead of the columns of the spec, `mark` says how an estimate is
    marked, `line` how a curve is drawn ("level" is drawn across), and `words` stand at the end of a row.
    """
    if isinstance(spec, Heat):
        return _heat(spec, rows, title, **more)
    if isinstance(spec, Curves):
        return _curves(spec, rows, title, **more)
    if not isinstance(spec, Points | Strip):
        raise TypeError(f"no drawing of a {type(spec).__name__}")
    return draw.rows_chart(_rows(spec, rows), title, _axis(spec.value), bounds, **more), Markup("")


def _axis(axis: Axis) -> str:
    return axis.unit or axis.column


def _rows(spec: Points | Strip, rows: Frame) -> list[draw.Row]:
    value, named = spec.value, spec.label if isinstance(spec, Points) else spec.group
    if isinstance(spec, Strip):
        size = rows[value.column].abs()
        rows = rows[size.groupby([rows[name] for name in named]).rank(ascending=False) <= _STRIP]
    found: dict[str, list[Row]] = {}
    for row in records(rows):
        name = row["name"] if "name" in row else " · ".join(str(row[one]) for one in named if str(row[one]))
        found.setdefault(name, []).append(row)
    drawn = []
    for name, own in found.items():
        first = next((row for row in own if row.get("mark", "full") != "open"), own[0])
        marks = [
            Mark(
                row[value.column],
                row[value.low] if value.low else NAN,
                row[value.high] if value.high else NAN,
                row.get("mark", "full" if isinstance(spec, Points) else "open"),
            )
            for row in own
        ]
        words = first["words"] if "words" in first else "" if len(own) > 1 else number(first[value.column])
        drawn.append(
            draw.Row(name, marks, words, (first.get("range_low", NAN), first.get("range_high", NAN)))
        )
    return drawn


def one_scale(spec: Chart, rows: Frame) -> draw.Interval | None:
    """The scale that charts of some rows share; None for kinds that do not share one."""
    return draw.reach(_rows(spec, rows)) if isinstance(spec, Points | Strip) else None


def lines_of(spec: Curves, rows: Frame) -> tuple[list[Line], list[tuple[str, float]]]:
    """Curves of some rows, and the levels among them."""
    name = rows["name"] if "name" in rows else rows[list(spec.series)].astype(str).agg(" · ".join, axis=1)
    lines, levels = [], []
    for k, (one, own) in enumerate(rows.groupby(name, sort=False)):
        own = own.sort_values(spec.x.column, kind="stable")
        kind = str(own["line"].iloc[0]) if "line" in own else _KINDS[min(k, len(_KINDS) - 1)]
        if kind == "level":
            levels.append((str(one), float(own[spec.y.column].iloc[0])))
            continue
        low, high = (own[end].tolist() if end else () for end in (spec.y.low, spec.y.high))
        lines.append(
            Line(str(one), kind, own[spec.x.column].tolist(), own[spec.y.column].tolist(), low, high)
        )
    return lines, levels


def _curves(spec: Curves, rows: Frame, title: str, **more: Any) -> tuple[Markup, Markup]:
    lines, levels = lines_of(spec, rows)
    shown: dict[str, Any] = {
        "unit": _axis(spec.y),
        "width": draw.WIDE,
        "marked": True,
        "levels": levels,
    } | more
    return draw.lines_chart(lines, title, _axis(spec.x), **shown), values_of(lines, _axis(spec.x), title)


def values_of(lines: Sequence[Line], axis: str, title: str) -> Markup:
    """The values of curves, a column each, folded."""
    at = sorted({n for line in lines for n in line.x})
    columns: dict[str, Make] = {axis: lambda n: Words(draw.tick_text(n["at"]))}
    for line in lines:
        ends = [line.low or [NAN] * len(line.x), line.high or [NAN] * len(line.x)]
        held = {n: Figure(*values) for n, *values in zip(line.x, line.y, *ends, strict=True)}
        columns[line.name] = lambda n, held=held: held.get(n["at"], "")
    return grid(f"Values of {title}", columns, [{"at": n} for n in at], folded="Values")


def _heat(
    spec: Heat, rows: Frame, title: str, *, down: str = "", across: str = "", **more: Any
) -> tuple[Markup, Markup]:
    value, down_by = spec.value, spec.down[0]
    columns = role_order({str(name) for name in rows[spec.across]})
    by = rows[down_by].unique().tolist()
    names = sorted(by, reverse=True) if all(isinstance(one, int) for one in by) else by
    peak = max(1.0, *draw.finite(rows[value.column].abs()), 1.0)
    cells, figures = {}, {}
    for row in records(rows):
        at, shown = (str(row[spec.across]), str(row[down_by])), row[value.column]
        cells[at] = (
            shown / peak,
            f"{round(shown, 2) + 0.0:.2f}".replace("-", "−") if shown == shown else text.DASH,
        )
        figures[at] = Figure(shown, *(row.get(end, NAN) for end in ("ci_low", "ci_high")))
    down, across = down or down_by, across or spec.across
    chart = draw.heat_chart(columns, [str(n) for n in names], cells, title, down=down, across=across, **more)
    makes: dict[str, Make] = {down: "down"}
    makes |= {c: lambda row, c=c: figures.get((c, row["down"]), "") for c in columns}
    return chart, grid(f"Values of {title}", makes, [{"down": str(n)} for n in names], folded="Values")


def role_order(names: set[str]) -> list[str]:
    """Roles in their order in an example; then numbers, as heads have, by size; others last."""

    def rank(name: str) -> tuple[int, int, str]:
        is_number = name.isdecimal() and len(name) < 9
        known = ROLES.index(name) if name in ROLES else len(ROLES) + (not is_number)
        return known, int(name) if is_number else 0, name

    return sorted(names, key=rank)


# ---------------------------------------------------------------- sections

Said = str | Callable[[Frame, Source], str]
"""Words, or what puts rows into words."""
Where = Mapping[str, Any] | Callable[[Frame, Source], Frame]
"""Which rows: column → its value, or what gives that for a source; or what chooses the rows."""


@dataclass(frozen=True)
class Section:
    """A part of a page: rows of a table, in words, as charts and as values.

    Args:
        heading: of the section; a question where it answers one.
        table: of the run; "" for a part that `body` draws.
        id: anchor of the heading.
        nav: its name among the links at the top of the page; "" has none.
        level: 2 opens a section, 3 and 4 stand inside one.
        intro: what is shown and how it was measured.
        where: which rows are drawn.
        each: a chart for each value of these columns.
        title, caption: of a chart; a column of its first row stands in braces.
        chart: how rows are drawn; the table's own kind of chart by default, None draws none.
        look: how it is drawn besides: options of the kind of chart.
        panels: draws all charts, where rows alone do not say how.
        shape: CSS class of the charts' frame, "wider", "heat", "roles" or "tuned".
        legend: kind of line → what it stands for.
        marked: whether lines of the legend have marks.
        say: the finding in a sentence.
        columns: heading → cells of the values; every column of the table by default, {} shows none.
        per: columns for whose values the table of values has one row each; every row by default.
        whole: whether values are of the whole table rather than of the rows that are drawn.
        values: the words that unfold the values; "" leaves them open.
        kind: CSS class of the values.
        under: how to read it.
        empty: why it has no rows, where the table does not say.
        body: draws the part by itself.
    """

    heading: str
    table: str = ""
    _: KW_ONLY
    id: str = ""
    nav: str = ""
    level: int = 2
    intro: Said = ""
    where: Where = field(default_factory=dict)
    each: tuple[str, ...] = ()
    title: Said = ""
    caption: Said = ""
    chart: Chart | str | None = "own"
    look: Mapping[str, Any] = field(default_factory=dict)
    panels: Callable[[Frame, Source], Sequence[Panel]] | None = None
    shape: str = "wider"
    legend: Mapping[str, str] = field(default_factory=dict)
    marked: bool = True
    say: Said = ""
    columns: Mapping[str, Make] | Callable[[Frame, Source], Mapping[str, Make]] | None = None
    per: tuple[str, ...] = ()
    whole: bool = False
    values: str = "Values"
    kind: str = "small"
    under: Said = ""
    empty: str = ""
    body: Callable[[Source], Markup] | None = None

    def draw(self, source: Source) -> Markup:
        """Everything below the heading."""
        try:
            if self.body is not None:
                return paragraph("intro", self._words(self.intro, pd.DataFrame(), source)) + self.body(source)
            return self._draw(source)
        except IclensError as cause:
            return missing(f"Not there, because {cause.asked} is {cause.found}.")
        except _FORMLESS as cause:
            said = f"{type(cause).__name__}: {cause}".replace("\n", " ")
            return missing(f"Not there, because what it reads is unreadable or of another form ({said}).")

    def drawn(self, source: Source) -> Sequence[Panel]:
        """Its charts."""
        rows = self._chosen(source.rows(self.table), source)
        if rows.empty:
            return []
        return self.panels(rows, source) if self.panels is not None else self._panels(rows, source)

    def _draw(self, source: Source) -> Markup:
        table = source.rows(self.table)
        rows = self._chosen(table, source)
        intro = paragraph("intro", self._words(self.intro, table, source))
        if rows.empty:
            return intro + missing(source.why(self.table, self.empty) or self.empty or "Not run.")
        parts = [intro, *(paragraph("verdict", said) for said in lines(self._words(self.say, rows, source)))]
        panels = self.drawn(source)
        if panels and self.legend:
            keys = (draw.key(kind, words, marked=self.marked) for kind, words in self.legend.items())
            parts.append(tag("p", *keys, class_="legend"))
        parts += frames(panels, self.shape)
        parts.append(self._values(table if self.whole else rows, source))
        parts.append(paragraph("under", self._words(self.under, rows, source)))
        return Markup("\n").join(filter(None, parts))

    def _chosen(self, table: Frame, source: Source) -> Frame:
        if callable(self.where):
            return self.where(table, source)
        for column, value in self.where.items():
            table = table[table[column] == (value(source) if callable(value) else value)]
        return table

    def _words(self, said: Said, rows: Frame, source: Source) -> str:
        if callable(said):
            return said(rows, source)
        return said.format_map(records(rows.head(1))[0]) if "{" in said and len(rows) else said

    def _panels(self, rows: Frame, source: Source) -> list[Panel]:
        spec = TABLES[self.table].chart if self.chart == "own" else self.chart
        if spec is None or isinstance(spec, str):
            return []
        groups = [own for _, own in rows.groupby(list(self.each), sort=False)] if self.each else [rows]
        bounds, panels = one_scale(spec, rows) if self.each else None, []
        for own in groups:
            title = self._words(self.title, own, source)
            chart, values = chart_of(spec, own, title or self.heading, bounds, **self.look)
            panels.append(Panel(title, self._words(self.caption, own, source), chart, values))
        return panels

    def _values(self, rows: Frame, source: Source) -> Markup:
        kind, columns = TABLES[self.table], self.columns
        makes = columns(rows, source) if callable(columns) else columns
        titles = {name: column.meaning for name, column in kind.COLUMNS.items()} if makes is None else {}
        makes = {name: name for name in kind.COLUMNS} if makes is None else makes
        if not makes:
            return Markup("")
        label = self.values if self.values not in ("", "Values") else self.heading
        rows = rows.drop_duplicates(list(self.per)) if self.per else rows
        return grid(
            label, makes, records(rows), source.links, kind=self.kind, folded=self.values, titles=titles
        )


def lines(words: str) -> list[str]:
    """Sentences that stand in lines of their own."""
    return [line for line in words.split("\n") if line]


def paragraph(kind: str, words: str) -> Markup:
    """A paragraph of a kind; nothing without words. Words that are markup already stay so."""
    return tag("p", words, class_=kind) if words else Markup("")


def missing(words: str) -> Markup:
    """Why something is not there."""
    return paragraph("missing", words)


def facts(pairs: Iterable[tuple[str, str | Markup]]) -> Markup:
    """Names with their values."""
    return tag(
        "dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts"
    )


def frames(panels: Sequence[Panel], shape: str) -> list[Markup]:
    """Panels in their frame; those of a group are unfolded together, the first group stands open."""
    parts = []
    groups = list(dict.fromkeys(panel.group for panel in panels))
    for k, group in enumerate(groups):
        own = [_figure(panel, shape == "heat") for panel in panels if panel.group == group]
        frame = tag("div", *own, class_=f"panels {shape}")
        if group:
            frame = tag("details", tag("summary", group), frame, **({} if k else {"open": ""}))
        parts.append(frame)
    return parts


def _figure(panel: Panel, scrolls: bool) -> Markup:
    caption = (
        tag("figcaption", tag("b", panel.title), " ", panel.caption) if panel.title or panel.caption else ""
    )
    chart = panel.chart
    if scrolls:
        label = panel.title or "Chart"
        chart = tag("div", chart, class_="scroll", role="region", tabindex="0", aria_label=label)
    return tag("figure", *filter(None, (caption, chart, panel.values)), paragraph("under", panel.under))


# ---------------------------------------------------------------- pages


class Place(NamedTuple):
    """An entry of the site's navigation."""

    name: str
    path: str


@dataclass(frozen=True)
class Chrome:
    """What stands around every page.

    Args:
        title: of the study.
        places: the pages of the navigation.
        misfits: (site, in what its SAE does not fit the model), stated on every page made with it.
        notices: stated on every page.
    """

    title: str
    places: tuple[Place, ...] = ()
    misfits: tuple[tuple[str, str], ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """A page of sections.

    Args:
        path: file name.
        name: in the navigation and the page's title.
        title: its heading.
        lead: what it is about, in a sentence.
        sections: in their order; or what gives them for a source.
    """

    path: str
    name: str
    title: str
    lead: str
    sections: Sequence[Section] | Callable[[Source], Sequence[Section]]

    def write(self, source: Source, chrome: Chrome) -> str:
        """The page's text."""
        own = self.sections(source) if callable(self.sections) else self.sections
        parts: list[list[tuple[Section, Markup]]] = []
        for section in own:
            if section.level == 2 or not parts:
                parts.append([])
            parts[-1].append((section, section.draw(source)))
        return render("page.html.j2", chrome, self.path, page=self, parts=parts)


@cache
def environment() -> Environment:
    """Jinja with autoescape everywhere, and the site's ways of writing numbers and tokens."""
    made = Environment(
        loader=PackageLoader("iclens.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number, "count": text.count, "percent": percent, "visible": text.visible,
        "minus": text.minus,
    }  # fmt: skip
    made.tests["finite"] = math.isfinite
    made.globals |= {"interval": interval, "draw": draw}
    return made


def render(template: str, chrome: Chrome, path: str, **values: object) -> str:
    """A page from its template, without a character that no page can hold or that would hide another.

    Args:
        template: file name.
        chrome: what stands around it.
        path: of the page, from which `root` (the way up to the site) follows.
        **values: what the template shows.
    """
    root = "../" * path.count("/")
    return spelt_out(
        environment().get_template(template).render(chrome=chrome, root=root, here=path, **values)
    )
