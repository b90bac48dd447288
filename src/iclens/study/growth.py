"""Growth in four narrowing looks: what detect, shape, dose and growth take from a run, and say of it.

Discovery prompts choose latents, shape prompts judge how they grow, confirm prompts decide; a manifest of the
claims is frozen in between. The tests themselves stand in `iclens.growth`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from iclens import schemas
from iclens.activations import LatentActs, examples_seen, select_prompts
from iclens.core import Site
from iclens.growth import bayes, verdict
from iclens.growth.accounts import BEHAVIOUR, Compared, Design, compare, compare_all, design_of
from iclens.growth.detect import MIN_ACTIVE, slope_moments
from iclens.growth.shape import fit_shapes
from iclens.patching import dose as pushing
from iclens.prompts.arms import HINTED
from iclens.prompts.beliefs import belief_index
from iclens.prompts.build import example_similarity, in_mixture, nominal_evidence, task_log_odds
from iclens.prompts.tasks import parse_task
from iclens.stats import Interval, benjamini_hochberg
from iclens.study.config import StudyConfig
from iclens.study.run import RunContext
from iclens.study.store import joined
from iclens.table import Floats, Ints, Table
from iclens.tracking import direction_growth, pre_activations

Place = tuple[Site, str]
"""A site and a role."""
BELIEF, EXACT, PRE = "exact", belief_index("exact"), "pre"
"""The belief in the task's own answer, its index on the belief axis, and the role at which it is read."""
QUERY_READ = ("x", "comma", "pre")
"""Roles before the label at which the query is known, so that an example's similarity to it can count."""
SLOPE_GOAL, R_GOAL = 0.05, 0.98
"""How near to 1 the slope, and how high the correlation, of model on exact log-odds should be."""
OUTPUT = Site(0, "resid_post")
"""Stands for the logits in a shape table of a belief, which needs some site."""


# Detection: discovery prompts.


def arm_latents(run: RunContext, arm: str, prompts: Ints) -> dict[Place, LatentActs]:
    """An arm's latents at every followed site and role, some prompts only."""
    places = [(Site.parse(site), role) for site in run.facts["saes"] for role in run.config.track.roles]
    return {place: select_prompts(run.latents(arm, *place), prompts) for place in places}


def n_rising(latents: Mapping[Place, LatentActs], q: float) -> int:
    """Latents whose trajectory rises in their own arm, controls not subtracted."""
    rising = 0
    for acts in latents.values():
        nothing = replace(
            acts,
            indptr=np.zeros_like(acts.indptr),
            index=acts.index[:0],
            value=acts.value[:0],
            by_latent=None,
        )
        moments = slope_moments(acts, nothing)
        tested = np.where(moments.n_active >= MIN_ACTIVE, moments.p_rising(), np.nan)
        rising += int((benjamini_hochberg(tested) <= q).sum())
    return rising


def shortlisted(table: schemas.GrowthTable, n: int) -> schemas.GrowthTable:
    """The clearest growers of every site and role in turn, until `n` are listed; clearest first.

    Clear is a slope many standard errors above 0: the floor of p (see `growth.detect`) makes many p equal.
    """
    grows = table.growing()
    clear = grows["slope"] / (grows["ci_high"] - grows["ci_low"])
    turn = np.empty(len(grows), dtype=int)
    last: dict[tuple[str, str], int] = {}
    for row in np.argsort(-clear, kind="stable"):
        where = (str(grows["site"][row]), str(grows["role"][row]))
        turn[row] = last[where] = last.get(where, -1) + 1
    return grows.take(np.lexsort((-clear, turn))[:n])


def detection_figures(
    run: RunContext, table: schemas.GrowthTable, short: schemas.GrowthTable, rising: int
) -> dict[str, Any]:
    """What the stage detect says when it is done."""
    splits = run.config.splits
    return {name: int((table["verdict"] == name).sum()) for name in ("grows", "falls")} | {
        "tested": int(np.isfinite(table["q_value"]).sum()),
        "short list": len(short),
        "rising in their own arm": rising,
        "arms": [run.config.treated, *run.config.controls],
        "prompts": [len(splits.discovery), len(splits.shape), len(splits.confirm)],
    }


