"""What the replication observes, and what it measures beyond the post."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from iclens.core import Site
from iclens.model.attention import attention_patterns
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, record
from iclens.model.tail import Tail, tails_of
from iclens.patching.heads import WHOLE_LAYER, Heads, heads_by_layer, last_position, layer_edits, score_maps
from iclens.patching.receiver import layer_site
from iclens.patching.sweep import lens_logits, unnormalised_logits
from iclens.prompts.beliefs import AnswerProbs
from iclens.seed_post.protocol import (
    INTACT,
    LOOKED_AT,
    RANKS,
    DonorSweepTable,
    DonorTable,
    Lens,
    Observations,
    Protocol,
    Recorded,
    context_x,
    encoded,
    without_task,
)
from iclens.stats import means, prompt_weights
from iclens.table import Floats, Ints, Strings

ZERO, MEAN = "zero", "mean"
LAST, EVERYWHERE = "last position", "all positions"
_BATCH = 64
"""Prompts that run together."""


@dataclass(frozen=True)
class DonorRun:
    """What a donor leaves at its last position."""

    resid: Floats  # resid_pre of every block, then the last resid_post, [layer d_model]
    top: tuple[str, ...]  # its own most probable tokens, [rank]
    probs: AnswerProbs  # its own answers, [answer]


def run_donor(model: LanguageModel, tokens: Ints, edits: Sequence[Edit] = ()) -> DonorRun:
    """Run a donor [pos] under edits."""
    sites = [layer_site(model, layer) for layer in range(model.n_blocks + 1)]
    recorded = record(model, tokens[None], sites, np.array([len(tokens) - 1]), edits=edits)
    resid = np.stack([recorded[site][0, 0] for site in sites])
    logits = lens_logits(model, resid[-1:])
    return DonorRun(resid, tuple(top_tokens(model, logits)[0]), number_probs(model, logits))


def ablation_edits(
    model: LanguageModel, heads: Heads, length: int,
    *, place: str = LAST, averages: dict[int, Floats] | None = None,
) -> tuple[Edit, ...]:  # fmt: skip
    """The edits that ablate some heads, one per layer.

    Args:
        heads: which; none gives no edit.
        place: `LAST` or `EVERYWHERE`.
        averages: layer → mean z over other prompts of this length, [pos head·d_head]; zero when not given.
    """
    where = np.array([length - 1]) if place == LAST else np.arange(length)
    chosen, by_head = heads_by_layer(heads, model.n_heads), (1, len(where), model.n_heads, model.d_head)
    values = {layer: z[where].reshape(by_head) for layer, z in (averages or {}).items() if layer in chosen}
    return layer_edits(chosen, ZERO if averages is None else MEAN, where, values)


def mean_outputs(model: LanguageModel, tokens: Ints, layers: Sequence[int]) -> dict[int, Floats]:
    """Mean of the heads' outputs z over prompts [prompt pos], layer → [pos head·d_head]."""
    sites = {layer: model.check_site(Site(layer, "z")) for layer in layers}
    recorded = (
        record(model, tokens, list(sites.values()), np.arange(tokens.shape[1]), batch=4) if sites else {}
    )
    return {layer: recorded[site].mean(axis=0) for layer, site in sites.items()}


def patched_tops(model: LanguageModel, recipients: Ints, resid: Floats, layer: int) -> Strings:
    """Most probable tokens after replacing the last position's resid_pre of `layer`, [row rank].

    Args:
        recipients: [row pos].
        resid: what is put there, one for every row, [row d_model].
    """
    last, end = np.array([recipients.shape[1] - 1]), Site(model.n_blocks - 1, "resid_post")
    parts = []
    for start in range(0, len(recipients), _BATCH):
        rows = slice(start, start + _BATCH)
        edit = Edit(layer_site(model, layer), "replace", last, resid[rows, None])
        recorded = record(model, recipients[rows], [end], last, edits=[edit])[end][:, 0]
        parts.append(top_tokens(model, lens_logits(model, recorded)))
    return np.concatenate(parts)


def swept_tops(model: LanguageModel, recipient: Ints, donors: Sequence[DonorRun]) -> list[Strings]:
    """Most probable tokens after patching every layer into one recipient [pos], [donor] of [layer rank]."""
    rows = np.tile(recipient, (len(donors), 1))
    layers = [
        patched_tops(model, rows, np.stack([donor.resid[layer] for donor in donors]), layer)
        for layer in range(model.n_blocks)
    ]
    return list(np.stack(layers, axis=1))


