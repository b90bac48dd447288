"""The receiver of a patch: prompts prepared in the tail engine, the donor's values, and effects on beliefs.

1. A receiver is run once up to the position where values are put; its tails go on from there. 2. What its
SAE site holds there, and what the donor's holds, are encoded. 3. A latent's donor value is the donor's own,
or its mean over prompts that share neither x nor answer with the receiver's. 4. An effect is how far a
belief's log-odds rise when something is added at the site; the SAE's error is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from iclens.core import ROLES, EditError, SaeError, Site, check_role
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, answer_probs, record
from iclens.model.tail import Tail, added_together, edited_at_end, run_together, tails_of
from iclens.patching.runs import BeliefReader, Runs, check_tokenizer
from iclens.prompts.beliefs import AnswerProbs
from iclens.prompts.build import PromptSet
from iclens.saes.encode import check_decoder, decoder_directions, decoder_lengths, refuse_transcoder
from iclens.saes.load import Sae
from iclens.table import Floats, Ints

DONOR_VALUES = ("task mean", "instance")
Direction = Literal["sufficiency", "necessity"]
DIRECTIONS: tuple[Direction, ...] = ("sufficiency", "necessity")
LEAST_PROMPTS = 4


def query_example(prompts: PromptSet, role: str) -> int:
    """Which example a role is taken of: the query, or the one before it for a token that the query lacks."""
    in_query = ROLES.index(check_role(role)) <= ROLES.index("pre")
    example = prompts.n_examples - (1 if in_query else 2)
    if example < 0:
        raise EditError(
            f"a patch at `{role}`", "the run shows no example before its query",
            "Patch at `pre` or earlier, or build the runs with recipient='S arm' (patch.recipient).",
        )  # fmt: skip
    return example


def query_position(prompts: PromptSet, role: str = "pre") -> Ints:
    """Column of a role of the query, or of the example before it as `query_example` says, [1]."""
    return prompts.positions(role)[[query_example(prompts, role)]]


def up_to_query(prompts: PromptSet) -> Ints:
    """Tokens up to and including the query's `pre`, [prompt column]."""
    return prompts.tokens[:, : int(query_position(prompts)[0]) + 1]


def at_pre(model: LanguageModel, runs: Runs) -> list[Tail]:
    """A*'s prompts, prepared for edits at the query's `pre`."""
    return tails_of(model, up_to_query(runs.target), runs.words)


def query_answers(
    model: LanguageModel, prompts: PromptSet, words: tuple[str, ...], edits: Sequence[Edit] = (),
    batch: int = 128, tails: Sequence[Tail] | None = None,
) -> AnswerProbs:  # fmt: skip
    """Answers at the query's `pre`, under edits if any, [prompt answer].

    `tails` are the prompts, prepared for edits at `pre` alone (`at_pre`).
    """
    if tails is not None:
        return edited_at_end(tails, edits)
    probs = answer_probs(
        model, up_to_query(prompts), query_position(prompts), extra=words, edits=edits, batch=batch
    )
    return AnswerProbs(probs.answers, probs.log_prob[:, 0])


def layer_site(model: LanguageModel, layer: int) -> Site:
    """Where the residual entering block `layer` lives; n_blocks is the end of the last block."""
    if not 0 <= layer <= model.n_blocks:
        raise EditError(
            f"a patch at layer {layer}", f"layers run from 0 to {model.n_blocks}",
            "Choose one of these; the last is the end of the last block.",
        )  # fmt: skip
    return Site(layer, "resid_pre") if layer < model.n_blocks else Site(layer - 1, "resid_post")


PatchedAndBase = tuple[list[AnswerProbs], list[AnswerProbs]]
"""Answers with the patch and without it, each [layer] of [prompt answer]."""


