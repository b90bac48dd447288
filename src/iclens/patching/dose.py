"""Dose-responses: growing latents pushed along their decoder directions, and injections of a site's growth.

    h ← h + k · δ_f · d_f        at the query's `pre`, n examples in context; the SAE's error is untouched

1. Each prompt of the task's arm is cut at its query and prepared in the tail engine. 2. δ_f is the latent's
natural growth from n examples to the last, taken from other prompts, so that dose 1 is what the remaining
examples would do. 3. Every latent is pushed at every dose; matched random latents are pushed as far (the same
‖Δh‖); the same push is put at `comma` of the query; pairs are pushed together; and all of them at once.

    Δh = mean over other prompts of h after the last example − h after n examples        at `pre`
       = decoded change of all latents + change of the SAE's error

4. These parts are injected likewise. What the full activation's mean growth does not do, no sum over latents
can. The growth is the arm's own, as the belief's is. Its paired difference to a control arm is another thing:
the control moves as well, towards "no task", often further, and taking that away from a prompt that has a
task breaks its answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from iclens.activations import LatentActs
from iclens.core import EditError, SaeError
from iclens.growth.verdict import DOSES, DoseFit, fit_doses
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs, record
from iclens.model.tail import tails_of
from iclens.patching.latents import matched
from iclens.patching.receiver import Receiver, base_log_odds, check_fits
from iclens.patching.runs import BeliefReader
from iclens.prompts.beliefs import AnswerProbs, DeclaredBelief
from iclens.prompts.build import PromptSet
from iclens.prompts.tasks import parse_task
from iclens.saes.encode import check_decoder, decoder_lengths
from iclens.saes.load import Sae
from iclens.schemas import ClosureTable, DoseCurveTable, DoseTable, InjectionTable, InteractionTable
from iclens.stats import (
    NO_VALUE,
    Interval,
    control_p,
    means,
    normalised_effects,
    prompt_band,
    prompt_weights,
    ratio_of_means,
)
from iclens.table import Floats, Ints

OFF_ROLES = ("comma", "x")
"""Where the same push is put to see that the place matters."""
PUSHABLE = ("resid_pre", "resid_post", "mlp_out")
"""Hooks whose addition enters the residual stream as it is."""
TO_GROWTH = ("the belief grows by", "the belief's growth")


def prepare_push(
    model: LanguageModel, sae: Sae, prompts: PromptSet, n_examples: int, final: Floats,
    declared: tuple[DeclaredBelief, ...] = (),
) -> Receiver:  # fmt: skip
    """Every prompt cut at the query that has seen `n_examples`, and prepared for pushes at its `pre`.

    As in tracking, `copy` asks for the label just before, and is NaN where there is none.

    Args:
        sae: an SAE of one of the model's `PUSHABLE` sites.
        prompts: an inline arm of one task.
        n_examples: examples in context, fewer than the prompts' last query has.
        final: log-odds at the last example, nats [prompt belief].
        declared: beliefs that are read beside the five of every study; `final` holds them too.
    """
    if sae.site.hook not in PUSHABLE:
        raise EditError(
            f"a push at {sae.site.short}", "it does not add to the residual",
            f"Give an SAE of one of the sites {', '.join(sorted(PUSHABLE))}.",
        )  # fmt: skip
    _check_growth("a push after", prompts, n_examples)
    if len({*prompts.task.tolist()}) > 1:
        raise EditError(
            "a push into prompts", "they show several tasks", "Give the prompts of one task."
        )  # fmt: skip
    where = prompts.positions("pre")[[n_examples]]
    tokens = prompts.tokens[:, : int(where[0]) + 1]
    check_fits(model, sae)
    if sae.normalisation != "none":
        raise SaeError(
            f"a push with the SAE at {sae.site.short}", f"it normalises inputs ({sae.normalisation})",
            "A dose needs directions that are the same for every input: give an SAE that normalises none.",
        )  # fmt: skip
    two = np.array([prompts.positions("x")[n_examples], where[0]])
    acts = record(model, tokens[:1], [sae.site], two)[sae.site][0]
    latents = sae.encode(torch.as_tensor(acts))
    check_decoder(sae, latents[:1], latents[1:])
    answers = [*prompts.answer.ravel().tolist(), *prompts.y.ravel().tolist()]
    answers += [word for belief in declared for word in belief.words]
    words = tuple(dict.fromkeys(answers))
    tails = tails_of(model, tokens, words)
    reader = BeliefReader(
        parse_task(str(prompts.task[0])), prompts.x[:, n_examples], prompts.answer[:, n_examples],
        prompts.y[:, n_examples - 1] if n_examples else None, declared, exact=True,
    )  # fmt: skip
    base = base_log_odds(tails, sae.site, reader)
    return Receiver(model, sae, prompts, where, tails, words, reader, base, final)


def _check_growth(what: str, prompts: PromptSet, n_examples: int) -> None:
    """Refuse numbers of examples after which the prompts have no later one, by an EditError."""
    if not 0 <= n_examples < prompts.n_examples - 1:
        raise EditError(
            f"{what} {n_examples} examples", f"prompts have {prompts.n_examples}",
            f"Choose n_examples from 0 to {prompts.n_examples - 2}.",
        )  # fmt: skip


def responses(receiver: Receiver, latents: Ints, growth: Floats, doses: Floats = DOSES) -> Floats:
    """Rise of every belief at every dose, nats [latent prompt dose belief].

    Args:
        growth: natural growth of each, gated activation [latent].
        doses: k in natural growths, [dose].
    """
    delta = _pushes(receiver, latents, growth)[:, None] * _tensor(receiver, doses)[:, None]
    effects = receiver.effects_on_all(delta.flatten(0, 1))  # [latent·dose prompt belief]
    return effects.reshape(len(latents), len(doses), *effects.shape[1:]).transpose(0, 2, 1, 3)


def _pushes(receiver: Receiver, latents: Ints, growth: Floats) -> Tensor:
    """δ_f · d_f, [latent d_model]."""
    return _tensor(receiver, growth)[:, None] * receiver.directions(latents)


def _tensor(receiver: Receiver, values: Floats) -> Tensor:
    """Values as a tensor of the SAE's type, on its device."""
    return torch.as_tensor(np.asarray(values)).to(receiver.sae.W_dec)