def by_place(rows: Iterable[tuple[str, str, int]]) -> dict[Place, Ints]:
    """Latents of each site and role, in the order of the rows (site, role, latent)."""
    places: dict[Place, list[int]] = {}
    for site, role, latent in rows:
        places.setdefault((Site.parse(str(site)), str(role)), []).append(int(latent))
    return {place: np.array(latents) for place, latents in places.items()}


def shortlist(run: RunContext) -> tuple[schemas.GrowthTable, dict[Place, Ints]]:
    """The short list, and its latents by site and role."""
    short = run.table(schemas.GrowthTable, "shortlist")
    return short, by_place(zip(short["site"], short["role"], short["latent"], strict=True))


# Evidence per arm: what the contexts show before each read-out.


@dataclass(frozen=True)
class ArmEvidence:
    """What the arms show on some prompts, as of before each read-out.

    Before an example's label is read (`open` to `pre`), a read-out at example j stands before example j, as
    the belief does. At `lab` and `close` it stands before example j + 1: evidence and designs move on by one
    example, the last read-out has nothing to be compared with, and probed arms are left out, because their
    next query has another context.
    """

    llr: Mapping[str, Floats]  # arm → evidence of each example, nats [prompt example]; NaN where unknown
    # arm → of each example to the query after it, [prompt example]; None where it cannot count
    similarity: Mapping[str, Floats] | None
    designs: Mapping[str, Design]  # arm → contexts, of the arms whose accounts are compared
    inline: frozenset[str]  # arms whose prompts are one sequence each
    hinted: int = HINTED  # how many examples of arms Q- and Q0 are the hint

    def at(self, role: str, readouts: Mapping[str, Floats]) -> tuple[ArmEvidence, dict[str, Floats]]:
        """What a read-out at `role` has read, and the read-outs, arm → [readout prompt example]."""
        if not examples_seen(role, 1)[0]:
            return (self if role in QUERY_READ else replace(self, similarity=None)), dict(readouts)
        inline = [arm for arm in readouts if arm in self.inline]
        after = replace(
            self,
            llr={arm: self.llr[arm][:, 1:] for arm in inline},
            similarity=None,
            designs={arm: design.after_labels() for arm, design in self.designs.items() if arm in inline},
            hinted=self.hinted - 1,
        )
        return after, {arm: readouts[arm][:, :, :-1] for arm in inline}


def arm_evidence(run: RunContext, prompts: Ints) -> ArmEvidence:
    """What every arm shows before each query; designs hold the exact task log-odds and the model's own."""
    arms = {arm: run.prompts(arm).select(prompts) for arm in run.config.prompts.arms}
    exact = {arm: exact_task(run, arm, prompts) for arm in arms}
    designs = {}
    for arm in comparable(exact):
        model = run.beliefs(arm)["model"][prompts][..., EXACT]
        known = exact[arm] if np.isfinite(exact[arm]).all() else None
        designs[arm] = design_of(arms[arm], known, model)
    inline = frozenset(arm for arm, shown in arms.items() if not shown.probed)
    llr = {arm: label_evidence(run, arm, prompts) for arm in arms}
    return ArmEvidence(llr, similarities(run, prompts), designs, inline)


def label_evidence(run: RunContext, arm: str, prompts: Ints) -> Floats:
    """Nats that each example carries for the task, [prompt example]; NaN where unknown.

    With a declared mixture, the increment of the exact task log-odds; without one, a nominal value for right
    and wrong labels (`prompts.build.nominal_evidence`).
    """
    if run.mixture is None:
        return nominal_evidence(run.prompts(arm).select(prompts), run.config.prompts.inputs)
    exact = exact_task(run, arm, prompts)
    return np.concatenate([np.diff(exact, axis=1), np.full((len(exact), 1), np.nan)], axis=1)


