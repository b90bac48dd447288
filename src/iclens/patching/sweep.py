"""Residual sweeps, logit-lens read-outs and response curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iclens.core import EditError, TaskError, check_role
from iclens.model.load import LanguageModel, as_numpy
from iclens.model.run import Edit, read_answers, record, refuse_part
from iclens.patching.receiver import layer_site, patch_context, patch_query, prepare_patch, query_answers
from iclens.patching.runs import ZERO, Runs, build_runs, check_tokenizer
from iclens.prompts.beliefs import NUMBERS, AnswerProbs
from iclens.prompts.tasks import Task
from iclens.saes.load import Sae
from iclens.schemas import GradedTable, LensTable, ResponseFitTable, ResponseTable, SweepTable
from iclens.stats import interval, means, prompt_weights
from iclens.table import Floats, Ints, Strings

DONOR_COUNTS = (0, 1, 2, 4, 8, 12, 15)
PROBABILITIES = ("task on own x", "copy", "top-1 task on own x", "top-1 copy")


def sweep(
    model: LanguageModel, runs: Runs, *, roles: Sequence[str] | None = None,
    layers: Sequence[int] | None = None, donor_edits: Sequence[Edit] = (), seed: int = 0, draws: int = 1000,
    batch: int = 128,
) -> SweepTable:  # fmt: skip
    """Replace run B's residual by run A's at each layer and role, and read what B answers.

    Args:
        roles: which to replace; by default `pre`, and for a length-matched recipient `x`, `lab`, `close` too.
        layers: blocks whose resid_pre is replaced, n_blocks for the last resid_post; all by default.
        donor_edits: applied to run A alone, so that its residuals are those of an ablated model
            (`heads.ablation_edits`); run B is not ablated.

    Raises:
        EditError: for a layer that does not exist, a context role when lengths differ, or a donor edit that
            did not fire.
        SiteError: for an unknown role.
    """
    check_tokenizer(model.tokenizer, runs)
    matched = runs.recipient.n_examples == runs.donor.n_examples and runs.n_seen > 0
    roles = (("pre", "x", "lab", "close") if matched else ("pre",)) if roles is None else roles
    layers = range(model.n_blocks + 1) if layers is None else layers
    for role in roles:
        if check_role(role) != "pre" and not matched:
            raise EditError(
                f"a sweep over the context's '{role}'",
                f"donor and recipient have {runs.n_seen} and {runs.recipient.n_examples - 1} examples",
                "Build the runs with recipient='S arm' and as many recipient_examples, or sweep 'pre' alone.",
            )
    weights = prompt_weights(runs.donor.n_prompts, draws, np.random.default_rng(seed))
    parts = []
    for role in roles:
        if role == "pre":
            patched, base = patch_query(model, runs, layers, donor_edits, batch)
        else:
            patched, base = patch_context(model, runs, layers, role, batch, donor_edits)
        for i, layer in enumerate(layers):
            before, after = readouts(base[i], runs), readouts(patched[i], runs)
            read = {name: after[name] - (before[name] if name in effects(runs) else 0) for name in after}
            value = means(np.stack(list(read.values()), axis=1), weights)
            parts.append(SweepTable({
                **metric_columns(runs, {"role": role, "layer": layer, "recipient": runs.recipient_name}),
                **value.columns("value", "ci"), "base": [values.mean() for values in before.values()],
            }))  # fmt: skip
    return SweepTable.concat(parts)


def graded(
    model: LanguageModel, task: Task, *, layer: int, role: str = "pre", counts: Sequence[int] = DONOR_COUNTS,
    recipient: str = ZERO, n_prompts: int = 64, seed: int = 0, inputs: Sequence[str] | None = None,
    draws: int = 1000,
) -> GradedTable:  # fmt: skip
    """One site's patch by the donor's number of examples, beside the unpatched curve of A*.

    Args:
        layer: where, as in `sweep`.
        role: what is replaced, as in `sweep`.
        counts: examples in the donor's context; a context role needs 2 or more.
        recipient: as in `build_runs`; for `pre` an S or R recipient keeps max(counts) examples throughout.
        n_prompts: pairs of runs; contexts are nested, and B's query is the same at every count.
        seed: of the draw and of the bootstrap.
        inputs: allowed x; the task's default inputs when not given.
    """
    weights = prompt_weights(n_prompts, draws, np.random.default_rng(seed))
    parts = []
    for count in counts:
        runs = build_runs(
            model.tokenizer, task, recipient=recipient, n_prompts=n_prompts, donor_examples=count,
            recipient_examples=max(counts) if role == "pre" else count, seed=seed, inputs=inputs,
            template=model.template.name,
        )  # fmt: skip
        swept = sweep(model, runs, roles=(role,), layers=(layer,), seed=seed, draws=draws)
        patched = swept.where(np.isin(swept["metric"], PROBABILITIES))
        target = readouts(query_answers(model, runs.target, runs.words), runs)
        unpatched = means(np.stack([target[name] for name in PROBABILITIES], axis=1), weights)
        shared = {name: patched[name] for name in GradedTable.COLUMNS if name in SweepTable.COLUMNS}
        parts.append(GradedTable({**shared, **unpatched.columns("unpatched")}))
    return GradedTable.concat(parts)


def effects(runs: Runs) -> tuple[str, ...]:
    """Names of the metrics that are a belief's log-odds, or their change."""
    return tuple(f"effect on {belief}" for belief in runs.beliefs)


