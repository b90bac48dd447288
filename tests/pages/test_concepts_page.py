"""Does the page of concepts hold what a run's tables hold, verdicts in words included?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from iclens.pages import concepts as pages
from iclens.pages.concepts import CONCEPTS, gates_of, sparse_words, tuning_words, unconfirmed, verdict_words
from iclens.pages.findings import confirmed
from iclens.schemas import TABLES
from iclens.study.store import save_json

from .reading import Fake, Part, read, table_of

NAN = math.nan
SITE = "blocks.1.hook_mlp_out"
FAILED = "magnitude 0.712 above 0.65; AUROC 0.880 below 0.90"


def transform(concept: str, latent: int, label: str, auroc: float, **more: Any) -> dict[str, Any]:
    """A row of a TransformTable."""
    row = {"site": SITE, "role": "lab", "concept": concept, "latent": latent, "label": label, "auroc": auroc}
    return row | {"ci_low": auroc - 0.05, "ci_high": auroc + 0.05} | more


def effect(latent: int, belief: str, value: float, **more: Any) -> dict[str, Any]:
    """A row of a SpecificityTable on the concept `odd`."""
    row = {"site": SITE, "role": "lab", "way": "ablate all", "concept": "odd", "latent": latent}
    row |= {"belief": belief, "effect": value, "n_controls": 40, "n_active": 9, "control_p": 0.024}
    return row | dict.fromkeys(("margin", "margin_low", "margin_high"), NAN) | more


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


def page_of(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Part]:
    """The page of a run that holds these rows alone, and the split of a grid."""
    fake = Fake(folder)
    for name in ("transforms", "specificity", *rows):
        fake.save(name, *rows.get(name, []))
    save_json(fake.place("identify") / "grid.json", {"discovery": ["2x"] * 40, "held_out": ["3x"] * 22})
    return read(CONCEPTS, fake.source)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Part]:
    return page_of(tmp_path_factory.mktemp("run"), ROWS)


def frame(name: str, *rows: dict[str, Any]) -> Any:
    """Rows of a table as a frame."""
    return table_of(TABLES[name], *rows).df


def test_the_overview_counts_latents_of_the_concepts_that_were_asked(found: dict[str, Part]) -> None:
    assert "Latents were chosen on 40 tasks and judged on 22 others." in found["Overview"].words
    rows = {row[0]: row[2:] for row in found["Overview"].tables[0][1:]}
    assert rows == {
        "odd": ["1", "3", "0.960", "1 of 2"], "double": ["0", "0", "0.710", "– none moved"],
        "offset": ["0", "0", "–", "– no belief"],
    }  # fmt: skip


def test_verdicts_name_the_commonest_gate_or_the_best_latent(found: dict[str, Part]) -> None:
    assert (
        "1 latent granted the label, 3 candidates; the best of them below. What candidates failed most "
        "often: "
        "it answers to a confound (2 of 3)." in found["odd"].words
    )
    assert (
        "No latent is granted the label, and none is a candidate. The largest AUROC of 2 measured is 0.710 "
        "[0.660, 0.760], L1.mlp_out · 5 at lab: AUROC below 0.75 on held-out tasks." in found["double"].words
    )
    assert "Nothing can be said of this concept: no matched pairs." in found["offset"].words
    row = transform("odd", 5, "", NAN, discovery_auroc=0.6, reason="no task at AUROC 0.75")
    assert verdict_words(frame("transforms", row)) == (
        "No latent is granted the label, and none is a candidate: no task at AUROC 0.75."
    )
    only = transform("odd", 5, "odd", 0.96)
    assert verdict_words(frame("transforms", only)).startswith("1 latent granted the label, no candidate;")


def test_shown_are_the_latents_whose_tuning_was_kept(tmp_path: Path) -> None:
    fake = Fake(tmp_path)
    for name, rows in ROWS.items():
        fake.save(name, *rows)
    source = fake.source
    shown = pages.shown(source.rows("transforms"), source, "odd")
    kept = shown[["latent", "role", "label", "sum", "size"]]
    assert list(kept.itertuples(index=False, name=None)) == [
        (5, "lab", "odd", 1, 2), (6, "lab", "candidate", 0, 0),
    ]  # fmt: skip
    (panels,) = [pages.tuning_panels(source.rows("tuning_curves"), source, "odd")]
    assert [panel.title for panel in panels][:4] == ["by y", "by x", "by y − 2x", "by x and y"]
    assert panels[1].under == "No regression: 3 values, 8 needed." and panels[2].under == ""
    assert tuning_words(ROWS["tunings"][0]) == (
        "R² 0.900, in random order below 0.200; q 0.0100. A line alone explains 0.0500. Lost: 0.800 without "
        "parity."
    )
    rows = read(CONCEPTS, source)["Confusion with the other concepts"].tables[0]
    assert rows[0] == ["latent", "odd, own", "double", "offset"]
    assert [[cell.split()[0] for cell in row] for row in rows[1:]] == [
        ["L1.mlp_out", "0.960", "0.710", "–1"], ["L1.mlp_out", "0.880", "0.660", "–2"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("auroc", "verdict", "said"),
    [
        (0.99, "above dense", "(1 latent) beats the whole activation by 0.0100 [0, 0.0200]."),
        (0.97, "as dense", "latents minus whole −0.0100 [−0.0200, 0]."),
        (0.90, "below dense", "beats the best probe of latents (1 latent) by 0.0800 [0.0700, 0.0900]."),
    ],
)
def test_sparse_probes_lose_win_or_tie(auroc: float, verdict: str, said: str) -> None:
    rows = frame("probes", probed("latents", 1, auroc, verdict), probed("latents", -1, 0.95, "below dense"))
    assert sparse_words(rows.round(3)).endswith(said)


def test_probes_are_laid_out_by_size_or_say_why_they_cannot_be_compared(found: dict[str, Part]) -> None:
    row = probed("latents", 1, NAN) | {"reason": "matched pairs in 1 fold, 2 needed"}
    assert sparse_words(frame("probes", row)) == (
        "Latents and the whole activation cannot be compared: matched pairs in 1 fold, 2 needed."
    )
    assert found["How well it can be read at all"].tables[0][0][1:] == ["1", "8", "all"]
    missing = found["How well it can be read at all #2"].words
    assert "No probe was trained: no latent could be measured" in missing


def test_a_cause_is_specific_and_beyond_its_controls(found: dict[str, Part], tmp_path: Path) -> None:
    moved = found["ablate all set to 0 in run A, at that token of every example"]
    (rows,) = moved.tables
    assert rows[0] == ["latent", "confirmed?", "margin", "control p", "odd, own", "double"]
    assert [(row[0], row[1]) for row in rows[1:]] == [
        ("L1.mlp_out · 5 lab", "yes"), ("L1.mlp_out · 6 lab", "no double is moved more"),
        ("L1.mlp_out, all together lab", "no random latents move it as far"),
    ]  # fmt: skip
    assert rows[3][-1].startswith("–1") and "never active" in moved.words
    unnamed = ROWS | {"specificity": [effect(5, "odd", -0.9), effect(5, "double", 0.1)]}
    (rows,) = page_of(tmp_path, unnamed)[
        "ablate all set to 0 in run A, at that token of every example"
    ].tables
    assert rows[0][4:] == ["odd", "double"] and "no belief names this concept" in rows[1][1]


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
    assert unconfirmed(own) == why
    assert confirmed(frame("specificity", own)).empty is bool(why)  # the index says the same


def test_mechanism_is_laid_out_by_layer_and_source(found: dict[str, Part]) -> None:
    operands = found["M1 and M2. Are x and y there, each in a place of its own?"].tables[0]
    assert operands[0] == ["measure", "block 0", "block 1"] and operands[1][2].startswith("0.100")
    parity = found["M4. Parity: attention or MLP?"].tables[0]
    assert parity[1] == ["0", "−0.400 [0, 0]", "MLP"]
    assert found["M5. Is a latent’s size the model’s confidence?"].tables[0][1][-1] == "both"
    carried = found["M6. Does it reach later answers?"].tables[0]
    assert carried[0][3:5] == ["r², attention", "r², equal"]
    assert [cell.split()[0] for cell in carried[1][3:6]] == ["0.600", "0.300", "0.300"]
    assert [row[-1].split()[0] for row in found["Periods of a number"].tables[0][1:]] == ["–", "8"]


def test_a_run_without_findings_still_has_its_page(tmp_path: Path) -> None:
    found = page_of(tmp_path, {})
    for name in ("odd", "double", "offset"):
        assert "It was not asked of any latent." in found[name].words
    assert "another form" not in "".join(
        part.words for name, part in found.items() if not name.startswith("What MLPs")
    )


def test_gates_are_told_apart() -> None:
    assert gates_of(FAILED) == ["it answers to a confound", "the AUROC is too low"]
    assert gates_of("design confounds it with q, V 0.81 above 0.70; q 0.060 above 0.05") == [
        "the tasks tie the concept to a confound",
        "q is too high",
    ]
    assert gates_of("") == []
