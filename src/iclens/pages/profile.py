"""What latents do on prompts and what they write: the part of their pages that needs the model.

1. Prompts of the grid, evenly spread over its tasks, go through the model; every latent is read at every
   token. 2. Density, histograms, the prompts of largest activation, some at random, and the latents that are
   active together come from these tokens, BOS left out. 3. Logit effects and the nearest decoder rows come
   from the weights. 4. Tuning to numbers comes from the whole grid, at the role where the latent is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

from iclens.concepts.tuning import AXES, operand_map, tuning
from iclens.core import PADDING, Site
from iclens.model.load import TokenText, token_texts
from iclens.results.read import Results
from iclens.saes.encode import Near, by_activation, by_decoder, logit_effects
from iclens.study.concepts import WIDTH, FollowedGrid, saved_grid
from iclens.study.run import RunContext
from iclens.table import Floats
from iclens.tracking import token_activations

AFTER_BOS = 1
"""First token that counts: activations on BOS say nothing of the prompt, and may be out of scale."""
LINES_BEFORE, LINES_AFTER = 3, 1
"""Lines of a prompt shown around its largest activation."""
MOST_TOKENS = 60
"""Of a shown part of a prompt."""
FEWEST_ROWS = 10
"""Of a value, in a tuning curve."""
Tunings = Mapping[str, Sequence[Mapping[str, Any]]]
"""y, x or y − 2x → rows of value, mean and n_rows."""


@dataclass(frozen=True)
class Excerpt:
    """The part of a prompt around its largest activation."""

    title: str  # which prompt
    tokens: Sequence[TokenText]
    values: Sequence[float]  # the latent's activation on each
    # whether the prompt has tokens before and after it
    before: bool
    after: bool


@dataclass(frozen=True)
class Profile:
    """What a site's latents do on prompts, and what they write, by latent."""

    density: Floats  # share of tokens on which each is active, BOS left out, [latent]
    prompts: Mapping[int, Sequence[Excerpt]] = field(default_factory=dict)  # its top prompts
    random: Mapping[int, Sequence[Excerpt]] = field(default_factory=dict)
    histograms: Mapping[int, tuple[list[float], list[int]]] = field(default_factory=dict)  # edges, counts
    # promotes, suppresses: tokens whose logit rises or falls most, with the change per unit of the latent
    promotes: Mapping[int, Sequence[tuple[str, float]]] = field(default_factory=dict)
    suppresses: Mapping[int, Sequence[tuple[str, float]]] = field(default_factory=dict)
    # close, together: its neighbours by decoder row and by activation
    close: Mapping[int, Near] = field(default_factory=dict)
    together: Mapping[int, Near] = field(default_factory=dict)
    tunings: Mapping[int, Tunings] = field(default_factory=dict)
    # boxes: its mean activation by box of x and y, rows of x, y, width, mean and n_rows
    boxes: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    reason: str = ""  # why nothing is known


class Texts(NamedTuple):
    """Shown prompts as text."""

    tokens: Sequence[Sequence[TokenText]]  # without padding, [prompt][pos]
    titles: Sequence[str]  # [prompt]
    there: NDArray[np.bool_]  # whether a token stands in a column, or padding, [prompt column]


def profiles(
    run: RunContext, results: Results, roles: Mapping[Site, Mapping[int, str]]
) -> dict[Site, Profile]:
    """What the latents with a page do; `roles` is site → latent → the role at which its tuning is read."""
    every = results.grid_prompts
    n = min(run.config.dashboard.search_prompts, every.n_prompts)
    prompts = every.select(np.unique(np.linspace(0, every.n_prompts - 1, n).round().astype(int)))
    texts = Texts(
        [token_texts(run.model.tokenizer, row[row != PADDING].tolist()) for row in prompts.tokens],
        [f"task {task}" for task in prompts.task.tolist()],
        prompts.tokens != PADDING,
    )
    activations = token_activations(run.model, run.saes, prompts.tokens, batch=run.config.track.batch)
    grid = saved_grid(run)
    found = {}
    for site, of in roles.items():
        tunings, boxes = _tuned(site, of, grid)
        found[site] = _profile(run, site, list(of), texts, activations[site], tunings, boxes)
    return found


