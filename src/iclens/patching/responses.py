"""How does the answer depend on x, before and after a patch?

    E[y | x] = Σ y P(y | x) / Σ P(y | x)        y = 0–999, at run B's query

1. For every x there are several pairs of runs: B asks about x, the donor A neither shows x nor asks about it.
2. B is read as it is and with each patch; A* (A's context, B's query) is what B would say had it seen A's
examples. 3. Values are averaged over the donors of an x. 4. A line through E[y | x] says in two numbers what
a patch brings: once a task y = a·x + b has moved, slope a and intercept b; once an answer is copied, slope 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from iclens.errors import EditError, TaskError
from iclens.models.load import LanguageModel
from iclens.patching.effects import LEVEL, resamples
from iclens.patching.latents.gather import LatentRuns, gather
from iclens.patching.latents.sets import joint
from iclens.patching.residual import layer_site, patch_query, query_answers
from iclens.patching.runs import Runs
from iclens.saes.load import Sae
from iclens.tables.answers import NUMBERS, AnswerProbs
from iclens.tables.arrays import Floats, Ints, Strings
from iclens.tables.responses import ResponseFitTable, ResponseTable

BASE, TARGET = "base", "A*"
FULL, LATENTS, ERROR, GIVEN = "full activation", "all latents", "error only", "given latents"
CURVE = ("task", "site", "recipient", "n_seen", "patch", "latents")
"""Columns that together name one curve."""
LEAST_X = 3
"""Fewest points of a curve through which a line is fitted."""
ONE_DONOR = "one donor has no spread"
NO_SLOPE = "the task has no slope"
FEW = f"fewer than {LEAST_X} x"


def response_curve(
    model: LanguageModel, sae: Sae, runs: Runs, *, sets: Sequence[Sequence[int]] = (),
    donor_value: str = "task mean", seed: int = 0, batch: int = 128,
) -> ResponseTable:  # fmt: skip
    """E[y | x] of B, of A* and of B with each rung of the ladder put in at the SAE's site.

    Args:
        model: a whole model.
        sae: an SAE of one of its sites that the tail can add to.
        runs: pairs of runs, several for each x (`runs_by_query`).
        sets: sets of latents, [set latent]; each is also patched by itself, its latents all at once.
        donor_value: "task mean" over other prompts, or "instance".
        seed: of the halves within which donor means are taken.
        batch: rows per forward pass.

    Raises:
        EditError, SaeError: as in `gather`; EditError for a latent that the SAE does not have.
        TaskError: when x is not a number.
    """
    queries(runs)
    chosen = list(dict.fromkeys(tuple(sorted({*latents})) for latents in sets))
    for latents in chosen:
        if not latents or not 0 <= latents[0] <= latents[-1] < sae.d_sae:
            raise EditError(
                f"latents {list(latents)}",
                f"the SAE has {sae.d_sae}",
                f"Name one or more from 0 to {sae.d_sae - 1}.",
            )
    held = gather(model, sae, runs, donor_value=donor_value, seed=seed, batch=batch)
    patches = list(_additions(held, chosen))
    additions = torch.stack([delta for _, _, delta in patches], dim=1)
    found = [tail.added(sae.site, rows) for tail, rows in zip(held.tails, additions, strict=True)]
    answers, log_prob = found[0].answers, np.stack([probs.log_prob for probs in found])
    parts = [
        _curve(runs, str(sae.site), patch, AnswerProbs(answers, log_prob[:, i]), latents, held.lent)
        for i, (patch, latents, _) in enumerate(patches)
    ]
    target = query_answers(model, runs.target, runs.words)
    whole = _curve(runs, str(sae.site), TARGET, target, lent=held.lent)
    return ResponseTable.concat([parts[0], whole, *parts[1:]])


def response_sweep(model: LanguageModel, runs: Runs, *, layers: Sequence[int] | None = None) -> ResponseTable:
    """E[y | x] of B, of A* and of B with the whole residual of A at each layer's `pre`, without an SAE.

    Args:
        model: a whole model.
        runs: pairs of runs, several for each x (`runs_by_query`).
        layers: blocks whose resid_pre is replaced, n_blocks for the last resid_post; all by default.

    Raises:
        EditError: for a layer that does not exist.
        TaskError: when x is not a number.
    """
    queries(runs)
    layers = range(model.n_blocks + 1) if layers is None else layers
    patched, base = patch_query(model, runs, layers)
    target = query_answers(model, runs.target, runs.words)
    return ResponseTable.concat([
        _curve(runs, str(layer_site(model, layer)), patch, probs)
        for layer, before, after in zip(layers, base, patched, strict=True)
        for patch, probs in ((BASE, before), (TARGET, target), (FULL, after))
    ])  # fmt: skip


def expected_answer(probs: AnswerProbs) -> Floats:
    """E[y | y a number] = Σ y P(y) / Σ P(y) over y = 0–999, [...] from answers [... answer]."""
    log_prob = probs.log_prob[..., : len(NUMBERS)].astype(np.float64)
    weights = np.exp(log_prob - log_prob.max(axis=-1, keepdims=True))
    return weights @ np.arange(len(NUMBERS)) / weights.sum(axis=-1)


def queries(runs: Runs) -> Ints:
    """The recipients' queries as numbers, [prompt].

    Raises:
        TaskError: when x is not a number, so that there is no curve.
    """
    if not np.char.isdigit(runs.x_B).all():
        raise TaskError(
            f"a curve of '{runs.task.name}'",
            "its x are no numbers",
            "Choose a task on numbers, such as 2x+3.",
        )
    return runs.x_B.astype(int)


def scaled(runs: Runs) -> Strings:
    """a·x of a task a·x + b for each query, [prompt]; empty without a slope or outside 0–999."""
    if not runs.task.slope:
        return np.full(len(runs.x_B), "")
    values = runs.task.slope * queries(runs)
    return np.where((values >= 0) & (values < len(NUMBERS)), values.astype(str), "")


def _additions(
    held: LatentRuns, sets: Sequence[tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
    """Each patch, its given latents, and what it adds to B's activation, [prompt d_in]."""
    everything, carried = held.everything, held.all_latents
    yield BASE, (), torch.zeros_like(everything)
    yield FULL, (), everything
    yield LATENTS, (), carried
    yield ERROR, (), everything - carried
    for latents in sets:
        yield GIVEN, latents, joint(held, np.array(latents))