def similarities(run: RunContext, prompts: Ints) -> dict[str, Floats] | None:
    """Arm → similarity of each example to the query after it, [prompt example]; None for inputs in words."""
    near = {arm: example_similarity(run.prompts(arm).select(prompts)) for arm in run.config.prompts.arms}
    return {arm: values for arm, values in near.items() if values is not None} or None


def exact_task(run: RunContext, arm: str, prompts: Ints) -> Floats:
    """Exact task log-odds before each query, nats [prompt example]; NaN where the mixture has none."""
    shown = run.prompts(arm).select(prompts)
    log_odds = np.full(shown.x.shape, np.nan)
    if run.mixture is not None and parse_task(str(shown.task[0])) in run.mixture.tasks:
        possible = np.flatnonzero(in_mixture(run.mixture, shown))
        if possible.size:
            log_odds[possible] = task_log_odds(run.mixture, shown.select(possible))
    return np.where(np.isfinite(log_odds), log_odds, np.nan)


def comparable(exact: Mapping[str, Floats]) -> list[str]:
    """Arms whose exact log-odds [prompt example] are known throughout; all arms where fewer than two are."""
    known = [arm for arm, values in exact.items() if np.isfinite(values).all()]
    return known if len(known) > 1 else list(exact)


def paired_belief(run: RunContext, prompts: Ints) -> Floats:
    """The answer's log-odds, the treated arm minus the first control, nats [prompt example]."""
    treated, control = (
        run.beliefs(arm)["model"][prompts] for arm in (run.config.treated, run.config.controls[0])
    )
    return (treated - control)[..., EXACT]


# Shape: shape prompts, and the claims frozen for the confirm prompts.


def scaled_pre_activations(
    run: RunContext, arm: str, chosen: Mapping[Place, Ints], prompts: Ints
) -> dict[Place, Floats]:
    """Pre-activation × decoder norm of the chosen latents, [latent prompt example]."""
    raw = pre_activations(
        run.model, run.saes, run.prompts(arm).select(prompts), chosen, batch=run.config.track.batch
    )
    norms = run.decoder_norms
    return {
        place: values * norms[place[0]][chosen[place]][:, None, None].astype(np.float32)
        for place, values in raw.items()
    }


def shape_tables(
    run: RunContext, chosen: Mapping[Place, Ints], values: Mapping[str, Mapping[Place, Floats]]
) -> dict[str, Any]:
    """Shape, evidence, Bayesian tests and accounts of the chosen latents, by the name of their table.

    Args:
        chosen: latents by site and role, [latent].
        values: arm → site and role → pre-activation × decoder norm on shape prompts, [latent prompt example].
    """
    config, tables, tests = run.config, [], []
    shown = arm_evidence(run, config.splits.shape)
    # From prompts on which no shape is judged: a curve that behaviour fixed, which a latent may follow.
    belief = {BEHAVIOUR: paired_belief(run, config.splits.discovery).mean(axis=0)}
    for place, latents in chosen.items():
        site, role = place
        paired = values[config.treated][place] - values[config.controls[0]][place]
        n_seen, fixed = examples_seen(role, config.prompts.n_examples), belief if role == PRE else None
        read, known = shown.at(role, {arm: of_arm[place] for arm, of_arm in values.items()})
        tables += [
            fit_shapes(n_seen, paired, place=place, latent_ids=latents, fixed=fixed),
            _evidence(place, latents, known, read),
            *_accounts(place, latents, known, read.designs, config.growth.split_seed),
        ]
        tests += [
            bayes.bayes_tests(
                {arm: of_arm[i] for arm, of_arm in known.items()}, read.llr, similarity=read.similarity,
                response=f"{site.short} {role} {latent}", hinted=read.hinted, treated=config.treated,
            )
            for i, latent in enumerate(latents)
        ]  # fmt: skip
    kinds = (schemas.ShapeTable, schemas.EvidenceTable, schemas.LatentAccountTable)
    return joined(tables, *kinds) | {"latent_tests": schemas.LatentTestTable.concat(tests)}


