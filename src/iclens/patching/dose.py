"""What does a belief do when a growing latent is pushed along its decoder direction?

    h ← h + k · δ_f · d_f        at the query's `pre`, n examples in context; the SAE's error is untouched

1. Each prompt of the task's arm is cut at its query and prepared in the tail engine. 2. δ_f is the latent's
natural growth from n examples to the last, taken from other prompts, so that dose 1 is what the remaining
examples would do. 3. Every latent is pushed at every dose; matched random latents are pushed as far (the same
‖Δh‖); the same push is put at `comma` of the query; pairs are pushed together; and all of them at once.

Does a site's whole growth move the belief as the examples do, and which part of it?

    Δh = mean over other prompts of h after the last example − h after n examples        at `pre`
       = decoded change of all latents + change of the SAE's error

1. The parts are taken from prompts of the same arm that are not pushed. 2. Each is added at the query's `pre`
of the prepared prompts. 3. Its effect is set against the belief's own growth there: what the full
activation's mean growth does not do, no sum over latents can. The growth is the arm's own, as the belief's
is. Its paired difference to a control arm is another thing: the control moves as well, towards "no task",
often further, and taking that away from a prompt that has a task breaks its answer.
Enter an arm and prepared prompts; leaves an InjectionTable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from iclens.activations import LatentActs
from iclens.core import EditError, SaeError, position
from iclens.growth.verdict import DOSES, fit_doses
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs, record
from iclens.model.tail import Tail, tails_of
from iclens.patching.latents import matched
from iclens.patching.receiver import means, normalised_effects, resamples
from iclens.prompts.beliefs import AnswerProbs, DeclaredBelief, belief_names, log_odds, read_all
from iclens.prompts.build import PromptSet
from iclens.prompts.tasks import parse_task
from iclens.saes.encode import check_decoder, decoder_directions, decoder_lengths, refuse_transcoder
from iclens.saes.load import Sae
from iclens.schemas import ClosureTable, DoseCurveTable, DoseTable, InjectionTable, InteractionTable
from iclens.stats import Interval, control_p, prompt_band, ratio_of_means
from iclens.table import Floats, Ints

OFF_ROLE = "comma"
"""Where the same push is put to see that the place matters."""
PUSHABLE = ("resid_pre", "resid_post", "mlp_out")
"""Hooks whose addition enters the residual stream as it is."""


UNDEFINED = "undefined for this task"
NO_RATIO = Interval()


@dataclass(frozen=True)
class Bed:
    """Prompts ready to be pushed.

    Args:
        model: the model.
        sae: the SAE.
        prompts: arm T, some prompts.
        n_examples: examples in context.
        tails: each prompt up to its query's `pre`.
        base: log-odds there, nats [prompt belief].
        natural: their own growth to the last example, nats [prompt belief].
        declared: beliefs that are read beside the five of every study.
    """

    model: LanguageModel
    sae: Sae
    prompts: PromptSet
    n_examples: int
    tails: list[Tail]
    base: Floats
    natural: Floats
    declared: tuple[DeclaredBelief, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names along the belief axis."""
        return belief_names(self.declared)

    @property
    def reasons(self) -> list[str]:
        """Why a belief is undefined here, [belief]; empty where base and growth are known on every prompt."""
        found = []
        for missing in (~np.isfinite(self.base + self.natural)).sum(axis=0).tolist():
            some = f"undefined on {missing} of {len(self.base)} prompts"
            found.append("" if not missing else UNDEFINED if missing == len(self.base) else some)
        return found

    def effects(self, delta: Tensor, batch: int | None = None) -> Floats:
        """Rise of each belief when `delta` [row d_model] is added at `pre`, nats [row prompt belief].

        A row of zeros moves nothing and is not run: its effect is 0, not the rounding of another batch.
        """
        moved = (delta != 0).any(dim=1)
        effects = np.tile(0 * self.base, (len(delta), 1, 1))
        for i, tail in enumerate(self.tails if moved.any() else ()):
            probs = tail.added(self.sae.site, delta[moved], batch)
            after = read(probs, self.prompts, (i, self.n_examples), self.declared)
            effects[moved.cpu().numpy(), i] = after - self.base[i]
        return effects

    def directions(self, latents: Ints) -> Tensor:
        """What one unit of each latent adds at the site, [latent d_model]."""
        return decoder_directions(self.sae, latents)


