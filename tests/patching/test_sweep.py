"""The residual sweep: identities that hold for any model."""

import numpy as np
import pytest

from iclens.core import BELIEFS, EditError, ModelError, Site, SiteError, position
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import Edit, answer_probs, record
from iclens.patching.heads import Ablation, ablated_answers, ablation_edits
from iclens.patching.receiver import layer_site, patch_query, query_answers, up_to_query
from iclens.patching.sweep import PROBABILITIES, graded, sweep
from iclens.prompts.tasks import parse_task
from iclens.schemas import SweepTable

from .conftest import ROOT, MakeRuns, same


def at(table: SweepTable, role: str, layer: int, metric: str) -> float:
    rows = table.where((table["role"] == role) & (table["layer"] == layer) & (table["metric"] == metric))
    assert len(rows) == 1
    return float(rows["value"][0])


@pytest.mark.parametrize("recipient", ["zero examples", "S arm"])
def test_a_donor_that_is_the_recipient_changes_nothing_at_all(
    tiny_model: LanguageModel, make_runs: MakeRuns, recipient: str
) -> None:
    table = sweep(tiny_model, same(make_runs(recipient)))
    effects = np.char.startswith(table["metric"].astype(str), "effect on ")
    assert effects.sum() == len(BELIEFS) * (7 if recipient == "zero examples" else 4 * 7)
    for name in ("value", "ci_low", "ci_high"):
        assert (table[name][effects] == 0).all()
    np.testing.assert_allclose(table["value"][~effects], table["base"][~effects], rtol=1e-12)


@pytest.mark.parametrize("recipient", ["zero examples", "S arm"])
def test_the_last_resid_post_brings_the_donors_own_answers(
    exact_model: LanguageModel, make_runs: MakeRuns, recipient: str
) -> None:
    runs = make_runs(recipient)
    patched, _ = patch_query(exact_model, runs, [exact_model.n_blocks])
    donor = query_answers(exact_model, runs.donor, runs.words)
    np.testing.assert_allclose(patched[0].log_prob, donor.log_prob, atol=1e-4)


def test_at_layer_0_pre_is_the_same_token_in_both_runs(
    exact_model: LanguageModel, make_runs: MakeRuns
) -> None:
    table = sweep(exact_model, make_runs(), roles=["pre"], layers=[0])
    effects = np.char.startswith(table["metric"].astype(str), "effect on ")
    assert (table["value"][effects] == 0).all()


def test_the_labels_at_layer_0_turn_the_s_arm_into_a_star(
    exact_model: LanguageModel, make_runs: MakeRuns
) -> None:
    runs = make_runs("S arm")
    table = sweep(exact_model, runs, roles=["lab"], layers=[0])
    target = query_answers(exact_model, runs.target, runs.words)
    assert at(table, "lab", 0, "task on own x") == pytest.approx(target.of(runs.own).mean(), abs=1e-6)
    assert at(table, "lab", 0, "copy") == pytest.approx(target.of(runs.copied).mean(), abs=1e-6)


def test_the_context_after_the_last_block_is_never_read_again(
    exact_model: LanguageModel, make_runs: MakeRuns
) -> None:
    table = sweep(exact_model, make_runs(), roles=["x", "lab", "close"], layers=[exact_model.n_blocks])
    np.testing.assert_array_equal(
        table["value"][np.char.startswith(table["metric"].astype(str), "effect on ")], 0
    )


@pytest.mark.parametrize("layer", [0, 3, 6])
def test_the_tail_equals_a_full_forward_with_the_edit(
    exact_model: LanguageModel, make_runs: MakeRuns, layer: int
) -> None:
    runs = make_runs("S arm")
    site = Site(layer, "resid_pre") if layer < 6 else Site(5, "resid_post")
    here = np.array([position("pre", runs.n_seen)])
    held = record(exact_model, up_to_query(runs.donor), [site], here)[site]
    edit = Edit(site, "replace", here, held, here)
    full = answer_probs(exact_model, up_to_query(runs.recipient), here, edits=[edit]).log_prob[:, 0]
    patched, _ = patch_query(exact_model, runs, [layer])
    np.testing.assert_allclose(patched[0].log_prob, full, rtol=1e-5, atol=1e-4)


def test_batches_change_nothing(exact_model: LanguageModel, make_runs: MakeRuns) -> None:
    whole, parts = (sweep(exact_model, make_runs(), roles=["lab"], layers=[1], batch=b) for b in (128, 3))
    np.testing.assert_allclose(whole["value"], parts["value"], rtol=1e-4, atol=1e-5)


def test_word_tasks_are_read_beside_numbers(exact_model: LanguageModel, make_runs: MakeRuns) -> None:
    runs = make_runs("zero examples", "word:opposite")
    table = sweep(exact_model, runs, layers=[6])
    own = query_answers(exact_model, runs.donor, runs.words).of(runs.copied).mean()
    assert at(table, "pre", 6, "copy") == pytest.approx(own, abs=1e-5)
    assert np.isnan(at(table, "pre", 6, "effect on double"))


