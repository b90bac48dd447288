from dataclasses import fields

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.feature_selection import f_classif

from iclens.concepts.language import Concept, Contrast, Rows, everywhere, signed
from iclens.concepts.probes import (
    ALL,
    deal_tasks,
    permuted_labels,
    probe,
    relevance,
    splits,
    spread_prompts,
    t_interval,
    verdict,
    within_strata,
)
from iclens.core import ConfigError, TableError
from iclens.schemas import ProbeTable

PURE = Concept(Contrast("steep", lambda r: signed(r.slope == 2, r.slope == 1)), "", everywhere, ())
"""Every task is of one class."""
ODD = Concept(Contrast("odd", lambda r: signed(r.y % 2 == 1, r.y % 2 == 0)), "", everywhere, ())
"""Every task has both classes."""


def rows_of(slopes, n_prompts=5, n_examples=4, seed=0) -> Rows:
    """Rows of one task per slope, tasks and prompts in order, example fastest."""
    per_task, n = n_prompts * n_examples, len(slopes) * n_prompts * n_examples
    given = {
        "prompt": np.arange(n) // n_examples,
        "example": np.arange(n) % n_examples,
        "task": np.array([f"task {i}" for i in range(len(slopes))]).repeat(per_task),
        "slope": np.repeat(np.array(slopes, dtype=float), per_task),
        "y": np.random.default_rng(seed).integers(0, 100, n).astype(float),
    }
    return Rows(**{f.name: given.get(f.name, np.zeros(n)) for f in fields(Rows)})


ROWS = rows_of([1, 2] * 6)
LABEL = PURE.contrast.label(ROWS) > 0


def ask(representations, concept=PURE, rows=ROWS, *, ks=(1,), seed=0, **more) -> ProbeTable:
    return probe(
        representations, concept, rows, site="blocks.1.hook_mlp_out", role="lab", ks=ks, seed=seed, **more
    )


def figure(table: ProbeTable, representation: str, k: int = ALL):
    frame = table.df
    (at,) = np.flatnonzero((frame["representation"] == representation) & (frame["k"] == k))
    return frame.iloc[at]


def noise(n_columns, seed=0, rows=ROWS):
    return np.random.default_rng(seed).standard_normal((len(rows), n_columns))


# ------------------------------------------------------------------------------------------ planted truth


def test_a_code_spread_over_eight_latents_needs_eight() -> None:
    acts = noise(40)
    acts[:, 5:13] += 1.2 * LABEL[:, None]
    table = ask({"latents": csr_array(acts)}, ks=(1, 2, 8))
    assert (table["n_rows"] == len(ROWS)).all() and (table["n_tasks"] == 12).all()
    one, two, eight = (figure(table, "latents", k)["auroc"] for k in (1, 2, 8))
    assert 0.65 < one < 0.88
    assert one < two < eight
    assert eight > 0.97


def test_what_no_latent_has_reads_below_dense() -> None:
    dense = noise(16, 1) + np.outer(LABEL, np.full(16, 0.8))
    table = ask({"latents": csr_array(np.maximum(noise(40), 0)), "activation": dense}, ks=(1, 4))
    assert figure(table, "dense")["auroc"] > 0.95
    assert figure(table, "difference of means")["auroc"] > 0.95
    assert figure(table, "PCA", 1)["auroc"] > 0.9
    for k in (1, 4, ALL):
        row = figure(table, "latents", k)
        assert row["verdict"] == "below dense"
        assert row["minus_dense_low"] < row["minus_dense"] < row["minus_dense_high"] < 0
        assert row["minus_dense"] == pytest.approx(row["auroc"] - figure(table, "dense")["auroc"])


def test_a_latent_that_beats_the_dense_activation_is_said_to() -> None:
    latents = csr_array(np.column_stack([LABEL * 2.0, np.maximum(noise(3), 0)]))
    table = ask({"latents": latents, "activation": noise(16, 1)})
    assert figure(table, "latents", 1)["verdict"] == "above dense"
    assert figure(table, "dense")["verdict"] == figure(table, "random labels")["verdict"] == ""


def test_a_concept_within_tasks_is_folded_over_tasks() -> None:
    odd = ODD.contrast.label(ROWS) > 0
    table = ask({"latents": csr_array(np.column_stack([odd * 1.0, np.abs(noise(4))]))}, ODD)
    assert figure(table, "latents", 1)[["auroc", "n_folds"]].tolist() == [1, 12]
    assert figure(ask({"latents": csr_array(noise(2))}, ODD, max_folds=5), "latents", 1)["n_folds"] == 5


