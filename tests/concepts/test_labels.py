"""Planted codes are labelled, what resembles them is not; matches in other SAEs; detection and execution."""

import numpy as np
import pytest
from scipy.sparse import csc_array

from iclens.concepts.labels import (
    EVERY_CONCEPT,
    TASK_IDENTITY,
    Gates,
    best_matches,
    best_of,
    granted,
    identify,
    role_mass,
    stability,
)
from iclens.concepts.language import CONCEPTS, TaskGrid, concept, read_rows
from iclens.core import TableError
from iclens.schemas import TransformTable

ROLE = "lab"


# ------------------------------------------------------------------------------------------ identification


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


@pytest.mark.parametrize(
    ("name", "asked", "worst", "reason"),
    [
        ("slope 2 or 3", "double", "slope 3", "slope 3"),
        ("odd and large", "odd", "magnitude", "magnitude"),
        ("large if odd", "odd", "magnitude", "magnitude"),
        ("odd if small", "odd", "magnitude", "magnitude"),  # a confound counts in either direction
        ("weak odd", "odd", None, "AUROC 0."),
    ],
)
def test_a_code_that_fails_a_gate_is_a_candidate_and_says_why(found, name, asked, worst, reason) -> None:
    row = found.loc[(name, asked)]
    assert row["label"] == "candidate" and reason in row["reason"]
    if worst is None:
        assert row["reason"].startswith("AUROC") and "below 0.90" in row["reason"]
    else:
        assert row["worst_confound"] == worst and row["confound_auroc"] > 0.65


def test_what_does_not_hold_on_held_out_tasks_is_not_even_a_candidate(found) -> None:
    row = found.loc[("double where discovered", "double")]
    assert row["discovery_auroc"] > 0.9
    assert row["auroc"] < 0.6
    assert row["label"] == ""
    assert row["reason"] == "AUROC below 0.75 on held-out tasks"


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


def test_multiplicity_is_over_everything_identified_together(codes, grid, prompts, as_latents) -> None:
    pairs = [np.column_stack([codes[name], codes["dead"]]) for name in ("odd", "dead")]
    parts = [as_latents(values, prompts.n_examples, ROLE, layer) for layer, values in enumerate(pairs)]
    together = identify(parts, prompts, CONCEPTS, grid=grid, seed=0, n_resamples=20)
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
    assert len(identify([], prompts, grid=grid, seed=0)) == 0


def test_gates_are_arguments(codes, grid, prompts, as_latents) -> None:
    acts = as_latents(codes["weak odd"][:, None], prompts.n_examples)
    lenient = identify(acts, prompts, [concept("odd")], grid=grid, seed=0, gates=Gates(auroc=0.76, lower=0.7))
    assert lenient["label"].tolist() == ["odd"]


def test_other_prompts_and_tasks_outside_the_grid_are_refused(codes, grid, prompts, as_latents) -> None:
    acts = as_latents(codes["odd"][: -prompts.n_examples, None], prompts.n_examples)
    with pytest.raises(TableError, match="latents of `prompts` themselves"):
        identify(acts, prompts, grid=grid, seed=0)
    small = TaskGrid({name: grid.rules[name] for name in ("2x", "3x+1")}, ("2x",), ("3x+1",), 0)
    acts = as_latents(codes["odd"][:, None], prompts.n_examples)
    with pytest.raises(TableError, match="not in the grid"):
        identify(acts, prompts, grid=small, seed=0)


# ------------------------- for every concept a latent that answers to what it must not be mistaken for

PLANTED = {
    "double: 3x": lambda r: r.slope == 3,
    "double: x + k with the same y": lambda r: (r.slope == 1) | (r.slope == 2),
    "double: a band of y": lambda r: (r.y >= 20) & (r.y < 60),
    "double: x small for its y": lambda r: r.y > 2.5 * r.x,
    "odd: 2x+3 alone, where y is always odd": lambda r: r.task == "2x+3",
    "odd: tasks whose y is always odd": lambda r: (r.slope % 2 == 0) & (r.offset % 2 == 1),
    "odd: last digit 5 or more, and odd": lambda r: (r.y % 10 >= 5) & (r.y % 2 == 1),
    "odd: last digit 1 or 3": lambda r: np.isin(r.y % 10, (1, 3)),
    "odd: x odd": lambda r: r.x % 2 == 1,
    "numeric: a number is the input": lambda r: r.numeric_x,
    "numeric: a large number": lambda r: r.numeric_y & (np.nan_to_num(r.y) > 30),
    "offset: y far above x": lambda r: r.y - r.x > 20,
    "offset: small x, large y": lambda r: (r.x < 10) & (r.y > 10),
    "difference: y large": lambda r: r.y > 50,
    "difference: x small": lambda r: r.x < 15,
    "ratio: x small": lambda r: r.x < 15,
    "magnitude: x large": lambda r: r.x > 25,
    "task identity: one value": lambda r: r.y == 5,
    "task identity: one slope": lambda r: r.slope == 2,
    "task identity: one offset": lambda r: r.offset == 7,
}
"""Latent → where it is active [row]; named by the concept that it must not be called."""