def _curve(
    runs: Runs, site: str, patch: str, probs: AnswerProbs, latents: tuple[int, ...] = (),
    lent: Sequence[Ints] | None = None,
) -> ResponseTable:  # fmt: skip
    """Rows by x from answers [prompt answer]; `lent` are columns of the donors' answers."""
    x, expected = queries(runs), expected_answer(probs)
    copied = probs.of(runs.copied)
    if lent is not None:
        rows = zip(probs.log_prob.astype(np.float64), lent, strict=True)
        copied = np.array([np.exp(row[columns]).sum() for row, columns in rows])
    xs, first, group = np.unique(x, return_index=True, return_inverse=True)
    n_donors = np.bincount(group)
    share = (group == np.arange(len(xs))[:, None]) / n_donors[:, None]
    everyone = share @ np.exp(probs.log_prob.astype(np.float64))
    averaged = AnswerProbs(probs.answers, np.log(np.maximum(everyone, 1e-300)))
    mean = share @ expected
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt(share @ np.square(expected - mean[group]) * n_donors / (n_donors - 1))
    spread[n_donors == 1] = np.nan
    own, times = runs.own[first], scaled(runs)[first]
    p_own, p_scaled = averaged.of(own), np.where(times == "", np.nan, averaged.of(times))

    def rank(p: Floats) -> Floats:
        return np.where(np.isnan(p), np.nan, 1 + (everyone > p[:, None] * (1 + 1e-9)).sum(axis=1))

    reasons = zip(
        np.where(n_donors == 1, ONE_DONOR, ""), np.where(times == "", _why_not_scaled(runs), ""), strict=True
    )
    n = len(xs)
    return ResponseTable({
        "task": [runs.task.name] * n, "site": [site] * n, "patch": [patch] * n,
        "latents": [" ".join(map(str, latents))] * n,
        "recipient": [runs.recipient_name] * n, "n_seen": [runs.n_seen] * n, "x": xs, "answer": own,
        "scaled": times, "n_donors": n_donors, "mean": mean, "sd": spread,
        "top_1": np.array(probs.answers)[averaged.top()], "rank": rank(p_own).astype(int),
        "rank_scaled": rank(p_scaled), "p_answer": p_own, "p_scaled": p_scaled,
        "p_copy": share @ copied, "p_number": share @ probs.numbers.sum(axis=-1),
        "reason": ["; ".join(reason for reason in row if reason) for row in reasons],
    })  # fmt: skip


