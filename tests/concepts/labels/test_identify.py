import numpy as np
import pytest

from iclens.concepts.labels import EVERY_CONCEPT, Gates, identify, identify_all
from iclens.concepts.language import CONCEPTS, TaskGrid, concept, read_rows
from iclens.core import TableError
from iclens.schemas import TransformTable

ROLE = "lab"


@pytest.fixture(scope="module")
def codes(grid, prompts):
    """Name → activation [row]: latents that code a concept, and latents that only seem to."""
    rows = read_rows(prompts, ROLE, grid.rules)
    rng = np.random.default_rng(0)
    noise = lambda: 0.3 * np.abs(rng.standard_normal(len(rows)))  # noqa: E731
    is_ = {name: concept(name).contrast.label(rows) > 0 for name in ("double", "odd", "numeric", "offset")}
    y, held = np.nan_to_num(rows.y), np.isin(rows.task, grid.held_out)
    size = 0.05 * y
    return {
        "double": is_["double"] + noise(),
        "odd": is_["odd"] + noise(),
        "even": (concept("odd").contrast.label(rows) < 0) + noise(),
        "numeric": is_["numeric"] + noise(),
        "offset": is_["offset"] + noise(),
        "sparse odd": is_["odd"] * (rng.random(len(rows)) < 0.95) * (1 + noise()),
        "magnitude": size + noise(),
        "one task": (rows.task == next(t for t in grid.held_out if t.startswith("2x+"))) * (1 + noise()),
        "slope 2 or 3": np.isin(rows.slope, (2, 3)) + noise(),
        "slope at least 2": (rows.slope >= 2) + noise(),
        "double where discovered": (is_["double"] & ~held) + noise(),
        "odd and large": is_["odd"] * (1 + size) + noise(),
        "large if odd": is_["odd"] * (2 * size + noise()),
        "odd if small": is_["odd"] * (0.5 + np.maximum(4 - size, 0) + noise()),
        "weak odd": is_["odd"] * 0.3 + noise(),
        "dead": np.zeros(len(rows)),
    }


@pytest.fixture(scope="module")
def found(codes, prompts, grid, as_latents):
    acts = as_latents(np.column_stack(list(codes.values())), prompts.n_examples, ROLE)
    table = identify(acts, prompts, grid=grid, seed=0)
    assert len(table) == len(EVERY_CONCEPT) * len(codes)
    frame = table.df
    frame["name"] = np.array(list(codes))[frame["latent"]]
    return frame.set_index(["name", "concept"])


@pytest.mark.parametrize(
    ("name", "asked"),
    [(n, n) for n in ("double", "odd", "numeric", "offset")] + [("even", "odd"), ("sparse odd", "odd")],
)
def test_a_planted_code_is_labelled_and_nothing_else(found, name, asked) -> None:
    row = found.loc[(name, asked)]
    assert row["label"] == asked, row["reason"]
    assert row["reason"] == ""
    assert row["sign"] == (-1 if name == "even" else 1)
    assert row["ci_low"] <= row["auroc"] <= row["ci_high"]
    assert row["selectivity"] == pytest.approx(row["auroc"] - row["confound_auroc"])
    assert set(found.loc[name].drop(index=asked)["label"]) <= {"", "candidate"}


@pytest.mark.parametrize(
    "name", ["magnitude", "one task", "slope at least 2", "double where discovered", "dead"]
)
def test_what_only_resembles_a_concept_gets_no_label(found, name) -> None:
    assert not set(found.loc[name]["label"]) & {"double", "odd", "numeric", "offset"}
    assert (found.loc[name]["reason"] != "").all()


def test_three_x_is_not_double(found) -> None:
    row = found.loc[("slope 2 or 3", "double")]
    assert row["label"] == "candidate"
    assert row["worst_confound"] == "slope 3"
    assert row["confound_auroc"] > 0.9


def test_a_code_mixed_with_magnitude_is_a_candidate_and_says_why(found) -> None:
    for name in ("odd and large", "large if odd"):
        row = found.loc[(name, "odd")]
        assert row["label"] == "candidate"
        assert row["auroc"] > 0.95
        assert row["worst_confound"] == "magnitude"
        assert "magnitude" in row["reason"]


def test_a_weak_code_is_a_candidate_and_says_why(found) -> None:
    row = found.loc[("weak odd", "odd")]
    assert row["label"] == "candidate"
    assert row["reason"].startswith("AUROC")
    assert "below 0.90" in row["reason"]