def patch_query(
    model: LanguageModel, runs: Runs, layers: Sequence[int], donor_edits: Sequence[Edit] = (),
    batch: int = 128,
) -> PatchedAndBase:  # fmt: skip
    """Answers with the query's `pre` replaced by the donor's at each layer, and without.

    Base and patched rows go through the same blocks in the same shapes, so a donor that equals the
    recipient changes nothing to the last bit.

    Args:
        layers: blocks whose resid_pre is replaced, n_blocks for the last resid_post.
        donor_edits: applied to the donor's run alone, as `heads.ablation_edits` makes them.
    """
    sites, donors = [layer_site(model, layer) for layer in layers], up_to_query(runs.donor)
    tails = tails_of(model, up_to_query(runs.recipient), runs.words)
    if donor_edits:
        read = query_position(runs.donor)
        acts = record(model, donors, list(dict.fromkeys(sites)), read, edits=donor_edits, batch=batch)
        given = [torch.as_tensor(acts[site][:, 0], device=model.device()) for site in sites]
    else:
        sources = tails_of(model, donors)
        given = [torch.stack([source.resid_pre(layer) for source in sources]) for layer in layers]
    patched, base = [], []
    for layer, rows in zip(layers, given, strict=True):
        unchanged = torch.stack([tail.resid_pre(layer) for tail in tails])
        for side, resid in ((patched, rows), (base, unchanged)):
            answers = run_together(tails, [row[None, None] for row in resid.to(unchanged)], layer)
            log_prob = np.concatenate([probs.log_prob for probs in answers])
            side.append(AnswerProbs(tails[0].answers, log_prob))
    return patched, base


def patch_context(
    model: LanguageModel, runs: Runs, layers: Sequence[int], role: str, batch: int = 128,
    donor_edits: Sequence[Edit] = (),
) -> PatchedAndBase:  # fmt: skip
    """Answers with `role` of every context example replaced, and without, as in `patch_query`."""
    where = runs.donor.positions(role)[:-1]
    sites = [layer_site(model, layer) for layer in layers]
    read = query_position(runs.donor)
    donor, recipient = up_to_query(runs.donor), up_to_query(runs.recipient)
    parts: list[list[Floats]] = [[] for _ in range(len(sites) + 1)]
    answers: tuple[str, ...] = ()
    for start in range(0, len(donor), batch):
        rows = slice(start, start + batch)
        some = [edit.of_rows(rows) for edit in donor_edits]
        acts = record(model, donor[rows], list(dict.fromkeys(sites)), where, edits=some, batch=batch)
        for i, site in enumerate([None, *sites]):
            edits = [] if site is None else [Edit(site, "replace", where, acts[site], where)]
            probs = answer_probs(model, recipient[rows], read, extra=runs.words, edits=edits, batch=batch)
            answers = probs.answers
            parts[i].append(probs.log_prob[:, 0])
    base, *patched = [AnswerProbs(answers, np.concatenate(part)) for part in parts]
    return patched, [base] * len(sites)


