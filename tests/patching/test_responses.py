"""Response curves: E[y | x] worked by hand, and patches whose curve is known beforehand."""

import numpy as np
import pytest

from iclens.core import EditError, TaskError
from iclens.model.load import LanguageModel
from iclens.patching.receiver import gather, query_answers
from iclens.patching.runs import Runs, runs_by_query
from iclens.patching.sweep import (  # fmt: skip
    BASE,
    ERROR,
    FULL,
    GIVEN,
    LATENTS,
    TARGET,
    expected_answer,
    least_squares,
    response_curve,
    response_fits,
    response_sweep,
)
from iclens.prompts.beliefs import NUMBERS, AnswerProbs
from iclens.prompts.tasks import parse_task
from iclens.schemas import ResponseTable

from .conftest import MakeSae, same

XS, DONORS = range(3, 15), 3


@pytest.fixture(scope="module")
def runs(exact_model: LanguageModel) -> Runs:
    """Each x of XS with several donors."""
    return drawn(exact_model)


def drawn(model: LanguageModel, recipient: str = "S arm", task: str = "2x+3", xs: range = XS) -> Runs:
    return runs_by_query(
        model.tokenizer, parse_task(task), xs, recipient=recipient, donors=DONORS, donor_examples=6, seed=5,
        inputs=tuple(str(x) for x in range(3, 20)),
    )  # fmt: skip


def rows(table: ResponseTable, patch: str) -> ResponseTable:
    return table.where(table["patch"] == patch)


@pytest.mark.parametrize("recipient", ["zero examples", "S arm", "R arm"])
def test_every_x_is_asked_by_B_and_by_no_donor_of_its_own(exact_model: LanguageModel, recipient: str) -> None:
    runs = drawn(exact_model, recipient)
    np.testing.assert_array_equal(runs.x_B.astype(int), np.repeat(XS, DONORS))
    for prompts in (runs.donor.x, runs.target.x[:, :-1], runs.recipient.x[:, :-1]):
        assert not (prompts == runs.x_B[:, None]).any()
    assert (runs.own != runs.copied).all() and runs.recipient_name == recipient
    np.testing.assert_array_equal(runs.donor.x[:, :-1], runs.target.x[:, :-1])
    assert len({tuple(context) for context in runs.donor.x.tolist()}) == len(XS) * DONORS
    if recipient != "zero examples":
        np.testing.assert_array_equal(runs.recipient.x[:, :-1], runs.donor.x[:, :-1])


def test_runs_by_query_refuses_what_cannot_be_asked(exact_model: LanguageModel) -> None:
    tokenizer, task = exact_model.tokenizer, parse_task("2x+3")
    with pytest.raises(EditError, match="0 queries"):
        runs_by_query(tokenizer, task, ())
    with pytest.raises(TaskError, match="12 examples and two queries: 13 inputs"):
        runs_by_query(tokenizer, task, range(13))
    runs_by_query(tokenizer, task, [30, "30"], inputs=[str(x) for x in range(13)], donors=1)
    with pytest.raises(TaskError, match="depends on x"):
        runs_by_query(tokenizer, parse_task("7"), range(20))


def test_expected_answer_of_a_known_distribution() -> None:
    # P(4) = .1, P(10) = .3 and a word .4; the rest is outside. E[y | number] = (.4 + 3) / .4 = 8.5
    p = np.full((1, len(NUMBERS) + 1), 1e-30)
    p[0, [4, 10, 1000]] = 0.1, 0.3, 0.4
    probs = AnswerProbs((*NUMBERS, "big"), np.log(p).astype(np.float32))
    assert expected_answer(probs)[0] == pytest.approx(8.5, rel=1e-5)


def test_least_squares_of_three_points() -> None:
    x, y = np.array([1.0, 2.0, 4.0]), np.array([5.0, 7.0, 11.0])
    weights = np.array([[1, 1, 1], [0, 2, 1], [0, 0, 3]]) / 3
    slope, intercept = least_squares(x, y, weights)
    np.testing.assert_allclose(slope, [2, 2, np.nan])
    np.testing.assert_allclose(intercept, [3, 3, np.nan])
    assert least_squares(x, np.array([0.0, 0.0, 7.0]), weights)[0][0] == pytest.approx(2.5)  # 35/14


def test_a_row_holds_what_its_donors_say(exact_model: LanguageModel, runs: Runs) -> None:
    target = rows(response_sweep(exact_model, runs, layers=(2,)), TARGET)
    probs = query_answers(exact_model, runs.target, runs.words)
    of_x = np.exp(probs.log_prob[DONORS : 2 * DONORS].astype(float))  # x = 4
    numbers = of_x[:, :1000]
    each = (numbers * np.arange(1000)).sum(axis=1) / numbers.sum(axis=1)
    row = target.where(target["x"] == 4)
    assert (row["answer"][0], row["scaled"][0], row["n_donors"][0]) == ("11", "8", DONORS)
    assert row["mean"][0] == pytest.approx(each.mean(), rel=1e-6)
    assert row["sd"][0] == pytest.approx(each.std(ddof=1), rel=1e-5)
    p = of_x.mean(axis=0)
    assert row["top_1"][0] == str(p.argmax())
    assert row["p_answer"][0] == pytest.approx(p[11]) and row["p_scaled"][0] == pytest.approx(p[8])
    assert row["rank"][0] == 1 + (p > p[11]).sum() and row["rank_scaled"][0] == 1 + (p > p[8]).sum()
    assert row["p_number"][0] == pytest.approx(numbers.sum(axis=1).mean())
    copied = [of_x[i, int(runs.copied[DONORS + i])] for i in range(DONORS)]
    assert row["p_copy"][0] == pytest.approx(np.mean(copied))


