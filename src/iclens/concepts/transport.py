"""Transport: how much of what later `pre` tokens receive through attention a latent's size at `lab` predicts.

1. A latent f at a site of block L stands in the residual that block L + 1 reads. At the label of example j
it adds a_j = z_fj · s_j / rms_j of its decoder direction d_f to what the heads look at (rms_j: root mean
square of that residual; s_j: what the SAE's input normalisation took out, 1 for most). 2. A head that looks
there turns this into a_j · v_h with v_h = W_O,h W_V,h (g ⊙ d_f), g the weight of the block's input norm.
Where that is a LayerNorm, the residual and d_f are taken less their means. 3. At `pre` of a later example q

    predicted = Σ_h Σ_{j<q} α_h(q, j) · a_j · ‖v_h‖,      actual = Σ_h ⟨out_h(q), v_h / ‖v_h‖⟩

4. The actual one is regressed on the predicted one over (prompt, query); whole prompts are resampled. The
same with the weights α replaced by 1 / (number of earlier labels), with a_j replaced by its mean, and with
the a_j of another prompt of the task says what attention, size and this prompt's own sizes contribute.

The predicted part is one summand of the actual one, so a positive slope is no finding; how much of it the
rest hides, and how it compares with the other predictions, is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_array

from iclens.core import SaeError, Site, SiteError, TableError, check_latent
from iclens.model.attention import attention_patterns, carried, output_weights
from iclens.model.load import LanguageModel, as_numpy
from iclens.model.run import record
from iclens.prompts.build import PromptSet
from iclens.saes.encode import decoder_directions, encode_rows, refuse_transcoder
from iclens.saes.load import Sae
from iclens.schemas import TransportTable
from iclens.stats import UNDEFINED, sample_and_resamples, sample_interval
from iclens.table import Floats, Ints, Strings

READ_BY_THE_NEXT = ("resid_mid", "resid_post", "attn_out", "mlp_out")
"""Hooks whose values stand in the residual that the next block reads."""
FIRST_QUERY = 2
"""The first example whose `pre` is a query: fewer than two earlier labels give nothing to weigh."""
FEWEST_PROMPTS = 10  # prompts below which nothing is measured: the intervals resample prompts
ATTENTION, EQUAL, MEAN_SIZE, OTHER_SIZES = (
    "attention", "equal", "attention, mean z", "attention, other prompts' z",
)  # fmt: skip
WEIGHTS = (ATTENTION, EQUAL, MEAN_SIZE, OTHER_SIZES)
LEAST_ATTENTION = 0.001
"""Attention to labels below which the predicted part is next to nothing, and a slope on it says nothing."""
NO_READER, NOT_LOADED = "no later block reads it", "the block that reads it is not loaded"
_SAME = 1e-9  # share of its mean square below which a prediction's variance is rounding

Chosen = tuple[Site, int, str]


@dataclass(frozen=True)
class Flow:
    """What one block's heads could take from chosen latents at labels, and what they wrote at later `pre`."""

    patterns: Floats  # α_h(q, j), [prompt head query label]; 0 for labels that come later
    amounts: Floats  # a_j, units of the decoder direction in the normed residual, [latent prompt label]
    lengths: Floats  # ‖v_h‖, [latent head]
    actual: Floats  # Σ_h ⟨out_h(q), v_h / ‖v_h‖⟩, [latent prompt query]
    queries: Ints  # example of each query, [query]

    def predicted(self, amounts: Floats) -> Floats:
        """Σ_h Σ_j α_h(q, j) · a_j · ‖v_h‖ with `amounts` [latent prompt label], as [latent prompt query]."""
        return np.einsum("phqj,lpj,lh->lpq", self.patterns, amounts, self.lengths, optimize=True)

    def mass(self) -> Floats:
        """Mean attention from a query to all earlier labels, heads weighing as their ‖v_h‖, [latent]."""
        of_head = self.patterns.sum(axis=-1).mean(axis=(0, 2))
        whole = self.lengths.sum(axis=1)
        return (self.lengths @ of_head) / np.where(whole > 0, whole, 1.0)

    def equal(self) -> Floats:
        """The same with every earlier label weighing alike, 1 / (number of them), [latent prompt query]."""
        earlier = np.arange(self.amounts.shape[-1]) < self.queries[:, None]
        weights = earlier / earlier.sum(axis=1, keepdims=True)
        return (self.amounts @ weights.T) * self.lengths.sum(axis=1)[:, None, None]