def prepare(
    model: LanguageModel, sae: Sae, prompts: PromptSet, n_examples: int, final: Floats,
    declared: tuple[DeclaredBelief, ...] = (),
) -> Bed:  # fmt: skip
    """Cut every prompt at the query that has seen `n_examples`.

    Args:
        model: a whole model.
        sae: an SAE of one of its `PUSHABLE` sites.
        prompts: arm T, an inline arm.
        n_examples: examples in context, fewer than the prompts' last query has.
        final: log-odds at the last example, nats [prompt belief].
        declared: beliefs that are read beside the five of every study; `final` holds them too.

    Raises:
        EditError: for a site that cannot be pushed, or too many examples.
        SaeError: for a transcoder, another width, or latents that cannot be moved alone.
        TableError: for a probed arm.
    """
    if sae.site.hook not in PUSHABLE:
        raise EditError(
            f"a push at {sae.site.short}",
            "it does not add to the residual",
            f"Give an SAE of one of the sites {', '.join(sorted(PUSHABLE))}.",
        )
    if not 0 <= n_examples < prompts.n_examples - 1:
        raise EditError(
            f"a push after {n_examples} examples",
            f"prompts have {prompts.n_examples}",
            f"Choose n_examples from 0 to {prompts.n_examples - 2}.",
        )
    end = int(prompts.positions("pre")[n_examples]) + 1
    _check_sae(model, sae, prompts.tokens[:1, :end])
    shown = [*prompts.answer.ravel().tolist(), *prompts.y.ravel().tolist()]
    shown += [word for belief in declared for word in belief.words]
    words = tuple(y for y in dict.fromkeys(shown) if not y.isdigit())
    tails = tails_of(model, prompts.tokens[:, :end], words)
    base = np.concatenate(
        [read(tail.base(sae.site), prompts, (i, n_examples), declared) for i, tail in enumerate(tails)]
    )
    return Bed(model, sae, prompts, n_examples, tails, base, final - base, declared)


def _check_sae(model: LanguageModel, sae: Sae, tokens: Ints) -> None:
    """Refuse an SAE whose latents cannot be pushed along fixed directions; tried on `tokens` [1 pos]."""
    refuse_transcoder(sae)
    if sae.normalisation != "none":
        raise SaeError(
            f"a push with the SAE at {sae.site.short}", f"it normalises inputs ({sae.normalisation})",
            "A dose needs directions that are the same for every input: give an SAE that normalises none.",
        )  # fmt: skip
    if sae.d_in != model.d_model:
        raise SaeError(
            f"SAE at {sae.site.short}",
            f"width {sae.d_in}, not {model.d_model}",
            f"Give an SAE of this model, whose rows are {model.d_model} wide.",
        )
    where = np.array([tokens.shape[1] - 2, tokens.shape[1] - 1])
    held = sae.encode(torch.as_tensor(record(model, tokens, [sae.site], where)[sae.site][0]))
    check_decoder(sae, held[:1], held[1:])


def responses(
    bed: Bed, latents: Ints, growth: Floats, doses: Floats = DOSES, batch: int | None = None
) -> Floats:
    """Rise of every belief at every dose, nats [latent prompt dose belief].

    Args:
        bed: the prompts.
        latents: [latent].
        growth: natural growth of each, gated activation [latent].
        doses: k in natural growths, [dose].
        batch: rows per forward pass of the tail.
    """
    delta = (_pushes(bed, latents, growth)[:, None] * _like(bed, doses)[:, None]).flatten(0, 1)
    shape = (len(latents), len(doses), bed.prompts.n_prompts, len(bed.names))
    return bed.effects(delta, batch).reshape(shape).transpose(0, 2, 1, 3)


def _pushes(bed: Bed, latents: Ints, growth: Floats) -> Tensor:
    """δ_f · d_f, [latent d_model]."""
    return _like(bed, growth)[:, None] * bed.directions(latents)


def _like(bed: Bed, values: Floats) -> Tensor:
    """Values as a tensor of the SAE's type, on its device."""
    return torch.as_tensor(np.asarray(values)).to(bed.sae.W_dec)


