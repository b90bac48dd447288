"""Prompts with padding between their tokens give what the same prompts give without it, one by one."""

import numpy as np
import pytest
import torch

from iclens.core import PADDING, EditError, Site
from iclens.model.attention import Knockout, attention_patterns, record_knockout
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs, packed, record, record_and_answer
from iclens.model.tail import added_together, edited_at_end, tails_of
from iclens.saes.quality import LeftOut

COLUMNS, READ = 16, np.array([5, 15])
MID, OUT, HEADS = Site(1, "resid_mid"), Site(2, "resid_post"), Site(3, "z")


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """Prompts with holes, but none at the columns that are read, nor at the first; the first row has none."""
    rng = np.random.default_rng(0)
    rows = rng.integers(2, 900, (6, COLUMNS))
    holes = rng.random(rows.shape) < 0.3
    holes[0], holes[:, 0], holes[:, READ], holes[:, 7], holes[1:, 9] = False, False, False, False, True
    return np.where(holes, PADDING, rows)


def compact(row: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One prompt without padding, [1 pos], and where some of its columns went."""
    there = row != PADDING
    return row[there][None], (there.cumsum() - 1)[columns]


def test_packed(tokens: np.ndarray) -> None:
    made = packed(tokens)
    assert made.place is not None
    for row, ids, place in zip(tokens, made.ids, made.place, strict=True):
        there = row != PADDING
        assert ids[place[there]].tolist() == row[there].tolist() and (np.diff(place[there]) == 1).all()
        assert (place[~there] == made.ids.shape[1] - 1).all() and ids[there.sum() :].tolist().count(0) >= 1
    whole = packed(tokens[:1])
    assert whole.place is None and (whole.ids == tokens[:1]).all()


@pytest.mark.parametrize("edited", [False, True])
def test_recordings_and_answers(edited: bool, tokens: np.ndarray, tiny_model: LanguageModel) -> None:
    delta = np.random.default_rng(1).normal(0, 3, (len(tokens), 1, tiny_model.d_model)).astype(np.float32)
    at = np.array([7])
    edits = [Edit(OUT, "add", at, delta)] if edited else []
    acts = record(tiny_model, tokens, [MID, OUT, HEADS], READ, edits=edits, batch=4)
    probs = answer_probs(tiny_model, tokens, READ, edits=edits, batch=4)
    for i, row in enumerate(tokens):
        alone, where = compact(row, READ)
        own = [Edit(OUT, "add", compact(row, at)[1], delta[i : i + 1])] if edited else []
        for site, values in record(tiny_model, alone, [MID, OUT, HEADS], where, edits=own).items():
            np.testing.assert_allclose(acts[site][i], values[0], rtol=1e-5, atol=3e-4)
        wanted = answer_probs(tiny_model, alone, where, edits=own).log_prob[0]
        np.testing.assert_allclose(probs.log_prob[i], wanted, rtol=1e-5, atol=3e-4)
    both = list(record_and_answer(tiny_model, tokens, [OUT], READ, READ, batch=len(tokens)))
    if not edited:
        np.testing.assert_allclose(both[0][0][OUT].cpu().numpy(), acts[OUT], rtol=1e-5, atol=3e-4)
        np.testing.assert_allclose(both[0][1].log_prob, probs.log_prob, rtol=1e-5, atol=3e-4)


def test_patterns_and_knockouts(tokens: np.ndarray, tiny_model: LanguageModel) -> None:
    cut = Knockout(np.array([15, 15]), np.array([5, 7]), [0, 1])
    patterns = attention_patterns(tiny_model, tokens, [1], READ)[1]
    acts = record_knockout(tiny_model, tokens, [OUT], READ, [cut])[OUT]
    intact = record(tiny_model, tokens, [OUT], READ)[OUT]
    assert np.abs(acts[:, 1] - intact[:, 1]).max() > 0.01, "the edges carried something"
    for i, row in enumerate(tokens):
        alone, where = compact(row, READ)
        there = row != PADDING
        np.testing.assert_allclose(
            patterns[i][..., there], attention_patterns(tiny_model, alone, [1], where)[1][0], atol=1e-6
        )
        assert (patterns[i][..., ~there] == 0).all()
        own = Knockout(*(compact(row, np.asarray(part))[1] for part in (cut.queries, cut.keys)), cut.layers)
        np.testing.assert_allclose(
            acts[i], record_knockout(tiny_model, alone, [OUT], where, [own])[OUT][0], rtol=1e-5, atol=3e-4
        )


@pytest.mark.parametrize("first", [15, 7])
@pytest.mark.parametrize("site", [MID, OUT, Site(4, "mlp_out")])
def test_tails(first: int, site: Site, tokens: np.ndarray, tiny_model: LanguageModel) -> None:
    """Prompts of different lengths in common batches, with padding before the suffix and inside it."""
    deltas = torch.randn(len(tokens), 3, tiny_model.d_model, generator=torch.Generator().manual_seed(0))
    at = np.array([first])
    found = added_together(tails_of(tiny_model, tokens, first=first), site, list(deltas), at)
    for i, row in enumerate(tokens):
        alone, where = compact(np.tile(row, 1), np.array([first, 15]))
        edit = Edit(site, "add", where[:1], deltas[i][:, None].numpy())
        wanted = answer_probs(tiny_model, np.repeat(alone, 3, axis=0), where[1:], edits=[edit])
        np.testing.assert_allclose(found[i].log_prob, wanted.log_prob[:, 0], rtol=1e-5, atol=3e-4)


def test_edits_at_the_end_go_on_from_their_block(tokens: np.ndarray, tiny_model: LanguageModel) -> None:
    tails = tails_of(tiny_model, tokens)
    edits = [
        Edit(HEADS, "zero", np.array([15]), heads=np.array([1])),
        Edit(Site(4, "mlp_out"), "resample", np.array([15]), np.ones((len(tokens), 1, tiny_model.d_model))),
    ]
    for some in ([], edits[:1], edits):
        wanted = answer_probs(tiny_model, tokens, np.array([15]), edits=some).log_prob[:, 0]
        np.testing.assert_allclose(edited_at_end(tails, some).log_prob, wanted, rtol=1e-5, atol=3e-4)
    with pytest.raises(EditError, match=r"positions \[5\]: .*|prepared for edits of 15 alone"):
        edited_at_end(tails, [Edit(HEADS, "zero", np.array([5]))])


def test_positions_that_are_left_out_are_counted_without_padding() -> None:
    tokens = np.array([[9, PADDING, 8, 7], [PADDING, 9, 8, 7]])
    kept = LeftOut(ids=(7,), positions=(0,)).kept(tokens)
    assert kept.tolist() == [[False, False, True, False], [False, False, True, False]]