@dataclass(frozen=True)
class Receiver:
    """Prompts prepared for additions at one SAE site and position, and the beliefs they hold there."""

    model: LanguageModel
    sae: Sae  # of the site
    prompts: PromptSet  # that values are put into
    position: Ints  # where they are put, [1]
    tails: list[Tail]  # the prompts up to where answers are read, ready for additions from `position` on
    words: tuple[str, ...]  # answers that are read besides the numbers
    reader: BeliefReader  # of the beliefs about each prompt's query
    base: Floats  # every belief's log-odds, nats [prompt belief]
    target: Floats  # log-odds that a whole patch would bring, nats [prompt belief]

    @property
    def beliefs(self) -> tuple[str, ...]:
        """Names along the belief axis."""
        return self.reader.beliefs

    @property
    def span(self) -> Floats:
        """Target minus base, nats [prompt belief]."""
        return self.target - self.base

    def directions(self, latents: Ints) -> Tensor:
        """What one unit of each latent adds to the decoded, decode(e_f) − decode(0), [latent d_in]."""
        return decoder_directions(self.sae, latents)

    def effects(self, prompt: int, delta: Tensor) -> Floats:
        """Rise of each belief's log-odds when `delta` [row d_in] is added to one prompt, [row belief].

        A row of zeros moves nothing and is not run: its effect is 0, not the rounding of another batch.
        """
        return self.effects_of([prompt], [delta])[0]

    def effects_on_all(self, delta: Tensor) -> Floats:
        """The same when `delta` is added to every prompt, [row prompt belief]."""
        return np.stack([self.effects(i, delta) for i in range(len(self.tails))], axis=1)

    def effects_of(self, prompts: Sequence[int] | Ints, deltas: Iterable[Tensor]) -> list[Floats]:
        """The same of several prompts in common batches, [row belief] each.

        Args:
            prompts: [prompt].
            deltas: of each, [row d_in]; taken as they are needed.
        """
        effects: list[Floats] = []
        pending: list[tuple[int, Tensor]] = []
        most = self.tails[0].rows_at_once()
        for prompt, delta in zip((int(prompt) for prompt in prompts), deltas, strict=True):
            pending.append((prompt, delta))
            if sum(len(rows) for _, rows in pending) >= most:
                effects += self._batch(pending)
                pending = []
        return effects + self._batch(pending)

    def _batch(self, pending: Sequence[tuple[int, Tensor]]) -> list[Floats]:
        """Effects of some prompts' rows, in one batch if they fit; rows that are 0 need none."""
        moved = [(delta != 0).any(dim=1) for _, delta in pending]
        answers = added_together(
            [self.tails[prompt] for prompt, _ in pending], self.sae.site,
            [delta[rows] for (_, delta), rows in zip(pending, moved, strict=True)], self.position,
        )  # fmt: skip
        effects = []
        for (prompt, delta), rows, probs in zip(pending, moved, answers, strict=True):
            effect = np.tile(0 * self.base[prompt], (len(delta), 1))
            if rows.any():
                after = self.reader.log_odds(probs, np.full(len(probs.log_prob), prompt))
                effect[rows.cpu().numpy()] = after - self.base[prompt]
            effects.append(effect)
        return effects


def base_log_odds(tails: Sequence[Tail], site: Site, reader: BeliefReader) -> Floats:
    """Log-odds without an edit, through the blocks that an addition at `site` passes, [prompt belief]."""
    return np.concatenate([reader.log_odds(tail.base(site), [i]) for i, tail in enumerate(tails)])


@dataclass(frozen=True)
class PatchReceiver(Receiver):
    """A receiver with a donor's values for every latent of an SAE.

    For sufficiency the donor is run A and the receiver run B, for necessity B and A*. The target is A*, for
    necessity B. `copy` asks for any answer of the prompts that gave to each; for "instance" f(x_A) alone.
    """

    runs: Runs
    direction: Direction  # one of `DIRECTIONS`
    role: str  # where values are put: of the query, for `lab` and `close` of the last example before it
    mix: Tensor  # weight of each donor prompt in each prompt's donor values, [prompt prompt]; rows sum to 1
    # acts, donor_acts: the site's activation, and its donor value, [prompt d_in]
    acts: Tensor
    donor_acts: Tensor
    # latents, donor_latents: gated activations, and their donor values, [prompt d_sae]
    latents: Tensor
    donor_latents: Tensor
    scale: Tensor  # length that the SAE's input normalisation gives to one unit in the receiver, [prompt]
    # share of the role's positions of donor and receiver at which a latent is active, [d_sae]
    density: Floats
    mean_active: Floats  # mean length that it adds there, at the site, NaN where never active, [d_sae]
    # screen, test: the two halves of the prompts
    screen: Ints
    test: Ints

    @property
    def donors(self) -> PromptSet:
        """The prompts that values are taken from."""
        return self.runs.donor if self.direction == "sufficiency" else self.runs.recipient

    @property
    def change(self) -> Floats:
        """Donor value minus the receiver's own activation of each latent, [prompt d_sae]."""
        return (self.donor_latents - self.latents).cpu().numpy()

    @property
    def differing(self) -> Ints:
        """Latents that differ in some prompt of the test half, [latent]."""
        return np.flatnonzero((self.change[self.test] != 0).any(axis=0))

    @property
    def everything(self) -> Tensor:
        """What stands between the donor's activation and the receiver's, h^A − h^B, [prompt d_in]."""
        return self.donor_acts - self.acts

    @property
    def all_latents(self) -> Tensor:
        """The part of it that the latents carry, scale · (decode(a^A) − decode(a^B)), [prompt d_in]."""
        return self.scale[:, None] * (self.sae.decode(self.donor_latents) - self.sae.decode(self.latents))

    def pushes(self, prompt: int, latents: Ints, directions: Tensor | None = None) -> Tensor:
        """What each latent's own patch adds in a prompt, scale · (a_f^A − a_f^B) · d_f, [latent d_in].

        Args:
            directions: along other directions [latent d_in] than the latents' own.
        """
        chosen = torch.as_tensor(np.asarray(latents), device=self.scale.device)
        change = (self.donor_latents[prompt] - self.latents[prompt])[chosen]
        along = self.directions(latents) if directions is None else directions
        return (self.scale[prompt] * change)[:, None] * along

    def joint(self, latents: Ints) -> Tensor:
        """What moving latents together adds in every prompt, [prompt d_in]."""
        along = self.directions(latents)
        return torch.stack([self.pushes(i, latents, along).sum(dim=0) for i in range(len(self.tails))])

    def effects_at(self, prompts: Ints, deltas: Sequence[Tensor]) -> Floats:
        """Effects of additions [prompt d_in], made one at a time, [prompt addition belief]."""
        rows = torch.stack(list(deltas), dim=1)
        return np.stack(self.effects_of(prompts, (rows[i] for i in prompts.tolist())))