def _evidence(
    place: Place, latents: Ints, known: Mapping[str, Floats], read: ArmEvidence
) -> schemas.EvidenceTable:
    fit, n = bayes.evidence_regression(known, read.llr, read.similarity), len(latents)
    where = {"site": [str(place[0])] * n, "role": [place[1]] * n, "latent": latents}
    of_fit = {name: getattr(fit, name) for name in schemas.EvidenceTable.COLUMNS if name not in where}
    once = {name: [of_fit[name]] * n for name in ("n_prompts", "n_increments", "reason")}
    return schemas.EvidenceTable(where | of_fit | once)


def _accounts(
    place: Place, latents: Ints, readouts: Mapping[str, Floats], designs: Mapping[str, Design], seed: int
) -> Iterator[schemas.LatentAccountTable]:
    """Accounts of growth, as for the belief, of each latent over all arms; none where no two can be compared.

    The exact account is the posterior of the task; beside it stands the model's own log-odds of the answer in
    each prompt, which has no parameter either: the account of a latent that follows what the model believes.
    """
    if len(designs) < 2:
        return
    every = compare_all({arm: readouts[arm] for arm in designs}, designs, seed=seed)
    for latent, compared in zip(latents, every, strict=True):
        n = len(compared.table)
        kept = ("account", "behind", "behind_low", "behind_high", "parameter", "r2")
        yield schemas.LatentAccountTable({
            "site": [str(place[0])] * n, "role": [place[1]] * n, "latent": np.full(n, int(latent)),
            "named": compared.table["account"] == compared.best, "arms": [", ".join(compared.arms)] * n,
        } | {name: compared.table[name] for name in kept})  # fmt: skip


def directions(run: RunContext) -> dict[str, Floats]:
    """Projections of T − control on each site's difference of means: fitted on shape, read on discovery."""
    config = run.config
    treated, control = (run.prompts(arm) for arm in (config.treated, config.controls[0]))
    if control.probed:
        return {}
    projected = direction_growth(
        run.model, treated, control, list(run.saes), fit=config.splits.shape, test=config.splits.discovery,
        batch=config.track.batch,
    )  # fmt: skip
    return {site.short: values for site, values in projected.items()}


def manifest_of(
    short: schemas.GrowthTable, shapes: schemas.ShapeTable, prompts: Ints, study: str
) -> verdict.Manifest:
    """What is claimed of the short list, before the confirm prompts are read."""
    key = ("site", "role", "latent")
    certified = shapes.where(shapes["certified"])
    linear = set(zip(*(certified[name].tolist() for name in key), strict=True))
    rows = zip(*(short[name].tolist() for name in (*key, "slope")), strict=True)
    claims = tuple(
        verdict.Claim(Site.parse(site).short, role, latent, slope,
              "grows linearly" if (site, role, latent) in linear else "grows")
        for site, role, latent, slope in rows
    )  # fmt: skip
    return verdict.Manifest(claims, tuple(int(p) for p in prompts), study)


# Dose: the short list pushed along its decoder directions, confirm prompts.


def pushable(run: RunContext, chosen: Mapping[Place, Ints]) -> dict[Place, Ints]:
    """Short-listed latents that can be pushed: at `pre`, of SAEs that write into the residual as it is."""
    return {
        (site, role): latents
        for (site, role), latents in chosen.items()
        if role == PRE and site.hook in pushing.PUSHABLE and run.saes[site].normalisation == "none"
    }


