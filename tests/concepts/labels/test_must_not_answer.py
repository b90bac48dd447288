"""For every concept a latent that answers to what it must not be mistaken for, planted, and not labelled."""

import numpy as np
import pytest

from iclens.concepts.labels import TASK_IDENTITY, identify
from iclens.concepts.language import read_rows

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
def found(grid, many_prompts, as_latents):
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
def test_it_is_not_given_the_label_and_the_reason_says_why(found, name) -> None:
    row = found.loc[(name, name.split(":")[0])]
    assert row["label"] in ("", "candidate"), row["auroc"]
    assert row["reason"]


def test_the_identity_of_a_task_is_told_from_its_values(found, grid) -> None:
    row = found.loc[("identity of one task", "task identity")]
    assert (row["label"], row["of"], row["reason"]) == ("task identity", grid.held_out[0], "")
    others = found.loc["identity of one task"].drop(index="task identity")
    assert set(others["label"]) <= {"", "candidate"}


def test_a_task_identity_says_which_rival_it_fell_to(found) -> None:
    assert found.loc[("task identity: one slope", "task identity")]["worst_confound"] in ("the slope", "")
    assert "no task" in found.loc[("task identity: one value", "task identity")]["reason"]


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
