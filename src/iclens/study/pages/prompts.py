"""What do single prompts show? A few prompts, with their examples and without, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from iclens.core import PREFIX_LENGTH, ROLES, TOKENS_PER_EXAMPLE
from iclens.dashboards.records.prompts import (
    START,
    LensRead,
    LensRow,
    PairBelief,
    PromptPair,
    PromptsView,
    RunToken,
    RunView,
    ShownLatent,
    SiteLatents,
)
from iclens.model.load import token_texts
from iclens.model.run import answer_probs
from iclens.patching.receiver import up_to_query
from iclens.patching.runs import ZERO, build_runs
from iclens.patching.sets import FULL
from iclens.patching.sweep import LensReads, lens_tokens
from iclens.prompts.build import PromptSet, exact_answer_probs, in_mixture
from iclens.results.read import Results
from iclens.schemas import LADDER
from iclens.study.pages.index import meanings
from iclens.study.run import RunContext
from iclens.table import Floats, Ints
from iclens.track import belief_log_odds, in_turn, latents_at_tokens, most_changed, strongest

PER_SITE = 12
"""Latents of each site that are shown with a prompt."""
CHANGED, GROWS, ACTIVE = "differs at the query", "grows over examples", "most active"
"""Why a latent is shown."""
ABOUT = (
    "The first {n} prompts that the patching stage draws: the {shown} examples of run A with run B’s query, "
    "and that query alone. Of each site, at most {per_site} latents are shown, taken in turn by the largest "
    "difference between the runs at the query, the clearest growth, and the largest activation after the "
    "first token; for the choice, sizes are multiplied by the decoder norm."
)
NO_POSTERIOR = "There is no exact posterior: {why}."


@dataclass(frozen=True)
class Pair:
    """The prompts in both runs, [prompt] each; the last example is the query."""

    a: PromptSet
    b: PromptSet


@dataclass(frozen=True)
class _Beliefs:
    """Log-odds of model and exact posterior, in run A [prompt example belief] and run B [prompt belief]."""

    a: Floats
    exact: Floats
    b: Floats
    exact_b: Floats
    reason: str


def prompts_view(run: RunContext, results: Results, paged: set[tuple[str, int]]) -> PromptsView:
    """The pages of single prompts.

    Args:
        run: model, SAEs and prompts.
        results: the run's tables.
        paged: (site, latent) that have a page; of latents that grow, these come first.
    """
    n = run.config.dashboard.prompts
    if not n:
        return PromptsView()
    pair = paired_runs(run, n)
    sites = _site_latents(run, results, pair, paged)
    beliefs = _beliefs(run, pair)
    lens = _lens(run, pair)
    words = meanings(results)
    first = _carrier(results)
    text = _token_names(run, (lens[0].top, lens[1].top))
    prompts = []
    for i in range(n):
        depth = _lens_rows(lens, i, text)
        prompts.append(
            PromptPair(
                task=str(pair.a.task[i]),
                query=str(pair.a.x[i, -1]),
                wanted=str(pair.a.answer[i, -1]),
                a=_run(run, pair.a, i, depth[-1].a),
                b=_run(run, pair.b, i, depth[-1].b),
                sites=sorted(sites[i], key=lambda held: held.site != first),
                beliefs=_belief_views(run.config.belief_names, words, beliefs, i),
                lens=depth,
                reasons={"beliefs": NO_POSTERIOR.format(why=beliefs.reason)} if beliefs.reason else {},
            )
        )
    return PromptsView(prompts, ABOUT.format(n=n, shown=pair.a.n_examples - 1, per_site=PER_SITE))


def paired_runs(run: RunContext, n: int) -> Pair:
    """The first `n` prompts of the patching stage: A's examples and B's query, and that query alone."""
    section, prompts = run.config.patch, run.config.prompts
    runs = build_runs(
        run.model.tokenizer, prompts.rule, recipient=ZERO, n_prompts=n,
        donor_examples=section.donor_examples, seed=section.seed, inputs=prompts.inputs,
        declared=run.config.declared,
    )  # fmt: skip
    return Pair(runs.target, runs.recipient)


def _run(run: RunContext, prompts: PromptSet, i: int, last: LensRead) -> RunView:
    """A run as text; `last` is what the residual after the last block answers: the model's own answer."""
    ids = up_to_query(prompts)[i]
    texts = token_texts(run.model.tokenizer, ids.tolist())
    tokens = [RunToken(one.text, *_place(pos), one.continues) for pos, one in enumerate(texts)]
    return RunView(tokens, *last.top[0], last.wanted)