def test_a_donor_that_is_the_recipient_changes_nothing(
    exact_model: LanguageModel, runs: Runs, make_sae: MakeSae
) -> None:
    still = same(runs)
    curves = response_curve(exact_model, make_sae(), still, sets=[range(90)], donor_value="instance")
    for patch in (FULL, LATENTS, ERROR, GIVEN, TARGET):
        for name in ("mean", "p_answer", "p_copy", "p_number"):
            np.testing.assert_allclose(rows(curves, patch)[name], rows(curves, BASE)[name], rtol=2e-5)
    swept = response_sweep(exact_model, still)
    for layer in np.unique(swept["site"]):
        at = swept.where(swept["site"] == layer)
        np.testing.assert_array_equal(rows(at, FULL)["mean"], rows(at, BASE)["mean"])
    assert (response_fits(swept)["slope_change"][2::3] == 0).all()


def test_the_last_residual_brings_the_donors_answer(
    exact_model: LanguageModel, runs: Runs, make_sae: MakeSae
) -> None:
    donor = query_answers(exact_model, runs.donor, runs.words)
    by_x = expected_answer(donor).reshape(len(XS), DONORS).mean(axis=1)
    last = f"L{exact_model.n_blocks - 1}.resid_post"
    curve = response_curve(exact_model, make_sae(last), runs, donor_value="instance")
    swept = response_sweep(exact_model, runs, layers=(exact_model.n_blocks,))
    for found in (curve, swept):
        np.testing.assert_allclose(rows(found, FULL)["mean"], by_x, rtol=1e-4)
    copied = donor.of(runs.copied).reshape(len(XS), DONORS).mean(axis=1)
    np.testing.assert_allclose(rows(curve, FULL)["p_copy"], copied, rtol=1e-4)


def test_rungs_are_those_of_the_ladder(exact_model: LanguageModel, runs: Runs, make_sae: MakeSae) -> None:
    sae = make_sae()
    held = gather(exact_model, sae, runs, donor_value="task mean", seed=0)
    differ = np.flatnonzero((held.change != 0).any(axis=0))
    chosen = differ[:5]
    curves = response_curve(exact_model, sae, runs, sets=[chosen.tolist()])
    wanted = {
        FULL: held.everything, LATENTS: held.all_latents, ERROR: held.everything - held.all_latents,
        GIVEN: (held.donor_latents - held.recipient_latents)[:, chosen] @ held.directions(chosen),
    }  # fmt: skip
    for patch, delta in wanted.items():
        probs = [tail.added(sae.site, row[None]) for tail, row in zip(held.tails, delta, strict=True)]
        by_x = np.reshape([expected_answer(p)[0] for p in probs], (len(XS), DONORS)).mean(axis=1)
        np.testing.assert_allclose(rows(curves, patch)["mean"], by_x, rtol=2e-4)
    assert set(rows(curves, GIVEN)["latents"]) == {" ".join(map(str, chosen))}
    every = response_curve(exact_model, sae, runs, sets=[differ.tolist(), [5]])
    given = rows(every, GIVEN)
    assert list(dict.fromkeys(given["latents"])) == [" ".join(map(str, differ)), "5"]
    np.testing.assert_allclose(given["mean"][: len(XS)], rows(every, LATENTS)["mean"], rtol=2e-4)
    assert len(response_fits(every)) == 7


def test_the_task_moves_where_it_stands_and_its_line_is_found(exact_model: LanguageModel) -> None:
    runs = runs_by_query(exact_model.tokenizer, parse_task("2x+3"), range(50), donors=2, donor_examples=12)
    curves = response_sweep(exact_model, runs, layers=(0, 3, 6))
    fits = response_fits(curves).df.set_index(["site", "patch"])
    moved, copied = fits.loc["blocks.3.hook_resid_pre", FULL], fits.loc["blocks.5.hook_resid_post", FULL]
    assert moved.slope == pytest.approx(2, abs=0.1) and moved.intercept == pytest.approx(3, abs=1.5)
    assert moved.top_1_answer > 0.9 and moved.top_1_scaled < 0.1 and moved.slope_change_low > 0
    assert moved.slope_low < moved.slope < moved.slope_high
    assert abs(copied.slope) < 1 and copied.top_1_answer < 0.1
    assert fits.loc["blocks.0.hook_resid_pre", FULL].slope_change == pytest.approx(0, abs=1e-4)


def test_a_task_without_slope_says_so(exact_model: LanguageModel) -> None:
    curves = response_sweep(exact_model, drawn(exact_model, task="x//2+4"), layers=(3,))
    assert np.isnan(curves["rank_scaled"]).all() and set(curves["reason"]) == {"the task has no slope"}
    fits = response_fits(curves)
    assert np.isnan(fits["top_1_scaled"]).all() and not np.isnan(fits["slope"]).any()


def test_too_few_points_give_no_line(exact_model: LanguageModel) -> None:
    curves = response_sweep(exact_model, drawn(exact_model, xs=range(3, 5)), layers=(3,))
    fits = response_fits(curves)
    assert np.isnan(fits["slope"]).all() and set(fits["reason"]) == {"fewer than 3 x"}


def test_what_has_no_curve_is_refused(exact_model: LanguageModel, runs: Runs, make_sae: MakeSae) -> None:
    words = runs_by_query(exact_model.tokenizer, parse_task("letter:next"), "abcdefgh", donor_examples=4)
    with pytest.raises(TaskError, match="no numbers"):
        response_sweep(exact_model, words)
    with pytest.raises(EditError, match="the SAE has 96"):
        response_curve(exact_model, make_sae(), runs, sets=[[3], [96]])
    curves = response_sweep(exact_model, runs, layers=(2,))
    with pytest.raises(EditError, match="no base"):
        response_fits(curves.where(curves["patch"] != BASE))
