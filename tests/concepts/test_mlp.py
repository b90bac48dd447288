"""Verdicts by hand, planted codes and operands, and both measures on the built-in model."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from iclens.concepts.language import Concept, Contrast, Rows, TaskGrid, concept, read_rows, rows_of, signed
from iclens.concepts.mlp import (
    END,
    MEASURES,
    NO_ATTENTION,
    NO_MLP,
    OVERLAPS,
    SITES,
    SOURCES,
    Reader,
    Reading,
    Ridge,
    Subspaces,
    chosen_prompts,
    creation,
    dealt_inputs,
    held_out_r2,
    input_groups,
    larger,
    layer_groups,
    number_code,
    operands,
    overlap,
    verdict,
)
from iclens.core import SiteError, TableError
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import record
from iclens.prompts.build import PromptSet, build_prompts, joined
from iclens.prompts.tasks import parse_task

FOLDER = Path(__file__).resolve().parents[2] / "checkpoints" / "icl-tiny"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def like() -> LanguageModel:
    return load_model(FOLDER)


def prompts_of(
    like: LanguageModel, tasks: list[str], n_prompts: int, n_examples: int, inputs: list[str] | None = None
) -> PromptSet:
    """Prompts of tasks with equal seeds: the inputs are the same in all."""
    size = {"n_prompts": n_prompts, "n_examples": n_examples, "seed": 4, "inputs": inputs}
    parts = [build_prompts(like.tokenizer, parse_task(task), arm="T", **size) for task in tasks]
    return joined(parts, "grid")


# ------------------------------------------------------------------------------------------------- creation

DISCOVERY, HELD_OUT = ("x+1", "x+2", "2x", "2x+1"), ("x+3", "x+4", "2x+2", "2x+3")
GRID = TaskGrid({name: parse_task(name) for name in (*DISCOVERY, *HELD_OUT)}, DISCOVERY, HELD_OUT, 0)
DOUBLED = Contrast("doubled", lambda rows: signed(rows.slope == 2, rows.slope == 1))
ONE_STRATUM = Concept(DOUBLED, "the slope is 2", lambda rows: np.zeros(len(rows), dtype=np.int64), ())


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


def test_probes_have_a_direction_and_are_read_on_held_out_tasks(rng: np.random.Generator) -> None:
    rows = planted_rows(rng)
    asked = Reader(ONE_STRATUM, rows, GRID, 50, rng)
    noise = rng.normal(size=(len(rows), 10))
    code = np.where(rows.slope == 2, 1.0, -1.0)
    there, turned = noise.copy(), noise.copy()
    there[:, 3] += 2 * code
    turned[:, 3] += 2 * code * np.where(np.isin(rows.task, DISCOVERY), 1, -1)
    sources = {"resid_pre": noise, "attn_out": turned, "resid_mid": noise, "mlp_out": there}
    decided = {name: asked.decided(acts) for name, acts in sources.items()}
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
    asked = Reader(ONE_STRATUM, rows, GRID, 50, rng)
    acts = rng.normal(size=(len(rows), 4)) + 0.5 * (rows.slope[:, None] == 2)
    shared = asked.decided(acts)
    first = asked.figures(0, dict.fromkeys(SOURCES, shared))[0]
    assert first["attention_minus_mlp_low"] == first["attention_minus_mlp_high"] == 0
    assert first["larger"] == "neither" and first["ci_high"] - first["ci_low"] > 0.01


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (lambda rows: signed(rows.slope == 7, rows.slope == 1), "positives in 0 discovery prompts"),
        (lambda rows: signed(rows.slope == 2, rows.task == "x+1"), "negatives in 0 held-out prompts"),
    ],
)
def test_an_empty_side_is_said(label, reason: str, rng: np.random.Generator) -> None:
    one = Concept(Contrast("lacking", label), "", ONE_STRATUM.stratum, ())
    asked = Reader(one, planted_rows(rng), GRID, 5, rng)
    assert not len(asked.decided(np.zeros((3, 2))))
    rows = asked.figures(1, {})
    assert [row["source"] for row in rows] == list(SOURCES)
    assert all(np.isnan(row["auroc"]) and row["verdict"] == "not measured" for row in rows)
    assert rows[0]["reason"].startswith(reason) and rows[0]["larger"] == ""


def test_without_a_matched_pair_nothing_is_measured(rng: np.random.Generator) -> None:
    apart = Concept(DOUBLED, "", lambda rows: rows.slope.astype(np.int64), ())
    assert "no held-out positive" in Reader(apart, planted_rows(rng), GRID, 5, rng).reason


# ------------------------------------------------------------------------------------- the built-in model


@pytest.fixture(scope="module")
def prompts(like: LanguageModel) -> PromptSet:
    return prompts_of(like, list(GRID.names), 12, 10, [str(x) for x in range(45)])


@pytest.fixture(scope="module")
def created(like: LanguageModel, prompts: PromptSet) -> pd.DataFrame:
    rows = read_rows(prompts, "lab", GRID.rules)
    asked = [concept("odd"), concept("double"), concept("numeric")]
    return creation(like, prompts, rows, asked, GRID, layers=(0, 2), seed=0, n_resamples=30).df


def test_every_source_of_every_layer_and_concept(created: pd.DataFrame) -> None:
    found = list(zip(created["concept"], created["layer"], created["source"], strict=True))
    names = ("odd", "double", "numeric")
    assert found == [(name, layer, source) for name in names for layer in (0, 2) for source in SOURCES]
    lacking = created[created["concept"] == "numeric"]
    assert lacking["auroc"].isna().all() and (lacking["verdict"] == "not measured").all()
    assert lacking["reason"].str.startswith("negatives in 0 discovery prompts").all()
    others = created[created["concept"] != "numeric"]
    assert (others["reason"] == "").all() and not others.isna().any().any()
    assert (others.groupby(["concept", "layer"])["verdict"].nunique() == 1).all()


def test_the_slope_is_not_in_the_embedding_of_a_label(created: pd.DataFrame) -> None:
    slope = created[created["concept"] == "double"].set_index(["layer", "source"])["auroc"]
    assert slope[0, "resid_pre"] < 0.65 and slope[2, "resid_post"] > 0.75
    assert slope[0, "end"] == slope[2, "end"]
    assert slope[0, NO_MLP] != slope[2, NO_MLP] != slope[2, END]


def test_what_an_ablation_turns_round_is_not_gone(like, prompts, monkeypatch) -> None:
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


# ------------------------------------------------------------------------------------------------- operands

N_PROMPTS, N_EXAMPLES, WIDTH = 60, 20, 24
TOGETHER, X_HALVES, Y_HALVES = OVERLAPS


def rows_with(x: np.ndarray, y: np.ndarray) -> Rows:
    """Rows of one task with these numbers, [prompt example]."""
    task = parse_task("random")
    return rows_of(np.full(len(x), task.name), x.astype(str), y.astype(str), {task.name: task})


def drawn(rng: np.random.Generator, low: int = 0, high: int = 20) -> np.ndarray:
    return rng.integers(low, high, (N_PROMPTS, N_EXAMPLES))


def effects(value: np.ndarray, dims: slice, rng: np.random.Generator) -> np.ndarray:
    """Each value with a random vector of its own in some dimensions, [row d_model]."""
    table = np.zeros((value.max() + 1, WIDTH))
    table[:, dims] = rng.normal(size=table[:, dims].shape)
    return table[value.ravel()]


def overlaps(x: np.ndarray, y: np.ndarray, acts: np.ndarray, rng: np.random.Generator) -> dict:
    rows = rows_with(x, y)
    return Subspaces(rows, rows.prompt, 4, 6, rng).figures(acts)


@pytest.mark.parametrize("dims_of_y", [slice(4, 8), slice(0, 4)], ids=["apart", "together"])
def test_operands_overlap_where_they_share_dimensions(dims_of_y, rng) -> None:
    x, y = drawn(rng), drawn(rng)
    noise = 0.5 * rng.normal(size=(x.size, WIDTH))
    found = overlaps(x, y, effects(x, slice(0, 4), rng) + effects(y, dims_of_y, rng) + noise, rng)
    for name in (X_HALVES, Y_HALVES):
        assert found[name]["ci_low"] > 0.95 and found[name]["ci_low"] <= found[name]["value"]
        assert found[name]["null"] < 0.8 and found[name]["n_rows"] == x.size
    if dims_of_y.start:
        assert found[TOGETHER]["value"] < 0.05
    else:
        assert found[TOGETHER]["value"] > 0.9 > found[TOGETHER]["null"]
        assert abs(found[TOGETHER]["value"] - found[X_HALVES]["value"]) < 0.05


def test_an_x_that_stands_there_only_through_y_has_no_subspace(rng: np.random.Generator) -> None:
    """y follows x closely. Regressed on x alone, the activations would have an x-subspace: that of y."""
    x = drawn(rng)
    y = x + drawn(rng, 0, 4)
    acts = effects(y, slice(0, 4), rng) + 0.5 * rng.normal(size=(x.size, WIDTH))
    found = overlaps(x, y, acts, rng)
    assert found[Y_HALVES]["value"] > 0.9
    for name in (X_HALVES, TOGETHER):
        assert abs(found[name]["value"] - found[name]["null"]) < 0.15


def test_overlap_is_in_the_metric_of_the_covariance() -> None:
    """cos² = (uᵀΣv)² / (uᵀΣu · vᵀΣv) = .5 / 5; without Σ it would be .5, with its inverse .9."""
    u, v = np.array([[2.0], [0.0]]), np.array([[1.0], [1.0]])
    root = np.linalg.cholesky(np.diag([1.0, 9.0]))
    assert overlap(u, v, root) == pytest.approx(0.1)
    mixed = np.linalg.cholesky(np.array([[1.0, 0.5], [0.5, 4.0]]))
    assert overlap(u, np.array([[0.0], [1.0]]), mixed) == pytest.approx(1 / 16)
    plane = np.eye(3)[:, :2]
    assert overlap(plane, np.eye(3)[:, 1:], np.eye(3)) == pytest.approx(0.5)
    assert overlap(plane, plane @ np.array([[2.0, 1.0], [0.0, 3.0]]), np.eye(3)) == pytest.approx(1.0)


def test_too_few_values_are_said(rng: np.random.Generator) -> None:
    x, y = drawn(rng, 0, 4), drawn(rng)
    found = overlaps(x, y, rng.normal(size=(x.size, WIDTH)), rng)
    assert all(np.isnan(row["value"]) and "4 values of x" in row["reason"] for row in found.values())


def test_the_code_of_a_number() -> None:
    value = np.arange(50.0)
    code = number_code(value)
    # itself, five cosines, and four sines: that of period 2 is 0 everywhere
    assert code.shape == (50, 10)
    np.testing.assert_allclose(code.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose((code**2).mean(axis=0), 1)
    np.testing.assert_allclose(code[:, 1], (-1.0) ** value)
    np.testing.assert_allclose(code[:, 2], np.sqrt(2) * np.cos(2 * np.pi * value / 5), atol=1e-12)
    assert number_code(5 * value).shape == (50, 7)  # nothing of period 5, and only the cosine of period 10
    assert number_code(np.full(9, 3.0)).shape == (9, 0)


def test_r2_counts_groups_as_often_as_they_are_drawn(rng: np.random.Generator) -> None:
    group = np.array([2, 0, 1, 0, 2, 1, 0])
    target, guess = rng.normal(size=(2, 7, 3))
    times = np.array([[1.0, 1, 1], [2, 0, 1]])
    found = held_out_r2(guess, target, group, times)
    again = np.concatenate([np.flatnonzero(group == g) for g in (0, 0, 2)])
    for i, rows in enumerate((np.arange(7), again)):
        np.testing.assert_allclose(found[i], r2_score(target[rows], guess[rows], multioutput="raw_values"))


@pytest.mark.parametrize("n_rows", [40, 10])
def test_ridge_equals_scikit_learn(rng: np.random.Generator, n_rows: int) -> None:
    train, test = rng.normal(2, 3, size=(n_rows, 15)), rng.normal(size=(6, 15))
    targets = rng.normal(size=(n_rows, 2))
    scaler, found = StandardScaler().fit(train), Ridge(train, targets).predicted(test, np.array([1.0, 50]))
    for i, penalty in enumerate((1.0, 50.0)):
        wanted = SklearnRidge(penalty).fit(scaler.transform(train), targets[:, i])
        np.testing.assert_allclose(found[:, i], wanted.predict(scaler.transform(test)), atol=1e-8)


def test_prompts_of_equal_inputs_are_dealt_together(like: LanguageModel, rng: np.random.Generator) -> None:
    prompts = prompts_of(like, ["x+1", "random", "x//2"], 6, 8)
    groups = input_groups(prompts)
    assert np.bincount(groups).tolist() == [3] * 6
    fold = dealt_inputs(prompts.task, groups, 2, rng)
    assert all(len(set(fold[groups == group])) == 1 for group in range(6))
    assert np.bincount(fold).tolist() == [9, 9]


def read(x: np.ndarray, acts: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> dict:
    rows = rows_with(x, drawn(rng))
    every = np.arange(len(rows))
    return Reading(rows, groups[rows.prompt], every, "x", 5, rng).figures(acts)


def test_a_planted_number_is_read_and_a_permuted_one_is_not(rng: np.random.Generator) -> None:
    x = drawn(rng, 0, 50)
    noise = 0.3 * rng.normal(size=(x.size, WIDTH))
    code = number_code(x.ravel().astype(float))
    acts = code @ rng.normal(size=(code.shape[1], WIDTH)) + noise
    found = read(x, acts, np.arange(N_PROMPTS), rng)
    assert found["ci_low"] > 0.9 and found["value"] <= 1 and abs(found["null"]) < 0.02
    assert read(x, noise, np.arange(N_PROMPTS), rng)["value"] == pytest.approx(0, abs=0.02)


def test_inputs_that_prompts_share_are_not_learnt_by_heart(rng: np.random.Generator) -> None:
    """Three prompts show the same inputs, and activations tell which: folds of single prompts read x."""
    groups = np.repeat(np.arange(N_PROMPTS // 3), 3)
    x = drawn(rng, 0, 50)[groups]
    known = rng.normal(size=(N_PROMPTS // 3, N_EXAMPLES, 200))[groups].reshape(-1, 200)
    assert read(x, known, groups, rng)["value"] < 0.02
    assert read(x, known, np.arange(N_PROMPTS), rng)["value"] > 0.1


def test_layers_are_recorded_in_as_few_passes_as_memory_allows() -> None:
    assert list(layer_groups([0, 1, 2, 3, 4], 2**27)) == [[0, 1], [2, 3], [4]]
    assert list(layer_groups([3, 5], 2**40)) == [[3], [5]]


# ------------------------------------------------------------------------------------- the built-in model


def measured(like: LanguageModel, tasks: list[str], n_prompts: int = 24) -> pd.DataFrame:
    prompts = prompts_of(like, tasks, n_prompts, 12)
    rows = read_rows(prompts, "lab", {task: parse_task(task) for task in tasks})
    return operands(like, prompts, rows, layers=(1, 4), seed=0, n_null=4).df


@pytest.fixture(scope="module")
def table(like: LanguageModel) -> pd.DataFrame:
    tasks = ["x+1", "x+4", "2x", "2x+3", "50-x", "x//2", "random", "odd", "even"]
    return measured(like, tasks).set_index(["layer", "measure"])


def test_every_measure_of_every_layer(table: pd.DataFrame) -> None:
    assert table.index.tolist() == [(layer, name) for layer in (1, 4) for name in MEASURES]
    assert (table["reason"] == "").all() and not table.isna().any().any()
    there = table[table["value"] > 0.1]
    assert (there["ci_low"] <= there["value"]).all() and (there["value"] <= there["ci_high"]).all()
    assert table.loc[(1, "x decodable (y unrelated)"), "n_rows"] == 3 * 24 * 8
    assert table.loc[(1, "x and y overlap"), "n_rows"] == 9 * 24 * 8


def test_the_label_is_read_where_it_stands(table: pd.DataFrame) -> None:
    assert table.loc[(1, "y decodable"), "ci_low"] > 0.7
    assert table["null"][table.index.get_level_values(1).str.contains("decodable")].abs().max() < 0.03


def test_x_is_at_lab_and_gone_when_its_example_is_not_seen(table: pd.DataFrame) -> None:
    whole = table.loc[(1, "x decodable (y unrelated)")]
    assert whole["ci_low"] > 0.3
    for layer in (1, 4):
        gone = table.loc[(layer, "x decodable, lab→example cut (y unrelated)")]
        assert abs(gone["value"] - gone["null"]) < 0.03
    # where y follows from x, y and the task say something of x, whatever lab sees
    assert table.loc[(1, "x decodable, lab→example cut"), "ci_low"] > 0.02


def test_without_unrelated_tasks_or_draws_the_reason_is_said(like: LanguageModel) -> None:
    apart = measured(like, ["x+1", "2x", "50-x"]).set_index("measure").loc["x decodable (y unrelated)"]
    assert apart["value"].isna().all() and apart["reason"].str.startswith("0 rows of 0 draws").all()
    few = measured(like, ["x+1", "random", "odd"], n_prompts=7).set_index("measure").loc["x decodable"]
    assert few["value"].isna().all() and few["reason"].str.contains("of 7 draws of inputs").all()


def test_other_prompts_and_layers_are_refused(like: LanguageModel) -> None:
    prompts, rules = prompts_of(like, ["x+1"], 8, 6), {"x+1": parse_task("x+1")}
    rows = read_rows(prompts, "lab", rules)
    with pytest.raises(TableError, match="not these prompts"):
        operands(like, prompts.select(np.arange(4)), rows, layers=(1,), seed=0)
    with pytest.raises(TableError, match="from example 6 on"):
        operands(like, prompts, rows, layers=(1,), seed=0, first_example=6)
    with pytest.raises(SiteError, match="blocks 0 to 5"):
        operands(like, prompts, rows, layers=(6,), seed=0)