def _why_not_scaled(runs: Runs) -> str:
    return "a·x is not among 0–999" if runs.task.slope else NO_SLOPE


def response_fits(curves: ResponseTable, *, seed: int = 0, draws: int = 1000) -> ResponseFitTable:
    """A line through each curve, and shares of x by their most probable answers.

    Args:
        curves: rows of one or more sites, patches and recipients; each needs its base.
        seed: of the bootstrap over x; the same resamples serve every patch, so that changes are paired.
        draws: bootstrap resamples.

    Raises:
        EditError: when a patch has no base at the same x.
    """
    keys = list(zip(*(curves[name].tolist() for name in CURVE), strict=True))
    parts: dict[tuple[str | int, ...], ResponseTable] = {
        key: curves.where(np.array([other == key for other in keys])) for key in dict.fromkeys(keys)
    }
    fits = []
    for key, curve in parts.items():
        base = parts.get((*key[:4], BASE, ""))
        if base is None or not np.array_equal(base["x"], curve["x"]):
            raise EditError(
                f"the curve of '{key[4]}' at {key[1]}",
                "no base at the same x",
                "Give the rows of `response_curves` with those whose patch is the base.",
            )
        weights = resamples(len(curve), draws, np.random.default_rng(seed))
        fits.append(_fit(curve, base, weights))
    return ResponseFitTable.concat(fits)


def _fit(curve: ResponseTable, base: ResponseTable, weights: Floats) -> ResponseFitTable:
    """One row, from a curve and its base under bootstrap weights of x, [draw x]."""
    x, n = curve["x"].astype(float), len(curve)
    whole = np.vstack([np.full((1, n), 1 / n), weights])
    line, before = least_squares(x, curve["mean"], whole), least_squares(x, base["mean"], whole)
    found = np.stack([*line, line[0] - before[0]])
    undefined = n < LEAST_X or np.isnan(found[:, 0]).any()
    if undefined:
        found[:] = np.nan
    low, high = np.full((2, 3), np.nan) if undefined else np.nanpercentile(found[:, 1:], LEVEL, axis=1)
    sloped = bool((curve["scaled"] != "").any())
    reasons = [FEW if undefined else "", "" if sloped else NO_SLOPE]
    odd = [answer.isdigit() and int(answer) % 2 == 1 for answer in curve["top_1"]]
    same = {name: curve[name][:1] for name in CURVE}
    fitted = {
        f"{name}{end}": [numbers[i]]
        for i, name in enumerate(("slope", "intercept", "slope_change"))
        for end, numbers in (("", found[:, 0]), ("_low", low), ("_high", high))
    }
    return ResponseFitTable({
        **same, **fitted, "n_x": [n],
        "top_1_answer": [(curve["top_1"] == curve["answer"]).mean()],
        "top_5_answer": [(curve["rank"] <= 5).mean()],
        "top_1_scaled": [(curve["top_1"] == curve["scaled"]).mean() if sloped else np.nan],
        "top_5_scaled": [(curve["rank_scaled"] <= 5).mean() if sloped else np.nan],
        "top_1_odd": [np.mean(odd)], "reason": ["; ".join(reason for reason in reasons if reason)],
    })  # fmt: skip


def least_squares(x: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Slope and intercept of the weighted least-squares line through (x, y) [point]; NaN where x is constant.

    Args:
        x: [point].
        y: [point].
        weights: each row sums to 1, [draw point].

    Returns:
        Slope and intercept, [draw] each.
    """
    mean_x, mean_y = weights @ x, weights @ y
    apart = weights @ np.square(x) - np.square(mean_x)
    together = weights @ (x * y) - mean_x * mean_y
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(apart > 1e-9, together / apart, np.nan)
    return slope, mean_y - slope * mean_x