def prepare_patch(
    model: LanguageModel, sae: Sae, runs: Runs, *, donor_value: str = "task mean", role: str = "pre",
    direction: Direction = "sufficiency", seed: int = 0, batch: int = 128,
) -> PatchReceiver:  # fmt: skip
    """Run, record and encode donor and receiver, and split the prompts into two halves.

    Args:
        sae: of one of the residual, attn_out or mlp_out sites.
        donor_value: one of `DONOR_VALUES`.
        role: where values are put, as in `PatchReceiver`.
        direction: one of `DIRECTIONS`.

    Raises:
        EditError: for an unknown donor value, direction or place, too few prompts, another tokenizer's runs,
            or a site that adds nothing to the residual.
        SiteError: for an unknown role, or a layer that the model does not have.
        SaeError: when the SAE has another width, is a transcoder, or its latents cannot be moved alone.
    """
    for name, value, known in (
        ("donor_value", donor_value, DONOR_VALUES), ("direction", direction, DIRECTIONS),
    ):  # fmt: skip
        if value not in known:
            raise EditError(f"{name} '{value}'", "unknown", f"It must be {' or '.join(map(repr, known))}.")
    check_fits(model, sae)
    check_tokenizer(model.tokenizer, runs)
    if runs.donor.n_prompts < LEAST_PROMPTS:
        raise EditError(
            f"{runs.donor.n_prompts} pairs of runs", "half of them screens, half tests",
            f"Build runs of n_prompts={LEAST_PROMPTS} or more.",
        )  # fmt: skip
    donor, prompts, other = (
        (runs.donor, runs.recipient, runs.target) if direction == "sufficiency"
        else (runs.recipient, runs.target, runs.recipient)
    )  # fmt: skip
    order = np.random.default_rng(seed).permutation(donor.n_prompts)
    screen, test = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    where = query_position(prompts, role)
    tails = tails_of(model, up_to_query(prompts), runs.words, first=int(where[0]))
    tails[0].entry(sae.site)
    recorded = [record_role(model, sae, some, role, batch) for some in (donor, prompts)]
    encoded = [sae.encode(rows[:, -1]) for rows in recorded]
    check_decoder(sae, encoded[0], encoded[1])
    weights = donor_weights(donor, runs, role, (screen, test), donor_value)
    mix = torch.as_tensor(weights, dtype=encoded[0].dtype, device=encoded[0].device)
    density, mean_active = activity(sae, chain(*(encoded_examples(sae, rows) for rows in recorded)))
    column = {answer: i for i, answer in enumerate(tails[0].answers)}
    of_donor = np.array([column[str(answer)] for answer in donor.answer[:, -1]])
    given = tuple(np.unique(of_donor[row > 0]) for row in weights)
    reader = BeliefReader(runs.task, runs.x_B, runs.answer, runs.donor_answer, runs.declared, given)
    return PatchReceiver(
        model, sae, prompts, where, tails, runs.words, reader,
        base=base_log_odds(tails, sae.site, reader),
        target=reader.log_odds(query_answers(model, other, runs.words)),
        runs=runs, direction=direction, role=role, mix=mix,
        acts=recorded[1][:, -1], donor_acts=mixed(mix, recorded[0][:, -1]),
        latents=encoded[1], donor_latents=mixed(mix, encoded[0]),
        scale=sae.scale(recorded[1][:, -1]), density=density, mean_active=mean_active,
        screen=screen, test=test,
    )  # fmt: skip


