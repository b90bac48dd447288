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
from iclens.pages.text import DASH, interval, number, percent, spelt_out
from iclens.results.read import Results
from iclens.schemas import TABLES
from iclens.table import Axis, Chart, Curves, Heat, Points, Strip

Frame = pd.DataFrame
Row = Mapping[str, Any]
Links = Mapping[tuple[str, int], str]
"""(Site, latent) → the address of its page, for those that have one."""
FORMLESS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration)
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
}
"""Why a table of a finished stage has no rows."""


@dataclass(frozen=True)
class Source:
    """What pages are drawn from: the run's tables, and the addresses of latents' pages."""

    results: Results
    links: Links = field(default_factory=dict)

    @property
    def config(self):
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
            return self.results.table(name), ""
        except RunError:
            reason = f"Not run: the stage `{kind.stage}` has left no {name}.parquet."
        except TableError:
            reason = f"Not shown: {name}.parquet is damaged or of another version of iclens."
        return pd.DataFrame(columns=list(kind.COLUMNS)), reason


def records(rows: Frame) -> list[dict[str, Any]]:
    """Rows as mappings of column names."""
    return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]


# ---------------------------------------------------------------- tables of values


@dataclass(frozen=True)
class Cell:
    """A number with its interval, or words; a number that is NaN leads to its reason below the table."""

    value: Any = ""  # a number, words or markup; a dash stands for no words
    low: float = NAN
    high: float = NAN
    reason: str = ""
    small: str = ""  # words beside it
    kind: str = ""  # CSS classes besides, as `own` or a shade
    strong: bool = False  # whether words are a finding
    latent: tuple[str, int] | None = None  # leads to its page, where it has one

    @property
    def is_number(self) -> bool:
        """Whether it is aligned as a number: one, a percentage, or words that begin with a count."""
        return not isinstance(self.value, str) or (not self.small and self.value[:1].isdigit())


Make = str | Callable[[Row], Any]
"""A cell of a row: a column's name, words with columns in braces, or what makes a cell or a plain value."""


@dataclass(frozen=True)
class Across:
    """Columns of a table of values, one for each value of a column of its rows."""

    by: str
    cell: Make  # made from the row that has the value
    heading: str | Callable[[Any], str] = "{}"
    values: Sequence[Any] | None = None  # in their order; as the rows have them by default
    otherwise: Any = ""  # the cell where no row has the value

    def columns(self, groups: Sequence[Sequence[Row]]) -> list[tuple[str, list[Any]]]:
        """(heading, cells) of each, for groups of rows that share a line of the table."""
        at = [{row[self.by]: row for row in reversed(group)} for group in groups]
        made = []
        for value in self.values if self.values is not None else dict.fromkeys(
            row[self.by] for group in groups for row in group
        ):  # fmt: skip
            heading = self.heading.format(value) if isinstance(self.heading, str) else self.heading(value)
            cells = [_made(self.cell, rows[value]) if value in rows else self.otherwise for rows in at]
            made.append((heading, cells))
        return made


def figure(value: str, small: str | Callable[[Row], str] = "", ends: str = "ci", kind: str = "") -> Make:
    """Cells of a column with its interval, its own or `<ends>_low` to `<ends>_high`, and the row's reason.

    `small` is a column of words beside it, or makes them; without ends the number stands alone.
    """

    def make(row: Row) -> Cell:
        stem = value if f"{value}_low" in row else ends
        low, high = row.get(f"{stem}_low", NAN), row.get(f"{stem}_high", NAN)
        beside = small(row) if callable(small) else row[small] if small else ""
        return Cell(row[value], low, high, row.get("reason", "") if stem else "", beside, kind)

    return make


def share(column: str) -> Make:
    """Cells of a share as a percentage; 0 below .01 %."""
    return lambda row: Cell("0" if row[column] < 1e-4 else percent(row[column]))


def latent(small: str = "") -> Make:
    """Cells that name the row's latent, linked, with words beside it that may hold columns in braces."""
    return lambda row: Cell(
        f"{row['site']} · {row['latent']}", small=small.format_map(row), latent=(row["site"], row["latent"])
    )