def dose_tables(run: RunContext, listed: Mapping[Place, Ints]) -> dict[str, Any]:
    """What pushing the listed latents of each site does, by the name of the table."""
    after, half = run.config.pushed_after, run.config.prompts.n_examples // 2
    tables = joined(
        (
            table
            for (site, _), latents in (listed.items() if run.config.growth.dose_latents else ())
            for n_examples in sorted({after, half})  # context × dose
            for table in _pushed(run, site, latents, n_examples)
        ),
        schemas.DoseTable, schemas.DoseCurveTable, schemas.ClosureTable, schemas.InjectionTable,
        schemas.InteractionTable,
    )  # fmt: skip
    return tables | {"dose": judged(tables["dose"], after)}


def _pushed(run: RunContext, site: Site, listed: Ints, n_examples: int) -> Iterator[Table]:
    """What pushing a site's short-listed latents does after `n_examples`.

    Controls and pairs are asked for at the first number of examples only.
    """
    config, splits = run.config, run.config.splits
    section, first, seed = config.growth, n_examples == config.pushed_after, config.growth.split_seed
    prompts, arm = splits.confirm[: section.dose_prompts], run.prompts(config.treated)
    others = np.concatenate([splits.discovery, splits.shape])
    growth = _natural_growth(run, site, listed, others, n_examples)
    final = run.beliefs(config.treated)["model"][prompts, -1]
    receiver = pushing.prepare_push(
        run.model, run.saes[site], arm.select(prompts), n_examples, final, config.declared
    )
    acts = select_prompts(run.latents(config.treated, site, PRE), others) if first else None
    ids, own = listed[: section.dose_latents], growth[: section.dose_latents]
    effects = pushing.responses(receiver, ids, own)
    table, slopes = pushing.dose_table(
        receiver, ids, own, acts, n_controls=section.n_controls, seed=seed, effects=effects
    )
    injected = {"short-listed latents": pushing.joint_push(receiver, listed, growth)} | pushing.natural_parts(
        run.model, run.saes[site], arm.select(others), n_examples, config.track.batch
    )
    yield table
    yield pushing.curve_table(receiver, ids, effects, seed=seed)
    yield pushing.closure_table(receiver, slopes, ids, own, (listed, growth))
    yield pushing.injection_table(receiver, injected, seed=seed)
    if first:
        yield pushing.interaction_table(receiver, ids, own)


def _natural_growth(run: RunContext, site: Site, latents: Ints, prompts: Ints, n_examples: int) -> Floats:
    """Mean rise of the task arm's activation from `n_examples` to the last example, [latent].

    The control's own movement is not subtracted: the belief to be explained is the task arm's.
    """
    acts = run.latents(run.config.treated, site, PRE).dense(latents)[:, prompts].astype(np.float64)
    return (acts[:, :, -1] - acts[:, :, n_examples]).mean(axis=1)


def judged(table: schemas.DoseTable, n_examples: int) -> schemas.DoseTable:
    """The table with q-values over the study's latents, by belief, and the causal verdicts."""
    columns = {name: table[name].copy() for name in schemas.DoseTable.COLUMNS}
    compared = (table["n_examples"] == n_examples) & np.isfinite(table["control_p"])
    for belief in dict.fromkeys(table["belief"].tolist()):
        rows = np.flatnonzero((table["belief"] == belief) & compared)
        if not rows.size:
            continue
        columns["q_value"][rows] = benjamini_hochberg(table["control_p"][rows])
        low, high, curved = (table[name][rows] for name in ("slope_low", "slope_high", "quadratic_share"))
        least = table["control_p"][rows] <= (1 + 1e-9) / (1 + table["n_controls"][rows])
        reasons = verdict.causal_reasons(low, high, curved, columns["q_value"][rows], least)
        columns["reason"][rows] = reasons
        columns["causal"][rows] = [reason == "" for reason in reasons]
    alone = np.isnan(table["control_p"]) & (columns["reason"] == "")
    columns["reason"][alone] = "not compared with matched latents"
    return schemas.DoseTable(columns)


