"""Ablated heads equal weights set to zero and attention set to zero; what replaces itself changes nothing."""

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from iclens.core import EditError, Site, SiteError
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs
from iclens.patching.heads import WHOLE_LAYER, Ablation, ablate_heads, ablated_answers, ablation_edits
from iclens.patching.receiver import query_answers, up_to_query
from iclens.patching.runs import ZERO, Runs
from iclens.patching.sweep import readouts
from iclens.schemas import HeadTable

Make = Callable[..., Runs]
N = 8


def value(table: HeadTable, layer: int, head: int, metric: str, column: str = "ablated") -> float:
    row = table.where((table["layer"] == layer) & (table["head"] == head) & (table["metric"] == metric))
    assert len(row) == 1
    return float(row[column][0])


def without_head(model: LanguageModel, layer: int, head: int) -> LanguageModel:
    """The model with the weights that read a head's output set to zero."""
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        columns = slice(head * model.d_head, (head + 1) * model.d_head)
        network.model.layers[layer].self_attn.o_proj.weight[:, columns] = 0
    return replace(model, network=network)


def test_a_zeroed_head_is_one_whose_output_nobody_reads(exact_model: LanguageModel, make_runs: Make) -> None:
    runs = make_runs("S arm")
    table = ablate_heads(exact_model, runs, kind="zero", place="all positions", layers=[0, 3])
    for layer, head in ((0, 1), (3, 0), (3, 3)):
        probs = query_answers(without_head(exact_model, layer, head), runs.target, runs.words)
        for metric in ("task on own x", "effect on exact", "effect on numeric"):
            wanted = readouts(probs, runs)[metric].mean()
            assert value(table, layer, head, metric) == pytest.approx(wanted, abs=1e-4), (layer, head, metric)
    effects = table["effect"][table["metric"] == "effect on exact"]
    assert np.abs(effects).max() > 0.1 and len(set(np.round(effects, 6))) > 3


def test_all_heads_of_a_layer_are_its_attention(exact_model: LanguageModel, make_runs: Make) -> None:
    runs, end = make_runs("S arm"), up_to_query(make_runs("S arm").target).shape[1] - 1
    for place, where in (("pre", np.array([end])), ("all positions", np.arange(end + 1))):
        table = ablate_heads(exact_model, runs, kind="zero", place=place, layers=[2])
        edit = Edit(Site(2, "attn_out"), "zero", where)
        probs = answer_probs(
            exact_model, up_to_query(runs.target), np.array([end]), extra=runs.words, edits=(edit,)
        )
        wanted = readouts(replace(probs, log_prob=probs.log_prob[:, 0]), runs)["effect on exact"].mean()
        assert value(table, 2, WHOLE_LAYER, "effect on exact") == pytest.approx(wanted, abs=1e-4)
        assert value(table, 2, WHOLE_LAYER, "effect on exact") != value(table, 2, 0, "effect on exact")


def test_a_recipient_that_is_the_target_changes_nothing(exact_model: LanguageModel, make_runs: Make) -> None:
    runs = make_runs("S arm")
    same = replace(runs, recipient=runs.target)
    table = ablate_heads(exact_model, same, kind="resample", place="all positions", batch=4)
    np.testing.assert_allclose(table["effect"], 0, atol=1e-5)
    assert len(table) == exact_model.n_blocks * (exact_model.n_heads + 1) * len(set(table["metric"]))


def test_a_mean_is_that_of_the_recipients_at_each_position(
    exact_model: LanguageModel, make_runs: Make
) -> None:
    """All recipients alike: their mean is each one's own value, and the two kinds agree."""
    runs = make_runs("S arm")
    alike = runs.recipient.select(np.zeros(N, dtype=int))
    asked = replace(runs.target, x=np.repeat(runs.target.x[:1], N, axis=0))
    one = replace(runs, recipient=alike, target=asked)
    mean, resampled = (
        ablate_heads(exact_model, one, kind=kind, place="all positions", layers=[1])
        for kind in ("mean", "resample")
    )
    np.testing.assert_allclose(mean["ablated"], resampled["ablated"], atol=1e-4)
    zero = ablate_heads(exact_model, one, kind="zero", place="all positions", layers=[1])
    assert not np.allclose(mean["ablated"], zero["ablated"], atol=1e-3)


def test_the_last_position_keeps_what_heads_did_before(exact_model: LanguageModel, make_runs: Make) -> None:
    runs = make_runs(ZERO)
    last, everywhere = (
        ablate_heads(exact_model, runs, kind="zero", place=place, layers=[0])
        for place in ("pre", "all positions")
    )
    assert not np.allclose(last["ablated"], everywhere["ablated"], atol=1e-3)
    np.testing.assert_allclose(last["base"], everywhere["base"])
    np.testing.assert_allclose(last["effect"], last["ablated"] - last["base"], atol=1e-9)
    assert (last["ci_low"] <= last["effect"] + 1e-9).all() and (
        last["effect"] <= last["ci_high"] + 1e-9
    ).all()


