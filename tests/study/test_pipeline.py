"""The whole study, small, on the built-in model; then again; then with one value changed."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import iclens
from iclens.core import RunError, SaeError, Site, StoppedError
from iclens.model.load import is_fingerprint
from iclens.results.read import Results
from iclens.schemas import LADDER, TABLES
from iclens.study.pipeline import INDEX, Event, Outcome, run_stage, run_study
from iclens.study.run import FOLDERS, STAGES, RunContext, find_run

from .conftest import Small


def states(outcome: Outcome) -> dict[str, str]:
    return {event.stage: event.state for event in outcome.events}


def test_every_stage_runs_and_leaves_a_whole_run(first: Outcome) -> None:
    assert states(first) == dict.fromkeys(STAGES, "done")
    assert first.index == first.run / FOLDERS["dashboard"] / INDEX
    assert first.index.is_file()
    names = {path.name for path in first.run.iterdir()}
    assert {"config.yaml", "card.json", "log.jsonl", "DONE"} < names
    assert not [name for name in names if name.endswith((".new", ".old"))]
    assert all((first.run / FOLDERS[kind.stage] / kind.file).is_file() for kind in TABLES.values())
    assert not [path for path in first.run.rglob("*") if path.suffix in (".pkl", ".pt", ".pickle")]


def test_how_training_went_is_a_page_and_no_input_of_any_stage(first: Outcome) -> None:
    page = first.run / FOLDERS["dashboard"] / "training.html"
    assert "L2.resid_post" in page.read_text(encoding="utf-8")
    assert not list((first.run / FOLDERS["saes"]).rglob("*.html"))


def test_interrupted_training_goes_on_where_it_was(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(event: Event) -> None:
        if event.found.get("step"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(StoppedError, match="stopped by SIGINT, checkpoint") as caught:
        run_study(small.config(), tmp_path, stop)
    assert caught.value.exit_code == 130
    (run,) = tmp_path.glob("small/*")
    assert sorted(path.name for path in run.iterdir()) == [
        "config.yaml",
        "trained.checkpoints",
        "trained.code",
    ]
    with monkeypatch.context() as patched:
        patched.setattr("iclens.study.imports._version", lambda name: "another")
        with pytest.raises(RunError, match=r"begun by other code or libraries.*Remove that folder"):
            run_stage(run, "saes", print)
    assert (run / "trained.checkpoints").is_dir()
    events: list[Event] = []
    run_stage(run, "saes", events.append)
    assert events[1].found["continued_at"] > 0
    names = {path.name for path in run.iterdir()}
    assert "01_saes" in names and not [name for name in names if name.startswith("trained")]


def test_the_log_says_seconds_and_findings_of_every_stage(first: Outcome) -> None:
    lines = [json.loads(line) for line in (first.run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    done = [line for line in lines if line["state"] == "done"]
    assert [line["stage"] for line in done][: len(STAGES)] == list(STAGES)
    assert all(line["seconds"] >= 0 and line["found"] for line in done)


def test_the_card_tells_what_was_run(first: Outcome) -> None:
    card = json.loads((first.run / "card.json").read_text(encoding="utf-8"))
    assert set(card["saes"]) == {"L1.mlp_out", "L2.resid_post"}
    assert all(len(fact["sae_id"]) == 16 for fact in card["saes"].values())
    assert is_fingerprint(card["model"])
    assert "model.safetensors" in card["model folder"]["files"]
    assert card["dtype"] == "float32"
    assert card["seeds"]["prompts.seed"] == 0
    assert card["versions"]["torch"][0].isdigit()


def test_tables_are_of_this_run(first: Outcome) -> None:
    results = Results(find_run(first.run))
    growth = results.table("growth")
    assert len(growth) == 2 * 2 * 192
    assert set(growth["site"]) == {"L1.mlp_out", "L2.resid_post"}
    assert set(growth["role"]) == {"pre", "lab"}
    assert (growth["n_prompts"] == 12).all(), "the discovery split"
    patches = results.table("patches")
    assert set(patches["site"]) == {"L2.resid_post"}
    beliefs = results.table("beliefs")
    exact = beliefs[(beliefs["belief"] == "exact") & (beliefs["arm"] == "T")]
    assert exact["n_seen"].tolist() == [0, 1, 2, 3, 4, 5]
    assert np.isfinite(exact["exact_mean"]).all()
    assert exact["exact_mean"].iloc[-1] > exact["exact_mean"].iloc[0]


def test_declared_beliefs_stand_in_every_table_of_beliefs(first: Outcome) -> None:
    results = Results(find_run(first.run))
    names = results.config.belief_names
    assert names[-2:] == ("against:word:size", "y>=50")
    for table in ("beliefs", "agreement", "dose", "dose_curves", "closure", "injections"):
        assert set(names) <= set(results.table(table)["belief"]), table
    beliefs = results.table("beliefs").query("arm == 'T' and belief == 'against:word:size'")
    assert beliefs["mean"].iloc[-1] > beliefs["mean"].iloc[0] > -3, "the task's own answer against a word"
    assert np.isfinite(beliefs["exact_mean"]).all()
    trajectory = iclens.open(first.run).trajectory("L2.resid_post", latent=3)
    assert set(names) <= set(trajectory.df.columns)


def test_every_head_and_layer_is_ablated_as_declared(first: Outcome) -> None:
    heads = Results(find_run(first.run)).table("heads")
    assert set(zip(heads["kind"], heads["place"], strict=True)) == {
        ("zero", "pre"), ("resample", "all positions"),
    }  # fmt: skip
    assert len(heads) == 2 * 6 * (4 + 1) * heads["metric"].nunique()
    site = (first.run / FOLDERS["dashboard"] / INDEX).parent
    page = (site / "patching.html").read_text(encoding="utf-8")
    assert "Heads set to zero, pre" in page and "Heads set to run B&#39;s, all positions" in page


def test_every_short_listed_latent_has_one_named_account(first: Outcome) -> None:
    results = Results(find_run(first.run))
    accounts, key = results.table("latent_accounts"), ["site", "role", "latent"]
    short = results.table("shapes")[key]
    assert (accounts.groupby(key)["named"].sum() == 1).all()
    assert set(map(tuple, accounts[key].to_numpy())) == set(map(tuple, short.to_numpy()))
    assert (accounts.groupby(key)["behind"].min() == 0).all()
    assert "the model's belief" in set(accounts["account"])
    at_label = set(accounts.loc[accounts["role"] == "lab", "arms"])
    assert all("D" not in arms.split(", ") for arms in at_label), "its next query has another context"


def test_doses_have_curves_and_growth_is_injected_whole_and_in_parts(first: Outcome) -> None:
    results = Results(find_run(first.run))
    curves, dose = results.table("dose_curves"), results.table("dose")
    key = ["site", "latent", "belief", "n_examples"]
    assert set(map(tuple, curves[key].to_numpy())) == set(map(tuple, dose[key].to_numpy()))
    assert (curves.loc[curves["dose"] == 0, "effect"].dropna() == 0).all()
    assert set(results.table("injections")["injected"]) == {
        "short-listed latents",
        "all latents", "error only", "full activation",
    }  # fmt: skip


def test_tracked_latents_match_the_table_of_growth(first: Outcome) -> None:
    """The paired slope, worked out here from the saved latents, is the one in the table."""
    results = Results(find_run(first.run))
    site, role = Site(2, "resid_post"), "lab"
    values = [results.latents(arm, site, role).dense() for arm in ("T", "S")]
    norms = results.decoder_norms[site.short]
    n = np.arange(6) - 2.5
    found = results.config.splits.discovery
    slope = (((values[0] - values[1]) * n).sum(axis=2) / (n**2).sum())[:, found].mean(axis=1) * norms
    growth = results.table("growth")
    rows = growth[(growth["site"] == site.short) & (growth["role"] == role)].sort_values("latent")
    np.testing.assert_allclose(rows["slope"].fillna(0.0), slope, rtol=1e-4, atol=1e-4)


def test_a_second_run_is_up_to_date_and_loads_no_model(
    small: Small, first: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("iclens.model.load.load_model", refuse)
    index = first.run / FOLDERS["dashboard"] / INDEX
    written = index.stat().st_mtime_ns
    again = small.run()
    assert again.run == first.run
    assert states(again) == dict.fromkeys(STAGES, "up to date")
    assert [event.state for event in small.events] == ["up to date"] * len(STAGES)
    assert index.stat().st_mtime_ns == written


def test_a_changed_value_redoes_only_what_depends_on_it(small: Small, first: Outcome) -> None:
    changed = small.run(("n_tested: 2", "n_tested: 1"))
    assert changed.run != first.run
    redone = {"patch", "dashboard"}
    assert states(changed) == {name: "done" if name in redone else "taken over" for name in STAGES}
    taken = next(event for event in changed.events if event.stage == "growth")
    assert first.run.name in taken.why
    assert (find_run(first.run).path / "DONE").is_file()
    tested = Results(find_run(changed.run)).table("patches").query("n_controls > 0")
    assert (tested.groupby("role")["latent"].nunique() <= 1).all()


def test_a_damaged_output_is_done_again_and_what_read_it_is_not(small: Small, first: Outcome) -> None:
    copy = first.run.with_name("29990101T000000Z-" + first.run.name.split("-")[1])
    shutil.copytree(first.run, copy)
    file = copy / FOLDERS["sweep"] / "sweep.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    for other in first.run.parent.iterdir():
        if other != copy:
            other.rename(small.folder / other.name)
    try:
        mended = run_stage(copy, "sweep", small.events.append)
        assert states(mended) == {"sweep": "done"}
        assert mended.events[0].why == "its outputs are damaged"
    finally:
        for moved in small.folder.glob("*Z-*"):
            moved.rename(first.run.parent / moved.name)
        shutil.rmtree(copy)


def test_one_stage_brings_what_it_reads_up_to_date(first: Outcome, small: Small) -> None:
    outcome = run_stage(first.run, "growth", small.events.append)
    assert list(states(outcome)) == ["saes", "prompts", "track", "detect", "shape", "dose", "growth"]
    with pytest.raises(RunError, match="Nearest: growth"):
        run_stage(first.run, "grow", small.events.append)


def test_another_model_redoes_the_stages_that_read_it(
    small: Small, first: Outcome, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study says which inputs changed, before the first stage does its work."""
    monkeypatch.setattr("iclens.study.inputs.model_files", lambda config: {"model.safetensors": "another"})

    def stop(*_: object) -> dict[str, object]:
        raise SaeError("stopped", "at the first stage", "As wanted.")

    monkeypatch.setattr("iclens.study.follow.sae_set", stop)
    with pytest.raises(SaeError):
        small.run()
    assert small.events[-1].stage == "saes"
    assert small.events[-1].why == "changed: model"
    assert (first.run / "01_saes" / "stage.json").is_file()


