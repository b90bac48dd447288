"""Does the page of concepts hold what a run's tables hold, verdicts in words included?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from iclens.dashboards.records.concepts import ConceptsView
from iclens.dashboards.records.site import SiteView
from iclens.dashboards.site import build_site
from iclens.results.read import Results
from iclens.schemas import TABLES, ProbeTable, SpecificityTable, TransformTable
from iclens.study.config import parse_study_config
from iclens.study.pages import concepts as study
from iclens.study.pages.transform_findings import confirmed
from iclens.study.run import FOLDERS, RunFolder
from iclens.study.store import save_json
from iclens.table import Table

NAN = math.nan
SITE = "blocks.1.hook_mlp_out"
STUDY = """
study: fake
model: {{folder: {folder}}}
saes: {{folder: {folder}}}
prompts: {{task: 2x+3, arms: [T, S]}}
transforms: {{concepts: [odd, double, offset], roles: [pre, lab]}}
"""
ZERO = {"int": 0, "float": 0.0, "str": "", "bool": False}
FAILED = "magnitude 0.712 above 0.65; AUROC 0.880 below 0.90"


def table_of(kind: type[Table], *rows: dict[str, Any]) -> Table:
    """A table with these rows; what a row leaves out is 0, empty or false."""
    filled = [{name: ZERO[column.kind] for name, column in kind.COLUMNS.items()} | row for row in rows]
    return kind({name: [row[name] for row in filled] for name in kind.COLUMNS})


def transform(concept: str, latent: int, label: str, auroc: float, **more: Any) -> dict[str, Any]:
    """A row of a TransformTable."""
    row = {"site": SITE, "role": "lab", "concept": concept, "latent": latent, "label": label, "auroc": auroc}
    return row | {"ci_low": auroc - 0.05, "ci_high": auroc + 0.05} | more


def effect(latent: int, belief: str, value: float, **more: Any) -> dict[str, Any]:
    """A row of a SpecificityTable on the concept `odd`."""
    row = {"site": SITE, "role": "lab", "way": "ablate all", "concept": "odd", "latent": latent}
    nothing = dict.fromkeys(("margin", "margin_low", "margin_high"), NAN)
    return (
        row
        | {"belief": belief, "effect": value, "n_controls": 40, "n_active": 9, "control_p": 0.024}
        | nothing
        | more
    )


def own_effect(latent: int, value: float, margin: float, **more: Any) -> dict[str, Any]:
    """The row of the belief that the concept names."""
    ends = {"margin": margin, "margin_low": margin - 0.2, "margin_high": margin + 0.2}
    sure = dict.fromkeys(("specific", "specific_standardised"), margin > 0.2)
    return effect(latent, "odd", value, own=True, rival="double", **sure, **ends) | more


def probed(name: str, k: int, auroc: float, verdict: str = "") -> dict[str, Any]:
    """A row of a ProbeTable, beside a dense probe of .98."""
    row = {"site": SITE, "role": "lab", "concept": "odd", "representation": name, "k": k, "auroc": auroc}
    less = {"minus_dense": auroc - 0.98, "minus_dense_low": auroc - 0.99, "minus_dense_high": auroc - 0.97}
    return row | less | {"verdict": verdict, "n_rows": 900, "n_tasks": 20}


AT = {"site": SITE, "role": "lab", "latent": 5}
ROWS: dict[str, list[dict[str, Any]]] = {
    "transforms": [
        transform("odd", 5, "odd", 0.96, worst_confound="double", confound_auroc=0.6, overlap=0.7),
        transform("odd", 6, "candidate", 0.88, reason=FAILED),
        transform("odd", 7, "candidate", 0.91, reason="design confounds it with ratio, V 0.81 above 0.70"),
        transform("odd", 8, "candidate", 0.92, reason="ratio 0.801 above 0.65"),
        transform("odd", 8, "candidate", 0.90, role="pre", reason="q 0.200 above 0.05"),
        transform("odd", 5, "candidate", 0.90, role="pre", reason="q 0.200 above 0.05"),
        transform("double", 5, "", 0.71, reason="AUROC below 0.75 on held-out tasks"),
        transform("double", 6, "", 0.66, reason="discovery AUROC below 0.75"),
        transform("offset", 5, "", NAN, discovery_auroc=NAN, reason="no matched pairs"),
    ],
    "masses": [{"site": SITE, "latent": 5, "kind": "detection", "lab_share": 0.98}],
    "tunings": [
        AT | {"of": "y", "r2": 0.9, "null_q95": 0.2, "q_value": 0.01, "linear_share": 0.05}
        | {"parity_share": 0.8, "best_period": 2.0, "best_share": 0.8},
        AT | {"of": "x", "r2": NAN, "reason": "3 values, 8 needed"},
    ],
    "tuning_curves": [
        AT | {"latent": n, "concept": "odd", "of": of, "value": v, "mean": float(v), "n_rows": 3}
        for n in (5, 6) for of in ("y", "x", "y-2x") for v in ((2, 1) if of != "y-2x" else (1, -9))
    ],
    "operand_maps": [
        AT | {"concept": "odd", "x": 10, "y": 20, "width": 10, "mean": 2.0, "n_rows": 4},
    ],
    "stability": [AT | {"concept": "odd", "other": name, "stable": name == "a"} for name in ("a", "b")],
    "probes": [
        probed("latents", 1, 0.7, "below dense"), probed("latents", 8, 0.9, "below dense"),
        probed("latents", -1, 0.95, "below dense"), probed("dense", -1, 0.98),
    ],
    "subspaces": [
        AT | {"representation": "latents", "of": "y", "period": 10.0, "r2": -0.1, "n_for_90": NAN},
        AT | {"representation": "latents", "of": "y", "period": 2.0, "r2": 0.6, "n_for_90": 8.0},
    ],
    "specificity": [
        own_effect(5, -0.9, 0.7), effect(5, "double", 0.2),
        own_effect(6, -0.1, -0.2), effect(6, "double", 0.3),
        own_effect(-1, -1.0, 0.5, control_p=0.2), effect(-1, "double", NAN, reason="never active"),
    ],
    "operands": [
        {"layer": layer, "measure": measure, "value": 0.1 * layer, "null": 0.01, "n_rows": 100}
        for layer in (0, 1) for measure in ("x decodable", "y decodable")
    ],
    "creation": [
        {"concept": "odd", "layer": layer, "source": source, "auroc": 0.9 if source == "mlp_out" else 0.5}
        | {"verdict": "created by the MLP", "attention_minus_mlp": -0.4, "larger": "MLP"}
        for layer in (0, 1) for source in ("attn_out", "mlp_out")
    ],
    "confidence": [
        {"site": SITE, "latent": 5, "concept": "odd", "over": "all rows", "r": 0.4, "verdict": "both"},
    ],
    "transport": [
        {"site": SITE, "latent": 5, "concept": "odd", "layer": 2, "weights": weights, "r2": r2}
        | {"attention_minus_equal": 0.3 if weights == "attention" else NAN, "lab_attention": 0.2}
        for weights, r2 in (("attention", 0.6), ("equal", 0.3))
    ],
}  # fmt: skip


def results_of(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> Results:
    """A run that holds these rows alone, and the split of a grid."""
    config = parse_study_config(STUDY.format(folder=folder), "fake.yaml")
    for name in study.TABLES:
        kind = TABLES[name]
        (folder / FOLDERS[kind.stage]).mkdir(exist_ok=True)
        table = table_of(kind, *rows[name]) if name in rows else kind.concat([])
        table.save(folder / FOLDERS[kind.stage] / kind.file)
    save_json(folder / FOLDERS["identify"] / "grid.json", {"discovery": ["2x"] * 40, "held_out": ["3x"] * 22})
    return Results(RunFolder(folder, config))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> ConceptsView:
    return study.concepts(results_of(tmp_path_factory.mktemp("run"), ROWS))


def test_concepts_are_those_that_were_asked_in_their_order(found: ConceptsView) -> None:
    assert [one.name for one in found.concepts] == ["odd", "double", "offset"]
    odd = found.concepts[0]
    assert odd.meaning == "y is odd" and "double" in odd.confounds
    assert found.tasks == "Latents were chosen on 40 tasks and judged on 22 others."


def test_verdict_counts_latents_once_and_names_the_commonest_gate(found: ConceptsView) -> None:
    odd = found.concepts[0]
    assert (odd.granted, odd.candidates, odd.best_auroc) == (1, 3, 0.96)
    assert odd.verdict == (
        "1 latent granted the label, 3 candidates; the best of them below. "
        "What candidates failed most often: "
        "it answers to a confound (2 of 3)."
    )


def test_a_concept_without_labels_names_its_best_latent_and_why_it_failed(found: ConceptsView) -> None:
    double, offset = found.concepts[1:]
    assert double.verdict == (
        "No latent is granted the label, and none is a candidate. The largest AUROC of 2 measured is 0.710 "
        "[0.660, 0.760], L1.mlp_out · 5 at lab: AUROC below 0.75 on held-out tasks."
    )
    assert double.latents == [] and double.confirmed == 0
    assert offset.verdict == "Nothing can be said of this concept: no matched pairs."
    assert offset.confirmed is None  # no belief names it


def test_a_concept_that_fails_before_it_is_confirmed_is_not_called_unanswerable() -> None:
    row = transform("odd", 5, "", NAN, discovery_auroc=0.6, reason="no task at AUROC 0.75")
    assert study.verdict_words(table_of(TransformTable, row).df) == (
        "No latent is granted the label, and none is a candidate: no task at AUROC 0.75."
    )


def test_shown_are_the_latents_whose_tuning_was_kept(found: ConceptsView) -> None:
    first, second = found.concepts[0].latents
    assert (first.key, first.role, first.label) == (("L1.mlp_out", 5), "lab", "odd")
    assert second.key == ("L1.mlp_out", 6)
    assert (first.works_at, first.lab_share, first.found_again, first.looked_in) == ("detection", 0.98, 1, 2)
    assert (second.works_at, second.looked_in) == ("", 0) and math.isnan(second.lab_share)
    assert (first.confound, first.confound_auroc, first.overlap) == ("double", 0.6, 0.7)
    assert [f.value for f in first.rivals[:2]] == [0.96, 0.71]
    assert [f.reason for f in second.rivals] == [
        FAILED,
        "discovery AUROC below 0.75",
        "not asked at this token",
    ]


def test_tuning_is_in_order_of_value_with_its_regression_in_words(found: ConceptsView) -> None:
    first, second = found.concepts[0].latents
    y, x, rest = first.tunings
    assert (y.of, y.values, y.means, rest.values) == ("y", [1, 2], [1.0, 2.0], [-9, 1])
    assert y.words == (
        "R² 0.900, in random order below 0.200; q 0.0100. "
        "A line alone explains 0.0500. Lost: 0.800 without parity."
    )
    assert (x.words, rest.words) == ("No regression: 3 values, 8 needed.", "")
    assert (first.boxes[0].x, first.boxes[0].y, second.boxes) == (10, 20, [])


def test_sparse_probes_are_compared_without_the_one_of_all_latents(found: ConceptsView) -> None:
    probes = found.concepts[0].probes
    assert probes is not None and probes.sizes == ["1", "8", "all"]
    assert probes.verdict == (
        "The whole activation beats the best probe of latents (8 latents) by 0.0800 [0.0700, 0.0900]."
    )
    assert [f.value for f in probes.rows[0].aurocs] == [0.7, 0.9, 0.95]
    assert found.concepts[1].probes is None and "could be measured" in found.concepts[1].probes_reason


@pytest.mark.parametrize(
    ("auroc", "verdict", "said"),
    [
        (0.99, "above dense", "(1 latent) beats the whole activation by 0.0100 [0, 0.0200]."),
        (
            0.97,
            "as dense",
            "(1 latent) and the whole activation are not told apart: latents minus whole "
            "−0.0100 [−0.0200, 0].",
        ),
    ],
)
def test_sparse_probes_may_win_or_tie(auroc: float, verdict: str, said: str) -> None:
    rows = table_of(ProbeTable, probed("latents", 1, auroc, verdict)).df.round(3)
    assert study.sparse_words(rows) == f"The best probe of latents {said}"


def test_probes_that_cannot_be_compared_say_why() -> None:
    row = probed("latents", 1, NAN) | {"reason": "matched pairs in 1 fold, 2 needed"}
    assert study.sparse_words(table_of(ProbeTable, row).df) == (
        "Latents and the whole activation cannot be compared: matched pairs in 1 fold, 2 needed."
    )


def test_a_cause_is_specific_and_beyond_its_controls(found: ConceptsView) -> None:
    (matrix,) = found.concepts[0].matrices
    assert (matrix.way, matrix.own, list(matrix.beliefs)) == ("ablate all", "odd", ["odd", "double"])
    assert [(row.name, row.why) for row in matrix.rows] == [
        ("L1.mlp_out · 5", ""),
        ("L1.mlp_out · 6", "double is moved more"),
        ("L1.mlp_out, all together", "random latents move it as far"),
    ]
    assert matrix.rows[2].effects[1].reason == "never active"
    assert (found.concepts[0].confirmed, found.concepts[0].moved) == (1, 2)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"specific": False}, "double is moved as much within the interval"),
        (
            {"specific_standardised": False},
            "a rival is moved as much in units of what random latents do to it",
        ),
        ({"control_p": 0.2, "n_controls": 4}, "4 controls are too few for p ≤ 0.05"),
        ({"control_p": NAN}, "no control was moved"),
        ({"margin": NAN, "specific": False, "reason": "no rival"}, "no rival"),
        ({"n_active": 0, "specific": False}, "not tested: it is active in none of these runs"),
        (
            {"specific": False, "control_p": 0.4},
            "double is moved as much within the interval; random latents move it as far",
        ),
    ],
)
def test_what_keeps_a_latent_from_being_confirmed(change: dict[str, Any], why: str) -> None:
    own = own_effect(5, -0.9, 0.7, reason="") | change
    assert study.unconfirmed(own) == why
    assert confirmed(table_of(SpecificityTable, own).df).empty is bool(why)  # the index says the same


def test_a_concept_without_a_belief_is_not_confirmed_by_anything() -> None:
    rows = [effect(5, "odd", -0.9), effect(5, "double", 0.1)]
    (matrix,) = study.moved_views(table_of(SpecificityTable, *rows).df)
    assert matrix.own == "" and matrix.rows[0].why.startswith("no belief names this concept")


def test_mechanism_is_laid_out_by_layer_and_source(found: ConceptsView) -> None:
    assert list(found.operands.layers) == [0, 1]
    assert [row.measure for row in found.operands.rows] == ["x decodable", "y decodable"]
    assert [f.value for f in found.operands.rows[0].figures] == [0.0, 0.1]
    (creation,) = found.creation
    assert creation.is_parity and [f.value for f in creation.rows[1].aurocs] == [0.5, 0.9]
    assert (creation.rows[0].difference.value, creation.rows[0].larger) == (-0.4, "MLP")
    assert found.sizes[0].r.value == 0.4 and found.sizes[0].verdict == "both"
    assert list(found.weights) == ["attention", "equal"]
    assert [f.value for f in found.carried[0].r2] == [0.6, 0.3]
    assert found.carried[0].difference.value == 0.3
    assert [row.enough for row in found.periods] == ["–", "8"]


def test_the_page_of_a_run_is_written(found: ConceptsView, tmp_path: Path) -> None:
    build_site(SiteView("Fake", "Why?", concepts=found), tmp_path / "site")
    source = (tmp_path / "site" / "concepts.html").read_text(encoding="utf-8")
    assert "the AUROC is too low" not in source and "it answers to a confound (2 of 3)" in source


def test_a_run_without_findings_still_has_its_page(tmp_path: Path) -> None:
    found = study.concepts(results_of(tmp_path, {}))
    assert [one.verdict for one in found.concepts] == [
        "Nothing can be said of this concept: it was not asked of any latent."
    ] * 3
    build_site(SiteView("Empty", "Why?", concepts=found), tmp_path / "site")
    assert (tmp_path / "site" / "concepts.html").is_file()


def test_gates_are_told_apart() -> None:
    assert study.gates_of(FAILED) == ["it answers to a confound", "the AUROC is too low"]
    assert study.gates_of("design confounds it with q, V 0.81 above 0.70; q 0.060 above 0.05") == [
        "the tasks tie the concept to a confound",
        "q is too high",
    ]
    assert study.gates_of("") == []