def transport(
    model: LanguageModel, saes: Mapping[Site, Sae], prompts: PromptSet, chosen: Sequence[Chosen],
    *, seed: int, n_resamples: int = 200, batch: int = 32,
) -> TransportTable:  # fmt: skip
    """How much of what later queries receive along a latent's image its sizes at the labels predict.

    Four rows per chosen latent (site, latent, concept), one for each of `WEIGHTS`; NaN with a reason where
    undefined. Sites are of `READ_BY_THE_NEXT`, prompts of one arm with more than `FIRST_QUERY` examples;
    `seed` is of the other prompt that lends its sizes, and of the bootstrap.
    """
    _check(model, saes, prompts, chosen)
    lending, drawing = np.random.default_rng(seed).spawn(2)
    n_prompts, lender = prompts.n_prompts, lenders(prompts.task, lending)
    times = sample_and_resamples(n_prompts, n_resamples, drawing)
    figures: dict[Chosen, list[dict[str, Any]]] = {}
    for layer in sorted({site.layer + 1 for site, _, _ in chosen}):
        members = [one for one in chosen if one[0].layer + 1 == layer]
        reason = f"{n_prompts} prompts, {FEWEST_PROMPTS} needed" if n_prompts < FEWEST_PROMPTS else ""
        if layer >= model.n_blocks:
            reason = NO_READER if model.whole else NOT_LOADED
        reason = reason or model.adapter.not_carried
        if reason:
            figures |= {one: [_undefined(reason) for _ in WEIGHTS] for one in members}
        else:
            read = flow(model, saes, prompts, [one[:2] for one in members], batch)
            figures |= dict(zip(members, _figures(read, lender, times), strict=True))
    return TransportTable.from_rows(
        {"site": str(site), "latent": latent, "concept": name, "layer": site.layer + 1, "weights": kind} | row
        for site, latent, name in chosen
        for kind, row in zip(WEIGHTS, figures[site, latent, name], strict=True)
    )


def _check(
    model: LanguageModel, saes: Mapping[Site, Sae], prompts: PromptSet, chosen: Sequence[Chosen]
) -> None:
    if prompts.n_examples <= FIRST_QUERY:
        what = f"transport in prompts of {prompts.n_examples} examples"
        remedy = f"Build prompts of {FIRST_QUERY + 1} examples or more."
        raise TableError(what, "no query has two earlier labels", remedy)
    for site, latent, _ in chosen:
        model.check_site(site)
        what = f"transport from {site.short}"
        if site.hook not in READ_BY_THE_NEXT:
            remedy = f"Choose one of {', '.join(READ_BY_THE_NEXT)}."
            raise SiteError(what, "it is not added to what the next block reads", remedy)
        if site not in saes:
            given = f"SAEs of {', '.join(sae.short for sae in saes) or 'none'} are given"
            raise SiteError(what, given, "Choose latents of these, or give `saes` this site too.")
        sae = saes[site]
        refuse_transcoder(sae)
        if sae.d_in != model.d_model:
            remedy = f"Give an SAE of this model, whose rows are {model.d_model} wide."
            raise SaeError(f"SAE at {site.short}", f"width {sae.d_in}, not {model.d_model}", remedy)
        check_latent(site, latent, sae.d_sae)


def lenders(task: Strings, rng: np.random.Generator) -> Ints:
    """Another prompt of the same `task` [prompt] for each, every one lending once, [prompt].

    It is the prompt itself where its task has no other.
    """
    lender = np.empty(len(task), dtype=np.int64)
    for name in dict.fromkeys(task.tolist()):
        order = rng.permutation(np.flatnonzero(task == name))
        lender[order] = np.roll(order, 1)  # one cycle: nobody lends to itself
    return lender


def flow(
    model: LanguageModel, saes: Mapping[Site, Sae], prompts: PromptSet, latents: Sequence[tuple[Site, int]],
    batch: int,
) -> Flow:  # fmt: skip
    """The `Flow` from latents, all of sites of one block, to the heads of the next block."""
    layer = latents[0][0].layer + 1
    directions = torch.cat([decoder_directions(saes[site], np.array([latent])) for site, latent in latents])
    images = carried(model, layer, directions)
    lengths = images.norm(dim=-1)
    unit = images / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)[..., None]
    along = as_numpy(torch.einsum("hdm,lhm->lhd", output_weights(model, layer), unit)).astype(np.float64)
    parts = [
        (pattern, amounts, np.einsum("pqhd,lhd->lpq", z, along, optimize=True))
        for pattern, amounts, z in _batches(model, saes, prompts, latents, layer, batch)
    ]
    patterns, amounts, actual = zip(*parts, strict=True)
    return Flow(
        np.concatenate(patterns), np.concatenate(amounts, axis=1), as_numpy(lengths).astype(np.float64),
        np.concatenate(actual, axis=1), np.arange(FIRST_QUERY, prompts.n_examples),
    )  # fmt: skip