@pytest.mark.parametrize("place", ["pre", "all positions"])
@pytest.mark.parametrize("text", ["L0H1 L3H0 L3H2", "L1 L4H3", "L2H0 L2 L3"])
def test_a_set_is_ablated_in_one_run(
    exact_model: LanguageModel, make_runs: Make, text: str, place: str
) -> None:
    """Zeroed everywhere, a set is a model that reads none of its heads; at `pre`, one edit for each."""
    runs, ablation = make_runs("S arm"), Ablation.parse(text, place=place)
    edits = ablation_edits(exact_model, runs, ablation)
    found = ablated_answers(exact_model, runs.target, edits, runs.words, batch=3).log_prob
    chosen = ablation.by_layer(exact_model)
    assert [edit.site.layer for edit in edits] == sorted(chosen)
    if place == "all positions":
        bare = exact_model
        for layer, heads in chosen.items():
            for head in heads:
                bare = without_head(bare, layer, int(head))
        wanted = query_answers(bare, runs.target, runs.words).log_prob
    else:
        end = np.array([up_to_query(runs.target).shape[1] - 1])
        alone = [Edit(Site(i, "z"), "zero", end, heads=np.array([h])) for i in chosen for h in chosen[i]]
        answers = answer_probs(exact_model, up_to_query(runs.target), end, extra=runs.words, edits=alone)
        wanted = answers.log_prob[:, 0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(found - query_answers(exact_model, runs.target, runs.words).log_prob).max() > 0.1


def test_a_set_takes_means_and_other_runs_as_single_heads_do(
    exact_model: LanguageModel, make_runs: Make
) -> None:
    runs = make_runs("S arm")
    for kind in ("mean", "resample"):
        single = ablate_heads(exact_model, runs, kind=kind, layers=[2], draws=20)
        for head in (1, WHOLE_LAYER):
            edits = ablation_edits(exact_model, runs, Ablation(((2, head),), kind))
            read = readouts(ablated_answers(exact_model, runs.target, edits, runs.words), runs)
            wanted = value(single, 2, head, "effect on exact")
            assert read["effect on exact"].mean() == pytest.approx(wanted, abs=1e-5)
            assert edits[0].kind == kind
    same = replace(runs, recipient=runs.target)
    edits = ablation_edits(exact_model, same, Ablation.parse("L1 L2H3 L5", "resample", "all positions"))
    found = ablated_answers(exact_model, runs.target, edits, runs.words, batch=3)
    unchanged = query_answers(exact_model, runs.target, runs.words)
    np.testing.assert_allclose(found.log_prob, unchanged.log_prob, atol=1e-4)


def test_a_set_is_written_and_read_alike(exact_model: LanguageModel) -> None:
    ablation = Ablation.parse("L13, L10H7 L10H5")
    assert ablation.heads == ((13, WHOLE_LAYER), (10, 7), (10, 5))
    assert ablation.text == "L10H5 L10H7 L13" and Ablation.parse(ablation.text).text == ablation.text
    merged = Ablation.parse("L2H1 L2 L0H3 L2H1").by_layer(exact_model)
    assert {layer: heads.tolist() for layer, heads in merged.items()} == {0: [3], 2: [0, 1, 2, 3]}
    for text, said in (("10.5", "Write L10H5"), ("", "names no head"), ("L1H", "Write L10H5")):
        with pytest.raises(EditError, match=said):
            Ablation.parse(text)
    for heads in (((-1, 0),), ((0, -2),)):
        with pytest.raises(EditError, match="count from 0"):
            Ablation(heads)
    with pytest.raises(EditError, match="it has 4 heads"):
        Ablation(((1, 4),)).by_layer(exact_model)


def test_what_cannot_be_ablated_is_one_line(exact_model: LanguageModel, make_runs: Make) -> None:
    runs = make_runs(ZERO)
    for asked, error, said in (
        ({"kind": "noise"}, EditError, "One of zero, mean, resample"),
        ({"place": "lab"}, EditError, "One of pre, all positions"),
        ({"kind": "mean"}, EditError, "as many recipient_examples"),
        ({"layers": [6]}, SiteError, "blocks 0 to 5"),
    ):
        with pytest.raises(error, match=said):
            ablate_heads(exact_model, runs, **asked)
    heads = Edit(Site(1, "z"), "zero", np.array([3]), heads=np.array([4]))
    with pytest.raises(EditError, match="it has 4 heads"):
        answer_probs(exact_model, up_to_query(runs.target), np.array([3]), edits=(heads,))
    with pytest.raises(EditError, match="it has no heads"):
        Edit(Site(1, "attn_out"), "zero", np.array([3]), heads=np.array([0]))
