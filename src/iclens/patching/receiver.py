"""The receiver of a patch: its run, the donor's values, the position, and the effect on beliefs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from iclens.core import ROLES, EditError, SaeError, Site, check_role, position
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs, record
from iclens.model.tail import Tail, added_together, run_together, tails_of
from iclens.patching.runs import Runs, check_tokenizer
from iclens.prompts.beliefs import AnswerProbs, log_odds, read_all
from iclens.prompts.build import PromptSet
from iclens.saes.encode import check_decoder, decoder_directions, decoder_lengths, refuse_transcoder
from iclens.saes.load import Sae
from iclens.table import Floats, Ints


def example_of(prompts: PromptSet, role: str) -> int:
    """Which example a role is taken of: the query, or the one before it for a token that the query lacks."""
    in_query = ROLES.index(check_role(role)) <= ROLES.index("pre")
    example = prompts.n_examples - (1 if in_query else 2)
    if example < 0:
        raise EditError(
            f"a patch at `{role}`",
            "the run shows no example before its query",
            "Patch at `pre` or earlier, or build the runs with recipient='S arm' (patch.recipient).",
        )
    return example


def place_of(prompts: PromptSet, role: str) -> int:
    """Token index of a role, as `LatentRuns` places it."""
    return position(role, example_of(prompts, role))


DONOR_VALUES = ("task mean", "instance")


def donor_weights(
    source: PromptSet, runs: Runs, role: str, halves: tuple[Ints, Ints], donor_value: str
) -> Floats:
    """Weight of each source prompt in each prompt's donor value, [prompt prompt]; rows sum to 1.

    Args:
        source: the prompts that values are taken from.
        runs: give x_B and f(x_B).
        role: where; the x of its example is a prompt's own.
        halves: prompts that may lend to each other.
        donor_value: one of `DONOR_VALUES`.

    Raises:
        EditError: when nothing may be lent to some prompt.
    """
    n, own = source.n_prompts, source.x[:, example_of(source, role)]
    if donor_value == "instance":
        return np.eye(n)
    shows = (source.x[None] == runs.x_B[:, None, None]).any(axis=2)
    allowed = (own[None] != own[:, None]) & ~shows & (source.answer[None, :, -1] != runs.own[:, None])
    same_half = np.zeros((n, n), dtype=bool)
    for half in halves:
        same_half[np.ix_(half, half)] = True
    weights = (allowed & same_half).astype(float)
    if not weights.any(axis=1).all():
        raise EditError(
            f"task means over {n} prompts",
            "for one of them every other shows its x, or answers alike",
            "Give more prompts or inputs, fewer examples, or donor_value 'instance'.",
        )
    return weights / weights.sum(axis=1, keepdims=True)


def mixed(mix: Tensor, rows: Tensor) -> Tensor:
    """mix @ rows, or the rows themselves, untouched by rounding, when each prompt is its own donor."""
    return rows if torch.equal(mix, torch.eye(len(mix), dtype=mix.dtype, device=mix.device)) else mix @ rows


def lent_answers(source: PromptSet, weights: Floats, answers: Sequence[str]) -> tuple[Ints, ...]:
    """Columns of the answers of the prompts that lend to each prompt, [prompt] of [answer]."""
    column = {answer: i for i, answer in enumerate(answers)}
    own = np.array([column[str(answer)] for answer in source.answer[:, -1]])
    return tuple(np.unique(own[row > 0]) for row in weights)


PatchedAndBase = tuple[list[AnswerProbs], list[AnswerProbs]]
"""Answers with the patch and without it, each [layer] of [prompt answer]."""


def patch_query(
    model: LanguageModel,
    runs: Runs,
    layers: Sequence[int],
    donor_edits: Sequence[Edit] = (),
    batch: int = 128,
) -> PatchedAndBase:
    """Answers with the query's `pre` replaced at each layer, and without, each [layer] of [prompt answer].

    Base and patched rows go through the same blocks in the same shapes, so a donor that equals the
    recipient changes nothing to the last bit.

    Args:
        model: a whole model.
        runs: donor and recipient prompts.
        layers: blocks whose resid_pre is replaced, n_blocks for the last resid_post.
        donor_edits: applied to the donor's run alone, as `heads.ablate.ablation_edits` makes them.
        batch: donors per forward pass, where they are edited.

    Raises:
        EditError: for a layer that does not exist, or an edit that did not fire.
    """
    sites, donors = [layer_site(model, layer) for layer in layers], up_to_query(runs.donor)
    tails = tails_of(model, up_to_query(runs.recipient), runs.words)
    if donor_edits:
        lent = _edited_pre(model, donors, sites, donor_edits, batch)
    else:
        sources = tails_of(model, donors)
        lent = [torch.stack([source.resid_pre(layer) for source in sources]) for layer in layers]
    patched, base = [], []
    for layer, rows in zip(layers, lent, strict=True):
        own = torch.stack([tail.resid_pre(layer) for tail in tails])
        for side, held in ((patched, rows), (base, own)):
            found = run_together(tails, [row[None, None] for row in held.to(own)], layer)
            log_prob = np.concatenate([probs.log_prob for probs in found])
            side.append(AnswerProbs(tails[0].answers, log_prob))
    return patched, base


def _edited_pre(
    model: LanguageModel, tokens: Ints, sites: Sequence[Site], edits: Sequence[Edit], batch: int
) -> list[Tensor]:
    """Residuals at the last position of runs under edits, each site [prompt d_model]."""
    here = np.array([tokens.shape[1] - 1])
    held = record(model, tokens, list(dict.fromkeys(sites)), here, edits=edits, batch=batch)
    return [torch.as_tensor(held[site][:, 0], device=model.device()) for site in sites]


def patch_context(
    model: LanguageModel, runs: Runs, layers: Sequence[int], role: str, batch: int = 128,
    donor_edits: Sequence[Edit] = (),
) -> PatchedAndBase:  # fmt: skip
    """Answers with `role` of every context example replaced, and without, as in `patch_query`."""
    where = runs.donor.positions(role)[:-1]
    sites = [layer_site(model, layer) for layer in layers]
    read = np.array([position("pre", runs.n_seen)])
    donor, recipient = up_to_query(runs.donor), up_to_query(runs.recipient)
    parts: list[list[Floats]] = [[] for _ in range(len(sites) + 1)]
    answers: tuple[str, ...] = ()
    for start in range(0, len(donor), batch):
        rows = slice(start, start + batch)
        some = [edit.of_rows(rows) for edit in donor_edits]
        held = record(model, donor[rows], list(dict.fromkeys(sites)), where, edits=some, batch=batch)
        for i, site in enumerate([None, *sites]):
            edits = [] if site is None else [Edit(site, "replace", where, held[site], where)]
            found = answer_probs(model, recipient[rows], read, extra=runs.words, edits=edits, batch=batch)
            answers = found.answers
            parts[i].append(found.log_prob[:, 0])
    base, *patched = [AnswerProbs(answers, np.concatenate(part)) for part in parts]
    return patched, [base] * len(sites)


def query_answers(model: LanguageModel, prompts: PromptSet, words: tuple[str, ...]) -> AnswerProbs:
    """Answers at the query's `pre`, [prompt answer]."""
    read = np.array([position("pre", prompts.n_examples - 1)])
    found = answer_probs(model, up_to_query(prompts), read, extra=words)
    return AnswerProbs(found.answers, found.log_prob[:, 0])