def test_what_does_not_hold_on_held_out_tasks_is_not_even_a_candidate(found) -> None:
    row = found.loc[("double where discovered", "double")]
    assert row["discovery_auroc"] > 0.9
    assert row["auroc"] < 0.6
    assert row["label"] == ""
    assert row["reason"] == "AUROC below 0.75 on held-out tasks"


def test_a_dead_latent_is_at_chance(found) -> None:
    for _, row in found.loc["dead"].drop(index="task identity").iterrows():
        assert (row["auroc"], row["p_value"], row["confound_auroc"]) == (0.5, 0.5, 0.5)


def test_figures_are_of_held_out_tasks_only(found, grid, prompts) -> None:
    rows = read_rows(prompts, ROLE, grid.rules)
    used = np.isin(rows.task, grid.held_out) & (rows.example >= 4)
    label = concept("odd").contrast.label(rows)[used]
    decade, task = rows.y[used] // 10, rows.task[used]
    matched = np.isin(decade, decade[label > 0]) & np.isin(decade, decade[label < 0])
    row = found.loc[("odd", "odd")]
    sides = [matched & (label > 0), matched & (label < 0)]
    assert (row["n_positive"], row["n_negative"]) == tuple(side.sum() for side in sides)
    assert (row["n_positive_tasks"], row["n_negative_tasks"]) == tuple(len(set(task[s])) for s in sides)


@pytest.mark.parametrize("kind", ["rows", "prompts", "tasks"])
def test_null_latents_get_no_label(kind, grid, prompts, as_latents) -> None:
    """Noise that belongs to the row, the prompt or the task: 200 latents, no label and no candidate.

    A latent with a random level for each task is what task identity looks like.
    """
    rng = np.random.default_rng(11)
    n_rows = prompts.n_prompts * prompts.n_examples
    group = {
        "rows": np.arange(n_rows),
        "prompts": np.arange(n_rows) // prompts.n_examples,
        "tasks": np.unique(prompts.task, return_inverse=True)[1].repeat(prompts.n_examples),
    }[kind]
    level = rng.standard_normal((group.max() + 1, 200))[group]
    acts = as_latents(np.maximum(level + 0.1 * rng.standard_normal(level.shape) - 0.5, 0), prompts.n_examples)
    table = identify(acts, prompts, grid=grid, seed=0, n_resamples=50)
    assert not set(table["label"]) - {"", "candidate"}
    assert (table["label"] == "candidate").mean() < 0.01


def test_the_order_of_prompts_changes_nothing_but_the_bootstrap(codes, grid, prompts, as_latents) -> None:
    values = np.column_stack(list(codes.values()))
    order = np.random.default_rng(2).permutation(prompts.n_prompts)
    moved = values.reshape(prompts.n_prompts, prompts.n_examples, -1)[order].reshape(values.shape)
    one, two = (
        identify(as_latents(v, prompts.n_examples), p, CONCEPTS, grid=grid, seed=0, n_resamples=20)
        for v, p in ((values, prompts), (moved, prompts.select(order)))
    )
    for column in ("auroc", "discovery_auroc", "confound_auroc", "p_value", "q_value"):
        np.testing.assert_allclose(one[column], two[column], atol=1e-12)
    again = identify(
        as_latents(values, prompts.n_examples), prompts, CONCEPTS, grid=grid, seed=0, n_resamples=20
    )
    assert again.df.equals(one.df)


def test_multiplicity_is_over_everything_identified_together(codes, grid, prompts, as_latents) -> None:
    pairs = [np.column_stack([codes[name], codes["dead"]]) for name in ("odd", "dead")]
    parts = [as_latents(values, prompts.n_examples, ROLE, layer) for layer, values in enumerate(pairs)]
    together = identify_all(parts, prompts, CONCEPTS, grid=grid, seed=0, n_resamples=20)
    alone = identify(parts[0], prompts, CONCEPTS, grid=grid, seed=0, n_resamples=20)
    first = together.where(together["site"] == "blocks.0.hook_mlp_out")
    np.testing.assert_array_equal(first["p_value"], alone["p_value"])
    for table, tests in ((together, 4 * len(CONCEPTS)), (alone, 2 * len(CONCEPTS))):
        smallest = table["p_value"].argmin()
        assert table["q_value"][smallest] / table["p_value"][smallest] == pytest.approx(tests)