def _profile(
    run: RunContext, site: Site, latents: list[int], texts: Texts, every: csr_array,
    tunings: Mapping[int, Tunings], boxes: Mapping[int, Sequence[Mapping[str, Any]]],
) -> Profile:  # fmt: skip
    sae, section = run.saes[site], run.config.dashboard
    later = np.flatnonzero(texts.there & (np.arange(texts.there.shape[1]) >= AFTER_BOS))
    rows, columns = csr_array(every[later]), every.tocsc()
    after_bos = rows.tocsc()
    effects = {e.latent: e for e in logit_effects(run.model, sae, latents)}
    histograms = {latent: histogram(after_bos, latent) for latent in latents}
    rng = np.random.default_rng(run.config.prompts.seed)
    drawn = {
        latent: rng.choice(len(texts.tokens), min(section.random_prompts, len(texts.tokens)), replace=False)
        for latent in latents
    }
    return Profile(
        density=np.diff(after_bos.indptr) / len(later),
        prompts={latent: top_prompts(columns, latent, texts, section.top_prompts) for latent in latents},
        random={latent: excerpts(columns, latent, texts, drawn[latent].tolist()) for latent in latents},
        histograms={latent: counts for latent, counts in histograms.items() if counts is not None},
        promotes={latent: list(e.top) for latent, e in effects.items()},
        suppresses={latent: list(e.bottom) for latent, e in effects.items()},
        close=dict(zip(latents, by_decoder(sae, latents), strict=True)),
        together=dict(zip(latents, by_activation(rows, latents), strict=True)),
        tunings=tunings,
        boxes=boxes,
    )


def _tuned(
    site: Site, of: Mapping[int, str], grid: FollowedGrid
) -> tuple[dict[int, Tunings], dict[int, list[dict[str, Any]]]]:
    """Mean activation by y, x and y − 2x, and by boxes of x and y, of each latent at its role."""
    tunings: dict[int, dict[str, Sequence[Mapping[str, Any]]]] = {latent: {} for latent in of}
    boxes: dict[int, list[dict[str, Any]]] = {}
    for role in dict.fromkeys(of.values()):
        chosen = np.array([latent for latent, own in of.items() if own == role])
        asked = (grid.latents[site, role], grid.prompts, grid.grid.rules, chosen)
        for axis in AXES:
            means = tuning(*asked, by=axis)
            kept = means.n_rows >= FEWEST_ROWS
            values, n_rows = means.groups[kept].tolist(), means.n_rows[kept].tolist()
            for latent, mean in zip(chosen.tolist(), means.mean[:, kept].tolist(), strict=True):
                if values:
                    tunings[latent][axis] = _rows(value=values, mean=mean, n_rows=n_rows)
        means = operand_map(*asked, width=WIDTH)
        x, y = means.groups.reshape(-1, 2).T.tolist()
        for latent, mean in zip(chosen.tolist(), means.mean.tolist(), strict=True):
            boxes[latent] = _rows(x=x, y=y, width=[WIDTH] * len(x), mean=mean, n_rows=means.n_rows.tolist())
    return dict(tunings), boxes


def _rows(**columns: Iterable[Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def top_prompts(activations: csc_array, latent: int, texts: Texts, n: int) -> list[Excerpt]:
    """The prompts on which a latent is most active at any token, strongest first, at most `n`.

    `activations` are sparse [prompt·column, latent], column fastest.
    """
    peak = _values(activations, latent, texts)[:, AFTER_BOS:].max(axis=1)
    order = [int(i) for i in np.argsort(-peak, kind="stable")[:n] if peak[i] > 0]
    return excerpts(activations, latent, texts, order)


def excerpts(activations: csc_array, latent: int, texts: Texts, chosen: Sequence[int]) -> list[Excerpt]:
    """The part of each chosen prompt around the latent's largest activation.

    `activations` are sparse [prompt·column, latent], column fastest.
    """
    values, found = _values(activations, latent, texts), []
    for i in chosen:
        tokens, own = texts.tokens[i], values[i][texts.there[i]]
        start, stop = window([token.text for token in tokens], AFTER_BOS + int(own[AFTER_BOS:].argmax()))
        ends = (start > 0, stop < len(tokens))
        found.append(Excerpt(texts.titles[i], tokens[start:stop], own[start:stop].tolist(), *ends))
    return found


def window(tokens: Sequence[str], peak: int) -> tuple[int, int]:
    """First token, and the one after the last, of some lines around a token, `MOST_TOKENS` at most."""
    ends = [i + 1 for i, text in enumerate(tokens) if text.endswith("\n") or i == len(tokens) - 1]
    line = int(np.searchsorted(ends, peak, side="right"))
    start = ends[line - LINES_BEFORE - 1] if line > LINES_BEFORE else 0
    stop = ends[min(line + LINES_AFTER, len(ends) - 1)]
    return max(start, peak - MOST_TOKENS // 2), min(stop, peak + MOST_TOKENS // 2)


def _values(activations: csc_array, latent: int, texts: Texts) -> Floats:
    """A latent's activation, [prompt column]."""
    return activations[:, [latent]].toarray().reshape(len(texts.tokens), -1)


def histogram(activations: csc_array, latent: int, bins: int = 20) -> tuple[list[float], list[int]] | None:
    """Edges and counts of a latent's non-zero activations, or None where it has none."""
    values = activations[:, [latent]].data
    values = values[values > 0]
    if not len(values):
        return None
    counts, edges = np.histogram(values, bins=bins, range=(0.0, float(values.max())))
    return edges.tolist(), counts.tolist()