def layer_site(model: LanguageModel, layer: int) -> Site:
    """Where the residual entering block `layer` lives; n_blocks is the end of the last block."""
    if not 0 <= layer <= model.n_blocks:
        raise EditError(
            f"a patch at layer {layer}",
            f"layers run from 0 to {model.n_blocks}",
            "Choose one of these; the last is the end of the last block.",
        )
    return Site(layer, "resid_pre") if layer < model.n_blocks else Site(layer - 1, "resid_post")


def up_to_query(prompts: PromptSet) -> Ints:
    """Tokens up to and including the query's `pre`, [prompt pos]."""
    return prompts.tokens[:, : position("pre", prompts.n_examples - 1) + 1]


LEVEL = (2.5, 97.5)
"""Percentiles of a 95 % interval."""
UNDEFINED = "undefined for this task"
LEAST_SPAN = 1.0
"""Least |donor − base| in nats for which a normalised effect is given."""


@dataclass(frozen=True)
class Estimates:
    """Means (or ratios of means) over prompts with their intervals.

    Args:
        value, low, high: [column]; NaN where undefined.
        reason: why a column is NaN, empty otherwise, [column].
    """

    value: Floats
    low: Floats
    high: Floats
    reason: tuple[str, ...]


def resamples(n_prompts: int, draws: int, rng: np.random.Generator) -> Floats:
    """Bootstrap weights of prompts, [draw prompt]; each row sums to 1."""
    return rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=draws) / n_prompts