def readouts(probs: AnswerProbs, runs: Runs) -> dict[str, Floats]:
    """What B says, per prompt: the probabilities of `PROBABILITIES`, and log-odds named by `effects`."""
    top = np.array(probs.answers)[probs.top()]
    probabilities = (
        probs.of(runs.answer), probs.of(runs.donor_answer), top == runs.answer, top == runs.donor_answer,
    )  # fmt: skip
    named = zip(PROBABILITIES, (np.asarray(values, dtype=float) for values in probabilities), strict=True)
    return dict(named) | dict(zip(effects(runs), runs.reader.log_odds(probs).T, strict=True))


def metric_columns(runs: Runs, same: Mapping[str, Any], log_odds: str = "effect on") -> dict[str, Any]:
    """Columns of a table that has a row for everything in `readouts`; `same` stands in every row."""
    same = {**same, "n_seen": runs.n_seen, "n_prompts": runs.donor.n_prompts}
    n = len(PROBABILITIES) + len(runs.beliefs)
    return {name: [value] * n for name, value in same.items()} | {
        "metric": [*PROBABILITIES, *(f"{log_odds} {belief}" for belief in runs.beliefs)],
        "scale": ["probability"] * len(PROBABILITIES) + ["nats"] * len(runs.beliefs),
    }


_VOCABULARY = 2**14
"""Rows of the unembedding that are held in float32 at a time."""


def _lens_acts(
    model: LanguageModel, tokens: Ints, where: Ints, layers: Sequence[int] | None, batch: int
) -> dict[int, Floats]:
    """Layer → residual at some positions, [prompt pos d_model]; refuses a part of a model."""
    refuse_part(model)
    sites = {i: layer_site(model, i) for i in (range(model.n_blocks + 1) if layers is None else layers)}
    acts = record(model, tokens[:, : where.max() + 1], list(sites.values()), where, batch=batch)
    return {layer: acts[site] for layer, site in sites.items()}


def logit_lens(
    model: LanguageModel, runs: Runs, *, roles: Sequence[str] = ("pre",), layers: Sequence[int] | None = None,
    seed: int = 0, draws: int = 1000, batch: int = 128,
) -> LensTable:  # fmt: skip
    """What the residual at each layer and role of A*'s query answers through the final norm and unembedding.

    Args:
        runs: A* is read, f(x_B) and f(x_A) are its and the donor's answers.
        layers: blocks whose resid_pre is read, n_blocks for the last resid_post; all by default.
    """
    check_tokenizer(model.tokenizer, runs)
    query = runs.target.n_examples - 1
    where = np.array([runs.target.positions(role)[query] for role in roles])
    acts = _lens_acts(model, runs.target.tokens, where, layers, batch)
    weights = prompt_weights(runs.target.n_prompts, draws, np.random.default_rng(seed))
    parts = []
    for i, role in enumerate(roles):
        for layer, resid in acts.items():
            read = readouts(lens_answers(model, resid[:, i], runs.words), runs)
            value = means(np.stack(list(read.values()), axis=1), weights)
            columns = metric_columns(runs, {"role": role, "layer": layer}, "log-odds of")
            parts.append(LensTable({**columns, **value.columns("value", "ci")}))
    return LensTable.concat(parts)