def dose_figures(table: schemas.DoseTable, skipped: Iterable[Place]) -> dict[str, Any]:
    """What the stage dose says when it is done."""
    return {
        "latents pushed": len(set(zip(table["site"], table["latent"], strict=True))),
        "causal for the task's answer": int(table["causal"][table["belief"] == BELIEF].sum()),
        "short-listed, not pushed (another role, no residual, or an SAE that normalises its input)": [
            f"{site.short} {role}" for site, role in skipped
        ],
    }


# Verdicts: confirm prompts, and everything before.


LogOdds = Mapping[str, Floats]
"""Arm → log-odds of every belief, nats [prompt example belief]."""


def belief_tables(run: RunContext) -> tuple[dict[str, Any], Compared]:
    """Tables of the beliefs' own growth, by name, and the accounts of it."""
    config, arms = run.config, {arm: run.beliefs(arm) for arm in run.config.prompts.arms}
    model, exact = ({arm: arrays[key] for arm, arrays in arms.items()} for key in ("model", "exact"))
    known = {arm: values for arm, values in exact.items() if np.isfinite(values).any()}
    n_seen = examples_seen(PRE, config.prompts.n_examples)
    compared = _belief_accounts(run, model, exact)
    return {
        "beliefs": bayes.belief_table(
            n_seen, model, exact=known, names=config.belief_names, seed=config.prompts.seed
        ),
        "bayes": _log_odds_fits(config, n_seen, model[config.treated], exact[config.treated]),
        "agreement": _agreement(run, model, exact),
        "tests": _belief_tests(run, {"model": model, "exact posterior": exact}),
        "accounts": compared.table,
    }, compared


def _log_odds_fits(config: StudyConfig, n_seen: Ints, model: Floats, exact: Floats) -> dict[str, Any]:
    """Belief → LO_0 + nλ of model and exact posterior, over the exact one's linear part; their agreement."""
    fits, seed = {}, config.prompts.seed
    for i, name in enumerate(config.belief_names):
        own, true = model[..., i], exact[..., i]
        defined = true[np.isfinite(true).all(axis=1)]
        over = bayes.linear_part(n_seen, defined.mean(axis=0)) if len(defined) else None
        fits[name] = {
            "model": asdict(bayes.fit_log_odds(n_seen, own, over=over, seed=seed)),
            "exact": asdict(bayes.fit_log_odds(n_seen, true, over=over, seed=seed)),
            "agreement": asdict(bayes.agreement(true, own, seed=seed)),
        }
    return fits


def _agreement(run: RunContext, model: LogOdds, exact: LogOdds) -> schemas.AgreementTable:
    """The model's log-odds on the exact ones in every arm: its beliefs, and the task behind its answers."""
    calibration = bayes.Calibration(**run.json("track", "calibration"))
    rows, names = [], run.config.belief_names
    for arm in model:
        pairs = [(name, exact[arm][..., i], model[arm][..., i]) for i, name in enumerate(names)]
        p_correct = 1 / (1 + np.exp(-model[arm][..., EXACT]))
        everyone = np.arange(len(model[arm]))
        pairs.append(("task", exact_task(run, arm, everyone), bayes.task_belief(p_correct, calibration)))
        for name, true, own in pairs:
            fit = bayes.agreement(true, own, seed=run.config.prompts.seed)
            met = abs(fit.slope - 1) <= SLOPE_GOAL and fit.r >= R_GOAL
            rows.append({"arm": arm, "belief": name, "goal_met": bool(met)} | asdict(fit))
    return schemas.AgreementTable(
        {name: [row[name] for row in rows] for name in schemas.AgreementTable.COLUMNS}
    )


def _belief_tests(run: RunContext, readouts: Mapping[str, LogOdds]) -> schemas.BayesTestTable:
    everyone = np.arange(run.config.prompts.n_prompts)
    llr = {arm: label_evidence(run, arm, everyone) for arm in run.config.prompts.arms}
    similarity = similarities(run, everyone)
    return schemas.BayesTestTable.concat([
        bayes.bayes_tests({arm: values[..., EXACT] for arm, values in of.items()}, llr, response=name,
                    similarity=similarity, treated=run.config.treated, seed=run.config.prompts.seed)
        for name, of in readouts.items()
    ])  # fmt: skip


