"""Tracking: every latent's activation and the model's beliefs at chosen roles, example by example.

`track`: 1. Each batch of prompts goes through the model once; all sites are recorded at all roles, and the
answers at `pre`. A probed arm has a pass for each example, because each query has a sequence of its own. 2.
Each site's SAE encodes the batch at once, all roles together, and only the active latents are kept: memory
holds one batch of activations. 3. In the end a site's entries are put in order and cut into its roles.

Beside it: pre-activations of chosen latents, supervised directions, and latents at every token of a few
prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array, vstack

from iclens.activations import LatentActs, Place
from iclens.core import PADDING, SaeError, Site, TableError, check_role
from iclens.model.load import LanguageModel, as_numpy
from iclens.model.run import record, record_and_answer
from iclens.prompts.beliefs import AnswerProbs, DeclaredBelief, belief_index, belief_names, log_odds, read_all
from iclens.prompts.build import PromptSet
from iclens.prompts.tasks import parse_task
from iclens.saes.encode import EncodedRows, encode_rows, refuse_transcoder
from iclens.saes.load import Sae
from iclens.table import Floats, Ints, Strings

TRACKED_ROLES = ("pre", "lab", "close", "x")
"""Roles that are followed by default; `pre` comes first because the answer is predicted there."""


@dataclass(frozen=True)
class Tracked:
    """One arm's active latents by site and role, and log P(answer) at `pre`, [prompt example answer]."""

    prompts: PromptSet
    latents: dict[Place, LatentActs]
    probs: AnswerProbs


@dataclass
class _Gathered:
    """Encoded batches of one site, with the row [role prompt example] that each of their rows is."""

    parts: list[EncodedRows] = field(default_factory=list)
    rows: list[Ints] = field(default_factory=list)

    def finish(self, sae: Sae, roles: Sequence[str], n_prompts: int, n_examples: int) -> list[LatentActs]:
        """All of them as one table for each role, in the order of its rows."""
        order = np.argsort(np.concatenate(self.rows))
        entries = csr_array(vstack([part.latents for part in self.parts], format="csr"))[order]
        shape, n_rows = (len(roles), n_prompts, n_examples), n_prompts * n_examples
        error_sq, total_sq = (
            np.concatenate(parts)[order].reshape(shape)
            for parts in ([p.error_sq for p in self.parts], [p.total_sq for p in self.parts])
        )
        tables = []
        for r, role in enumerate(roles):
            ends = entries.indptr[r * n_rows :][: n_rows + 1]
            own = slice(ends[0], ends[-1])
            tables.append(LatentActs(
                sae.site, role, sae.sae_id, sae.d_sae, n_prompts, n_examples,
                ends - ends[0], entries.indices[own], entries.data[own], error_sq[r], total_sq[r],
            ))  # fmt: skip
        return tables