def _undefined(receiver: Receiver) -> list[str]:
    """Why a belief is undefined here, [belief]; empty where base and growth are known on every prompt."""
    n = len(receiver.base)
    return [
        "" if not missing else NO_VALUE if missing == n else f"undefined on {missing} of {n} prompts"
        for missing in (~np.isfinite(receiver.base + receiver.span)).sum(axis=0).tolist()
    ]


def _examples(receiver: Receiver) -> int:
    """Examples in context at the push."""
    return int(np.flatnonzero(receiver.prompts.positions("pre") == receiver.position[0])[0])


def dose_table(
    receiver: Receiver, latents: Ints, growth: Floats, acts: LatentActs | None, *, n_controls: int, seed: int,
    effects: Floats | None = None,
) -> tuple[DoseTable, Floats]:  # fmt: skip
    """Dose-responses of latents, on every belief.

    Args:
        growth: natural growth of each, gated activation [latent].
        acts: the arm's latents at the site's `pre`, to match random ones by; None compares with none.
        effects: the latents' `responses` at `DOSES`; measured here when not given.

    Returns:
        One row per latent and belief, `q_value` and `causal` not yet judged (the study's latents share them);
        and per-prompt slopes, [latent prompt belief].
    """
    if effects is None:
        effects = responses(receiver, latents, growth)
    undefined, n_beliefs = _undefined(receiver), len(receiver.beliefs)
    p_values, off_role = np.full((2, len(latents), n_beliefs), np.nan)
    n_compared = np.zeros(len(latents), dtype=int)
    fits = [fit_doses(np.nan_to_num(effects[..., b])) for b in range(n_beliefs)]
    lengths = decoder_lengths(receiver.sae)
    if acts is not None:
        rng = np.random.default_rng(seed)
        density, mean_active = activity_of(acts)
        at_one = effects[:, :, list(DOSES).index(1.0)].mean(axis=1)
        for i, (latent, push) in enumerate(zip(latents, _pushes(receiver, latents, growth), strict=True)):
            others = matched(density, mean_active * lengths, int(latent), n_controls, rng)
            units = torch.nn.functional.normalize(receiver.directions(others), dim=1)
            pushed = receiver.effects_on_all(np.sign(growth[i]) * push.norm() * units).mean(axis=1)
            # One-sided, as the claim is: a long push in a random direction mostly breaks the answer, and
            # lowers the belief by more than any latent raises it.
            p_values[i] = control_p(at_one[i], pushed.T) if len(others) else np.nan
            n_compared[i] = len(others)
            off_role[i] = off_role_effect(receiver, push)
    slopes = np.stack([fit.slopes for fit in fits], axis=-1)
    slopes[..., [reason != "" for reason in undefined]] = np.nan
    added, rows = np.asarray(growth) * lengths[np.asarray(latents, dtype=np.int64)], []
    for i, latent in enumerate(latents):
        for b, belief in enumerate(receiver.beliefs):
            figures = {"off_role": off_role[i, b], "control_p": p_values[i, b]}
            figures |= _dose_figures(fits[b], i, receiver.span[:, b], undefined[b])
            rows.append({
                "site": str(receiver.sae.site), "role": "pre", "latent": int(latent), "belief": belief,
                "n_examples": _examples(receiver), "n_prompts": len(receiver.base),
                "growth": float(added[i]), "n_controls": int(n_compared[i]), "q_value": np.nan,
                "causal": False, "reason": undefined[b],
                **{name: np.nan if undefined[b] else float(value) for name, value in figures.items()},
            })  # fmt: skip
    return DoseTable.from_rows(rows), slopes


