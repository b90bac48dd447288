"""Attention heads: ablation, direct effects and scores.

1. Ablation: heads' outputs set to zero, a mean or another run's, and what A* then answers. 2. Direct effects:
the change that an ablation makes in what each component writes is put into a later residual alone, so that
what later components do about it is told apart. 3. Scores: what each head writes at the last position along a
reference residual or an answer, and where it attends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from iclens.core import EditError, Site
from iclens.model.attention import attention_patterns, head_changes, head_dots
from iclens.model.load import LanguageModel, as_numpy
from iclens.model.run import Edit, record, refuse_part
from iclens.model.tail import tails_of
from iclens.patching.receiver import at_pre, layer_site, query_answers, query_position, up_to_query
from iclens.patching.runs import Runs, check_tokenizer
from iclens.patching.sweep import metric_columns, readouts
from iclens.schemas import DirectTable, HeadScoreTable, HeadTable
from iclens.stats import Estimates, means, normalised_effects, prompt_weights
from iclens.table import Floats, Ints

KINDS = ("zero", "mean", "resample")
PLACES = ("pre", "all positions")
WHOLE_LAYER = -1
"""Stands for all heads of a layer at once."""
Heads = tuple[tuple[int, int], ...]
"""Heads as (layer, head); `WHOLE_LAYER` as the head stands for the layer."""
_NAMED = re.compile(r"L(\d+)(?:H(\d+))?")


@dataclass(frozen=True)
class Ablation:
    """A set of heads whose outputs are replaced together.

    Raises:
        EditError: for an unknown kind or place, no head, or a negative one.
    """

    heads: Heads  # (layer, head) each; `WHOLE_LAYER` as the head stands for all heads of the layer
    kind: str = "zero"  # one of `KINDS`; all but "zero" take their values from recipients as long as the run
    place: str = "pre"  # one of `PLACES`

    def __post_init__(self) -> None:
        expect_known("ablation", kind=(self.kind, KINDS), place=(self.place, PLACES))
        if not self.heads:
            raise EditError("an ablation", "it names no head", "Name a head (L10H5), or a layer (L13).")
        for layer, head in self.heads:
            if layer < 0 or head < WHOLE_LAYER:
                raise EditError(f"head {head} of layer {layer}", "negative", "Layers and heads count from 0.")

    @classmethod
    def parse(cls, text: str, kind: str = "zero", place: str = "pre") -> Ablation:
        """Read `L10H5 L10H7 L13`: heads, and layers of which all heads are meant; else an EditError."""
        heads = []
        for word in text.replace(",", " ").split():
            match = _NAMED.fullmatch(word)
            if match is None:
                raise EditError(f"head '{word}'", "not a head's name", "Write L10H5, or L13 for a layer.")
            heads.append((int(match[1]), WHOLE_LAYER if match[2] is None else int(match[2])))
        return cls(tuple(heads), kind, place)

    @property
    def text(self) -> str:
        """The set as `parse` reads it, in layer order."""
        return head_names(self.heads)

    def of(self, heads: Heads) -> Ablation:
        """Other heads, replaced by the same at the same place."""
        return replace(self, heads=heads)

    def by_layer(self, model: LanguageModel) -> dict[int, Ints]:
        """Layer → its heads in the set, ascending."""
        for layer, head in sorted(self.heads):
            site = model.check_site(Site(layer, "z"))
            if head >= model.n_heads:
                raise EditError(
                    f"head {head} at {site.short}", f"it has {model.n_heads} heads",
                    f"Heads run from 0 to {model.n_heads - 1}.",
                )  # fmt: skip
        return heads_by_layer(self.heads, model.n_heads)


def expect_known(what: str, **given: tuple[str, Sequence[str]]) -> None:
    """Refuse values, each beside those that are known, by an EditError."""
    for name, (value, known) in given.items():
        if value not in known:
            raise EditError(f"{what} {name} '{value}'", "unknown", f"One of {', '.join(known)}.")


def heads_by_layer(heads: Heads, n_heads: int) -> dict[int, Ints]:
    """Layer → its heads of a set, ascending, in a model of `n_heads` per layer."""
    chosen: dict[int, set[int]] = {}
    for layer, head in sorted(heads):
        chosen.setdefault(layer, set()).update(range(n_heads) if head == WHOLE_LAYER else [head])
    return {layer: np.array(sorted(some)) for layer, some in chosen.items()}


def head_names(heads: Heads) -> str:
    """Heads as `L10H5 L10H7 L13`, in layer order."""
    words = (f"L{layer}" + ("" if head == WHOLE_LAYER else f"H{head}") for layer, head in sorted(heads))
    return " ".join(words)


def ablation_edits(
    model: LanguageModel, runs: Runs, ablation: Ablation, batch: int = 128
) -> tuple[Edit, ...]:
    """An ablation as edits of runs A and A*, one per layer; each has to fire.

    Args:
        runs: give the positions, and recipients for the values of a mean or resample.
    """
    end = query_position(runs.target)
    where, chosen = end if ablation.place == "pre" else np.arange(end[0] + 1), ablation.by_layer(model)
    values = _values(model, runs, list(chosen), ablation.kind, where, batch)
    return layer_edits(chosen, ablation.kind, where, values)


def layer_edits(
    chosen: Mapping[int, Ints], kind: str, where: Ints, values: Mapping[int, Floats]
) -> tuple[Edit, ...]:
    """Heads set to values at some positions, one edit per layer.

    Args:
        chosen: layer → its heads.
        kind: one of `KINDS`.
        where: positions, [pos].
        values: layer → what all of its heads are set to, [row pos head d_head]; none for zero.
    """
    return tuple(
        Edit(Site(layer, "z"), kind, where, _part(values.get(layer), heads), heads=heads)
        for layer, heads in chosen.items()
    )


def _part(value: Floats | None, heads: Ints) -> Floats | None:
    """The values of some heads, [row pos head d_head]."""
    return None if value is None else value[:, :, heads]


def _values(
    model: LanguageModel, runs: Runs, layers: Sequence[int], kind: str, where: Ints, batch: int
) -> dict[int, Floats]:
    """Layer → what its heads are set to, [prompt pos head d_head], one row for a mean; none for zero."""
    if kind == "zero":
        return {}
    if runs.recipient.n_examples != runs.target.n_examples:
        raise EditError(
            f"a {kind} ablation",
            f"A* has {runs.target.n_examples} examples, B {runs.recipient.n_examples}",
            "Build the runs with recipient='S arm' and as many recipient_examples, or use kind 'zero'.",
        )
    sites = [Site(layer, "z") for layer in layers]
    acts = record(model, up_to_query(runs.recipient), sites, where, batch=batch)
    by_head = {
        site.layer: acts[site].reshape(*acts[site].shape[:2], model.n_heads, model.d_head) for site in sites
    }
    if kind == "resample":
        return by_head
    return {layer: values.mean(axis=0, keepdims=True) for layer, values in by_head.items()}


def ablate_heads(
    model: LanguageModel, runs: Runs, *, kind: str = "zero", place: str = "pre",
    layers: Sequence[int] | None = None, seed: int = 0, draws: int = 1000, batch: int = 128,
) -> HeadTable:  # fmt: skip
    """Effect of every head, and of all heads of a layer, on what A* answers.

    Args:
        kind: one of `KINDS`; all but "zero" take their values from recipients as long as A*.
        place: one of `PLACES`.
    """
    check_tokenizer(model.tokenizer, runs)
    tails = at_pre(model, runs) if place == "pre" else None
    before = readouts(query_answers(model, runs.target, runs.words, tails=tails), runs)
    weights = prompt_weights(runs.target.n_prompts, draws, np.random.default_rng(seed))
    parts = []
    for layer in range(model.n_blocks) if layers is None else layers:
        (whole,) = ablation_edits(model, runs, Ablation(((layer, WHOLE_LAYER),), kind, place), batch)
        alone = [np.array([head]) for head in range(model.n_heads)]
        edits = [replace(whole, value=_part(whole.value, head), heads=head) for head in alone]
        for head, edit in enumerate([*edits, whole]):
            answers = query_answers(model, runs.target, runs.words, (edit,), batch, tails)
            after = readouts(answers, runs)
            change = means(np.stack([after[name] - before[name] for name in before], axis=1), weights)
            same = {
                "kind": kind, "place": place, "layer": layer,
                "head": WHOLE_LAYER if edit is whole else head,
            }  # fmt: skip
            parts.append(HeadTable({
                **metric_columns(runs, same), "base": [values.mean() for values in before.values()],
                "ablated": [values.mean() for values in after.values()], **change.columns("effect", "ci"),
            }))  # fmt: skip
    return HeadTable.concat(parts)


TOTAL, ABLATED, COMPENSATION = "total", "ablated", "compensation"
LATER_HEADS, LATER_MLPS, LATER = "later heads", "later MLPs", "later"
HEADS_GIVEN, GIVEN = "later heads, given the loss", "later, given the loss"
SUMS = (TOTAL, ABLATED, COMPENSATION, LATER_HEADS, LATER_MLPS, LATER, HEADS_GIVEN, GIVEN)
"""Parts that are no single component, in the table's order."""
TO_DIRECT = ("the ablated heads' direct effect is", "their direct effect")
_NONE = -1


