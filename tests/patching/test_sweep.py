"""Sweeps, lens and answers by x: identities of any model, and the known site of the shipped one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from iclens.core import BELIEFS, EditError, ModelError, Site, SiteError, TaskError, position
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import Edit, record, unembed
from iclens.patching.heads import Ablation, ablation_edits
from iclens.patching.receiver import (
    layer_site,
    patch_query,
    prepare_patch,
    query_answers,
    query_position,
    up_to_query,
)
from iclens.patching.runs import Runs, build_runs, runs_by_query
from iclens.patching.sweep import (
    BASE,
    ERROR,
    FULL,
    GIVEN,
    LATENTS,
    PROBABILITIES,
    TARGET,
    effects,
    expected_answer,
    graded,
    least_squares,
    lens_answers,
    lens_logits,
    lens_tokens,
    logit_lens,
    readouts,
    response_curve,
    response_fits,
    response_sweep,
    sweep,
    unnormalised_logits,
)
from iclens.prompts.beliefs import NUMBERS, AnswerProbs
from iclens.prompts.tasks import parse_task
from iclens.schemas import LensTable, ResponseTable, SweepTable
from iclens.table import Floats

from .conftest import ROOT, same


def at(table: SweepTable | LensTable, role: str, layer: int, metric: str) -> float:
    rows = table.where((table["role"] == role) & (table["layer"] == layer) & (table["metric"] == metric))
    assert len(rows) == 1
    return float(rows["value"][0])


@pytest.mark.parametrize("recipient", ["zero examples", "S arm"])
def test_a_donor_that_is_the_recipient_changes_nothing_at_all(tiny_model, make_runs, recipient):
    table = sweep(tiny_model, same(make_runs(recipient)))
    effects = table["scale"] == "nats"
    assert effects.sum() == len(BELIEFS) * (7 if recipient == "zero examples" else 4 * 7)
    for name in ("value", "ci_low", "ci_high"):
        assert (table[name][effects] == 0).all()
    np.testing.assert_allclose(table["value"][~effects], table["base"][~effects], rtol=1e-12)


@pytest.mark.parametrize(("roles", "layer"), [(["pre"], 0), (["x", "lab", "close"], 6)])
def test_equal_tokens_and_what_is_never_read_again_move_nothing(exact_model, make_runs, roles, layer):
    table = sweep(exact_model, make_runs(), roles=roles, layers=[layer])
    np.testing.assert_array_equal(table["value"][table["scale"] == "nats"], 0)


def test_the_labels_at_layer_0_turn_the_s_arm_into_a_star(exact_model, make_runs):
    runs = make_runs("S arm")
    table = sweep(exact_model, runs, roles=["lab"], layers=[0])
    target = query_answers(exact_model, runs.target, runs.words)
    assert at(table, "lab", 0, "task on own x") == pytest.approx(target.of(runs.answer).mean(), abs=1e-6)
    assert at(table, "lab", 0, "copy") == pytest.approx(target.of(runs.donor_answer).mean(), abs=1e-6)


def test_batches_change_nothing(exact_model, make_runs):
    whole, parts = (sweep(exact_model, make_runs(), roles=["lab"], layers=[1], batch=b) for b in (128, 3))
    np.testing.assert_allclose(whole["value"], parts["value"], rtol=1e-4, atol=1e-5)


def test_word_tasks_are_read_beside_numbers(exact_model, make_runs):
    runs = make_runs("zero examples", "word:opposite")
    table = sweep(exact_model, runs, layers=[6])
    own = query_answers(exact_model, runs.donor, runs.words).of(runs.donor_answer).mean()
    assert at(table, "pre", 6, "copy") == pytest.approx(own, abs=1e-5)
    assert np.isnan(at(table, "pre", 6, "effect on double"))


def test_what_cannot_be_swept_is_refused(exact_model, make_runs):
    part = load_model(ROOT / "checkpoints" / "icl-tiny", blocks=2)
    for model, recipient, given, error, said in (
        (exact_model, "zero examples", {"roles": ["lab"]}, EditError, "as many recipient_examples"),
        (exact_model, "S arm", {"roles": ["label"]}, SiteError, "role 'label'"),
        (exact_model, "S arm", {"layers": [-1]}, EditError, "layers run from 0 to 6"),
        (exact_model, "S arm", {"layers": [7]}, EditError, "layers run from 0 to 6"),
        (part, "S arm", {"layers": [1]}, ModelError, "only 2 blocks"),
    ):
        with pytest.raises(error, match=said):
            sweep(model, make_runs(recipient), **given)


@pytest.mark.parametrize("recipient", ["zero examples", "S arm"])
def test_an_ablated_donor_leaves_the_recipient_as_it_is(exact_model, make_runs, recipient):
    runs = make_runs(recipient)
    edits = ablation_edits(exact_model, runs, Ablation.parse("L1 L2H2"))
    patched, base = patch_query(exact_model, runs, range(7), edits, batch=3)
    plain, same_base = patch_query(exact_model, runs, range(7))
    for layer in range(7):
        np.testing.assert_array_equal(base[layer].log_prob, same_base[layer].log_prob)
        moved = np.abs(patched[layer].log_prob - plain[layer].log_prob).max()
        assert moved < 1e-4 if layer <= 1 else moved > 0.1, layer
    donor = query_answers(exact_model, runs.donor, runs.words, edits)
    np.testing.assert_allclose(patched[6].log_prob, donor.log_prob, atol=1e-4)
    table = sweep(exact_model, runs, roles=["pre"], donor_edits=edits, draws=20)
    for layer in (0, 3, 6):
        wanted = patched[layer].of(runs.answer).mean()
        assert at(table, "pre", layer, "task on own x") == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("recipient", ["zero examples", "S arm"])
def test_whole_passes_and_the_tail_patch_alike(exact_model, make_runs, recipient):
    runs = make_runs(recipient)
    for edits in ((), ablation_edits(exact_model, runs, Ablation.parse("L0H1 L3"))):
        patched, _ = patch_query(exact_model, runs, [0, 2, 6], edits, batch=3)
        for found, layer in zip(patched, (0, 2, 6), strict=True):
            site, here = layer_site(exact_model, layer), query_position(runs.recipient)
            resid = record(
                exact_model, up_to_query(runs.donor), [site], query_position(runs.donor), edits=edits
            )
            patch = Edit(site, "resample", here, resid[site])
            plain = query_answers(exact_model, runs.recipient, runs.words, (patch,))
            np.testing.assert_allclose(found.log_prob, plain.log_prob, atol=1e-4)


def test_an_ablated_donors_context_is_patched_too(exact_model, make_runs):
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


def test_graded_gives_each_count_its_sweep_and_the_unpatched_curve(exact_model, make_runs):
    task, counts = parse_task("2x+3"), (0, 2, 4)
    table = graded(exact_model, task, layer=3, counts=counts, n_prompts=8, seed=7)
    assert len(table) == len(counts) * len(PROBABILITIES)
    runs = make_runs("zero examples")
    alone = sweep(exact_model, runs, layers=[3])
    target = query_answers(exact_model, runs.target, runs.words)
    rows = table.where((table["n_seen"] == 4) & (table["metric"] == "task on own x"))
    assert rows["value"][0] == at(alone, "pre", 3, "task on own x")
    assert rows["unpatched"][0] == pytest.approx(target.of(runs.answer).mean())


def test_graded_keeps_a_matched_recipient_throughout(exact_model):
    table = graded(
        exact_model, parse_task("2x+3"), layer=6, counts=(1, 4), recipient="S arm", n_prompts=4, seed=7
    )
    assert set(table["recipient"]) == {"S arm"}
    assert set(table["n_seen"]) == {1, 4}


def site_curves(folder: str, recipient: str) -> tuple[np.ndarray, np.ndarray]:
    """P(f(x_B)) and P(f(x_A)) by layer at `pre`, from 12-example donors of 2x+3."""
    model = load_model(ROOT / "checkpoints" / folder)
    runs = build_runs(model.tokenizer, parse_task("2x+3"), recipient=recipient, n_prompts=16, seed=11)
    table = sweep(model, runs, roles=["pre"])
    own, copied = (table["value"][table["metric"] == metric] for metric in ("task on own x", "copy"))
    return own, copied


@pytest.mark.parametrize("recipient", ["zero examples", "S arm"])
def test_the_built_in_site_is_found(recipient):
    own, copied = site_curves("icl-tiny", recipient)
    site = int(own.argmax())
    assert own[site] >= 0.9 and copied[site] <= 0.05
    assert (np.delete(own, site) <= 0.2).all()
    assert own[0] <= 0.05 and copied[0] <= 0.05
    assert (copied[site + 1 :] >= 0.8).all() and site + 1 < len(copied)


def test_the_twin_has_no_such_site():
    own, copied = site_curves("icl-tiny-twin", "zero examples")
    assert (own <= 0.2).all()
    assert copied[-1] >= 0.5


LOG_ODDS = tuple(f"log-odds of {belief}" for belief in BELIEFS)


def last_residuals(model: LanguageModel, runs: Runs) -> Floats:
    site, tokens = Site(model.n_blocks - 1, "resid_post"), up_to_query(runs.target)
    return record(model, tokens, [site], np.array([tokens.shape[1] - 1]))[site][:, 0]


def test_the_last_layer_is_the_models_own_answer(tiny_model, make_runs):
    runs = make_runs("S arm")
    table = logit_lens(tiny_model, runs)
    own = readouts(query_answers(tiny_model, runs.target, runs.words), runs)
    for metric, name in zip((*PROBABILITIES, *effects(runs)), (*PROBABILITIES, *LOG_ODDS), strict=True):
        assert at(table, "pre", tiny_model.n_blocks, name) == pytest.approx(own[metric].mean(), abs=1e-4)
    assert len(table) == 9 * (tiny_model.n_blocks + 1)
    last, first = (at(table, "pre", layer, "task on own x") for layer in (tiny_model.n_blocks, 0))
    assert last > 0.5 > 10 * first


def test_layer_0_knows_its_token_only(tiny_model, make_runs):
    runs = make_runs("S arm")
    table = logit_lens(tiny_model, runs, roles=("open", "pre"), layers=(0, 2))
    embedding = tiny_model.network.model.embed_tokens(torch.as_tensor(up_to_query(runs.target)[:, -1]))
    wanted = readouts(lens_answers(tiny_model, embedding.detach().numpy(), runs.words), runs)
    assert at(table, "pre", 0, LOG_ODDS[0]) == pytest.approx(wanted[effects(runs)[0]].mean(), abs=1e-5)
    assert at(table, "open", 0, LOG_ODDS[0]) != pytest.approx(at(table, "pre", 0, LOG_ODDS[0]), abs=1e-2)
    assert set(table["layer"]) == {0, 2} and set(table["role"]) == {"open", "pre"}
    assert (table["ci_low"] <= table["value"] + 1e-12).all() and (
        table["ci_high"] >= table["value"] - 1e-12
    ).all()


def test_logits_in_float32_are_the_models(tiny_model, make_runs):
    resid = last_residuals(tiny_model, make_runs("S arm"))
    with torch.no_grad():
        wanted = unembed(tiny_model.network, torch.as_tensor(resid)).numpy()
    np.testing.assert_allclose(lens_logits(tiny_model, resid), wanted, atol=1e-4)


def test_without_the_division_order_stays_and_probabilities_do_not(tiny_model, make_runs):
    resid = last_residuals(tiny_model, make_runs("S arm"))
    with_norm, without = lens_logits(tiny_model, resid), unnormalised_logits(tiny_model, resid)
    np.testing.assert_array_equal(with_norm.argmax(axis=1), without.argmax(axis=1))
    scale = np.sqrt((resid.astype(float) ** 2).mean(axis=1) + 1e-6)
    np.testing.assert_allclose(with_norm * scale[:, None], without, rtol=1e-3, atol=1e-2)
    assert np.abs(with_norm - without).max() > 0.1


def test_after_the_last_block_it_is_the_model(tiny_model):
    runs = build_runs(tiny_model.tokenizer, parse_task("2x+3"), n_prompts=4, donor_examples=5, seed=1)
    ids, at = up_to_query(runs.target), position("pre", 5)
    asked = np.array([tiny_model.tokenizer.convert_tokens_to_ids(y) for y in runs.answer])
    found = lens_tokens(tiny_model, ids, at, asked, n_top=4)
    with torch.no_grad():
        logits = tiny_model.network(torch.as_tensor(ids)).logits[:, at].double()
    want = logits.softmax(dim=-1).numpy()
    assert found.layers == tuple(range(tiny_model.n_blocks + 1))
    assert found.top.shape == (4, tiny_model.n_blocks + 1, 4)
    np.testing.assert_array_equal(found.top[:, -1], np.argsort(-want, axis=1)[:, :4])
    np.testing.assert_allclose(found.top_prob[:, -1], -np.sort(-want, axis=1)[:, :4], atol=1e-5)
    np.testing.assert_allclose(found.asked_prob[:, -1], want[np.arange(4), asked], atol=1e-5)


def test_every_layer_is_read_as_answers_are(tiny_model):
    runs = build_runs(tiny_model.tokenizer, parse_task("2x+3"), n_prompts=2, donor_examples=3, seed=2)
    ids, at = up_to_query(runs.target), position("pre", 3)
    asked = np.array([tiny_model.tokenizer.convert_tokens_to_ids(y) for y in runs.answer])
    found = lens_tokens(tiny_model, ids, at, asked, layers=(1, 3))
    assert found.layers == (1, 3)
    with torch.no_grad():
        states = tiny_model.network(torch.as_tensor(ids), output_hidden_states=True).hidden_states
    for k, layer in enumerate(found.layers):  # hidden_states[L] enters block L
        answers = lens_answers(tiny_model, states[layer][:, at].numpy())
        np.testing.assert_allclose(found.asked_prob[:, k], answers.of(runs.answer), atol=1e-5)
    assert (np.diff(found.top_prob, axis=-1) <= 0).all()


def test_a_lens_on_what_is_not_there_is_refused(tiny_model, make_runs):
    runs, ids = make_runs("S arm", n_prompts=2), np.zeros((1, 3), dtype=int)
    for given, error, said in (
        ({"roles": ("before",)}, SiteError, "unknown"),
        ({"layers": (7,)}, EditError, "layers run from 0 to 6"),
        ({"model": replace(tiny_model, whole=False)}, ModelError, "blocks are loaded"),
    ):
        with pytest.raises(error, match=said):
            logit_lens(**({"model": tiny_model, "runs": runs} | given))
    with pytest.raises(EditError, match="layers run from 0"):
        lens_tokens(tiny_model, ids, 2, np.array([5]), layers=(99,))
    with pytest.raises(ModelError, match="only 2 blocks"):
        lens_tokens(load_model(tiny_model.name, blocks=2), ids, 2, np.array([5]))


XS, DONORS = range(3, 15), 3


@pytest.fixture(scope="module")
def runs(exact_model):
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
def test_every_x_is_asked_by_B_and_by_no_donor_of_its_own(exact_model, recipient):
    runs = drawn(exact_model, recipient)
    np.testing.assert_array_equal(runs.x_B.astype(int), np.repeat(XS, DONORS))
    for prompts in (runs.donor.x, runs.target.x[:, :-1], runs.recipient.x[:, :-1]):
        assert not (prompts == runs.x_B[:, None]).any()
    assert (runs.answer != runs.donor_answer).all() and runs.recipient_name == recipient
    np.testing.assert_array_equal(runs.donor.x[:, :-1], runs.target.x[:, :-1])
    assert len({tuple(context) for context in runs.donor.x.tolist()}) == len(XS) * DONORS
    if recipient != "zero examples":
        np.testing.assert_array_equal(runs.recipient.x[:, :-1], runs.donor.x[:, :-1])


def test_runs_by_query_refuses_what_cannot_be_asked(exact_model):
    tokenizer, task = exact_model.tokenizer, parse_task("2x+3")
    with pytest.raises(EditError, match="0 queries"):
        runs_by_query(tokenizer, task, ())
    with pytest.raises(TaskError, match="12 examples and two queries: 13 inputs"):
        runs_by_query(tokenizer, task, range(13))
    runs_by_query(tokenizer, task, [30, "30"], inputs=[str(x) for x in range(13)], donors=1)
    with pytest.raises(TaskError, match="depends on x"):
        runs_by_query(tokenizer, parse_task("7"), range(20))


def test_expected_answer_of_a_known_distribution():
    # P(4) = .1, P(10) = .3 and a word .4; the rest is outside. E[y | number] = (.4 + 3) / .4 = 8.5
    p = np.full((1, len(NUMBERS) + 1), 1e-30)
    p[0, [4, 10, 1000]] = 0.1, 0.3, 0.4
    probs = AnswerProbs((*NUMBERS, "big"), np.log(p).astype(np.float32))
    assert expected_answer(probs)[0] == pytest.approx(8.5, rel=1e-5)


def test_least_squares_of_three_points():
    x, y = np.array([1.0, 2.0, 4.0]), np.array([5.0, 7.0, 11.0])
    weights = np.array([[1, 1, 1], [0, 2, 1], [0, 0, 3]]) / 3
    slope, intercept = least_squares(x, y, weights)
    np.testing.assert_allclose(slope, [2, 2, np.nan])
    np.testing.assert_allclose(intercept, [3, 3, np.nan])
    assert least_squares(x, np.array([0.0, 0.0, 7.0]), weights)[0][0] == pytest.approx(2.5)  # 35/14


def test_a_row_holds_what_its_donors_say(exact_model, runs):
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
    copied = [of_x[i, int(runs.donor_answer[DONORS + i])] for i in range(DONORS)]
    assert row["p_copy"][0] == pytest.approx(np.mean(copied))


def test_a_donor_that_is_the_recipient_changes_nothing(exact_model, runs, make_sae):
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


def test_the_last_residual_brings_the_donors_answer(exact_model, runs, make_sae):
    donor = query_answers(exact_model, runs.donor, runs.words)
    by_x = expected_answer(donor).reshape(len(XS), DONORS).mean(axis=1)
    last = f"L{exact_model.n_blocks - 1}.resid_post"
    curve = response_curve(exact_model, make_sae(last), runs, donor_value="instance")
    swept = response_sweep(exact_model, runs, layers=(exact_model.n_blocks,))
    for found in (curve, swept):
        np.testing.assert_allclose(rows(found, FULL)["mean"], by_x, rtol=1e-4)
    copied = donor.of(runs.donor_answer).reshape(len(XS), DONORS).mean(axis=1)
    np.testing.assert_allclose(rows(curve, FULL)["p_copy"], copied, rtol=1e-4)


def test_rungs_are_those_of_the_ladder(exact_model, runs, make_sae):
    sae = make_sae()
    held = prepare_patch(exact_model, sae, runs, donor_value="task mean", seed=0)
    differ = np.flatnonzero((held.change != 0).any(axis=0))
    chosen = differ[:5]
    curves = response_curve(exact_model, sae, runs, sets=[chosen.tolist()])
    wanted = {
        FULL: held.everything, LATENTS: held.all_latents, ERROR: held.everything - held.all_latents,
        GIVEN: (held.donor_latents - held.latents)[:, chosen] @ held.directions(chosen),
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


def test_the_task_moves_where_it_stands_and_its_line_is_found(exact_model):
    runs = runs_by_query(exact_model.tokenizer, parse_task("2x+3"), range(50), donors=2, donor_examples=12)
    curves = response_sweep(exact_model, runs, layers=(0, 3, 6))
    fits = response_fits(curves).df.set_index(["site", "patch"])
    moved, copied = fits.loc["blocks.3.hook_resid_pre", FULL], fits.loc["blocks.5.hook_resid_post", FULL]
    assert moved.slope == pytest.approx(2, abs=0.1) and moved.intercept == pytest.approx(3, abs=1.5)
    assert moved.top_1_answer > 0.9 and moved.top_1_scaled < 0.1 and moved.slope_change_low > 0
    assert moved.slope_low < moved.slope < moved.slope_high
    assert abs(copied.slope) < 1 and copied.top_1_answer < 0.1
    assert fits.loc["blocks.0.hook_resid_pre", FULL].slope_change == pytest.approx(0, abs=1e-4)


def test_a_task_without_slope_says_so(exact_model):
    curves = response_sweep(exact_model, drawn(exact_model, task="x//2+4"), layers=(3,))
    assert np.isnan(curves["rank_scaled"]).all() and set(curves["reason"]) == {"the task has no slope"}
    fits = response_fits(curves)
    assert np.isnan(fits["top_1_scaled"]).all() and not np.isnan(fits["slope"]).any()


def test_too_few_points_give_no_line(exact_model):
    curves = response_sweep(exact_model, drawn(exact_model, xs=range(3, 5)), layers=(3,))
    fits = response_fits(curves)
    assert np.isnan(fits["slope"]).all() and set(fits["reason"]) == {"fewer than 3 x"}


def test_what_has_no_curve_is_refused(exact_model, runs, make_sae):
    words = runs_by_query(exact_model.tokenizer, parse_task("letter:next"), "abcdefgh", donor_examples=4)
    with pytest.raises(TaskError, match="no numbers"):
        response_sweep(exact_model, words)
    with pytest.raises(EditError, match="the SAE has 96"):
        response_curve(exact_model, make_sae(), runs, sets=[[3], [96]])
    curves = response_sweep(exact_model, runs, layers=(2,))
    with pytest.raises(EditError, match="no base"):
        response_fits(curves.where(curves["patch"] != BASE))
