"""The whole pipeline on the shipped model, prompts to verdicts, with true and with relabelled arms."""

from dataclasses import replace

import numpy as np

from iclens.growth.detect import test_arms as judge_study
from iclens.prompts.build import PromptSet
from iclens.track import track
from planted import null_discoveries, relabelled


def exchanged(own: PromptSet, other: PromptSet, swapped: np.ndarray) -> PromptSet:
    """The prompts of an arm, the marked ones taken from the other arm."""
    mark = swapped[:, None]
    return replace(own, y=np.where(mark, other.y, own.y), tokens=np.where(mark, other.tokens, own.tokens))


def test_true_arms_grow_at_pre_and_hold_together(arms) -> None:
    treated, control = arms
    table = judge_study(treated.latents, control.latents, prompts=(treated.prompts, control.prompts)).df
    assert len(table) == 6 * 4 * 192
    grows = table.query("verdict == 'grows'")
    assert len(grows.query("role == 'pre'")) >= 20
    assert (grows["slope"] > 0).all() and (grows["ci_low"] > 0).all() and (grows["q_value"] <= 0.05).all()
    untested = table["q_value"].isna()
    assert (table.loc[untested, "reason"] != "").all() and (table.loc[~untested, "reason"] == "").all()


def test_relabelled_arms_make_a_discovery_in_at_most_three_of_twenty_runs(arms) -> None:
    treated, control = arms
    counts = null_discoveries(
        treated.latents, control.latents, prompts=(treated.prompts, control.prompts), n_runs=20, seed=0
    )
    assert (counts > 0).sum() <= 3


def test_relabelling_after_tracking_is_relabelling_the_prompts(tiny_model, saes, arms) -> None:
    """The null run above is of the whole pipeline: exchanging prompts before the model gives the same."""
    treated, control = arms
    swapped = np.random.default_rng(0).random(treated.prompts.n_prompts) < 0.5
    after = judge_study(
        *relabelled(treated.latents, control.latents, swapped), prompts=(treated.prompts, control.prompts)
    )
    one = exchanged(treated.prompts, control.prompts, swapped)
    other = exchanged(control.prompts, treated.prompts, swapped)
    before = judge_study(
        track(tiny_model, saes, one).latents, track(tiny_model, saes, other).latents, prompts=(one, other)
    )
    assert (before["verdict"] == after["verdict"]).all()
    assert np.allclose(before["slope"], after["slope"], atol=1e-4, equal_nan=True)
