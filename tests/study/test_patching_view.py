"""Do the pages of patching and of how a run was computed hold what its tables and records hold?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from iclens.dashboards.records.how import FIRED, NOT_ASKED, PASSED, SelfTest
from iclens.growth.verdict import Claim, Manifest
from iclens.results.read import Results
from iclens.schemas import TABLES
from iclens.study.config import parse_study_config
from iclens.study.pages import self_tests
from iclens.study.pages.how import how, words
from iclens.study.pages.patch_tables import Tables
from iclens.study.pages.patching import patching
from iclens.study.run import FOLDERS, RunFolder
from iclens.study.store import hash_json, save_json
from iclens.table import Table

NAN = math.nan
SITE = "blocks.2.hook_resid_post"
STUDY = """
study: fake
model: {{folder: {folder}}}
saes: {{train: {folder}/training of mine.yaml}}
prompts: {{task: 2x+3, arms: [T, S]}}
sweep: {{ladder_steps: 0}}
"""
ZERO = {"int": 0, "float": 0.0, "str": "", "bool": False}


def table_of(kind: type[Table], *rows: dict[str, Any]) -> Table:
    """A table with these rows; what a row leaves out is 0, empty or false."""
    filled = [{name: ZERO[column.kind] for name, column in kind.COLUMNS.items()} | row for row in rows]
    return kind({name: [row[name] for row in filled] for name in kind.COLUMNS})


class Fake:
    """A run folder whose tables are made up, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, parse_study_config(STUDY.format(folder=folder), "fake.yaml")

    @property
    def results(self) -> Results:
        """Its outputs, opened anew: tables are read once."""
        return Results(RunFolder(self.folder, self.config))

    def save(self, name: str, *rows: dict[str, Any]) -> None:
        """Write a table where its stage would."""
        kind = TABLES[name]
        self.place(kind.stage)
        table_of(kind, *rows).save(self.folder / FOLDERS[kind.stage] / kind.file)

    def place(self, stage: str) -> Path:
        """A stage's folder."""
        path = self.folder / FOLDERS[stage]
        path.mkdir(exist_ok=True)
        return path

    @property
    def tables(self) -> Tables:
        """Its tables."""
        return Tables(self.results)


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """A run without a stage."""
    return Fake(tmp_path)


def swept(
    role: str, layer: int, recipient: str, value: float, metric: str = "task on own x"
) -> dict[str, Any]:
    """A row of a SweepTable."""
    row = {"role": role, "layer": layer, "recipient": recipient, "metric": metric, "scale": "probability"}
    return row | {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "base": 0.02}


def chosen(kind: str, size: int, share: float, **more: Any) -> dict[str, Any]:
    """A row of a SetTable."""
    row = {"site": SITE, "role": "pre", "direction": "sufficiency", "kind": kind, "size": size}
    row |= {"chosen_for": "exact", "belief": "exact", "share_of_full": share, "control_share": NAN}
    return row | {"effect": 8 * share, "screen_share": share} | more


def test_a_run_without_a_stage_has_no_part_and_says_so_for_each(fake: Fake) -> None:
    view = patching(fake.results)
    assert view.sweeps == view.heads == view.sets == view.singles == view.ladders == []
    assert view.graded is None and view.direct is None and view.screens is None
    assert view.reasons["sweep"] == "Not run: the stage `sweep` has left no sweep.parquet."
    assert view.reasons["rungs"] == "Not run: the stage `patch` has left no ladder.parquet."
    view = patching(fake.results)
    assert list(view.sweeps) == list(view.heads) == []


def test_a_damaged_or_empty_table_is_told_from_a_missing_one(fake: Fake) -> None:
    (fake.place("sweep") / "sweep.parquet").write_bytes(b"nothing")
    fake.save("redundancy_ladder")
    reasons = patching(fake.results).reasons
    assert reasons["sweep"].startswith("Not shown: sweep.parquet is damaged")
    assert reasons["ladders"] == "Not run: the config asks for no step (`sweep.ladder_steps`)."


