"""The forward pass equals Hugging Face's and TransformerBridge's; hooks are removed, edits have fired."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from iclens.core import HOOKS, EditError, Site, SiteError
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import Edit, answer_probs, attached, edited_answers, record, record_and_answer
from iclens.prompts.build import PromptSet

from ..conftest import EXACT, FLOAT32, InFloat64


def n_hooks(model: LanguageModel) -> int:
    modules = list(model.network.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def run(model: LanguageModel, prompts: PromptSet, edits: Sequence[Edit] = (), batch: int = 128) -> np.ndarray:
    return answer_probs(model, prompts.tokens, prompts.positions("pre"), edits=edits, batch=batch).log_prob


def test_answers_equal_plain_hugging_face(exact_model: LanguageModel, prompts: PromptSet) -> None:
    _, ids = exact_model.answer_space()
    with torch.no_grad():
        logits = exact_model.network(torch.as_tensor(prompts.tokens)).logits
    plain = torch.log_softmax(logits, dim=-1)[:, torch.as_tensor(prompts.positions("pre"))][..., ids]
    np.testing.assert_allclose(run(exact_model, prompts), plain.numpy(), rtol=0, atol=EXACT)


def test_sites_equal_plain_hugging_face(exact_model: LanguageModel, prompts: PromptSet) -> None:
    everywhere = np.arange(prompts.tokens.shape[1])
    sites = [Site(layer, "resid_pre") for layer in range(exact_model.n_blocks)]
    ours = record(exact_model, prompts.tokens, sites, everywhere)
    with torch.no_grad():
        plain = exact_model.network(torch.as_tensor(prompts.tokens), output_hidden_states=True).hidden_states
    for layer, site in enumerate(sites):
        np.testing.assert_allclose(ours[site], plain[layer].numpy(), rtol=FLOAT32, atol=FLOAT32)


def test_a_block_adds_its_attention_and_its_mlp(exact_model: LanguageModel, prompts: PromptSet) -> None:
    found = record(exact_model, prompts.tokens, [Site(1, hook) for hook in HOOKS], prompts.positions("lab"))
    pre, mid, post, attention, _, mlp, z = (found[Site(1, hook)] for hook in HOOKS)
    projection = exact_model.network.model.layers[1].self_attn.o_proj.weight
    near = FLOAT32 * max(np.abs(part).max() for part in (pre, mid, post, z))
    np.testing.assert_allclose(z @ projection.detach().numpy().T, attention, rtol=0, atol=near)
    np.testing.assert_allclose(pre + attention, mid, rtol=0, atol=near)
    np.testing.assert_allclose(mid + mlp, post, rtol=0, atol=near)


def test_batches_change_nothing(exact_model: LanguageModel, prompts: PromptSet) -> None:
    np.testing.assert_allclose(
        run(exact_model, prompts, batch=4), run(exact_model, prompts), rtol=0, atol=EXACT
    )


def test_order_of_prompts_changes_nothing(exact_model: LanguageModel, prompts: PromptSet) -> None:
    order = np.array([4, 0, 5, 2, 1, 3])
    np.testing.assert_allclose(
        run(exact_model, prompts.select(order)), run(exact_model, prompts)[order], rtol=0, atol=EXACT
    )


def test_edits_do_what_they_say_and_only_there(
    tiny_model: LanguageModel, prompts: PromptSet, rng: np.random.Generator
) -> None:
    site, where = Site(2, "resid_post"), prompts.positions("lab")[1:3]
    everywhere = np.arange(prompts.tokens.shape[1])
    others = np.setdiff1d(everywhere, where)
    value = rng.normal(size=(prompts.n_prompts, len(where), tiny_model.d_model)).astype(np.float32)
    plain = record(tiny_model, prompts.tokens, [site], everywhere)[site]
    wanted = {"replace": value, "add": plain[:, where] + value, "zero": np.zeros_like(value)}
    for kind, after in wanted.items():
        edit = Edit(site, kind, where, None if kind == "zero" else value)
        held = record(tiny_model, prompts.tokens, [site], everywhere, edits=[edit])[site]
        np.testing.assert_allclose(held[:, where], after, atol=1e-6)
        np.testing.assert_array_equal(held[:, others], plain[:, others])


def test_an_edit_reaches_later_answers_and_no_earlier_one(
    tiny_model: LanguageModel, prompts: PromptSet, rng: np.random.Generator
) -> None:
    value = rng.normal(size=tiny_model.d_model).astype(np.float32)
    edit = Edit(Site(1, "resid_pre"), "add", prompts.positions("lab")[2:3], value)
    moved = np.abs(run(tiny_model, prompts, [edit]) - run(tiny_model, prompts)).max(axis=(0, 2))
    assert (moved[:3] == 0).all()
    assert (moved[3:] > 1e-3).all()


def test_adding_nothing_changes_nothing(tiny_model: LanguageModel, prompts: PromptSet) -> None:
    nothing = np.zeros(tiny_model.d_model, dtype=np.float32)
    edits = [Edit(Site(2, hook), "add", prompts.positions("pre"), nothing) for hook in HOOKS]
    np.testing.assert_array_equal(run(tiny_model, prompts, edits), run(tiny_model, prompts))


def test_no_hook_remains_after_a_run(tiny_model: LanguageModel, prompts: PromptSet) -> None:
    before = n_hooks(tiny_model)
    edit = Edit(Site(0, "mlp_out"), "zero", prompts.positions("pre"))
    run(tiny_model, prompts, [edit])
    assert n_hooks(tiny_model) == before


def test_no_hook_remains_after_a_run_that_raised(tiny_model: LanguageModel, prompts: PromptSet) -> None:
    before = n_hooks(tiny_model)
    outside = Edit(Site(1, "resid_pre"), "zero", np.array([10_000]))
    with pytest.raises(EditError, match="position 10000"):
        run(tiny_model, prompts, [outside])
    assert n_hooks(tiny_model) == before
    sites = [Site(0, "resid_post"), Site(99, "resid_post")]
    with pytest.raises(SiteError, match="blocks 0 to"), attached(tiny_model, sites, np.array([0])):
        pass
    assert n_hooks(tiny_model) == before
    with pytest.raises(ZeroDivisionError), attached(tiny_model, sites[:1], np.array([0])):
        assert n_hooks(tiny_model) == before + 1
        _ = 1 / 0
    assert n_hooks(tiny_model) == before


def test_an_edit_that_does_not_fire_once_raises(tiny_model: LanguageModel, prompts: PromptSet) -> None:
    before = n_hooks(tiny_model)
    edit = Edit(Site(1, "resid_pre"), "zero", np.array([3]))
    with pytest.raises(EditError, match="it fired 0 times"), attached(tiny_model, (), np.array([0]), [edit]):
        pass
    tokens = torch.as_tensor(prompts.tokens)
    with (
        pytest.raises(EditError, match="it fired 2 times"),
        torch.no_grad(),
        attached(tiny_model, (), np.array([0]), [edit]),
    ):
        tiny_model.network(tokens)
        tiny_model.network(tokens)
    assert n_hooks(tiny_model) == before


def test_values_by_row_follow_their_rows_through_batches(
    exact_model: LanguageModel, prompts: PromptSet, rng: np.random.Generator
) -> None:
    value = rng.normal(size=(prompts.n_prompts, 1, exact_model.d_model)).astype(np.float32)
    edit = Edit(Site(1, "resid_pre"), "add", np.array([3]), value)
    whole, parts = (run(exact_model, prompts, [edit], batch=batch) for batch in (64, 4))
    np.testing.assert_allclose(whole, parts, rtol=0, atol=EXACT)
    few = Edit(Site(1, "resid_pre"), "add", np.array([3]), value[:4])
    with pytest.raises(EditError, match="4 rows of values for 6 of tokens"):
        run(exact_model, prompts, [few])


def test_each_edit_reports_the_rows_in_which_it_fired(
    tiny_model: LanguageModel, prompts: PromptSet, rng: np.random.Generator
) -> None:
    """Several at once, of every kind; mean and resample replace."""
    d_model, n = tiny_model.d_model, prompts.n_prompts
    own = rng.normal(size=(n, 1, d_model)).astype(np.float32)
    site, where = Site(1, "resid_post"), prompts.positions("lab")[:1]
    edits = [
        Edit.at(site, "resample", "lab", [0], own),
        Edit.at(Site(2, "mlp_out"), "mean", "pre", [1], own.mean(axis=0, keepdims=True)),
        Edit.at(Site(2, "mlp_out"), "zero", "comma", [1, 2]),
        Edit.at(Site(0, "z"), "zero", "x", [1], heads=[0, 2]),
    ]
    last = prompts.positions("pre")[-1:]
    found = edited_answers(tiny_model, prompts.tokens, last, edits, batch=4)
    assert found.fired == (n, n, n, n)
    same = [Edit(site, "replace", where, own), *edits[1:]]
    same[1] = Edit(Site(2, "mlp_out"), "replace", edits[1].recipient_pos, own.mean(axis=0))
    np.testing.assert_array_equal(
        found.answers.log_prob, answer_probs(tiny_model, prompts.tokens, last, edits=same, batch=4).log_prob
    )
    assert edited_answers(tiny_model, prompts.tokens, last, []).fired == ()


def test_values_that_do_not_fit_are_one_line(
    tiny_model: LanguageModel, prompts: PromptSet, rng: np.random.Generator
) -> None:
    site, where = Site(1, "mlp_out"), np.array([3])
    with pytest.raises(EditError, match="1 rows of values for 6 of tokens"):
        run(tiny_model, prompts, [Edit(site, "resample", where, np.zeros((1, 1, tiny_model.d_model)))])
    with pytest.raises(EditError, match=r"its value is \(7,\), the activation there"):
        run(tiny_model, prompts, [Edit(site, "replace", where, np.zeros(7))])


def test_a_mean_is_one_row_and_a_resample_one_for_each(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(3, 1, 8))
    with pytest.raises(EditError, match="Give `value` as one row"):
        Edit(Site(1, "mlp_out"), "mean", np.array([3]), rows)
    for positions in (np.array([], dtype=int), np.array(3)):
        with pytest.raises(EditError, match="no list of one or more"):
            Edit(Site(1, "mlp_out"), "zero", positions)
    with pytest.raises(EditError, match="no axis of rows"):
        Edit(Site(1, "mlp_out"), "resample", np.array([3]), rows[0])
    with pytest.raises(SiteError, match="Nearest: pre"):
        Edit.at(Site(1, "mlp_out"), "zero", "pree", [0])


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_past", "L1.mlp", "blocks.x.hook_mlp_out", "layer 3"])
def test_an_unknown_site_name_raises(name: str) -> None:
    with pytest.raises(SiteError):
        Site.parse(name)


def test_an_unknown_kind_of_edit_raises() -> None:
    with pytest.raises(EditError, match="unknown"):
        Edit(Site(0, "mlp_out"), "swap", np.array([0]), np.zeros(3))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_answers_do_not_depend_on_what_is_recorded(
    tiny_folder: Path, in_float64: InFloat64, prompts: PromptSet, attention: Literal["sdpa", "eager"]
) -> None:
    """Where no site of the last block is recorded, its MLP runs at the answers' positions alone."""
    model = in_float64(load_model(tiny_folder, attention=attention))
    where, read = prompts.positions("lab"), prompts.positions("pre")
    expected = answer_probs(model, prompts.tokens, read).log_prob
    last = model.n_blocks - 1
    for sites in ([], [Site(last - 1, "resid_post")], [Site(0, "mlp_out"), Site(last, "mlp_out")]):
        runs = list(record_and_answer(model, prompts.tokens, sites, where, read, batch=4))
        found = np.concatenate([probs.log_prob for _, probs in runs])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        for site, values in (record(model, prompts.tokens, sites, where) if sites else {}).items():
            together = torch.cat([recorded[site] for recorded, _ in runs]).numpy()
            np.testing.assert_allclose(together, values, rtol=FLOAT32, atol=FLOAT32)


