"""What does a latent do on prompts, and what does it write? One pass of the model over the shown prompts.

1. Prompts of the grid, evenly spread over its tasks, go through the model; every latent is read at every
token. 2. Density, histograms, the prompts of largest activation, some at random, and the latents that are
active together come from these tokens, BOS left out. 3. Logit effects and the nearest decoder rows come from
the weights. 4. Tuning to numbers comes from the whole grid, at the role where the latent is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from scipy.sparse import csc_array, csr_array

from iclens.concepts.tuning import AXES, operand_map, tuning
from iclens.core import Site
from iclens.dashboards.records.concepts import BoxView, TuningView
from iclens.dashboards.records.latent import Histogram, LogitEffect, PromptView, TokenView
from iclens.model.load import TokenText, token_texts
from iclens.prompts.build import PromptSet
from iclens.results.read import Results
from iclens.saes.encode import Near, by_activation, by_decoder, logit_effects
from iclens.study.concepts import WIDTH, saved_grid
from iclens.study.run import RunContext
from iclens.table import Floats
from iclens.track import token_activations

AFTER_BOS = 1
"""First token that counts: activations on BOS say nothing of the prompt, and may be out of scale."""
LINES_BEFORE, LINES_AFTER = 3, 1
"""Lines of a prompt shown around its largest activation."""
MOST_TOKENS = 60
"""Of a shown part of a prompt."""
FEWEST_ROWS = 10
"""Of a value, in a tuning curve."""


@dataclass(frozen=True)
class Seen:
    """What a site's latents do on prompts, and what they write.

    Args:
        density: share of tokens on which each is active, BOS left out, [latent].
        prompts: latent → its top prompts.
        random: latent → prompts drawn at random.
        histograms: latent → counts of its non-zero activations.
        promotes, suppresses: latent → tokens whose logit rises or falls most.
        close, together: latent → its neighbours by decoder row and by activation.
        tunings, boxes: latent → its mean activation by numbers.
        reason: why nothing was seen, "" when something was.
    """

    density: Floats
    prompts: Mapping[int, list[PromptView]] = field(default_factory=dict)
    random: Mapping[int, list[PromptView]] = field(default_factory=dict)
    histograms: Mapping[int, Histogram] = field(default_factory=dict)
    promotes: Mapping[int, list[LogitEffect]] = field(default_factory=dict)
    suppresses: Mapping[int, list[LogitEffect]] = field(default_factory=dict)
    close: Mapping[int, Near] = field(default_factory=dict)
    together: Mapping[int, Near] = field(default_factory=dict)
    tunings: Mapping[int, list[TuningView]] = field(default_factory=dict)
    boxes: Mapping[int, list[BoxView]] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Texts:
    """Shown prompts as text: `tokens` [prompt][pos] and `titles` [prompt]."""

    tokens: Sequence[Sequence[TokenText]]
    titles: Sequence[str]


def see(run: RunContext, results: Results, roles: Mapping[Site, Mapping[int, str]]) -> dict[Site, Seen]:
    """What the latents with a page do.

    Args:
        run: the run's model and SAEs.
        results: the run's tables.
        roles: site → latent with a page → the role at which its tuning is read.
    """
    prompts = _searched(run, results)
    texts = Texts(
        [token_texts(run.model.tokenizer, row.tolist()) for row in prompts.tokens],
        [f"task {task}" for task in prompts.task.tolist()],
    )
    activations = token_activations(run.model, run.saes, prompts.tokens, batch=run.config.track.batch)
    tuned = _tuned(run, roles)
    return {
        site: _seen_at(run, site, list(latents), texts, activations[site], tuned[site])
        for site, latents in roles.items()
    }


def _searched(run: RunContext, results: Results) -> PromptSet:
    """Prompts of the grid, evenly spread over its tasks."""
    grid = results.grid_prompts
    n = min(run.config.dashboard.search_prompts, grid.n_prompts)
    return grid.select(np.unique(np.linspace(0, grid.n_prompts - 1, n).round().astype(int)))


def _seen_at(
    run: RunContext, site: Site, latents: list[int], texts: Texts, every: csr_array,
    tuned: tuple[dict[int, list[TuningView]], dict[int, list[BoxView]]],
) -> Seen:  # fmt: skip
    sae, section = run.saes[site], run.config.dashboard
    n_tokens, _ = cast("tuple[int, int]", every.shape)
    later = np.flatnonzero(np.arange(n_tokens) % len(texts.tokens[0]) >= AFTER_BOS)
    rows, columns = csr_array(every[later]), every.tocsc()
    after_bos = rows.tocsc()
    effects = {e.latent: e for e in logit_effects(run.model, sae, latents)}
    histograms = {latent: histogram(after_bos, latent) for latent in latents}
    rng = np.random.default_rng(run.config.prompts.seed)
    drawn = {
        latent: rng.choice(len(texts.tokens), min(section.random_prompts, len(texts.tokens)), replace=False)
        for latent in latents
    }
    return Seen(
        density=np.diff(after_bos.indptr) / len(later),
        prompts={latent: top_prompts(columns, latent, texts, section.top_prompts) for latent in latents},
        random={latent: shown_prompts(columns, latent, texts, drawn[latent].tolist()) for latent in latents},
        histograms={latent: counts for latent, counts in histograms.items() if counts is not None},
        promotes={latent: [LogitEffect(t, v) for t, v in e.top] for latent, e in effects.items()},
        suppresses={latent: [LogitEffect(t, v) for t, v in e.bottom] for latent, e in effects.items()},
        close=dict(zip(latents, by_decoder(sae, latents), strict=True)),
        together=dict(zip(latents, by_activation(rows, latents), strict=True)),
        tunings=tuned[0],
        boxes=tuned[1],
    )


def _tuned(
    run: RunContext, roles: Mapping[Site, Mapping[int, str]]
) -> dict[Site, tuple[dict[int, list[TuningView]], dict[int, list[BoxView]]]]:
    """Mean activation by y, x and y − 2x, and by boxes of x and y, of each latent at its role."""
    followed = saved_grid(run)
    found = {}
    for site, of in roles.items():
        tunings: dict[int, list[TuningView]] = {latent: [] for latent in of}
        boxes: dict[int, list[BoxView]] = {}
        for role in dict.fromkeys(of.values()):
            chosen = np.array([latent for latent, own in of.items() if own == role])
            asked = (followed.latents[site, role], followed.prompts, followed.grid.rules, chosen)
            for axis in AXES:
                means = tuning(*asked, by=axis)
                kept = means.n_rows >= FEWEST_ROWS
                values, rows = means.groups[kept].tolist(), means.n_rows[kept].tolist()
                for latent, mean in zip(chosen.tolist(), means.mean[:, kept], strict=True):
                    if values:
                        tunings[latent].append(TuningView(axis, values, mean.tolist(), rows))
            means = operand_map(*asked, width=WIDTH)
            places = means.groups.tolist()
            for latent, mean in zip(chosen.tolist(), means.mean, strict=True):
                cells = zip(places, mean.tolist(), means.n_rows.tolist(), strict=True)
                boxes[latent] = [BoxView(x, y, WIDTH, value, n) for (x, y), value, n in cells]
        found[site] = tunings, boxes
    return found


def top_prompts(activations: csc_array, latent: int, texts: Texts, n: int) -> list[PromptView]:
    """The prompts on which a latent is most active at any token, strongest first.

    Args:
        activations: sparse [prompt·pos, latent], pos fastest.
        latent: which.
        texts: the prompts.
        n: at most so many.
    """
    peak = _values(activations, latent, texts)[:, AFTER_BOS:].max(axis=1)
    order = [int(i) for i in np.argsort(-peak, kind="stable")[:n] if peak[i] > 0]
    return shown_prompts(activations, latent, texts, order)


def shown_prompts(
    activations: csc_array, latent: int, texts: Texts, chosen: Sequence[int]
) -> list[PromptView]:
    """The part of each chosen prompt around the latent's largest activation.

    Args:
        activations: sparse [prompt·pos, latent], pos fastest.
        latent: which.
        texts: the prompts.
        chosen: which prompts, in order.
    """
    values = _values(activations, latent, texts)
    views = []
    for i in chosen:
        tokens, own = texts.tokens[i], values[i]
        start, stop = window([token.text for token in tokens], AFTER_BOS + int(own[AFTER_BOS:].argmax()))
        pairs = zip(tokens[start:stop], own[start:stop].tolist(), strict=True)
        shown = [TokenView(token.text, value, token.continues) for token, value in pairs]
        views.append(PromptView(texts.titles[i], shown, start > 0, stop < len(tokens)))
    return views


def window(tokens: Sequence[str], peak: int) -> tuple[int, int]:
    """First token, and the one after the last, of some lines around a token, `MOST_TOKENS` at most."""
    ends = [i + 1 for i, text in enumerate(tokens) if text.endswith("\n") or i == len(tokens) - 1]
    line = int(np.searchsorted(ends, peak, side="right"))
    start = ends[line - LINES_BEFORE - 1] if line > LINES_BEFORE else 0
    stop = ends[min(line + LINES_AFTER, len(ends) - 1)]
    return max(start, peak - MOST_TOKENS // 2), min(stop, peak + MOST_TOKENS // 2)


def _values(activations: csc_array, latent: int, texts: Texts) -> Floats:
    """A latent's activation, [prompt pos]."""
    return activations[:, [latent]].toarray().reshape(len(texts.tokens), -1)


def histogram(activations: csc_array, latent: int, bins: int = 20) -> Histogram | None:
    """Counts of a latent's non-zero activations, or None where it has none."""
    values = activations[:, [latent]].data
    values = values[values > 0]
    if not len(values):
        return None
    counts, edges = np.histogram(values, bins=bins, range=(0.0, float(values.max())))
    return Histogram([float(edge) for edge in edges], [int(count) for count in counts])