def test_an_error_of_another_kind_is_not_swallowed(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(results: Results, name: str) -> None:
        raise ZeroDivisionError(name)

    monkeypatch.setattr(Results, "table", broken)
    with pytest.raises(ZeroDivisionError):
        patching(fake.results)


def test_sweeps_and_losses_of_heads(fake: Fake) -> None:
    fake.save("sweep", swept("pre", 3, "S arm", 0.98), swept("pre", 6, "S arm", 0.99, "copy"))
    lost = {"kind": "zero", "place": "pre", "layer": 2, "effect": -0.9, "ci_low": -1.0, "ci_high": -0.8}
    fake.save(
        "heads",
        lost | {"head": 1, "metric": "task on own x"},
        lost | {"head": -1, "metric": "task on own x"},
        lost | {"head": 1, "metric": "effect on exact", "effect": -5.0},
        lost | {"head": 0, "metric": "effect on exact", "effect": 1.0},
    )
    at = {"layer": 2, "score_low": 1.0}
    fake.save("head_scores", at | {"head": 0, "attribution": 9.0}, at | {"head": 1, "attribution": 0.1})
    view = patching(fake.results)
    assert [(s.title, s.cells[0].value) for s in view.sweeps] == [
        ("Task applied to B's own x (run B: S arm)", 0.98),
        ("A's own answer copied (run B: S arm)", 0.99),
    ]
    cell = view.heads[0].cells[1]
    assert (cell.role, cell.value, cell.low, cell.high) == ("all", 0.9, 0.8, 1.0)
    assert [(row.name, row.loss.value) for row in view.strongest] == [("L2H1", -5.0), ("L2H0", 1.0)]
    fake.save("heads")
    assert [row.name for row in patching(fake.results).strongest] == ["L2H0", "L2H1"]


def test_joint_effects_and_the_ladder_in_words(fake: Fake) -> None:
    row = {"belief": "exact", "joint": -8.0}
    fake.save(
        "redundancy",
        row | {"ablated": "L0 L1", "index_low": -5.0, "index_high": -4.0},
        row | {"ablated": "L1 L2", "index_low": 1.0, "index_high": 2.0},
        row | {"ablated": "L2 L3", "index_low": 1.0, "index_high": 2.0, "reason": "saturated"},
        row | {"ablated": "L3 L4", "index_low": -1.0, "index_high": 1.0},
        row | {"ablated": "L4 L5", "index_low": NAN, "index_high": NAN},
    )
    step = {"unit": "layer", "kind": "zero", "place": "pre", "belief": "exact"}
    fake.save(
        "redundancy_ladder",
        step | {"step": 0, "first_layer": 3.0},
        step | {"step": 1, "ablated": "L2", "first_layer": NAN, "verdict": "backup"},
    )
    view = patching(fake.results)
    assert [joint.words for joint in view.joint] == [
        "they stand in for each other", "they need each other", "they cannot add up", "they add up",
        "undefined",
    ]  # fmt: skip
    assert view.ladders[0].verdict.startswith("Intact, layer 3 works first; without L2, no layer does. ")
    assert "later heads give back part" in view.ladders[0].verdict


def test_sets_hold_their_curves_controls_and_levels(fake: Fake) -> None:
    beside = {"n_controls": 50, "control_share": 0.01, "control_low": -0.02, "control_high": 0.03}
    other = {"site": "blocks.1.hook_mlp_out", "reason": "below 1 nat"}
    fake.save(
        "sets", chosen("greedy", 1, 0.2, **beside), chosen("greedy", 2, 0.6), chosen("all latents", 9, 0.97),
        chosen("full activation", 0, 1.0), chosen("greedy", 1, NAN, **other),
    )  # fmt: skip
    drawn, empty = patching(fake.results).sets
    assert [(line.name, line.curve.n_seen, line.curve.mean) for line in drawn.lines] == [
        ("greedy", [1, 2], [0.2, 0.6]),
        ("random sets, 95 % of them", [1], [0.01]),
    ]
    assert drawn.levels == [("all latents", 0.97)] and "Full activation: +8.00 nats." in drawn.caption
    assert not empty.lines and empty.reason == "No share is defined: below 1 nat."


def test_single_latents_are_the_largest_of_the_belief(fake: Fake) -> None:
    row = {"site": SITE, "role": "pre", "belief": "exact"}
    rows = [row | {"latent": i, "effect": (-1) ** i * float(i)} for i in range(20)]
    fake.save("patches", *rows, row | {"latent": 7, "belief": "odd", "effect": 99.0})
    (shown,) = patching(fake.results).singles
    assert [single.latent for single in shown.rows] == list(range(19, 4, -1))
    assert shown.caption == "The 15 of largest effect on exact, of 20 that differ between A and B."


def test_answers_by_x_with_their_fits(fake: Fake) -> None:
    curve = {"task": "2x+3", "site": SITE, "recipient": "S arm", "n_seen": 12, "patch": "A*"}
    point = curve | {"sd": NAN}
    fake.save(
        "responses",
        point | {"x": 0, "answer": "3", "mean": 3.5},
        point | {"x": 1, "answer": "odd", "mean": 5.0},
    )
    fake.save("response_fits", curve | {"slope": 1.5, "intercept": 3.5, "n_x": 2})
    view = patching(fake.results)
    (answers,) = view.responses
    assert (answers.title, answers.slope, answers.points.mean) == ("A*, not patched", 1.5, [3.5, 5.0])
    assert answers.answers.mean[0] == 3.0 and math.isnan(answers.answers.mean[1])
    assert view.grids["responses"].rows == [(0, "3", 3.5), (1, "odd", 5.0)]


def by_question(tests: list[SelfTest], words_: str) -> SelfTest:
    """The test whose question holds these words."""
    (found,) = [test for test in tests if words_ in test.question]
    return found


def test_identities_pass_fire_and_are_not_asked(fake: Fake) -> None:
    fake.save(
        "sweep", swept("pre", 0, "S arm", 0.02), swept("pre", 6, "S arm", 0.9, "copy"),
        swept("pre", 6, "zero examples", 0.8, "copy"),
    )  # fmt: skip
    tests = self_tests.identities(fake.tables)
    assert by_question(tests, "embedding at pre").verdict == PASSED
    apart = by_question(tests, "donor's own answer")
    assert apart.verdict == FIRED and "Largest difference 0.100, over 1 value." in apart.figure
    assert by_question(tests, "labels in the embedding").verdict == NOT_ASKED


def test_controls_fire_where_they_do_half_as_much(fake: Fake) -> None:
    row = {"site": SITE, "role": "pre", "latents": "1 2", "belief": "exact"}
    own = row | {"control": "own", "effect": 4.0}
    fake.save("patch_controls", own, row | {"control": "sign flip", "effect": -4.0},
              row | {"control": "wrong role x", "effect": 1.9},
              row | {"control": "wrong task x", "effect": 4.0, "reason": "it cannot tell"})  # fmt: skip
    assert self_tests.elsewhere(fake.tables).verdict == PASSED
    fake.save("patch_controls", own, row | {"control": "wrong role x", "effect": 2.0})
    assert self_tests.elsewhere(fake.tables).verdict == FIRED
    fake.save("patch_controls", own)
    assert self_tests.elsewhere(fake.tables).verdict == NOT_ASKED


def test_random_sets_are_asked_of_the_smallest_set_with_half_of_the_effect(fake: Fake) -> None:
    full, small = chosen("full activation", 0, 1.0), chosen("greedy", 1, 0.4, n_controls=50, control_p=0.5)
    half = chosen("greedy", 4, 0.6, n_controls=50, control_p=0.02)
    fake.save("sets", full, small, chosen("greedy", 8, 0.9, n_controls=50, control_p=0.9), half)
    found = self_tests.random_sets(fake.tables)
    assert found.verdict == PASSED and found.figure.startswith("4 latents at L2.resid_post pre")
    fake.save("sets", full, half | {"control_p": 0.06})
    assert self_tests.random_sets(fake.tables).verdict == FIRED
    fake.save("sets", full, small)
    assert self_tests.random_sets(fake.tables).verdict == NOT_ASKED


def test_a_manifest_that_was_changed_fires(fake: Fake) -> None:
    assert self_tests.manifest(fake.tables).verdict == NOT_ASKED
    file = fake.place("shape") / "manifest.json"
    frozen = Manifest((Claim("L2.resid_post", "pre", 7, 1.5, "grows"),), (0, 1), "f")
    save_json(fake.place("growth") / "growth.json", {"accounts": {}, "manifest": frozen.freeze(file)})
    assert self_tests.manifest(fake.tables).verdict == PASSED
    file.write_text(file.read_text(encoding="utf-8").replace('"pre",7', '"pre",8'), encoding="utf-8")
    changed = self_tests.manifest(fake.tables)
    assert changed.verdict == FIRED and "changed after it was frozen" in changed.figure


def test_a_stage_that_read_other_outputs_fires() -> None:
    outputs = {"a.parquet": "0123"}
    prompts = {"inputs": {}, "outputs": outputs}
    track = {"inputs": {"prompts": hash_json(outputs)}, "outputs": {}}
    assert self_tests.chained({"prompts": prompts, "track": track}).verdict == PASSED
    other = {"inputs": {"prompts": "ffff"}, "outputs": {}}
    assert self_tests.chained({"prompts": prompts, "track": other}).figure == "track read another prompts"
    assert self_tests.chained({"track": other, "prompts": None}).verdict == NOT_ASKED


def test_how_of_a_run_without_a_stage(fake: Fake) -> None:
    view = how(fake.results)
    assert [stage.state for stage in view.stages[:2]] == [
        "no record: 01_saes/stage.json is missing or damaged",
        "no record: 02_prompts/stage.json is missing or damaged",
    ]
    assert "no readable card.json" in view.reasons["card"] and not view.hashes and not view.measured
    assert {test.verdict for group in view.tests for test in group.tests} == {NOT_ASKED}
    assert "task: 2x+3" in view.config
    assert any(f"iclens train '{fake.folder}/training of mine.yaml'" in c.line for c in view.commands)


def test_how_reads_records_and_card(fake: Fake) -> None:
    record = {"seconds": 1.5, "key": "ab", "inputs": {"code": "cd"}, "found": {"n": 1234, "by": {"x": 0.5}}}
    record |= {"outputs": {"sweep.parquet": "ef"}, "taken_from": "earlier"}
    (fake.place("sweep") / "stage.json").write_text(json.dumps(record), encoding="utf-8")
    card = {"config": "c0", "iclens": {"version": "0.1.0", "commit": "abc+"}, "seeds": {"sweep.seed": 2}}
    save_json(fake.folder / "card.json", card)
    view = how(fake.results)
    (stage,) = [stage for stage in view.stages if stage.name == "sweep"]
    assert (stage.state, stage.seconds, stage.command) == ("taken over from earlier", 1.5, "iclens sweep RUN")
    assert [(fact.name, fact.value) for fact in stage.found] == [("n", "1,234"), ("by", "x 0.500")]
    assert [(seed.name, seed.value) for seed in view.seeds] == [("sweep.seed", "2")]
    committed = by_question([test for group in view.tests for test in group.tests], "code of a commit")
    assert committed.verdict == FIRED


def test_values_of_a_record_in_words() -> None:
    assert words({"a": 1, "b": [True, "x", 0.25]}) == "a 1, b True, x, 0.250"