def _place(pos: int) -> tuple[str, int]:
    """Role and example of a token index."""
    if pos < PREFIX_LENGTH:
        return "start", START
    example, role = divmod(pos - PREFIX_LENGTH, TOKENS_PER_EXAMPLE)
    return ROLES[role], example


def _carrier(results: Results) -> str:
    """The site whose whole activation, put into run B, moves the belief most; "" where none was patched."""
    sets = results.table("sets")
    belief = results.config.patch.chosen_for
    whole = sets[(sets["kind"] == FULL) & (sets["direction"] == "sufficiency") & (sets["belief"] == belief)]
    ranked = whole.dropna(subset=["effect"]).sort_values("effect", ascending=False)
    return "" if ranked.empty else str(ranked["site"].iloc[0])


def _site_latents(
    run: RunContext, results: Results, pair: Pair, paged: set[tuple[str, int]]
) -> list[list[SiteLatents]]:
    """The chosen latents of each prompt and site, [prompt][site]."""
    runs = [up_to_query(pair.a), up_to_query(pair.b)]
    growing = _growing(results, paged)
    found: list[list[SiteLatents]] = [[] for _ in range(pair.a.n_prompts)]
    for site, latents in latents_at_tokens(run.model, run.saes, runs, batch=run.config.track.batch):
        scale = results.decoder_norms[site.short]
        for i, held in enumerate(found):
            a, b = (
                csr_array(part[i * ids.shape[1] : (i + 1) * ids.shape[1]])
                for part, ids in zip(latents, runs, strict=True)
            )
            shown = _chosen(a, b, growing.get(site.short, []), scale)
            columns = [csr_array(part)[:, list(shown)].toarray().T for part in (a, b)]
            held.append(
                SiteLatents(
                    site.short,
                    [
                        ShownLatent(latent, why, own.tolist(), other.tolist())
                        for (latent, why), own, other in zip(shown.items(), *columns, strict=True)
                    ],
                )
            )
    return found


def _chosen(a: csr_array, b: csr_array, growing: Sequence[int], scale: Floats) -> dict[int, str]:
    """Latent → why it is shown, for one site and prompt whose runs end with the same query's tokens.

    Args:
        a: activations in run A, [token latent].
        b: activations in run B, [token latent].
        growing: latents of the site that grow, the clearest first.
        scale: decoder norm of each latent, [latent].
    """
    query = ROLES.index("pre") + 1
    both = csr_array(np.abs(a[1:]).max(axis=0).maximum(np.abs(b[1:]).max(axis=0)).reshape(1, -1))
    active = strongest(both, scale)
    there = set(active.tolist())
    changed = most_changed(csr_array(a[-query:]), csr_array(b[-query:]), scale)
    lists = {
        CHANGED: changed.tolist()[:PER_SITE],
        GROWS: [latent for latent in growing if latent in there][:PER_SITE],
        ACTIVE: active.tolist()[:PER_SITE],
    }
    taken = in_turn(lists, PER_SITE)
    return {latent: why for why in lists for latent, own in taken.items() if own == why}


def _growing(results: Results, paged: set[tuple[str, int]]) -> dict[str, list[int]]:
    """Site → latents that grow at any role, those with a page first, then by rung and q."""
    growth = results.table("growth")
    growth = growth[growth["verdict"].isin(LADDER[1:])]
    keys = zip(growth["site"], growth["latent"], strict=True)
    growth = growth.assign(
        plain=[(str(site), int(latent)) not in paged for site, latent in keys],
        below=[-LADDER.index(verdict) for verdict in growth["verdict"]],
    ).sort_values(["plain", "below", "q_value"], kind="stable")
    return {
        str(site): [int(latent) for latent in rows["latent"].drop_duplicates()]
        for site, rows in growth.groupby("site", sort=False)
    }


