"""Confirm prompts, and everything before → verdicts, the beliefs' Bayesian tests, accounts and falsifiers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from iclens.activations import examples_seen
from iclens.core import Site
from iclens.growth.accounts import Compared, compare, design_of
from iclens.growth.bayes import (
    Calibration,
    agreement,
    bayes_tests,
    belief_table,
    fit_log_odds,
    linear_part,
    task_belief,
)
from iclens.growth.verdict import Found, Manifest, ask, confirm, judge
from iclens.prompts.beliefs import belief_index
from iclens.schemas import (
    LADDER,
    AgreementTable,
    BayesTestTable,
    ClosureTable,
    ConfirmTable,
    DoseTable,
    EvidenceTable,
    GrowthTable,
    ShapeTable,
)
from iclens.study.bench import Bench, beliefs_file
from iclens.study.growth_figures import closures, figures
from iclens.study.growth_inputs import (
    comparable,
    exact_task,
    label_evidence,
    paired_belief,
    similarities,
    splits_of,
)
from iclens.study.stages.dose import CLOSURE, DOSE
from iclens.study.stages.shape import DIRECTIONS, EVIDENCE, MANIFEST, SHAPES
from iclens.study.stages.track import CALIBRATION
from iclens.study.store import load_json, save_json
from iclens.table import Floats

EXACT = belief_index("exact")
SLOPE_GOAL, R_GOAL = 0.05, 0.98
"""How near to 1 the slope, and how high the correlation, of model on exact log-odds should be."""


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write the tables of `results.TABLES` that belong to growth, `bayes.json` and `growth.json`."""
    model, exact = _beliefs(bench, folder)
    _agreement(bench, model, exact).save(folder / "agreement.parquet")
    tests = _tests(bench, model, exact)
    tests.save(folder / "tests.parquet")
    compared = _accounts(bench, model, exact)
    compared.table.save(folder / "accounts.parquet")
    confirmed = _confirmed(bench)
    confirmed.save(folder / "confirmed.parquet")
    verdicts = judge(_found(bench, confirmed))
    verdicts.save(folder / "growth.parquet")
    asked = figures(
        verdicts, confirmed, ShapeTable.load(bench.of("shape") / SHAPES), tests,
        dose=DoseTable.load(bench.of("dose") / DOSE), closure=ClosureTable.load(bench.of("dose") / CLOSURE),
        paired_belief=paired_belief(bench, splits_of(bench.config).shape)[None],
        directions=bench.arrays("shape", DIRECTIONS),
        n_rising=load_json(bench.of("detect") / "stage.json")["found"]["rising in their own arm"],
        n_examples=bench.config.pushed_after,
    )  # fmt: skip
    falsifiers = ask(asked)
    falsifiers.save(folder / "falsifiers.parquet")
    save_json(
        folder / "growth.json",
        {
            "accounts": {"arms": list(compared.arms), "verdict": compared.verdict},
            "belief_exponent": asdict(asked.belief_exponent),
            "calibration": load_json(bench.of("track") / CALIBRATION),
            "manifest": Manifest.thaw(bench.of("shape") / MANIFEST).sha256,
        },
    )
    counts = {rung: int((verdicts["verdict"] == rung).sum()) for rung in (*LADDER, "falls")}
    fired = [
        str(f)
        for f, state in zip(falsifiers["falsifier"], falsifiers["fired"], strict=True)
        if state == "fired"
    ]
    return counts | {"falsifiers that fired": fired, "account": compared.verdict}


def _beliefs(bench: Bench, folder: Path) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Write the belief table and the fits of LO_0 + nλ; the log-odds of every arm, model and exact."""
    section, treated, names = bench.config.prompts, bench.config.treated, bench.config.belief_names
    n_seen = examples_seen("pre", section.n_examples)
    kept = {arm: bench.arrays("track", beliefs_file(arm)) for arm in section.arms}
    model = {arm: arrays["model"] for arm, arrays in kept.items()}
    exact = {arm: arrays["exact"] for arm, arrays in kept.items()}
    known = {arm: values for arm, values in exact.items() if np.isfinite(values).any()}
    belief_table(n_seen, model, exact=known, names=names, seed=section.seed).save(folder / "beliefs.parquet")
    own, true = model[treated], exact[treated]
    fits = {name: _fit(n_seen, own[..., i], true[..., i], section.seed) for i, name in enumerate(names)}
    save_json(folder / "bayes.json", fits)
    return model, exact


def _fit(n_seen: np.ndarray, model: Floats, exact: Floats, seed: int) -> dict[str, Any]:
    """LO_0 + nλ of model and exact posterior over the exact one's linear part, and their agreement."""
    defined = exact[np.isfinite(exact).all(axis=1)]
    over = linear_part(n_seen, defined.mean(axis=0)) if len(defined) else None
    return {
        "model": asdict(fit_log_odds(n_seen, model, over=over, seed=seed)),
        "exact": asdict(fit_log_odds(n_seen, exact, over=over, seed=seed)),
        "agreement": asdict(agreement(exact, model, seed=seed)),
    }


