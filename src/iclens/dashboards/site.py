"""How does a view become a folder of pages that opens from disk?

1. Everything is written into a temporary folder beside the target;
2. the index with its charts and the first page of the latents' table, the page of concepts, every
   latent page, the assets, and `data/latents.js` (a page opened from disk cannot fetch, so the rows are
   an assignment);
3. the folder is swapped in by renaming, so that no reader meets half a site.

All text passes through Jinja's autoescape or markupsafe; the pages carry a content security policy
that allows the site's own files and nothing else, so nothing inline can execute.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from iclens.dashboards import additive_charts, charts, concept_charts, svg, text
from iclens.dashboards.additive_view import AdditiveView
from iclens.dashboards.concept_view import ConceptsView
from iclens.dashboards.view import GrowthCount, LatentRow, LatentView, SiteView, TokenView
from iclens.errors import RunError
from iclens.tables.verdicts import LADDER

ROWS_PER_PAGE = 50
TASK_BARS = 16
"""Tasks drawn on a latent page; the others are summed up in a line."""
CONCEPTS = "concepts.html"
_MARKER = ".iclens-site"
_LEVELS = 8
_ASSETS = ("icon.svg", "site.css", "table.js", "tokens.js")


def build_site(view: SiteView, out: Path) -> Path:
    """Write the whole site to folder `out`, replacing an earlier site there.

    Returns:
        The path of `index.html`.

    Raises:
        RunError: when `out` exists and is not a site written by this function.
    """
    out = Path(out)
    _expect_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        scratch.chmod(0o755)
        _write(view, scratch)
        _swap(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out / "index.html"


def _expect_replaceable(out: Path) -> None:
    if out.is_dir() and ((out / _MARKER).is_file() or not any(out.iterdir())):
        return
    if out.exists():
        raise RunError(f"site folder {out}", "exists and holds something else", "Name a new or empty folder.")


def _swap(scratch: Path, out: Path) -> None:
    if not out.exists():
        scratch.rename(out)
        return
    old = scratch.with_name(scratch.name + "-old")
    out.rename(old)
    scratch.rename(out)
    shutil.rmtree(old)


def _write(view: SiteView, folder: Path) -> None:
    (folder / _MARKER).touch()
    for name in ("assets", "data", "latents"):
        (folder / name).mkdir()
    source = resources.files("iclens.dashboards") / "assets"
    for name in _ASSETS:
        (folder / "assets" / name).write_bytes((source / name).read_bytes())
    (folder / "data" / "latents.js").write_text(table_script(view), encoding="utf-8")
    environment = _environment()
    (folder / "index.html").write_text(_index(view, environment), encoding="utf-8")
    if view.concepts is not None:
        (folder / CONCEPTS).write_text(_concepts(view, view.concepts, environment), encoding="utf-8")
    template = environment.get_template("latent.html.j2")
    rows = {row.key: row for row in view.latents}
    for i, page in enumerate(view.pages):
        row = rows[page.site, page.latent]
        near = {
            "previous": rows[view.pages[i - 1].site, view.pages[i - 1].latent] if i else None,
            "next": rows[view.pages[i + 1].site, view.pages[i + 1].latent]
            if i + 1 < len(view.pages)
            else None,
        }
        html = template.render(view=view, page=page, row=row, root="../", near=near, **_latent_parts(page))
        (folder / row.page).write_text(html, encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("iclens.dashboards"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": text.number,
        "count": text.count,
        "percent": text.percent,
        "visible": text.visible,
    }
    environment.tests["finite"] = math.isfinite
    environment.globals |= {"interval": text.interval, "svg": svg}
    return environment


def _index(view: SiteView, environment: Environment) -> str:
    by_role: dict[str, list[GrowthCount]] = defaultdict(list)
    for entry in view.growth:
        by_role[entry.role].append(entry)
    reach = (
        max((g.n_falls for g in view.growth), default=0),
        max((g.n_grows for g in view.growth), default=0),
    )
    return environment.get_template("index.html.j2").render(
        view=view,
        root="",
        beliefs=[(panel, charts.belief_chart(panel)) for panel in view.beliefs],
        sweeps=[(sweep, charts.sweep_chart(sweep)) for sweep in view.sweeps],
        heads=[(sweep, charts.sweep_chart(sweep)) for sweep in view.heads],
        growth=[
            (role, by_role[role], charts.growth_chart(role, by_role[role], reach))
            for role in charts.role_order(set(by_role))
        ],
        additive=_additive(view.additive) if view.additive is not None else None,
        rows=view.latents[:ROWS_PER_PAGE],
        paged={(page.site, page.latent) for page in view.pages},
        sites=sorted({row.site for row in view.latents}),
        rows_per_page=ROWS_PER_PAGE,
    )


def _additive(view: AdditiveView) -> dict[str, object]:
    """The growth claim's charts beside its records."""
    return {
        "view": view,
        "arms": [(arm, additive_charts.arm_chart(arm)) for arm in view.arms],
        "ladder": additive_charts.ladder_chart(view.rungs, LADDER[1:]) if view.rungs else None,
        "accounts": additive_charts.account_chart(view.accounts) if view.accounts else None,
        "injections": additive_charts.injection_chart(view.injections) if view.injections else None,
    }


def _concepts(view: SiteView, page: ConceptsView, environment: Environment) -> str:
    rows = {row.key: row for row in view.latents}
    return environment.get_template("concepts.html.j2").render(
        view=view,
        page=page,
        root="",
        concepts=concept_charts.anchors(page.concepts),
        pages={(own.site, own.latent): rows[own.site, own.latent].page for own in view.pages},
        charts=concept_charts,
    )


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


def _latent_parts(page: LatentView) -> dict[str, object]:
    peak = max((token.value for prompt in page.prompts for token in prompt.tokens), default=0.0)
    tasks = sorted(page.tasks, key=lambda task: -task.mean if math.isfinite(task.mean) else math.inf)
    return {
        "prompts": [(prompt, _lines(prompt.tokens, peak)) for prompt in page.prompts],
        "peak": peak,
        "tasks": tasks[:TASK_BARS],
        "other_tasks": tasks[TASK_BARS:],
    }


def _lines(tokens: Sequence[TokenView], peak: float) -> list[list[tuple[str, float, int]]]:
    """Tokens as (visible text, activation, colour level 0–8), broken after each newline.

    Neighbours on which the latent is silent are joined: nothing tells them apart on the page.
    """
    lines: list[list[tuple[str, float, int]]] = [[]]
    for token in tokens:
        level = max(1, round(_LEVELS * token.value / peak)) if token.value > 0 else 0
        shown = text.visible(token.text)
        if level == 0 and lines[-1] and lines[-1][-1][2] == 0:
            shown = lines[-1].pop()[0] + shown
        lines[-1].append((shown, token.value, level))
        if token.text.endswith("\n"):
            lines.append([])
    return [line for line in lines if line]
