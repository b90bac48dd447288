"""The whole study, from top to bottom: what each stage reads, what it works out, and with which code.

    Task → PromptSet → Activations → LatentActs → Trajectories
         → GrowthTable → TransformTable → PatchTable → pages

A stage yields its tables by name and returns its findings. It is skipped while its key is the one that its
outputs were made with: a hash of the config sections and inputs that it declares, of the code that it can run
and of the versions of its libraries (`study.imports`). Imports stand inside the stages, so that a run that is
up to date loads no model. Stages that do not read each other could run side by side.
"""

from __future__ import annotations

from dataclasses import asdict

from iclens.study.run import STAGES, Made, RunContext, beliefs_name, latents_name, stage, study_saes
from iclens.study.store import Arrays, hash_json


@stage("model", "saes", "track", "grid", reads=["model", "SAE source"])
def saes(run: RunContext) -> Made:
    """SAEs, trained on the model (`training`) or loaded, and their quality on prompts of the task grid."""
    from iclens.saes.encode import decoder_lengths
    from iclens.saes.quality import measure_quality
    from iclens.study.follow import quality_figures, sae_facts, sae_set
    from iclens.study.grid import quality_prompts

    prompts = quality_prompts(run.config, run.model.tokenizer)
    loaded = study_saes(run.config, run.model, sae_set(run))
    quality = measure_quality(run.model, loaded, prompts.tokens, pre=prompts.positions("pre"))
    yield "quality", quality
    yield "decoder_norms", Arrays({site.short: decoder_lengths(sae) for site, sae in loaded.items()})
    yield "saes", {"model": run.model.fingerprint, "saes": sae_facts(loaded)}
    return {"sites": [site.short for site in loaded]} | quality_figures(quality)


@stage("prompts", reads=["model"])
def prompts(run: RunContext) -> Made:
    """Task → PromptSet: the same inputs under every arm's labels, paired prompt by prompt."""
    from iclens.prompts.build import check_pairing
    from iclens.study.follow import arm_prompts, prompt_figures

    arms = arm_prompts(run)
    check_pairing(list(arms.values()))
    yield from arms.items()
    return prompt_figures(run)


@stage("model", "track", reads=["model", "saes", "prompts"])
def track(run: RunContext) -> Made:
    """PromptSet → LatentActs: latents at every role of every arm; and beliefs, the model's and the exact."""
    from iclens.study.follow import exact_beliefs, finished_shards, guess_and_lapse, track_arm

    parts, right = finished_shards(run), {}
    for arm in run.config.prompts.arms:
        tracked, (exact, reason) = track_arm(run, arm, parts), exact_beliefs(run, run.prompts(arm))
        for (site, role), latents in tracked.latents.items():
            yield latents_name(arm, site, role), latents
        yield beliefs_name(arm), Arrays({"model": tracked.model, "exact": exact}, {"reason": reason})
        right[f"top answer is the task's, arm {arm}"] = round(float(tracked.right[:, -1].mean()), 4)
    yield "calibration", asdict(guess_and_lapse(run))
    joined = {"joined from ranks": len(parts)} if parts else {}
    return right | {"sites": [site.short for site in run.saes], "roles": run.config.track.roles} | joined


@stage("prompts", "track", "growth", reads=["saes", "prompts", "track"])
def detect(run: RunContext) -> Made:
    """Discovery prompts choose: the paired slope of every latent, task − controls, at one error rate."""
    from iclens.growth.detect import test_arms
    from iclens.study.growth import arm_latents, detection_figures, n_rising, shortlisted

    growth, found_on = run.config.growth, run.config.splits.discovery
    arms = [run.config.treated, *run.config.controls]
    treated, *controls = (arm_latents(run, arm, found_on) for arm in arms)
    shown = [run.prompts(arm).select(found_on) for arm in arms]
    table = test_arms(treated, controls, prompts=shown, q=growth.q, decoder_norms=run.decoder_norms)
    short, rising = shortlisted(table, growth.shortlist), n_rising(treated, growth.q)
    yield from {"detection": table, "shortlist": short, "rising": {"latents": rising}}.items()
    return detection_figures(run, table, short, rising)


@stage("model", "prompts", "track", "growth", reads=["model", "saes", "prompts", "track", "detect"])
def shape(run: RunContext) -> Made:
    """Shape prompts judge (`growth.shape`): additive, step, saturating? By evidence? Claims are frozen."""
    from iclens.study.growth import directions, manifest_of, scaled_pre_activations, shape_tables, shortlist

    splits, (short, chosen) = run.config.splits, shortlist(run)
    values = {arm: scaled_pre_activations(run, arm, chosen, splits.shape) for arm in run.config.prompts.arms}
    for arm, places in values.items():
        yield f"pre_{arm}", Arrays({f"{site.short} {role}": held for (site, role), held in places.items()})
    tables = shape_tables(run, chosen, values)
    yield from tables.items()
    yield "directions", Arrays(directions(run))
    study = hash_json(run.config.model_dump(mode="json"))
    manifest = manifest_of(short, tables["shapes"], splits.confirm, study).freeze(run.out / "manifest.json")
    certified = int(tables["shapes"]["certified"].sum())
    return {"short list": len(short), "certified additive": certified, "manifest": manifest[:16]}


