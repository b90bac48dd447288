"""The training report: quality, error, dead latents, L0, density and pace of a set of SAEs, on one page.

Lines of metrics are thinned to at most `POINTS` means, so that the page of a long run stays small. The
style sheet is part of the page, which opens from disk, alone, without scripts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from iclens.pages.draw import NAN, Line, bars_chart, lines_chart
from iclens.pages.section import Cell, Chrome, Make, Page, Panel, Section, frames, grid, paragraph, render
from iclens.pages.text import number
from iclens.training.config import parse_train_config
from iclens.training.report import read_metrics

REPORT, POINTS = "report.html", 240
"""The page of a set in its own folder; most points of a curve."""
_PANELS = (
    ("fvu", "Error of each batch", "fraction of variance unexplained"),
    ("dead", "Dead latents", "share idle for longer than the window"),
    ("l0", "Active latents", "mean number per token"),
)
_FIGURES = ("l0", "fvu", "fvu_pre", "ce_recovered", "ce_recovered_pre", "kl", "dead")
Rows = Sequence[Mapping[str, Any]]


def write_report(folder: Path, page: Path) -> None:
    """Write the page of a set, from its card and metrics: `report.html` in its folder for `iclens train`.

    Not part of training: a change of how pages look must not ask for the SAEs to be trained again.
    """
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    members = parse_train_config(card["config"]).saes.members
    metrics = {spec.name: read_metrics(folder / spec.name / "metrics.jsonl") for spec in members}
    written = training_page(card, metrics, read_metrics(folder / "pace.jsonl"))
    page.write_text(written + "\n", encoding="utf-8")


def training_page(card: Mapping[str, Any], metrics: Mapping[str, Rows], pace: Rows) -> str:
    """The page as HTML, of a set's card, the lines of metrics of each SAE by name, and those of the pace."""
    style = (resources.files("iclens.pages") / "assets" / "site.css").read_text(encoding="utf-8")
    last, model = {name: rows[-1] for name, rows in metrics.items() if rows}, card["model"]["name"]
    lead = f"{len(last)} SAEs on {model}, {card['config']['training']['tokens']:,} tokens each."
    page = Page("report.html", f"Training of {len(last)} SAEs", "Training report", lead, ())
    parts = [
        [(Section(heading, id=f"part-{n}"), Markup("\n").join(filter(None, body)))]
        for n, (heading, body) in enumerate(_parts(card, metrics, pace, last).items(), start=1)
    ]
    return render("page.html.j2", Chrome(model), page.path, page=page, parts=parts, style=Markup(style))


def _parts(
    card: Mapping[str, Any], metrics: Mapping[str, Rows], pace: Rows, last: Mapping[str, Any]
) -> dict[str, Sequence[Markup]]:
    """Heading → what stands below it."""
    names = dict(zip(metrics, card["quality"], strict=True))
    mixed = dict(zip(names, card.get("quality_prompts", ()), strict=False))
    measured = (
        "Measured after training, from the files written, on tokens that no SAE was trained on. A dash is "
        "undefined; the card says why."
    )
    columns = {"SAE": "SAE"} | {name: _figure(name) for name in _FIGURES}
    parts: dict[str, Sequence[Markup]] = {}
    for where, rows in (("held-out contexts", names), ("prompts of the tasks mixed in", mixed)):
        table = grid(
            f"Quality on {where}", columns, [{"SAE": name} | row for name, row in rows.items()], kind=""
        )
        parts |= {f"Quality on {where}": [paragraph("intro", measured), table]} if rows else {}
    for name, title, about in _PANELS:
        charts = [(sae, curve(rows, name, f"{title}, {sae}")) for sae, rows in metrics.items()]
        panels = [
            Panel(sae, f"{number(last[sae][name])} in the last batch", chart)
            for sae, chart in charts
            if chart
        ]
        over = f"{about.capitalize()}, over the tokens trained on."
        parts[title] = [paragraph("intro", over), *frames(panels, "")]
    densities = [
        Panel(name, "", chart)
        for name, quality in names.items()
        if (
            chart := density_chart(
                [r for r in card.get("density", ()) if r["sae_id"] == quality["sae_id"]], name
            )
        )
    ]
    if densities:
        of = "Latents by the share of held-out tokens on which they are active."
        parts["Density"] = [paragraph("intro", of), *frames(densities, "")]
    speed = f"Tokens per second, each used by every SAE; {number(card['seconds'])} seconds in all."
    drawn = Panel("", "", curve(pace, "tokens_per_second", "Pace in tokens per second"))
    parts["Pace"] = [paragraph("intro", speed), *frames([drawn], "")]
    left_out = {
        f"{kind.removesuffix('s')} {which} left out": why
        for kind, given in card["excluded"].items()
        if isinstance(given, Mapping)
        for which, why in given.items()
    }
    run = {"model": f"{card['model']['name']}, {card['model']['fingerprint']}"} | card["config"]["training"]
    run |= left_out | (card.get("data") or {}) | {"measured on": card["measured_on"]} | card["versions"]
    facts_ = [{"what": str(name), "value": Cell(str(value))} for name, value in run.items()]
    parts["What was run"] = [grid("What was run", {"": "what", " ": "value"}, facts_)]
    return parts


def _figure(name: str) -> Make:
    return lambda row: NAN if row[name] is None else float(row[name])


def curve(rows: Rows, key: str, title: str) -> Markup:
    """One metric over the tokens trained on; nothing where it was never defined."""
    known = [(row["tokens"], row[key]) for row in rows if row.get(key) is not None]
    if not known:
        return Markup("")
    x, y = (list(column) for column in zip(*thinned(known), strict=True))
    size, word = next(((s, w) for s, w in _UNITS if x[-1] >= s), (1.0, ""))
    line = Line("", "task", [n / size for n in x], y)
    return lines_chart([line], "", f"{word}tokens", said=f"{title} over tokens: {line.ends}.")


_UNITS = ((1e9, "billion "), (1e6, "million "), (1e3, "thousand "))


def density_chart(rows: Rows, name: str) -> Markup:
    """Latents by density, on a logarithmic axis; dead ones are said in words."""
    held = [row for row in rows if row["high"] > 0 and row["n_latents"] > 0]
    if not held:
        return Markup("")
    first = math.floor(min(math.log10(max(row["low"], 1e-8)) for row in held))
    shown = [row for row in rows if row["high"] > 0 and math.log10(max(row["low"], 1e-8)) >= first]
    edges = [math.log10(max(row["low"], 1e-8)) for row in shown] + [math.log10(shown[-1]["high"])]
    dead, total = (
        sum(row["n_latents"] for row in rows if row["high"] == 0),
        sum(row["n_latents"] for row in rows),
    )
    label = f"Latents of {name} by density; {dead} of {total} are dead."
    return bars_chart(edges, [row["n_latents"] for row in shown], label, "log₁₀ density", width=310)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` points: the means of as many runs of neighbours."""
    if len(points) <= POINTS:
        return list(points)
    parts = np.array_split(np.array(points, dtype=float), POINTS)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]