def _batches(
    model: LanguageModel, saes: Mapping[Site, Sae], prompts: PromptSet, latents: Sequence[tuple[Site, int]],
    layer: int, batch: int,
) -> Iterator[tuple[Floats, Floats, Floats]]:  # fmt: skip
    """Patterns [prompt head query label], amounts [latent prompt label] and z [prompt query head d_head]."""
    labels, queries = prompts.positions("lab"), prompts.positions("pre")[FIRST_QUERY:]
    entered, heads = Site(layer, "resid_pre"), Site(layer, "z")
    sites = list(dict.fromkeys(site for site, _ in latents))
    adapter = model.adapter
    norm = adapter.norm(adapter.layers[layer], adapter.before_attention)
    for start in range(0, prompts.n_prompts, batch):
        tokens = prompts.tokens[start : start + batch]
        acts = record(model, tokens, [*sites, entered, heads], np.concatenate([labels, queries]), batch=batch)
        at_labels = {site: values[:, : len(labels)] for site, values in acts.items()}
        rms = adapter.divisor(norm, at_labels[entered].astype(np.float64))
        sizes = {}  # z · s of every latent, [prompt·label latent]
        for site in sites:
            rows = at_labels[site].reshape(rms.size, -1)
            sizes[site] = csc_array(encode_rows(saes[site], rows).latents.astype(np.float64))
        read = [sizes[site][:, [latent]].toarray().reshape(rms.shape) for site, latent in latents]
        pattern = attention_patterns(model, tokens, (layer,), queries, batch=batch)[layer][..., labels]
        z = acts[heads][:, len(labels) :].reshape(len(tokens), len(queries), model.n_heads, model.d_head)
        yield pattern, np.stack(read) / rms, z


def _figures(read: Flow, lender: Ints, times: Floats) -> list[list[dict[str, Any]]]:
    """Columns of the table for each latent and each of `WEIGHTS`.

    `lender` says whose sizes each prompt gets in `OTHER_SIZES`, [prompt], undefined when some have their own;
    `times` how often each prompt is drawn, the sample itself first, [draw prompt].
    """
    mean = np.broadcast_to(read.amounts.mean(axis=(1, 2), keepdims=True), read.amounts.shape)
    predictions = {
        ATTENTION: read.predicted(read.amounts), EQUAL: read.equal(), MEAN_SIZE: read.predicted(mean),
        OTHER_SIZES: read.predicted(read.amounts[:, lender]),
    }  # fmt: skip
    if (lender == np.arange(len(lender))).any():
        predictions[OTHER_SIZES] = np.full_like(predictions[ATTENTION], np.nan)
    n_prompts, n_queries = read.actual.shape[1:]
    figures, mass = [], read.mass()
    for latent, actual in enumerate(read.actual):
        fits = {name: regressed(actual, predictions[name][latent], times) for name in WEIGHTS}
        rows = []
        for name, (slope, r2) in fits.items():
            reason = ""
            if np.isnan(r2[0]):
                reason = "the predicted or the actual part is the same at every query"
                if np.isnan(predictions[name][latent]).any():
                    reason = "a task has one prompt only, to which no other lends"
                if not read.amounts[latent].any():
                    reason = "never active at a label"
            elif name != EQUAL and mass[latent] < LEAST_ATTENTION:
                reason = f"queries look at labels with less than {LEAST_ATTENTION:g} of their attention"
            row = _undefined(reason) | sample_interval(r2).columns("r2")
            row |= {"n_rows": n_prompts * n_queries, "n_prompts": n_prompts, "slope": float(slope[0])}
            row["lab_attention"] = float(mass[latent])
            if name == ATTENTION:
                row |= sample_interval(r2 - fits[EQUAL][1]).columns("attention_minus_equal")
            rows.append(row)
        figures.append(rows)
    return figures


def regressed(actual: Floats, predicted: Floats, times: Floats) -> tuple[Floats, Floats]:
    """Slope of `actual` on `predicted` [prompt query] and their squared correlation, [draw] each.

        slope = cov(p, a) / var(p),   r² = cov(p, a)² / (var(p) · var(a))

    `times` is how often each prompt is drawn, [draw prompt]. NaN where one of the two does not vary, or is
    NaN.
    """
    n = times.sum(axis=1) * actual.shape[1]
    centre = [values - values.mean() for values in (predicted, actual)]
    p, a = (times @ values.sum(axis=1) / n for values in centre)
    products = (centre[0] * centre[0], centre[1] * centre[1], centre[0] * centre[1])
    pp, aa, pa = (times @ product.sum(axis=1) / n for product in products)
    var_p, var_a, both = pp - p * p, aa - a * a, pa - p * a
    fixed = ~(var_p > _SAME * (predicted**2).mean()) | ~(var_a > _SAME * (actual**2).mean())
    var_p, var_a = np.where(fixed, 1.0, var_p), np.where(fixed, 1.0, var_a)
    return np.where(fixed, np.nan, both / var_p), np.where(fixed, np.nan, both**2 / (var_p * var_a))


def _undefined(reason: str) -> dict[str, Any]:
    """A row without figures."""
    row = {"slope": np.nan, "lab_attention": np.nan, "n_rows": 0, "n_prompts": 0, "reason": reason}
    return row | UNDEFINED.columns("r2") | UNDEFINED.columns("attention_minus_equal")