@stage("model", "prompts", "track", "growth", reads=["model", "saes", "prompts", "track", "detect", "shape"])
def dose(run: RunContext) -> Made:
    """The short list pushed along its decoder directions (`patching.dose`): how far do beliefs follow?"""
    from iclens.study.growth import dose_figures, dose_tables, pushable, shortlist

    _, chosen = shortlist(run)
    listed = pushable(run, chosen)
    tables = dose_tables(run, listed)
    yield from tables.items()
    return dose_figures(tables["dose"], [place for place in chosen if place not in listed])


@stage("prompts", "track", "growth", reads=["saes", "prompts", "track", "detect", "shape", "dose"])
def growth(run: RunContext) -> Made:
    """Confirm prompts decide: a rung of the ladder per latent, and what could have shown the claim wrong."""
    from iclens.growth.verdict import Manifest, ask, judge
    from iclens.study.growth import belief_tables, confirmed_claims, facts, figures, gates, verdict_figures

    beliefs, accounts = belief_tables(run)
    manifest = Manifest.thaw(run.of("shape") / "manifest.json")
    confirmed = confirmed_claims(run, manifest)
    verdicts = judge(gates(run, confirmed))
    asked = figures(run, verdicts, confirmed, beliefs["tests"])
    falsifiers = ask(asked)
    yield from (beliefs | {"confirmed": confirmed, "growth": verdicts, "falsifiers": falsifiers}).items()
    yield "growth", facts(run, accounts, asked, manifest)
    return verdict_figures(verdicts, falsifiers, accounts)


@stage("model", "track", "grid", "transforms", reads=["model", "saes", "other SAEs"])
def identify(run: RunContext) -> Made:
    """LatentActs on a task grid → TransformTable: latents that answer to a concept (`concepts.labels`)."""
    from iclens.study.concepts import follow_grid, label_figures, label_stability, label_tables, labelled
    from iclens.study.grid import GRID_ARM

    followed = follow_grid(run, run.saes)
    yield GRID_ARM, followed.prompts
    for (site, role), latents in followed.latents.items():
        yield latents_name(GRID_ARM, site, role), latents
    table = labelled(run, followed)
    stable = label_stability(run, table, followed)
    yield from {"transforms": table, "stability": stable}.items()
    yield from label_tables(run, table, followed).items()
    return label_figures(table, followed.grid, stable)


@stage("model", "prompts", "track", "grid", "transforms", reads=["model", "saes", "prompts", "identify"])
def transforms(run: RunContext) -> Made:
    """What labels rest on and do: probes, moving them (`patching.specificity`), MLPs (`concepts.mlp`)."""
    from iclens.schemas import TransformTable
    from iclens.study.concepts import mechanism_figures, mechanism_tables, probe_tables, saved_grid

    followed, table = saved_grid(run), run.table(TransformTable)
    yield from probe_tables(run, followed, table).items()
    tables = mechanism_tables(run, followed, table)
    yield from tables.items()
    return mechanism_figures(run, tables)


@stage("model", "prompts", "sweep", reads=["model"])
def sweep(run: RunContext) -> Made:
    """Residuals from run A into run B → SweepTable; and heads that bring the task (`patching.heads`)."""
    from iclens.study.patching import head_tables, sweep_figures, sweep_runs, sweep_tables

    runs = sweep_runs(run, run.config.sweep.seed)
    tables, best = sweep_tables(run, runs)
    heads = head_tables(run, runs, best["layer"])
    yield from (tables | heads).items()
    return sweep_figures(best, heads)


@stage("model", "prompts", "track", "patch", reads=["model", "saes"])
def patch(run: RunContext) -> Made:
    """Latents from run A into run B, alone (`patching.latents`), in sets (`patching.sets`) → PatchTable."""
    from iclens.study.patching import left_out, patch_figures, patch_tables, response_tables, wrong_task

    skipped, wrong = left_out(run), wrong_task(run)
    tables = patch_tables(run, skipped, wrong)
    yield from tables.items()
    yield from response_tables(run, tables["patches"], tables["sets"]).items()
    return patch_figures(tables["patches"], tables["sets"], skipped, wrong)


@stage("study", "model", "prompts", "track", "growth", "grid", "transforms", "dashboard",
       reads=["model", *STAGES[:-1]])  # fmt: skip
def dashboard(run: RunContext) -> Made:
    """Every table → pages (`iclens.pages`)."""
    from iclens.pages.site import write_pages

    yield from ()
    return write_pages(run, run.out)


FLOW = (saes, prompts, track, detect, shape, dose, growth, identify, transforms, sweep, patch, dashboard)