def dose_table(
    bed: Bed,
    latents: Ints,
    growth: Floats,
    acts: LatentActs | None,
    *,
    n_controls: int,
    seed: int,
    effects: Floats | None = None,
    batch: int | None = None,
) -> tuple[DoseTable, Floats]:
    """Dose-responses of latents, on every belief.

    Args:
        bed: the prompts.
        latents: [latent].
        growth: natural growth of each, gated activation [latent].
        acts: the arm's latents at the site's `pre`, to match random ones by; None compares with none.
        n_controls: matched random latents for each.
        seed: of their draw.
        effects: the latents' `responses` at `DOSES`; measured here when not given.
        batch: rows per forward pass of the tail.

    Returns:
        One row per latent and belief, `q_value` and `causal` not yet judged (the study's latents share them);
        and per-prompt slopes, [latent prompt belief].
    """
    if effects is None:
        effects = responses(bed, latents, growth, DOSES, batch)
    p_values = np.full((len(latents), len(bed.names)), np.nan)
    n_compared = np.zeros(len(latents), dtype=int)
    off_role = np.full((len(latents), len(bed.names)), np.nan)
    fits = [fit_doses(np.nan_to_num(effects[..., b])) for b in range(len(bed.names))]
    if acts is not None:
        rng = np.random.default_rng(seed)
        density, mean_active = activity(acts)
        mean_active = mean_active * decoder_lengths(bed.sae)
        one = effects[:, :, list(DOSES).index(1.0)].mean(axis=1)
        for i, (latent, push) in enumerate(zip(latents, _pushes(bed, latents, growth), strict=True)):
            others = matched(density, mean_active, int(latent), n_controls, rng)
            units = torch.nn.functional.normalize(bed.directions(others), dim=1)
            pushed = bed.effects(np.sign(growth[i]) * push.norm() * units, batch).mean(axis=1)
            # One-sided, as the claim is: a long push in a random direction mostly breaks the answer, and
            # lowers the belief by more than any latent raises it.
            p_values[i] = control_p(one[i], pushed.T) if len(others) else np.nan
            n_compared[i] = len(others)
            off_role[i] = off_role_effect(bed, push)
    slopes = np.stack([fit.slopes for fit in fits], axis=-1)
    slopes[..., [reason != "" for reason in bed.reasons]] = np.nan
    return _table(bed, latents, growth, fits, (p_values, n_compared, off_role)), slopes


def curve_table(bed: Bed, latents: Ints, effects: Floats, seed: int = 0) -> DoseCurveTable:
    """Mean effect at every dose, the base included.

    Args:
        bed: the prompts.
        latents: [latent].
        effects: their `responses` at `DOSES`, nats [latent prompt dose belief].
        seed: of the bootstrap.
    """
    order = np.argsort([*DOSES, 0.0], kind="stable")
    whole = np.concatenate([effects, 0 * effects[:, :, :1]], axis=2)[:, :, order]
    undefined = np.array([reason != "" for reason in bed.reasons])
    whole = np.where(undefined, np.nan, whole)
    band = prompt_band(whole.transpose(1, 0, 3, 2), np.random.default_rng(seed))
    ids, names, shown = np.meshgrid(latents, bed.names, np.array([*DOSES, 0.0])[order], indexing="ij")
    return DoseCurveTable({
        "site": np.full(ids.size, str(bed.sae.site)), "latent": ids.ravel(), "belief": names.ravel(),
        "n_examples": np.full(ids.size, bed.n_examples), "dose": shown.ravel(), "effect": band.mean.ravel(),
        "ci_low": band.low.ravel(), "ci_high": band.high.ravel(),
        "n_prompts": np.full(ids.size, bed.prompts.n_prompts),
        "reason": np.broadcast_to(np.array(bed.reasons)[:, None], shown.shape).ravel(),
    })  # fmt: skip


def off_role_effect(bed: Bed, delta: Tensor) -> Floats:
    """Mean effect of `delta` [d_model] at the query's `OFF_ROLE` instead, nats [belief]."""
    n = bed.n_examples
    end = position("pre", n) + 1
    where = np.array([position(OFF_ROLE, n)])
    edit = Edit(bed.sae.site, "add", where, delta[None].cpu().numpy())
    probs = answer_probs(
        bed.model,
        bed.prompts.tokens[:, :end],
        np.array([end - 1]),
        extra=bed.tails[0].answers[1000:],
        edits=(edit,),
    )
    rows = [
        read(AnswerProbs(probs.answers, probs.log_prob[i]), bed.prompts, (i, n), bed.declared)
        for i in range(bed.prompts.n_prompts)
    ]
    return (np.concatenate(rows) - bed.base).mean(axis=0)