def test_what_cannot_be_swept_is_refused(exact_model: LanguageModel, make_runs: MakeRuns) -> None:
    with pytest.raises(EditError, match="as many recipient_examples"):
        sweep(exact_model, make_runs("zero examples"), roles=["lab"])
    with pytest.raises(SiteError, match="role 'label'"):
        sweep(exact_model, make_runs(), roles=["label"])
    for layer in (-1, 7):
        with pytest.raises(EditError, match="layers run from 0 to 6"):
            sweep(exact_model, make_runs(), layers=[layer])
    with pytest.raises(ModelError, match="only 2 blocks"):
        part = load_model(ROOT / "checkpoints" / "icl-tiny", blocks=2)
        sweep(part, make_runs(), layers=[1])


@pytest.mark.parametrize("recipient", ["zero examples", "S arm"])
def test_an_ablated_donor_leaves_the_recipient_as_it_is(
    exact_model: LanguageModel, make_runs: MakeRuns, recipient: str
) -> None:
    runs = make_runs(recipient)
    edits = ablation_edits(exact_model, runs, Ablation.parse("L1 L2H2"))
    patched, base = patch_query(exact_model, runs, range(7), edits, batch=3)
    plain, same_base = patch_query(exact_model, runs, range(7))
    for layer in range(7):
        np.testing.assert_array_equal(base[layer].log_prob, same_base[layer].log_prob)
        moved = np.abs(patched[layer].log_prob - plain[layer].log_prob).max()
        assert moved < 1e-4 if layer <= 1 else moved > 0.1, layer
    donor = ablated_answers(exact_model, runs.donor, edits, runs.words)
    np.testing.assert_allclose(patched[6].log_prob, donor.log_prob, atol=1e-4)
    table = sweep(exact_model, runs, roles=["pre"], donor_edits=edits, draws=20)
    for layer in (0, 3, 6):
        wanted = patched[layer].of(runs.own).mean()
        assert at(table, "pre", layer, "task on own x") == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("recipient", ["zero examples", "S arm"])
def test_whole_passes_and_the_tail_patch_alike(
    exact_model: LanguageModel, make_runs: MakeRuns, recipient: str
) -> None:
    runs = make_runs(recipient)
    for edits in ((), ablation_edits(exact_model, runs, Ablation.parse("L0H1 L3"))):
        patched, _ = patch_query(exact_model, runs, [0, 2, 6], edits, batch=3)
        donors, recipients = up_to_query(runs.donor), up_to_query(runs.recipient)
        for found, layer in zip(patched, (0, 2, 6), strict=True):
            site, (here, there) = (
                layer_site(exact_model, layer),
                (np.array([tokens.shape[1] - 1]) for tokens in (donors, recipients)),
            )
            held = record(exact_model, donors, [site], here, edits=edits)[site]
            plain = answer_probs(
                exact_model, recipients, there, extra=runs.words, edits=[Edit(site, "resample", there, held)]
            )
            np.testing.assert_allclose(found.log_prob, plain.log_prob[:, 0], atol=1e-4)


def test_an_ablated_donors_context_is_patched_too(exact_model: LanguageModel, make_runs: MakeRuns) -> None:
    runs = make_runs("S arm")
    everywhere = ablation_edits(exact_model, runs, Ablation.parse("L0", "resample", "all positions"))
    plain = sweep(exact_model, runs, roles=["lab"], layers=[0, 2], draws=20)
    ablated = sweep(
        exact_model, runs, roles=["lab"], layers=[0, 2], donor_edits=everywhere, draws=20, batch=3
    )
    zero, two = (
        [at(table, "lab", layer, "effect on exact") for table in (plain, ablated)] for layer in (0, 2)
    )
    assert zero[0] == pytest.approx(zero[1], abs=1e-5) and abs(two[0] - two[1]) > 1e-3


def test_graded_gives_each_count_its_sweep_and_the_unpatched_curve(
    exact_model: LanguageModel, make_runs: MakeRuns
) -> None:
    task, counts = parse_task("2x+3"), (0, 2, 4)
    table = graded(exact_model, task, layer=3, counts=counts, n_prompts=8, seed=7)
    assert len(table) == len(counts) * len(PROBABILITIES)
    runs = make_runs("zero examples")
    alone = sweep(exact_model, runs, layers=[3])
    target = query_answers(exact_model, runs.target, runs.words)
    rows = table.where((table["n_seen"] == 4) & (table["metric"] == "task on own x"))
    assert rows["value"][0] == at(alone, "pre", 3, "task on own x")
    assert rows["unpatched"][0] == pytest.approx(target.of(runs.own).mean())


def test_graded_keeps_a_matched_recipient_throughout(exact_model: LanguageModel) -> None:
    table = graded(
        exact_model, parse_task("2x+3"), layer=6, counts=(1, 4), recipient="S arm", n_prompts=4, seed=7
    )
    assert set(table["recipient"]) == {"S arm"}
    assert set(table["n_seen"]) == {1, 4}