def donor_weights(
    donors: PromptSet, runs: Runs, role: str, halves: tuple[Ints, Ints], donor_value: str
) -> Floats:
    """Weight of each donor prompt in each prompt's donor value, [prompt prompt]; rows sum to 1.

    Args:
        donors: the prompts that values are taken from.
        runs: give x_B and f(x_B).
        role: where; the x of its example is a prompt's own.
        halves: prompts that may give to each other.
        donor_value: one of `DONOR_VALUES`.
    """
    n, x = donors.n_prompts, donors.x[:, query_example(donors, role)]
    if donor_value == "instance":
        return np.eye(n)
    shows = (donors.x[None] == runs.x_B[:, None, None]).any(axis=2)
    allowed = (x[None] != x[:, None]) & ~shows & (donors.answer[None, :, -1] != runs.answer[:, None])
    same_half = np.zeros((n, n), dtype=bool)
    for half in halves:
        same_half[np.ix_(half, half)] = True
    weights = (allowed & same_half).astype(float)
    if not weights.any(axis=1).all():
        raise EditError(
            f"task means over {n} prompts", "for one of them every other shows its x, or answers alike",
            "Give more prompts or inputs, fewer examples, or donor_value 'instance'.",
        )  # fmt: skip
    return weights / weights.sum(axis=1, keepdims=True)


def mixed(mix: Tensor, rows: Tensor) -> Tensor:
    """mix @ rows, or the rows themselves, untouched by rounding, when each prompt is its own donor."""
    return rows if torch.equal(mix, torch.eye(len(mix), dtype=mix.dtype, device=mix.device)) else mix @ rows


def check_fits(model: LanguageModel, sae: Sae) -> None:
    """Refuse a transcoder, and an SAE of another width than the model's, by a SaeError."""
    refuse_transcoder(sae)
    if sae.d_in != model.d_model:
        raise SaeError(
            f"SAE at {sae.site.short}", f"width {sae.d_in}, not {model.d_model}",
            f"Give an SAE of this model, whose rows are {model.d_model} wide.",
        )  # fmt: skip


def record_role(model: LanguageModel, sae: Sae, prompts: PromptSet, role: str, batch: int) -> Tensor:
    """The site at a role of every example up to `query_example`, [prompt example d_in]."""
    where = prompts.positions(role)[: query_example(prompts, role) + 1]
    acts = record(model, up_to_query(prompts), [sae.site], where, batch=batch)[sae.site]
    return torch.as_tensor(acts, dtype=sae.W_dec.dtype, device=sae.W_dec.device)


def encoded_examples(sae: Sae, recorded: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Gated activations [prompt d_sae] and `Sae.scale` [prompt] of each example of [prompt example d_in]."""
    for example in recorded.unbind(dim=1):
        yield sae.encode(example), sae.scale(example)


def activity(sae: Sae, encoded: Iterable[tuple[Tensor, Tensor]]) -> tuple[Floats, Floats]:
    """Density, and mean length added where active (NaN where never), over all of `encoded`, [d_sae] each."""
    count, total, n_rows = np.zeros(sae.d_sae), np.zeros(sae.d_sae), 0
    for values, scale in encoded:
        count += (values != 0).sum(dim=0).cpu().numpy()
        total += (scale[:, None] * values.abs()).sum(dim=0, dtype=torch.float64).cpu().numpy()
        n_rows += len(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return count / n_rows, total / count * decoder_lengths(sae)
