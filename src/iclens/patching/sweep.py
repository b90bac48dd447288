"""Where does a whole residual carry the task, and where only the answer?

1. Run A's residuals are taken at every layer. 2. At one layer and role they replace run B's. 3. What B then
answers says which of three it was: nothing, the task (B answers f(x_B)) or the answer (B answers f(x_A)).
Role `pre` is the query's own pre; any other role is that token of every example of the context, for which B
must be as long as A.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iclens.errors import EditError
from iclens.models.load import LanguageModel
from iclens.names import check_role
from iclens.patching.effects import belief_log_odds, means, resamples
from iclens.patching.residual import patch_context, patch_query, query_answers
from iclens.patching.runs import ZERO, Runs, build_runs, check_tokenizer
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats
from iclens.tables.edits import Edit
from iclens.tables.patches import GradedTable, SweepTable
from iclens.tasks.rules import Task

DONOR_COUNTS = (0, 1, 2, 4, 8, 12, 15)
PROBABILITIES = ("task on own x", "copy", "top-1 task on own x", "top-1 copy")


def sweep(
    model: LanguageModel,
    runs: Runs,
    *,
    roles: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    donor_edits: Sequence[Edit] = (),
    seed: int = 0,
    draws: int = 1000,
    batch: int = 128,
) -> SweepTable:
    """Replace run B's residual by run A's at each layer and role, and read what B answers.

    Args:
        model: a whole model.
        runs: donor and recipient prompts.
        roles: which to replace; by default `pre`, and for a length-matched recipient `x`, `lab`, `close` too.
        layers: blocks whose resid_pre is replaced, n_blocks for the last resid_post; all by default.
        donor_edits: applied to run A alone, so that its residuals are those of an ablated model
            (`heads.ablation_edits`); run B is not ablated.
        seed: of the bootstrap.
        draws: bootstrap resamples.
        batch: rows per forward pass.

    Raises:
        EditError: for a layer that does not exist, a context role when lengths differ, or a donor edit that
            did not fire.
        SiteError: for an unknown role.
    """
    check_tokenizer(model.tokenizer, runs)
    matched = runs.recipient.n_examples == runs.donor.n_examples and runs.n_seen > 0
    roles = (("pre", "x", "lab", "close") if matched else ("pre",)) if roles is None else roles
    layers = range(model.n_blocks + 1) if layers is None else layers
    for role in roles:
        if check_role(role) != "pre" and not matched:
            lengths = f"donor and recipient have {runs.n_seen} and {runs.recipient.n_examples - 1} examples"
            raise EditError(
                f"a sweep over the context's '{role}'",
                lengths,
                "Build the runs with recipient='S arm' and as many recipient_examples, or sweep 'pre' alone.",
            )
    weights = resamples(runs.donor.n_prompts, draws, np.random.default_rng(seed))
    parts = []
    for role in roles:
        if role == "pre":
            patched, base = patch_query(model, runs, layers, donor_edits, batch)
        else:
            patched, base = patch_context(model, runs, layers, role, batch, donor_edits)
        for i, layer in enumerate(layers):
            before, after = readouts(base[i], runs), readouts(patched[i], runs)
            parts.append(_rows(runs, role, layer, before, after, weights))
    return SweepTable.concat(parts)


def graded(
    model: LanguageModel,
    task: Task,
    *,
    layer: int,
    role: str = "pre",
    counts: Sequence[int] = DONOR_COUNTS,
    recipient: str = ZERO,
    n_prompts: int = 64,
    seed: int = 0,
    inputs: Sequence[str] | None = None,
    draws: int = 1000,
) -> GradedTable:
    """One site's patch by the donor's number of examples, beside the unpatched curve of A*.

    Args:
        model: a whole model.
        task: the donor's rule.
        layer: where, as in `sweep`.
        role: what is replaced, as in `sweep`.
        counts: examples in the donor's context; a context role needs 2 or more.
        recipient: as in `build_runs`; for `pre` an S or R recipient keeps max(counts) examples throughout.
        n_prompts: pairs of runs; contexts are nested, and B's query is the same at every count.
        seed: of the draw and of the bootstrap.
        inputs: allowed x; the task's default inputs when not given.
        draws: bootstrap resamples.
    """
    columns: dict[str, list[object]] = {name: [] for name in GradedTable.COLUMNS}
    weights = resamples(n_prompts, draws, np.random.default_rng(seed))
    for count in counts:
        runs = build_runs(
            model.tokenizer, task, recipient=recipient, n_prompts=n_prompts, donor_examples=count,
            recipient_examples=max(counts) if role == "pre" else count, seed=seed, inputs=inputs,
        )  # fmt: skip
        patched = sweep(model, runs, roles=(role,), layers=(layer,), seed=seed, draws=draws)
        target = readouts(query_answers(model, runs.target, runs.words), runs)
        own = means(np.stack([target[name] for name in PROBABILITIES], axis=1), weights)
        for i, name in enumerate(PROBABILITIES):
            row = patched.where(patched["metric"] == name)
            for key in (
                "role",
                "layer",
                "recipient",
                "n_seen",
                "metric",
                "scale",
                "value",
                "ci_low",
                "ci_high",
            ):
                columns[key].append(row[key][0])
            for key, values in (
                ("unpatched", own.value),
                ("unpatched_low", own.low),
                ("unpatched_high", own.high),
            ):
                columns[key].append(values[i])
            columns["n_prompts"].append(n_prompts)
    return GradedTable(columns)


def effects(runs: Runs) -> tuple[str, ...]:
    """Names of the metrics that are a belief's log-odds, or their change."""
    return tuple(f"effect on {belief}" for belief in runs.beliefs)


def readouts(probs: AnswerProbs, runs: Runs) -> dict[str, Floats]:
    """What B says, per prompt: the probabilities of `PROBABILITIES`, and log-odds named by `effects`."""
    answers = np.array(probs.answers)[probs.top()]
    beliefs = belief_log_odds(probs, runs, np.arange(len(runs.own)))
    named = (probs.of(runs.own), probs.of(runs.copied), answers == runs.own, answers == runs.copied)
    return {
        **{name: np.asarray(values, dtype=float) for name, values in zip(PROBABILITIES, named, strict=True)},
        **{name: beliefs[:, i] for i, name in enumerate(effects(runs))},
    }


def _rows(
    runs: Runs, role: str, layer: int, before: dict[str, Floats], after: dict[str, Floats], weights: Floats
) -> SweepTable:
    read = [after[name] for name in PROBABILITIES] + [after[name] - before[name] for name in effects(runs)]
    found, n = means(np.stack(read, axis=1), weights), len(read)
    return SweepTable({
        "role": [role] * n, "layer": [layer] * n, "recipient": [runs.recipient_name] * n,
        "n_seen": [runs.n_seen] * n, "metric": [*PROBABILITIES, *effects(runs)],
        "scale": ["probability"] * len(PROBABILITIES) + ["nats"] * len(runs.beliefs),
        "value": found.value, "ci_low": found.low, "ci_high": found.high,
        "base": [before[name].mean() for name in (*PROBABILITIES, *effects(runs))],
        "n_prompts": [runs.donor.n_prompts] * n,
    })  # fmt: skip