def closure_table(
    bed: Bed, slopes: Floats, latents: Ints, growth: Floats, listed: tuple[Ints, Floats], seed: int = 0
) -> ClosureTable:
    """How much of each belief's own growth the latents account for, one by one and together.

    Args:
        bed: the prompts.
        slopes: nats per natural growth, [latent prompt belief].
        latents: pushed one by one, [latent].
        growth: their natural growth, [latent].
        listed: all short-listed latents of the site, and their natural growth.
        seed: of the bootstrap.
    """
    together = [_pushes(bed, ids, g).sum(dim=0) for ids, g in ((latents, growth), listed)]
    joint = bed.effects(torch.stack(together))
    rows = []
    for b, belief in enumerate(bed.names):
        natural, reason = bed.natural[:, b], bed.reasons[b]
        found = [NO_RATIO] * 3
        if not reason:
            tops = (slopes[..., b].sum(axis=0), joint[0, :, b], joint[1, :, b])
            found = [ratio_of_means(top, natural, seed) for top in tops]
            reason = "" if np.isfinite(found[0].value) else "the belief does not grow from here"
        rows.append({
            "site": str(bed.sae.site), "belief": belief, "n_examples": bed.n_examples,
            "n_prompts": bed.prompts.n_prompts, "growth": float(natural.mean()), "n_latents": len(latents),
            "closure": found[0].value, "closure_low": found[0].low, "closure_high": found[0].high,
            "joint": found[1].value, "n_listed": len(listed[0]), "listed": found[2].value, "reason": reason,
        })  # fmt: skip
    return ClosureTable({name: [row[name] for row in rows] for name in ClosureTable.COLUMNS})


def interaction_table(bed: Bed, latents: Ints, growth: Floats) -> InteractionTable:
    """Two-latent factorials of neighbours in the list, at dose 1, on every defined belief.

    Args:
        bed: the prompts.
        latents: [latent].
        growth: their natural growth, [latent].
    """
    one = _pushes(bed, latents, growth)
    pairs = list(pairwise(range(len(latents))))
    both = torch.stack([one[a] + one[b] for a, b in pairs]) if pairs else one[:0]
    effects = bed.effects(torch.cat([one, both]))
    singles, joined = effects[: len(one)], effects[len(one) :]
    rows = []
    for (a, b), pair in zip(pairs, joined, strict=True):
        for k in (k for k, reason in enumerate(bed.reasons) if not reason):
            excess = pair[:, k] - singles[a, :, k] - singles[b, :, k]
            fit = fit_doses(excess[None, :, None] * DOSES)
            rows.append({
                "site": str(bed.sae.site), "latent": int(latents[a]), "other": int(latents[b]),
                "belief": bed.names[k], "effect": float(singles[a, :, k].mean()),
                "other_effect": float(singles[b, :, k].mean()), "both": float(pair[:, k].mean()),
                "interaction": float(fit.slope[0]), "interaction_low": float(fit.low[0]),
                "interaction_high": float(fit.high[0]), "n_prompts": bed.prompts.n_prompts,
            })  # fmt: skip
    return InteractionTable({name: [row[name] for row in rows] for name in InteractionTable.COLUMNS})


def activity(acts: LatentActs) -> tuple[Floats, Floats]:
    """Density and mean activation where active of every latent, [latent] each."""
    index = np.asarray(acts.index)
    count = np.bincount(index, minlength=acts.d_sae)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(index, np.asarray(acts.value, dtype=float), minlength=acts.d_sae) / count
    return count / (acts.n_prompts * acts.n_examples), mean


def _table(
    bed: Bed, latents: Ints, growth: Floats, fits: Sequence, compared: tuple[Floats, Ints, Floats]
) -> DoseTable:
    p_values, n_compared, off_role = compared
    added = np.asarray(growth) * decoder_lengths(bed.sae)[np.asarray(latents, dtype=np.int64)]
    rows = []
    for i, latent in enumerate(latents):
        for b, belief in enumerate(bed.names):
            reason = bed.reasons[b]
            share = NO_RATIO if reason else ratio_of_means(fits[b].slopes[i], bed.natural[:, b])
            own = {"slope": fits[b].slope[i], "slope_low": fits[b].low[i], "slope_high": fits[b].high[i],
                   "quadratic_share": fits[b].quadratic_share[i], "share": share.value,
                   "share_low": share.low, "share_high": share.high,
                   "off_role": off_role[i, b], "control_p": p_values[i, b]}  # fmt: skip
            values = {name: float("nan") if reason else float(value) for name, value in own.items()}
            rows.append({
                "site": str(bed.sae.site), "role": "pre", "latent": int(latent), "belief": belief,
                "n_examples": bed.n_examples, "n_prompts": bed.prompts.n_prompts, "growth": float(added[i]),
                "n_controls": int(n_compared[i]), "q_value": float("nan"), "causal": False,
                "reason": reason, **values,
            })  # fmt: skip
    return DoseTable({name: [row[name] for row in rows] for name in DoseTable.COLUMNS})


