"""Planted sizes are named for what they are; partial correlations and intervals equal explicit ones."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from iclens.activations import LatentActs
from iclens.concepts.confidence import confidence, partial_correlations, resampled_covariances, standard_ranks
from iclens.concepts.language import Rows, concept, read_rows
from iclens.core import Site, SiteError, TableError
from iclens.prompts.build import PromptSet
from iclens.prompts.tasks import parse_task
from iclens.schemas import ConfidenceTable

from .conftest import draw, latents_of

SITE = Site(1, "mlp_out")
RULES = {
    name: parse_task(name)
    for name in ("2x+3", "2x", "3x+1", "x+5", "x", "4x+2", "5x", "50-x", "x//2", "odd", "random", "word:size")
}


@pytest.fixture(scope="module")
def shown() -> PromptSet:
    """Eight T-arm prompts of each rule."""
    return draw(list(RULES.values()), 8, seed=3)


@pytest.fixture(scope="module")
def rows(shown: PromptSet) -> Rows:
    return read_rows(shown, "lab", RULES)


@pytest.fixture(scope="module")
def log_prob(shown: PromptSet, rows: Rows) -> NDArray[np.floating]:
    """A confidence that leans on y, on the parity of y and on the example, beside noise of its own."""
    rng = np.random.default_rng(1)
    y = np.nan_to_num(rows.y)
    parts = (rankdata(y) / len(y) * 3, y % 2, rows.example / 4, rng.normal(size=len(rows)))
    return (sum(parts) - 9).reshape(shown.x.shape)


def residual(values: NDArray, given: NDArray) -> NDArray:
    design = np.column_stack([np.ones(len(values)), given])
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def sizes(rows: Rows, log_prob: NDArray[np.floating], rng: np.random.Generator) -> dict[str, NDArray]:
    """Planted latents, [row] each."""
    used = np.isfinite(rows.y) & (rows.example >= 1)
    facts = (rows.y, log_prob.ravel(), rows.x, rows.example, rows.y % 2)
    ranks = np.column_stack([rankdata(values[used]) for values in facts])
    own = [residual(ranks[:, i], np.delete(ranks, i, axis=1)) for i in (0, 1)]
    mix = np.zeros(len(rows))
    mix[used] = 10 + own[0] / own[0].std() + own[1] / own[1].std()
    y, noise = np.nan_to_num(rows.y), rng.normal(size=(2, len(rows)))
    seen = np.exp(log_prob.ravel() / 4)
    return {
        "confidence": seen * np.exp(0.1 * noise[0]),
        "magnitude": (1 + y) * np.exp(0.1 * noise[1]),
        "mix": mix,
        "parity": 1 + y % 2 + 0.01 * np.abs(noise[0]),
        "position": 1 + rows.example + 0.01 * np.abs(noise[1]),
        "constant": np.full(len(rows), 2.0),
        "silent": np.zeros(len(rows)),
        "half": np.where(noise[0] > 0, seen * np.exp(0.1 * noise[1]), 0),
    }


@pytest.fixture(scope="module")
def planted(rows: Rows, log_prob: NDArray[np.floating]) -> tuple[list[str], LatentActs]:
    held = sizes(rows, log_prob, np.random.default_rng(2))
    return list(held), latents_of(np.column_stack(list(held.values())))


@pytest.fixture(scope="module")
def table(
    planted: tuple[list[str], LatentActs], log_prob: NDArray[np.floating], rows: Rows
) -> ConfidenceTable:
    names, acts = planted
    chosen = [(SITE, i, "odd") for i in range(len(names))]
    return confidence([acts], chosen, log_prob, rows, seed=0)


def of(table: ConfidenceTable, planted: tuple[list[str], LatentActs], name: str, over: str = "all rows"):
    found = table.where((table["latent"] == planted[0].index(name)) & (table["over"] == over))
    assert len(found) == 1
    return {key: found[key][0] for key in found.COLUMNS}


def test_a_size_is_named_for_what_it_is(table: ConfidenceTable, planted) -> None:
    for over in ("all rows", "active rows"):
        assert of(table, planted, "confidence", over)["verdict"] == "confidence"
        assert of(table, planted, "magnitude", over)["verdict"] == "magnitude"
        assert of(table, planted, "mix", over)["verdict"] == "both"


def test_what_only_shares_a_cause_with_confidence_is_neither(table: ConfidenceTable, planted) -> None:
    for name in ("magnitude", "parity", "position"):
        row = of(table, planted, name)
        assert row["r"] > 0.25  # the plain correlation would be taken in
        assert abs(row["r_given_magnitude"]) < 0.1
    for name in ("parity", "position"):
        assert of(table, planted, name)["verdict"] == "neither"
        assert of(table, planted, name)["reason"].startswith("no partial correlation")


def test_the_label_is_held_fixed_only_for_its_own_concept(planted, log_prob, rows) -> None:
    names, acts = planted
    latent = names.index("parity")
    asked = [(SITE, latent, "odd"), (SITE, latent, "numeric"), (SITE, latent, "task identity")]
    found = confidence([acts], asked, log_prob, rows, seed=0)
    odd, numeric, identity = found["r_given_magnitude"][::2]
    assert abs(odd) < 0.1 and numeric > 0.3 and identity == pytest.approx(numeric)  # y is numeric throughout


def test_active_rows_are_those_where_it_is_active(table: ConfidenceTable, planted, rows: Rows) -> None:
    everything, active = (of(table, planted, "half", over) for over in ("all rows", "active rows"))
    used = np.isfinite(rows.x) & np.isfinite(rows.y) & (rows.example >= 1)
    held = planted[1].dense()[planted[0].index("half")].ravel()
    assert everything["n_rows"] == used.sum()
    assert active["n_rows"] == (held[used] > 0).sum() < 0.6 * used.sum()
    assert active["r_given_magnitude"] > 0.8 > 0.3 > everything["r_given_magnitude"]


def test_undefined_figures_are_nan_with_a_reason(table: ConfidenceTable, planted) -> None:
    for name, over, reason in (
        ("constant", "all rows", "activation the same in every row"),
        ("silent", "all rows", "activation the same in every row"),
        ("silent", "active rows", "0 rows in 0 prompts, 30 and 10 needed"),
    ):
        row = of(table, planted, name, over)
        assert row["reason"] == reason and row["verdict"] == ""
        assert all(np.isnan(row[key]) for key in ("r", "r_low", "r_given_magnitude", "magnitude_r_high"))


@pytest.mark.parametrize("over", ["all rows", "active rows"])
def test_correlations_equal_explicit_least_squares(table, planted, log_prob, rows, over) -> None:
    activation = planted[1].dense()[planted[0].index("half")].ravel()
    used = np.isfinite(rows.x) & np.isfinite(rows.y) & (rows.example >= 1)
    label = concept("odd").contrast.label(rows)
    used &= (activation > 0) | (over == "all rows")
    facts = [activation, log_prob.ravel(), rows.y, rows.x, rows.example]
    a, c, y, x, example = (rankdata(values[used]) for values in facts)
    others = np.column_stack([x, example, label[used] > 0, label[used] < 0])
    row = of(table, planted, "half", over)
    assert row["r"] == pytest.approx(spearmanr(a, c).statistic)
    for key, of_interest, given in (("r_given_magnitude", c, y), ("magnitude_r", y, c)):
        held = np.column_stack([others, given])
        wanted = np.corrcoef(residual(a, held), residual(of_interest, held))[0, 1]
        assert row[key] == pytest.approx(wanted, abs=1e-9)


def test_a_resample_is_the_drawn_prompts_rows_repeated() -> None:
    rng = np.random.default_rng(5)
    prompt = np.repeat([0, 1, 3, 4], [3, 2, 4, 3])  # prompt 2 has no row
    columns = standard_ranks(rng.normal(size=(12, 3)))
    times = np.array([[1.0, 1, 1, 1, 1], [2, 0, 1, 2, 0], [0, 0, 5, 0, 0]])
    found = resampled_covariances(columns, prompt, times)
    for drawn in (0, 1):
        repeated = np.repeat(columns, times[drawn][prompt].astype(int), axis=0)
        np.testing.assert_allclose(found[drawn], np.cov(repeated.T, bias=True), atol=1e-12)
    partial = partial_correlations(found, 1, np.array([2]))
    repeated = np.repeat(columns, times[1][prompt].astype(int), axis=0)
    wanted = np.corrcoef(residual(repeated[:, 0], repeated[:, 2]), residual(repeated[:, 1], repeated[:, 2]))
    assert partial[1] == pytest.approx(wanted[0, 1]) and np.isnan(partial[2])


def test_intervals_hold_the_truth_as_often_as_they_say(shown: PromptSet) -> None:
    # Prompts differ as wholes: rows are not independent, and an interval over rows would be too short.
    some = shown.select(np.arange(80))
    rows, rho, held = read_rows(some, "lab", RULES), 0.6, 0
    truth = 6 / np.pi * np.arcsin(rho / 2)
    for seed in range(120):
        rng = np.random.default_rng(seed)
        shape = (*some.x.shape, 2)
        both = np.sqrt(0.5) * (rng.normal(size=shape) + rng.normal(size=shape)[:, :1])
        mixed = rho * both[..., 0] + np.sqrt(1 - rho**2) * both[..., 1]
        acts = latents_of(np.exp(mixed).reshape(-1, 1))
        found = confidence([acts], [(SITE, 0, "odd")], both[..., 0], rows, seed=seed)
        held += found["r_low"][0] <= truth <= found["r_high"][0]
    assert 0.89 <= held / 120 <= 0.99


def test_on_one_task_y_is_x_and_no_verdict_is_given(shown: PromptSet) -> None:
    one = shown.select(np.flatnonzero(shown.task == "2x+3").repeat(2))
    rows = read_rows(one, "lab", RULES)
    rng = np.random.default_rng(0)
    acts = latents_of(rng.uniform(1, 2, size=(one.x.size, 1)))
    found = confidence([acts], [(SITE, 0, "double")], rng.normal(size=one.x.shape), rows, seed=0)
    assert np.isnan(found["magnitude_r"]).all() and np.isfinite(found["r_given_magnitude"]).all()
    assert found["verdict"].tolist() == ["", ""]
    assert found["reason"][0] == "activation or y is determined by what is held fixed"


def test_what_does_not_fit_is_refused(planted, log_prob: NDArray[np.floating], rows: Rows) -> None:
    acts = planted[1]
    with pytest.raises(SiteError, match=r"L2\.mlp_out: latents of L1\.mlp_out"):
        confidence([acts], [(Site(2, "mlp_out"), 0, "odd")], log_prob, rows, seed=0)
    with pytest.raises(SiteError, match="latent 8 of"):
        confidence([acts], [(SITE, 8, "odd")], log_prob, rows, seed=0)
    with pytest.raises(SiteError, match="concept 'od'"):
        confidence([acts], [(SITE, 0, "od")], log_prob, rows, seed=0)
    with pytest.raises(TableError, match="of the same prompts"):
        confidence([acts], [(SITE, 0, "odd")], log_prob[1:], rows, seed=0)
    broken = np.where(np.arange(log_prob.shape[1]) == 3, np.nan, log_prob)
    with pytest.raises(TableError, match="NaN among them"):
        confidence([acts], [(SITE, 0, "odd")], broken, rows, seed=0)
    with pytest.raises(TableError, match="latents at role 'lab'"):
        confidence([replace(acts, role="pre")], [(SITE, 0, "odd")], log_prob, rows, seed=0)