@torch.no_grad()
def lens_answers(model: LanguageModel, resid: Floats, extra: tuple[str, ...] = ()) -> AnswerProbs:
    """Answers of residuals [... d_model] that skip the blocks still to come, [... answer].

    Args:
        extra: answers to read besides the numbers.
    """
    answers, ids = model.answer_space(extra)
    like = model.adapter.unembedding
    rows = torch.as_tensor(resid, dtype=like.dtype, device=like.device)
    return AnswerProbs(answers, read_answers(model, rows, ids).cpu().numpy())


@torch.no_grad()
def lens_logits(model: LanguageModel, resid: Floats) -> Floats:
    """Logits [row token] of residuals [row d_model] over the whole vocabulary, in float32 for any weights.

    In bfloat16 the largest logits tie; the products are therefore summed in float32, a part of the vocabulary
    at a time.
    """
    return as_numpy(model.adapter.capped(_unembedded(model, model.adapter.final_norm(_float(model, resid)))))


@torch.no_grad()
def unnormalised_logits(model: LanguageModel, resid: Floats) -> Floats:
    """Logits [row token] of residuals [row d_model] times the final norm's weight, without its division.

    A LayerNorm's bias and a soft cap of the logits are left out too.
    """
    adapter = model.adapter
    rows = adapter.centred(_float(model, resid)) * adapter.gain(adapter.final_norm)
    return as_numpy(_unembedded(model, rows))


def _float(model: LanguageModel, resid: Floats) -> Tensor:
    return torch.as_tensor(resid, dtype=torch.float32, device=model.device())


def _unembedded(model: LanguageModel, normed: Tensor) -> Tensor:
    parts = [normed @ rows.float().T for rows in model.adapter.unembedding.split(_VOCABULARY)]
    return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class LensReads:
    """What the residual of each prompt at each layer answers."""

    layers: tuple[int, ...]  # blocks whose resid_pre is read, n_blocks for the last resid_post, [layer]
    top: Ints  # token ids, the most probable first, [prompt layer rank]
    top_prob: Floats  # their probabilities, [prompt layer rank]
    asked_prob: Floats  # probability of the token asked for, [prompt layer]


def lens_tokens(
    model: LanguageModel, tokens: Ints, position: int, wanted: Ints, *, n_top: int = 3,
    layers: Sequence[int] | None = None, batch: int = 128,
) -> LensReads:  # fmt: skip
    """The lens over the whole vocabulary, prompt by prompt.

    Args:
        tokens: [prompt pos].
        position: the token whose residual is read.
        wanted: a token id for each prompt, [prompt].
        n_top: most probable tokens that are kept.
        layers: as in `logit_lens`; all by default.
    """
    acts = _lens_acts(model, tokens, np.array([position]), layers, batch)
    resid = np.stack([rows[:, 0] for rows in acts.values()], axis=1)
    top, top_prob, asked_prob = [], [], []
    for row, token in zip(resid, wanted.tolist(), strict=True):
        logits = lens_logits(model, row).astype(np.float64)
        most = logits.max(axis=1, keepdims=True)
        log_prob = logits - most - np.log(np.exp(logits - most).sum(axis=1, keepdims=True))
        first = np.argsort(-log_prob, axis=1, kind="stable")[:, :n_top]
        top.append(first)
        top_prob.append(np.exp(np.take_along_axis(log_prob, first, axis=1)))
        asked_prob.append(np.exp(log_prob[:, token]))
    return LensReads(tuple(acts), np.stack(top), np.stack(top_prob), np.stack(asked_prob))


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
    """E[y | x] of B, of A* and of B with each level of what a patch carries put in at the SAE's site.

    Args:
        sae: an SAE of a site that the tail can add to.
        runs: pairs of runs, several for each x (`runs_by_query`).
        sets: sets of latents, [set latent]; each is also patched by itself, its latents all at once.
        donor_value: "task mean" over other prompts, or "instance".
        seed: of the halves within which donor means are taken.

    Raises:
        EditError, SaeError: as in `prepare_patch`; EditError for a latent that the SAE does not have.
        TaskError: when x is not a number.
    """
    queries(runs)
    chosen = list(dict.fromkeys(tuple(sorted({*latents})) for latents in sets))
    for latents in chosen:
        if not latents or not 0 <= latents[0] <= latents[-1] < sae.d_sae:
            raise EditError(
                f"latents {list(latents)}", f"the SAE has {sae.d_sae}",
                f"Name one or more from 0 to {sae.d_sae - 1}.",
            )  # fmt: skip
    receiver = prepare_patch(model, sae, runs, donor_value=donor_value, seed=seed, batch=batch)
    everything, carried = receiver.everything, receiver.all_latents
    patches: list[tuple[str, tuple[int, ...], Tensor]] = [
        (BASE, (), torch.zeros_like(everything)), (FULL, (), everything), (LATENTS, (), carried),
        (ERROR, (), everything - carried),
        *((GIVEN, latents, receiver.joint(np.array(latents))) for latents in chosen),
    ]  # fmt: skip
    additions = torch.stack([delta for _, _, delta in patches], dim=1)
    added = [tail.added(sae.site, rows) for tail, rows in zip(receiver.tails, additions, strict=True)]
    answers, log_prob = added[0].answers, np.stack([probs.log_prob for probs in added])
    site, donors = str(sae.site), receiver.reader.donors
    parts = [
        _curve(runs, site, patch, AnswerProbs(answers, log_prob[:, i]), latents, donors)
        for i, (patch, latents, _) in enumerate(patches)
    ]
    target = query_answers(model, runs.target, runs.words)
    return ResponseTable.concat([parts[0], _curve(runs, site, TARGET, target, (), donors), *parts[1:]])


