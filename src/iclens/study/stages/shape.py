"""The short list's pre-activations in every arm, shape prompts → shapes, evidence, and the frozen claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from iclens.activations import examples_seen
from iclens.core import Site
from iclens.growth.accounts import BEHAVIOUR
from iclens.growth.bayes import EvidenceFit, bayes_tests, evidence_regression
from iclens.growth.shape import fit_shapes
from iclens.growth.verdict import Claim, Manifest
from iclens.schemas import BayesTestTable, EvidenceTable, GrowthTable, LatentAccountTable, ShapeTable
from iclens.study import digests
from iclens.study.bench import Bench
from iclens.study.growth_inputs import Place, paired_belief, splits_of
from iclens.study.latent_accounts import latent_accounts
from iclens.study.shown import seen_at, shown_in
from iclens.study.stages.detect import SHORTLIST
from iclens.study.store import save_arrays
from iclens.table import Floats, Ints
from iclens.track import direction_growth, pre_activations

SHAPES, EVIDENCE, MANIFEST = "shapes.parquet", "evidence.parquet", "manifest.json"
TESTS, ACCOUNTS = "latent_tests.parquet", "latent_accounts.parquet"
DIRECTIONS, PRE = "directions.safetensors", "pre_{arm}.safetensors"


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write the short list's shapes, evidence, tests and accounts, pre-activations, directions, manifest."""
    config = bench.config
    splits = splits_of(config)
    short = GrowthTable.load(bench.of("detect") / SHORTLIST)
    chosen = by_place(short)
    held = {arm: _scaled(bench, arm, chosen, splits.shape) for arm in config.prompts.arms}
    for arm, places in held.items():
        arrays = {f"{site.short} {role}": values for (site, role), values in places.items()}
        save_arrays(folder / PRE.format(arm=arm), arrays)
    shapes, evidence, tests, accounts = [], [], [], []
    shown = shown_in(bench, splits.shape)
    # From prompts on which no shape is judged: a curve that behaviour fixed, which a latent may follow.
    belief = {BEHAVIOUR: paired_belief(bench, splits.discovery).mean(axis=0)}
    for place, latents in chosen.items():
        paired = held[config.treated][place] - held[config.controls[0]][place]
        n_seen = examples_seen(place[1], config.prompts.n_examples)
        fixed = belief if place[1] == "pre" else None
        shapes.append(fit_shapes(n_seen, paired, place=place, latent_ids=latents, fixed=fixed))
        seen, known = seen_at(bench, place[1], shown, {arm: held[arm][place] for arm in held})
        fit = evidence_regression(known, seen.llr, seen.similarity)
        evidence.append(_evidence(place, latents, fit))
        accounts.append(latent_accounts(place, latents, known, seen.designs, seed=config.growth.split_seed))
        tests += [
            bayes_tests(
                {arm: values[i] for arm, values in known.items()}, seen.llr,
                response=f"{place[0].short} {place[1]} {latent}", similarity=seen.similarity,
                hinted=seen.hinted, treated=config.treated,
            )
            for i, latent in enumerate(latents)
        ]  # fmt: skip
    table = ShapeTable.concat(shapes)
    table.save(folder / SHAPES)
    EvidenceTable.concat(evidence).save(folder / EVIDENCE)
    BayesTestTable.concat(tests).save(folder / TESTS)
    LatentAccountTable.concat(accounts).save(folder / ACCOUNTS)
    _directions(bench, folder)
    manifest = _claims(short, table, splits.confirm, digests.of_json(config.model_dump(mode="json")))
    return {
        "short list": len(short),
        "certified additive": int(table["certified"].sum()),
        "manifest": manifest.freeze(folder / MANIFEST)[:16],
    }


def by_place(short: GrowthTable) -> dict[Place, Ints]:
    """Short-listed latents of each site and role, in the list's order."""
    places: dict[Place, list[int]] = {}
    for site, role, latent in zip(short["site"], short["role"], short["latent"], strict=True):
        places.setdefault((Site.parse(str(site)), str(role)), []).append(int(latent))
    return {place: np.array(latents) for place, latents in places.items()}


def _scaled(bench: Bench, arm: str, chosen: dict[Place, Ints], prompts: Ints) -> dict[Place, Floats]:
    """Pre-activation × decoder norm of the short list, [latent prompt example]."""
    held = pre_activations(
        bench.model, bench.saes, bench.prompts(arm).select(prompts), chosen, batch=bench.config.track.batch
    )
    norms = bench.decoder_norms
    return {
        place: values * norms[place[0]][chosen[place]][:, None, None].astype(np.float32)
        for place, values in held.items()
    }


def _evidence(place: Place, latents: Ints, fit: EvidenceFit) -> EvidenceTable:
    n = len(latents)
    return EvidenceTable(
        {
            "site": np.full(n, str(place[0]), dtype=object),
            "role": np.full(n, place[1], dtype=object),
            "latent": latents,
            "evidence": fit.evidence,
            "evidence_low": fit.evidence_low,
            "evidence_high": fit.evidence_high,
            "count": fit.count,
            "count_low": fit.count_low,
            "count_high": fit.count_high,
            "similarity": fit.similarity,
            "similarity_low": fit.similarity_low,
            "similarity_high": fit.similarity_high,
            "n_prompts": np.full(n, fit.n_prompts),
            "n_increments": np.full(n, fit.n_increments),
            "weighting": fit.weighting,
            "reason": [fit.reason] * n,
        }
    )


def _directions(bench: Bench, folder: Path) -> None:
    """Projections of T − control on each site's difference of means: fitted on shape, read on discovery."""
    config, splits = bench.config, splits_of(bench.config)
    treated, control = (bench.prompts(arm) for arm in (config.treated, config.controls[0]))
    if control.probed:
        save_arrays(folder / DIRECTIONS, {})
        return
    found = direction_growth(
        bench.model, treated, control, list(bench.saes), fit=splits.shape, test=splits.discovery,
        batch=config.track.batch,
    )  # fmt: skip
    save_arrays(folder / DIRECTIONS, {site.short: values for site, values in found.items()})


def _claims(short: GrowthTable, shapes: ShapeTable, prompts: Ints, study: str) -> Manifest:
    certified = {
        key
        for *key, granted in zip(
            shapes["site"], shapes["role"], shapes["latent"], shapes["certified"], strict=True
        )
        if granted
        for key in [tuple(key)]
    }
    rows = zip(short["site"], short["role"], short["latent"], short["slope"], strict=True)
    claims = tuple(
        Claim(
            Site.parse(str(site)).short, str(role), int(latent), float(slope),
            "grows linearly" if (site, role, latent) in certified else "grows",
        )
        for site, role, latent, slope in rows
    )  # fmt: skip
    return Manifest(claims, tuple(int(p) for p in prompts), study)