@dataclass(frozen=True)
class Component:
    """A head or MLP whose output is followed."""

    part: str  # "ablated head", "later head" or "later MLP"; or one of `SUMS`
    layer: int  # its block
    head: int  # its head, -1 for an MLP

    @property
    def name(self) -> str:
        """`L3H1` or `L3.mlp`; empty for a sum."""
        if self.layer == _NONE:
            return ""
        return f"L{self.layer}.mlp" if self.head == _NONE else f"L{self.layer}H{self.head}"


@dataclass(frozen=True)
class DirectEffects:
    """Direct effects of every prompt, before they are averaged."""

    base: Floats  # log-odds of A*, [prompt belief]
    sums: dict[str, Floats]  # one of `SUMS` → effect, [prompt belief], nats
    components: tuple[Component, ...]  # what `singles` are effects of
    singles: Floats  # [prompt component belief], nats


def direct_effects(
    model: LanguageModel, runs: Runs, ablation: Ablation, *, reader: int | None = None,
    beliefs: Sequence[str] | None = None, seed: int = 0, draws: int = 1000, batch: int = 128,
) -> DirectTable:  # fmt: skip
    """Total effect, compensation, and the direct effect of every later component and of the ablated heads.

    Args:
        runs: give A*, and recipients for the values of a mean or resample.
        reader: layer whose residual the outputs are put into; by default the last, before the final norm.
    """
    which = runs.columns(runs.beliefs if beliefs is None else beliefs)
    direct = direct_by_prompt(model, runs, ablation, reader=reader, batch=batch)
    weights = prompt_weights(len(direct.base), draws, np.random.default_rng(seed))
    sums = np.stack([direct.sums[name] for name in SUMS], axis=1)
    effects = np.concatenate([sums, direct.singles], axis=1)  # [prompt row belief]
    rows = [*(Component(name, _NONE, _NONE) for name in SUMS), *direct.components]
    n, tables = len(rows), []
    for b in which:
        effect = means(effects[:, :, b], weights)
        ratio = ratios(effects[:, :, b], direct.sums[ABLATED][:, b], weights)
        tables.append(DirectTable({
            "ablated": [ablation.text] * n, "kind": [ablation.kind] * n, "place": [ablation.place] * n,
            "reader": [model.n_blocks if reader is None else reader] * n,
            "part": [row.part for row in rows], "component": [row.name for row in rows],
            "layer": [row.layer for row in rows], "head": [row.head for row in rows],
            "n_seen": [runs.n_seen] * n, "belief": [runs.beliefs[b]] * n,
            "base": [direct.base[:, b].mean()] * n, **effect.columns("effect", "ci"),
            **ratio.columns("ratio"), "n_prompts": [len(direct.base)] * n, "reason": ratio.reason,
        }))  # fmt: skip
    return DirectTable.concat(tables)


