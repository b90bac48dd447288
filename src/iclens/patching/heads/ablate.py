"""Which attention heads does the task's answer need? Heads of run A* ablated, one by one, by layers, in sets.

A* shows the task's examples and asks B's query. 1. A head's output z is replaced, before its projection into
the residual, at the query's `pre` alone or at every position. 2. By zero; by its mean over the recipients,
which are as long and hold no task; or by its value in the prompt's own recipient (*resample*). 3. What A*
then answers is set against what it answered. An ablation at the last position leaves what a head did at
earlier ones; the recorded llama-3-8b observations zero the last position only.
An `Ablation` names any set of heads, replaced together in one run; `ablation_edits` makes it edits.
Enter a model and runs; leaves a HeadTable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from iclens.errors import EditError
from iclens.models.forward import answer_probs, record
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.patching.effects import means, resamples
from iclens.patching.residual import query_answers, up_to_query
from iclens.patching.runs import Runs, check_tokenizer
from iclens.patching.sweep import PROBABILITIES, effects, readouts
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats, Ints
from iclens.tables.edits import Edit
from iclens.tables.patches import HeadTable
from iclens.tables.prompts import PromptSet

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

    Args:
        heads: (layer, head) each; `WHOLE_LAYER` as the head stands for all heads of the layer.
        kind: one of `KINDS`; all but "zero" take their values from recipients as long as the run.
        place: one of `PLACES`.

    Raises:
        EditError: for an unknown kind or place, no head, or a negative one.
    """

    heads: Heads
    kind: str = "zero"
    place: str = "pre"

    def __post_init__(self) -> None:
        for name, asked, known in (("kind", self.kind, KINDS), ("place", self.place, PLACES)):
            if asked not in known:
                raise EditError(f"ablation {name} '{asked}'", "unknown", f"One of {', '.join(known)}.")
        if not self.heads:
            raise EditError("an ablation", "it names no head", "Name a head (L10H5), or a layer (L13).")
        for layer, head in self.heads:
            if layer < 0 or head < WHOLE_LAYER:
                raise EditError(f"head {head} of layer {layer}", "negative", "Layers and heads count from 0.")

    @classmethod
    def parse(cls, text: str, kind: str = "zero", place: str = "pre") -> Ablation:
        """Read `L10H5 L10H7 L13`: heads, and layers of which all heads are meant.

        Raises:
            EditError: for any other form.
        """
        found = []
        for word in text.replace(",", " ").split():
            match = _NAMED.fullmatch(word)
            if match is None:
                raise EditError(f"head '{word}'", "not a head's name", "Write L10H5, or L13 for a layer.")
            found.append((int(match[1]), WHOLE_LAYER if match[2] is None else int(match[2])))
        return cls(tuple(found), kind, place)

    @property
    def text(self) -> str:
        """The set as `parse` reads it, in layer order."""
        return named(self.heads)

    def of(self, heads: Heads) -> Ablation:
        """Other heads, replaced by the same at the same place."""
        return replace(self, heads=heads)

    def by_layer(self, model: LanguageModel) -> dict[int, Ints]:
        """Layer → its heads in the set, ascending.

        Raises:
            EditError: for a head that the model does not have.
            SiteError: for a layer that it does not have.
        """
        found: dict[int, set[int]] = {}
        for layer, head in sorted(self.heads):
            site = model.check_site(Site(layer, "z"))
            if head >= model.n_heads:
                raise EditError(
                    f"head {head} at {site.short}",
                    f"it has {model.n_heads} heads",
                    f"Heads run from 0 to {model.n_heads - 1}.",
                )
            every = range(model.n_heads) if head == WHOLE_LAYER else [head]
            found.setdefault(layer, set()).update(every)
        return {layer: np.array(sorted(heads)) for layer, heads in found.items()}


def named(heads: Heads) -> str:
    """Heads as `L10H5 L10H7 L13`, in layer order."""
    words = (f"L{layer}" + ("" if head == WHOLE_LAYER else f"H{head}") for layer, head in sorted(heads))
    return " ".join(words)


def ablation_edits(
    model: LanguageModel, runs: Runs, ablation: Ablation, batch: int = 128
) -> tuple[Edit, ...]:
    """An ablation as edits of runs A and A*, one per layer; each has to fire.

    Args:
        model: a whole model.
        runs: give the positions, and recipients for the values of a mean or resample.
        ablation: what to replace.
        batch: rows per forward pass.

    Raises:
        EditError: for a head that does not exist, or a mean or resample with recipients of another length.
        SiteError: for a layer that the model does not have.
    """
    where = _positions(runs, ablation.place)
    chosen = ablation.by_layer(model)
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