def response_sweep(model: LanguageModel, runs: Runs, *, layers: Sequence[int] | None = None) -> ResponseTable:
    """E[y | x] of B, of A* and of B with the whole residual of A at each layer's `pre`, without an SAE.

    Args:
        runs: pairs of runs, several for each x (`runs_by_query`).
        layers: blocks whose resid_pre is replaced, n_blocks for the last resid_post; all by default.
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
    if not probs.has_numbers:
        return np.full(probs.log_prob.shape[:-1], np.nan)
    log_prob = probs.log_prob[..., : len(NUMBERS)].astype(np.float64)
    weights = np.exp(log_prob - log_prob.max(axis=-1, keepdims=True))
    return weights @ np.arange(len(NUMBERS)) / weights.sum(axis=-1)


def queries(runs: Runs) -> Ints:
    """The recipients' queries as numbers, [prompt]; a TaskError where x is not a number."""
    if not np.char.isdigit(runs.x_B).all():
        raise TaskError(
            f"a curve of '{runs.task.name}'", "its x are no numbers",
            "Choose a task on numbers, such as 2x+3.",
        )  # fmt: skip
    return runs.x_B.astype(int)


def scaled(runs: Runs) -> Strings:
    """a·x of a task a·x + b for each query, [prompt]; empty without a slope or outside 0–999."""
    if not runs.task.slope:
        return np.full(len(runs.x_B), "")
    values = runs.task.slope * queries(runs)
    return np.where((values >= 0) & (values < len(NUMBERS)), values.astype(str), "")