def swept_probs(tail: Tail, donors: Sequence[DonorRun]) -> Floats:
    """P(number) after patching every layer into a prepared recipient, [donor layer 1000]."""
    layers = []
    for layer in range(tail.model.n_blocks):
        rows = np.stack([donor.resid[layer] for donor in donors])
        layers.append(tail.run(tail.resid_pre(layer).new_tensor(rows), layer).numbers)
    return np.stack(layers, axis=1)


def top_tokens(model: LanguageModel, logits: Floats, ranks: int = RANKS) -> Strings:
    """The most probable tokens' text, [row rank], from logits [row token]."""
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :ranks]
    return np.array([[model.tokenizer.decode([int(i)]) for i in row] for row in order], dtype=object)


def number_probs(model: LanguageModel, logits: Floats) -> AnswerProbs:
    """Answers of one row's logits [1 token], as [answer]."""
    answers, ids = model.answer_space()
    shifted = logits[0].astype(np.float64) - logits[0].max()
    return AnswerProbs(answers, (shifted - np.log(np.exp(shifted).sum()))[ids.cpu().numpy()])


def joined(tokens: Sequence[str]) -> str:
    """Tokens as one text, spaces inside them as ␣ and line ends as ⏎."""
    return " ".join(token.replace(" ", "␣").replace("\n", "⏎") for token in tokens)


Report = Callable[[str], None]


def observe(model: LanguageModel, source: Recorded, protocol: Protocol, report: Report) -> Observations:
    """Everything that was recorded, on this model.

    Args:
        source: gives the prompts and the task.
        report: told what is under way.
    """
    tokens = {
        name: encoded(model.tokenizer, prompt)
        for name, prompt in source.prompts.items() if prompt.x is not None
    }  # fmt: skip
    report("logit lens")
    answer = source.slope * (source.prompts["lens"].x or 0) + source.offset
    lens = read_lens(model, tokens["lens"], protocol.numbers, str(answer))
    report(f"resid_pre {protocol.patch_layer} patched for {len(protocol.x)} x")
    x = patched_x(model, source, protocol, tokens["x donor"])
    report("sweeps from ablated donors")
    length = len(tokens["sweep donor"])
    donors = {
        name: run_donor(model, tokens["sweep donor"], ablation_edits(model, heads, length))
        for name, heads in protocol.ablations.items()
    }
    swept = swept_tops(model, tokens["sweep recipient"], list(donors.values()))
    report("score maps and attention")
    attention = attention_patterns(
        model, tokens["attention"][None], (protocol.attention_layer,), np.arange(len(tokens["attention"]))
    )[protocol.attention_layer][0]
    return Observations(
        lens=lens, x=x, donors={name: donor.top for name, donor in donors.items()},
        sweeps={name: tuple(map(tuple, rows)) for name, rows in zip(donors, swept, strict=True)},
        maps=read_maps(model, protocol, tokens), attention=attention,
    )  # fmt: skip


def read_lens(model: LanguageModel, tokens: Ints, numbers: tuple[str, ...], answer: str) -> Lens:
    """The lens after each block at the last position of `tokens` [pos], the final norm's division left out.

    Args:
        tokens: [pos].
        numbers: answers among which it is read besides.
    """
    sites = [Site(layer, "resid_post") for layer in range(model.n_blocks)]
    recorded = record(model, tokens[None], sites, np.array([len(tokens) - 1]))
    logits = unnormalised_logits(model, np.stack([recorded[site][0, 0] for site in sites])).astype(np.float64)
    prob = _softmax(logits)
    names, ids = model.answer_space()
    among = ids.cpu().numpy()[[names.index(number) for number in numbers]]
    share = _softmax(logits[:, among])
    top = top_tokens(model, logits, LOOKED_AT)
    first = np.argsort(-logits[:, among], axis=-1, kind="stable")[:, :RANKS]  # shares may all be 0
    return Lens(
        top=tuple(tuple(row[:RANKS]) for row in top),
        prob=tuple(tuple(row) for row in np.sort(prob, axis=-1)[:, : -RANKS - 1 : -1].tolist()),
        digits=tuple(sum(token.isdigit() for token in row) for row in top),
        numbers=tuple(tuple(numbers[i] for i in row) for row in first),
        answer_share=tuple(share[:, numbers.index(answer)].tolist()),
    )


def patched_x(
    model: LanguageModel, source: Recorded, protocol: Protocol, donor: Ints
) -> tuple[tuple[str, ...], ...]:
    """Most probable tokens for every x after the patch at one layer, [x][rank]."""
    recipients = np.stack([encoded(model.tokenizer, source.prompts["x recipient"], x) for x in protocol.x])
    resid = run_donor(model, donor).resid[protocol.patch_layer]
    rows = np.tile(resid, (len(recipients), 1))
    return tuple(map(tuple, patched_tops(model, recipients, rows, protocol.patch_layer)))


