"""What a latent patch needs of run A and run B, gathered once per SAE.

1. The site is recorded at a role of A and B, and encoded: a^A and a^B, and over all examples how often and
how strongly each latent is active. 2. The donor value of each prompt is the mean over *other* prompts, or the
prompt's own. A prompt lends nothing to one whose x_B it shows or asks about, whose own x it asks about, or
whose answer f(x_B) it gives: what is lent says the task, not the answer. 3. Prompts are halved: one half
screens latents, the other tests them, and donor means stay within a half. 4. The tail engine gives every
belief after any addition at the site.

*Sufficiency* puts A's values into B. *Necessity* puts B's into A* (A's context, B's query), by default their
mean: what A* loses when a latent is as it would be without the examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from iclens.errors import EditError, SaeError
from iclens.models.forward import record
from iclens.models.load import LanguageModel
from iclens.models.tail import Tail, tails_of
from iclens.models.together import added_together
from iclens.patching.effects import belief_log_odds
from iclens.patching.latents.lending import DONOR_VALUES, donor_weights, lent_answers, mixed
from iclens.patching.latents.place import example_of, place_of
from iclens.patching.residual import query_answers, up_to_query
from iclens.patching.runs import Runs, check_tokenizer
from iclens.saes.directions import check_decoder, decoder_directions, decoder_lengths
from iclens.saes.encode import refuse_transcoder
from iclens.saes.load import Sae
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Floats, Ints
from iclens.tables.prompts import PromptSet
from iclens.tasks.beliefs import log_odds

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
