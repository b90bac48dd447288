"""Evaluation: an exact learner is found exact, and known deviations are found as they are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import iclens.builtin.evaluate as module
from iclens.builtin.evaluate import (
    Condition,
    context_prompts,
    evaluate,
    evaluate_tasks,
    interchange_figures,
    load_mixture,
    standard_conditions,
)
from iclens.builtin.model import Recipe
from iclens.core import ConfigError
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import answer_probs
from iclens.prompts.beliefs import AnswerProbs
from iclens.prompts.build import PromptSet, build_prompts, exact_answer_probs
from iclens.prompts.mixture import Mixture
from iclens.prompts.tasks import parse_task

EVERYTHING = Condition("whole mixture")


@pytest.fixture(scope="module")
def mixture(recipe: Recipe) -> Mixture:
    return recipe.declared_mixture


@pytest.fixture(scope="module")
def model(trained: Path) -> LanguageModel:
    return load_model(trained / "main")


def pretend(monkeypatch: pytest.MonkeyPatch, change: Callable[[AnswerProbs], AnswerProbs]) -> None:
    """Let the 'model' answer with the exact predictive, changed."""
    seen: dict[str, AnswerProbs] = {}

    def remember(owner: Mixture, prompts: PromptSet) -> AnswerProbs:
        seen["exact"] = exact_answer_probs(owner, prompts)
        return seen["exact"]

    monkeypatch.setattr(module, "exact_answer_probs", remember)
    monkeypatch.setattr(module, "answer_probs", lambda *_a, **_k: change(seen["exact"]))


def test_the_exact_learner_scores_perfectly(
    monkeypatch: pytest.MonkeyPatch, model: LanguageModel, mixture: Mixture
) -> None:
    pretend(monkeypatch, lambda exact: exact)
    found = evaluate(model, mixture, [EVERYTHING], n_contexts=200, n_examples=4)
    row = found.overall.df.iloc[0]
    assert row["kl"] == pytest.approx(0.0, abs=1e-9)
    assert row[["r", "slope", "r_beliefs", "slope_beliefs"]].tolist() == pytest.approx([1.0] * 4)
    shots = found.shots.df
    assert shots["n_seen"].tolist() == [0, 1, 2, 3]
    assert (shots["top1"] == shots["exact_top1"]).all()
    assert shots["p_correct"].tolist() == pytest.approx(shots["exact_p_correct"].tolist())
    assert shots["p_correct"].is_monotonic_increasing


def test_mass_lost_to_other_tokens_is_seen(
    monkeypatch: pytest.MonkeyPatch, model: LanguageModel, mixture: Mixture
) -> None:
    """Half of every probability on other tokens: KL is log 2, P(correct) halves, top-1 stays."""
    pretend(monkeypatch, lambda exact: AnswerProbs(exact.answers, exact.log_prob - np.log(2)))
    found = evaluate(model, mixture, [EVERYTHING], n_contexts=100, n_examples=4)
    assert found.overall["kl"][0] == pytest.approx(np.log(2))
    shots = found.shots.df
    assert (2 * shots["p_correct"]).tolist() == pytest.approx(shots["exact_p_correct"].tolist())
    assert (shots["top1"] == shots["exact_top1"]).all()


def test_a_correct_answer_is_any_that_the_task_gives(
    monkeypatch: pytest.MonkeyPatch, model: LanguageModel, mixture: Mixture
) -> None:
    def always_nine(exact: AnswerProbs) -> AnswerProbs:
        log_prob = np.full(exact.log_prob.shape, np.log(1e-6))
        log_prob[..., 9] = np.log(0.99)
        return AnswerProbs(exact.answers, log_prob)

    pretend(monkeypatch, always_nine)
    conditions = [Condition("odd", ("odd",), 0.0), Condition("even", ("even",), 0.0)]
    found = evaluate(model, mixture, conditions, n_contexts=40, n_examples=3).shots.df.groupby("condition")
    assert found["top1"].mean().to_dict() == {"odd": 1.0, "even": 0.0}
    assert found["p_correct"].mean()["odd"] == pytest.approx(0.99, abs=1e-3)


def test_conditions_draw_what_they_say(mixture: Mixture) -> None:
    rng = np.random.default_rng(0)
    fixed = Condition("two", ("2x+3", "letter:next"), 0.6).draw(mixture, rng, 200, 3)
    names = {mixture.tasks[t].name for t in fixed.task}
    assert names == {"2x+3", "letter:next"}
    assert (fixed.noise == 1).all()
    free = EVERYTHING.draw(mixture, rng, 200, 3)
    assert set(free.noise) == {0, 1}
    assert len(set(free.task)) > 10
    for wrong in (Condition("a", ("9x",)), Condition("b", (), 0.3)):
        with pytest.raises(ConfigError):
            wrong.draw(mixture, rng, 2, 2)


def test_standard_conditions_leave_out_what_the_mixture_lacks(mixture: Mixture) -> None:
    names = [condition.name for condition in standard_conditions(mixture, ["9x", "2x+3"])]
    assert names[0] == "whole mixture"
    assert "2x+3, noiseless" in names
    assert not any("approx" in name for name in names)
    assert standard_conditions(mixture, ["9x", "2x+3"])[-1].tasks == ("2x+3",)
    assert "held out from interchange" not in [c.name for c in standard_conditions(mixture, ["9x"])]


def test_real_figures_are_reproducible_and_finite(model: LanguageModel, mixture: Mixture) -> None:
    first, same, other = (
        evaluate(model, mixture, standard_conditions(mixture), n_contexts=16, n_examples=4, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first.overall.df.equals(same.overall.df)
    assert not first.overall.df.equals(other.overall.df)
    assert (first.overall["kl"] > 0).all()
    assert np.isfinite(first.shots["p_correct"]).all()


def test_every_task_by_itself(
    monkeypatch: pytest.MonkeyPatch, model: LanguageModel, mixture: Mixture
) -> None:
    pretend(monkeypatch, lambda exact: exact)
    found = evaluate_tasks(model, mixture, n_contexts=5, n_examples=4)
    assert found["task"].tolist() == [task.name for task in mixture.tasks]
    assert found["kl"] == pytest.approx(0.0, abs=1e-9)
    assert found["p_correct"] == pytest.approx(found["exact_p_correct"])
    certain = dict(zip(found["task"], found["exact_p_correct"], strict=True))
    assert certain["letter:next"] > 0.9  # three noiseless examples of one of two letter tasks


def test_undefined_correlations_have_a_reason(model: LanguageModel, mixture: Mixture) -> None:
    found = evaluate(model, mixture, [Condition("2x", ("2x",), 0.0)], n_contexts=2, n_examples=2)
    frame = found.shots.df
    assert frame["r"].isna().all()
    assert frame["reason"].str.contains("log-odds").all()


def test_contexts_become_text(model: LanguageModel, mixture: Mixture) -> None:
    contexts = Condition("x", ("3x+1",), 0.0).draw(mixture, np.random.default_rng(0), 5, 3)
    prompts = context_prompts(model, mixture, contexts)
    assert (prompts.y == prompts.answer).all()
    assert (prompts.y.astype(int) == 3 * prompts.x.astype(int) + 1).all()


def test_a_folder_without_a_mixture(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no mixture"):
        load_mixture(tmp_path)
    (tmp_path / "mixture.yaml").write_text("numbers: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_mixture(tmp_path)


def test_interchange_by_hand(model: LanguageModel, mixture: Mixture) -> None:
    """At layer 0 a donor brings the space that is there already; after the last block, its answer."""
    found = interchange_figures(
        model, mixture, ["2x+3", "letter:next"], n_seen=(0, 3), n_prompts=5, n_examples=4
    )
    frame = found.df
    assert len(frame) == 2 * 4 * 2
    first = frame[frame["layer"] == 0]
    assert first["p_task"].to_numpy() == pytest.approx(first["unpatched"].to_numpy(), abs=1e-6)
    last = frame[frame["layer"] == 3].set_index(["task", "n_seen"])
    for spec in ("2x+3", "letter:next"):
        task = parse_task(spec)
        donors = build_prompts(
            model.tokenizer, task, arm="T", n_prompts=5, n_examples=4, seed=1, inputs=mixture.inputs_of(task)
        )
        words = tuple(y for y in mixture.answers if not y.isdigit())
        own = answer_probs(model, donors.tokens, donors.positions("pre"), extra=words).of(donors.answer)
        for j in (0, 3):
            assert last.loc[(spec, j), "p_copy"] == pytest.approx(own[:, j].mean(), abs=1e-6)