def read(
    probs: AnswerProbs, prompts: PromptSet, query: tuple[int, int], declared: tuple[DeclaredBelief, ...]
) -> Floats:
    """Log-odds of every belief about one query (prompt, example), nats [row belief].

    As in tracking, `copy` asks for the label just before, and is NaN where there is none.
    """
    prompt, example = query
    rows = probs.log_prob.reshape(-1, probs.log_prob.shape[-1]).astype(np.float64)
    x, answer = (np.full(len(rows), text[prompt, example]) for text in (prompts.x, prompts.answer))
    before = np.full(len(rows), prompts.y[prompt, example - 1]) if example else None
    task = parse_task(str(prompts.task[prompt]))
    held = AnswerProbs(probs.answers, rows)
    return log_odds(read_all(held, task, x, answer, before, declared))


def natural_parts(
    model: LanguageModel, sae: Sae, prompts: PromptSet, n_examples: int, batch: int = 128
) -> dict[str, Floats]:
    """A site's mean growth from `n_examples` to the last example, and its two parts.

    Args:
        model: the model.
        sae: the SAE of the site.
        prompts: the arm, inline; prompts other than those to be pushed.
        n_examples: examples in context where the push will be.
        batch: prompts per forward pass.

    Returns:
        "all latents", "error only" and "full activation", the sum of the two, each [d_model].

    Raises:
        EditError: when the prompts have no later example.
        TableError: for a probed arm.
    """
    if not 0 <= n_examples < prompts.n_examples - 1:
        raise EditError(
            f"growth from {n_examples} examples on",
            f"prompts have {prompts.n_examples}",
            f"Choose n_examples from 0 to {prompts.n_examples - 2}.",
        )
    where = prompts.positions("pre")[[n_examples, -1]]
    held = torch.as_tensor(record(model, prompts.tokens, [sae.site], where, batch=batch)[sae.site])
    whole, decoded = np.zeros(model.d_model), np.zeros(model.d_model)
    for rows in held.split(batch):
        before, after = rows.unbind(dim=1)
        whole += (after.double() - before).sum(dim=0).numpy() / len(held)
        change = sae.reconstruct(after, sae.encode(after)) - sae.reconstruct(before, sae.encode(before))
        decoded += change.double().sum(dim=0).cpu().numpy() / len(held)
    return {"all latents": decoded, "error only": whole - decoded, "full activation": whole}


def joint_push(bed: Bed, latents: Ints, growth: Floats) -> Floats:
    """All latents pushed by their natural growth at once, Σ_f δ_f · d_f, [d_model].

    Args:
        bed: the prompts.
        latents: [latent].
        growth: natural growth of each, gated activation [latent].
    """
    return np.asarray(growth) @ bed.directions(latents).double().cpu().numpy()


def injection_table(
    bed: Bed, parts: Mapping[str, Floats], *, seed: int = 0, draws: int = 1000
) -> InjectionTable:
    """Effect of every part on every belief.

    Args:
        bed: the prompts.
        parts: name → what is added at `pre`, [d_model].
        seed: of the bootstrap.
        draws: bootstrap resamples.

    Returns:
        A row per part and belief.
    """
    delta = torch.as_tensor(np.stack(list(parts.values()))).to(bed.sae.W_dec)
    effects = bed.effects(delta)
    weights = resamples(bed.prompts.n_prompts, draws, np.random.default_rng(seed))
    tables = []
    for name, found in zip(parts, effects, strict=True):
        effect, share = means(found, weights), normalised_effects(found, bed.natural, weights)
        tables.append(InjectionTable({
            "site": [str(bed.sae.site)] * len(bed.names), "injected": [name] * len(bed.names),
            "belief": np.array(bed.names), "n_examples": [bed.n_examples] * len(bed.names),
            "n_prompts": [len(found)] * len(bed.names), "effect": effect.value, "ci_low": effect.low,
            "ci_high": effect.high, "share": share.value, "share_low": share.low, "share_high": share.high,
            "reason": [_reason(*why) for why in zip(effect.reason, share.reason, strict=True)],
        }))  # fmt: skip
    return InjectionTable.concat(tables)


def _reason(effect: str, share: str) -> str:
    """Why a value is NaN, where `normalised_effects` speaks of A* and B in place of the belief's growth."""
    why = effect or share
    return why.replace("A* and B differ", "the belief grows").replace("A* − B", "the belief's growth")