def _curve(
    runs: Runs, site: str, patch: str, probs: AnswerProbs, latents: tuple[int, ...] = (),
    donors: Sequence[Ints] | None = None,
) -> ResponseTable:  # fmt: skip
    """Rows by x from answers [prompt answer]; `donors` are columns of the donors' answers."""
    x, expected, copied = queries(runs), expected_answer(probs), probs.of(runs.donor_answer)
    if donors is not None:
        rows = zip(probs.log_prob.astype(np.float64), donors, strict=True)
        copied = np.array([np.exp(row[columns]).sum() for row, columns in rows])
    xs, first, group = np.unique(x, return_index=True, return_inverse=True)
    n, n_donors = len(xs), np.bincount(group)
    share = (group == np.arange(n)[:, None]) / n_donors[:, None]  # [x prompt]
    everyone = share @ np.exp(probs.log_prob.astype(np.float64))
    averaged = AnswerProbs(probs.answers, np.log(np.maximum(everyone, 1e-300)))
    mean = share @ expected
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt(share @ np.square(expected - mean[group]) * n_donors / (n_donors - 1))
    spread[n_donors == 1] = np.nan
    answer, times = runs.answer[first], scaled(runs)[first]
    p_answer, p_scaled = averaged.of(answer), np.where(times == "", np.nan, averaged.of(times))

    def rank(p: Floats) -> Floats:
        return np.where(np.isnan(p), np.nan, 1 + (everyone > p[:, None] * (1 + 1e-9)).sum(axis=1))

    unscaled = "a·x is not among 0–999" if runs.task.slope else NO_SLOPE
    causes = zip(np.where(n_donors == 1, ONE_DONOR, ""), np.where(times == "", unscaled, ""), strict=True)
    return ResponseTable({
        "task": [runs.task.name] * n, "site": [site] * n, "patch": [patch] * n,
        "latents": [" ".join(map(str, latents))] * n,
        "recipient": [runs.recipient_name] * n, "n_seen": [runs.n_seen] * n, "x": xs, "answer": answer,
        "scaled": times, "n_donors": n_donors, "mean": mean, "sd": spread,
        "top_1": np.array(probs.answers)[averaged.top()], "rank": rank(p_answer).astype(int),
        "rank_scaled": rank(p_scaled), "p_answer": p_answer, "p_scaled": p_scaled,
        "p_copy": share @ copied, "p_number": share @ probs.numbers.sum(axis=-1),
        "reason": ["; ".join(cause for cause in row if cause) for row in causes],
    })  # fmt: skip


def response_fits(curves: ResponseTable, *, seed: int = 0, draws: int = 1000) -> ResponseFitTable:
    """A line through each curve, and shares of x by their most probable answers.

    Args:
        curves: rows of one or more sites, patches and recipients; each needs its base.
        seed: of the bootstrap over x; the same resamples serve every patch, so that changes are paired.

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
                f"the curve of '{key[4]}' at {key[1]}", "no base at the same x",
                "Give the rows of `response_curve` with those whose patch is the base.",
            )  # fmt: skip
        fits.append(_fit(curve, base, prompt_weights(len(curve), draws, np.random.default_rng(seed))))
    return ResponseFitTable.concat(fits)


def _fit(curve: ResponseTable, base: ResponseTable, weights: Floats) -> ResponseFitTable:
    """One row, from a curve and its base under bootstrap weights of x, [draw x]."""
    x, n = curve["x"].astype(float), len(curve)
    whole = np.vstack([np.full((1, n), 1 / n), weights])
    line, before = least_squares(x, curve["mean"], whole), least_squares(x, base["mean"], whole)
    fitted = np.stack([*line, line[0] - before[0]])  # slope, intercept, change of slope: [figure draw]
    undefined = n < LEAST_X or np.isnan(fitted[:, 0]).any()
    if undefined:
        fitted[:] = np.nan
    low, high = interval(fitted[:, 1:].T)
    sloped = bool((curve["scaled"] != "").any())
    figures = {
        f"{name}{end}": [numbers[i]]
        for i, name in enumerate(("slope", "intercept", "slope_change"))
        for end, numbers in (("", fitted[:, 0]), ("_low", low), ("_high", high))
    }
    return ResponseFitTable({
        **{name: curve[name][:1] for name in CURVE}, **figures, "n_x": [n],
        "top_1_answer": [(curve["top_1"] == curve["answer"]).mean()],
        "top_5_answer": [(curve["rank"] <= 5).mean()],
        "top_1_scaled": [(curve["top_1"] == curve["scaled"]).mean() if sloped else np.nan],
        "top_5_scaled": [(curve["rank_scaled"] <= 5).mean() if sloped else np.nan],
        "top_1_odd": [np.mean([answer.isdigit() and int(answer) % 2 == 1 for answer in curve["top_1"]])],
        "reason": ["; ".join(filter(None, (FEW if undefined else "", "" if sloped else NO_SLOPE)))],
    })  # fmt: skip


def least_squares(x: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Slope and intercept [draw] of weighted least-squares lines through (x, y) [point]; NaN at a constant x.

    Args:
        weights: each row sums to 1, [draw point].
    """
    mean_x, mean_y = weights @ x, weights @ y
    apart = weights @ np.square(x) - np.square(mean_x)
    together = weights @ (x * y) - mean_x * mean_y
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.where(apart > 1e-9, together / apart, np.nan)
    return slope, mean_y - slope * mean_x
