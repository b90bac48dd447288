"""Each verdict by hand, planted codes read in their direction, and the whole on the built-in model."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from iclens.concepts.language import Concept, Contrast, Rows, TaskGrid, concept, read_rows, rows_of, signed
from iclens.concepts.mlp import (
    END,
    NO_ATTENTION,
    NO_MLP,
    SITES,
    SOURCES,
    Asked,
    chosen_prompts,
    creation,
    larger,
    verdict,
)
from iclens.concepts.reading import input_groups
from iclens.core import TableError
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import record
from iclens.prompts.build import PromptSet, build_prompts, joined
from iclens.prompts.tasks import parse_task

FOLDER = Path(__file__).resolve().parents[2] / "checkpoints" / "icl-tiny"
DISCOVERY, HELD_OUT = ("x+1", "x+2", "2x", "2x+1"), ("x+3", "x+4", "2x+2", "2x+3")
GRID = TaskGrid({name: parse_task(name) for name in (*DISCOVERY, *HELD_OUT)}, DISCOVERY, HELD_OUT, 0)
DOUBLED = Contrast("doubled", lambda rows: signed(rows.slope == 2, rows.slope == 1))
ONE_STRATUM = Concept(DOUBLED, "the slope is 2", lambda rows: np.zeros(len(rows), dtype=np.int64), ())


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def said(**aurocs: float) -> str:
    names = dict(zip(("pre", "attn", "mid", "mlp", "post", "end", "no_mlp", "no_attn"), SOURCES, strict=True))
    plain = dict.fromkeys(SOURCES, 0.5)
    return verdict(plain | {names[name]: value for name, value in aurocs.items()})


@pytest.mark.parametrize(
    ("aurocs", "wanted"),
    [
        ({"mlp": 0.85, "mid": 0.59, "no_mlp": 0.59, "no_attn": 0.85}, "created by the MLP"),
        ({"mlp": 0.9, "mid": 0.2, "post": 0.9, "end": 0.9, "no_attn": 0.9}, "created by the MLP"),
        ({"mlp": 0.9, "mid": 0.6, "no_attn": 0.9}, "in the MLP's output, there before"),
        ({"mlp": 0.9, "mid": 0.9, "attn": 0.9}, "in attention's output, not before"),
        ({"pre": 0.6, "mlp": 0.9, "mid": 0.9, "attn": 0.9}, "in the MLP's output, there before"),
        ({"attn": 0.85, "mid": 0.85, "post": 0.85}, "in attention's output, not before"),
        ({"no_mlp": 0.9, "end": 0.9}, "absent"),
        ({"mlp": 0.01}, "absent"),
        ({"mlp": 0.9, "no_mlp": 0.6, "no_attn": 0.9}, "undecided: 0.60 at the end with the MLP ablated"),
        ({"mlp": 0.9, "no_attn": 0.84}, "undecided: 0.84 at the end with attention ablated"),
        ({"attn": 0.9, "pre": 0.7}, "undecided: in attn_out, but 0.70 in resid_pre"),
        ({"mlp": 0.84, "mid": 0.3}, "undecided: 0.84 in mlp_out and 0.50 in attn_out"),
        ({"pre": 0.9, "mid": 0.9, "post": 0.9}, "undecided: 0.50 in mlp_out and 0.50 in attn_out"),
    ],
)
def test_each_verdict(aurocs: dict[str, float], wanted: str) -> None:
    assert said(**aurocs).startswith(wanted)


def test_which_part_is_larger() -> None:
    assert larger(0.01, 0.2) == "attention"
    assert larger(-0.2, -0.01) == "MLP"
    assert larger(-0.1, 0.1) == larger(0.0, 0.1) == larger(-0.1, 0.0) == "neither"


# ---------------------------------------------------------------------------------------- planted codes


def planted_rows(rng: np.random.Generator, n_prompts: int = 12, n_examples: int = 6) -> Rows:
    task = np.repeat(GRID.names, n_prompts)
    x = rng.integers(0, 50, (len(task), n_examples)).astype(str)
    y = np.array([[parse_task(t).answer(v) for v in xs] for t, xs in zip(task, x, strict=True)])
    return rows_of(task, x, y, GRID.rules)


def decisions(asked: Asked, acts: np.ndarray) -> np.ndarray:
    return asked.decided(asked.trained(acts), acts)


def test_probes_have_a_direction_and_are_read_on_held_out_tasks(rng: np.random.Generator) -> None:
    rows = planted_rows(rng)
    asked = Asked.of(ONE_STRATUM, rows, GRID, 50, rng)
    noise = rng.normal(size=(len(rows), 10))
    code = np.where(rows.slope == 2, 1.0, -1.0)
    there, turned = noise.copy(), noise.copy()
    there[:, 3] += 2 * code
    turned[:, 3] += 2 * code * np.where(np.isin(rows.task, DISCOVERY), 1, -1)
    sources = {"resid_pre": noise, "attn_out": turned, "resid_mid": noise, "mlp_out": there}
    decided = {name: decisions(asked, acts) for name, acts in sources.items()}
    decided |= {name: decided["mlp_out"] for name in ("resid_post", END, NO_ATTENTION)}
    decided[NO_MLP] = decided["resid_pre"]
    table = pd.DataFrame(asked.figures(2, decided)).set_index("source")
    assert table.loc["mlp_out", "auroc"] > 0.95 and table.loc["attn_out", "auroc"] < 0.05
    assert 0.4 < table.loc["resid_pre", "auroc"] < 0.6
    assert (table["verdict"] == "created by the MLP").all() and (table["larger"] == "MLP").all()
    held = np.isin(rows.task, HELD_OUT)
    assert table["n_positive"].iloc[0] == (held & (rows.slope == 2)).sum()
    for name in SITES[:4]:
        wanted = roc_auc_score(rows.slope[held] == 2, decided[name])
        assert table.loc[name, "auroc"] == pytest.approx(wanted, abs=1e-6)
        assert table.loc[name, "ci_low"] <= table.loc[name, "auroc"] <= table.loc[name, "ci_high"]
    difference = table.loc["attn_out", "auroc"] - table.loc["mlp_out", "auroc"]
    assert table["attention_minus_mlp"].iloc[0] == pytest.approx(difference)
    assert table["attention_minus_mlp_low"].iloc[0] <= difference <= table["attention_minus_mlp_high"].iloc[0]


def test_the_difference_is_paired(rng: np.random.Generator) -> None:
    """Two sources that are the same differ by nothing in every resample, however wide their intervals."""
    rows = planted_rows(rng)
    asked = Asked.of(ONE_STRATUM, rows, GRID, 50, rng)
    acts = rng.normal(size=(len(rows), 4)) + 0.5 * (rows.slope[:, None] == 2)
    shared = decisions(asked, acts)
    first = asked.figures(0, dict.fromkeys(SOURCES, shared))[0]
    assert first["attention_minus_mlp_low"] == first["attention_minus_mlp_high"] == 0
    assert first["larger"] == "neither" and first["ci_high"] - first["ci_low"] > 0.01


def test_only_rows_of_one_stratum_are_compared(rng: np.random.Generator) -> None:
    """A source that says nothing but the magnitude of y seems to read the slope, unless y is matched."""
    rows = planted_rows(rng, n_prompts=20)
    matched = Concept(DOUBLED, "the slope is 2", lambda rows: (rows.y // 2).astype(np.int64), ())
    found = {}
    for name, asked_for in (("all", ONE_STRATUM), ("matched", matched)):
        asked = Asked.of(asked_for, rows, GRID, 20, rng)
        acts = rows.y[:, None] + rng.normal(size=(len(rows), 3))
        found[name] = asked.figures(0, dict.fromkeys(SOURCES, decisions(asked, acts)))[0]["auroc"]
    assert found["all"] > 0.65 and abs(found["matched"] - 0.5) < 0.08


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (lambda rows: signed(rows.slope == 7, rows.slope == 1), "positives in 0 discovery prompts"),
        (lambda rows: signed(rows.slope == 2, rows.task == "x+1"), "negatives in 0 held-out prompts"),
    ],
)
def test_an_empty_side_is_said(label, reason: str, rng: np.random.Generator) -> None:
    one = Concept(Contrast("lacking", label), "", ONE_STRATUM.stratum, ())
    asked = Asked.of(one, planted_rows(rng), GRID, 5, rng)
    assert asked.trained(np.zeros((3, 2))) is None
    rows = asked.unmeasured(1)
    assert [row["source"] for row in rows] == list(SOURCES)
    assert all(np.isnan(row["auroc"]) and row["verdict"] == "not measured" for row in rows)
    assert rows[0]["reason"].startswith(reason) and rows[0]["larger"] == ""


def test_without_a_matched_pair_nothing_is_measured(rng: np.random.Generator) -> None:
    apart = Concept(DOUBLED, "", lambda rows: rows.slope.astype(np.int64), ())
    assert "no held-out positive" in Asked.of(apart, planted_rows(rng), GRID, 5, rng).reason


# ------------------------------------------------------------------------------------- the built-in model


@pytest.fixture(scope="module")
def like() -> LanguageModel:
    return load_model(FOLDER)


@pytest.fixture(scope="module")
def prompts(like: LanguageModel) -> PromptSet:
    parts = [
        build_prompts(
            like.tokenizer, parse_task(t), arm="T", n_prompts=12, n_examples=10, seed=4,
            inputs=[str(x) for x in range(45)],
        )
        for t in GRID.names
    ]  # fmt: skip
    return joined(parts, "grid")


@pytest.fixture(scope="module")
def table(like: LanguageModel, prompts: PromptSet) -> pd.DataFrame:
    rows = read_rows(prompts, "lab", GRID.rules)
    asked = [concept("odd"), concept("double"), concept("numeric")]
    return creation(like, prompts, rows, asked, GRID, layers=(0, 2), seed=0, n_resamples=30).df


def test_every_source_of_every_layer_and_concept(table: pd.DataFrame) -> None:
    found = list(zip(table["concept"], table["layer"], table["source"], strict=True))
    names = ("odd", "double", "numeric")
    assert found == [(name, layer, source) for name in names for layer in (0, 2) for source in SOURCES]
    lacking = table[table["concept"] == "numeric"]
    assert lacking["auroc"].isna().all() and (lacking["verdict"] == "not measured").all()
    assert lacking["reason"].str.startswith("negatives in 0 discovery prompts").all()
    others = table[table["concept"] != "numeric"]
    assert (others["reason"] == "").all() and not others.isna().any().any()
    assert (others.groupby(["concept", "layer"])["verdict"].nunique() == 1).all()


def test_the_parity_of_a_label_is_in_its_own_embedding(table: pd.DataFrame) -> None:
    odd = table[(table["concept"] == "odd") & (table["layer"] == 0)].set_index("source")
    assert odd.loc["resid_pre", "auroc"] > 0.95
    assert odd["verdict"].iloc[0] != "created by the MLP"


def test_the_slope_is_not_in_the_embedding_of_a_label(table: pd.DataFrame) -> None:
    slope = table[table["concept"] == "double"].set_index(["layer", "source"])["auroc"]
    assert slope[0, "resid_pre"] < 0.65 and slope[2, "resid_post"] > 0.75
    assert slope[0, "end"] == slope[2, "end"]
    assert slope[0, NO_MLP] != slope[2, NO_MLP] != slope[2, END]


def test_what_an_ablation_turns_round_is_not_gone(
    like: LanguageModel, prompts: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every sign changed the end says as much; a probe trained before that would read 1 − AUROC."""

    def turned(model: Any, used: PromptSet, _site: Any, acts: np.ndarray, end: Any, where: Any, _batch: Any):
        return -record(model, used.tokens, [end], where)[end].reshape(len(acts), -1)

    monkeypatch.setattr("iclens.concepts.mlp._ablated", turned)
    rows = read_rows(prompts, "lab", GRID.rules)
    found = creation(like, prompts, rows, [concept("double")], GRID, layers=(1,), seed=0, n_resamples=5).df
    auroc = found.set_index("source")["auroc"]
    assert auroc[END] > 0.7
    assert auroc[NO_MLP] == pytest.approx(auroc[END], abs=1e-3)


def test_no_inputs_are_on_both_sides(prompts: PromptSet, rng: np.random.Generator) -> None:
    rows, groups = read_rows(prompts, "lab", GRID.rules), input_groups(prompts)
    chosen = chosen_prompts(prompts, rows, GRID, range(4, 10), 10**6, rng)
    discovery = np.isin(prompts.task[chosen], DISCOVERY)
    sides = set(groups[chosen[discovery]].tolist()), set(groups[chosen[~discovery]].tolist())
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(range(12))
    few = chosen_prompts(prompts, rows, GRID, range(4, 10), 8 * 3 * 6, rng)
    assert np.unique(prompts.task[few], return_counts=True)[1].tolist() == [3] * 8


def test_rows_of_other_prompts_are_refused(like: LanguageModel, prompts: PromptSet) -> None:
    rows = read_rows(prompts.select(np.arange(5)), "lab", GRID.rules)
    with pytest.raises(TableError, match="not these prompts"):
        creation(like, prompts, rows, [ONE_STRATUM], GRID, layers=(0,), seed=0)