def track(
    model: LanguageModel,
    saes: Mapping[Site, Sae],
    prompts: PromptSet,
    roles: Sequence[str] = TRACKED_ROLES,
    batch: int = 128,
    words: Sequence[str] = (),
    *,
    shared: bool = False,
) -> Tracked:
    """Follow every latent of `saes` over the examples of `prompts`.

    Held are one batch of activations, 4 bytes × batch × examples × roles × sites × d_model, and the entries.

    Args:
        saes: site → its SAE.
        roles: which tokens of each example.
        words: answers to read beside the numbers and the prompts' own words.
        shared: whether answers may begin with one token, as `LanguageModel.answer_space` says.

    Raises:
        SaeError: when there is no SAE, or one is a transcoder or of another site.
        TableError: when an activation is not finite.
        SiteError: for an unknown role, or a site that the model does not have.
        ModelError: when only some blocks are loaded.
        TokenizerError: when two answers begin with the same token, and may not.
    """
    if not saes:
        remedy = "Give `saes` at least one site and its SAE; `load_saes` reads a folder of them."
        raise SaeError("tracking", "no SAE was given", remedy)
    for site, sae in saes.items():
        model.check_site(site)
        refuse_transcoder(sae)
        if sae.site != site:
            remedy = "Give every SAE under the site that it names, `{sae.site: sae}`."
            raise SaeError(f"tracking {site.short}", f"the SAE is of {sae.site.short}", remedy)
    roles = [check_role(role) for role in dict.fromkeys(roles)]
    gathered = {site: _Gathered() for site in saes}
    labels = [*prompts.answer.ravel().tolist(), *prompts.y.ravel().tolist()]
    extra = tuple(dict.fromkeys((*labels, *words)))
    read, _ = model.answer_space(extra, shared=shared)
    answers = AnswerProbs(read, np.empty((*prompts.x.shape, len(read)), np.float32))
    for one in prompts.passes():
        where = np.concatenate([one.positions(role) for role in roles])
        passes = record_and_answer(
            model,
            one.tokens,
            list(saes),
            where,
            one.positions("pre"),
            extra=extra,
            shared=shared,
            batch=batch,
        )
        for i, (recorded, probs) in enumerate(passes):
            some = np.arange(i * batch, i * batch + len(probs.log_prob))
            answers.log_prob[some[:, None], one.examples] = probs.log_prob
            row = np.arange(len(roles)) * prompts.n_prompts + some[:, None]
            rows = (row[..., None] * prompts.n_examples + one.examples).ravel()
            for site, values in recorded.items():
                encoded = encode_rows(saes[site], values.flatten(0, 1))
                bad = ~np.isfinite(encoded.total_sq.reshape(len(some), -1)).all(axis=1)
                if bad.any():
                    remedy = "Read the model in float32; if that is not finite either, its weights are not."
                    where_bad = f"NaN or infinite in prompt {some[bad.argmax()]}"
                    raise TableError(f"activations at {site.short}, arm {prompts.arm}", where_bad, remedy)
                gathered[site].parts.append(encoded)
                gathered[site].rows.append(rows)
    latents = {
        (site, table.role): table
        for site in saes for table in gathered.pop(site).finish(saes[site], roles, *prompts.x.shape)
    }  # fmt: skip
    return Tracked(prompts, latents, answers)


LINEAR = ("standard", "gated", "topk", "batchtopk", "jumprelu")
"""Architectures whose pre-activation is one linear map of the input."""


@torch.no_grad()
def latent_inputs(sae: Sae, values: Floats, latents: Ints) -> Floats:
    """Pre-activations of chosen latents, what each would show if no gate cut it off, [row latent].

        z = scale(x) · (W_encᵀ x̃ + b_enc),   x̃ the activation [row d_in] as the SAE takes it in

    On the scale of the gated activations of `saes.encode`; of a gated SAE, the magnitude that its gate lets
    through. Only the chosen columns of W_enc are multiplied.
    """
    refuse_transcoder(sae)
    network = sae.network
    kind = network.cfg.architecture()
    what = f"pre-activations at {sae.site.short}"
    if kind not in LINEAR:
        allowed = f"Only {', '.join(LINEAR)} have one linear pre-activation per latent."
        raise SaeError(what, f"its architecture is {kind}", allowed)
    if values.shape[-1] != sae.d_in:
        remedy = f"Give activations of its own site, rows of {sae.d_in}."
        raise SaeError(what, f"rows of {values.shape[-1]}", remedy)
    chosen = torch.as_tensor(np.asarray(latents), device=sae.W_dec.device)
    given = torch.as_tensor(values)
    z = sae.encoder_input(given) @ network.W_enc[:, chosen]
    if kind == "gated":
        z = z * network.r_mag[chosen].exp() + network.b_mag[chosen]
    else:
        z = z + network.b_enc[chosen]
    if getattr(network.cfg, "rescale_acts_by_decoder_norm", False):
        z = z * sae.W_dec[chosen].norm(dim=-1)
    return as_numpy(sae.scale(given)[:, None] * z)