@pytest.fixture(scope="module")
def mistaken(grid, many_prompts, as_latents):
    prompts = many_prompts
    rows = read_rows(prompts, "lab", grid.rules)
    active = {name: active(rows) for name, active in PLANTED.items()}
    noise = 0.3 * np.abs(np.random.default_rng(5).standard_normal((len(rows), len(active))))
    own = np.flatnonzero(rows.task == grid.held_out[0])
    alone = np.zeros((len(rows), 1))
    alone[own] = 1
    values = np.column_stack([*active.values(), alone]) + np.column_stack([noise, 0.1 * noise[:, :1]])
    frame = identify(as_latents(values, prompts.n_examples, "lab"), prompts, grid=grid, seed=0).df
    frame["name"] = np.array([*active, "identity of one task"])[frame["latent"]]
    return frame.set_index(["name", "concept"])


@pytest.mark.parametrize("name", PLANTED)
def test_what_only_seems_a_concept_is_not_given_the_label_and_the_reason_says_why(mistaken, name) -> None:
    row = mistaken.loc[(name, name.split(":")[0])]
    assert row["label"] in ("", "candidate"), row["auroc"]
    assert row["reason"]


def test_the_identity_of_a_task_is_told_from_its_values(mistaken, grid) -> None:
    row = mistaken.loc[("identity of one task", "task identity")]
    assert (row["label"], row["of"], row["reason"]) == ("task identity", grid.held_out[0], "")
    others = mistaken.loc["identity of one task"].drop(index="task identity")
    assert set(others["label"]) <= {"", "candidate"}


def test_a_task_identity_says_which_rival_it_fell_to(mistaken) -> None:
    assert mistaken.loc[("task identity: one slope", "task identity")]["worst_confound"] in ("the slope", "")
    assert "no task" in mistaken.loc[("task identity: one value", "task identity")]["reason"]


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_latents_of_many_tasks_are_the_identity_of_none(share, grid, many_prompts, as_latents) -> None:
    """Active on a random set of tasks: the best of them is told from the rest, and so is the next."""
    rng = np.random.default_rng(7)
    names, task = np.unique(many_prompts.task, return_inverse=True)
    on = rng.random((len(names), 200)) < share
    level = (on * (1 + rng.random(on.shape)))[task].repeat(many_prompts.n_examples, axis=0)
    values = level * (1 + 0.2 * np.abs(rng.standard_normal(level.shape)))
    table = identify(
        as_latents(values, many_prompts.n_examples, "lab"), many_prompts, [TASK_IDENTITY], grid=grid, seed=0,
        n_resamples=30,
    )  # fmt: skip
    assert (table["label"] == "task identity").mean() <= 0.01
    assert (table["auroc"] > 0.9).sum() > 20  # the values alone would have passed for it


def test_a_task_whose_labels_no_other_shows_has_no_identity(grid, many_prompts, as_latents) -> None:
    rows = read_rows(many_prompts, "lab", grid.rules)
    acts = as_latents((rows.task == "word:size")[:, None] * 1.0, many_prompts.n_examples, "lab")
    table = identify(acts, many_prompts, [TASK_IDENTITY], grid=grid, seed=0, n_resamples=10)
    assert table["label"].tolist() == [""]
    assert "no task at AUROC" in table["reason"][0] or "needed" in table["reason"][0]


# ----------------------------------------------------------------------------------------------- stability

SITE = "blocks.1.hook_mlp_out"
BLANK = {"int": 0, "float": np.nan, "str": "", "bool": False}


def blank(n: int, **columns: object) -> TransformTable:
    """A table of `n` rows with these columns; every other one is blank."""
    kinds = TransformTable.COLUMNS.items()
    return TransformTable({name: np.full(n, BLANK[c.kind], dtype=object) for name, c in kinds} | columns)