def direct_by_prompt(
    model: LanguageModel, runs: Runs, ablation: Ablation, *, reader: int | None = None, batch: int = 128
) -> DirectEffects:
    """The effects that `direct_effects` averages, prompt by prompt; arguments and errors are its own."""
    check_tokenizer(model.tokenizer, runs)
    chosen = ablation.by_layer(model)
    first, last, stop = min(chosen), max(chosen), model.n_blocks if reader is None else reader
    if not last < stop <= model.n_blocks:
        raise EditError(
            f"direct effects of {ablation.text} at layer {stop}", f"the model has {model.n_blocks} blocks",
            f"Read at one of {last + 1} to {model.n_blocks}.",
        )  # fmt: skip
    edits = ablation_edits(model, runs, ablation, batch)
    components, change = _changes(model, runs, edits, range(first, stop), batch)
    masks = {
        ABLATED: [c.part == "ablated head" for c in components],
        LATER_HEADS: [c.part == "later head" for c in components],
        LATER_MLPS: [c.part == "later MLP" for c in components],
        LATER: [c.part != "ablated head" for c in components],
    }
    given = [[True] * len(components), *([not c for c in masks[part]] for part in (LATER_HEADS, LATER))]
    together = torch.tensor([*masks.values(), *given], device=change.device).to(change)
    read = []
    for prompt, tail in enumerate(tails_of(model, up_to_query(runs.target), runs.words)):
        delta = torch.cat([torch.zeros_like(change[prompt, :1]), together @ change[prompt], change[prompt]])
        probs = tail.run(tail.resid_pre(stop) + delta.to(tail.resid_pre(stop)), stop)
        read.append(runs.reader.log_odds(probs, np.full(len(delta), prompt)))
    odds = np.stack(read)  # [prompt nothing·together·component belief]
    effects = odds[:, 1:] - odds[:, :1]
    base = runs.reader.log_odds(query_answers(model, runs.target, runs.words))
    after = query_answers(model, runs.target, runs.words, edits, batch)
    sums = {name: effects[:, i] for i, name in enumerate(masks)}
    sums[TOTAL] = runs.reader.log_odds(after) - base
    sums[COMPENSATION] = sums[TOTAL] - sums[ABLATED]
    everything, *without = (effects[:, len(masks) + i] for i in range(len(given)))
    sums |= {name: everything - part for name, part in zip((HEADS_GIVEN, GIVEN), without, strict=True)}
    return DirectEffects(base, sums, components, effects[:, len(together) :])