def read_maps(model: LanguageModel, protocol: Protocol, tokens: dict[str, Ints]) -> dict[str, Floats]:
    """Scores of every map, name → [layer head]."""
    maps = {}
    for one in protocol.maps:
        ids = tokens[one.prompt]
        edits = ablation_edits(model, protocol.ablated(one.ablation), len(ids))
        read = last_position(
            model,
            ids[None],
            reference_layer=one.reference_layer,
            layers=range(protocol.score_layers),
            edits=edits,
        )
        maps[one.name] = score_maps(model, read)[0]
    return maps


def _softmax(logits: Floats) -> Floats:
    weight = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weight / weight.sum(axis=-1, keepdims=True)


DRAWS = 5
"""Random draws of heads or layers for each ablation."""
STEP = 5
"""Every how many-th input is patched; odd, so that even and odd x take turns."""
REFERENCE_PROMPTS = 16
"""Prompts without the task over which a mean ablation averages."""
_NAMED, _NONE = "named", "none"


@dataclass(frozen=True)
class Donor:
    """A donor and how it was ablated."""

    name: str  # of the ablation it is, or stands in for
    heads: str  # "none", "named", "random heads" or "random layers"
    draw: int  # of a random one, from 0; −1 for others
    kind: str  # `ZERO`, `MEAN` or "none"
    place: str  # `LAST`, `EVERYWHERE` or "none"
    ablated: Heads  # which heads


def donors_of(protocol: Protocol, n_heads: int, rng: np.random.Generator) -> tuple[Donor, ...]:
    """Every donor that is run, the intact one first."""
    donors = [Donor(INTACT, _NONE, -1, _NONE, _NONE, ())]
    for name, heads in (*protocol.ablations.items(), *protocol.further.items()):
        for kind, place in ((ZERO, LAST), (ZERO, EVERYWHERE), (MEAN, LAST), (MEAN, EVERYWHERE)):
            donors.append(Donor(name, _NAMED, -1, kind, place, heads))
    for name, heads in protocol.ablations.items():
        whole = any(head == WHOLE_LAYER for _, head in heads)
        for draw in range(DRAWS):
            control = random_like(heads, n_heads, protocol.score_layers, rng)
            if control is not None:
                drawn = "random layers" if whole else "random heads"
                donors.append(Donor(name, drawn, draw, ZERO, LAST, control))
    return tuple(donors)


def random_like(heads: Heads, n_heads: int, n_layers: int, rng: np.random.Generator) -> Heads | None:
    """As many random heads of the same layers, or as many other layers; None where too few are left.

    Args:
        heads: what it stands in for.
        n_layers: layers that random ones are drawn from, those below this.
    """
    whole = [layer for layer, head in heads if head == WHOLE_LAYER]
    if whole:
        others = [layer for layer in range(n_layers) if layer not in whole]
        if len(others) < len(whole):
            return None
        drawn = rng.choice(others, size=len(whole), replace=False)
        return tuple((layer, WHOLE_LAYER) for layer in sorted(map(int, drawn)))
    chosen: list[tuple[int, int]] = []
    for layer, some in heads_by_layer(heads, n_heads).items():
        left = np.setdiff1d(np.arange(n_heads), some)
        if len(left) < len(some):
            return None
        chosen += [(layer, int(head)) for head in rng.choice(left, size=len(some), replace=False)]
    return tuple(chosen)


