"""The pages of single prompts: run A, with examples, and run B, without, token by token.

Of each prompt: its text coloured by a latent, some latents of each site at every token, the beliefs over
its examples, and the logit lens at the query's `pre`. All of it needs the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from markupsafe import Markup
from scipy.sparse import csr_array

from iclens.core import PADDING
from iclens.model.load import token_texts
from iclens.model.run import answer_probs
from iclens.pages import text
from iclens.pages.draw import Line, level, lines_chart, tag
from iclens.pages.growth import meanings
from iclens.pages.section import Cell, Chrome, Links, Page, Section, Source, grid, missing, paragraph, render
from iclens.pages.text import number, shard
from iclens.patching.receiver import up_to_query
from iclens.patching.runs import ZERO, build_runs
from iclens.patching.sets import FULL
from iclens.patching.sweep import LensReads, lens_tokens
from iclens.prompts.build import PromptSet
from iclens.schemas import LADDER
from iclens.study.follow import exact_beliefs
from iclens.study.run import RunContext
from iclens.table import Floats
from iclens.tracking import belief_log_odds, in_turn, most_changed, strongest, token_activations

PATH = "prompts.html"
LEAD = (
    "Single prompts, token by token. Run A shows examples and then asks about x; run B asks about the same x "
    "and shows none."
)
START = -1
"""`example` of the tokens before the first example."""
PER_SITE, LISTED = 12, 3
"""Latents of each site that are shown with a prompt; examples of it that the list quotes."""
CHANGED, GROWS, ACTIVE = "differs at the query", "grows over examples", "most active"
"""Why a latent is shown."""
ABOUT = (
    "The first {n} prompts that the patching stage draws: the {shown} examples of run A with run B’s query, "
    "and that query alone. Of each site, at most {per_site} latents are shown, taken in turn by the largest "
    "difference between the runs at the query, the clearest growth, and the largest activation after the "
    "first token; for the choice, sizes are multiplied by the decoder norm."
)


@dataclass(frozen=True)
class Token:
    """One token of a run."""

    text: str
    role: str  # its part in the example, or "start"
    example: int  # the example's number from 0, or `START`
    continues: bool = False  # whether it begins inside a character

    @property
    def shown(self) -> str:
        """It as it stands on the page."""
        return text.token_text(self.text, self.continues)


@dataclass(frozen=True)
class Read:
    """What a residual would answer: its most probable tokens with probabilities, and P(the task's answer)."""

    top: Sequence[tuple[str, float]]
    wanted: float


@dataclass(frozen=True)
class Run:
    """One of the two runs, up to the query's pre, and what the model answers there."""

    tokens: Sequence[Token]
    read: Read

    @property
    def query(self) -> int:
        """Number of the example that is the query."""
        return max((token.example for token in self.tokens), default=START)

    @property
    def answer(self) -> tuple[str, float]:
        """The most probable token, and its probability."""
        return self.read.top[0]


@dataclass(frozen=True)
class Shown:
    """A latent at every token of both runs: why it is shown, and its activations, [token]."""

    latent: int
    why: str
    a: Sequence[float]
    b: Sequence[float]

    @property
    def peak(self) -> float:
        """Its largest activation in both runs after the first token, or else on it.

        On the first token residuals of large models are out of all scale.
        """
        return max((*self.a[1:], *self.b[1:]), default=0.0) or max((*self.a, *self.b), default=0.0)


@dataclass(frozen=True)
class Belief:
    """A belief before every example of run A, [example], and about the query in run B, log-odds in nats."""

    name: str
    meaning: str
    a: Sequence[float]
    exact: Sequence[float]
    b: float
    exact_b: float


@dataclass(frozen=True)
class Pair:
    """One prompt in both runs."""

    task: str
    query: str  # the x that is asked
    wanted: str  # the task's answer to it
    a: Run
    b: Run
    sites: Mapping[str, Sequence[Shown]]  # site → its latents, those of the site that carries most first
    beliefs: Sequence[Belief]  # those that are defined
    unknown: str  # why there is no exact posterior, or ""
    lens: Sequence[tuple[str, Read, Read]]  # (depth in words, run A, run B), from the first block to the last


# ---------------------------------------------------------------- what they hold


def pairs(run: RunContext, source: Source, n: int) -> list[Pair]:
    """The first `n` prompts of the patching stage: A's examples and B's query, and that query alone."""
    a, b = paired_runs(run, n)
    sites, (beliefs, unknown) = _site_latents(run, source, a, b), _beliefs(run, source, a, b)
    lens, first = _lens(run, a, b), _carrier(source)
    shown = []
    for i in range(n):
        order = sorted((site for site in sites[i] if sites[i][site]), key=lambda site: site != first)
        _, last_a, last_b = lens[i][-1]
        shown.append(Pair(
            str(a.task[i]), str(a.x[i, -1]), str(a.answer[i, -1]), _text(run, a, i, last_a),
            _text(run, b, i, last_b), {site: sites[i][site] for site in order}, beliefs[i], unknown, lens[i],
        ))  # fmt: skip
    return shown


def paired_runs(run: RunContext, n: int) -> tuple[PromptSet, PromptSet]:
    """Run A and run B of the first `n` prompts, [prompt] each; the last example is the query."""
    section, prompts = run.config.patch, run.config.prompts
    runs = build_runs(
        run.model.tokenizer, prompts.rule, recipient=ZERO, n_prompts=n,
        donor_examples=section.donor_examples, seed=section.seed, inputs=prompts.inputs,
        declared=run.config.declared, template=prompts.template,
    )  # fmt: skip
    return runs.target, runs.recipient


def _text(run: RunContext, prompts: PromptSet, i: int, last: Read) -> Run:
    """A run as text; `last` is what the residual after the last block answers: the model's own answer."""
    roles = {column: role for role, column in prompts.layout.columns().items()}
    places = [("start", START)] * prompts.layout.prefix
    places += [
        (roles.get(column, ""), example)
        for example in range(prompts.n_examples) for column in range(prompts.layout.example)
    ]  # fmt: skip
    ids = up_to_query(prompts)[i]
    texts = token_texts(run.model.tokenizer, ids[ids != PADDING].tolist())
    there = [place for place, one in zip(places, ids, strict=False) if one != PADDING]
    return Run(
        [Token(one.text, *place, one.continues) for one, place in zip(texts, there, strict=True)], last
    )


def _carrier(source: Source) -> str:
    """The site whose whole activation, put into run B, moves the belief most; "" where none was patched."""
    sets, belief = source.rows("sets"), source.config.patch.chosen_for
    whole = sets[(sets["kind"] == FULL) & (sets["direction"] == "sufficiency") & (sets["belief"] == belief)]
    order = whole.dropna(subset=["effect"]).sort_values("effect", ascending=False)
    return "" if order.empty else str(order["site"].iloc[0])


def _site_latents(run: RunContext, source: Source, *runs: PromptSet) -> list[dict[str, list[Shown]]]:
    """The chosen latents of each prompt by site, [prompt]."""
    ids = [up_to_query(prompts) for prompts in runs]
    growing = _growing(source)
    layout = runs[0].layout
    query = layout.position("pre", 0) + 1 - layout.prefix  # columns of the query
    found: list[dict[str, list[Shown]]] = [{} for _ in range(runs[0].n_prompts)]
    batch = run.config.track.batch
    of_runs = [token_activations(run.model, run.saes, tokens, batch=batch) for tokens in ids]
    for site in run.saes:
        latents = [of_run[site] for of_run in of_runs]
        scale = source.results.decoder_norms[site.short]
        for i, own in enumerate(found):
            a, b = (
                csr_array(part[i * rows.shape[1] : (i + 1) * rows.shape[1]])
                for part, rows in zip(latents, ids, strict=True)
            )
            chosen = choose(a, b, growing.get(site.short, []), scale, query)
            columns = [
                csr_array(part)[np.flatnonzero(rows[i] != PADDING)][:, list(chosen)].toarray().T.tolist()
                for part, rows in zip((a, b), ids, strict=True)
            ]
            own[site.short] = [
                Shown(*one, *values) for one, *values in zip(chosen.items(), *columns, strict=True)
            ]
    return found


def choose(a: csr_array, b: csr_array, growing: Sequence[int], scale: Floats, query: int) -> dict[int, str]:
    """Latent → why it is shown, for one site and prompt whose runs end with the same `query` tokens.

    `a` and `b` are activations in the two runs [token latent], `growing` latents of the site that grow, the
    clearest first, and `scale` the decoder norm of each latent [latent].
    """
    both = csr_array(np.abs(a[1:]).max(axis=0).maximum(np.abs(b[1:]).max(axis=0)).reshape(1, -1))
    active = strongest(both, scale)
    there = set(active.tolist())
    lists = {
        CHANGED: most_changed(csr_array(a[-query:]), csr_array(b[-query:]), scale).tolist()[:PER_SITE],
        GROWS: [latent for latent in growing if latent in there][:PER_SITE],
        ACTIVE: active.tolist()[:PER_SITE],
    }
    taken = in_turn(lists, PER_SITE)
    return {latent: why for why in lists for latent, own in taken.items() if own == why}


def _growing(source: Source) -> dict[str, list[int]]:
    """Site → latents that grow at any role, those with a page first, then by rung and q."""
    growth = source.rows("growth")
    growth = growth[growth["verdict"].isin(LADDER[1:])]
    keys = zip(growth["site"], growth["latent"], strict=True)
    growth = growth.assign(
        plain=[(str(site), int(latent)) not in source.links for site, latent in keys],
        below=[-LADDER.index(verdict) for verdict in growth["verdict"]],
    ).sort_values(["plain", "below", "q_value"], kind="stable")
    return {
        str(site): [int(latent) for latent in rows["latent"].drop_duplicates()]
        for site, rows in growth.groupby("site", sort=False)
    }


def _beliefs(run: RunContext, source: Source, *runs: PromptSet) -> tuple[list[list[Belief]], str]:
    """What model and exact posterior believe before each example of run A and about run B's query, [prompt].

    Beside it, why there is no exact posterior, or "".
    """
    declared, words = run.config.declared, meanings(source)
    asked = [*runs[0].answer.ravel().tolist(), *runs[0].y.ravel().tolist()]
    asked += [word for belief in declared for word in belief.words]
    extra = tuple(dict.fromkeys(asked))
    log_odds = []  # of each run: model's and exact posterior's, [prompt example belief]
    for prompts in runs:
        where = prompts.positions("pre")
        probs = answer_probs(run.model, prompts.tokens, where, extra=extra, batch=run.config.track.batch)
        log_odds.append((belief_log_odds(probs, prompts, declared=declared), *exact_beliefs(run, prompts)))
    (model_a, exact_a, reason), (model_b, exact_b, _) = log_odds
    return [
        [
            Belief(name, words[name], model_a[i, :, k].tolist(), exact_a[i, :, k].tolist(),
                   float(model_b[i, 0, k]), float(exact_b[i, 0, k]))
            for k, name in enumerate(run.config.belief_names)
            if np.isfinite([*model_a[i, :, k], model_b[i, 0, k]]).any()
        ]
        for i in range(runs[0].n_prompts)
    ], reason  # fmt: skip


def _lens(run: RunContext, a: PromptSet, b: PromptSet) -> list[list[tuple[str, Read, Read]]]:
    """The logit lens at the query's pre of each prompt: depth in words, what run A and run B would answer."""
    wanted = a.answer[:, -1].tolist()
    answers, ids = run.model.answer_space(tuple(wanted))
    known = dict(zip(answers, ids.tolist(), strict=True))
    asked = np.array([known[y] for y in wanted])
    reads = [lens_tokens(run.model, ids, ids.shape[1] - 1, asked) for ids in map(up_to_query, (a, b))]
    tokens = np.unique(np.concatenate([read.top.ravel() for read in reads])).tolist()
    names = {
        one: token_texts(run.model.tokenizer, [one])[0].text for one in tokens
    }  # each as it stands alone
    depths = [*(f"into block {layer}" for layer in reads[0].layers[:-1]), "after the last block"]

    def read(of: LensReads, i: int, k: int) -> Read:
        top = zip(of.top[i, k].tolist(), of.top_prob[i, k].tolist(), strict=True)
        return Read([(names[token], prob) for token, prob in top], float(of.asked_prob[i, k]))

    return [
        [(depth, read(reads[0], i, k), read(reads[1], i, k)) for k, depth in enumerate(depths)]
        for i in range(a.n_prompts)
    ]


# ---------------------------------------------------------------- how they are drawn


@dataclass(frozen=True)
class Column:
    """A latent as it is drawn: everything that the page and its shard say of it."""

    latent: int
    why: str
    page: str  # the address of its page from a prompt's page; "" where it has none
    peak: str  # its largest activation after the first token, as text
    levels: Mapping[str, str]  # run → colour level 0–8 of every token, as digits
    values: Mapping[
        str, Sequence[str]
    ]  # run → the activations on the tokens above level 0, as text, in order

    def cells(self, run: str) -> list[tuple[int, str]]:
        """(Colour level, activation as text) of every token of a run."""
        left = iter(self.values[run])
        return [(int(digit), next(left) if digit != "0" else "") for digit in self.levels[run]]


def column(site: str, one: Shown, links: Links) -> Column:
    """A latent as it is drawn."""
    runs = {"a": one.a, "b": one.b}
    levels = {run: [level(v, one.peak) for v in values] for run, values in runs.items()}
    values = {
        run: [number(v) for v, step in zip(own, levels[run], strict=True) if step]
        for run, own in runs.items()
    }
    digits = {run: "".join(map(str, steps)) for run, steps in levels.items()}
    page = f"../{links[site, one.latent]}" if (site, one.latent) in links else ""
    return Column(one.latent, one.why, page, number(one.peak), digits, values)


def files(shown: Sequence[Pair], source: Source, chrome: Chrome) -> Iterator[tuple[str, Callable[[], str]]]:
    """The list of prompts, a page for each, and its latents of all sites: path → what writes it."""
    body = Section("Prompts", id="prompts", body=lambda source: listed(shown))
    page = Page(PATH, "Prompts", "Prompts", LEAD, [body])
    yield PATH, lambda: page.write(source, chrome)
    for i, pair in enumerate(shown, start=1):
        near = {"previous": i - 1, "next": i + 1 if i < len(shown) else 0}
        yield address(i), lambda i=i, pair=pair, near=near: write(pair, i, near, source.links, chrome)
        if pair.sites:
            sites = [
                {"site": site, "latents": [vars(column(site, one, source.links)) for one in latents]}
                for site, latents in pair.sites.items()
            ]
            yield f"data/prompts/{i}.js", lambda i=i, sites=sites: shard(f"prompts/{i}", sites)


def listed(shown: Sequence[Pair]) -> Markup:
    """A line for each prompt, which leads to its page."""
    if not shown:
        return missing("No prompt is shown in this run.")

    def answer(pair: Pair, run: Run) -> Cell:
        token, probability = run.answer
        right = "right" if token == pair.wanted else "wrong"
        return Cell(text.visible(token), small=f"{number(probability)} {right}")

    rows = [
        {
            "prompt": tag("a", f"Prompt {i}", href=address(i)), "task": pair.task,
            "examples": Markup("{}: <bdi>{}</bdi>").format(pair.a.query, quoted(pair)),
            "query x": text.visible(pair.query),
            "task’s answer": text.visible(pair.wanted), "A’s answer": answer(pair, pair.a),
            "B’s answer": answer(pair, pair.b),
        }
        for i, pair in enumerate(shown, start=1)
    ]  # fmt: skip
    about = ABOUT.format(n=len(shown), shown=shown[0].a.query, per_site=PER_SITE)
    note = "An answer is the model’s most probable token of the whole vocabulary, with its probability."
    table = grid("Prompts; each leads to its page", {name: name for name in rows[0]}, rows, kind="")
    return paragraph("intro", about) + table + paragraph("under", note)


def address(number: int) -> str:
    """The address of a prompt's page, relative to the index."""
    return f"prompts/{number}.html"


def quoted(pair: Pair) -> str:
    """The first examples of run A in a line."""
    lines = [
        "".join(token.text for token in line).strip()
        for example, line in groupby(pair.a.tokens, lambda token: token.example)
        if START < example < min(LISTED, pair.a.query)
    ]
    return " ".join(lines) + (" …" if pair.a.query > LISTED else "")


def write(pair: Pair, number: int, near: Mapping[str, int], links: Links, chrome: Chrome) -> str:
    """The text of the page of prompt `number`; of `near`, "previous" and "next", 0 stands for none."""
    site, latents = next(iter(pair.sites.items()), ("", ()))
    columns = [column(site, one, links) for one in latents]
    runs = (("a", pair.a), ("b", pair.b))
    return render(
        "prompt.html.j2", chrome, address(number),
        number=number, pair=pair, near=near, address=address, columns=columns,
        whys=[(why, len(list(same))) for why, same in groupby(columns, lambda one: one.why)],
        runs=[(name, run, _lines(run, columns[0].cells(name) if columns else [])) for name, run in runs],
        groups=_groups(pair), cells={name: [one.cells(name) for one in columns] for name, _ in runs},
        charts=[belief_chart(one) for one in pair.beliefs],
        has_exact=any(math.isfinite(v) for one in pair.beliefs for v in (*one.exact, one.exact_b)),
    )  # fmt: skip


def _lines(run: Run, cells: Sequence[tuple[int, str]]) -> list[tuple[str, list[tuple[Token, int, str]]]]:
    """A run's tokens with colour level and activation, line by line; each line is an example."""
    every = [
        (token, *cell) for token, cell in zip(run.tokens, cells or [(0, "")] * len(run.tokens), strict=True)
    ]
    return [
        (_line_name(n, run.query), list(line)) for n, line in groupby(every, lambda entry: entry[0].example)
    ]


def _line_name(example: int, query: int) -> str:
    return "start" if example == START else "query" if example == query else str(example + 1)


def _groups(pair: Pair) -> list[tuple[str, list[tuple[str, int, Token]]]]:
    """Rows of the table as (run, position, token), in groups: the query, what stands before it, the examples.

    Tokens of one place in both runs stand one below the other.
    """
    places: dict[str, dict[tuple[str, int], list[tuple[str, int, Token]]]] = {"query": {}, "start": {}}
    for name, run in (("a", pair.a), ("b", pair.b)):
        seen: dict[tuple[str, str], int] = {}
        for pos, token in enumerate(run.tokens):
            line = _line_name(token.example, run.query)
            nth = seen[line, token.role] = seen.get((line, token.role), -1) + 1
            places.setdefault(line, {}).setdefault((token.role, nth), []).append((name, pos, token))
    titles = {"query": "The query", "start": "Before the first example"}
    return [
        (titles.get(line, f"Example {line}"), [row for rows in own.values() for row in rows])
        for line, own in places.items()
        if own
    ]


def belief_chart(one: Belief) -> Markup:
    """A belief over the examples of run A, with run B's as a level line."""
    n = list(range(len(one.a)))
    lines = [Line("model", "task", n, one.a), Line("exact posterior", "exact", n, one.exact)]
    lines += [Line("run B", "control", [0, n[-1]], [one.b, one.b])] if math.isfinite(one.b) else []
    said = f"Log-odds of {one.name} by examples seen in run A: {lines[0].ends}; in run B {number(one.b)}."
    return lines_chart(lines, "", said=said)