def _beliefs(run: RunContext, pair: Pair) -> _Beliefs:
    """What model and exact posterior believe before each example of run A, and about run B's query."""
    asked = [*pair.a.answer.ravel().tolist(), *pair.a.y.ravel().tolist()]
    asked += [word for belief in run.config.declared for word in belief.words]
    words = tuple(word for word in dict.fromkeys(asked) if not word.isdigit())
    model, exact, reasons = [], [], []
    for prompts in (pair.a, pair.b):
        where = prompts.positions("pre")
        probs = answer_probs(run.model, prompts.tokens, where, extra=words, batch=run.config.track.batch)
        model.append(belief_log_odds(probs, prompts, declared=run.config.declared))
        known, reason = _exact(run, prompts)
        exact.append(known)
        reasons.append(reason)
    return _Beliefs(model[0], exact[0], model[1][:, 0], exact[1][:, 0], reasons[0])


def _exact(run: RunContext, prompts: PromptSet) -> tuple[Floats, str]:
    """The exact posterior's log-odds [prompt example belief], or NaN and the reason."""
    unknown = np.full((*prompts.x.shape, len(run.config.belief_names)), np.nan)
    if run.mixture is None:
        return unknown, "the model's folder declares no mixture"
    possible = np.flatnonzero(in_mixture(run.mixture, prompts))
    if len(possible):
        some = prompts.select(possible)
        probs = exact_answer_probs(run.mixture, some)
        unknown[possible] = belief_log_odds(probs, some, declared=run.config.declared)
    left = prompts.n_prompts - len(possible)
    return unknown, f"the mixture never gives some x or label of {left} of these prompts" if left else ""


def _belief_views(names: Sequence[str], words: Mapping[str, str], held: _Beliefs, i: int) -> list[PairBelief]:
    """The beliefs of a prompt that are defined somewhere."""
    return [
        PairBelief(
            name, words[name], held.a[i, :, k].tolist(), held.exact[i, :, k].tolist(),
            float(held.b[i, k]), float(held.exact_b[i, k]),
        )
        for k, name in enumerate(names)
        if np.isfinite([*held.a[i, :, k], held.b[i, k]]).any()
    ]  # fmt: skip


def _lens(run: RunContext, pair: Pair) -> tuple[LensReads, LensReads]:
    """The logit lens at the query's pre, in run A and run B."""
    wanted = pair.a.answer[:, -1].tolist()
    answers, ids = run.model.answer_space(tuple(y for y in wanted if not y.isdigit()))
    known: dict[str, int] = dict(zip(answers, ids.tolist(), strict=True))
    asked = np.array([known[y] for y in wanted])
    runs = (up_to_query(pair.a), up_to_query(pair.b))
    a, b = (lens_tokens(run.model, ids, ids.shape[1] - 1, asked) for ids in runs)
    return a, b


def _token_names(run: RunContext, ids: Sequence[Ints]) -> dict[int, str]:
    """Text of every token among `ids`, each as it stands alone."""
    every = np.unique(np.concatenate([part.ravel() for part in ids])).tolist()
    return {one: token_texts(run.model.tokenizer, [one])[0].text for one in every}


def _lens_rows(lens: tuple[LensReads, LensReads], i: int, text: Mapping[int, str]) -> list[LensRow]:
    def read(held: LensReads, k: int) -> LensRead:
        tokens = zip(held.top[i, k].tolist(), held.top_prob[i, k].tolist(), strict=True)
        return LensRead([(text[token], prob) for token, prob in tokens], float(held.asked_prob[i, k]))

    layers = lens[0].layers
    names = [*(f"into block {layer}" for layer in layers[:-1]), "after the last block"]
    return [LensRow(name, *(read(held, k) for held in lens)) for k, name in enumerate(names)]
