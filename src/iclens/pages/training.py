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

from iclens.pages.draw import Line, bars_chart, lines_chart
from iclens.pages.section import environment
from iclens.pages.text import spelt_out
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
    """Write the page of a set, from its card and metrics.

    Not part of training: a change of how pages look must not ask for the SAEs to be trained again.

    Args:
        folder: of the set.
        page: file to write, `report.html` in the set's folder for `iclens train`.
    """
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    members = parse_train_config(card["config"]).saes.members
    metrics = {spec.name: read_metrics(folder / spec.name / "metrics.jsonl") for spec in members}
    page.write_text(
        training_page(card, metrics, read_metrics(folder / "pace.jsonl")) + "\n", encoding="utf-8"
    )


def training_page(card: Mapping[str, Any], metrics: Mapping[str, Rows], pace: Rows) -> str:
    """The page as HTML.

    Args:
        card: of the set: model, config, quality, density, seconds, versions.
        metrics: SAE name → its lines of metrics, in order.
        pace: lines of the pace, in order.
    """
    style = (resources.files("iclens.pages") / "assets" / "site.css").read_text(encoding="utf-8")
    names = dict(zip(metrics, card["quality"], strict=True))
    panels = [
        (key, title, about, [(name, curve(rows, key, f"{title}, {name}")) for name, rows in metrics.items()])
        for key, title, about in _PANELS
    ]
    densities = [
        (
            name,
            density_chart(
                [row for row in card.get("density", ()) if row["sae_id"] == quality["sae_id"]], name
            ),
        )
        for name, quality in names.items()
    ]
    mixed = list(zip(names, card.get("quality_prompts", ()), strict=False))
    page = environment().get_template("training.html.j2").render(
        style=Markup(style),
        card=card,
        figures=_FIGURES,
        tables=[("held-out contexts", names.items()), ("prompts of the tasks mixed in", mixed)],
        panels=panels,
        densities=[(name, chart) for name, chart in densities if chart],
        pace=curve(pace, "tokens_per_second", "Pace in tokens per second"),
        last={name: rows[-1] for name, rows in metrics.items() if rows},
    )  # fmt: skip
    return spelt_out(page)


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