def means(values: Floats, weights: Floats) -> Estimates:
    """Means of `values` [prompt column] with intervals under `weights` [draw prompt]; NaN in, NaN out."""
    low, high = np.percentile(weights @ values, LEVEL, axis=0)
    reason = tuple(UNDEFINED if np.isnan(column).any() else "" for column in values.T)
    return Estimates(values.mean(axis=0), low, high, reason)


def normalised_effects(effect: Floats, span: Floats, weights: Floats) -> Estimates:
    """Ratios of means, NE = mean(patched − base) / mean(donor − base).

    Args:
        effect: patched − base, [prompt column], nats.
        span: donor − base, [prompt column], nats.
        weights: [draw prompt].

    Returns:
        NaN with a reason unless |mean span| ≥ `LEAST_SPAN` and the span's interval excludes 0.
    """
    whole = means(span, weights)
    undefined = np.isnan(whole.value) | np.isnan(effect).any(axis=0)
    short = np.abs(whole.value) < LEAST_SPAN
    straddles = (whole.low <= 0) & (whole.high >= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.percentile((weights @ effect) / (weights @ span), LEVEL, axis=0)
        found = np.stack([effect.mean(axis=0) / whole.value, low, high])
    found[:, undefined | short | straddles] = np.nan
    causes = (
        UNDEFINED,
        f"A* and B differ by less than {LEAST_SPAN:g} nat",
        "the interval of A* − B includes 0",
    )
    flags = np.stack([undefined, short, straddles], axis=1)
    return Estimates(
        found[0], found[1], found[2], tuple(causes[row.argmax()] if row.any() else "" for row in flags)
    )


def control_p_value(effect: float, controls: Floats) -> float:
    """Two-sided p = (1 + #{|control| ≥ |effect|}) / (1 + #controls)."""
    return float((1 + (np.abs(controls) >= abs(effect)).sum()) / (1 + len(controls)))


def belief_log_odds(probs: AnswerProbs, runs: Runs, prompts: Sequence[int] | np.ndarray) -> Floats:
    """Log-odds of every belief about the recipient's query, in nats.

    Args:
        probs: [row answer], or [row … answer].
        runs: gives the task, x_B, f(x_B), f(x_A) and the beliefs.
        prompts: which prompt each row belongs to, [row].

    Returns:
        [row … belief].
    """
    which = np.asarray(prompts)
    own, x, copied = (
        np.broadcast_to(text[which].reshape(-1, *[1] * (probs.log_prob.ndim - 2)), probs.log_prob.shape[:-1])
        for text in (runs.own, runs.x_B, runs.copied)
    )
    return log_odds(read_all(probs, runs.task, x, own, copied, runs.declared))


Direction = Literal["sufficiency", "necessity"]
DIRECTIONS: tuple[Direction, ...] = ("sufficiency", "necessity")
LEAST_PROMPTS = 4


@dataclass(frozen=True)
class LatentRuns:
    """Two runs as one SAE sees them at one role: a source of values, and the run that receives them.

    For sufficiency the source is run A and the receiver run B, for necessity B and A*.

    Args:
        model: the model.
        sae: the SAE.
        runs: the prompts.
        direction: one of `DIRECTIONS`.
        role: where values are put: of the query, for `lab` and `close` of the last example before it.
        mix: weight of each source prompt in each prompt's donor values, [prompt prompt]; rows sum to 1.
        tails: the receiver's prompts, ready for additions from that position on.
        recipient_held: the site's activation in the receiver, [prompt d_in].
        donor_held: its donor value, [prompt d_in].
        recipient_latents: gated activations in the receiver, [prompt d_sae].
        donor_latents: their donor values, [prompt d_sae].
        scale: length that the SAE's input normalisation gives to one unit in the receiver, [prompt].
        density: share of the role's positions of source and receiver at which a latent is active, [d_sae].
        mean_active: mean length that it adds there, at the site, NaN where never active, [d_sae].
        screen, test: the two halves of the prompts.
        lent: what `copy` asks for: answers of the prompts that lent to each, as columns of the tails'
            answers, [prompt] of [answer]; for "instance" that is f(x_A) alone.
        base, target: every belief's log-odds in the receiver, and in A* (for necessity, in B),
            [prompt belief].
    """

    model: LanguageModel
    sae: Sae
    runs: Runs
    direction: Direction
    role: str
    mix: Tensor
    tails: list[Tail]
    recipient_held: Tensor
    donor_held: Tensor
    recipient_latents: Tensor
    donor_latents: Tensor
    scale: Tensor
    density: Floats
    mean_active: Floats
    screen: Ints
    test: Ints
    lent: tuple[Ints, ...]
    base: Floats
    target: Floats

    @property
    def beliefs(self) -> tuple[str, ...]:
        """Names along the belief axis."""
        return self.runs.beliefs

    @property
    def source(self) -> PromptSet:
        """The prompts that values are taken from."""
        return self.runs.donor if self.direction == "sufficiency" else self.runs.recipient

    @property
    def receiver(self) -> PromptSet:
        """The prompts that values are put into."""
        return self.runs.recipient if self.direction == "sufficiency" else self.runs.target

    @property
    def place(self) -> Ints:
        """Where they are put, [1]."""
        return np.array([place_of(self.receiver, self.role)])

    @property
    def change(self) -> Floats:
        """Donor value minus the receiver's own activation of each latent, [prompt d_sae]."""
        return (self.donor_latents - self.recipient_latents).cpu().numpy()

    @property
    def differing(self) -> Ints:
        """Latents that differ in some prompt of the test half, [latent]."""
        return np.flatnonzero((self.change[self.test] != 0).any(axis=0))

    @property
    def everything(self) -> Tensor:
        """What stands between the donor's activation and the receiver's, h^A − h^B, [prompt d_in]."""
        return self.donor_held - self.recipient_held

    @property
    def all_latents(self) -> Tensor:
        """The part of it that the latents carry, scale · (decode(a^A) − decode(a^B)), [prompt d_in]."""
        decoded = self.sae.decode(self.donor_latents) - self.sae.decode(self.recipient_latents)
        return self.scale[:, None] * decoded

    def effects(self, prompt: int, delta: Tensor) -> Floats:
        """Rise of each belief's log-odds when `delta` [row d_in] is added, [row belief]; 0 for a zero row."""
        return self.effects_of([prompt], [delta])[0]

    def effects_of(self, prompts: Sequence[int] | Ints, deltas: Iterable[Tensor]) -> list[Floats]:
        """The same of several prompts in common batches, [row belief] each.

        Args:
            prompts: [prompt].
            deltas: of each, [row d_in]; taken as they are needed.
        """
        found: list[Floats] = []
        some: list[tuple[int, Tensor]] = []
        most = self.tails[0].rows_at_once()
        for prompt, delta in zip((int(prompt) for prompt in prompts), deltas, strict=True):
            some.append((prompt, delta))
            if sum(len(rows) for _, rows in some) >= most:
                found += self._batch(some)
                some = []
        return found + self._batch(some)

    def _batch(self, some: Sequence[tuple[int, Tensor]]) -> list[Floats]:
        """Effects of some prompts' rows, in one batch if they fit; rows that are 0 need none."""
        moved = [(delta != 0).any(dim=1) for _, delta in some]
        answers = added_together(
            [self.tails[prompt] for prompt, _ in some], self.sae.site,
            [delta[rows] for (_, delta), rows in zip(some, moved, strict=True)], self.place,
        )  # fmt: skip
        found = []
        for (prompt, delta), rows, probs in zip(some, moved, answers, strict=True):
            effect = np.tile(0 * self.base[prompt], (len(delta), 1))
            if rows.any():
                held = read_lent(probs, self.runs, prompt, self.lent[prompt])
                effect[rows.cpu().numpy()] = held - self.base[prompt]
            found.append(effect)
        return found

    def directions(self, latents: Ints) -> Tensor:
        """What one unit of each latent adds to the decoded, decode(e_f) − decode(0), [latent d_in]."""
        return decoder_directions(self.sae, latents)

    def pushes(self, prompt: int, latents: Ints, directions: Tensor | None = None) -> Tensor:
        """What each latent's own patch adds in a prompt, scale · (a_f^A − a_f^B) · d_f, [latent d_in].

        Args:
            prompt: the prompt.
            latents: [latent].
            directions: along other directions [latent d_in] than the latents' own.
        """
        chosen = torch.as_tensor(np.asarray(latents), device=self.scale.device)
        change = (self.donor_latents[prompt] - self.recipient_latents[prompt])[chosen]
        along = self.directions(latents) if directions is None else directions
        return (self.scale[prompt] * change)[:, None] * along


def gather(
    model: LanguageModel, sae: Sae, runs: Runs, *, donor_value: str = "task mean", role: str = "pre",
    direction: Direction = "sufficiency", seed: int = 0, batch: int = 128,
) -> LatentRuns:  # fmt: skip
    """Record, encode and split; see the module's steps.

    Args:
        model: a whole model.
        sae: an SAE of one of its residual, attn_out or mlp_out sites.
        runs: the prompts.
        donor_value: one of `DONOR_VALUES`.
        role: where values are put, as in `LatentRuns`.
        direction: one of `DIRECTIONS`.
        seed: of the split into halves.
        batch: rows per forward pass.

    Raises:
        EditError: for an unknown donor value, direction or place, too few prompts, another tokenizer's runs,
            or a site that adds nothing to the residual.
        SiteError: for an unknown role, or a layer that the model does not have.
        SaeError: when the SAE has another width, is a transcoder, or its latents cannot be moved alone.
    """
    _refuse(model, sae, donor_value, direction)
    check_tokenizer(model.tokenizer, runs)
    source, sink = (
        (runs.donor, runs.recipient) if direction == "sufficiency" else (runs.recipient, runs.target)
    )
    if runs.donor.n_prompts < LEAST_PROMPTS:
        raise EditError(
            f"{runs.donor.n_prompts} pairs of runs", "half of them screens, half tests",
            f"Build runs of n_prompts={LEAST_PROMPTS} or more.",
        )  # fmt: skip
    order = np.random.default_rng(seed).permutation(runs.donor.n_prompts)
    screen, test = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    where = place_of(sink, role)
    tails = tails_of(model, up_to_query(sink), runs.words, first=where)
    tails[0].entry(sae.site)
    held = [_recorded(model, sae, prompts, role, batch) for prompts in (source, sink)]
    latents = [sae.encode(rows[:, -1]) for rows in held]
    check_decoder(sae, latents[0], latents[1])
    weights = donor_weights(source, runs, role, (screen, test), donor_value)
    mix = torch.as_tensor(weights, dtype=latents[0].dtype, device=latents[0].device)
    density, mean_active = _activity(sae, held)
    lent = lent_answers(source, weights, tails[0].answers)
    other = runs.target if direction == "sufficiency" else runs.recipient
    return LatentRuns(
        model, sae, runs, direction, role, mix, tails,
        recipient_held=held[1][:, -1], donor_held=mixed(mix, held[0][:, -1]),
        recipient_latents=latents[1], donor_latents=mixed(mix, latents[0]),
        scale=sae.scale(held[1][:, -1]), density=density, mean_active=mean_active, screen=screen, test=test,
        lent=lent,
        base=np.concatenate(
            [read_lent(tail.base(sae.site), runs, i, lent[i]) for i, tail in enumerate(tails)]
        ),
        target=_targets(query_answers(model, other, runs.words), runs, lent),
    )  # fmt: skip


def read_lent(probs: AnswerProbs, runs: Runs, prompt: int, lent: Ints) -> Floats:
    """Log-odds of every belief of a prompt, `copy` about any answer that was lent to it, [row belief].

    Args:
        probs: [row answer].
        runs: gives the task, x_B, f(x_B) and the beliefs.
        prompt: which prompt all rows belong to.
        lent: columns of these answers.
    """
    found = belief_log_odds(probs, runs, np.full(len(probs.log_prob), prompt))
    copied = np.exp(probs.log_prob[:, lent].astype(np.float64)).sum(axis=1)
    found[:, runs.beliefs.index("copy")] = log_odds(copied)
    return found


def _targets(probs: AnswerProbs, runs: Runs, lent: tuple[Ints, ...]) -> Floats:
    """The same of one row per prompt, [prompt belief]."""
    rows = (AnswerProbs(probs.answers, probs.log_prob[i : i + 1]) for i in range(len(lent)))
    return np.concatenate([read_lent(row, runs, i, lent[i]) for i, row in enumerate(rows)])


def _refuse(model: LanguageModel, sae: Sae, donor_value: str, direction: str) -> None:
    """Refuse what was misspelt, and an SAE that does not fit the model."""
    for name, asked, known in (
        ("donor_value", donor_value, DONOR_VALUES), ("direction", direction, DIRECTIONS),
    ):  # fmt: skip
        if asked not in known:
            raise EditError(f"{name} '{asked}'", "unknown", f"It must be {' or '.join(map(repr, known))}.")
    refuse_transcoder(sae)
    if sae.d_in != model.d_model:
        raise SaeError(
            f"SAE at {sae.site.short}",
            f"width {sae.d_in}, not {model.d_model}",
            f"Give an SAE of this model, whose rows are {model.d_model} wide.",
        )


def _recorded(model: LanguageModel, sae: Sae, prompts: PromptSet, role: str, batch: int) -> Tensor:
    """The site at a role of every example up to where it is patched, [prompt example d_in]."""
    where = prompts.positions(role)[: example_of(prompts, role) + 1]
    found = record(model, up_to_query(prompts), [sae.site], where, batch=batch)[sae.site]
    return torch.as_tensor(found, dtype=sae.W_dec.dtype, device=sae.W_dec.device)


def _activity(sae: Sae, held: list[Tensor]) -> tuple[Floats, Floats]:
    """Density, and mean length added where active, of every latent over all recorded positions."""
    count, total, rows = np.zeros(sae.d_sae), np.zeros(sae.d_sae), 0
    for part in held:
        for example in part.unbind(dim=1):
            values = sae.encode(example)
            count += (values != 0).sum(dim=0).cpu().numpy()
            total += (sae.scale(example)[:, None] * values.abs()).sum(dim=0).cpu().numpy()
            rows += len(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return count / rows, total / count * decoder_lengths(sae)