def pre_activations(
    model: LanguageModel, saes: Mapping[Site, Sae], prompts: PromptSet, chosen: Mapping[Place, Ints],
    batch: int = 128,
) -> dict[Place, Floats]:  # fmt: skip
    """Pre-activations of chosen latents over the examples: TopK and JumpReLU turn a ramp into a hinge.

    (site, role) → float32 [latent prompt example], in units of the latents. Only blocks up to the deepest
    site are run.
    """
    wanted = {place: np.asarray(latents) for place, latents in chosen.items() if len(latents)}
    for site, _ in wanted:
        if site not in saes:
            remedy = "Give `saes` an entry for every site of `chosen`."
            raise SaeError(f"pre-activations at {site.short}", "no SAE is given", remedy)
    n_prompts, _ = prompts.x.shape
    out = {p: np.empty((len(latents), *prompts.x.shape), np.float32) for p, latents in wanted.items()}
    sites, roles = (list(dict.fromkeys(part)) for part in zip(*wanted, strict=True)) if wanted else ([], [])
    for one in prompts.passes() if wanted else ():
        where = np.concatenate([one.positions(role) for role in roles])
        for start in range(0, n_prompts, batch):
            rows = np.arange(start, min(start + batch, n_prompts))
            recorded = record(model, one.tokens[rows], sites, where, batch=batch)
            for (site, role), latents in wanted.items():
                n, first = len(one.examples), roles.index(role) * len(one.examples)
                at_role = recorded[site][:, first : first + n]  # [prompt example d_model]
                z = latent_inputs(saes[site], at_role.reshape(-1, model.d_model), latents)
                by_latent = z.reshape(len(rows), n, len(latents)).transpose(2, 0, 1)
                out[site, role][:, rows[:, None], one.examples] = by_latent
    return out


def direction_growth(
    model: LanguageModel, treated: PromptSet, control: PromptSet, sites: Sequence[Site],
    *, fit: Ints, test: Ints, role: str = "pre", batch: int = 128,
) -> dict[Site, Floats]:  # fmt: skip
    """Projections of T − S on each site's difference of means, to see what grows that no latent shows.

    1. On the prompts `fit`, u = mean(h_T − h_S) after the last example, to unit length: the direction along
    which context changes a site most. 2. On the prompts `test`, none of `fit`, the projection of T − S on it
    after every example: site → [prompt example], in activation units.

    Only `batch` prompts of one site set are held at a time, and the projections.
    """
    if shared := set(fit.tolist()) & set(test.tolist()):
        what = f"prompt {min(shared)} both fits and tests it"
        raise TableError("a supervised direction", what, "Give `fit` and `test` without a prompt in common.")
    directions: dict[Site, Floats] = {site: np.zeros(model.d_model) for site in sites}
    for difference in _differences(model, treated, control, sites, fit, role, batch):
        for site in sites:
            directions[site] = directions[site] + difference[site][:, -1].sum(axis=0)
    for site, summed in directions.items():
        length = float(np.linalg.norm(summed))
        if length == 0:
            remedy = "Give arms that show other labels, such as T and S."
            raise TableError(f"arms at {site.short}", "their activations are equal", remedy)
        directions[site] = summed / length
    parts = [
        {site: difference[site] @ directions[site] for site in sites}
        for difference in _differences(model, treated, control, sites, test, role, batch)
    ]
    return {site: np.concatenate([part[site] for part in parts]) for site in sites}


def _differences(
    model: LanguageModel, treated: PromptSet, control: PromptSet, sites: Sequence[Site], prompts: Ints,
    role: str, batch: int,
) -> Iterator[dict[Site, Floats]]:  # fmt: skip
    """site → T − S of the next prompts, float64 [prompt example d_model]."""
    where = [arm.positions(role) for arm in (treated, control)]
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        one, other = (
            record(model, arm.tokens[rows], list(sites), at)
            for arm, at in zip((treated, control), where, strict=True)
        )
        yield {site: one[site].astype(np.float64) - other[site] for site in sites}