def test_the_pages_show_the_runs_own_figures(first: Outcome) -> None:
    from iclens.pages.growth import belief_lines, growth_counts, headline
    from iclens.pages.latents import best_roles, scaled_posterior
    from iclens.pages.site import assemble

    run = find_run(first.run)
    results = Results(run)
    site = assemble(results, RunContext(run, {}, print))
    growth, beliefs = results.table("growth"), results.table("beliefs")
    assert len(site.rows) == 2 * 192 and len(list(site.profiled)) == 6
    assert growth_counts(growth)["grows"].sum() == growth["verdict"].isin(LADDER[1:]).sum()
    own = beliefs.query("belief == 'exact' and arm == 'T'")
    lines = {line: rows["mean"].tolist() for line, rows in belief_lines(own, "T").groupby("line")}
    assert lines == {"task": own["mean"].tolist(), "exact": own["exact_mean"].tolist()}
    assert headline(site.source)[0].title == "exact"
    page = next(iter(site.profiled))
    place, latent, role = page.site.site, page.latent, page.site.clearest[page.latent]
    mine = growth[(growth["site"] == place.short) & (growth["latent"] == latent)]
    assert page.site.rows[latent]["q_value"] == pytest.approx(mine["q_value"].min(), nan_ok=True)
    assert [arm for arm, _ in page.site.arms[latent]] == list(results.arms)
    for arm, means in page.site.arms[latent]:
        saved = results.latents(arm, place, role).dense(np.array([latent]))
        norm = results.decoder_norms[place.short][latent]
        np.testing.assert_allclose(means, saved[0].mean(axis=0) * norm, rtol=1e-5)
    task = page.site.curves[latent, role][0]
    if (fitted := scaled_posterior(site.source, task)) is not None:
        exact = own["exact_mean"].to_numpy()
        line = np.polynomial.Polynomial.fit(exact, task.y, 1)(exact)
        np.testing.assert_allclose(fitted[0].y, line, atol=1e-4)
    concepts = best_roles(page.site.of("transforms", latent))
    assert not concepts["concept"].duplicated().any()
    profile = page.site.profile
    assert latent not in {*profile.close[latent].latents, *profile.together[latent].latents}


def test_a_study_can_end_before_its_saes(small: Small) -> None:
    outcome = run_study(small.config(("study: small", "study: begun")), small.runs, print, last="prompts")
    assert [event.stage for event in outcome.events] == ["prompts"]
    assert "saes" not in json.loads((outcome.run / "card.json").read_text(encoding="utf-8"))