def test_an_edit_of_resid_mid_reaches_the_mlp_and_the_stream_beside_it(
    exact_model: LanguageModel, prompts: PromptSet, rng: np.random.Generator
) -> None:
    """An addition at attn_out of the same block is the same; one after it adds to it."""
    where, site, before = prompts.positions("pre")[-1:], Site(2, "resid_mid"), n_hooks(exact_model)
    value = rng.normal(size=exact_model.d_model).astype(np.float32)
    mid, out = (Edit(Site(2, hook), "add", where, value) for hook in ("resid_mid", "attn_out"))
    last = where
    one, other = (
        answer_probs(exact_model, prompts.tokens, last, edits=[edit]).log_prob for edit in (mid, out)
    )
    np.testing.assert_allclose(one, other, rtol=0, atol=EXACT)
    assert np.abs(one - answer_probs(exact_model, prompts.tokens, last).log_prob).max() > 0.1
    both = Edit(Site(2, "attn_out"), "add", where, 2 * value)
    np.testing.assert_allclose(
        answer_probs(exact_model, prompts.tokens, last, edits=[mid, out]).log_prob,
        answer_probs(exact_model, prompts.tokens, last, edits=[both]).log_prob, rtol=0, atol=EXACT,
    )  # fmt: skip
    seen = record(exact_model, prompts.tokens, [site], where, edits=[mid])[site]
    base = record(exact_model, prompts.tokens, [site], where)[site]
    np.testing.assert_allclose(
        seen - base, np.broadcast_to(value, base.shape), rtol=0, atol=FLOAT32 * np.abs(base).max()
    )
    assert n_hooks(exact_model) == before


def test_sites_equal_the_cache_of_the_same_names(
    tiny_folder: Path, tiny_model: LanguageModel, prompts: PromptSet
) -> None:
    wrapped = load_model(tiny_folder)
    bridge = TransformerBridge.boot_transformers(
        str(tiny_folder), hf_model=wrapped.network, tokenizer=wrapped.tokenizer, device="cpu"
    )
    _, cache = bridge.run_with_cache(torch.as_tensor(prompts.tokens))
    sites = [Site(layer, hook) for layer in range(tiny_model.n_blocks) for hook in HOOKS]
    ours = record(tiny_model, prompts.tokens, sites, np.arange(prompts.tokens.shape[1]))
    for site in sites:
        theirs = cache[str(site)].detach().numpy().reshape(ours[site].shape)  # z is [… head d_head] there
        # entries come from sums of much larger terms, so rounding goes with the site's size, not with theirs
        atol = 1e-5 * float(np.abs(theirs).max())
        np.testing.assert_allclose(ours[site], theirs, rtol=0, atol=atol, err_msg=str(site))