def ratios(effect: Floats, direct: Floats, weights: Floats) -> Estimates:
    """effect / DE, ratios of means [column] under `weights` [draw prompt], guarded as a normalised effect is.

    Args:
        effect: [prompt column], nats.
        direct: direct effect of the ablated heads, [prompt], nats.
    """
    return normalised_effects(effect, np.broadcast_to(direct[:, None], effect.shape), weights, TO_DIRECT)


def _changes(
    model: LanguageModel, runs: Runs, edits: Sequence[Edit], layers: range, batch: int
) -> tuple[tuple[Component, ...], Tensor]:
    """Components of `layers`, and how the ablation changes what each writes at `pre` of A*.

    Heads of the first layer that are not ablated read the same as before and are left out; but where a norm
    follows attention, which then divides what they write by another number. All changes add up to that of the
    residual that enters the layer after these.

    Returns:
        The components, and ablated − base as [prompt component d_model].
    """
    ablated = {(edit.site.layer, int(head)) for edit in edits for head in np.asarray(edit.heads)}
    tokens = up_to_query(runs.target)
    here = query_position(runs.target)
    sites = [Site(layer, hook) for layer in layers for hook in ("z", "mlp_out")]
    before = record(model, tokens, sites, here, batch=batch)
    after = record(model, tokens, sites, here, edits=edits, batch=batch)
    components, parts = [], []
    for layer in layers:
        z, mlp = Site(layer, "z"), Site(layer, "mlp_out")
        changes = layer > layers.start or bool(model.adapter.after_attention)
        kept = [head for head in range(model.n_heads) if changes or (layer, head) in ablated]
        written = head_changes(model, layer, before[z][:, 0], after[z][:, 0])
        change = after[mlp][:, 0] - before[mlp][:, 0]
        parts += [written[:, kept], torch.as_tensor(change[:, None], device=written.device)]
        for head in kept:
            part = "ablated head" if (layer, head) in ablated else "later head"
            components.append(Component(part, layer, head))
        components.append(Component("later MLP", layer, _NONE))
    return tuple(components), torch.cat(parts, dim=1)


ON_BOS = "all attention is on BOS"


@dataclass(frozen=True)
class LastPosition:
    """What the scores of a run's last position need."""

    z: dict[int, Floats]  # layer → the heads' outputs before their projection, [row head·d_head]
    reference: Floats  # resid_pre of the reference layer, [row d_model]
    scale: Floats  # what the final norm divides by: √(mean of the last resid_post squared + ε), [row]


def last_position(
    model: LanguageModel, tokens: Ints, *, reference_layer: int, layers: Sequence[int] | None = None,
    edits: Sequence[Edit] = (), batch: int = 128,
) -> LastPosition:  # fmt: skip
    """Heads' outputs, a reference residual and the final norm's scale at the last position of `tokens`.

    Args:
        tokens: [row pos].
        reference_layer: block whose resid_pre is the reference; n_blocks for the last resid_post.
    """
    refuse_part(model)
    z = {layer: Site(layer, "z") for layer in (range(model.n_blocks) if layers is None else layers)}
    reference, last = layer_site(model, reference_layer), layer_site(model, model.n_blocks)
    sites = list(dict.fromkeys([*z.values(), reference, last]))
    acts = record(model, tokens, sites, np.array([tokens.shape[1] - 1]), edits=edits, batch=batch)
    end = acts[last][:, 0].astype(np.float64)
    scale = model.adapter.divisor(model.adapter.final_norm, end)
    return LastPosition({layer: acts[site][:, 0] for layer, site in z.items()}, acts[reference][:, 0], scale)


