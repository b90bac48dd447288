"""Which attention heads does the task's answer need? Heads of run A* ablated, one by one and by layers.

A* shows the task's examples and asks B's query. 1. A head's output z is replaced, before its projection into
the residual, at the query's `pre` alone or at every position. 2. By zero; by its mean over the recipients,
which are as long and hold no task; or by its value in the prompt's own recipient (*resample*). 3. What A*
then answers is set against what it answered. An ablation at the last position leaves what a head did at
earlier ones; the recorded llama-3-8b observations zero the last position only.
Enter a model and runs; leaves a HeadTable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from iclens.errors import EditError
from iclens.models.forward import answer_probs, record
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.patching.effects import means, resamples
from iclens.patching.residual import query_answers, up_to_query
from iclens.patching.runs import Runs
from iclens.patching.sweep import EFFECTS, PROBABILITIES, readouts
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats, Ints
from iclens.tables.edits import Edit
from iclens.tables.patches import HeadTable

KINDS = ("zero", "mean", "resample")
PLACES = ("pre", "all positions")
WHOLE_LAYER = -1
"""Stands for all heads of a layer at once."""


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
    for name, asked, known in (("kind", kind, KINDS), ("place", place, PLACES)):
        if asked not in known:
            raise EditError(f"ablation {name} '{asked}'", "unknown", f"One of {', '.join(known)}.")
    matched = runs.recipient.n_examples == runs.target.n_examples
    if kind != "zero" and not matched:
        lengths = f"A* has {runs.target.n_examples} examples, B {runs.recipient.n_examples}"
        raise EditError(f"a {kind} ablation", lengths, "Use a length-matched S arm.")
    tokens = up_to_query(runs.target)
    end = tokens.shape[1] - 1
    where = np.array([end]) if place == "pre" else np.arange(end + 1)
    base = readouts(query_answers(model, runs.target, runs.words), runs)
    weights = resamples(len(tokens), draws, np.random.default_rng(seed))
    parts = []
    for layer in range(model.n_blocks) if layers is None else layers:
        for head, edit in _edits(model, runs, layer, kind, where, batch):
            probs = _ablated(model, tokens, edit, runs.words, batch)
            parts.append(_rows(runs, (kind, place, layer, head), base, readouts(probs, runs), weights))
    return HeadTable.concat(parts)


def _edits(
    model: LanguageModel, runs: Runs, layer: int, kind: str, where: Ints, batch: int
) -> Iterator[tuple[int, Edit]]:
    """Each head of a layer and its edit, all heads at once last."""
    site = model.check_site(Site(layer, "z"))
    value = None
    if kind != "zero":
        held = record(model, up_to_query(runs.recipient), [site], where, batch=batch)[site]
        value = held.reshape(*held.shape[:2], model.n_heads, model.d_head)
        value = value.mean(axis=0, keepdims=True) if kind == "mean" else value
    name = "zero" if value is None else "replace"
    for head in (*range(model.n_heads), WHOLE_LAYER):
        chosen = np.arange(model.n_heads) if head == WHOLE_LAYER else np.array([head])
        part = None if value is None else value[:, :, chosen]
        yield head, Edit(site, name, where, part, heads=chosen)


def _ablated(
    model: LanguageModel, tokens: Ints, edit: Edit, words: tuple[str, ...], batch: int
) -> AnswerProbs:
    """Answers at the last position with the edit, [prompt answer]; rows keep their own values."""
    parts, end = [], np.array([tokens.shape[1] - 1])
    for start in range(0, len(tokens), batch):
        rows = slice(start, start + batch)
        own = edit.value if edit.value is None or len(edit.value) == 1 else edit.value[rows]
        some = Edit(edit.site, edit.kind, edit.recipient_pos, own, heads=edit.heads)
        parts.append(answer_probs(model, tokens[rows], end, extra=words, edits=(some,), batch=batch))
    return AnswerProbs(parts[0].answers, np.concatenate([part.log_prob[:, 0] for part in parts]))


def _rows(
    runs: Runs, which: tuple[str, str, int, int], before: dict[str, Floats], after: dict[str, Floats],
    weights: Floats,
) -> HeadTable:  # fmt: skip
    kind, place, layer, head = which
    metrics = [*PROBABILITIES, *EFFECTS]
    change = means(np.stack([after[name] - before[name] for name in metrics], axis=1), weights)
    n = len(metrics)
    return HeadTable({
        "kind": [kind] * n, "place": [place] * n, "layer": [layer] * n, "head": [head] * n,
        "n_seen": [runs.n_seen] * n, "metric": metrics,
        "scale": ["probability"] * len(PROBABILITIES) + ["nats"] * len(EFFECTS),
        "base": [before[name].mean() for name in metrics],
        "ablated": [after[name].mean() for name in metrics],
        "effect": change.value, "ci_low": change.low, "ci_high": change.high,
        "n_prompts": [len(before[name]) for name in metrics],
    })  # fmt: skip