def _dose_figures(fit: DoseFit, i: int, growth: Floats, undefined: str) -> dict[str, float]:
    """Slope of latent `i` on one belief, and its share of the belief's own growth [prompt]."""
    share = Interval() if undefined else ratio_of_means(fit.slopes[i], growth)
    return {
        "slope": fit.slope[i], "slope_low": fit.low[i], "slope_high": fit.high[i],
        "quadratic_share": fit.quadratic_share[i],
        "share": share.value, "share_low": share.low, "share_high": share.high,
    }  # fmt: skip


def curve_table(receiver: Receiver, latents: Ints, effects: Floats, seed: int = 0) -> DoseCurveTable:
    """Mean effect at every dose, the base included.

    Args:
        effects: their `responses` at `DOSES`, nats [latent prompt dose belief].
    """
    doses, undefined = np.array([*DOSES, 0.0]), np.array(_undefined(receiver))
    order = np.argsort(doses, kind="stable")
    whole = np.concatenate([effects, 0 * effects[:, :, :1]], axis=2)[:, :, order]
    whole = np.where(undefined != "", np.nan, whole)
    band = prompt_band(whole.transpose(1, 0, 3, 2), np.random.default_rng(seed))
    ids, names, dose = np.meshgrid(latents, receiver.beliefs, doses[order], indexing="ij")
    n = ids.size
    return DoseCurveTable({
        "site": np.full(n, str(receiver.sae.site)), "latent": ids.ravel(), "belief": names.ravel(),
        "n_examples": np.full(n, _examples(receiver)), "dose": dose.ravel(), "effect": band.mean.ravel(),
        "ci_low": band.low.ravel(), "ci_high": band.high.ravel(),
        "n_prompts": np.full(n, len(receiver.base)),
        "reason": np.broadcast_to(undefined[:, None], dose.shape).ravel(),
    })  # fmt: skip


def off_role_effect(receiver: Receiver, delta: Tensor) -> Floats:
    """Mean effect of `delta` [d_model] at the query's token before `pre` instead, nats [belief]."""
    role = next(role for role in OFF_ROLES if role in receiver.prompts.roles)
    where = receiver.prompts.positions(role)[[_examples(receiver)]]
    edit = Edit(receiver.sae.site, "add", where, delta[None].cpu().numpy())
    tokens = receiver.prompts.tokens[:, : int(receiver.position[0]) + 1]
    probs = answer_probs(receiver.model, tokens, receiver.position, extra=receiver.words, edits=(edit,))
    after = receiver.reader.log_odds(AnswerProbs(probs.answers, probs.log_prob[:, 0]))
    return (after - receiver.base).mean(axis=0)


def closure_table(
    receiver: Receiver, slopes: Floats, latents: Ints, growth: Floats, listed: tuple[Ints, Floats],
    seed: int = 0,
) -> ClosureTable:  # fmt: skip
    """How much of each belief's own growth the latents account for, one by one and together.

    Args:
        slopes: nats per natural growth, [latent prompt belief].
        latents: pushed one by one, [latent].
        growth: their natural growth, [latent].
        listed: all short-listed latents of the site, and their natural growth.
    """
    together = [_pushes(receiver, ids, g).sum(dim=0) for ids, g in ((latents, growth), listed)]
    joint, rows = receiver.effects_on_all(torch.stack(together)), []
    for b, (belief, reason) in enumerate(zip(receiver.beliefs, _undefined(receiver), strict=True)):
        natural, shares = receiver.span[:, b], [Interval()] * 3
        if not reason:
            tops = (slopes[..., b].sum(axis=0), joint[0, :, b], joint[1, :, b])
            shares = [ratio_of_means(top, natural, seed) for top in tops]
            reason = "" if np.isfinite(shares[0].value) else "the belief does not grow from here"
        rows.append({
            "site": str(receiver.sae.site), "belief": belief, "n_examples": _examples(receiver),
            "n_prompts": len(natural), "growth": float(natural.mean()), "n_latents": len(latents),
            "closure": shares[0].value, "closure_low": shares[0].low, "closure_high": shares[0].high,
            "joint": shares[1].value, "n_listed": len(listed[0]), "listed": shares[2].value, "reason": reason,
        })  # fmt: skip
    return ClosureTable.from_rows(rows)