def score_maps(model: LanguageModel, read: LastPosition) -> Floats:
    """Every head's score, output · reference / scale, [row layer head]."""
    return _along(model, read, read.reference)


def logit_attributions(model: LanguageModel, read: LastPosition, answers: Ints) -> Floats:
    """What every head adds to logit(answer) − mean logit of the numbers, norm frozen; [row layer head], nats.

    Args:
        answers: token id of each row's answer, [row].
    """
    return _along(model, read, answer_directions(model, answers))


def answer_directions(model: LanguageModel, answers: Ints) -> Floats:
    """γ ⊙ (W_U[answer] − mean W_U[numbers]): residual direction of the logit difference, [row d_model].

    Less its own mean where the final norm is a LayerNorm. A soft cap of the logits is left out.

    Where numbers are no single tokens, the mean is over the `answers` themselves.

    Args:
        answers: token id of each row's answer, [row].
    """
    adapter, head = model.adapter, model.adapter.unembedding
    _, numbers = model.answer_space()
    if not len(numbers):
        numbers = torch.as_tensor(np.unique(answers))
    mean = as_numpy(head[numbers.to(head.device)].float().mean(dim=0))
    gain = as_numpy(adapter.gain(adapter.final_norm))
    return adapter.centred((as_numpy(head[np.asarray(answers)]) - mean) * gain)


def _along(model: LanguageModel, read: LastPosition, directions: Floats) -> Floats:
    """Dot of every head's output with its row's direction [row d_model], over the scale, [row layer head]."""
    dots = [head_dots(model, layer, z, directions) for layer, z in read.z.items()]
    return np.stack(dots, axis=1) / read.scale[:, None, None]


def head_scores(
    model: LanguageModel, runs: Runs, *, reference_layer: int, layers: Sequence[int] | None = None,
    seed: int = 0, draws: int = 1000, batch: int = 128,
) -> HeadScoreTable:  # fmt: skip
    """Score, logit attribution and attention of every head at A*'s query.

    Args:
        reference_layer: block whose resid_pre the score is taken against.
    """
    check_tokenizer(model.tokenizer, runs)
    tokens, chosen = up_to_query(runs.target), tuple(range(model.n_blocks) if layers is None else layers)
    read = last_position(model, tokens, reference_layer=reference_layer, layers=chosen, batch=batch)
    names, ids = model.answer_space(runs.words)
    index = {name: i for i, name in enumerate(names)}
    answers = as_numpy(ids)[[index[text] for text in runs.answer]]
    end = query_position(runs.target)
    patterns = attention_patterns(model, tokens, chosen, end, batch=batch)
    attention = np.stack([patterns[layer][:, :, 0] for layer in chosen], axis=1)  # [row layer head pos]
    labels, own_x = (runs.target.positions(role) for role in ("lab", "x"))
    figures = (
        score_maps(model, read), logit_attributions(model, read, answers),
        attention[..., labels[:-1]].sum(axis=-1), attention[..., own_x[-1]], attention[..., 0],
    )  # fmt: skip
    score, attribution, on_labels, on_x, on_bos = (values.reshape(len(tokens), -1) for values in figures)
    weights = prompt_weights(len(tokens), draws, np.random.default_rng(seed))
    label_mass, elsewhere = means(on_labels, weights), 1 - on_bos.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(elsewhere > 0, label_mass.value / elsewhere, np.nan)
    layer, head = (grid.ravel() for grid in np.meshgrid(chosen, np.arange(model.n_heads), indexing="ij"))
    n = len(layer)
    return HeadScoreTable({
        "layer": layer, "head": head, "reference_layer": [reference_layer] * n, "n_seen": [runs.n_seen] * n,
        **means(score, weights).columns("score"), "attribution": attribution.mean(axis=0),
        **label_mass.columns("label_mass"), "label_share": share, "own_x_mass": on_x.mean(axis=0),
        "bos_mass": on_bos.mean(axis=0), "n_prompts": [len(tokens)] * n,
        "reason": ["" if some else ON_BOS for some in elsewhere > 0],
    })  # fmt: skip
