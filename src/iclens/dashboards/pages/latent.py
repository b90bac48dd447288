"""The page of one latent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from iclens.dashboards import text
from iclens.dashboards.charts import concepts as charts
from iclens.dashboards.charts import svg
from iclens.dashboards.pages.page import Chrome, Page, draw
from iclens.dashboards.records.latent import Curve, LatentRow, LatentView, TokenView
from iclens.dashboards.records.site import SiteView

TASK_BARS = 12
"""Tasks drawn on a latent page; the others are summed up in a line."""


def pages(view: SiteView, chrome: Chrome) -> Iterator[Page]:
    """A page for each latent that is worth one, leading to the next and back."""
    rows = {row.key: row for row in view.latents}
    own = [rows[page.site, page.latent] for page in view.pages]
    beside = zip([None, *own], own, [*own[1:], None], strict=False)
    for page, (before, row, after) in zip(view.pages, beside, strict=True):
        near = {"previous": before, "next": after}
        near_keys = [other and other.key for other in (before, after)]
        yield Page(row.page, (chrome, row, page, near_keys), partial(_write, chrome, row, page, near))


def _write(chrome: Chrome, row: LatentRow, page: LatentView, near: dict[str, LatentRow | None]) -> str:
    return draw("latent.html.j2", chrome, row.page, page=page, row=row, near=near, **_latent_parts(page))


def _latent_parts(page: LatentView) -> Mapping[str, object]:
    every = (*page.prompts, *page.random)
    peak = max(svg.finite(token.value for prompt in every for token in prompt.tokens), default=0.0)
    tasks = sorted(page.tasks, key=lambda task: -task.mean if math.isfinite(task.mean) else math.inf)
    barred = [task for task in tasks[:TASK_BARS] if task.mean != 0] or tasks[:1]
    drawn = {id(task) for task in barred}
    prompts, random = (
        [(prompt, _lines(prompt.tokens, peak)) for prompt in some] for some in (page.prompts, page.random)
    )
    means = svg.finite(value for arm in page.arms for value in arm.means)
    roles = list(dict.fromkeys(patch.role for patch in page.patches))
    own = page.response
    return {
        "prompts": prompts,
        "random": random,
        "peak": peak,
        "tasks": barred,
        "other_tasks": [task for task in tasks if id(task) not in drawn],
        "low": min(0.0, *means) if means else 0.0,
        "high": max(0.0, *means) if means else 1.0,
        "several_roles": len(roles) > 1,
        "first_role": roles[0] if roles else "",
        "first_patches": [patch for patch in page.patches if patch.role == roles[0]],
        "charts": charts,
    } | {
        name: None if own is None else Curve.line(own.xs, getattr(own, name))
        for name in ("base", "target", "patched")
    }


def _lines(tokens: Sequence[TokenView], peak: float) -> list[list[tuple[str, float, int]]]:
    """Tokens as (visible text, activation, colour level 0–8), broken after each newline.

    Neighbours on which the latent is silent are joined: nothing tells them apart on the page.
    """
    lines: list[list[tuple[str, float, int]]] = [[]]
    for token in tokens:
        level = svg.level(token.value, peak)
        shown = text.token_text(token.text, token.continues)
        if level == 0 and lines[-1] and lines[-1][-1][2] == 0:
            shown = lines[-1].pop()[0] + shown
        lines[-1].append((shown, token.value, level))
        if token.text.endswith("\n"):
            lines.append([])
    return [line for line in lines if line]