def _belief_accounts(run: RunContext, model: LogOdds, exact: LogOdds) -> Compared:
    """Accounts of the answer's log-odds over all arms whose exact posterior is known, or over all arms."""
    known = {arm: values[..., EXACT] for arm, values in exact.items()}
    answers = {arm: model[arm][..., EXACT] for arm in comparable(known)}
    designs = {arm: design_of(run.prompts(arm), known[arm]) for arm in answers}
    return compare(answers, designs, seed=run.config.growth.split_seed)


def confirmed_claims(run: RunContext, manifest: verdict.Manifest) -> schemas.ConfirmTable:
    """The frozen claims on the confirm split."""
    prompts, norms = run.config.splits.confirm, run.decoder_norms
    differences, own = {}, {}
    claims = by_place((claim.site, claim.role, claim.latent) for claim in manifest.claims)
    for (site, role), ids in claims.items():
        treated, control = (
            run.latents(arm, site, role).dense(ids)[:, prompts]
            for arm in (run.config.treated, run.config.controls[0])
        )
        scale = norms[site][ids][:, None, None]
        own[site, role] = treated.astype(np.float64) * scale
        differences[site, role] = own[site, role] - control * scale
    return verdict.confirm(manifest, differences, prompts, own)


def gates(run: RunContext, confirmed: schemas.ConfirmTable) -> verdict.Found:
    """What the earlier stages found, as the ladder takes it."""
    pushed_after = run.config.pushed_after
    dose = run.table(schemas.DoseTable).df
    first = dose[(dose["belief"] == BELIEF) & (dose["n_examples"] == pushed_after)]
    renamed = {"slope": "dose_effect", "slope_low": "dose_low", "slope_high": "dose_high"}
    return verdict.Found(
        detection=run.table(schemas.GrowthTable).df,
        shape=run.table(schemas.ShapeTable).df,
        evidence=run.table(schemas.EvidenceTable).df,
        dose=first.rename(columns=renamed),
        confirm=confirmed.df,
        closure=closures(run.table(schemas.ClosureTable), pushed_after),
    )


def figures(
    run: RunContext,
    verdicts: schemas.VerdictTable,
    confirmed: schemas.ConfirmTable,
    tests: schemas.BayesTestTable,
) -> verdict.Figures:
    """What the falsifiers look at: these tables, and those of the earlier stages."""
    dose, n_examples = run.table(schemas.DoseTable), run.config.pushed_after
    shapes = run.table(schemas.ShapeTable)
    confirmed_rows = confirmed["confirm_p"] <= verdict.LEVEL
    pushed = (dose["belief"] == BELIEF) & (dose["n_examples"] == n_examples) & (dose["n_controls"] > 0)
    shaped = np.isfinite(shapes["exponent"])
    sublinear = (shapes["exponent_high"] < verdict.ADDITIVE[0]) | (shapes["step_margin"] <= 0)
    best, site = _best_closure(run.table(schemas.ClosureTable), n_examples)
    grown = {name: _grows(values) for name, values in run.arrays("shape", "directions").items()}
    latents = {
        Site.parse(str(site)).short for site in confirmed["site"][confirmed_rows & (confirmed["role"] == PRE)]
    }
    return verdict.Figures(
        n_tested=int(np.isfinite(verdicts["q_value"]).sum()),
        n_grows=len(verdicts.growing()),
        n_confirmed=int(confirmed_rows.sum()),
        n_shortlisted=len(confirmed),
        n_rising=run.json("detect", "rising")["latents"],
        n_own=int((confirmed_rows & (confirmed["own_low"] > 0)).sum()),
        n_sublinear=int((shaped & sublinear).sum()),
        n_shaped=int(shaped.sum()),
        belief_exponent=_exponent(paired_belief(run, run.config.splits.shape)[None]),
        duplicates=_test(tests, "duplicates"),
        evidence=_test(tests, "evidence"),
        order=_test(tests, "order"),
        n_dosed=int(pushed.sum()),
        n_causal=int(dose["causal"][pushed].sum()),
        n_undecided=sum(str(reason).startswith(verdict.UNDECIDED) for reason in dose["reason"][pushed]),
        closure=best,
        closure_site=site,
        n_directions=len(grown),
        n_directions_grow=sum(grown.values()),
        n_only_direction=sum(grows and name not in latents for name, grows in grown.items()),
        n_only_latents=sum(not grows and name in latents for name, grows in grown.items()),
    )