def _agreement(bench: Bench, model: dict[str, Floats], exact: dict[str, Floats]) -> AgreementTable:
    """The model's log-odds on the exact ones in every arm: its beliefs, and the task behind its answers."""
    calibration = Calibration(**load_json(bench.of("track") / CALIBRATION))
    rows, names = [], bench.config.belief_names
    for arm in bench.config.prompts.arms:
        everyone = np.arange(len(model[arm]))
        pairs = [(name, exact[arm][..., i], model[arm][..., i]) for i, name in enumerate(names)]
        p_correct = 1 / (1 + np.exp(-model[arm][..., EXACT]))
        pairs.append(("task", exact_task(bench, arm, everyone), task_belief(p_correct, calibration)))
        for name, true, own in pairs:
            fit = agreement(true, own, seed=bench.config.prompts.seed)
            met = abs(fit.slope - 1) <= SLOPE_GOAL and fit.r >= R_GOAL
            rows.append({"arm": arm, "belief": name, "goal_met": bool(met)} | asdict(fit))
    return AgreementTable({name: [row[name] for row in rows] for name in AgreementTable.COLUMNS})


def _tests(bench: Bench, model: dict[str, Floats], exact: dict[str, Floats]) -> BayesTestTable:
    everyone = np.arange(bench.config.prompts.n_prompts)
    llr = {arm: label_evidence(bench, arm, everyone) for arm in model}
    similarity = similarities(bench, everyone)
    parts = [
        bayes_tests({arm: values[..., EXACT] for arm, values in of.items()}, llr, response=name,
                    similarity=similarity, treated=bench.config.treated, seed=bench.config.prompts.seed)
        for name, of in (("model", model), ("exact posterior", exact))
    ]  # fmt: skip
    return BayesTestTable.concat(parts)


def _accounts(bench: Bench, model: dict[str, Floats], exact: dict[str, Floats]) -> Compared:
    """Accounts of the answer's log-odds over all arms whose exact posterior is known, or over all arms."""
    known = {arm: values[..., EXACT] for arm, values in exact.items()}
    responses = {arm: model[arm][..., EXACT] for arm in comparable(known)}
    designs = {arm: design_of(bench.prompts(arm), known[arm]) for arm in responses}
    return compare(responses, designs, seed=bench.config.growth.split_seed)


def _confirmed(bench: Bench) -> ConfirmTable:
    """The frozen claims on the confirm split."""
    manifest = Manifest.thaw(bench.of("shape") / MANIFEST)
    prompts = splits_of(bench.config).confirm
    treated, control = bench.config.treated, bench.config.controls[0]
    claims: dict[tuple[Site, str], list[int]] = {}
    for claim in manifest.claims:
        claims.setdefault((Site.parse(claim.site), claim.role), []).append(claim.latent)
    differences, own = {}, {}
    for (site, role), latents in claims.items():
        ids = np.array(latents)
        one, other = (bench.latents(arm, site, role).dense(ids)[:, prompts] for arm in (treated, control))
        scale = bench.decoder_norms[site][ids][:, None, None]
        own[site, role] = one.astype(np.float64) * scale
        differences[site, role] = own[site, role] - other * scale
    return confirm(manifest, differences, prompts, own)


def _found(bench: Bench, confirmed: ConfirmTable) -> Found:
    """What the earlier stages found, as the ladder takes it."""
    shape = bench.of("shape")
    dose = DoseTable.load(bench.of("dose") / DOSE).df
    first = dose[(dose["belief"] == "exact") & (dose["n_examples"] == bench.config.pushed_after)]
    renamed = {"slope": "dose_effect", "slope_low": "dose_low", "slope_high": "dose_high"}
    return Found(
        detection=GrowthTable.load(bench.of("detect") / "detection.parquet").df,
        shape=ShapeTable.load(shape / SHAPES).df,
        evidence=EvidenceTable.load(shape / EVIDENCE).df,
        dose=first.rename(columns=renamed),
        confirm=confirmed.df,
        closure=closures(ClosureTable.load(bench.of("dose") / CLOSURE), bench.config.pushed_after),
    )
