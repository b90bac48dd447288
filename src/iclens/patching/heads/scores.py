"""Which heads write what the run goes on with, and where do they look?

1. At the query's `pre` of A* each head adds its output to the residual. 2. Its *score* is the dot product of
that output with a later residual, over the scale by which the final norm divides: how far the head lies along
what the run then holds. 3. Its logit *attribution* is what the output adds to the answer's logit over the
mean number's, the final norm frozen at the run's own scale. 4. Its attention from `pre` is added up over the
examples' labels, the query's own x, and BOS. None of these is an intervention: a high score is not a need.
Enter a model and runs; leaves a HeadScoreTable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iclens.models.attention import attention_patterns, head_dots
from iclens.models.forward import record, refuse_part
from iclens.models.load import LanguageModel, as_numpy
from iclens.names import Site, position
from iclens.patching.effects import means, resamples
from iclens.patching.residual import layer_site, up_to_query
from iclens.patching.runs import Runs, check_tokenizer
from iclens.tables.arrays import Floats, Ints
from iclens.tables.edits import Edit
from iclens.tables.heads import HeadScoreTable

ON_BOS = "all attention is on BOS"


@dataclass(frozen=True)
class LastPosition:
    """What the scores of a run's last position need.

    Args:
        z: layer → the heads' outputs before their projection, [row head·d_head].
        reference: resid_pre of the reference layer, [row d_model].
        scale: √(mean of the last resid_post squared + ε), by which the final norm divides, [row].
    """

    z: dict[int, Floats]
    reference: Floats
    scale: Floats


def last_position(
    model: LanguageModel, tokens: Ints, *, reference_layer: int, layers: Sequence[int] | None = None,
    edits: Sequence[Edit] = (), batch: int = 128,
) -> LastPosition:  # fmt: skip
    """Heads' outputs, a reference residual and the final norm's scale at the last position of `tokens`.

    Args:
        model: a whole model.
        tokens: [row pos].
        reference_layer: block whose resid_pre is the reference; n_blocks for the last resid_post.
        layers: blocks whose heads are read; all by default.
        edits: applied to every row.
        batch: rows per forward pass.

    Raises:
        ModelError: when only some blocks are loaded.
        EditError: for a reference layer that does not exist, or an edit that did not fire.
        SiteError: for a layer that does not exist.
    """
    refuse_part(model)
    z = {layer: Site(layer, "z") for layer in (range(model.n_blocks) if layers is None else layers)}
    reference, last = layer_site(model, reference_layer), layer_site(model, model.n_blocks)
    sites = list(dict.fromkeys([*z.values(), reference, last]))
    held = record(model, tokens, sites, np.array([tokens.shape[1] - 1]), edits=edits, batch=batch)
    end = held[last][:, 0].astype(np.float64)
    scale = np.sqrt((end**2).mean(axis=-1) + model.network.model.norm.variance_epsilon)
    return LastPosition({layer: held[site][:, 0] for layer, site in z.items()}, held[reference][:, 0], scale)


def score_maps(model: LanguageModel, read: LastPosition) -> Floats:
    """Every head's score, output · reference / scale, [row layer head]."""
    return _along(model, read, read.reference)


def logit_attributions(model: LanguageModel, read: LastPosition, answers: Ints) -> Floats:
    """What every head adds to logit(answer) − mean logit of the numbers, norm frozen; [row layer head], nats.

    Args:
        model: a whole model.
        read: from `last_position`.
        answers: token id of each row's answer, [row].
    """
    return _along(model, read, answer_directions(model, answers))


def answer_directions(model: LanguageModel, answers: Ints) -> Floats:
    """γ ⊙ (W_U[answer] − mean W_U[numbers]): residual direction of the logit difference, [row d_model].

    Args:
        model: a whole model; γ is its final norm's weight.
        answers: token id of each row's answer, [row].
    """
    head, gain = model.network.lm_head.weight, as_numpy(model.network.model.norm.weight)
    _, numbers = model.answer_space()
    mean = as_numpy(head[numbers.to(head.device)].float().mean(dim=0))
    return (as_numpy(head[np.asarray(answers)]) - mean) * gain


def head_scores(
    model: LanguageModel, runs: Runs, *, reference_layer: int, layers: Sequence[int] | None = None,
    seed: int = 0, draws: int = 1000, batch: int = 128,
) -> HeadScoreTable:  # fmt: skip
    """Score, logit attribution and attention of every head at A*'s query.

    Args:
        model: a whole model.
        runs: A* is read up to its query's `pre`.
        reference_layer: block whose resid_pre the score is taken against.
        layers: blocks whose heads are read; all by default.
        seed: of the bootstrap.
        draws: bootstrap resamples.
        batch: rows per forward pass.

    Raises:
        ModelError, EditError, SiteError: as in `last_position`.
    """
    check_tokenizer(model.tokenizer, runs)
    tokens, chosen = up_to_query(runs.target), tuple(range(model.n_blocks) if layers is None else layers)
    read = last_position(model, tokens, reference_layer=reference_layer, layers=chosen, batch=batch)
    names, ids = model.answer_space(runs.words)
    index = {name: i for i, name in enumerate(names)}
    wanted = as_numpy(ids)[[index[text] for text in runs.own]]
    score, attribution = score_maps(model, read), logit_attributions(model, read, wanted)
    masses = _masses(model, runs, tokens, chosen, batch)
    weights = resamples(len(tokens), draws, np.random.default_rng(seed))
    flat = {name: values.reshape(len(tokens), -1) for name, values in masses.items()}
    scored, labelled = means(score.reshape(len(tokens), -1), weights), means(flat["label"], weights)
    elsewhere = 1 - flat["bos"].mean(axis=0)
    reason = np.where(elsewhere > 0, "", ON_BOS)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(elsewhere > 0, labelled.value / elsewhere, np.nan)
    layer, head = (grid.ravel() for grid in np.meshgrid(chosen, np.arange(model.n_heads), indexing="ij"))
    n = len(layer)
    return HeadScoreTable({
        "layer": layer, "head": head, "reference_layer": [reference_layer] * n, "n_seen": [runs.n_seen] * n,
        "score": scored.value, "score_low": scored.low, "score_high": scored.high,
        "attribution": attribution.reshape(len(tokens), -1).mean(axis=0),
        "label_mass": labelled.value, "label_mass_low": labelled.low, "label_mass_high": labelled.high,
        "label_share": share, "own_x_mass": flat["own x"].mean(axis=0), "bos_mass": flat["bos"].mean(axis=0),
        "n_prompts": [len(tokens)] * n, "reason": [str(text) for text in reason],
    })  # fmt: skip


def _along(model: LanguageModel, read: LastPosition, directions: Floats) -> Floats:
    """Dot of every head's output with its row's direction [row d_model], over the scale, [row layer head]."""
    dots = [head_dots(model, layer, z, directions) for layer, z in read.z.items()]
    return np.stack(dots, axis=1) / read.scale[:, None, None]


def _masses(
    model: LanguageModel, runs: Runs, tokens: Ints, layers: Sequence[int], batch: int
) -> dict[str, Floats]:
    """Attention from the last position to labels, own x and BOS, each [row layer head]."""
    labels = [position("lab", example) for example in range(runs.n_seen)]
    own, end = position("x", runs.n_seen), np.array([tokens.shape[1] - 1])
    found = attention_patterns(model, tokens, layers, end, batch=batch)
    from_last = np.stack([found[layer][:, :, 0] for layer in layers], axis=1)
    return {
        "label": from_last[..., labels].sum(axis=-1), "own x": from_last[..., own], "bos": from_last[..., 0]
    }  # fmt: skip