def code(column: str) -> Make:
    """Cells of a column in the type of code."""
    return lambda row: tag("code", str(row[column]))


def shade(auroc: float) -> str:
    """CSS class of a cell of an AUROC: the further above .5, the fuller; nothing at or below it."""
    step = round(10 * (auroc - 0.5)) if math.isfinite(auroc) and auroc > 0.5 else 0
    return f"a{step}" if step else ""


def grid(
    label: str,
    columns: Mapping[str, Make | Across],
    rows: Iterable[Row],
    links: Mapping[tuple[str, int], str] = {},
    *,
    per: Sequence[str] = (),
    kind: str = "small",
    folded: str = "",
    titles: Mapping[str, str] = {},
) -> Markup:
    """A table of values; nothing without rows.

    Args:
        label: names its region to a reader who scrolls it.
        columns: heading → what makes its cells; the first heads the line, one that is empty is left out.
        per: columns that name a line; each row is one by default.
        folded: the words that unfold it; it stands open without.
        titles: heading → what it means.
    """
    groups: dict[object, list[Row]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(tuple(row[name] for name in per) or i, []).append(row)
    if not groups:
        return Markup("")
    made: list[tuple[str, list[Any]]] = []
    for heading, make in columns.items():
        if isinstance(make, Across):
            made += make.columns(list(groups.values()))
        else:
            made.append((heading, [_made(make, group[0]) for group in groups.values()]))
    cells = [
        (heading, [cell if isinstance(cell, Cell | str) else Cell(cell) for cell in own])
        for heading, own in made
    ]
    kept = [column for i, column in enumerate(cells) if i == 0 or not all(map(_blank, column[1]))]
    head = [
        tag("th", heading, scope="col", class_="n" if any(map(_numeric, own)) else "",
            title=titles.get(heading, ""))
        for heading, own in kept
    ]  # fmt: skip
    notes: list[str] = []
    body = [
        Markup("<tr>{}</tr>\n").format(
            Markup("").join(_cell(cell, i == 0, notes, links) for i, cell in enumerate(line))
        )
        for line in zip(*(own for _, own in kept), strict=True)
    ]
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", "\n", *body), class_=kind)
    table = scrolled(label, table)
    if notes:
        why = (tag("li", note) for note in notes)
        table += tag("ol", *why, class_="reasons", aria_label="Why figures are undefined")
    return tag("details", tag("summary", folded), table) if folded else table


def scrolled(label: str, inside: Markup) -> Markup:
    """What may be wider than the page, in a region that scrolls by keyboard too."""
    return tag("div", inside, class_="scroll", role="region", tabindex="0", aria_label=label)


def _made(make: Make, row: Row) -> Any:
    if callable(make):
        return make(row)
    return Cell(make.format_map(row)) if "{" in make else row[make]


def _blank(cell: Cell | str) -> bool:
    return not cell if isinstance(cell, str) else cell.value == "" and not cell.small


def _numeric(cell: Cell | str) -> bool:
    return isinstance(cell, Cell) and cell.is_number


def _cell(cell: Cell | str, heads: bool, notes: list[str], links: Links) -> Markup:
    """One cell; `notes` gathers why figures are undefined, each once."""
    one = Cell(cell) if isinstance(cell, str) else cell
    small, kind = one.small, ""
    if isinstance(one.value, str):
        inside = Markup.escape(one.value or ("" if isinstance(cell, str) else DASH))
        inside = tag("b", inside) if one.strong else inside
        at = links.get(one.latent) if one.latent else None
        inside = tag("a", inside, href=at) if at else inside
        if _numeric(cell):
            kind = "n"
        elif len(one.value) + len(small) > 30 and not (one.latent or isinstance(one.value, Markup)):
            kind = "wrap"
    else:
        inside, kind = escape_number(one.value), f"n {one.kind}".rstrip()
        small = " ".join(filter(None, (interval(one.low, one.high), small)))
        if one.value != one.value and one.reason:
            notes.extend([] if one.reason in notes else [one.reason])
            inside += tag("sup", str(notes.index(one.reason) + 1))
    parts = inside + (Markup(" ") + tag("small", small) if small else "")
    opening = Markup('<th scope="row">') if heads else Markup("<td{}>").format(
        Markup(' class="{}"').format(kind) if kind else ""
    )  # fmt: skip
    return opening + parts + Markup("</th>" if heads else "</td>")


def escape_number(value: float) -> Markup:
    """A number as it is written; whole ones whole."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return Markup.escape(text.count(int(value)) if whole else number(float(value)))


# ---------------------------------------------------------------- charts


@dataclass(frozen=True)
class Panel:
    """A chart with its title, its caption, and its values folded below it."""

    title: str
    caption: str
    chart: Markup
    values: str | Markup = ""
    under: str = ""
    group: str = ""  # of panels that are unfolded together; "" stands open


def chart_of(
    spec: Chart, rows: Frame, title: str, bounds: draw.Interval | None = None, **look: Any
) -> tuple[Markup, Markup]:
    """Rows of a table as its kind of chart draws them, and their values.

    Some columns say how: `name` is a row's, curve's or level's name instead of the columns of the spec,
    `mark` how an estimate is marked, `line` the kind of a curve ("level" is drawn across), `words` stand at
    the end of a row or in a cell, `said` is a row in the text alternative, and `range_low` to `range_high`
    the range of its controls.
    """
    match spec:
        case Heat():
            return _heat(spec, rows, title, **look)
        case Curves():
            return _curves(spec, rows, title, **look)
        case _:
            axis = look.pop("axis", spec.value.unit or spec.value.column)
            return draw.rows_chart(chart_rows(spec, rows), title, axis, bounds, **look), Markup("")


def chart_rows(spec: Points | Strip, rows: Frame) -> list[draw.Row]:
    """The lines of a chart of estimates; those of equal name share one."""
    value, named = spec.value, spec.label if isinstance(spec, Points) else spec.group
    if isinstance(spec, Strip):
        size = rows[value.column].abs()
        rows = rows[size.groupby([rows[name] for name in named]).rank(ascending=False) <= _STRIP]
    lines: dict[str, list[Row]] = {}
    for row in records(rows):
        name = row["name"] if "name" in row else " · ".join(str(row[key]) for key in named if str(row[key]))
        lines.setdefault(name, []).append(row)
    drawn, usual = [], "full" if isinstance(spec, Points) else "open"
    for name, own in lines.items():
        first = next((row for row in own if row.get("mark", "full") != "open"), own[0])
        marks = [
            Mark(row[value.column], row.get(value.low, NAN), row.get(value.high, NAN), row.get("mark", usual))
            for row in own
        ]
        words = first.get("words", "" if len(own) > 1 else number(first[value.column]))
        beside = first.get("range_low", NAN), first.get("range_high", NAN)
        drawn.append(draw.Row(name, marks, words, beside, first.get("said", "")))
    return drawn


def _names(rows: Frame, columns: Sequence[str]) -> pd.Series:
    return rows["name"] if "name" in rows else rows[list(columns)].astype(str).agg(" · ".join, axis=1)


def lines_of(spec: Curves, rows: Frame) -> list[Line]:
    """Curves of some rows, the first on top; levels among them too."""
    lines = []
    for k, (name, own) in enumerate(rows.groupby(_names(rows, spec.series), sort=False)):
        own = own.sort_values(spec.x.column, kind="stable")
        kind = str(own["line"].iloc[0]) if "line" in own else _KINDS[min(k, len(_KINDS) - 1)]
        ends = (own[end].tolist() if end in own else () for end in (spec.y.low, spec.y.high))
        lines.append(Line(str(name), kind, own[spec.x.column].tolist(), own[spec.y.column].tolist(), *ends))
    return lines


def _curves(spec: Curves, rows: Frame, title: str, *, over: str = "", **look: Any) -> tuple[Markup, Markup]:
    """`over` heads the column of what curves run over, where it is not the axis' title."""
    if rows[spec.y.column].isna().all():
        return Markup(""), Markup("")
    lines = lines_of(spec, rows)
    x, y = spec.x, spec.y
    usual = {"unit": y.unit or y.column, "width": draw.WIDE, "marked": True}
    levels = [(line.name, line.y[0]) for line in lines if line.kind == "level"]
    drawn = [line for line in lines if line.kind != "level"]
    chart = draw.lines_chart(drawn, title, x.unit or x.column, levels=levels, **(usual | look))
    values = rows.assign(name=_names(rows, spec.series)).sort_values(x.column, kind="stable")
    columns: dict[str, Make | Across] = {
        over or x.unit or x.column: lambda row: Cell(draw.tick_text(row[x.column])),
        "curves": Across("name", _bounded(y), values=[line.name for line in drawn]),
    }
    return chart, grid(f"Values of {title}", columns, records(values), per=(x.column,), folded="Values")


def _bounded(axis: Axis) -> Make:
    return lambda row: Cell(row[axis.column], row.get(axis.low, NAN), row.get(axis.high, NAN))


def _heat(spec: Heat, rows: Frame, title: str, *, down: str = "", across: str = "") -> tuple[Markup, Markup]:
    value, by = spec.value.column, spec.down[0]
    columns = role_order([str(name) for name in rows[spec.across]])
    if all(isinstance(name, int) for name in rows[by].unique().tolist()):
        rows = rows.sort_values(by, ascending=False, kind="stable")  # the last block on top
    names, peak, cells = [str(name) for name in rows[by].unique()], max(1.0, *rows[value].abs().dropna()), {}
    for row in records(rows):
        written = DASH if row[value] != row[value] else f"{round(row[value], 2) + 0.0:.2f}".replace("-", "−")
        cells[str(row[spec.across]), str(row[by])] = (
            row.get("shade", row[value] / peak), row.get("words", written)
        )  # fmt: skip
    down, across = down or by, across or spec.across
    chart = draw.heat_chart(columns, names, cells, title, down=down, across=across)
    made = rows.assign(**{spec.across: rows[spec.across].astype(str)})
    cell = figure(value)
    layout: dict[str, Make | Across] = {down: by, across: Across(spec.across, cell, values=columns)}
    return chart, grid(f"Values of {title}", layout, records(made), per=(by,), folded="Values")


def role_order(names: Sequence[str]) -> list[str]:
    """Roles in their order in an example; then numbers, as heads have, by size; others last, as they come."""

    def rank(name: str) -> tuple[int, int]:
        is_number = name.isdecimal() and len(name) < 9
        place = ROLES.index(name) if name in ROLES else len(ROLES) + (not is_number)
        return place, int(name) if is_number else 0

    return sorted(dict.fromkeys(names), key=rank)


# ---------------------------------------------------------------- sections

Said = str | Callable[[Frame, Source], str]
"""Words, with a column of the first row or `config.section.key` in braces; or what puts rows into words."""
Choose = Callable[[Frame, Source], Frame]
Columns = Mapping[str, Make | Across]


@dataclass(frozen=True)
class Section:
    """A part of a page: rows of a table, in words, as charts and as values."""

    heading: str  # a question where the section answers one
    table: str = ""  # of the run; "" for a part that `body` draws
    _: KW_ONLY
    id: str = ""  # anchor of the heading
    nav: str = ""  # its name among the links at the top of the page; "" has none
    level: int = 2  # of the heading: 2 opens a section, 3 and 4 stand inside one
    intro: Said = ""  # what is shown and how it was measured
    where: Mapping[str, Any] | Choose = field(default_factory=dict)  # column → value; or chooses the rows
    drawn: Choose | None = None  # the rows as they are drawn, where that is not how they are laid out
    each: tuple[str, ...] = ()  # a chart for each value of these columns, on one scale
    title: Said = ""  # of a chart
    label: Said = ""  # its name in the text alternative; its title by default
    caption: Said = ""
    chart: Chart | str | None = "own"  # how rows are drawn; the table's own by default, None draws none
    look: Mapping[str, Any] = field(default_factory=dict)  # options of the kind of chart
    panels: Callable[[Frame, Source], Sequence[Panel]] | None = None  # draws charts where rows do not say how
    shape: str = "wider"  # CSS class of the charts' frame: "wider", "heat", "roles", "tuned" or none
    legend: Mapping[str, str] = field(default_factory=dict)  # kind of line → what it stands for
    marked: bool = True  # whether lines of the legend have marks
    say: Said = ""  # the finding, a sentence on each line
    columns: Columns | Callable[[Frame, Source], Columns] | None = None  # of the values; all by default
    per: tuple[str, ...] = ()  # columns that name a line of the values; each row is one by default
    apart: str = ""  # a table of values for each value of this column
    apart_words: Mapping[str, str] = field(default_factory=dict)  # that value → words beside its heading
    whole: bool = False  # whether values are of the whole table rather than of the rows that are drawn
    values: str = "Values"  # the words that unfold the values; "" leaves them open
    kind: str = "small"  # CSS class of the values
    under: Said = ""  # how to read it
    empty: str = ""  # why it has no rows, where the table does not say
    body: Callable[[Source], Markup] | None = None  # draws the part by itself

    def draw(self, source: Source) -> Markup:
        """Everything below the heading."""
        try:
            return Markup("\n").join(filter(None, self._parts(source)))
        except IclensError as cause:
            return missing(f"Not there, because {cause.asked} is {cause.found}.")
        except FORMLESS as cause:
            said = f"{type(cause).__name__}: {cause}".replace("\n", " ")
            return missing(f"Not there, because what it reads is unreadable or of another form ({said}).")

    def drawn_panels(self, source: Source) -> Sequence[Panel]:
        """Its charts."""
        rows = self._chosen(source.rows(self.table), source)
        return [] if rows.empty else self._panels(rows, source)

    def _parts(self, source: Source) -> Iterable[Markup]:
        table = source.rows(self.table) if self.table else pd.DataFrame()
        yield paragraph("intro", self._words(self.intro, table, source))
        if self.body is not None:
            yield self.body(source)
            return
        rows = self._chosen(table, source)
        if rows.empty:
            yield missing(source.why(self.table, self.empty) or self.empty or "Not run.")
            return
        yield from (paragraph("verdict", line) for line in self._words(self.say, rows, source).split("\n"))
        panels = self._panels(rows, source)
        if panels and self.legend:
            keys = (draw.key(kind, words, marked=self.marked) for kind, words in self.legend.items())
            yield tag("p", *keys, class_="legend")
        yield from frames(panels, self.shape)
        yield from self._values(table if self.whole else rows, source)
        yield paragraph("under", self._words(self.under, rows, source))

    def _chosen(self, table: Frame, source: Source) -> Frame:
        if callable(self.where):
            return self.where(table, source)
        for column, value in self.where.items():
            table = table[table[column] == (value(source) if callable(value) else value)]
        return table

    def _words(self, said: Said, rows: Frame, source: Source) -> str:
        if callable(said):
            return said(rows, source)
        first = dict(zip(rows.columns, rows.iloc[0], strict=True)) if len(rows) else {}
        return said.format_map(first | {"config": source.config}) if "{" in said else said

    def _panels(self, rows: Frame, source: Source) -> Sequence[Panel]:
        if self.panels is not None:
            return self.panels(rows, source)
        spec = TABLES[self.table].chart if self.chart == "own" else self.chart
        if spec is None or isinstance(spec, str):
            return []
        rows = self.drawn(rows, source) if self.drawn is not None else rows
        groups = [own for _, own in rows.groupby(list(self.each), sort=False)] if self.each else [rows]
        shared = self.each and isinstance(spec, Points | Strip)
        bounds = draw.reach(chart_rows(spec, rows)) if shared else None  # type: ignore[arg-type]
        panels = []
        for own in groups:
            title, label = (self._words(said, own, source) for said in (self.title, self.label))
            chart, values = chart_of(spec, own, label or title or self.heading, bounds, **self.look)
            values = Markup("") if self.columns else values
            panels.append(Panel(title, self._words(self.caption, own, source), chart, values))
        return panels

    def _values(self, rows: Frame, source: Source) -> Iterable[Markup]:
        kind, makes, titles = TABLES[self.table], self.columns, {}
        if makes is None:
            makes = {name: name for name in kind.COLUMNS}
            titles = {name: column.meaning for name, column in kind.COLUMNS.items()}
        elif callable(makes):
            makes = makes(rows, source)
        label = self.values if self.values not in ("", "Values") else self.heading
        groups = rows.groupby(self.apart, sort=False) if self.apart else [("", rows)]
        for name, own in groups if makes else ():
            if self.apart:
                words = self.apart_words.get(str(name), "")
                yield tag("h4", str(name), *(" ", tag("small", words)) if words else ())
            yield grid(
                f"{label}: {name}" if self.apart else label, makes, records(own), source.links, per=self.per,
                kind=self.kind, folded=self.values, titles=titles,
            )  # fmt: skip


def paragraph(kind: str, words: str) -> Markup:
    """A paragraph of a kind; nothing without words. Words that are markup already stay so."""
    return tag("p", words, class_=kind) if words else Markup("")


def missing(words: str) -> Markup:
    """Why something is not there."""
    return paragraph("missing", words)


def facts(pairs: Iterable[tuple[str, str | Markup]], kind: str = "facts") -> Markup:
    """Names with their values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_=kind)


def frames(panels: Sequence[Panel], shape: str) -> list[Markup]:
    """Panels in their frame; those of a group are unfolded together, the first group stands open."""
    parts = []
    for k, group in enumerate(dict.fromkeys(panel.group for panel in panels)):
        own = (_figure(panel, shape == "heat") for panel in panels if panel.group == group)
        frame = tag("div", *own, class_=f"panels {shape}")
        if group:
            frame = tag("details", tag("summary", group), frame, **({} if k else {"open": ""}))
        parts.append(frame)
    return parts


def _figure(panel: Panel, scrolls: bool) -> Markup:
    caption = (
        tag("figcaption", tag("b", panel.title), " ", panel.caption) if panel.title or panel.caption else ""
    )
    chart = scrolled(panel.title or "Chart", panel.chart) if scrolls else panel.chart
    return tag("figure", caption, chart, panel.values, paragraph("under", panel.under))


# ---------------------------------------------------------------- pages


class Place(NamedTuple):
    """An entry of the site's navigation."""

    name: str
    path: str


@dataclass(frozen=True)
class Chrome:
    """What stands around every page."""

    title: str  # of the study
    places: tuple[Place, ...] = ()  # the pages of the navigation
    misfits: tuple[tuple[str, str], ...] = ()  # (site, in what its SAE does not fit the model)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """A page of sections."""

    path: str  # file name
    name: str  # in the navigation and the page's title
    title: str  # its heading
    lead: str  # what it is about, in a sentence
    sections: Sequence[Section] | Callable[[Source], Sequence[Section]]

    def write(self, source: Source, chrome: Chrome) -> str:
        """The page's text."""
        own = self.sections(source) if callable(self.sections) else self.sections
        return render("page.html.j2", chrome, self.path, page=self, parts=parts_of(own, source))


def parts_of(sections: Iterable[Section], source: Source) -> list[list[tuple[Section, Markup]]]:
    """Sections with what stands below their headings, those inside one together with it."""
    parts: list[list[tuple[Section, Markup]]] = []
    for section in sections:
        if section.level == 2 or not parts:
            parts.append([])
        parts[-1].append((section, section.draw(source)))
    return parts


@cache
def environment() -> Environment:
    """Jinja with autoescape everywhere, and the site's ways of writing numbers and tokens."""
    made = Environment(
        loader=PackageLoader("iclens.pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "number": number, "count": text.count, "percent": percent, "visible": text.visible,
        "minus": text.minus,
    }  # fmt: skip
    made.globals |= {"draw": draw}
    return made


def render(template: str, chrome: Chrome, path: str, **values: object) -> str:
    """A page from its template, without a character that no page can hold or that would hide another.

    `root`, the way up to the site, follows from the page's path.
    """
    page = environment().get_template(template)
    return spelt_out(page.render(chrome=chrome, root="../" * path.count("/"), here=path, **values))