def test_too_few_prompts_give_nan_and_the_reason(codes, grid, prompts, as_latents) -> None:
    wordless = np.flatnonzero([grid.rules[name].answers == "number" for name in prompts.task.tolist()])
    values = np.column_stack([codes["odd"], codes["numeric"]]).reshape(prompts.n_prompts, -1, 2)[wordless]
    acts = as_latents(values.reshape(-1, 2), prompts.n_examples)
    table = identify(acts, prompts.select(wordless), grid=grid, seed=0, n_resamples=20)
    numeric = table.where(table["concept"] == "numeric")
    assert np.isnan(numeric["auroc"]).all()
    assert np.isnan(numeric["q_value"]).all()
    assert set(numeric["label"]) == {""}
    assert set(numeric["reason"]) == {"negatives in 0 discovery prompts, 5 needed"}
    assert table.where((table["concept"] == "odd") & (table["latent"] == 0))["label"].tolist() == ["odd"]


def test_gates_are_arguments(codes, grid, prompts, as_latents) -> None:
    acts = as_latents(codes["weak odd"][:, None], prompts.n_examples)
    lenient = identify(acts, prompts, [concept("odd")], grid=grid, seed=0, gates=Gates(auroc=0.76, lower=0.7))
    assert lenient["label"].tolist() == ["odd"]


def test_table_is_kept_as_it_was(found, codes, grid, prompts, as_latents, tmp_path) -> None:
    acts = as_latents(np.column_stack([codes["odd"], codes["weak odd"]]), prompts.n_examples)
    table = identify(acts, prompts, grid=grid, seed=0, n_resamples=20)
    table.save(tmp_path / "transforms.parquet")
    assert TransformTable.load(tmp_path / "transforms.parquet").df.equals(table.df)
    assert len(identify_all([], prompts, grid=grid, seed=0)) == 0


def test_latents_of_other_prompts_are_refused(codes, grid, prompts, as_latents) -> None:
    acts = as_latents(codes["odd"][: -prompts.n_examples, None], prompts.n_examples)
    with pytest.raises(TableError, match="latents of `prompts` themselves"):
        identify(acts, prompts, grid=grid, seed=0)


def test_a_prompt_of_a_task_outside_the_grid_is_refused(codes, grid, prompts, as_latents) -> None:
    small = TaskGrid({name: grid.rules[name] for name in ("2x", "3x+1")}, ("2x",), ("3x+1",), 0)
    acts = as_latents(codes["odd"][:, None], prompts.n_examples)
    with pytest.raises(TableError, match="not in the grid"):
        identify(acts, prompts, grid=small, seed=0)


def test_auroc_is_against_matched_negatives_of_held_out_tasks(found, codes, grid, prompts) -> None:
    """Counted again with a loop over decades; unmatched, larger y would pass for a larger slope."""
    rows = read_rows(prompts, ROLE, grid.rules)
    label = concept("double").contrast.label(rows)
    used = (label != 0) & np.isin(rows.task, grid.held_out) & (rows.example >= 4)
    z, y, positive = codes["magnitude"].astype(np.float32)[used], rows.y[used], label[used] > 0
    won, pairs = 0.0, 0
    for decade in range(30):
        inside = (y >= 10 * decade) & (y < 10 * decade + 10)
        p, n = z[inside & positive], z[inside & ~positive]
        won += (p[:, None] > n).sum() + (p[:, None] == n).sum() / 2
        pairs += p.size * n.size
    row = found.loc[("magnitude", "double")]
    assert row["auroc"] == pytest.approx(won / pairs if row["sign"] > 0 else 1 - won / pairs, abs=1e-12)
    unmatched = (z[positive][:, None] > z[~positive]).mean()
    assert abs(unmatched - 0.5) > 2 * abs(won / pairs - 0.5)


def test_a_confound_counts_in_either_direction(found) -> None:
    row = found.loc[("odd if small", "odd")]
    assert (row["label"], row["worst_confound"]) == ("candidate", "magnitude")
    assert row["confound_auroc"] > 0.65


def test_interval_is_wider_when_the_noise_belongs_to_prompts(grid, prompts, as_latents) -> None:
    rows = read_rows(prompts, ROLE, grid.rules)
    rng = np.random.default_rng(8)
    noise = rng.standard_normal((len(rows), 2))
    noise[:, 0] = rng.standard_normal(prompts.n_prompts)[rows.prompt]
    values = np.maximum((concept("double").contrast.label(rows) > 0)[:, None] + noise + 2, 0)
    acts = as_latents(values, prompts.n_examples)
    table = identify(acts, prompts, [concept("double")], grid=grid, seed=0)
    of_prompt, of_row = table["ci_high"] - table["ci_low"]
    assert of_prompt > 1.5 * of_row
    assert table["p_value"][0] > table["p_value"][1]