def token_activations(
    model: LanguageModel, saes: Mapping[Site, Sae], tokens: Ints, batch: int = 128
) -> dict[Site, csr_array]:
    """Gated activation of every latent at tokens [row pos]: site → sparse [row·pos, d_sae], pos fastest.

    At padding there is none.
    """
    everywhere = np.arange(tokens.shape[1])
    parts: dict[Site, list[csr_array]] = {site: [] for site in saes}
    for start in range(0, len(tokens), batch):
        recorded = record(model, tokens[start : start + batch], list(saes), everywhere, batch=batch)
        for site, sae in saes.items():
            parts[site].append(encode_rows(sae, recorded[site].reshape(-1, model.d_model)).latents)
    found = {site: csr_array(vstack(batches, format="csr")) for site, batches in parts.items()}
    if (padding := tokens == PADDING).any():
        there = diags_array((~padding).ravel().astype(np.float32), format="csr")
        found = {site: csr_array(there @ latents) for site, latents in found.items()}
    return found


def in_turn(lists: Mapping[str, Sequence[int]], n: int) -> dict[int, str]:
    """The first `n` latents of several orders, taken in turn: latent → the name of the order it came from.

    `lists` has each order under its name, the best latent first.
    """
    taken: dict[int, str] = {}
    for turn in zip_longest(*lists.values()):
        for name, latent in zip(lists, turn, strict=True):
            if latent is not None and latent not in taken and len(taken) < n:
                taken[int(latent)] = name
    return taken


def strongest(activations: csr_array, scale: Floats) -> Ints:
    """Latents that are active anywhere in `activations` [row latent], the largest peak × `scale` first."""
    peak = activations.max(axis=0).toarray().ravel() * scale
    order = np.argsort(-peak, kind="stable")
    return order[: np.count_nonzero(peak > 0)]


def most_changed(a: csr_array, b: csr_array, scale: Floats) -> Ints:
    """Latents whose activation differs between rows `a` and `b` [row latent], the largest change first."""
    return strongest(csr_array(abs(a - b)), scale)


def belief_log_odds(
    probs: AnswerProbs, prompts: PromptSet, copied: Strings | None = None,
    declared: Sequence[DeclaredBelief] = (),
) -> Floats:  # fmt: skip
    """Log-odds of every belief before each example, nats [prompt example belief], as `belief_names`.

    Of the model's answers at `pre` or the exact posterior's; NaN where a belief is undefined.

    Args:
        copied: the answer whose copying is asked about, [prompt example]. By default the label of the example
            just before, so that `copy` tells a repeated last label from a learnt task; NaN at example 0.
        declared: further beliefs, read from the same answers.
    """
    wanted = _last_labels(prompts) if copied is None else copied
    out = np.full((*prompts.x.shape, len(belief_names(declared))), np.nan)
    for name in np.unique(prompts.task):
        rows = np.flatnonzero(prompts.task == name)
        # In float32, 1 − p is lost well before the log-odds that a sure model reaches.
        part = AnswerProbs(probs.answers, probs.log_prob[rows].astype(np.float64))
        task = parse_task(str(name))
        x, answer = prompts.x[rows], prompts.answer[rows]
        out[rows] = log_odds(read_all(part, task, x, answer, wanted[rows], declared))
    if copied is None:
        out[:, 0, belief_index("copy")] = np.nan
    return out


def _last_labels(prompts: PromptSet) -> Strings:
    """The label just before each query, [prompt example]; at example 0, where none stands, its own."""
    if prompts.context_y is None or prompts.slots is None:
        return np.concatenate([prompts.y[:, :1], prompts.y[:, :-1]], axis=1)
    before = [prompts.context_y[:, n, prompts.slots[n] - 1] for n in range(1, prompts.n_examples)]
    return np.stack([prompts.y[:, 0], *before], axis=1)