def interaction_table(receiver: Receiver, latents: Ints, growth: Floats) -> InteractionTable:
    """Two-latent factorials of neighbours in the list, at dose 1, on every defined belief.

    Args:
        growth: their natural growth, [latent].
    """
    one = _pushes(receiver, latents, growth)
    pairs = list(pairwise(range(len(latents))))
    both = torch.stack([one[a] + one[b] for a, b in pairs]) if pairs else one[:0]
    effects = receiver.effects_on_all(torch.cat([one, both]))
    singles, joined = effects[: len(one)], effects[len(one) :]
    defined, rows = [k for k, reason in enumerate(_undefined(receiver)) if not reason], []
    for (a, b), pair in zip(pairs, joined, strict=True):
        for k in defined:
            excess = pair[:, k] - singles[a, :, k] - singles[b, :, k]
            fit = fit_doses(excess[None, :, None] * DOSES)
            rows.append({
                "site": str(receiver.sae.site), "latent": int(latents[a]), "other": int(latents[b]),
                "belief": receiver.beliefs[k], "effect": float(singles[a, :, k].mean()),
                "other_effect": float(singles[b, :, k].mean()), "both": float(pair[:, k].mean()),
                "interaction": float(fit.slope[0]), "interaction_low": float(fit.low[0]),
                "interaction_high": float(fit.high[0]), "n_prompts": len(receiver.base),
            })  # fmt: skip
    return InteractionTable.from_rows(rows)


def activity_of(acts: LatentActs) -> tuple[Floats, Floats]:
    """Density and mean activation where active of every latent, [latent] each."""
    index = np.asarray(acts.index)
    count = np.bincount(index, minlength=acts.d_sae)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(index, np.asarray(acts.value, dtype=float), minlength=acts.d_sae) / count
    return count / (acts.n_prompts * acts.n_examples), mean


def natural_parts(
    model: LanguageModel, sae: Sae, prompts: PromptSet, n_examples: int, batch: int = 128
) -> dict[str, Floats]:
    """A site's mean growth from `n_examples` to the last example, and its two parts.

    Args:
        prompts: an inline arm; prompts other than those to be pushed.
        n_examples: examples in context where the push will be.

    Returns:
        "all latents", "error only" and "full activation", the sum of the two, each [d_model].
    """
    _check_growth("growth from", prompts, n_examples)
    where = prompts.positions("pre")[[n_examples, -1]]
    acts = torch.as_tensor(record(model, prompts.tokens, [sae.site], where, batch=batch)[sae.site])
    whole, decoded = np.zeros(model.d_model), np.zeros(model.d_model)
    for rows in acts.split(batch):
        before, after = rows.unbind(dim=1)
        whole += (after.double() - before).sum(dim=0).numpy() / len(acts)
        change = sae.reconstruct(after, sae.encode(after)) - sae.reconstruct(before, sae.encode(before))
        decoded += change.double().sum(dim=0).cpu().numpy() / len(acts)
    return {"all latents": decoded, "error only": whole - decoded, "full activation": whole}


def joint_push(receiver: Receiver, latents: Ints, growth: Floats) -> Floats:
    """All latents pushed by their natural growth [latent] at once, Σ_f δ_f · d_f, [d_model]."""
    return np.asarray(growth) @ receiver.directions(latents).double().cpu().numpy()


def injection_table(
    receiver: Receiver, parts: Mapping[str, Floats], *, seed: int = 0, draws: int = 1000
) -> InjectionTable:
    """Effect of every part on every belief, and its share of the belief's own growth.

    Args:
        parts: name → what is added at `pre`, [d_model].
    """
    effects = receiver.effects_on_all(_tensor(receiver, np.stack(list(parts.values()))))
    n, n_prompts = len(receiver.beliefs), len(receiver.base)
    weights, tables = prompt_weights(n_prompts, draws, np.random.default_rng(seed)), []
    for name, rise in zip(parts, effects, strict=True):
        effect, share = means(rise, weights), normalised_effects(rise, receiver.span, weights, TO_GROWTH)
        tables.append(InjectionTable({
            "site": [str(receiver.sae.site)] * n, "injected": [name] * n, "belief": list(receiver.beliefs),
            "n_examples": [_examples(receiver)] * n, "n_prompts": [n_prompts] * n,
            **effect.columns("effect", "ci"), **share.columns("share"),
            "reason": [first or second for first, second in zip(effect.reason, share.reason, strict=True)],
        }))  # fmt: skip
    return InjectionTable.concat(tables)