def labels(*given: tuple[int, str, str], site: str = SITE, role: str = "lab") -> TransformTable:
    """A table of (latent, concept, label)."""
    named = {name: [row[i] for row in given] for i, name in enumerate(("latent", "concept", "label"))}
    return blank(len(given), site=[site] * len(given), role=[role] * len(given), **named)


@pytest.fixture
def values():
    return np.maximum(np.random.default_rng(0).standard_normal((60, 5)) - 0.3, 0)


@pytest.fixture
def others(values):
    """Latents 4, 3, 2, 1, 0 of `values` with noise, beside one that is never active."""
    shaken = values[:, ::-1] * np.array([1, 2, 3, 4, 5]) + 0.1 * np.random.default_rng(1).random((60, 5))
    return np.column_stack([shaken, np.zeros(60)])


def test_a_latent_is_found_again_with_its_label(values, others, as_latents) -> None:
    own = labels((0, "odd", "odd"), (1, "odd", "candidate"), (2, "odd", ""), (1, "double", "double"))
    theirs = labels((4, "odd", "odd"), (4, "double", ""), (3, "double", "candidate"), (3, "odd", "odd"))
    found = stability(own, [as_latents(values, 10)], {"wide": (theirs, [as_latents(others, 10)])}).df
    assert found["latent"].tolist() == [0, 1]
    assert found["match"].tolist() == [4, 3]
    assert found["concept"].tolist() == ["odd", "double"]
    assert found["match_label"].tolist() == ["odd", "candidate"]
    assert found["stable"].tolist() == [True, False]
    assert found["reason"].tolist() == ["", "the match is labelled 'candidate'"]
    assert set(found["other"]) == {"wide"}
    assert set(found["other_d_sae"]) == {6}
    expected = [np.corrcoef(values[:, a], others[:, b])[0, 1] for a, b in ((0, 4), (1, 3))]
    assert found["correlation"].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "theirs",
    [
        labels((4, "double", "double")),
        labels((4, "odd", "odd"), site="blocks.2.hook_mlp_out"),
        labels((4, "odd", "odd"), role="pre"),
    ],
)
def test_labels_of_another_concept_site_or_role_do_not_count(theirs, values, others, as_latents) -> None:
    given = {"wide": (theirs, [as_latents(others, 10)])}
    (row,) = stability(labels((0, "odd", "odd")), [as_latents(values, 10)], given).df.to_dict("records")
    assert (row["match_label"], row["stable"], row["reason"]) == ("", False, "the match is not labelled")


def test_a_weak_correlation_is_not_stable(values, as_latents) -> None:
    loose = values[:, ::-1] + np.random.default_rng(1).random((60, 5))
    arguments = (
        labels((0, "odd", "odd")),
        [as_latents(values, 10)],
        {"loose": (labels((4, "odd", "odd")), [as_latents(loose, 10)])},
    )
    (row,) = stability(*arguments, least=0.95).df.to_dict("records")
    assert 0.5 < row["correlation"] < 0.95
    assert (row["stable"], row["match_label"]) == (False, "odd")
    assert row["reason"] == f"correlation {row['correlation']:.3f} below 0.95"
    assert stability(*arguments, least=row["correlation"])["stable"].all()


def test_matches_are_those_of_numpy() -> None:
    rng = np.random.default_rng(2)
    mine, theirs = (np.maximum(rng.standard_normal((40, n)), 0) for n in (150, 30))
    theirs[:, 3] = 8 - mine[:, 70]  # opposite: large in size, and never the match
    chosen = np.array([70, *range(140)])
    match, correlation = best_matches(csc_array(mine), csc_array(theirs), chosen)
    table = np.corrcoef(mine[:, chosen].T, theirs.T)[: len(chosen), len(chosen) :]
    assert match.tolist() == table.argmax(axis=1).tolist()
    assert correlation == pytest.approx(table.max(axis=1))
    assert match[0] != 3


def test_what_is_constant_has_no_match(values, others, as_latents) -> None:
    values[:, 0] = 0
    own = labels((0, "odd", "odd"), (1, "odd", "odd"))
    theirs = labels((3, "odd", "odd"))
    found = stability(own, [as_latents(values, 10)], {"wide": (theirs, [as_latents(others, 10)])}).df
    assert found["match"].tolist() == [-1, 3]
    assert np.isnan(found["correlation"]).tolist() == [True, False]
    assert found["reason"].tolist() == ["the latent, or every latent of the other SAE, is constant", ""]
    dead = {"dead": (theirs, [as_latents(0 * others, 10)])}
    assert stability(own, [as_latents(values, 10)], dead)["match"].tolist() == [-1, -1]