def test_only_pairs_of_one_stratum_are_compared() -> None:
    rng = np.random.default_rng(0)
    large = rng.random(len(ROWS)) < np.where(LABEL, 0.9, 0.1)
    rows = rows_of([1, 2] * 6)
    rows.y[:] = np.where(large, 80, 20)
    matched = Concept(PURE.contrast, "", lambda r: (r.y // 10).astype(int), ())
    size = csr_array(rows.y[:, None])
    assert figure(ask({"latents": size}, PURE, rows), "latents", 1)["auroc"] > 0.85
    assert figure(ask({"latents": size}, matched, rows), "latents", 1)["auroc"] == 0.5


# -------------------------------------------------------------------------------------------------- nulls


def test_what_only_tells_tasks_apart_is_at_chance_on_held_out_tasks() -> None:
    found, same_tasks = [], []
    for seed in range(8):
        level = np.random.default_rng(seed).standard_normal((12, 20)).repeat(20, axis=0)
        found.append(figure(ask({"neurons": level}, seed=seed), "neurons")["auroc"])
        row_as_task = rows_of([1, 2] * 6)
        row_as_task.task[:] = np.array([f"task {i % 20}" for i in range(len(row_as_task))])
        same_tasks.append(figure(ask({"neurons": level}, PURE, row_as_task), "neurons")["auroc"])
    assert np.mean(found) == pytest.approx(0.5, abs=0.15)
    assert np.mean(same_tasks) > 0.99  # folds that share tasks would have called it a code


def test_random_labels_are_at_chance_though_the_code_is_strong() -> None:
    found, widths = [], []
    for seed in range(6):
        dense = noise(8, seed) + np.outer(LABEL, np.full(8, 2.0))
        table = ask({"activation": dense}, ks=(), seed=seed)
        assert figure(table, "dense")["auroc"] > 0.99
        row = figure(table, "random labels")
        assert np.isnan(row["minus_dense"])
        assert row["reason"] == "labels permuted: not compared"
        found.append(row["auroc"])
        widths.append(row["ci_high"] - row["ci_low"])
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)
    assert np.mean(widths) < 0.5  # were held-out labels left in place, folds would lie near 0 or 1


def test_features_are_chosen_inside_the_folds() -> None:
    rows = rows_of([1, 2] * 6, n_prompts=3)
    label = PURE.contrast.label(rows) > 0
    inside, outside = [], []
    for seed in range(5):
        acts = noise(2000, seed, rows)
        inside.append(figure(ask({"neurons": acts}, PURE, rows, ks=(4,), seed=seed), "neurons", 4)["auroc"])
        seen = acts[:, np.argsort(relevance(acts, label))[-4:]]
        outside.append(figure(ask({"neurons": seen}, PURE, rows, ks=(4,), seed=seed), "neurons", 4)["auroc"])
    assert np.mean(inside) == pytest.approx(0.5, abs=0.06)
    assert np.mean(outside) > 0.75


# --------------------------------------------------------------------------------------------- identities


def test_pca_of_every_component_and_all_features_are_the_dense_probe() -> None:
    dense = noise(10, 2) + np.outer(LABEL, np.full(10, 0.4))
    table = ask({"neurons": dense, "activation": dense}, ks=(3, 10))
    whole = figure(table, "dense")["auroc"]
    assert 0.6 < whole < 0.95
    for name, k in (("PCA", 10), ("neurons", ALL), ("neurons", 10)):
        assert figure(table, name, k)["auroc"] == pytest.approx(whole, abs=2e-3)
        assert figure(table, name, k)["verdict"] == "as dense"
    assert figure(table, "neurons", 3)["auroc"] != pytest.approx(whole, abs=2e-3)


def test_sparse_and_dense_storage_read_alike() -> None:
    acts = np.maximum(noise(12, 3) + np.outer(LABEL, np.linspace(0, 1, 12)), 0)
    table = ask({"latents": csr_array(acts), "neurons": acts}, ks=(1, 4))
    for k in (1, 4):
        assert figure(table, "latents", k)["auroc"] == figure(table, "neurons", k)["auroc"]
    assert figure(table, "latents")["auroc"] == pytest.approx(figure(table, "neurons")["auroc"], abs=0.01)


def test_relevance_is_the_squared_correlation_and_orders_as_f_does() -> None:
    acts = noise(30, 4) + np.outer(LABEL, np.linspace(-1, 1, 30)) + 5
    found = relevance(acts, LABEL)
    assert found == pytest.approx([np.corrcoef(a, LABEL)[0, 1] ** 2 for a in acts.T])
    f, _ = f_classif(acts, LABEL)
    assert found == pytest.approx(f / (f + len(LABEL) - 2))
    assert relevance(csr_array(acts), LABEL) == pytest.approx(found)
    assert np.isnan(relevance(acts, np.ones(len(ROWS), dtype=bool))).all()


def test_features_that_cannot_be_used_are_left_out() -> None:
    acts = np.zeros((len(ROWS), 3))
    acts[:, 0], acts[:9, 1], acts[:10, 2] = 7, 1, 1
    assert np.isnan(relevance(acts, LABEL)).tolist() == [True, False, False]
    assert np.isnan(relevance(csr_array(acts), LABEL)).tolist() == [True, True, False]
    still = np.full((len(ROWS), 2), 7.0)
    table = ask({"latents": csr_array(still), "neurons": still, "activation": still}, ks=(1, 2))
    assert (table["auroc"][table["representation"] != "random labels"] == 0.5).all()


# ------------------------------------------------------------------------------------------------ figures


def test_within_strata_counts_pairs_of_one_stratum_and_ties_half() -> None:
    decided = np.array([[3.0], [1.0], [2.0], [-1.0], [-1.0 + 1e-12], [9.0]])
    positive = np.array([True, False, False, True, False, False])
    stratum = np.array([0, 0, 0, 1, 1, 2])
    assert within_strata(decided, positive, stratum) == pytest.approx([2.5 / 3])
    assert within_strata(decided, positive, 0 * stratum) == pytest.approx([(3 + 0.5) / 8])
    assert np.isnan(within_strata(decided, positive, np.arange(6))).all()


def test_the_interval_is_students() -> None:
    assert t_interval(np.array([0.8, 0.9, 1.0])) == pytest.approx(
        (0.9, 0.9 - 0.248414, 0.9 + 0.248414), abs=1e-5
    )
    assert [verdict(-0.2, -0.1), verdict(-0.1, 0.1), verdict(0.0, 0.0), verdict(0.1, 0.2)] == [
        "below dense", "as dense", "as dense", "above dense",
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------- folds


def deal(task, positive, stratum=None, most=12, seed=0):
    task, positive = np.asarray(task), np.asarray(positive, dtype=bool)
    stratum = np.zeros(len(task), dtype=int) if stratum is None else np.asarray(stratum)
    return deal_tasks(task, positive, stratum, most=most, rng=np.random.default_rng(seed))


def test_each_fold_holds_whole_tasks_of_either_side() -> None:
    rows = rows_of([2] * 5 + [1] * 3)
    label = PURE.contrast.label(rows) > 0
    found = deal(rows.task, label)
    assert found.n_folds == 3
    of_task = {name: set(found.fold[rows.task == name].tolist()) for name in np.unique(rows.task)}
    assert all(len(folds) == 1 for folds in of_task.values())
    per_fold = [(label[found.fold == f].sum() // 20, (~label[found.fold == f]).sum() // 20) for f in range(3)]
    assert sorted(per_fold) == [(1, 1), (2, 1), (2, 1)]


def test_a_task_stands_where_most_of_its_rows_do() -> None:
    task = np.repeat(["a", "b", "c", "d", "e"], 3)
    positive = [1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    found = deal(task, positive)
    assert found.n_folds == 2  # a and b against c, d and e
    assert found.fold[0] != found.fold[3]
    assert deal(task, positive, most=1).reason == "at most 1 folds, 2 needed"


def test_tasks_are_exchanged_until_every_fold_has_matched_pairs() -> None:
    stratum = np.tile(np.arange(6), 2)
    for seed in range(5):
        found = deal([f"t{i}" for i in range(12)], np.arange(12) < 6, stratum, seed=seed)
        assert found.n_folds == 6
        assert (found.fold[:6] == found.fold[6:]).all()


@pytest.mark.parametrize(
    ("slopes", "reason"),
    [
        ([2, 2, 2, 1], "negatives in 1 task, 2 needed"),
        ([2, 1, 1], "positives in 1 task, 2 needed"),
        ([1, 1], "positives in 0 tasks, 2 needed"),
        ([3, 3], "positives in 0 tasks, 2 needed"),
    ],
)
def test_too_few_tasks_give_a_reason_and_no_figure(slopes, reason) -> None:
    rows = rows_of(slopes)
    table = ask({"latents": csr_array(noise(3, 0, rows)), "activation": noise(3, 1, rows)}, PURE, rows)
    assert len(table) == 2 + 4
    assert set(table["reason"]) == {reason}
    assert np.isnan(table["auroc"]).all()
    assert (table["n_folds"] == 0).all()
    assert (table["verdict"] == "").all()


def test_one_task_that_mixes_both_classes_is_too_few() -> None:
    rows = rows_of([1])
    assert set(ask({"latents": csr_array(noise(3, 0, rows))}, ODD, rows)["reason"]) == {
        "rows in 1 task, 2 needed"
    }


def test_figures_that_cannot_be_taken_say_why() -> None:
    table = ask({"latents": csr_array(noise(3))}, ks=(1, 4))
    assert figure(table, "latents", 4)["reason"] == "only 3 features"
    assert figure(table, "latents", 1)["reason"] == "no dense activation given"
    apart = Concept(PURE.contrast, "", lambda r: (r.slope == 2).astype(np.int64), ())
    lone = ask({"latents": csr_array(noise(3))}, apart)
    assert set(lone["reason"]) == {"matched pairs in 0 folds, 2 needed"}
    assert np.isnan(lone["auroc"]).all()


def test_no_task_stands_on_two_sides_of_a_split() -> None:
    rng = np.random.default_rng(0)
    found = splits(deal(ROWS.task, LABEL, most=4), ROWS.task, LABEL, everywhere(ROWS), rng)
    assert len(found) == 4
    assert sorted(np.concatenate([s.held for s in found]).tolist()) == list(range(len(ROWS)))
    for split in found:
        held, train = set(ROWS.task[split.held]), set(ROWS.task[split.train])
        assert held | train == set(ROWS.task)
        assert not held & train
        assert len(split.inner) == 2
        for fitted, checked in split.inner:
            assert set(ROWS.task[fitted]) | set(ROWS.task[checked]) == train
            assert not set(ROWS.task[fitted]) & set(ROWS.task[checked])
            assert len(set(LABEL[fitted])) == len(set(LABEL[checked])) == 2


def test_rows_are_thinned_by_whole_prompts_evenly_over_tasks() -> None:
    kept = spread_prompts(ROWS.task, ROWS.prompt, 120, np.random.default_rng(0))
    assert len(kept) == 120  # 30 prompts of 4 rows; 12 tasks have 2 or 3 of their 5
    assert (np.unique(ROWS.prompt[kept], return_counts=True)[1] == 4).all()
    assert set(np.unique(ROWS.task[kept], return_counts=True)[1].tolist()) == {8, 12}
    assert spread_prompts(ROWS.task, ROWS.prompt, len(ROWS), np.random.default_rng(0)).tolist() == list(
        range(240)
    )
    table = ask({"latents": csr_array(noise(3))}, max_rows=123)
    assert set(table["n_rows"]) == {120}


def test_labels_go_from_whole_prompt_to_whole_prompt() -> None:
    prompt = np.repeat([7, 3, 9, 5], 3)
    positive = np.array([0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1], dtype=bool)
    found = [permuted_labels(positive, prompt, np.random.default_rng(seed)) for seed in range(10)]
    for given in found:
        assert sorted(map(tuple, given.reshape(4, 3).tolist())) == sorted(
            map(tuple, positive.reshape(4, 3).tolist())
        )
    assert len({given.tobytes() for given in found}) > 3
    uneven = permuted_labels(np.array([True, False, True]), np.array([0, 1, 1]), np.random.default_rng(1))
    assert uneven.tolist() in ([True, False, True], [False, True, True])


# ----------------------------------------------------------------------------------------------- refusals


def test_what_is_not_of_the_rows_is_refused() -> None:
    with pytest.raises(TableError, match="representation 'neurons': 239 rows, not 240"):
        ask({"neurons": noise(2)[:-1]})
    broken = noise(2)
    broken[3, 1] = np.nan
    for values in (broken, csr_array(broken)):
        with pytest.raises(TableError, match="representation 'latents': holds NaN or infinity"):
            ask({"latents": values})
    with pytest.raises(ConfigError, match="a probe needs a feature"):
        ask({"latents": noise(2)}, ks=(1, 0))