def facts(
    run: RunContext, accounts: Compared, asked: verdict.Figures, manifest: verdict.Manifest
) -> dict[str, Any]:
    """What the stage growth keeps beside its tables."""
    return {
        "accounts": {"arms": list(accounts.arms), "verdict": accounts.verdict},
        "belief_exponent": asdict(asked.belief_exponent),
        "calibration": run.json("track", "calibration"),
        "manifest": manifest.sha256,
    }


def verdict_figures(
    verdicts: schemas.VerdictTable, falsifiers: schemas.FalsifierTable, accounts: Compared
) -> dict[str, Any]:
    """What the stage growth says when it is done."""
    fired = falsifiers["falsifier"][falsifiers["fired"] == "fired"]
    counts = {rung: int((verdicts["verdict"] == rung).sum()) for rung in (*schemas.LADDER, "falls")}
    return counts | {"falsifiers that fired": [str(name) for name in fired], "account": accounts.verdict}


def closures(table: schemas.ClosureTable, n_examples: int) -> dict[str, tuple[float, str]]:
    """Site → lower end of its closure of the answer's growth, and that in words."""
    ends = {}
    for i in np.flatnonzero((table["belief"] == BELIEF) & (table["n_examples"] == n_examples)):
        closure = _interval(table, int(i), "closure")
        words = f"the site's pushed latents account for {closure} of the answer's growth"
        ends[str(table["site"][i])] = (closure.low, table["reason"][i] or words)
    return ends


def _best_closure(table: schemas.ClosureTable, n_examples: int) -> tuple[Interval, str]:
    rows = np.flatnonzero(
        (table["belief"] == BELIEF) & (table["n_examples"] == n_examples) & np.isfinite(table["closure"])
    )
    if not rows.size:
        return Interval(), ""
    best = int(rows[table["closure"][rows].argmax()])
    return _interval(table, best, "closure"), Site.parse(str(table["site"][best])).short


def _exponent(paired: Floats) -> Interval:
    n_seen = np.arange(paired.shape[2])
    table = fit_shapes(n_seen, paired, place=(OUTPUT, PRE), latent_ids=np.zeros(1, dtype=int))
    return _interval(table, 0, "exponent")


def _test(tests: schemas.BayesTestTable, name: str) -> Interval:
    rows = np.flatnonzero((tests["test"] == name) & (tests["response"] == "model"))
    if not rows.size:
        return Interval()
    return Interval(*(float(tests[column][rows[0]]) for column in ("estimate", "low", "high")))


def _interval(table: Table, row: int, name: str) -> Interval:
    return Interval(*(float(table[column][row]) for column in (name, f"{name}_low", f"{name}_high")))


def _grows(values: Floats) -> bool:
    """Whether the paired slope of [prompt example] is above 0, one-sided t over prompts."""
    centred = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    slopes = values @ centred
    if len(slopes) < MIN_ACTIVE or slopes.std() == 0:
        return False
    t = slopes.mean() / (slopes.std(ddof=1) / np.sqrt(len(slopes)))
    return float(stats.t.sf(t, len(slopes) - 1)) <= verdict.LEVEL