def go_beyond(
    model: LanguageModel,
    source: Recorded,
    protocol: Protocol,
    report: Report,
    seed: int = 0,
    draws: int = 1000,
) -> tuple[DonorTable, DonorSweepTable, tuple[tuple[str, ...], ...]]:
    """Every donor's own answer, and the sweep from it over many inputs.

    Args:
        source: gives the prompts and the task.
        report: told what is under way.
        seed: of the controls, the prompts without the task and the bootstrap.

    Returns:
        The donors, their sweeps over many x, and the intact donor's most probable tokens at the recorded x,
            [layer][rank].
    """
    rng = np.random.default_rng(seed)
    prompt = source.prompts["sweep donor"]
    tokens = encoded(model.tokenizer, prompt)
    donors = donors_of(protocol, model.n_heads, rng)
    report(f"{len(donors)} donors with other ablations")
    layers = sorted(
        {layer for one in donors if one.kind == MEAN for layer in heads_by_layer(one.ablated, model.n_heads)}
    )
    averages = mean_outputs(model, without_task(prompt, tokens, REFERENCE_PROMPTS, rng), layers)
    runs = [_run(model, donor, tokens, averages) for donor in donors]
    xs = tuple(x for x in protocol.x[::STEP] if x not in context_x(prompt))
    report(f"sweeps from {len(donors)} donors over {len(xs)} x")
    recipients = np.stack([_recipient(model, source, x) for x in xs])
    probs = np.stack([swept_probs(tail, runs) for tail in tails_of(model, recipients)], axis=2)
    tops = swept_tops(model, encoded(model.tokenizer, source.prompts["sweep recipient"]), runs)
    answers = np.array([[source.slope * x, source.slope * x + source.offset] for x in xs])
    answer = source.slope * (prompt.x or 0) + source.offset
    weights = prompt_weights(len(xs), draws, np.random.default_rng(seed))
    sweeps = [
        _sweep(donor, values, answers, answer, weights) for donor, values in zip(donors, probs, strict=True)
    ]
    rows = [
        _donor_row(donor, run, sweep, top, source, answer, model.n_heads)
        for donor, run, sweep, top in zip(donors, runs, sweeps, tops, strict=True)
    ]
    table = DonorTable.from_rows(rows)
    return table, DonorSweepTable.concat(sweeps), tuple(map(tuple, tops[0]))


def _run(model: LanguageModel, donor: Donor, tokens: Ints, averages: dict[int, Floats]) -> DonorRun:
    held = averages if donor.kind == MEAN else None
    where = EVERYWHERE if donor.place == EVERYWHERE else LAST
    edits = ablation_edits(model, donor.ablated, len(tokens), place=where, averages=held)
    return run_donor(model, tokens, edits)


def _recipient(model: LanguageModel, source: Recorded, x: int) -> Ints:
    return encoded(model.tokenizer, source.prompts["x recipient"], x)


def _sweep(donor: Donor, values: Floats, answers: Ints, own: int, weights: Floats) -> DonorSweepTable:
    """One donor's rows.

    Args:
        donor: which.
        values: P(number) after its patch, [layer x 1000].
        answers: slope·x and the task's answer, [x 2].
        own: the donor's own answer by the task.
        weights: bootstrap weights, [draw x].
    """
    wanted = np.column_stack([answers, np.full(len(answers), own)])
    names = ("slope·x", "task", "donor")
    top = values.argmax(axis=-1)
    prob = np.take_along_axis(values, np.broadcast_to(wanted, (len(values), *wanted.shape)), axis=-1)
    parts = []
    for layer in range(len(values)):
        read = np.hstack([top[layer][:, None] == wanted, prob[layer]]).astype(float)
        effects = means(read, weights)
        n = read.shape[1]
        parts.append(DonorSweepTable({
            "donor": [donor.name] * n, "heads": [donor.heads] * n, "draw": [donor.draw] * n,
            "kind": [donor.kind] * n, "place": [donor.place] * n, "layer": [layer] * n,
            "metric": [*(f"top-1 {name}" for name in names), *(f"P({name})" for name in names)],
            "value": effects.value, "ci_low": effects.low, "ci_high": effects.high, "n_x": [len(answers)] * n,
        }))  # fmt: skip
    return DonorSweepTable.concat(parts)


def _donor_row(
    donor: Donor,
    run: DonorRun,
    sweep: DonorSweepTable,
    tops: Strings,
    source: Recorded,
    own: int,
    n_heads: int,
) -> dict[str, object]:
    """One donor's row of the DonorTable; `tops` are [layer rank] at the recorded x."""
    double = str(source.slope * (source.prompts["sweep recipient"].x or 0))
    first = np.flatnonzero(tops[:, 0] == double)
    return {
        "donor": donor.name, "heads": donor.heads, "draw": donor.draw, "kind": donor.kind,
        "place": donor.place, "n_heads": sum(map(len, heads_by_layer(donor.ablated, n_heads).values())),
        "top": joined(run.top),
        "p_answer": float(run.probs.of(np.array(str(own)))),
        "first_layer": int(first[0]) if len(first) else -1, "n_x": int(sweep["n_x"][0]),
        **_shares("slope", sweep["value"][sweep["metric"] == "top-1 slope·x"]),
        **_shares("task", sweep["value"][sweep["metric"] == "top-1 task"]),
    }  # fmt: skip


def _shares(name: str, share: Floats) -> dict[str, object]:
    """Where a share of inputs [layer] first reaches a half, and where it is greatest."""
    half = np.flatnonzero(share >= 0.5)
    return {
        f"{name}_half": int(half[0]) if len(half) else -1, f"{name}_best": int(share.argmax()),
        f"{name}_share": float(share.max()),
    }  # fmt: skip