def test_a_set_without_the_site_or_role_says_so(values, others, as_latents) -> None:
    sets = {
        "role": (labels(), [as_latents(others, 10, role="pre")]),
        "layer": (labels(), [as_latents(others, 10, layer=2)]),
        "none": (labels(), []),
    }
    found = stability(labels((0, "odd", "odd")), [as_latents(values, 10)], sets).df
    assert found["other"].tolist() == list(sets)
    assert found["match"].tolist() == found["other_d_sae"].tolist() == [-1] * 3
    assert np.isnan(found["correlation"]).all()
    assert set(found["reason"]) == {"no SAE for L1.mlp_out at 'lab'"}
    assert not found["stable"].any()


def test_nothing_labelled_gives_no_rows(values, as_latents) -> None:
    acts = [as_latents(values, 10)]
    assert (
        len(stability(labels((0, "odd", "candidate"), (1, "odd", "")), acts, {"same": (labels(), acts)})) == 0
    )
    assert len(stability(labels((0, "odd", "odd")), acts, {})) == 0


def test_refusals(values, others, as_latents) -> None:
    own, acts = labels((0, "odd", "odd")), [as_latents(values, 10)]
    with pytest.raises(TableError, match="no activations"):
        stability(own, [as_latents(values, 10, role="pre")], {"wide": (own, acts)})
    with pytest.raises(
        TableError, match=r"'wide' for L1\.mlp_out at 'lab': 4 prompts of 10 examples, not 6 of 10"
    ):
        stability(own, acts, {"wide": (own, [as_latents(others[:40], 10)])})


# --------------------------------------------------------------------------------- detection and execution


@pytest.fixture
def both(as_latents):
    """Latents at lab and pre: mostly lab, all pre, half and half, never, lab in the first examples alone."""
    rng = np.random.default_rng(0)
    n = 30 * 8
    example = np.tile(np.arange(8), 30)
    size = 1 + rng.random(n)
    lab = np.column_stack([19 * size, 0 * size, size, 0 * size, size * (example < 4)])
    pre = np.column_stack([size, size, size, 0 * size, 0 * size])
    return as_latents(lab, 8, "lab"), as_latents(pre, 8, "pre")


def test_where_the_mass_is(both) -> None:
    frame = role_mass(*both, seed=0).df.set_index("latent")
    assert frame["kind"].tolist() == ["detection", "execution", "", "", ""]
    assert frame["lab_share"][0] == pytest.approx(0.95)
    assert (frame["lab_share"][1], frame["ci_high"][1]) == (0, 0)
    assert frame["lab_share"][2] == pytest.approx(0.5)
    # the first examples do not count: the task cannot be known yet
    assert np.isnan(frame["lab_share"][[3, 4]]).all()
    assert frame["reason"][3] == "active in fewer than 20 rows"
    assert (frame["ci_low"][:3] <= frame["lab_share"][:3]).all()


def test_other_prompts_are_refused(both, as_latents) -> None:
    with pytest.raises(TableError, match="n_prompts differs"):
        role_mass(both[0], as_latents(np.ones((8, 5)), 8, "pre"), seed=0)


# ----------------------------------------------------------------------------------------- labelled latents


def table(rows):
    """(concept, latent, role, auroc, label) → a table; other columns are blank."""
    named = zip(("concept", "latent", "role", "auroc", "label"), zip(*rows, strict=True), strict=True)
    return blank(len(rows), **{name: list(values) for name, values in named})


ROWS = [
    ("odd", 3, "lab", 0.99, "candidate"),
    ("odd", 4, "lab", 0.92, "odd"),
    ("odd", 5, "pre", 0.95, "odd"),
    ("odd", 6, "lab", 0.80, ""),
    ("double", 3, "pre", 0.91, "candidate"),
]


def test_granted_come_first_then_candidates_each_by_auroc() -> None:
    found = best_of(table(ROWS), 3)
    assert [(row["concept"], row["latent"]) for row in found] == [
        ("odd", 5), ("odd", 4), ("odd", 3), ("double", 3),
    ]  # fmt: skip
    assert len(granted(table(ROWS))) == 2
    assert [row["latent"] for row in best_of(table(ROWS), 1)] == [5, 3]
    assert [row["latent"] for row in best_of(table(ROWS), 1, role="lab")] == [4]
    assert best_of(table(ROWS).where(np.zeros(5, dtype=bool)), 4) == []