def ablated_answers(
    model: LanguageModel, prompts: PromptSet, edits: Sequence[Edit], words: tuple[str, ...], batch: int = 128
) -> AnswerProbs:
    """Answers at the query's `pre` of run A or A* under an ablation's edits, [prompt answer]."""
    tokens = up_to_query(prompts)
    read = np.array([tokens.shape[1] - 1])
    found = answer_probs(model, tokens, read, extra=words, edits=edits, batch=batch)
    return AnswerProbs(found.answers, found.log_prob[:, 0])


def ablate_heads(
    model: LanguageModel, runs: Runs, *, kind: str = "zero", place: str = "pre",
    layers: Sequence[int] | None = None, seed: int = 0, draws: int = 1000, batch: int = 128,
) -> HeadTable:  # fmt: skip
    """Effect of every head, and of all heads of a layer, on what A* answers.

    Args:
        model: a whole model.
        runs: donor, recipient and A*.
        kind: one of `KINDS`; all but "zero" take their values from recipients as long as A*.
        place: one of `PLACES`.
        layers: blocks whose heads are ablated; all by default.
        seed: of the bootstrap.
        draws: bootstrap resamples.
        batch: rows per forward pass.

    Raises:
        EditError: for an unknown kind or place, or recipients of another length.
        SiteError: for a layer that the model does not have.
    """
    check_tokenizer(model.tokenizer, runs)
    base = readouts(query_answers(model, runs.target, runs.words), runs)
    weights = resamples(runs.target.n_prompts, draws, np.random.default_rng(seed))
    parts = []
    for layer in range(model.n_blocks) if layers is None else layers:
        whole = Ablation(((layer, WHOLE_LAYER),), kind, place)
        for head, edit in _one_by_one(model, ablation_edits(model, runs, whole, batch)[0]):
            probs = ablated_answers(model, runs.target, (edit,), runs.words, batch)
            parts.append(_rows(runs, (kind, place, layer, head), base, readouts(probs, runs), weights))
    return HeadTable.concat(parts)


def _one_by_one(model: LanguageModel, whole: Edit) -> Iterator[tuple[int, Edit]]:
    """Each head of a layer's edit alone, and the whole layer last."""
    for head in range(model.n_heads):
        chosen = np.array([head])
        yield head, replace(whole, value=_part(whole.value, chosen), heads=chosen)
    yield WHOLE_LAYER, whole


def _positions(runs: Runs, place: str) -> Ints:
    """Positions of A and A* that a place means, [pos]."""
    end = up_to_query(runs.target).shape[1] - 1
    return np.array([end]) if place == "pre" else np.arange(end + 1)


def _values(
    model: LanguageModel, runs: Runs, layers: Sequence[int], kind: str, where: Ints, batch: int
) -> dict[int, Floats]:
    """Layer → what its heads are set to, [prompt pos head d_head], one row for a mean; none for zero.

    Raises:
        EditError: for recipients of another length.
    """
    if kind == "zero":
        return {}
    if runs.recipient.n_examples != runs.target.n_examples:
        lengths = f"A* has {runs.target.n_examples} examples, B {runs.recipient.n_examples}"
        raise EditError(
            f"a {kind} ablation",
            lengths,
            "Build the runs with recipient='S arm' and as many recipient_examples, or use kind 'zero'.",
        )
    sites = [Site(layer, "z") for layer in layers]
    held = record(model, up_to_query(runs.recipient), sites, where, batch=batch)
    found = {}
    for site in sites:
        heads = held[site].reshape(*held[site].shape[:2], model.n_heads, model.d_head)
        found[site.layer] = heads.mean(axis=0, keepdims=True) if kind == "mean" else heads
    return found


def _part(value: Floats | None, heads: Ints) -> Floats | None:
    """The values of some heads, [row pos head d_head]."""
    return None if value is None else value[:, :, heads]


def _rows(
    runs: Runs, which: tuple[str, str, int, int], before: dict[str, Floats], after: dict[str, Floats],
    weights: Floats,
) -> HeadTable:  # fmt: skip
    kind, place, layer, head = which
    metrics = [*PROBABILITIES, *effects(runs)]
    change = means(np.stack([after[name] - before[name] for name in metrics], axis=1), weights)
    n = len(metrics)
    return HeadTable({
        "kind": [kind] * n, "place": [place] * n, "layer": [layer] * n, "head": [head] * n,
        "n_seen": [runs.n_seen] * n, "metric": metrics,
        "scale": ["probability"] * len(PROBABILITIES) + ["nats"] * len(runs.beliefs),
        "base": [before[name].mean() for name in metrics],
        "ablated": [after[name].mean() for name in metrics],
        "effect": change.value, "ci_low": change.low, "ci_high": change.high,
        "n_prompts": [len(before[name]) for name in metrics],
    })  # fmt: skip
